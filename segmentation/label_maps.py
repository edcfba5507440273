"""Makes class maps, with class indices, from the values of a file or from COCO's objects.

A value becomes a class by these steps:

  1. a value named in CLASSES.json is the class of that name;
  2. else the value ``IGNORE_LABEL`` is ignored;
  3. else, with ``REDUCE_ZERO_LABEL``, 0 is ignored and every other value is one less (ADE20K);
  4. any other value is an error.

COCO's objects are drawn in the order of their size, the largest first, so that small ones are not
hidden. Crowds are ignored where no object covers them; all other pixels are ``background``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle_codec

from backbones.errors import InputError, counted
from segmentation.upernet import IGNORED

BACKGROUND = "background"
VALUES = 2**16  # number of values of a map of 16 bits


@dataclass(frozen=True)
class Classes:
    """The meaning of the values in a data set's maps."""

    names: tuple[str, ...]  # of the classes, by index
    # value in a file -> class index, for values that CLASSES.json names
    of_value: Mapping[int, int]
    ignore_label: int = IGNORED  # the value that is ignored; -1 for none
    reduce_zero_label: bool = False  # see this module's header
    # whether values without a class are ignored: for published data sets that only evaluate some
    # of their values
    ignore_others: bool = False

    def table(self) -> np.ndarray:
        """``[65536]``: class index of each value; ``IGNORED``, or -1 if it has no class."""
        table = np.full(VALUES, IGNORED if self.ignore_others else -1, np.int16)
        shift = int(self.reduce_zero_label)
        if not self.of_value:
            table[shift : shift + len(self.names)] = np.arange(len(self.names))
        if shift:
            table[0] = IGNORED
        if 0 <= self.ignore_label < VALUES:
            table[self.ignore_label] = IGNORED
        for value, index in self.of_value.items():
            table[value] = index
        return table

    def ordered(self, names: tuple[str, ...]) -> Classes:
        """The same values with the class indices of ``names``, which must contain all of these."""
        values = dict(self.of_value)
        if not values:
            first = int(self.reduce_zero_label)
            values = {first + index: index for index in range(len(self.names))}
            values.pop(self.ignore_label, None)
        of_value = {value: names.index(self.names[index]) for value, index in values.items()}
        return replace(self, names=names, of_value=of_value)

    def said(self) -> str:
        """A sentence for the log about the meaning of the values."""
        parts = []
        if self.of_value:
            parts.append(f"{len(self.of_value)} values are named by the classes file")
        if self.reduce_zero_label:
            parts.append("REDUCE_ZERO_LABEL: 0 is ignored, 1 is class 0, 2 is class 1, ...")
        if self.ignore_label >= 0 and self.ignore_label not in self.of_value:
            parts.append(f"IGNORE_LABEL: {self.ignore_label} is ignored")
        return "; ".join(parts)


def read_classes(path: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Read a classes file: a list of names, the first for value 0, or ``{"VALUE": "NAME"}``.

    Returns:
        The names in the order of their values; and value -> class index, which is empty for a list.

    Raises:
        InputError: if it is neither, or names a value or class twice.
        FileNotFoundError: if it does not exist.
    """
    form = 'give ["background", "car"], or {"0": "background", "255": "car"}'
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); {form}") from error
    names = list(tree.values()) if isinstance(tree, dict) else tree
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise InputError(f"{path} is not a list of class names; {form}")
    refuse_too_many(path, names)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path} names {', '.join(twice)} twice; a class has one value")
    if isinstance(tree, list):
        return tuple(names), {}
    try:
        by_value = sorted((int(value), name) for value, name in tree.items())
    except ValueError as error:
        raise InputError(f"{path}: {error}; values are whole numbers; {form}") from error
    if wrong := [value for value, _ in by_value if not 0 <= value < VALUES]:
        raise InputError(f"{path} names the values {wrong}; maps hold 0 to {VALUES - 1}")
    return tuple(name for _, name in by_value), {v: i for i, (v, _) in enumerate(by_value)}


def refuse_too_many(path: Path, names: Sequence[str]) -> None:
    """Raise InputError if there are more classes than a class map of 8 bits can hold."""
    if len(names) > IGNORED:
        raise InputError(
            f"{path} has {counted(len(names), 'class')}; a model has at most {IGNORED}, because "
            f"{IGNORED} is the index of pixels without a class: leave out the rarest, or join some"
        )


def read_label_file(path: str | Path) -> np.ndarray:
    """A class map's values, ``[H, W]`` uint16: of 1, 8 or 16 bits, grey or with a palette.

    Raises:
        InputError: naming the file, if it does not decode or has more than one value per pixel.
        FileNotFoundError: if it does not exist.
    """
    try:
        with Image.open(path) as image:
            values = np.asarray(image)  # a palette's indices, not its colours
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged files raise nearly any exception in Pillow's decoders
        raise InputError(f"{path} does not decode ({type(error).__name__}: {error})") from error
    if values.ndim != 2:
        raise InputError(
            f"{path} has {counted(values.shape[2], 'channel')}; a class map has one value per "
            "pixel (a grey or palette PNG): convert its colours to class numbers"
        )
    if values.dtype.kind not in "bui" or values.min() < 0 or values.max() >= VALUES:
        raise InputError(f"{path} holds values of {values.dtype} beyond 0 to {VALUES - 1}")
    return values.astype(np.uint16)


def class_map(values: np.ndarray, classes: Classes) -> np.ndarray:
    """Values ``[H, W]`` -> class indices ``[H, W]`` uint8, ``IGNORED`` where there is none.

    Raises:
        InputError: naming the values without a class.
    """
    indices = classes.table()[values]
    if (indices < 0).any():
        wrong = sorted(map(int, np.unique(values[indices < 0])))
        raise InputError(f"values without a class: {wrong}")
    return indices.astype(np.uint8)


def draw_objects(
    objects: Sequence[Mapping[str, Any]], size: tuple[int, int], index_of: Mapping[Any, int]
) -> np.ndarray:
    """Draw an image's COCO annotations as a class map ``[H, W]`` uint8, see this module's header.

    Args:
        objects: with ``category_id``, ``iscrowd`` and ``segmentation`` (polygons or RLE).
        size: height and width in pixels.
        index_of: category id -> class index; 0 is the background.

    Raises:
        InputError: naming objects with an invalid segmentation.
    """
    labels = np.zeros(size, np.uint8)
    masks, damaged = [], []
    for item in objects:
        try:
            masks.append((_decode(item["segmentation"], size), item))
        except Exception as error:  # pycocotools raises nearly any exception
            damaged.append(f"{item.get('place', 'an object')} ({type(error).__name__}: {error})")
    if damaged:
        raise InputError(f"invalid segmentations: {', '.join(damaged)}")
    for mask, item in masks:
        if item.get("iscrowd"):
            labels[mask] = IGNORED
    drawn = sorted(
        ((mask, item) for mask, item in masks if not item.get("iscrowd")),
        key=lambda pair: -int(pair[0].sum()),
    )
    for mask, item in drawn:
        labels[mask] = index_of[item["category_id"]]
    return labels


def _decode(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
        segmentation = rle_codec.frPyObjects(segmentation, *size)
    elif isinstance(segmentation, list):
        parts = [list(map(float, part)) for part in segmentation if len(part) >= 6]
        segmentation = rle_codec.merge(rle_codec.frPyObjects(parts, *size))
    return rle_codec.decode(segmentation).astype(bool)
