"""Read and check the two files of an evaluation: COCO ground truth and COCO results.

Everything that an evaluator would assert, drop or misread is said here in words instead: given an
RLE whose runs end too early, pycocotools does not even return.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hotcoco
from pycocotools import mask as rle_codec

from backbones.errors import InputError
from detection.data.segmentation_check import is_finite, mask_bounds
from images.size_limit import size_fault
from training.progress import progress

logger = logging.getLogger(__name__)

Sizes = Mapping[Any, tuple[int, int]]  # image id -> height, width

_EVALUATED = ("id", "bbox", "segmentation", "area", "iscrowd", "score")  # beside the two ids

TASKS = {"bbox": "bbox", "segm": "segmentation"}  # task -> the key that holds its geometry


def read_ground_truth(path: str | Path) -> dict[str, Any]:
    """COCO annotations, checked: images, annotations with boxes, categories, all ids known.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is not COCO ground truth; the message says where and why.
    """
    truth = _read_json(path)
    _check_ground_truth(truth, path)
    return truth


def read_results(
    path: str | Path, truth: dict[str, Any], truth_path: str | Path
) -> list[dict[str, Any]]:
    """COCO results, checked against the ground truth that they claim to be about.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is not COCO results, or images or categories are not the ground truth's.
    """
    results = _read_json(path)
    _check_results(results, path, truth, truth_path)
    return results


class Evaluation(NamedTuple):
    """The two files of an evaluation, checked; ``truth``'s annotations are prepared."""

    truth: dict[str, Any]
    results: list[dict[str, Any]]
    tasks: list[str]
    sizes: Sizes


def read_evaluation(
    truth_path: str | Path, results_path: str | Path, tasks: Sequence[str] | None
) -> Evaluation:
    """Read both files, choose the tasks and prepare the ground truth's annotations.

    Raises:
        FileNotFoundError: if a file does not exist.
        InputError: if a file is not in its format, or the two do not belong together.
    """
    truth = read_ground_truth(truth_path)
    results = read_results(results_path, truth, truth_path)
    chosen = choose_tasks(tasks, truth, truth_path, results, results_path)
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    truth["annotations"] = prepare_annotations(truth["annotations"], sizes, truth_path)
    return Evaluation(truth, results, chosen, sizes)


def segmentation_to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A COCO segmentation (polygons, plain or compressed RLE) as one compressed RLE.

    Raises:
        InputError: if it is none of the three, or the RLE's runs do not fill its size.
    """
    try:
        if isinstance(segmentation, list):
            mask_bounds(segmentation, height, width)  # refuses those that overflow pycocotools
            return rle_codec.merge(rle_codec.frPyObjects(segmentation, height, width))
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

    hotcoco refuses runs beyond a size, so those that it takes for one pixel less are too short.
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


def _read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error


def _listed(values: Iterable[Any], limit: int = 5) -> str:
    """The first few of many values, for a message that stays readable."""
    values = list(values)
    rest = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(map(str, values[:limit])) + rest


def _check_entries(entries: list[Any], keys: Sequence[str], where: str) -> None:
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(
                f"{where}[{index}] is {entry!r}; an object with {_listed(keys)} is wanted"
            )
        if missing := [key for key in keys if key not in entry]:
            raise InputError(f"{where}[{index}] lacks {_listed(missing)}")
        for key in ("id", "image_id", "category_id"):
            if key in keys and type(entry[key]) not in (int, float, str):
                raise InputError(f"{where}[{index}] has the {key} {entry[key]!r}; give a number")
        box = entry.get("bbox", [0, 0, 0, 0])
        if not (isinstance(box, list) and len(box) == 4 and all(map(is_finite, box))):
            raise InputError(
                f"{where}[{index}] has the bbox {box}; [x, y, width, height] is wanted"
            )


def _check_ids(
    entries: list[dict[str, Any]], where: str, truth: dict[str, Any], remedy: str
) -> None:
    """Every entry must belong to an image and a category of the ground truth."""
    for part, key in (("images", "image_id"), ("categories", "category_id")):
        known = {entry["id"] for entry in truth[part]}
        used = dict.fromkeys(entry[key] for entry in entries)
        if unknown := [value for value in used if value not in known]:
            raise InputError(
                f"{where} name {key}s that are not in {remedy.format(_listed(unknown))}"
            )


def _check_ground_truth(truth: Any, path: str | Path) -> None:
    parts = {
        "images": ("id", "height", "width"),
        "annotations": ("image_id", "category_id", "bbox"),
        "categories": ("id", "name"),
    }
    if not isinstance(truth, dict) or any(not isinstance(truth.get(part), list) for part in parts):
        raise InputError(f"{path} is not COCO ground truth: it needs the lists {_listed(parts)}")
    if not truth["categories"]:
        raise InputError(f"{path} has no categories: there is nothing to evaluate")
    for part, keys in parts.items():
        _check_entries(truth[part], keys, f"{path}: {part}")
    for image in truth["images"]:
        size = image["height"], image["width"]
        if not all(type(side) is int and side > 0 for side in size):
            fault = f"are {size}; positive whole numbers are wanted"
        elif not (fault := size_fault(*size)):
            continue
        raise InputError(f"{path}: image {image['id']!r}: height and width {fault}")
    for annotation in truth["annotations"]:
        for key, allowed in (
            ("iscrowd", annotation.get("iscrowd", 0) in (0, 1)),
            ("area", is_finite(annotation.get("area", 0))),
        ):
            if not allowed:
                raise InputError(
                    f"{path}: annotation {annotation.get('id')!r} has the {key} "
                    f"{annotation[key]!r}; {'0 or 1' if key == 'iscrowd' else 'a number'} is wanted"
                )
    for part in ("images", "categories"):
        ids = Counter(entry["id"] for entry in truth[part])
        if twice := [value for value, count in ids.items() if count > 1]:
            raise InputError(f"{path}: ids used twice in {part}: {_listed(twice)}")
        if len(words := [value for value in ids if isinstance(value, str)]) not in (0, len(ids)):
            raise InputError(f"{path}: ids in {part} are numbers and also words: {_listed(words)}")
    _check_ids(truth["annotations"], f"{path}: annotations", truth, "the same file: {}")


def _check_results(
    results: Any, path: str | Path, truth: dict[str, Any], truth_path: str | Path
) -> None:
    if not isinstance(results, list):
        raise InputError(f"{path} is not COCO results: a list of detections is wanted")
    _check_entries(results, ("image_id", "category_id", "score"), f"{path}: detections")
    for index, result in enumerate(results):
        if not ("bbox" in result or "segmentation" in result):
            raise InputError(f"{path}: detections[{index}] has neither bbox nor segmentation")
        if not is_finite(result["score"]):
            raise InputError(f"{path}: detections[{index}] has the score {result['score']!r}")
    remedy = f"{truth_path}: {{}}; were the detections made on another data set?"
    _check_ids(results, f"{path}: detections", truth, remedy)


def choose_tasks(
    tasks: Sequence[str] | None,
    truth: dict[str, Any],
    truth_path: str | Path,
    results: list[dict[str, Any]],
    results_path: str | Path,
) -> list[str]:
    """The tasks to evaluate, in TASKS' order, once it is certain that both files allow them."""
    if tasks is not None and (unknown := [task for task in tasks if task not in TASKS]):
        raise InputError(f"unknown tasks {_listed(unknown)}; allowed: {_listed(TASKS)}")
    chosen = []
    for task, key in TASKS.items():
        held = any(entry.get(key) for entry in results or truth["annotations"])
        if not (held if tasks is None else task in tasks):
            continue
        maskless = [entry.get("id") for entry in truth["annotations"] if not entry.get(key)]
        if tasks is None and maskless and len(maskless) == len(truth["annotations"]):
            logger.warning("%s has no masks: mask metrics are left out", truth_path)
            continue
        for path, what, lacking in (
            (truth_path, "annotations", maskless),
            (results_path, "detections", [i for i, r in enumerate(results) if not r.get(key)]),
        ):
            if lacking:
                raise InputError(
                    f"{path}: {len(lacking)} {what} have no {key}, which the {task} metrics need: "
                    f"{_listed(lacking)}"
                )
        chosen.append(task)
    return chosen


