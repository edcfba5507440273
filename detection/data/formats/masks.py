"""Masks as pictures: a map of instance ids for each image, or one black-and-white mask per object.

* A map has its image's name, with or without an ending such as ``_masks`` (Cellpose). 0 is
  background, every other value or colour an object (``mask_values``).
* Masks of single objects lie in a folder with the image's name; in ``masks`` beside ``images``
(Data
  Science Bowl 2018); or all in one folder, named by the image and a number: ``a_0.png``,
  ``a_mask_1.png``.
* Cityscapes' ``*_instanceIds.png`` have classes: a value is 1000 times the class's number plus the
  object's. Values below 1000 are groups of a class, which become crowds, or regions, which are no
  objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from backbones.errors import InputError
from backbones.whole_files import write_atomically
from detection.data.checks.segmentations import as_rle
from detection.data.formats.files import image_files
from detection.data.formats.labels import Builder, by_image, label_files
from detection.data.formats.mask_values import mask_values
from detection.data.formats.voc_masks import CLASSES, IMAGES, OBJECTS, ClassMaps
from training.progress import progress

ENDINGS = ("", "_masks", "_cp_masks", "_mask", "_label", "_labels", "_instances", "_instance_ids")
PICTURES = ("_flows", "_cp_flows", "_cp_output", "_outlines", "_seg")  # Cellpose's other files
MASK_FILES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".npy")
CITYSCAPES_IMAGE, CITYSCAPES = "_leftImg8bit", ("_gtFine_instanceIds", "_gtCoarse_instanceIds")
CITYSCAPES_CLASSES = {
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 29: "caravan", 30: "trailer",
    31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip


def read_masks(source: Path, images: Path | None, class_name: str = "object") -> dict[str, Builder]:
    """Read the masks of a folder.

    Args:
        source: the folder of the masks; or that of a data set whose folders ``images`` and
            ``masks`` lie beside each other.
        images: the folder of the images.
        class_name: the one class that all objects have.

    Raises:
        InputError: if no mask there belongs to an image.
    """
    base = source if (source / OBJECTS).is_dir() else source.parent
    classes = ClassMaps(base.resolve()) if (base / OBJECTS).is_dir() else None
    if classes and source in (base, base / OBJECTS):
        source = base / OBJECTS
        images = images or (base / IMAGES if (base / IMAGES).is_dir() else None)
    root = (images or source).resolve()
    if images and (source / "masks").is_dir():  # as prediction writes them
        source = source / "masks"
    files = [file for file in image_files(root) if images or "masks" not in file.parts[-3:-1]]
    others: set[Path] = set()
    if images is None or root == source.resolve():
        files, others = _told_apart(files)
    found = {file: _masks_of(file, source.resolve(), root, images) for file in files}
    if not any(masks.files for masks in found.values()):
        found = _numbered(files, source.resolve())
    pairs = {file: masks for file, masks in found.items() if masks.files}
    used = {path for masks in found.values() for path in masks.files}
    files = [file for file in files if file in pairs or file not in used]
    if not pairs:
        raise InputError(
            f"{source}: no mask there is called as an image of {root}: give --images DIR and the "
            "folder of the masks"
        )
    builder = Builder(root, [] if classes or any(map(_is_cityscapes, used)) else [class_name])
    if classes and classes.are_vocs:
        builder.note(CLASSES, "has no labelmap.txt beside it", "its classes are called as VOC's 20")
    for path in sorted(others - used):
        builder.note(builder.name(path), "is called as a picture beside its image")
    sizes = builder.sizes(files)
    for file in progress(files, "reading masks", unit="image"):
        if file not in sizes:
            continue
        if file not in pairs:
            builder.note(builder.name(file), "has no mask", "kept, without objects")
        image = builder.image(file, sizes[file])
        for path in found[file].files:
            _read_mask(builder, image, path, class_name, found[file].is_map, classes)
    return {"annotations": builder}


def _told_apart(files: list[Path]) -> tuple[list[Path], set[Path]]:
    """The images of a folder, and the files beside them with an image's name plus an ending."""
    stems = {file.with_suffix("") for file in files}
    others = {
        file
        for file in files
        for ending in (*ENDINGS[1:], *PICTURES)
        if file.stem.endswith(ending) and file.with_name(file.stem.removesuffix(ending)) in stems
    }
    return [file for file in files if file not in others], others


def _is_cityscapes(path: Path) -> bool:
    return path.stem.endswith(CITYSCAPES)


class _Masks(NamedTuple):
    """The mask files of an image: one map of all objects, or one file for each object."""

    files: list[Path]
    is_map: bool


def _masks_of(image: Path, source: Path, root: Path, images: Path | None) -> _Masks:
    """Masks in a folder of the image's name, or beside the image; else one map."""
    home = image.parent.parent
    beside = source / image.parent.relative_to(root)  # in the same folders as the images
    folders = [beside / image.stem, source / image.stem]
    if images is None:
        folders.append(home / "masks" / image.stem)
        if home.name == image.stem:  # Data Science Bowl: STEM/images/STEM.png, STEM/masks/*.png
            folders.insert(0, home / "masks")
    for folder in folders:
        if folder.is_dir() and (inside := sorted(filter(_is_mask, folder.iterdir()))):
            return _Masks(inside, False)
    names = [f"{image.stem}{ending}" for ending in ENDINGS]
    if image.stem.endswith(CITYSCAPES_IMAGE):
        names += [image.stem.removesuffix(CITYSCAPES_IMAGE) + ending for ending in CITYSCAPES]
    for folder in [beside, source, *([home / "masks"] if images is None else [])]:
        for name in names:
            for suffix in MASK_FILES:
                path = folder / f"{name}{suffix}"
                if path.is_file() and path.resolve() != image.resolve():
                    return _Masks([path], True)
    return _Masks([], True)


