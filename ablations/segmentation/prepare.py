"""Lay out the three data sets of docs/segmentation.md's comparison, from nuclei and coco_mini.

OUTPUT_DIR gets, for nuclei, coco_mini and drawn scenes (of :mod:`detection.data.scenes`),

* ``NAME/images``, ``NAME/val.json`` and ``NAME/train_seed_N.json``: COCO json whose objects are
  drawn into class maps; of nuclei and scenes ``LABELLED`` training images for each seed, of
  coco_mini, which has few, all;
* ``NAME/unlabelled``: every training image, for pretraining; no test image is among them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from detection.data.scenes import write_scenes
from training.cli import ToolParser

LABELLED = {"nuclei": 32, "coco_mini": None, "scenes": 32}  # images of a seed; None: all
SCENES = (200, 60, 400)  # to train, to test, without labels


def subset(labels: dict[str, Any], size: int | None, seed: int) -> dict[str, Any]:
    """``size`` images of a COCO file, drawn by the seed."""
    images = labels["images"]
    order = np.random.default_rng(seed).permutation(len(images))
    chosen = [images[i] for i in sorted(order[:size])]
    ids = {image["id"] for image in chosen}
    found = [each for each in labels["annotations"] if each["image_id"] in ids]
    return {**labels, "images": chosen, "annotations": found}


def main() -> None:
    parser = ToolParser(__doc__)
    parser.add_argument("data", type=Path, help="the folder that holds nuclei and coco_mini")
    parser.add_argument("output_dir", type=Path, help="must not exist")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True)
    write_scenes(options.output_dir / "scenes", *SCENES)
    for name, size in LABELLED.items():
        folder = options.output_dir / name
        source = folder if name == "scenes" else options.data / name
        train, val = (
            json.loads((source / f"annotations/{split}.json").read_text(encoding="utf-8"))
            for split in ("train", "val")
        )
        if name != "scenes":
            (folder / "unlabelled").mkdir(parents=True)
            (folder / "images").symlink_to((source / "images").resolve())
            for image in train["images"]:
                file = (source / "images" / image["file_name"]).resolve()
                (folder / "unlabelled" / file.name).symlink_to(file)
        files = {"val": val}
        for seed in range(options.seeds):
            files[f"train_seed_{seed}"] = subset(train, size, seed)
        for file_name, content in files.items():
            (folder / f"{file_name}.json").write_text(json.dumps(content), encoding="utf-8")
        trained = len(files["train_seed_0"]["images"])
        print(f"{folder}: {trained} labelled images of a seed, {len(val['images'])} to test")


if __name__ == "__main__":
    main()
