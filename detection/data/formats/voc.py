"""Pascal VOC: an XML file for each image, boxes, and masks where ``SegmentationObject`` has them.

Corners count pixels from 1 and the last one is inside, as in VOC's devkit and in detectron2's
loader: x = xmin - 1, width = xmax - xmin + 1. Objects that are ``difficult`` become crowds, which
are neither trained on nor counted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from backbones.errors import InputError
from detection.data.formats.labels import Builder, read_xml
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
    for file, entry in builder.images_of(
        (file.name, [file.stem, tree.findtext("filename") or ""], file)
        for file, tree in trees.items()
    ):
        tree = trees[file]
        stated = [int(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width")]
        if any(stated):
            builder.compare_size(file.name, entry, *stated)
        masks = _masks(file, (entry["height"], entry["width"]))
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
                builder.refuse(where, "has no box in numbers")
                continue
            box = [left - 1, top - 1, right - left + 1, bottom - top + 1]
            builder.box(entry, where, name, box, crowd)
    return {"annotations": builder}


def _masks(file: Path, size: tuple[int, int]) -> np.ndarray | None:
    """The objects' numbers by pixel, ``[H, W]``, 0 for none and 255 for their edges."""
    path = file.parent.parent / "SegmentationObject" / f"{file.stem}.png"
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        masks = np.asarray(picture)
    return masks if masks.shape == size else None
