"""The classes of the objects in Pascal VOC's ``SegmentationObject``, from ``SegmentationClass``.

CVAT writes them as 'Segmentation mask' with ``labelmap.txt`` (name:r,g,b:parts:actions),
labelme2voc with ``class_names.txt``; VOC's own are the devkit's 20, by the numbers of its palette.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from detection.data.formats.files import read_text

NAME_FILES = ("labelmap.txt", "class_names.txt")
OBJECTS, CLASSES, IMAGES = "SegmentationObject", "SegmentationClass", "JPEGImages"
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


class ClassMaps:
    """The classes of the objects in a folder's maps; none if it has no ``SegmentationClass``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = _names_of_colours(folder)
        self.are_vocs = not any((folder / name).is_file() for name in NAME_FILES)

    def of_map(self, path: Path) -> np.ndarray | None:
        """The colours ``[H, W]``, as one number each, beside a map of objects."""
        file = self.folder / CLASSES / path.relative_to(self.folder / OBJECTS)
        try:
            with Image.open(file) as picture:
                colours = np.asarray(picture.convert("RGB")).astype(np.int64)
        except Exception:  # Pillow's decoders raise nearly everything on damaged files
            return None
        return colours @ (1, 256, 65536)

    def name(self, colours: np.ndarray) -> str | None:
        """The class of most of an object's pixels ``[N]``; None if that colour is no class."""
        found, counts = np.unique(colours, return_counts=True)
        return self.names.get(int(found[counts.argmax()]))


def _names_of_colours(folder: Path) -> dict[int, str]:
    """A colour as one number -> its class; of a labelmap without colours those of VOC in turn."""
    labelmap, listed = folder / "labelmap.txt", folder / "class_names.txt"
    if labelmap.is_file():
        lines = read_text(labelmap).splitlines()
        labels = [line.rsplit(":", 3) for line in lines if line.strip() and line[0] != "#"]
        found = {}
        for number, (name, *rest) in enumerate(label for label in labels if len(label) == 4):
            parts = rest[0].split(",")
            is_colour = len(parts) == 3 and all(part.strip().isdecimal() for part in parts)
            colour = sum(
                int(part) * 256**place for place, part in enumerate(parts if is_colour else ())
            )
            found[colour if is_colour else voc_colour(number)] = name
        return {colour: name for colour, name in found.items() if colour}
    names = dict(enumerate(VOC_CLASSES, 1))
    if listed.is_file():
        lines = [line.strip() for line in read_text(listed).splitlines() if line.strip()]
        first = -lines.index("_background_") if "_background_" in lines else 0
        names = dict(enumerate(lines, first))
    return {voc_colour(number): name for number, name in names.items() if number > 0}


def voc_colour(number: int) -> int:
    """The colour of a class in VOC's palette, r + 256 g + 65536 b, whose bits are its number's."""
    rgb = [0, 0, 0]
    for step in range(8):
        for channel in range(3):
            rgb[channel] |= (number >> (3 * step + channel) & 1) << (7 - step)
    return rgb[0] + 256 * rgb[1] + 65536 * rgb[2]
