"""Tiles beside whole images: AP and seconds, each arm trained for the same number of steps.

  * ``tiles``: trained on tiles of ``--tile`` pixels at the images' own size, predicted by tiles.
  * ``whole``: whole images at their own size: one tile that is larger than any of them.
  * ``resized``: whole images whose longer side is brought to ``--tile`` pixels.

Two data sets: nuclei (Data Science Bowl 2018), tested on its images of more than 100 objects and
trained on its other training images; mosaics of ``--mosaic`` x ``--mosaic`` photographs of COCO in
one TIFF. Random weights, the quick recipe. Finished arms are kept in the output folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

import det_configs
from detection.config import load_config
from detection.run import run
from images.display import read_shown
from reporting.tables import markdown_table
from training.cli import ToolParser, at_least, log_to, run_tool

CONFIG = Path(det_configs.__file__).parent / "quick/mask_rcnn_convnextv2_atto_scratch_nuclei.yaml"
EXAMPLES = """\
examples:
  python ablations/tiles/compare.py --nuclei nuclei --photos coco_mini --output-dir runs/tiles \\
      --iterations 300 --seeds 0
"""
CELL = 640  # pixels of a photograph's square in a mosaic
ARMS = ("tiles", "whole", "resized")
LARGER_THAN_ANY = 100_000
LARGE_ANCHORS = "[[16],[32],[64],[128],[256]]"


def parse() -> argparse.Namespace:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--nuclei", type=Path, help="a folder of annotations/ (train, dense) and images/")
    add("--photos", type=Path, help="a folder of annotations/ (train, val) and images/")
    add("--output-dir", type=Path, required=True)
    add("--iterations", type=at_least(1), default=300)
    add("--seeds", type=int, nargs="+", default=[0])
    add("--tile", type=at_least(64), default=256)
    add("--mosaic", type=at_least(2), default=3)
    add("--test-images", type=at_least(1), default=65, help="at most so many")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    return parser.parse_args()


def part_of(tree: dict[str, Any], images: list[dict[str, Any]]) -> dict[str, Any]:
    """The same annotations, of these images alone."""
    ids = {image["id"] for image in images}
    kept = [item for item in tree["annotations"] if item["image_id"] in ids]
    return tree | {"images": images, "annotations": kept}


def write_nuclei(nuclei: Path, folder: Path, test_images: int) -> tuple[Path, Path, Path]:
    """Annotations to train and to test on, and the folder of their images."""
    folder.mkdir(parents=True, exist_ok=True)
    trees = {}
    for name in ("train", "dense"):
        path = nuclei / f"annotations/{name}.json"
        trees[name] = json.loads(path.read_text(encoding="utf-8"))
    dense = trees["dense"]["images"][:test_images]
    names = {image["file_name"] for image in dense}
    train = [image for image in trees["train"]["images"] if image["file_name"] not in names]
    for name, images in (("train", train), ("dense", dense)):
        tree = part_of(trees[name], images)
        (folder / f"{name}.json").write_text(json.dumps(tree), encoding="utf-8")
    return folder / "train.json", folder / "dense.json", nuclei / "images"


def write_mosaics(photos: Path, folder: Path, mosaic: int, test: int) -> tuple[Path, Path, Path]:
    """The same of mosaics of photographs, ``mosaic x mosaic`` in each; polygons alone move."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "val"):
        path = photos / f"annotations/{name}.json"
        tree = json.loads(path.read_text(encoding="utf-8"))
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        count = mosaic * mosaic
        most = len(tree["images"]) // count if name == "train" else test
        side = mosaic * CELL
        for number in range(min(most, len(tree["images"]) // count)):
            pixels = np.zeros((side, side, 3), np.uint8)
            for place, image in enumerate(tree["images"][number * count : (number + 1) * count]):
                y, x = (CELL * index for index in divmod(place, mosaic))
                shown = read_shown(photos / "images" / image["file_name"])[:CELL, :CELL]
                pixels[y : y + shown.shape[0], x : x + shown.shape[1]] = shown
                annotations += _moved(tree, image["id"], number + 1, x, y)
            name_of_file = f"{name}_{number:04d}.tif"
            tifffile.imwrite(folder / name_of_file, pixels, tile=(256, 256), photometric="rgb")
            images.append(
                {"id": number + 1, "file_name": name_of_file, "height": side, "width": side}
            )
        for key, item in enumerate(annotations, 1):
            item["id"] = key
        found = tree | {"images": images, "annotations": annotations}
        (folder / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    return folder / "train.json", folder / "val.json", folder


def _moved(
    tree: dict[str, Any], image_id: Any, new_id: int, x: int, y: int
) -> Iterator[dict[str, Any]]:
    for item in tree["annotations"]:
        if item["image_id"] == image_id and isinstance(item["segmentation"], list):
            left, top, *sides = item["bbox"]
            polygons = [
                np.add(np.reshape(polygon, (-1, 2)), (x, y)).ravel().tolist()
                for polygon in item["segmentation"]
            ]
            yield item | {
                "image_id": new_id,
                "bbox": [left + x, top + y, *sides],
                "segmentation": polygons,
            }


def settings_of(arm: str, tile: int) -> list[str]:
    """The overrides of an arm."""
    if arm == "resized":
        sizes = ["INPUT.MAX_SIZE_TRAIN", str(tile), "INPUT.MAX_SIZE_TEST", str(tile)]
        return [*sizes, "INPUT.MIN_SIZE_TRAIN", f"({tile},)", "INPUT.MIN_SIZE_TEST", str(tile)]
    size = tile if arm == "tiles" else LARGER_THAN_ANY
    tiles = ["INPUT.TILES.ENABLED", "True", "INPUT.TILES.SIZE", str(size)]
    return [*tiles, "INPUT.TILES.OVERLAP", str(tile // 4)]


def main() -> None:
    options = parse()
    log_to()
    folder = options.output_dir
    sets = {}
    if options.nuclei:
        sets["nuclei"] = write_nuclei(options.nuclei, folder / "nuclei", options.test_images)
    if options.photos:
        sets["mosaics"] = write_mosaics(
            options.photos, folder / "mosaics", options.mosaic, options.test_images
        )
    rows = []
    for name, (train, test, images) in sets.items():
        for arm in options.arms:
            for seed in options.seeds:
                output = folder / "runs" / f"{name}_{arm}_{seed}"
                overrides = ["DATASETS.TRAIN", f"('json:{train}:{images}',)", "SEED", str(seed)]
                overrides += ["DATASETS.TEST", f"('json:{test}:{images}',)"]
                overrides += ["OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu"]
                overrides += ["SOLVER.MAX_ITER", str(options.iterations)]
                overrides += ["SOLVER.STEPS", f"({options.iterations * 4 // 5},)"]
                overrides += ["DATALOADER.NUM_WORKERS", "0", "TEST.DETECTIONS_PER_IMAGE", "400"]
                if name == "mosaics":
                    overrides += ["MODEL.ANCHOR_GENERATOR.SIZES", LARGE_ANCHORS]
                overrides += settings_of(arm, options.tile)
                summary = output / "inference/metrics_summary.json"
                if not summary.is_file():
                    run(load_config(CONFIG, overrides), resume=True, config_file=str(CONFIG))
                found = json.loads(summary.read_text(encoding="utf-8"))
                facts = json.loads((output / "run.json").read_text(encoding="utf-8"))
                limit = found.get("at_limit", {})
                cells = [found[task]["AP"] for task in ("bbox", "segm")]
                cells += [limit.get(task, {}).get("AP") for task in ("bbox", "segm")]
                cells += [facts.get("train_seconds"), facts.get("predict_seconds")]
                shown = ["-" if cell is None else f"{cell:.1f}" for cell in cells]
                rows.append([name, arm, str(seed), *shown])
    columns = ["data", "arm", "seed", "box AP", "mask AP", "box AP at the limit"]
    columns += ["mask AP at the limit", "training s", "prediction s"]
    print(markdown_table(columns, rows))


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
