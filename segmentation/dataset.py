"""Data sets of semantic segmentation, opened by their names.

========================================  ========================================================
``masks:IMAGES:LABELS[:CLASSES.json]``    two folders; image and map differ only in their ending
``json:ANNOTATIONS:IMAGES``               COCO's objects, drawn into class maps
``ade20k_train``, ``ade20k_val``          ``ADEChallengeData2016/`` as it is distributed
``cityscapes_train``, ``cityscapes_val``  ``cityscapes/``, maps ``*_gtFine_labelIds.png``
``coco_stuff_train``, ``coco_stuff_val``  ``coco/``, maps in ``stuffthingmaps/``
========================================  ========================================================

The last three lie under the folder that the environment variable DETECTRON2_DATASETS names.
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from backbones.errors import InputError
from images.folders import files_of_folder, words_of
from segmentation.label_maps import (
    BACKGROUND,
    Classes,
    class_map,
    draw_objects,
    read_classes,
    read_label_file,
    refuse_too_many,
)
from segmentation.published import PUBLISHED
from segmentation.upernet import IGNORED

logger = logging.getLogger(__name__)

LABEL_ENDINGS = {".png", ".tif", ".tiff", ".bmp", ".gif"}


@dataclass(frozen=True)
class Record:
    """An image and its labels: a class map, or objects."""

    image: str  # path of the image file
    labels: str | None = None  # path of its class map, or None
    objects: tuple[dict[str, Any], ...] = ()  # its COCO annotations, if ``labels`` is None
    size: tuple[int, int] | None = None  # height and width, if the data set's file states them


@dataclass(frozen=True)
class SegmentationDataset:
    """A data set, not yet checked (:mod:`segmentation.check` does that)."""

    name: str  # as given in the config
    classes: Classes  # names, and what values mean
    records: tuple[Record, ...]  # by image path
    # COCO's category id -> class index; empty for class maps
    index_of: dict[Any, int] = field(default_factory=dict)
    without_partner: tuple[str, ...] = ()  # images without a map and maps without an image
    # errors, warnings: (kind of problem, example) of problems of the COCO file
    errors: tuple[tuple[str, str], ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()

    def with_classes(self, names: Sequence[str]) -> SegmentationDataset:
        """The same data with a model's classes, in the model's order.

        Raises:
            InputError: for a class that is not among them.
        """
        if (wanted := tuple(names)) == self.classes.names:
            return self
        own = self.classes.names
        if lacking := [name for name in own if name not in wanted]:
            raise InputError(
                f"{self.name} has the classes {', '.join(lacking)}, which the model does not have: "
                f"its classes are {', '.join(wanted)}; give both the same classes file"
            )
        if self.index_of and wanted[0] != BACKGROUND:
            raise InputError(
                f"{self.name}: pixels without an object are {BACKGROUND!r}, which is not the first "
                f"of the model's classes: {', '.join(wanted)}"
            )
        index_of = {key: wanted.index(own[index]) for key, index in self.index_of.items()}
        return replace(self, classes=self.classes.ordered(wanted), index_of=index_of)

    def class_map(self, record: Record) -> np.ndarray:
        """The class map of an image: class indices ``[H, W]`` uint8, ``IGNORED`` without a class.

        Raises:
            InputError: naming the file, if it does not decode or holds values without a class.
        """
        if record.labels is None:
            assert record.size is not None
            return draw_objects(record.objects, record.size, self.index_of)
        try:
            return class_map(read_label_file(record.labels), self.classes)
        except InputError as error:
            if record.labels in str(error):
                raise
            raise InputError(f"{record.labels}: {error}") from error


def load_segmentation(
    name: str, ignore_label: int = IGNORED, reduce_zero_label: bool = False
) -> SegmentationDataset:
    """A data set by its name, see this module's header.

    Args:
        ignore_label, reduce_zero_label: see :mod:`segmentation.label_maps`; published data sets
            have their own.

    Raises:
        InputError: for a name of unknown form, or folders without an image and its map.
        FileNotFoundError: for files that do not exist.
    """
    if name in PUBLISHED:
        return _published(name)
    kind, *parts = name.split(":")
    if kind == "masks" and len(parts) in (2, 3):
        images, labels = (Path(part).expanduser() for part in parts[:2])
        if len(parts) == 3:
            names, of_value = read_classes(Path(parts[2]).expanduser())
        else:
            names, of_value = _named_by_number(labels, ignore_label, reduce_zero_label), {}
        records, lonely = _pairs(_files(images), _files(labels, LABEL_ENDINGS))
        classes = Classes(names, of_value, ignore_label, reduce_zero_label)
        return SegmentationDataset(name, classes, records, without_partner=lonely)
    if kind == "json" and len(parts) == 2:
        return _drawn(name, *(Path(part).expanduser() for part in parts))
    raise InputError(
        f"unknown data set {name!r}; give masks:IMAGES:LABELS[:CLASSES.json], "
        f"json:ANNOTATIONS:IMAGES, or one of {', '.join(PUBLISHED)} (under the folder that "
        "DETECTRON2_DATASETS names)"
    )


def _published(name: str) -> SegmentationDataset:
    row = PUBLISHED[name]
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
    sides = []
    for folder, ending in ((row.images, row.image_ending), (row.labels, row.label_ending)):
        found = _files(root / folder, {Path(ending).suffix})
        named = {key + path.suffix: path for key, path in found.items()}
        sides.append(
            {name.removesuffix(ending): named[name] for name in named if name.endswith(ending)}
        )
    records, lonely = _pairs(*sides)
    classes = Classes(
        row.names, row.of_value, IGNORED, row.reduce_zero_label, ignore_others=bool(row.of_value)
    )
    return SegmentationDataset(name, classes, records, without_partner=lonely)


def _files(folder: Path, endings: Set[str] | None = None) -> dict[str, Path]:
    """The image files of a folder, by their path in it without the ending.

    Which files are images is decided by :mod:`images.folders`.

    Args:
        endings: the endings to take; None for all.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    inside = files_of_folder(folder)
    left_out = inside.left_out
    found: dict[str, Path] = {}
    for path in sorted(inside.images):
        if endings is not None and (ending := path.suffix.lower()) not in endings:
            left_out[ending] += 1
            continue
        key = path.relative_to(folder).with_suffix("").as_posix()
        if key in found:
            raise InputError(f"{found[key]} and {path} differ only in their ending; keep one")
        found[key] = path
    if left_out:
        logger.info("%s: left out are %s", folder, words_of(left_out))
    return found


