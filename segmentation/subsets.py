"""Makes parts of a data set of class maps, for a study that trains on some of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backbones.errors import InputError
from backbones.whole_files import linked_folder
from segmentation.dataset import Record, load_segmentation


@dataclass(frozen=True)
class ClassMaps:
    """The data set ``masks:IMAGES:LABELS:CLASSES.json``, from which parts can be written."""

    path: Path  # the folder of maps
    images: tuple[Record, ...]  # the pairs of an image and its map
    folder: Path  # of the images
    classes: Path  # the file that names the values

    def key(self, image: Record) -> str:
        return Path(image.image).relative_to(self.folder).as_posix()

    def kind(self, image: Record) -> str | None:
        return ""

    def file(self, image: Record) -> Path:
        return Path(image.image)

    def write(self, images: Sequence[Record], path: Path) -> Path:
        """Write a folder with links to the maps of these images."""
        maps = [Path(str(image.labels)) for image in images]
        return linked_folder(path, {each.relative_to(self.path).as_posix(): each for each in maps})

    def told(self, path: Path) -> str:
        return f"masks:{self.folder}:{path}:{self.classes}"


def read_class_maps(name: str) -> ClassMaps:
    """A data set by its name.

    Raises:
        InputError: unless it is ``masks:`` with a classes file: without it, a part of the maps that
            lacks a class would have other class indices.
        FileNotFoundError: for files that do not exist.
    """
    kind, *parts = name.split(":")
    if kind != "masks" or len(parts) != 3:
        raise InputError(
            f"{name!r}: give masks:IMAGES:LABELS:CLASSES.json (with the file of classes, since a "
            "part of the maps may lack one), or json:ANNOTATIONS:IMAGES"
        )
    images, labels, classes = (Path(part).expanduser() for part in parts)
    found = load_segmentation(f"masks:{images}:{labels}:{classes}")
    return ClassMaps(labels, found.records, images, classes)
