"""Pascal VOC: an XML file for each image, boxes, and masks where ``SegmentationObject`` has them.

Corners count pixels from 1 and the last one is inside, as in VOC's devkit and in detectron2's
loader: x = xmin - 1, width = xmax - xmin + 1. Where a corner of any file is at 0, another tool
wrote them all, which counts from 0: x = xmin, width = xmax - xmin (labelformat, Roboflow). Objects
that are ``difficult`` become crowds, which are neither trained on nor counted.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from backbones.errors import InputError
from detection.data.formats.files import read_xml
from detection.data.formats.labels import Builder
from training.progress import progress


def read_voc(source: Path, images: Path | None) -> dict[str, Builder]:
    """Read all XML files of a folder; images lie in ``images``, or anywhere in the folder.

    Raises:
        InputError: if no XML file there is one of VOC.
    """
    builder = Builder((images or source).resolve())
    trees = {}
    for file in progress(sorted(source.rglob("*.xml")), "reading labels", unit="file"):
        tree = read_xml(file, "annotation")
        if tree is None:
            builder.note(file.name, "is no XML of Pascal VOC")
        else:
            trees[file] = tree
    if not trees:
        raise InputError(f"{source}: no XML file of Pascal VOC is in it")
    for folder in {source, source.parent}:
        if (folder / "ImageSets").is_dir():
            builder.note("ImageSets", "names parts of the set", "they are not told apart")
    first = 0 if any(_has_zero(tree) for tree in trees.values()) else 1
    if not first:
        builder.note("some corners", "are at pixel 0", "all are counted from 0 and not from 1")
    for file, entry in builder.images_of(
        (file.name, [file.stem, tree.findtext("filename") or ""], file)
        for file, tree in trees.items()
    ):
        tree = trees[file]
        stated = [_size(tree.findtext(f"size/{side}")) for side in ("height", "width")]
        if any(stated):
            builder.compare_size(file.name, entry, *stated)
        masks = _masks(file, (entry["height"], entry["width"]))
        for number, item in enumerate(tree.findall("object"), 1):
            where = f"{file.name}, object {number}"
            name = (item.findtext("name") or "").strip() or "object"
            crowd = int((item.findtext("difficult") or "0").strip() == "1")
            if crowd:
                builder.note(where, "is difficult", "made a crowd: neither trained on nor counted")
            if item.find("part") is not None:
                builder.note(where, "has parts, such as a head", "the parts are left out")
            if masks is not None and (masks == number).any():
                builder.mask(entry, where, name, masks == number, crowd)
                continue
            try:
                left, top, right, bottom = (
                    float(item.findtext(f"bndbox/{side}") or "")
                    for side in ("xmin", "ymin", "xmax", "ymax")
                )
            except ValueError:
                builder.refuse(where, "has no box in numbers")
                continue
            box = [left - first, top - first, right - left + first, bottom - top + first]
            builder.box(entry, where, name, box, crowd)
    return {"annotations": builder}


def _has_zero(tree: ElementTree.Element) -> bool:
    """Whether a box begins at 0, which is no pixel of VOC's."""
    found = (
        item.findtext(f"bndbox/{side}") for item in tree.iter("object") for side in ("xmin", "ymin")
    )
    return any(_size(text) == 0 for text in found if text)


def _size(text: str | None) -> int | str:
    """A side that a file states, 0 for none; as it stands where it is no number."""
    try:
        return int(float(text or 0))
    except (ValueError, OverflowError):
        return text or ""


def _masks(file: Path, size: tuple[int, int]) -> np.ndarray | None:
    """The objects' numbers by pixel, ``[H, W]``, 0 for none and 255 for their edges."""
    path = file.parent.parent / "SegmentationObject" / f"{file.stem}.png"
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        masks = np.asarray(picture)
    return masks if masks.shape == size else None
