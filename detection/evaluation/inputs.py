"""The two files of an evaluation, read and checked: COCO ground truth and COCO results.

The ground truth goes through the same reader and the same check as a data set to train on, so that
whatever passes the check can be evaluated.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycocotools import mask as rle_codec

from backbones.errors import InputError, counted
from detection.data.check import check_tree
from detection.data.checks.annotations import is_id
from detection.data.checks.problems import Findings, describe, shorten
from detection.data.checks.segmentations import as_rle
from detection.data.coco_file import read_coco
from detection.dataset import CocoDataset
from detection.evaluation.results import TASKS, Sizes, prepare_results, read_results
from training.progress import progress

logger = logging.getLogger(__name__)

_EVALUATED = ("id", "bbox", "segmentation", "area", "iscrowd", "score")  # beside the two ids


def read_ground_truth(path: str | Path, image_folder: Path | None = None) -> dict[str, Any]:
    """COCO annotations, read and checked as a data set to train on, but for the images.

    Annotation ids may be missing, 0 or used twice: they are numbered anew.

    Args:
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


@dataclass
class Evaluation:
    """The two files of an evaluation, read and checked once for all that is asked of them.

    Attributes:
        truth: the parsed annotation file; its annotations went through `prepare_annotations`.
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
        truth: the annotation file, or a data set; one loaded with ``for_evaluation`` is not read
            again.

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


def choose_tasks(
    tasks: Sequence[str] | None,
    truth: dict[str, Any],
    truth_path: str | Path,
    results: list[dict[str, Any]],
    results_path: str | Path,
) -> list[str]:
    """The tasks to evaluate, in TASKS' order, once it is certain that both files allow them."""
    if tasks is not None and (unknown := [task for task in tasks if task not in TASKS]):
        raise InputError(f"unknown tasks {shorten(unknown)}; allowed: {shorten([*TASKS])}")
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
                    f"{shorten(lacking)}"
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
        areas = counted(without, "annotation")
        logger.warning("%s: %s without area: taken from mask or box", path, areas)
    return prepared


def number_ids(
    truth: dict[str, Any], detections: list[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ground truth and detections as two data sets of what evaluators read and no more.

    Images and categories are numbered from 1 in the order of their ids, because hotcoco needs
    integers and evaluators sort by them.
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
