"""A small COCO data set for tests: four images, gaps in the ids, every kind of segmentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

SIZES = {3: (60, 80), 7: (90, 50), 12: (64, 64), 20: (40, 40)}  # id -> height, width


def small_coco() -> dict[str, Any]:
    """Annotations: id 20 has no object, 12 a crowd and a ring of two parts."""
    disc = np.zeros((90, 50), np.uint8, order="F")
    rows, columns = np.mgrid[:90, :50]
    disc[(rows - 40) ** 2 + (columns - 25) ** 2 < 15**2] = 1
    compressed = mask_util.encode(disc)
    x, y, w, h = mask_util.toBbox(compressed).tolist()
    crowd = np.zeros((64, 64), np.uint8)
    crowd[4:20, 8:60] = 1
    changes = np.flatnonzero(np.diff(crowd.ravel(order="F"), prepend=0))
    counts = np.diff([0, *changes, crowd.size]).tolist()
    return {
        "images": [
            {"id": key, "file_name": f"{key}.png", "height": height, "width": width}
            for key, (height, width) in reversed(SIZES.items())
        ],
        "categories": [{"id": 9, "name": "disc"}, {"id": 2, "name": "box"}],
        "annotations": [
            _object(5, 3, 2, [10.5, 12.0, 30.0, 20.5], _box(10.5, 12.0, 30.0, 20.5)),
            _object(
                6, 7, 9, [x, y, w, h], {"size": [90, 50], "counts": compressed["counts"].decode()},
                area=int(disc.sum()),
            ),
            _object(
                8, 12, 2, [5.0, 25.0, 50.0, 30.0],
                [*_box(5.0, 25.0, 20.0, 30.0), *_box(40.0, 30.0, 15.0, 25.0)], area=975.0,
            ),
            _object(9, 12, 9, [8, 4, 52, 16], {"size": [64, 64], "counts": counts}, iscrowd=1),
            _object(
                4, 3, 9, [40.0, 5.0, 40.0, 50.0], [[60.0, 5.0, 80.0, 55.0, 40.0, 55.0]], area=1000.0
            ),
        ],
    }  # fmt: skip


def _box(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def _object(id_, image_id, category_id, bbox, segmentation, iscrowd=0, area=None) -> dict[str, Any]:
    return {
        "id": id_,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "segmentation": segmentation,
        "iscrowd": iscrowd,
        "area": bbox[2] * bbox[3] if area is None else area,
    }


def write_small_coco(folder: Path, tree: dict[str, Any] | None = None) -> tuple[Path, Path]:
    """Write the images and the annotations; returns (annotation file, image folder)."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for key, (height, width) in SIZES.items():
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{key}.png")
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps(tree or small_coco()))
    return annotations, images
