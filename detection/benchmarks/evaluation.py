"""Evaluation of synthetic COCO results: this project's time over pycocotools' own.

Both start from the same two files and compute box and mask metrics. pycocotools runs as detectron2
runs it (``COCO``, ``loadRes``, ``COCOeval`` for each task); ours checks both files besides. Seconds
are processor time of all threads, which a busy machine changes least.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle_codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.evaluate import METRICS, coco_metrics
from training.records.measure import Row

CLASSES = 80
HEIGHT, WIDTH = 480, 640
OBJECTS = 7  # an image, on average, as in COCO
CORNERS = 24


def write_synthetic(folder: Path, images: int, detections: int) -> tuple[Path, Path]:
    """COCO-like ground truth (polygons, crowds) and results (boxes and masks) of random ellipses.

    Args:
        images: with about OBJECTS objects each.
        detections: of each image; a third of them are near an object.

    Returns:
        The files of the ground truth and of the results.
    """
    random = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        count = int(random.poisson(OBJECTS))
        objects, classes = _ellipses(random, count), random.integers(1, CLASSES + 1, count)
        for ellipse, category in zip(objects, classes, strict=True):
            polygon = _polygon(ellipse)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(category),
                    "segmentation": [polygon],
                    "bbox": _box(polygon),
                    "area": float(np.pi * ellipse[2] * ellipse[3]),
                    "iscrowd": int(random.random() < 0.01),
                }
            )
        near = random.integers(0, count, detections // 3) if count else np.zeros(0, int)
        moved = objects[near] * random.normal(1, 0.08, (len(near), 4))
        rest = detections - len(near)
        ellipses = np.concatenate([moved, _ellipses(random, rest)])
        polygons = [_polygon(ellipse) for ellipse in ellipses]
        named = [*classes[near], *random.integers(1, CLASSES + 1, rest)]
        for polygon, rle, category, score in zip(
            polygons,
            rle_codec.frPyObjects(polygons, HEIGHT, WIDTH),
            named,
            random.random(detections),
            strict=True,
        ):
            results.append(
                {
                    "image_id": image,
                    "category_id": int(category),
                    "bbox": _box(polygon),
                    "score": round(float(score), 5),
                    "segmentation": rle | {"counts": rle["counts"].decode()},
                }
            )
    truth = {
        "images": [{"id": i + 1, "height": HEIGHT, "width": WIDTH} for i in range(images)],
        "categories": [{"id": i + 1, "name": f"class {i + 1}"} for i in range(CLASSES)],
        "annotations": annotations,
    }
    paths = folder / "truth.json", folder / "results.json"
    for path, content in zip(paths, (truth, results), strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    return paths


def _ellipses(random: np.random.Generator, count: int) -> np.ndarray:
    """Centre x, y and radii x, y in pixels, ``[count, 4]``: small ones more often."""
    radii = np.exp(random.uniform(np.log(6), np.log(150), (count, 2)))
    centres = random.uniform((0, 0), (WIDTH, HEIGHT), (count, 2))
    return np.concatenate([centres, radii], axis=1)


def _polygon(ellipse: np.ndarray) -> list[float]:
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    x = (ellipse[0] + ellipse[2] * np.cos(angle)).clip(0, WIDTH)
    y = (ellipse[1] + ellipse[3] * np.sin(angle)).clip(0, HEIGHT)
    return np.stack([x, y], axis=1).round(2).ravel().tolist()


def _box(polygon: list[float]) -> list[float]:
    x, y = polygon[::2], polygon[1::2]
    return [min(x), min(y), round(max(x) - min(x), 2), round(max(y) - min(y), 2)]


def pycocotools_metrics(truth: Path, results: Path) -> dict[str, list[float]]:
    """The 12 numbers of each task, in percent, as detectron2 gets them from pycocotools."""
    stats = {}
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(str(truth))
        detections = json.loads(results.read_text(encoding="utf-8"))
        for task in ("bbox", "segm"):
            if task == "segm":  # or a detection's size would be its box's
                for detection in detections:
                    del detection["bbox"]
            evaluation = COCOeval(ground_truth, ground_truth.loadRes(detections), task)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            stats[task] = (100 * evaluation.stats).tolist()
    return stats


def evaluation_case(images: int, detections: int = 100) -> Row:
    """Both evaluations of the same two files, once each; a RuntimeError if they differ."""
    with tempfile.TemporaryDirectory() as folder:
        truth, results = write_synthetic(Path(folder), images, detections)
        ours, our_seconds = _timed(lambda: coco_metrics(truth, results))
        reference, their_seconds = _timed(lambda: pycocotools_metrics(truth, results))
    for task, stats in reference.items():
        if [ours[task][name] for name in METRICS] != stats:
            raise RuntimeError(f"{task}: {ours[task]} is not pycocotools' {stats}")
    return {
        "images": images,
        "detections an image": detections,
        "ours s": our_seconds,
        "pycocotools s": their_seconds,
        "ours / pycocotools": our_seconds / their_seconds,
    }


def _timed(run: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], float]:
    began = time.process_time()
    return run(), time.process_time() - began
