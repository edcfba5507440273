"""Make the data of ablations/augmentation from a folder that holds nuclei, coco_mini and
imagenet_samples.

OUTPUT_DIR gets ``tiles/`` of nuclei, those of ablations/reproduction, and ``coco_mini/``: its
photographs with a shorter side of 160 pixels, COCO's twelve supercategories as classes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle_codec
from pycocotools.coco import COCO

from training.cli import ToolParser

REPRODUCTION = Path(__file__).resolve().parent.parent / "reproduction/prepare.py"
SIDE = 160  # pixels


def shrunk(labels: COCO, images: Path, output: Path) -> dict[str, Any]:
    """The photographs, written small, and their objects by supercategory: COCO json as a dict."""
    kinds = sorted({category["supercategory"] for category in labels.dataset["categories"]})
    tree: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(kinds, 1)],
    }
    for image in labels.dataset["images"]:
        pixels = Image.open(images / image["file_name"]).convert("RGB")
        factor = SIDE / min(pixels.size)
        width, height = (round(side * factor) for side in pixels.size)
        name = f"{Path(image['file_name']).stem}.png"
        pixels.resize((width, height), Image.Resampling.BICUBIC).save(output / name)
        tree["images"].append(
            {"id": image["id"], "file_name": name, "width": width, "height": height}
        )
        for annotation in labels.imgToAnns[image["id"]]:
            mask = Image.fromarray(labels.annToMask(annotation))
            small = np.asarray(mask.resize((width, height), Image.Resampling.NEAREST))
            if not small.any():
                continue  # smaller than a pixel now
            rle = rle_codec.encode(np.asfortranarray(small))
            kind = labels.cats[annotation["category_id"]]["supercategory"]
            tree["annotations"].append(
                {
                    "id": annotation["id"],
                    "image_id": image["id"],
                    "category_id": kinds.index(kind) + 1,
                    "iscrowd": annotation["iscrowd"],
                    "area": float(small.sum()),
                    "bbox": rle_codec.toBbox(rle).tolist(),
                    "segmentation": {
                        "size": [height, width],
                        "counts": rle["counts"].decode(),
                    },
                }
            )
    return tree


def main() -> None:
    parser = ToolParser(__doc__)
    parser.add_argument("data", type=Path, help="the folder of the data sets")
    parser.add_argument("output_dir", type=Path, help="must not exist")
    options = parser.parse_args()
    subprocess.run([sys.executable, REPRODUCTION, options.data, options.output_dir], check=True)
    source, folder = options.data / "coco_mini", options.output_dir / "coco_mini"
    (folder / "images").mkdir(parents=True)
    for part in ("train", "val"):
        labels = COCO(str(source / f"annotations/{part}.json"))
        tree = shrunk(labels, source / "images", folder / "images")
        (folder / f"{part}.json").write_text(json.dumps(tree), encoding="utf-8")


if __name__ == "__main__":
    main()
