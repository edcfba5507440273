"""COCO-format data sets: their names, loading and checking, without detectron2.

A data set's name is ``json:ANNOTATIONS:IMAGE_FOLDER`` or one of ``REGISTERED``. Records are
detectron2's standard dictionaries, equal to those of its ``load_coco_json`` on the same file.
Classes of the same name in several sets are one class, whatever their ids and order.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from backbones.errors import InputError, counted
from detection.data.check import DECODED_UP_TO, check_tree
from detection.data.checks.images import ANY, ImageFile, shared_images
from detection.data.checks.problems import Findings, describe, shorten
from detection.data.coco_file import read_coco
from detection.data.records import Records, coco_records
from images.files import Reading
from training.progress import progress

logger = logging.getLogger(__name__)

# name -> annotations, image folder; both relative to the environment's DETECTRON2_DATASETS
REGISTERED = {
    f"coco_2017_{split}": (f"coco/annotations/instances_{split}2017.json", f"coco/{split}2017")
    for split in ("train", "val")
}


@dataclass(frozen=True)
class CocoDataset:
    """A COCO-format data set, checked.

    Attributes:
        image_folder: what its file names are relative to.
        class_names: by contiguous class index, in the order of the category ids; of a data set that
            was brought to a detector's classes (:meth:`with_classes`), the detector's.
        contiguous_ids: category id of the annotations -> class index from 0.
        records: one a image, by ascending image id: ``file_name`` (the path), ``height``,
            ``width``, ``image_id``, ``annotations``: a list of ``bbox`` [x, y, width, height] in
            pixels, ``bbox_mode`` 1, ``category_id`` (the class index), ``iscrowd``, and
            ``segmentation`` where there is one (polygons or compressed RLE). Crowds are included.
        beyond: names of classes that the detector lacks; their indices follow ``class_names``'.
        tree: the checked file, kept for an evaluation, which then reads no file; None if not kept.
        parts: the data sets that were joined into this one.
    """

    name: str
    annotations: Path
    image_folder: Path
    class_names: tuple[str, ...]
    contiguous_ids: dict[Any, int]
    records: Records

    beyond: tuple[str, ...] = ()
    tree: dict[str, Any] | None = field(default=None, repr=False, compare=False)
    parts: tuple[CocoDataset, ...] = ()
    _digest: Any = field(default=None, repr=False, compare=False)  # SHA-256 of the file's bytes

    @property
    def category_ids(self) -> list[Any]:
        """Category ids of the annotations by class index; None for a class that they lack."""
        ids = {index: key for key, index in self.contiguous_ids.items()}
        return [ids.get(index) for index in range(len(self.class_names))]

    @property
    def category_names(self) -> dict[Any, str]:
        """Category id of the annotations -> name."""
        names = (*self.class_names, *self.beyond)
        return {key: names[index] for key, index in self.contiguous_ids.items()}

    def image_paths(self) -> list[str]:
        return [record["file_name"] for record in self.records.heads()]

    @property
    def num_instances(self) -> int:
        """Annotated objects, crowds included."""
        return int(self.records.objects.sum() + self.records.crowds.sum())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the annotation file and of the images' names and sizes in bytes."""
        if self.parts:
            parts = "".join(part.fingerprint for part in self.parts)
            return hashlib.sha256(parts.encode()).hexdigest()
        digest = self._digest.copy()
        for record in progress(self.records.heads(), "fingerprint", len(self.records), "image"):
            name = os.path.relpath(record["file_name"], self.image_folder)
            digest.update(f"{name}\0{os.path.getsize(record['file_name'])}\n".encode())
        return digest.hexdigest()

    def with_classes(self, class_names: Sequence[str]) -> CocoDataset:
        """The same data set with a detector's classes: its own are found among them by name."""
        places = {key: place for place, key in enumerate(_countable(class_names))}
        new: dict[int, int] = {}
        beyond = []
        for index, key in enumerate(_countable(self.class_names)):
            if key not in places:
                beyond.append(key[0])
            new[index] = places.get(key, len(class_names) + len(beyond) - 1)
        return replace(
            self,
            class_names=tuple(class_names),
            contiguous_ids={key: new[index] for key, index in self.contiguous_ids.items()},
            records=self.records.with_categories(new),
            beyond=tuple(beyond),
        )


def _countable(names: Sequence[str]) -> list[tuple[str, int]]:
    """Each name with how often it came before, so that two classes of one name stay two."""
    seen: Counter[str] = Counter()
    keys = []
    for name in names:
        keys.append((name, seen[name]))
        seen[name] += 1
    return keys


def joined_classes(datasets: Sequence[CocoDataset]) -> dict[Any, str]:
    """Category id -> name of all data sets' classes together, those of one name as one.

    A class keeps the id of the first set that has it, unless another class has that id already;
    then it gets a new one. They are in the order of the ids, as those of one data set are.
    """
    found: dict[tuple[str, int], Any] = {}
    for dataset in datasets:
        keys = _countable(dataset.class_names)
        for key, number in zip(keys, dataset.category_ids, strict=True):
            if key in found:
                continue
            if number in found.values():
                integers = [one for one in found.values() if isinstance(one, int)]
                number = max(integers, default=0) + 1 if integers else f"{key[0]} of {dataset.name}"
            found[key] = number
    by_id = {number: name for (name, _), number in found.items()}
    if len({isinstance(number, str) for number in by_id}) > 1:
        return by_id
    return dict(sorted(by_id.items()))


