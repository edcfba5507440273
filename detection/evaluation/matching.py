"""Match detections to objects, and name what is wrong with the other detections.

Matching is COCO's at one IoU threshold: within a class, by descending score, each detection takes
the free object that it overlaps most. A detection that found nothing is named as in TIDE (Bolya et
al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, section 3):
``FOREGROUND_IOU`` is the paper's t_f, ``BACKGROUND_IOU`` its t_b.

Deliberate deviations from TIDE: crowd regions are COCO's (what lies in one is not counted); ties
are broken as pycocotools does; only COCO's 100 best detections of a class and image count.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as rle_codec

from detection.evaluation.results import TASKS
from training.progress import progress

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1  # IoU
MAX_DETECTIONS = 100  # of a class and image

# What a detection is: found an object, lies in a crowd region, or one of five mistakes.
KINDS = ("found", "in crowd", "class", "localisation", "class and place", "duplicate", "background")
FOUND, IN_CROWD, CLASS, LOCALISATION, BOTH, DUPLICATE, ON_BACKGROUND = range(len(KINDS))


@dataclass(frozen=True)
class Matches:
    """N detections and G objects (crowds left out) of a data set, as flat arrays.

    Detections are in pycocotools' order: by image id, then by descending score.

    Args:
        image, category: ``[N]``, positions in ``image_ids`` and ``category_ids``.
        score: ``[N]``.
        kind: ``[N]``, index into KINDS.
        target: ``[N]``, the object that was found, or that was meant (class: the object of another
            class that is overlapped most; localisation, duplicate: of the same class); -1: none.
        overlap: ``[N]``, IoU with the target, 0 where there is none.
        rival: ``[N]``, the object of another class that is overlapped most, and by at least
            FOREGROUND_IOU; -1: none.
        object_image, object_category: ``[G]``.
        missed: ``[G]``, found by nothing and meant by no "class" or "localisation" mistake.
        found: ``[G]``.
    """

    image_ids: list[Any]
    category_ids: list[Any]
    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    kind: np.ndarray
    target: np.ndarray
    overlap: np.ndarray
    rival: np.ndarray
    object_image: np.ndarray
    object_category: np.ndarray
    found: np.ndarray
    missed: np.ndarray


def match(truth: dict[str, Any], detections: list[dict[str, Any]], task: str) -> Matches:
    """Match the detections of a data set to its objects.

    Args:
        truth: COCO ground truth whose annotations went through ``prepare_annotations``.
        detections: from ``prepare_results``.
        task: "bbox" or "segm": whose IoU counts.
    """
    image_ids, category_ids = (
        sorted((entry["id"] for entry in truth[part]), key=lambda i: (isinstance(i, str), i))
        for part in ("images", "categories")
    )
    categories = {category: index for index, category in enumerate(category_ids)}
    objects, found_in = defaultdict(list), defaultdict(list)
    for annotation in truth["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    for detection in detections:
        found_in[detection["image_id"]].append(detection)

    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    count = 0
    for position, image_id in enumerate(progress(image_ids, f"matching {task}", unit="image")):
        of_image = [entry for entry in objects[image_id] if not entry["iscrowd"]]
        crowds = [entry for entry in objects[image_id] if entry["iscrowd"]]
        best = _best_of_each_class(found_in[image_id])
        parts = _match_image(best, of_image, crowds, categories, TASKS[task])
        for name in ("target", "rival"):
            parts[name] = np.where(parts[name] >= 0, parts[name] + count, -1)
        parts["image"] = np.full(len(best), position)
        parts["object_image"] = np.full(len(of_image), position)
        for name, values in parts.items():
            columns[name].append(values)
        count += len(of_image)
    flat = {name: np.concatenate(values) for name, values in columns.items()}
    kind, target = flat["kind"], flat["target"]
    found, meant = np.zeros(count, bool), np.zeros(count, bool)
    found[target[kind == FOUND]] = True
    meant[target[(kind == CLASS) | (kind == LOCALISATION)]] = True
    return Matches(image_ids, category_ids, **flat, found=found, missed=~found & ~meant)


def _best_of_each_class(detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """COCO's 100 best of each class, by descending score; equal scores keep their order."""
    seen: dict[Any, int] = defaultdict(int)
    best = []
    for detection in sorted(detections, key=lambda entry: -entry["score"]):
        seen[detection["category_id"]] += 1
        if seen[detection["category_id"]] <= MAX_DETECTIONS:
            best.append(detection)
    return best


def _match_image(
    detections: list[dict[str, Any]],
    objects: list[dict[str, Any]],
    crowds: list[dict[str, Any]],
    categories: dict[Any, int],
    geometry: str,
) -> dict[str, np.ndarray]:
    """``Matches``' columns of one image, objects counted from 0."""
    category = np.array([categories[d["category_id"]] for d in detections], int)
    object_category = np.array([categories[o["category_id"]] for o in objects], int)
    crowd_category = np.array([categories[o["category_id"]] for o in crowds], int)
    overlaps = _overlaps(detections, objects, geometry, crowd=False)  # [D, O]
    in_crowds = _overlaps(detections, crowds, geometry, crowd=True)  # [D, C]
    same = category[:, None] == object_category[None]
    own, other = np.where(same, overlaps, -1.0), np.where(same, -1.0, overlaps)
    in_own_crowd = np.where(category[:, None] == crowd_category[None], in_crowds, -1.0)

    taken = np.zeros(len(objects), bool)
    number = len(detections)
    kind, target = np.full(number, ON_BACKGROUND), np.full(number, -1)
    overlap = np.zeros(number)
    own_best, other_best = (m.max(1, initial=-1.0) for m in (own, other))
    rival = np.where(other_best >= FOREGROUND_IOU, other.argmax(1) if len(objects) else -1, -1)
    for d in range(number):
        if own_best[d] >= FOREGROUND_IOU:
            free = np.where(taken, -1.0, own[d])
            best = len(free) - 1 - int(free[::-1].argmax())  # of equals the last, as pycocotools
            if free[best] >= FOREGROUND_IOU:
                taken[best] = True
                kind[d], target[d], overlap[d] = FOUND, best, free[best]
                continue
        if in_own_crowd[d].max(initial=-1.0) >= FOREGROUND_IOU:
            kind[d] = IN_CROWD
        elif own_best[d] >= FOREGROUND_IOU:
            kind[d], target[d] = DUPLICATE, own[d].argmax()
        elif other_best[d] >= FOREGROUND_IOU:
            kind[d], target[d] = CLASS, rival[d]
        elif own_best[d] >= BACKGROUND_IOU:
            kind[d], target[d] = LOCALISATION, own[d].argmax()
        elif other_best[d] >= BACKGROUND_IOU:
            kind[d] = BOTH
        if target[d] >= 0:
            overlap[d] = overlaps[d, target[d]]
    score = np.array([d["score"] for d in detections], float)
    return {
        "category": category,
        "score": score,
        "kind": kind,
        "target": target,
        "overlap": overlap,
        "rival": rival,
        "object_category": object_category,
    }


def _overlaps(
    detections: list[dict[str, Any]], others: list[dict[str, Any]], geometry: str, crowd: bool
) -> np.ndarray:
    """IoU ``[D, O]``; with a crowd region the share of the detection that lies in it."""
    if not detections or not others:
        return np.zeros((len(detections), len(others)))
    shapes = ([entry[geometry] for entry in entries] for entries in (detections, others))
    return np.asarray(rle_codec.iou(*shapes, [int(crowd)] * len(others)))
