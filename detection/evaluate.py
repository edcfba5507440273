"""COCO box and mask metrics from two files, ground truth and results; no engine is involved.

The matching is pycocotools' (``COCOeval``, BSD licence) as hotcoco (MIT licence) computes it, bit
for bit and many times faster; ``evaluator="pycocotools"`` asks the reference itself. The numbers
are those that detectron2's ``COCOEvaluator`` prints: the size class of a detection comes from its
box in the box metrics and from its mask in the mask metrics.

Deliberate deviations:
  * an annotation id of 0 means "no match" to pycocotools, and of two annotations with one id it
    keeps the last: annotations are renumbered in memory; a warning says so where it mattered.
    Images and categories are renumbered too, in their order, so that ids may be any words.
  * results without any detection score 0 (pycocotools fails on them, detectron2 gives nan).
  * "no ground truth of this kind", pycocotools' -1 and detectron2's nan, is ``None``: valid JSON.
  * detections of an unknown image or category are an error: pycocotools asserts the first and
    silently drops the second.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import hotcoco
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from backbones.errors import InputError
from detection.data.coco_file import no_garbage_collection
from detection.dataset import CocoDataset
from detection.evaluation.inputs import Evaluation, number_ids, read_evaluation
from detection.evaluation.results import TASKS
from training.progress import progress

AREAS = ("all", "small", "medium", "large")  # pycocotools' order: bounds at 32^2 and 96^2 pixels
MAX_DETECTIONS = (1, 10, 100)  # per image and class

Evaluator = Literal["hotcoco", "pycocotools"]

# name -> array of COCOeval.eval, IoU threshold (None: the mean of 0.50:0.95), size, detections
METRICS: dict[str, tuple[str, float | None, str, int]] = {
    "AP": ("precision", None, "all", 100),
    "AP50": ("precision", 0.50, "all", 100),
    "AP75": ("precision", 0.75, "all", 100),
    "APs": ("precision", None, "small", 100),
    "APm": ("precision", None, "medium", 100),
    "APl": ("precision", None, "large", 100),
    "AR1": ("recall", None, "all", 1),
    "AR10": ("recall", None, "all", 10),
    "AR100": ("recall", None, "all", 100),
    "ARs": ("recall", None, "small", 100),
    "ARm": ("recall", None, "medium", 100),
    "ARl": ("recall", None, "large", 100),
}

# those of METRICS that are given at another limit of detections too, and their names there
AP_AT_LIMIT = "AP_at_limit"  # its name in metrics.json
AT_LIMIT = {name: name for name in METRICS if name.startswith("AP")} | {"AR100": "AR"}


def coco_metrics(
    ground_truth_json: str | Path,
    results_json: str | Path,
    tasks: Sequence[str] | None = None,
    evaluator: Evaluator = "hotcoco",
    max_detections: int | None = None,
) -> dict[str, Any]:
    """COCO's 12 box and 12 mask metrics, and each class's AP, in percent.

    Args:
        ground_truth_json: COCO annotations; ``area`` and ``iscrowd`` may be missing (the area is
            then the mask's, or the box's where there is no mask; iscrowd is 0).
        results_json: COCO results: a list of ``{image_id, category_id, score, bbox and/or
            segmentation}`` with the annotations' category ids; boxes are ``[x, y, w, h]``, pixels.
        tasks: "bbox", "segm" or both. Default: what the results hold; for an empty list of results
            what the ground truth holds.
        evaluator: "pycocotools" is the reference, "hotcoco" gives the same numbers sooner.
        max_detections: per class and image. Above COCO's 100: also measure with so many.

    Returns:
        ``{"bbox": {"AP": 41.2, "AP50": ..., ...}, "segm": {...}, "per_class": {...},
        "curves": {"bbox": ..., "segm": ...}, "counts": {...}}``; ``per_class`` has for every class
        ``{"category_id", "instances", "crowds", "images", "bbox": {"AP", "AP50"}, "segm": ...}``.
        A metric is ``None`` where there is no ground truth to measure (no object of that size or
        class). Crowds are not counted as instances. ``counts["images_over_limit"]``: images with
        more objects of one class than COCO's limit of 100 detections. With
        ``max_detections`` above 100 also ``"at_limit": {"max_detections": 400, "bbox": {"AP", ...,
        "AR"}, "segm": ...}``, as detectron2's ``COCOEvaluator(max_dets_per_image=...)`` has it.

    Raises:
        FileNotFoundError: if a file does not exist.
        InputError: if a file is not in its format, or the two do not belong together.
    """
    with no_garbage_collection():
        evaluation = read_evaluation(ground_truth_json, results_json, tasks)
        return metrics_of(evaluation, evaluator, max_detections)


def metrics_of(
    evaluation: Evaluation, evaluator: Evaluator = "hotcoco", max_detections: int | None = None
) -> dict[str, Any]:
    """:func:`coco_metrics` of files that are read already."""
    limit = max_detections if max_detections and max_detections > MAX_DETECTIONS[-1] else None
    at_limit: dict[str, Any] = {"max_detections": limit}
    with no_garbage_collection():
        metrics: dict[str, Any] = {}
        curves: dict[str, Any] = {}
        truth = evaluation.truth
        per_class = _class_counts(truth)
        for task in progress(evaluation.tasks, "evaluating", unit="task"):
            files = number_ids(truth, evaluation.detections(task))
            arrays = _evaluate(*files, task, evaluator)
            metrics[task] = {name: _metric(arrays, name) for name in METRICS}
            curves[task] = _curves(arrays["precision"])
            for index, row in enumerate(per_class.values()):
                row[task] = {name: _metric(arrays, name, index) for name in ("AP", "AP50")}
            if limit:
                arrays = _evaluate(*files, task, evaluator, limit)
                at_limit[task] = {name: _metric(arrays, old) for old, name in AT_LIMIT.items()}
    counts = _counts(truth, evaluation.results)
    found = metrics | {"per_class": per_class, "curves": curves, "counts": counts}
    return found | ({"at_limit": at_limit} if limit else {})


def tasks_of(config: Any) -> tuple[str, ...]:
    """COCO's names of what a config's detector predicts: "bbox", "segm" or both."""
    return ("bbox", "segm") if config.MODEL.MASK_ON else ("bbox",)


def evaluate_run(
    config: Any, dataset: CocoDataset, results: Path
) -> tuple[dict[str, Any], Evaluation]:
    """The metrics of a run's results file, and what they were computed from.

    Measured with COCO's 100 detections per class and image and, if that is more, with
    ``TEST.DETECTIONS_PER_IMAGE``. With ``INPUT.TILES`` that limit is per tile: then all detections
    of an image count.
    """
    evaluation = read_evaluation(dataset, results, tasks_of(config))
    limit = config.TEST.DETECTIONS_PER_IMAGE
    if config.INPUT.TILES.ENABLED:
        counts = Counter((r["image_id"], r["category_id"]) for r in evaluation.results)
        limit = max([limit, *counts.values()])
    return metrics_of(evaluation, max_detections=limit), evaluation


def flat_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """Metric name such as ``bbox/AP`` -> value, for those measured; also AP at another limit."""
    found = {}
    for task in (task for task in TASKS if task in metrics):
        at_limit = metrics.get("at_limit", {}).get(task, {}).get("AP")
        for name, value in (metrics[task] | {AP_AT_LIMIT: at_limit}).items():
            if value is not None:
                found[f"{task}/{name}"] = value
    return found


def _evaluate(
    truth: dict[str, Any],
    detections: dict[str, Any],
    task: str,
    evaluator: Evaluator,
    limit: int = MAX_DETECTIONS[-1],
) -> dict[str, np.ndarray]:
    """Precision and scores ``[T, R, K, A, M]`` and recall ``[T, K, A, M]``, -1 = no ground truth.

    T IoU thresholds, R recall thresholds, K classes by ascending id, A = AREAS, M = MAX_DETECTIONS,
    whose last may be another ``limit``.
    """
    if evaluator == "hotcoco":
        evaluation = hotcoco.COCOeval(hotcoco.COCO(truth), hotcoco.COCO(detections), task)
    elif evaluator == "pycocotools":
        evaluation = COCOeval(_index(truth), _index(detections), task)
    else:
        raise InputError(f"unknown evaluator {evaluator!r}; allowed: hotcoco, pycocotools")
    evaluation.params.maxDets = [*MAX_DETECTIONS[:-1], limit]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation.evaluate()
        evaluation.accumulate()
    arrays = evaluation.eval
    assert arrays is not None
    return {name: arrays[name] for name in ("precision", "recall", "scores")}


def _index(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _metric(
    arrays: dict[str, np.ndarray], name: str, class_index: int | None = None
) -> float | None:
    """One row of METRICS in percent, over all classes or for one; None without ground truth."""
    array_name, iou, area, detections = METRICS[name]
    values = arrays[array_name][..., AREAS.index(area), MAX_DETECTIONS.index(detections)]
    if iou is not None:
        values = values[round((iou - 0.5) / 0.05)][None]
    if class_index is not None:
        values = values[..., class_index]
    measured = values[values > -1]
    return float(measured.mean() * 100) if measured.size else None


def _curves(precision: np.ndarray) -> dict[str, Any]:
    """The mean over classes, in percent: precision at 101 recalls, and AP at each IoU.

    ``{"precision": {"0.50": [101 values], "0.75": [...], "0.50:0.95": [...]}, "AP_by_IoU":
    {"0.50": 61.2, ...}}``; empty where there is no ground truth.
    """
    by_class = precision[..., AREAS.index("all"), -1]  # [T, R, K]
    measured = by_class[..., (by_class > -1).all((0, 1))] * 100
    if not measured.size:
        return {"precision": {}, "AP_by_IoU": {}}
    mean = measured.mean(-1)
    ious = [f"{0.5 + 0.05 * index:.2f}" for index in range(len(mean))]
    rows = {"0.50": mean[0], "0.75": mean[5], "0.50:0.95": mean.mean(0)}
    return {
        "precision": {name: row.tolist() for name, row in rows.items()},
        "AP_by_IoU": dict(zip(ious, mean.mean(1).tolist(), strict=True)),
    }


def _class_counts(truth: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Class name -> its ground truth, by ascending id; a name used twice gets its id added."""
    by_category = defaultdict(list)
    for annotation in truth["annotations"]:
        by_category[annotation["category_id"]].append(annotation)
    names = Counter(category["name"] for category in truth["categories"])
    counts = {}
    for category in sorted(truth["categories"], key=lambda category: category["id"]):
        of_class = by_category[category["id"]]
        crowds = sum(annotation["iscrowd"] for annotation in of_class)
        unique = names[category["name"]] == 1
        counts[category["name"] if unique else f"{category['name']} ({category['id']})"] = {
            "category_id": category["id"],
            "instances": len(of_class) - crowds,
            "crowds": crowds,
            "images": len({annotation["image_id"] for annotation in of_class}),
        }
    return counts


def _counts(truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, int]:
    crowds = sum(annotation["iscrowd"] for annotation in truth["annotations"])
    annotated = {annotation["image_id"] for annotation in truth["annotations"]}
    objects = Counter(
        (annotation["image_id"], annotation["category_id"])
        for annotation in truth["annotations"]
        if not annotation["iscrowd"]
    )
    return {
        "images": len(truth["images"]),
        "images_without_objects": len(truth["images"]) - len(annotated),
        "images_over_limit": len({i for (i, _), n in objects.items() if n > MAX_DETECTIONS[-1]}),
        "instances": len(truth["annotations"]) - crowds,
        "crowds": crowds,
        "detections": len(results),
    }
