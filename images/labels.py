"""Finds the class and the split (training, validation, test) of each image of a source.

Classes are folders directly below ``--data``, as in torchvision, mmpretrain and the authors' code,
however deep an image lies in them; or webdataset's ``.cls``; or a Hugging Face column of classes. A
split (here called part) is a folder called train, val or test (also training, validation, valid,
testing, followed by "set" or "data" or not, in upper or lower case) that holds the folders of
classes. A folder of such a name that holds images itself is a class: CIFAR-100, COCO and VOC have a
class called train.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from backbones.errors import InputError
from images.readers import HuggingFaceReader, Reader
from images.shards import ShardReader

logger = logging.getLogger(__name__)

Part = Literal["train", "val", "test"]
PART_NAMES: dict[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validation", "valid"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
BEHIND = re.compile(r"[ _-]?(set|data|images)$")  # as in Kaggle's training_set
SHOWN = 10
Parts = tuple[str, ...]  # the folders that an image lies in, and its name


@dataclass(frozen=True)
class Labels:
    """Classes and parts of the images of a source, by their index.

    Args:
        classes: the name of the image's class; "" if unknown.
        parts: the image's part; None if it is in no part.
        names: the image's name within its part, or within the source.
    """

    classes: list[str]
    parts: list[Part | None]
    names: list[str]

    def of_part(self, *wanted: Part) -> list[int]:
        """The images of the first of these parts that has any; all images if there are no parts."""
        for part in wanted:
            if found := [index for index, its in enumerate(self.parts) if its == part]:
                return found
        return [] if any(self.parts) else list(range(len(self.parts)))


def read_labels(reader: Reader) -> Labels:
    """The labels of a source's images.

    Raises:
        InputError: for a Hugging Face data set with no column of classes, or several; for folders
            that may be parts or classes.
    """
    if isinstance(reader, HuggingFaceReader):
        names = [str(row) for row in range(len(reader))]
        return Labels(reader.labels(), [None] * len(names), names)
    paths = [PurePosixPath(Path(name).as_posix()).parts for name, _ in reader.contents()]
    if isinstance(reader, ShardReader):
        if reader.by_key:
            whole = ["/".join(path) for path in paths]
            return Labels(reader.labels(), [None] * len(paths), whole)
        return _with_shards(paths)
    return labels_of_paths(paths)


def _with_shards(paths: Sequence[Parts]) -> Labels:
    """Labels of paths within shards: a tar counts as a folder; a folder around all is ignored."""
    inside = [(*(folder.removesuffix(".tar") for folder in path[1:-1]), path[-1]) for path in paths]
    around = {path[:1] for path in inside}
    while len(around) == 1 and all(len(path) > 2 for path in inside):
        inside = [path[1:] for path in inside]
        around = {path[:1] for path in inside}
    found = labels_of_paths(inside)
    if any(found.parts):
        return found
    return Labels(found.classes, found.parts, ["/".join(path) for path in paths])


def labels_of_paths(paths: Sequence[Parts]) -> Labels:
    """Labels by the rule of this module's header.

    Args:
        paths: for each image, its folders below the source and its file name.

    Raises:
        InputError: for folders that may be parts or classes.
    """
    parts = _parts(paths)
    classes, of, names = [], [], []
    # if val/ lies beside the folders of classes, these are the training images
    beside: Part | None = "train" if parts and "train" not in parts.values() else None
    deeper = 0
    for path in paths:
        part = parts.get(path[0]) if len(path) > 1 else None
        within = path[1:] if part else path
        of.append(part or (beside if len(path) > 1 else None))
        classes.append(within[0] if len(within) > 1 else "")
        names.append("/".join(within))
        deeper += len(within) > 2
    if deeper:
        logger.info(
            "the classes are the top folders: %d of %d images lie in folders below these",
            *(deeper, len(paths)),
        )
    if parts and (left := len(of) - sum(map(bool, of))):
        logger.warning(
            "%d images beside the folders %s are left out", left, ", ".join(sorted(parts))
        )
    return Labels(classes, of, names)


def _parts(paths: Sequence[Parts]) -> dict[str, Part]:
    """The top folders that are parts; none if all are classes."""
    inside: dict[str, set[str]] = {}  # a folder on top -> the folders in it
    flat: dict[str, list[bool]] = {}
    for path in paths:
        if len(path) > 1:
            inside.setdefault(path[0], set()).update(path[1:2] if len(path) > 2 else ())
            flat.setdefault(path[0], []).append(len(path) == 2)
    named = {folder: part for folder in inside if (part := _part_called(folder))}
    parts = {f: part for f, part in named.items() if 2 * sum(flat[f]) < len(flat[f])}
    others = [folder for folder in inside if folder not in parts]
    if not parts:
        if named and not [folder for folder in others if folder not in named]:
            raise InputError(
                f"{_listed(named)} hold images, and no folder for each class: a class is a "
                "folder in them"
            )
        return {}
    for part in set(parts.values()):
        if len(same := [folder for folder, its in parts.items() if its == part]) > 1:
            raise InputError(f"the folders {_listed(same)} are all called {part}: keep one")
    if not others or (len(parts) > 1 and "train" in parts.values()):
        return parts
    if "train" not in parts.values() and all(inside[f] <= set(others) for f in parts):
        return parts  # val/ beside the folders of the classes that it holds
    if all(inside[folder] for folder in others):
        return {}  # a class called train among classes with as many levels of folders
    raise InputError(
        f"nothing tells whether the folder {_listed(parts)}, which holds folders, is one of the "
        f"classes ({_listed(others)}) or a part of the data: rename it, or give --data and "
        "--val-data the folders that hold the classes"
    )


def _part_called(folder: str) -> Part | None:
    return PART_NAMES.get(BEHIND.sub("", folder.lower()))


def _listed(folders: Iterable[str]) -> str:
    names = sorted(folders)
    return ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)
