"""A data set of large images for tests of tiles: drawn objects of every kind of segmentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import tifffile

HEIGHT, WIDTH = 230, 330


def polygon(generator: np.random.Generator, x: float, y: float, radius: float) -> list[float]:
    angles = np.sort(generator.random(9) * 2 * np.pi)
    points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)
    return np.clip(points, 0, [WIDTH, HEIGHT]).round(2).ravel().tolist()


def tiled_coco(seed: int = 0, objects: int = 25) -> dict[str, Any]:
    """One image with polygons, every fifth object an RLE, the last two crowds; one without."""
    generator = np.random.default_rng(seed)
    annotations = []
    for key in range(1, objects + 1):
        x, y = generator.uniform(0, [WIDTH, HEIGHT])
        shape: Any = [polygon(generator, x, y, generator.uniform(6, 60))]
        rle = mask_util.merge(mask_util.frPyObjects(shape, HEIGHT, WIDTH))
        if not mask_util.area(rle):
            continue
        crowd = int(key > objects - 2)
        if key % 5 == 0 or crowd:
            shape = {**rle, "counts": rle["counts"].decode()}
        annotations.append(
            {
                "id": key,
                "image_id": 1,
                "category_id": 1 + key % 2,
                "bbox": mask_util.toBbox(rle).tolist(),
                "area": int(mask_util.area(rle)),
                "segmentation": shape,
                "iscrowd": crowd,
            }
        )
    return {
        "images": [
            {"id": key, "file_name": f"{key}.tif", "height": HEIGHT, "width": WIDTH}
            for key in (1, 2)
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": annotations,
    }


def write_tiled_coco(folder: Path, tree: dict[str, Any]) -> str:
    """Write images and annotations; the data set's name."""
    generator = np.random.default_rng(1)
    for image in tree["images"]:
        pixels = generator.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        tifffile.imwrite(folder / image["file_name"], pixels, tile=(64, 64), compression="zlib")
    (folder / "annotations.json").write_text(json.dumps(tree))
    return f"json:{folder / 'annotations.json'}:{folder}"
