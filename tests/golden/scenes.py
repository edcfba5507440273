"""The golden detectors as runs: a config, and a data set such as they were trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from golden import inputs
from PIL import Image
from pycocotools import mask as rle

from detection.dataset import CocoDataset, load_dataset


def config_of(folder: Path, changes: dict[str, Any]) -> CfgNode:
    """A golden detector's config that trains for a few steps into ``folder``."""
    config = inputs.Case("LN", "trained", ()).config()
    config.defrost()
    pairs = {
        "OUTPUT_DIR": str(folder),
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 64,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
        "INPUT.MIN_SIZE_TRAIN": (128,),
        "INPUT.MAX_SIZE_TRAIN": 160,
        "INPUT.MIN_SIZE_TEST": 128,
        "INPUT.MAX_SIZE_TEST": 160,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.STEPS": (),
        "SOLVER.WARMUP_ITERS": 2,
        **changes,
    }
    config.merge_from_list([item for pair in pairs.items() for item in pair])
    config.freeze()
    return config


def scenes(folder: Path) -> CocoDataset:
    """Four images such as the golden detectors were trained on."""
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    for number in range(4):
        sample = inputs.sample(f"exchange {number}", (96 + 7 * number, 128))
        name = f"{number}.png"
        Image.fromarray(sample["image"].permute(1, 2, 0).numpy()).save(folder / "images" / name)
        height, width = sample["image"].shape[1:]
        images.append({"id": number + 1, "file_name": name, "height": height, "width": width})
        for mask, label in zip(sample["masks"].numpy(), sample["labels"].tolist(), strict=True):
            code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": label + 1,
                    "bbox": rle.toBbox(code).tolist(),
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
                }
            )
    categories = [{"id": n + 1, "name": f"colour {n}"} for n in range(inputs.NUM_CLASSES)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(tree))
    return load_dataset(f"json:{folder / 'annotations.json'}:{folder / 'images'}")