def join_datasets(datasets: Sequence[CocoDataset], classes: dict[Any, str]) -> CocoDataset:
    """One data set of all images; ``classes`` (id -> name) must contain those of each set."""
    names = tuple(classes.values())
    aligned = [dataset.with_classes(names) for dataset in datasets]
    first = aligned[0]
    ids = {number: index for index, number in enumerate(classes)}
    if len(aligned) == 1:
        return replace(first, contiguous_ids=ids)
    return replace(
        first,
        name=" + ".join(dataset.name for dataset in datasets),
        contiguous_ids=ids,
        records=Records(itertools.chain.from_iterable(one.records for one in aligned)),
        tree=None,
        parts=tuple(datasets),
    )


def set_labels(datasets: Sequence[CocoDataset]) -> list[str]:
    """Short names of data sets, all different: what the annotation files are called."""
    labels: list[str] = []
    for dataset in datasets:
        stem = label = dataset.annotations.stem
        numbers = itertools.count(2)
        while label in labels:
            label = f"{stem}-{next(numbers)}"
        labels.append(label)
    return labels


def result_parts(datasets: Sequence[CocoDataset]) -> list[str]:
    """Each test set's part of metric names and result folders; "" for the first one."""
    return ["", *set_labels(datasets)[1:]][: len(datasets)]


def locate_dataset(name: str) -> tuple[Path, Path]:
    """The annotation file and the image folder that a data set's name stands for.

    Raises:
        InputError: if the name is neither registered nor of the form
            ``json:ANNOTATIONS:IMAGE_FOLDER``.
    """
    if name in REGISTERED:
        root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
        annotations, folder = REGISTERED[name]
        return root / annotations, root / folder
    kind, _, paths = name.partition(":")
    annotations, _, folder = paths.rpartition(":")
    if kind != "json" or not annotations or not folder:
        raise InputError(
            f"unknown data set {name!r}; give json:ANNOTATIONS:IMAGE_FOLDER or one of "
            f"{', '.join(REGISTERED)} (under the folder that DETECTRON2_DATASETS names)"
        )
    return Path(annotations).expanduser(), Path(folder).expanduser()


def load_dataset(
    name: str,
    masks: bool = True,
    check_images: bool = True,
    for_evaluation: bool = False,
    reading: Reading = ANY,
) -> CocoDataset:
    """Load a data set by its name, and check it as :mod:`detection.data.check` says.

    Args:
        masks: whether every object must have a segmentation (``MODEL.MASK_ON``).
        check_images: open every image; ``False`` for the other processes of one that did.
        for_evaluation: keep what was read, so that an evaluation need not read it again.

    Raises:
        InputError: listing every error, each with file, place and remedy (the first 50 in full).
    """
    annotations, image_folder = locate_dataset(name)
    findings = Findings(annotations)
    tree, digest = read_coco(annotations, findings)
    if tree:
        check_tree(tree, image_folder, findings, masks, check_images, reading=reading)
    problems = findings.problems()
    for problem in problems:
        if problem.severity == "warning":
            logger.warning("%s", problem)
    if errors := [problem for problem in problems if problem.severity == "error"]:
        raise InputError(describe(errors, f"the data set {name}"))
    categories = sorted(tree["categories"], key=lambda category: category["id"])
    contiguous_ids = {category["id"]: index for index, category in enumerate(categories)}
    kept = dict(tree) if for_evaluation else None  # before the records are taken out of it
    dataset = CocoDataset(
        name=name,
        annotations=annotations,
        image_folder=image_folder,
        class_names=tuple(category["name"] for category in categories),
        contiguous_ids=contiguous_ids,
        records=Records(coco_records(tree, image_folder, contiguous_ids)),
        tree=kept,
        _digest=digest,
    )
    found, of = len(dataset.records), dataset.num_instances
    objects = f"{counted(of, 'object')} of {counted(len(categories), 'class')}"
    logger.info("%s: %s, %s", name, counted(found, "image"), objects)
    return dataset


def load_all(names: Sequence[str], problems: list[str], **options: Any) -> list[CocoDataset]:
    """Load data sets by :func:`load_dataset`; errors of those that fail go to ``problems``."""
    found = []
    for name in names:
        try:
            found.append(load_dataset(name, **options))
        except InputError as error:
            problems.append(str(error))
    return found


def load_watched_sets(config: CfgNode) -> list[CocoDataset]:
    """The sets that a training is evaluated on: ``VAL``, else ``TEST``; their images unchecked."""
    masks, names = config.MODEL.MASK_ON, config.DATASETS.VAL or config.DATASETS.TEST
    return [load_dataset(name, masks, check_images=False, for_evaluation=True) for name in names]


def warn_of_shared_images(train: CocoDataset, test: CocoDataset) -> None:
    """Log a warning if the test set shares images with the training set: results would be too good.

    They are known by the files' bytes, and by their pixels if neither set has over 2000 images.
    """
    train_files, test_files = (
        [ImageFile(record["file_name"], (record["height"], record["width"])) for record in records]
        for records in (train.records.heads(), test.records.heads())
    )
    is_small = max(len(train_files), len(test_files)) <= DECODED_UP_TO
    shared = shared_images(test_files, train_files, pixels=is_small)
    if shared:
        logger.warning(
            "%d of the %d images of %s are in %s too, so the results will look too good: %s",
            len(shared),
            len(test_files),
            test.name,
            train.name,
            shorten([path if path == other else f"{path} = {other}" for path, other, _ in shared]),
        )
    elif not is_small:
        logger.info("training and test set share no file (compared by bytes, not by pixels)")