def _pairs(
    images: dict[str, Path], labels: dict[str, Path]
) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    lonely = [f"{images[key]} has no class map" for key in images if key not in labels]
    lonely += [f"{labels[key]} has no image" for key in labels if key not in images]
    both = [key for key in images if key in labels]
    if not both:
        some = [str(path) for path in (*images.values(), *labels.values())][:2]
        raise InputError(
            "no image and class map have the same name (apart from the ending): "
            f"{', '.join(some) or 'the folders hold no files of known endings'}"
        )
    return tuple(Record(str(images[key]), str(labels[key])) for key in both), tuple(lonely)


def _named_by_number(labels: Path, ignore_label: int, reduce_zero_label: bool) -> tuple[str, ...]:
    """ "0", "1", ... up to the largest value in the maps."""
    largest = -1
    for path in _files(labels, LABEL_ENDINGS).values():
        try:
            values = np.unique(read_label_file(path))
        except InputError:
            continue  # the check lists all files that do not decode
        values = values[values != ignore_label]
        largest = max(largest, int(values.max()) if values.size else -1)
    count = largest + 1 - int(reduce_zero_label)
    if count < 1:
        raise InputError(f"{labels}: the maps hold no class, only the ignored value {ignore_label}")
    if count > IGNORED:
        raise InputError(
            f"{labels}: the maps hold values up to {largest}; name the classes in a file: "
            'masks:IMAGES:LABELS:CLASSES.json with {"VALUE": "NAME"} (at most 255 of them)'
        )
    return tuple(str(index) for index in range(count))


def _drawn(name: str, annotations: Path, images: Path) -> SegmentationDataset:
    errors: list[tuple[str, str]] = []
    warnings: list[tuple[str, str]] = []
    try:
        tree = json.loads(annotations.read_text(encoding="utf-8-sig"))
        categories = sorted(tree["categories"], key=lambda category: category["id"])
        names = (BACKGROUND, *(category["name"] for category in categories))
        index_of = {category["id"]: index for index, category in enumerate(categories, 1)}
        known = {image["id"] for image in tree["images"]}
        of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for place, item in enumerate(tree["annotations"]):
            said = f"annotations[{place}]"
            if item["image_id"] not in known:
                errors.append(("objects of images that the file has not", said))
            elif item["category_id"] not in index_of:
                errors.append(("objects of categories that the file has not", said))
            elif not item.get("segmentation"):
                warnings.append(("objects without a mask, which are left out", said))
            else:
                of_image[item["image_id"]].append(
                    {key: item[key] for key in ("category_id", "segmentation")}
                    | {"iscrowd": item.get("iscrowd") or 0, "place": said}
                )
        records = tuple(
            Record(
                str(images / image["file_name"]),
                objects=tuple(of_image[image["id"]]),
                size=(image["height"], image["width"]),
            )
            for image in sorted(tree["images"], key=lambda image: image["id"])
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{annotations} is not a COCO file ({type(error).__name__}: {error}); "
            "tools/check_dataset.py lists all its problems"
        ) from error
    refuse_too_many(annotations, names)
    kind = f"categories with the same name, or named {BACKGROUND!r}, which is reserved; rename them"
    errors += [(kind, one) for one in sorted({one for one in names if names.count(one) > 1})]
    return SegmentationDataset(
        name, Classes(names, {}), records, index_of, errors=tuple(errors), warnings=tuple(warnings)
    )