def _read_mask(entry: dict[str, Any], sizes: Sizes, where: str) -> dict[str, Any]:
    """The entry's mask as an RLE of its image's size."""
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


def prepare_annotations(
    annotations: list[dict[str, Any]], sizes: Sizes, path: str | Path
) -> list[dict[str, Any]]:
    """Annotations with ids from 1, ``area``, ``iscrowd`` and, where they have a mask, an RLE."""
    prepared = []
    for number, annotation in enumerate(
        progress(annotations, "reading ground truth", unit="object"), 1
    ):
        entry = annotation | {"id": number, "iscrowd": int(annotation.get("iscrowd", 0))}
        _, _, width, height = entry["bbox"]
        area = width * height
        if entry.get("segmentation"):
            where = f"{path}: annotation {annotation.get('id')}"
            entry["segmentation"] = _read_mask(entry, sizes, where)
            area = float(rle_codec.area(entry["segmentation"]))
        prepared.append({"area": area} | entry)
    ids = [annotation.get("id") for annotation in annotations]
    if 0 in ids or len(set(ids)) < len(ids):
        logger.warning(
            "%s has annotation ids that are 0, missing or used twice, which pycocotools would not "
            "count as matched: the annotations are renumbered from 1 in memory",
            path,
        )
    if without := sum("area" not in annotation for annotation in annotations):
        logger.warning("%s: %d annotations have no area: taken from mask or box", path, without)
    return prepared


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


def number_ids(
    truth: dict[str, Any], detections: list[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ground truth and detections as two data sets of what evaluators read and no more.

    Images and categories are numbered from 1 in the order of their ids, which hotcoco wants to be
    integers. Evaluators treat them in that order.
    """

    def numbers(part: str) -> dict[Any, int]:
        return {key: n for n, key in enumerate(sorted(entry["id"] for entry in truth[part]), 1)}

    image_numbers, category_numbers = numbers("images"), numbers("categories")
    images = [
        {"id": image_numbers[image["id"]], "height": image["height"], "width": image["width"]}
        for image in truth["images"]
    ]
    categories = [{"id": n, "name": str(n)} for n in category_numbers.values()]

    def dataset(entries: list[dict[str, Any]]) -> dict[str, Any]:
        annotations = [
            {key: entry[key] for key in _EVALUATED if key in entry}
            | {
                "image_id": image_numbers[entry["image_id"]],
                "category_id": category_numbers[entry["category_id"]],
            }
            for entry in entries
        ]
        return {"images": images, "categories": categories, "annotations": annotations}

    return dataset(truth["annotations"]), dataset(detections)
