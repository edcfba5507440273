"""Cut the reproduction's data sets from a folder that holds nuclei, coco_mini, imagenet_samples.

OUTPUT_DIR gets

* ``images/``: every training image of the three without labels, as links, for pretraining;
* ``classes/seed_N/{train,val}``: ImageNet's photographs as links in four classes, halved; and
  ``classes/tune``, whose ``val`` is a fifth of them, set aside for learning rates;
* ``tiles/``: a tile of 128x128 pixels, at a random place, of every image of nuclei that shows a
  nucleus there, with ``train.json``, ``tune.json`` (set aside for learning rates), ``val.json``,
  and the label subsets ``train_K_seed_N.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle_codec
from pycocotools.coco import COCO

from training.cli import ToolParser

TILE = 128  # pixels
TUNE = 60  # training images set aside
SUBSETS = (16, 64)  # labelled tiles
# WordNet numbers are in the hierarchy's order: each class begins with its own number
CLASSES = ((1440764, "animal"), (2085620, "dog"), (2114367, "animal"), (2666196, "artefact"),
           (6359193, "food_or_place"))  # fmt: skip


def link(files: Iterable[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in files:
        (folder / file.name).symlink_to(file.resolve())


def link_images(data: Path, output: Path) -> None:
    """What is pretrained on: all training images of the data sets, none of their validation images.

    The photographs that ``classes`` validates on are training images of ImageNet, so they are among
    them, for every pretrained arm alike, without their classes.
    """
    sources = {"imagenet_samples": sorted((data / "imagenet_samples/train").rglob("*.*"))}
    for name in ("nuclei", "coco_mini"):
        labels = json.loads((data / name / "annotations/train.json").read_text(encoding="utf-8"))
        files = [data / name / "images" / image["file_name"] for image in labels["images"]]
        sources[name] = files
    for name, files in sources.items():
        link(files, output / name)


def link_classes(data: Path, output: Path, seeds: int) -> None:
    """Of each class a fifth for learning rates; half of the others to train, half to validate."""
    by_class: dict[str, list[Path]] = {}
    for folder in sorted((data / "imagenet_samples/train").iterdir()):
        number = int(folder.name[1:])
        name = [name for first, name in CLASSES if first <= number][-1]
        by_class.setdefault(name, []).extend(sorted(folder.iterdir()))
    for name, files in by_class.items():
        order = np.random.default_rng(0).permutation(len(files))
        set_aside, others = order[::5], np.setdiff1d(order, order[::5])
        splits = {}
        for seed in range(seeds):
            of_seed = np.random.default_rng(seed).permutation(others)
            splits[f"seed_{seed}"] = {"train": of_seed[::2], "val": of_seed[1::2]}
        splits["tune"] = {"train": splits[f"seed_{seeds - 1}"]["train"], "val": set_aside}
        for of_split, parts in splits.items():
            for split, part in parts.items():
                link([files[i] for i in part], output / of_split / split / name)


def cut_tiles(annotations: Path, images: Path, output: Path) -> dict:
    """One tile an image, with the parts of its objects that lie inside: COCO json as a dict."""
    labels = COCO(str(annotations))
    generator = np.random.default_rng(0)
    tiles = {"images": [], "annotations": [], "categories": labels.dataset["categories"]}
    output.mkdir(parents=True, exist_ok=True)
    for image in labels.dataset["images"]:
        pixels = Image.open(images / image["file_name"]).convert("RGB")
        left = int(generator.integers(pixels.width - TILE + 1))
        top = int(generator.integers(pixels.height - TILE + 1))
        objects: list[dict] = []
        for annotation in labels.imgToAnns[image["id"]]:
            whole = labels.annToMask(annotation)
            part = np.asfortranarray(whole[top : top + TILE, left : left + TILE])
            if part.sum() < 16:  # a sliver at the tile's edge
                continue
            rle = rle_codec.encode(part)
            objects.append(
                {
                    "id": len(tiles["annotations"]) + len(objects) + 1,
                    "image_id": image["id"],
                    "category_id": annotation["category_id"],
                    "iscrowd": 0,
                    "area": float(part.sum()),
                    "bbox": rle_codec.toBbox(rle).tolist(),
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
        if not objects:
            continue
        name = f"{Path(image['file_name']).stem}.png"
        pixels.crop((left, top, left + TILE, top + TILE)).save(output / name)
        tile = {"id": image["id"], "file_name": name, "width": TILE, "height": TILE}
        tiles["images"].append(tile)
        tiles["annotations"] += objects
    return tiles


def subset(tiles: dict, chosen: set[int]) -> dict:
    """The tiles of these image ids."""
    return {
        **tiles,
        "images": [image for image in tiles["images"] if image["id"] in chosen],
        "annotations": [each for each in tiles["annotations"] if each["image_id"] in chosen],
    }


def main() -> None:
    parser = ToolParser(__doc__)
    parser.add_argument("data", type=Path, help="the folder of the data sets")
    parser.add_argument("output_dir", type=Path, help="must not exist")
    parser.add_argument("--seeds", type=int, default=11, help="label subsets and halves")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True)
    link_images(options.data, options.output_dir / "images")
    link_classes(options.data, options.output_dir / "classes", options.seeds)
    nuclei, folder = options.data / "nuclei", options.output_dir / "tiles"
    files = {}
    for split in ("train", "val"):
        labels = nuclei / f"annotations/{split}.json"
        files[f"{split}.json"] = cut_tiles(labels, nuclei / "images", folder / "images")
    whole = files["train.json"]
    ids = np.array([image["id"] for image in whole["images"]])
    order = np.random.default_rng(0).permutation(ids)
    files["tune.json"] = subset(whole, set(order[:TUNE].tolist()))
    files["train.json"] = subset(whole, set(order[TUNE:].tolist()))
    for seed in range(options.seeds):
        order_of_seed = np.random.default_rng(seed).permutation(order[TUNE:])
        for count in SUBSETS:
            few = subset(whole, set(order_of_seed[:count].tolist()))
            files[f"train_{count}_seed_{seed}.json"] = few
    for name, tiles in files.items():
        (folder / name).write_text(json.dumps(tiles), encoding="utf-8")
        objects = len(tiles["annotations"])
        print(f"{folder / name}: {len(tiles['images'])} tiles, {objects} nuclei")


if __name__ == "__main__":
    main()