def _numbered(images: list[Path], folder: Path) -> dict[Path, _Masks]:
    """Masks of single objects, all in one folder: the image's name, perhaps words, a number."""
    by_stem = {image.stem: image for image in images}
    found: dict[Path, list[Path]] = {image: [] for image in images}
    for path in sorted(filter(_is_mask, folder.iterdir())) if folder.is_dir() else []:
        ends = [part.start() for part in re.finditer(r"[ _.-]", path.stem)]
        stem = next((path.stem[:end] for end in ends[::-1] if path.stem[:end] in by_stem), None)
        if stem is not None and path.stem not in by_stem and path.stem[-1].isdigit():
            found[by_stem[stem]].append(path)
    return {image: _Masks(masks, False) for image, masks in found.items()}


def _is_mask(path: Path) -> bool:
    return path.suffix.lower() in MASK_FILES and not path.name.startswith(".")


def _read_mask(
    builder: Builder,
    image: dict[str, Any],
    path: Path,
    class_name: str,
    is_map: bool,
    classes: ClassMaps | None,
) -> None:
    where = path.name if is_map else f"{path.parent.name}/{path.name}"
    values = mask_values(path, lambda what, done: builder.note(where, what, done))
    if values is None:
        builder.refuse(where, "is no image that can be read")
        return
    if not is_map or values.shape != (image["height"], image["width"]):  # which is refused there
        builder.mask(image, where, class_name, values > 0)
        return
    if _is_cityscapes(path):
        _read_cityscapes(builder, image, where, values)
        return
    colours = classes.of_map(path) if classes else None
    if classes and colours is not None and colours.shape == values.shape:
        _read_with_classes(builder, image, where, values, colours, classes)
        return
    if values.all():
        builder.note(where, "has no 0, which is background", "each value is an object")
    ids = [value for value in np.unique(values).tolist() if value]
    if len(ids) == 1 and ids[0] in (1, 255, 65535, 256**3 - 1):
        count, parts = cv2.connectedComponents((values > 0).astype(np.uint8))
        if ids[0] == 1 and values.dtype.itemsize > 1:  # no black and white, which has 8 bits
            if count > 2:
                builder.note(where, "has one object of several parts", "it is one object")
            parts = values
        elif count > 2:
            builder.note(where, "tells no objects apart", "each connected part is an object")
        values = parts
    for value, top, left, bottom, right in _boxes(values):
        inside = values[top:bottom, left:right] == value
        builder.mask_part(image, f"{where}, id {value}", class_name, inside, left, top)


def _read_with_classes(
    builder: Builder,
    image: dict[str, Any],
    where: str,
    values: np.ndarray,
    colours: np.ndarray,
    classes: ClassMaps,
) -> None:
    for value, top, left, bottom, right in _boxes(values):
        inside = values[top:bottom, left:right] == value
        name = classes.name(colours[top:bottom, left:right][inside])
        if name is None:
            builder.note(
                f"{where}, id {value}", f"{CLASSES} has no class for it", "called 'object'"
            )
        builder.mask_part(image, f"{where}, id {value}", name or "object", inside, left, top)


def _read_cityscapes(
    builder: Builder, image: dict[str, Any], where: str, values: np.ndarray
) -> None:
    for value, top, left, bottom, right in _boxes(values):
        is_group = value < 1000
        name, inside = CITYSCAPES_CLASSES.get(value if is_group else value // 1000), values == value
        if name is None:
            builder.note(f"{where}, id {value}", "is a region and no object")
        elif is_group:
            builder.note(f"{where}, id {value}", f"is a group of class {name}", "made a crowd")
            builder.mask(image, where, name, inside, crowd=1)
        else:
            part = inside[top:bottom, left:right]
            builder.mask_part(image, f"{where}, id {value}", name, part, left, top)


def _boxes(values: np.ndarray) -> Iterator[tuple[Any, int, int, int, int]]:
    """Each value of a map but 0, with the rows and columns that it lies between."""
    rows, columns = np.nonzero(values)
    found = values[rows, columns]
    order = np.argsort(found, kind="stable")
    rows, columns, found = rows[order], columns[order], found[order]
    if not len(found):
        return
    starts = np.flatnonzero(np.r_[True, found[1:] != found[:-1]])
    edges = (
        pick.reduceat(axis, starts) for pick in (np.minimum, np.maximum) for axis in (rows, columns)
    )
    for value, top, left, bottom, right in zip(found[starts].tolist(), *edges, strict=True):
        yield value, int(top), int(left), int(bottom) + 1, int(right) + 1


def write_masks(tree: dict[str, Any], folder: Path) -> None:
    """``masks/*.png`` of 16 bits: 0 is background, n the n-th object of its image.

    A map has no classes, and where objects overlap it shows the later one.

    Raises:
        InputError: for more than 65535 objects in an image.
    """
    files = label_files(tree, ".png")
    for image, items in by_image(tree):
        height, width = image["height"], image["width"]
        if len(items) > np.iinfo(np.uint16).max:
            raise InputError(f"{image['file_name']} has more objects than 16 bits can tell")
        ids = np.zeros((height, width), np.uint16)
        for number, item in enumerate(items, 1):
            if item.get("segmentation"):
                ids[mask_util.decode(as_rle(item["segmentation"], height, width)) > 0] = number
            else:
                x, y, w, h = (round(value) for value in item["bbox"])
                ids[max(0, y) : y + h, max(0, x) : x + w] = number
        path = folder / "masks" / files[image["id"]]
        write_atomically(path, partial(Image.fromarray(ids).save, format="PNG"))
