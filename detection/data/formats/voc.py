"""Pascal VOC: an XML file for each image, boxes, and masks where ``SegmentationObject`` has them.

Corners count pixels from 1 and the last one is inside, as in VOC's devkit and in detectron2's
loader: x = xmin - 1, width = xmax - xmin + 1. Objects that are ``difficult`` become crowds, which
are neither trained on nor counted.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from backbones.errors import InputError
from detection.data.formats.labels import Builder, ImageFinder
from training.progress import progress


def read_voc(source: Path, images: Path | None) -> dict[str, Builder]:
    """Read all XML files of a folder; images lie in ``images``, or anywhere in the folder.

    Raises:
        InputError: if no XML file there is one of VOC.
    """
    root = images or source
    builder, finder = Builder(root.resolve()), ImageFinder(root.resolve())
    files = sorted(source.rglob("*.xml"))
    trees, found = {}, {}
    for file in progress(files, "reading labels", unit="file"):
        tree = _parsed(file)
        if tree is None:
            builder.note(file.name, "is no XML of Pascal VOC")
            continue
        trees[file] = tree
        image = finder.find(file.stem, tree.findtext("filename") or "")
        if image is None:
            builder.note(file.name, "its image is not there")
        else:
            found[file] = image
    if not trees:
        raise InputError(f"{source}: no XML file of Pascal VOC is in it")
    sizes = builder.sizes(list(found.values()))
    for file, path in found.items():
        if path not in sizes:
            continue
        entry, tree = builder.image(path, sizes[path]), trees[file]
        stated = [int(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width")]
        if any(stated) and tuple(stated) != sizes[path]:
            builder.note(file.name, "states another size than its image", "the image's is taken")
        masks = _masks(file, sizes[path])
        for number, item in enumerate(tree.findall("object"), 1):
            where = f"{file.name}, object {number}"
            name = (item.findtext("name") or "").strip() or "object"
            crowd = int((item.findtext("difficult") or "0").strip() == "1")
            if crowd:
                builder.note(where, "is difficult", "made a crowd: neither trained on nor counted")
            if masks is not None and (masks == number).any():
                builder.mask(entry, where, name, masks == number, crowd)
                continue
            try:
                left, top, right, bottom = (
                    float(item.findtext(f"bndbox/{side}") or "")
                    for side in ("xmin", "ymin", "xmax", "ymax")
                )
            except ValueError:
                builder.read += 1
                builder.note(where, "has no box in numbers")
                continue
            box = [left - 1, top - 1, right - left + 1, bottom - top + 1]
            builder.box(entry, where, name, box, crowd)
    return {"annotations": builder}


def _parsed(file: Path) -> ElementTree.Element | None:
    try:
        tree = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, UnicodeDecodeError):
        return None
    return tree if tree.tag == "annotation" else None


def _masks(file: Path, size: tuple[int, int]) -> np.ndarray | None:
    """The objects' numbers by pixel, ``[H, W]``, 0 for none and 255 for their edges."""
    path = file.parent.parent / "SegmentationObject" / f"{file.stem}.png"
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        masks = np.asarray(picture)
    return masks if masks.shape == size else None
