"""Pascal VOC: an XML file for each image, boxes, and masks where ``SegmentationObject`` has them.

Corners count pixels from 1 and the last one is inside, as in VOC's devkit and in detectron2's
loader: x = xmin - 1, width = xmax - xmin + 1. If a corner in any file is at 0, or most corners
are fractions, the files are by another tool that counts from 0: x = xmin, width = xmax - xmin
(labelformat, Roboflow; CVAT and datumaro write fractions). Objects that are ``difficult`` become
crowds, which are neither trained on nor counted. Where an object has a ``polygon`` (supervision,
Roboflow: x1, y1, x2, y2, ...; LabelMe's older XML: pt/x, pt/y) it is the object's mask.
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
    """Read all XML files of a folder, or one; images lie in ``images``, or anywhere in the folder.

    Raises:
        InputError: if no XML file there is one of VOC.
    """
    folder = source.parent if source.is_file() else source
    builder = Builder((images or folder).resolve())
    trees = {}
    files = [source] if source.is_file() else sorted(source.rglob("*.xml"))
    for file in progress(files, "reading labels", unit="file"):
        tree = read_xml(file, "annotation")
        if tree is None:
            builder.note(file.name, "is no XML of Pascal VOC")
        else:
            trees[file] = tree
    if not trees:
        raise InputError(f"{source}: no XML file of Pascal VOC is in it")
    for place in {folder, folder.parent}:
        if (place / "ImageSets").is_dir():
            builder.note("ImageSets", "names parts of the set", "they are not told apart")
    first = _first_pixel(builder, list(trees.values()))
    for file, entry in builder.images_of(
        (file.name, [*_stems(file, folder), tree.findtext("filename") or ""], file)
        for file, tree in trees.items()
    ):
        tree = trees[file]
        stated = [_size(tree.findtext(f"size/{side}")) for side in ("height", "width")]
        if any(stated):
            builder.compare_size(file.name, entry, *stated)
        masks = _masks(file, (entry["height"], entry["width"]))
        for number, item in enumerate(tree.findall("object"), 1):
            where = f"{file.name}, object {number}"
            name = (item.findtext("name") or "").strip()
            if not name:
                builder.refuse(where, "has no name")
                continue
            if (item.findtext("deleted") or "0").strip() == "1":  # in LabelMe's older XML
                builder.refuse(where, "is deleted")
                continue
            crowd = int((item.findtext("difficult") or "0").strip() == "1")
            if crowd:
                builder.note(where, "is difficult", "made a crowd: neither trained on nor counted")
            if item.find("part") is not None:
                builder.note(where, "has parts, such as a head", "the parts are left out")
            if masks is not None and (masks == number).any():
                builder.mask(entry, where, name, masks == number, crowd)
                continue
            if polygon := _polygon(item, first):
                builder.polygons(entry, where, name, [polygon], crowd)
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


def _stems(file: Path, folder: Path) -> list[str]:
    """Possible names of an XML file's image, without the ending, as in the devkit.

    The name of the XML file comes first; ``filename`` is used only if no image has that name,
    because copies of a file often keep the first one's ``filename``.
    """
    return [file.relative_to(folder).with_suffix("").as_posix(), file.stem]


def _first_pixel(builder: Builder, trees: list[ElementTree.Element]) -> int:
    """The number of the first pixel; a note is made if it is not VOC's 1."""
    corners = [
        value
        for tree in trees
        for box in tree.iterfind("object/bndbox")
        for side in ("xmin", "ymin", "xmax", "ymax")
        if isinstance(value := _number(box.findtext(side)), float)
    ]
    what = ""
    if sum(not value.is_integer() for value in corners) * 2 > len(corners):
        what = "are fractions"
    elif any(value == 0 for value in corners):
        what = "are at pixel 0"
    if what:
        builder.note("some corners", what, "all are counted from 0 and not from 1")
    return 0 if what else 1


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _polygon(item: ElementTree.Element, first: int) -> list[float]:
    """The numbers x, y, x, y, ... of an object's polygon, from 0; none where it has none."""
    polygon = item.find("polygon")
    if polygon is None:
        return []
    points = [(point.findtext("x"), point.findtext("y")) for point in polygon.iterfind("pt")]
    if points:
        first = 0
    else:
        numbered = range(1, len(polygon) // 2 + 1)
        points = [(polygon.findtext(f"x{n}"), polygon.findtext(f"y{n}")) for n in numbered]
    numbers = [_number(text) for point in points for text in point]
    return [value - first for value in numbers if value is not None] if None not in numbers else []


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
