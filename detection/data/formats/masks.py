"""Masks as pictures: a map of instance ids for each image, or one black-and-white mask per object.

A map lies in a folder of masks under its image's name, with or without an ending such as ``_masks``
(Cellpose); 0 is background, every other value or colour an object. Masks of single objects lie in a
folder that is called as the image, in ``masks`` beside ``images`` (Data Science Bowl 2018), or all
in one folder under the image's name and a number, ``a_0.png``, ``a_mask_1.png``.
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
from detection.data.formats.labels import Builder, by_image
from training.progress import progress

ENDINGS = ("", "_masks", "_cp_masks", "_mask", "_label", "_labels", "_instances", "_instance_ids")
MASK_FILES = (".png", ".tif", ".tiff", ".bmp", ".gif")


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
    root = (images or source).resolve()
    if images and (source / "masks").is_dir():  # as prediction writes them
        source = source / "masks"
    builder = Builder(root, [class_name])
    files = [file for file in image_files(root) if images or "masks" not in file.parts[-3:-1]]
    found = {file: _masks_of(file, source.resolve(), images) for file in files}
    if not any(masks.files for masks in found.values()):
        found = _numbered(files, source.resolve())
    pairs = {file: masks for file, masks in found.items() if masks.files}
    if not pairs:
        raise InputError(
            f"{source}: no mask there is called as an image of {root}: give --images DIR and the "
            "folder of the masks"
        )
    sizes = builder.sizes(files)
    for file in progress(files, "reading masks", unit="image"):
        if file not in sizes:
            continue
        if file not in pairs:
            builder.note(builder.name(file), "has no mask", "kept, without objects")
        image = builder.image(file, sizes[file])
        for path in found[file].files:
            _read_mask(builder, image, path, class_name, found[file].is_map)
    return {"annotations": builder}


class _Masks(NamedTuple):
    """The files that show an image's objects: one map of all, or one file for each."""

    files: list[Path]
    is_map: bool


def _masks_of(image: Path, source: Path, images: Path | None) -> _Masks:
    """Masks in a folder that is called as the image, or beside it; else one map."""
    home = image.parent.parent
    folders = [source / image.stem]
    if images is None:
        folders.append(home / "masks" / image.stem)
        if home.name == image.stem:  # Data Science Bowl: STEM/images/STEM.png, STEM/masks/*.png
            folders.insert(0, home / "masks")
    for folder in folders:
        if folder.is_dir() and (inside := sorted(filter(_is_mask, folder.iterdir()))):
            return _Masks(inside, False)
    for folder in [source, *([home / "masks"] if images is None else [])]:
        for ending in ENDINGS:
            for suffix in MASK_FILES:
                path = folder / f"{image.stem}{ending}{suffix}"
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
    builder: Builder, image: dict[str, Any], path: Path, class_name: str, is_map: bool
) -> None:
    where = path.name if is_map else f"{path.parent.name}/{path.name}"
    try:
        with Image.open(path) as picture:
            if (pages := getattr(picture, "n_frames", 1)) > 1:
                builder.note(where, f"has {pages} pages", "the first is read")
            values = np.asarray(picture)
    except Exception:  # Pillow's decoders raise nearly everything on damaged files
        builder.refuse(where, "is no image that can be read")
        return
    if values.ndim == 3:
        colours = values[..., : 3 if values.shape[2] >= 3 else 1].astype(np.int64)
        values = (colours * 256 ** np.arange(colours.shape[2])).sum(-1)
    if not is_map or values.shape != (image["height"], image["width"]):  # which is refused there
        builder.mask(image, where, class_name, values > 0)
        return
    if values.dtype.kind == "f":
        values = np.nan_to_num(values)  # no number is no object
    ids = [value for value in np.unique(values).tolist() if value]
    if len(ids) == 1 and ids[0] in (1, 255, 65535, 256**3 - 1):
        count, parts = cv2.connectedComponents((values > 0).astype(np.uint8))
        if count > 2:
            builder.note(where, "tells no objects apart", "each connected part is an object")
        values = parts
    for value, top, left, bottom, right in _boxes(values):
        inside = values[top:bottom, left:right] == value
        builder.mask_part(image, f"{where}, id {value}", class_name, inside, left, top)


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

    Classes are not in a map, and where objects overlap the later one, in front, is seen.

    Raises:
        InputError: for over 65535 objects in an image.
    """
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
        path = folder / "masks" / Path(image["file_name"]).with_suffix(".png")
        write_atomically(path, partial(Image.fromarray(ids).save, format="PNG"))
