"""Find what is wrong with a run's detections, from the two files that COCO's metrics need.

Errors by kind and what each costs in AP (TIDE), confusion of classes, whether scores can be
believed, the best threshold of each class, and how each image went. Everything is counted at an
IoU of 0.5, and the operating point, where one is needed, is each class's score with the best F1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detection.evaluation.inputs import Evaluation, read_evaluation
from detection.evaluation.matching import (
    BOTH,
    CLASS,
    DUPLICATE,
    FOREGROUND_IOU,
    FOUND,
    IN_CROWD,
    KINDS,
    LOCALISATION,
    ON_BACKGROUND,
    Matches,
    match,
)

MISTAKES = (CLASS, LOCALISATION, BOTH, DUPLICATE, ON_BACKGROUND)
MISSED = "missed"
RECALLS = np.linspace(0, 1, 101)
SCORE_BINS = 10


def diagnose(
    ground_truth_json: str | Path,
    results_json: str | Path,
    tasks: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Errors, confusion, calibration, thresholds and each image, for box and mask.

    Args:
        ground_truth_json, results_json, tasks: as ``detection.evaluate.coco_metrics``.

    Returns:
        Per task ``{"errors", "thresholds", "calibration", "confusion", "images"}`` as the
        functions of this module describe them; plain JSON.

    Raises:
        FileNotFoundError, ValueError: as ``coco_metrics``.
    """
    return diagnosis_of(read_evaluation(ground_truth_json, results_json, tasks))


def diagnosis_of(evaluation: Evaluation) -> dict[str, Any]:
    """:func:`diagnose` of files that are read already."""
    found: dict[str, Any] = {}
    for task in evaluation.tasks:
        matches = match(evaluation.truth, evaluation.detections(task), task)
        thresholds = best_thresholds(matches)
        kept = matches.score >= [thresholds[c]["threshold"] for c in matches.category]
        found[task] = {
            "errors": errors(matches),
            "thresholds": thresholds,
            "calibration": calibration(matches),
            "confusion": confusion(matches, kept),
            "images": images(matches, kept),
        }
    return found


def errors(matches: Matches) -> dict[str, Any]:
    """What each kind of error costs: ``{"AP50", "kinds": {kind: {"count", "cost"}}}``, percent.

    ``cost`` is AP50 with this kind alone mended, minus AP50 (TIDE, section 3.2): a detection of the
    wrong class or place becomes a right one if the object that it meant is not found otherwise (the
    best score wins), and is removed if it is; others are removed; missed objects are not counted.
    None where there is no ground truth at all.
    """
    kind, positives = (
        matches.kind,
        np.bincount(matches.object_category, minlength=len(matches.category_ids)),
    )
    counted = kind != IN_CROWD
    right = kind == FOUND
    before = mean_ap(matches, matches.category, right, counted, positives)

    def cost(after: float | None) -> float | None:
        return None if before is None or after is None else after - before

    found: dict[str, Any] = {}
    for mistake in MISTAKES:
        wrong = kind == mistake
        mended = np.zeros_like(right)
        category = matches.category.copy()
        if mistake in (CLASS, LOCALISATION):
            mended = _mended(matches, wrong)
            category[mended] = matches.object_category[matches.target[mended]]
        after = mean_ap(matches, category, right | mended, counted & (~wrong | mended), positives)
        found[KINDS[mistake]] = {"count": int(wrong.sum()), "cost": cost(after)}
    missed = np.bincount(
        matches.object_category[matches.missed], minlength=len(matches.category_ids)
    )
    after = mean_ap(matches, matches.category, right, counted, positives - missed)
    found[MISSED] = {"count": int(missed.sum()), "cost": cost(after)}
    return {"AP50": before, "kinds": found}


def _mended(matches: Matches, wrong: np.ndarray) -> np.ndarray:
    """The wrong detections that mending makes right: the best one for each object not found."""
    candidates = np.flatnonzero(wrong)
    candidates = candidates[~matches.found[matches.target[candidates]]]
    candidates = candidates[np.argsort(-matches.score[candidates], kind="stable")]
    _, first = np.unique(matches.target[candidates], return_index=True)
    mended = np.zeros_like(wrong)
    mended[candidates[first]] = True
    return mended


def mean_ap(
    matches: Matches,
    category: np.ndarray,
    right: np.ndarray,
    counted: np.ndarray,
    positives: np.ndarray,
) -> float | None:
    """COCO's AP at this one IoU in percent, the mean over classes that have positives."""
    order = np.argsort(-matches.score, kind="stable")
    order = order[counted[order]]
    values = []
    for index in np.flatnonzero(positives):
        hits = right[order[category[order] == index]]
        recall, precision = _curve(hits, positives[index])
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(recall, RECALLS, side="left")
        values.append(np.append(envelope, 0.0)[places].mean())
    return float(np.mean(values) * 100) if values else None


