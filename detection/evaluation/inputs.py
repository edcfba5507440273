"""Read and check the two files of an evaluation: COCO ground truth and COCO results.

The ground truth goes through the same reader and the same check as a data set to train on, so that
what passes the check can be evaluated. What an evaluator would assert, drop or misread in results
is said here in words instead: given an RLE whose runs end too early, pycocotools does not return.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hotcoco
from pycocotools import mask as rle_codec

from backbones.errors import InputError
from detection.data.check import check_tree
from detection.data.checks.annotations import is_id
from detection.data.checks.problems import Findings, describe
from detection.data.checks.segmentations import as_rle, is_finite, mask_bounds
from detection.data.coco_file import decode_json, read_coco
from detection.dataset import CocoDataset
from training.progress import progress

logger = logging.getLogger(__name__)

Sizes = Mapping[Any, tuple[int, int]]  # image id -> height, width

_EVALUATED = ("id", "bbox", "segmentation", "area", "iscrowd", "score")  # beside the two ids

TASKS = {"bbox": "bbox", "segm": "segmentation"}  # task -> the key that holds its geometry


def read_ground_truth(path: str | Path, image_folder: Path | None = None) -> dict[str, Any]:
    """COCO annotations, read and checked as a data set to train on, but for the images.

    Annotation ids may be missing, 0 or used twice: they are numbered anew.

    Args:
        path: of the annotations.
        image_folder: where given, file names are those of the files that are there.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is not COCO ground truth; the message says where and why.
    """
    if not Path(path).exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    findings = Findings(path)
    tree, _ = read_coco(Path(path), findings)
    if tree:
        number_annotations(tree["annotations"], path)
        check_tree(
            tree, image_folder, findings, masks=False, check_images=False, for_training=False
        )
    if findings.errors:
        errors = [problem for problem in findings.problems() if problem.severity == "error"]
        raise InputError(describe(errors, f"the ground truth {path}"))
    return tree


def number_annotations(annotations: list[dict[str, Any]], path: str | Path) -> None:
    """Give annotations ids from 1 in place, unless theirs do."""
    ids = [item.get("id") for item in annotations]
    if not all(map(is_id, ids)) or 0 in ids or len(set(ids)) < len(ids):
        logger.warning(
            "%s has annotation ids that are 0, missing or used twice, which pycocotools would not "
            "count as matched: the annotations are renumbered from 1 in memory",
            path,
        )
        for number, item in enumerate(annotations, 1):
            item["id"] = number


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


@dataclass
class Evaluation:
    """The two files of an evaluation, read and checked once for all that is asked of them.

    Attributes:
        truth: the annotations' tree; its annotations are prepared.
        results: the detections as they stand in their file.
        tasks: of TASKS, those to evaluate.
        sizes: of the images.
        truth_path, results_path: for messages.
    """

    truth: dict[str, Any]
    results: list[dict[str, Any]]
    tasks: list[str]
    sizes: Sizes
    truth_path: str
    results_path: str
    _prepared: dict[str, list[dict[str, Any]]] = field(default_factory=dict, repr=False)

    def detections(self, task: str) -> list[dict[str, Any]]:
        """The results for an evaluator, as :func:`prepare_results` makes them."""
        if task not in self._prepared:
            self._prepared[task] = prepare_results(
                self.results, self.sizes, task, self.results_path
            )
        return self._prepared[task]


def read_evaluation(
    truth: str | Path | CocoDataset, results_path: str | Path, tasks: Sequence[str] | None
) -> Evaluation:
    """Read both files, choose the tasks and prepare the ground truth's annotations.

    Args:
        truth: the annotations' file; or a data set, which is not read again where it was loaded for
            an evaluation.
        results_path: the results' file.
        tasks: see :func:`choose_tasks`.

    Raises:
        FileNotFoundError: if a file does not exist.
        InputError: if a file is not in its format, or the two do not belong together.
    """
    if isinstance(truth, CocoDataset):
        path: str | Path = truth.annotations
        tree = dict(truth.tree) if truth.tree else read_ground_truth(path, truth.image_folder)
    else:
        path, tree = truth, read_ground_truth(truth)
    results = read_results(results_path, tree, path)
    chosen = choose_tasks(tasks, tree, path, results, results_path)
    sizes = {image["id"]: (image["height"], image["width"]) for image in tree["images"]}
    tree["annotations"] = prepare_annotations(tree["annotations"], sizes, path)
    return Evaluation(tree, results, chosen, sizes, str(path), str(results_path))


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
        return json.loads(decode_json(Path(path).read_bytes()))
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


def prepare_annotations(
    annotations: list[dict[str, Any]], sizes: Sizes, path: str | Path
) -> list[dict[str, Any]]:
    """Checked annotations with ids from 1, ``area``, ``iscrowd`` and, with a mask, its RLE."""
    prepared = []
    for number, annotation in enumerate(
        progress(annotations, "reading ground truth", unit="object"), 1
    ):
        entry = annotation | {"id": number, "iscrowd": int(annotation.get("iscrowd", 0))}
        _, _, width, height = entry["bbox"]
        area = width * height
        if entry.get("segmentation"):
            entry["segmentation"] = as_rle(entry["segmentation"], *sizes[entry["image_id"]])
            area = float(rle_codec.area(entry["segmentation"]))
        prepared.append({"area": area} | entry)
    if without := sum("area" not in annotation for annotation in annotations):
        logger.warning("%s: %d annotations have no area: taken from mask or box", path, without)
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
