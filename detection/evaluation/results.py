"""COCO results, checked against the ground truth and prepared for an evaluator.

Faults that an evaluator would drop, misread or fail on get a message here. One example: given an
RLE whose runs end too early, pycocotools never returns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hotcoco
from pycocotools import mask as rle_codec

from backbones.errors import InputError
from detection.data.checks.problems import shorten
from detection.data.checks.segmentations import as_rle, is_finite, mask_bounds
from detection.data.coco_file import decode_json
from training.progress import progress

Sizes = Mapping[Any, tuple[int, int]]  # image id -> height, width

TASKS = {"bbox": "bbox", "segm": "segmentation"}  # task -> the key that holds its geometry


def read_results(
    path: str | Path, truth: dict[str, Any], truth_path: str | Path
) -> list[dict[str, Any]]:
    """COCO results, checked against the ground truth that they claim to be about.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is not COCO results, or images or categories are not the ground truth's.
    """
    try:
        results = json.loads(decode_json(Path(path).read_bytes()))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(results, list):
        raise InputError(f"{path} is not COCO results: a list of detections is wanted")
    for index, result in enumerate(results):
        if fault := _fault(result):
            raise InputError(f"{path}: detections[{index}] {fault}")
    for part, key in (("images", "image_id"), ("categories", "category_id")):
        known = {entry["id"] for entry in truth[part]}
        used = dict.fromkeys(result[key] for result in results)
        if unknown := [value for value in used if value not in known]:
            raise InputError(
                f"{path}: detections name {key}s that are not in {truth_path}: {shorten(unknown)}; "
                "were the detections made on another data set?"
            )
    return results


def _fault(result: Any) -> str | None:
    """The fault of a detection that shows without the ground truth, or None."""
    keys = ("image_id", "category_id", "score")
    if not isinstance(result, dict):
        return f"is {result!r}; an object with {', '.join(keys)} is wanted"
    if missing := [key for key in keys if key not in result]:
        return f"lacks {', '.join(missing)}"
    for key in keys[:2]:
        if type(result[key]) not in (int, float, str):
            return f"has the {key} {result[key]!r}; give a number"
    if not is_finite(result["score"]):
        return f"has the score {result['score']!r}"
    if not ("bbox" in result or "segmentation" in result):
        return "has neither bbox nor segmentation"
    box = result.get("bbox", [0, 0, 0, 0])
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_finite, box))):
        return f"has the bbox {box}; [x, y, width, height] is wanted"
    return None


def prepare_results(
    results: list[dict[str, Any]], sizes: Sizes, task: str, path: str | Path
) -> list[dict[str, Any]]:
    """Detections for an evaluator; ``area`` is the box's for "bbox" and the mask's for "segm"."""
    prepared = []
    for index, result in enumerate(progress(results, f"reading {task} results", unit="object")):
        entry = {key: result[key] for key in ("image_id", "category_id", "score", TASKS[task])}
        if task == "bbox":
            area = result["bbox"][2] * result["bbox"][3]
        else:
            entry["segmentation"] = _read_mask(result, sizes, f"{path}: detections[{index}]")
            area = float(rle_codec.area(entry["segmentation"]))
        prepared.append(entry | {"id": index + 1, "iscrowd": 0, "area": area})
    return prepared


def _read_mask(entry: dict[str, Any], sizes: Sizes, where: str) -> dict[str, Any]:
    """A detection's mask as an RLE of its image's size."""
    height, width = sizes[entry["image_id"]]
    try:
        rle = segmentation_to_rle(entry["segmentation"], height, width)
    except ValueError as error:
        raise InputError(f"{where} has a bad segmentation: {error}") from error
    if list(rle["size"]) != [height, width]:
        raise InputError(
            f"{where} has a mask of {list(rle['size'])}; its image {entry['image_id']} is "
            f"{[height, width]} (height, width)"
        )
    return rle


def segmentation_to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A COCO segmentation (polygons, plain or compressed RLE) as one compressed RLE.

    Raises:
        InputError: if it is none of the three, or the RLE's runs do not fill its size.
    """
    try:
        if isinstance(segmentation, list):
            mask_bounds(segmentation, height, width)  # refuses those that overflow pycocotools
            return as_rle(segmentation, height, width)
        if isinstance(segmentation["counts"], list):
            segmentation = rle_codec.frPyObjects(segmentation, *segmentation["size"])
        rle = {"size": list(segmentation["size"]), "counts": segmentation["counts"]}
        _check_runs(rle["counts"], math.prod(rle["size"]))
        return rle
    except Exception as error:  # pycocotools raises bare Exception, TypeError, IndexError, ...
        raise InputError(
            f"neither polygons of at least 3 points nor an RLE whose runs fill its size ({error}): "
            f"{str(segmentation)[:80]}"
        ) from error


def _check_runs(counts: str | bytes, pixels: int) -> None:
    """Raise ValueError unless an RLE's runs sum to its pixels.

    hotcoco refuses runs longer than the size, so runs that it accepts for one pixel less are too
    short.
    """
    encoded = counts.encode() if isinstance(counts, str) else counts
    if encoded and encoded[-1] - 48 & 32:  # the flag that the number goes on
        raise InputError("it ends within a number")
    hotcoco.mask.area({"size": [1, pixels], "counts": counts})
    try:
        hotcoco.mask.area({"size": [1, pixels - 1], "counts": counts})
    except ValueError:
        return
    raise InputError(f"its runs end before pixel {pixels}")