def _curve(hits: np.ndarray, positives: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each detection, best score first."""
    right = np.cumsum(hits)
    return right / positives, right / np.arange(1, len(hits) + 1)


def best_thresholds(matches: Matches) -> list[dict[str, Any]]:
    """For each class the score with the best F1, in the order of ``category_ids``.

    ``{"category_id", "threshold", "precision", "recall", "F1"}``, shares as percent. A class
    without objects, or of which none is found, has the threshold 1.01, above every score, and 0.
    """
    rows = []
    for index, category_id in enumerate(matches.category_ids):
        of_class = np.flatnonzero((matches.category == index) & (matches.kind != IN_CROWD))
        of_class = of_class[np.argsort(-matches.score[of_class], kind="stable")]
        positives = int((matches.object_category == index).sum())
        row = {"category_id": category_id, "threshold": 1.01}
        row |= {"precision": 0.0, "recall": 0.0, "F1": 0.0}
        hits = matches.kind[of_class] == FOUND
        if hits.any():
            recall, precision = _curve(hits, positives)
            f1 = 2 * hits.cumsum() / (np.arange(1, len(hits) + 1) + positives)
            scores = matches.score[of_class]
            last = np.append(scores[1:] < scores[:-1], True)  # a threshold takes all equal scores
            best = int(np.where(last, f1, -1).argmax())
            row["threshold"] = float(scores[best])
            for name, values in (("precision", precision), ("recall", recall), ("F1", f1)):
                row[name] = float(values[best] * 100)
        rows.append(row)
    return rows


def calibration(matches: Matches) -> dict[str, Any]:
    """How often a detection of a score is right: ``{"bins": [...], "error"}``.

    Bins are tenths of the score: ``{"low", "high", "count", "score", "precision"}`` (means in
    percent, None in an empty bin); ``error`` is the expected calibration error in percent (Guo et
    al., ICML 2017), None without detections.
    """
    counted = matches.kind != IN_CROWD
    score, right = matches.score[counted], (matches.kind == FOUND)[counted]
    place = np.clip((score * SCORE_BINS).astype(int), 0, SCORE_BINS - 1)
    bins, error = [], 0.0
    for index in range(SCORE_BINS):
        inside = place == index
        count = int(inside.sum())
        means = [float(v[inside].mean() * 100) if count else None for v in (score, right)]
        if count:
            error += count / len(score) * abs(means[0] - means[1])  # type: ignore[operator]
        bounds: dict[str, Any] = {"low": index / SCORE_BINS, "high": (index + 1) / SCORE_BINS}
        bins.append(bounds | {"count": count, "score": means[0], "precision": means[1]})
    return {"bins": bins, "error": error if len(score) else None}


def confusion(matches: Matches, kept: np.ndarray) -> list[list[int]]:
    """``[object's class][detection's class]`` counts, the last row and column "nothing".

    Of the kept detections. One that found no object of its class is taken for the object of
    another class that it overlaps most, if no other detection found that; otherwise for background.
    """
    number = len(matches.category_ids)
    table = np.zeros((number + 1, number + 1), int)
    seen = np.zeros(len(matches.object_category), bool)
    found = np.flatnonzero(kept & (matches.kind == FOUND))
    seen[matches.target[found]] = True
    np.add.at(table, (matches.category[found], matches.category[found]), 1)
    others = np.flatnonzero(kept & (matches.kind != FOUND) & (matches.kind != IN_CROWD))
    for index in others[np.argsort(-matches.score[others], kind="stable")]:
        rival = matches.rival[index]
        row = number
        if rival >= 0 and not seen[rival]:
            seen[rival] = True
            row = matches.object_category[rival]
        table[row, matches.category[index]] += 1
    np.add.at(table[:, number], matches.object_category[~seen], 1)
    return table.tolist()


def images(matches: Matches, kept: np.ndarray) -> list[dict[str, Any]]:
    """For each image ``{"id", "objects", "found", "false", "F1", "IoU", "errors"}``.

    Of the kept detections; F1 and the mean IoU of what was found in percent, F1 None where there is
    neither object nor detection and IoU where nothing was found; ``errors`` counts errors by kind.
    """
    number = len(matches.image_ids)
    kinds: list[Counter[str]] = [Counter() for _ in range(number)]
    for image, kind in zip(matches.image[kept], matches.kind[kept], strict=True):
        if kind in MISTAKES:
            kinds[image][KINDS[kind]] += 1
    right = kept & (matches.kind == FOUND)
    unseen = np.ones(len(matches.object_image), bool)
    unseen[matches.target[kept & (matches.target >= 0) & (matches.kind != DUPLICATE)]] = False
    missed = np.bincount(matches.object_image[unseen], minlength=number)
    objects = np.bincount(matches.object_image, minlength=number)
    found = np.bincount(matches.image[right], minlength=number)
    overlap = np.bincount(matches.image[right], matches.overlap[right], minlength=number)
    rows = []
    for index, image_id in enumerate(matches.image_ids):
        false = kinds[index].total()
        total = int(objects[index] + found[index]) + false
        named = dict(kinds[index]) | ({MISSED: int(missed[index])} if missed[index] else {})
        rows.append(
            {
                "id": image_id,
                "objects": int(objects[index]),
                "found": int(found[index]),
                "false": false,
                "F1": float(200 * found[index] / total) if total else None,
                "IoU": float(100 * overlap[index] / found[index]) if found[index] else None,
                "errors": named,
            }
        )
    return rows


assert FOREGROUND_IOU == 0.5  # the module's header says so
