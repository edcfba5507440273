"""Class maps: from a file's values, or COCO's objects, to class indices.

A value becomes a class by these steps, and by no others:

  1. a value named in CLASSES.json is the class of that name;
  2. else the value ``IGNORE_LABEL`` is ignored;
  3. else, with ``REDUCE_ZERO_LABEL``, 0 is ignored and every other value is one less (ADE20K);
  4. a value that is then no class is an error.

COCO's objects are drawn the largest first, so that small ones stay visible upon them; crowds are
ignored where no object lies on them, and pixels of nothing are the class ``background``.
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

from backbones.errors import InputError
from segmentation.upernet import IGNORED

BACKGROUND = "background"
VALUES = 2**16  # of a map of 16 bits


@dataclass(frozen=True)
class Classes:
    """What the values of a set's maps mean."""

    names: tuple[str, ...]  # of the classes, by index
    # value in a file -> class index, for values that CLASSES.json names
    of_value: Mapping[int, int]
    ignore_label: int = IGNORED  # the value that is ignored; -1 for none
    reduce_zero_label: bool = False  # see this module's header
    # values without a class are ignored: of data sets known by name, which evaluate some of
    # their values alone
    ignore_others: bool = False

    def table(self) -> np.ndarray:
        """``[65536]`` of class indices by value; ``IGNORED``, or -1 where a value is no class."""
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
        """The same values, with the class indices of other ``names`` that hold all of these."""
        values = dict(self.of_value)
        if not values:
            first = int(self.reduce_zero_label)
            values = {first + index: index for index in range(len(self.names))}
            values.pop(self.ignore_label, None)
        of_value = {value: names.index(self.names[index]) for value, index in values.items()}
        return replace(self, names=names, of_value=of_value)

    def said(self) -> str:
        """For the log: what this does to values."""
        parts = []
        if self.of_value:
            parts.append(f"{len(self.of_value)} values are named by the classes file")
        if self.reduce_zero_label:
            parts.append("REDUCE_ZERO_LABEL: 0 is ignored, 1 is class 0, 2 is class 1, ...")
        if self.ignore_label >= 0 and self.ignore_label not in self.of_value:
            parts.append(f"IGNORE_LABEL: {self.ignore_label} is ignored")
        return "; ".join(parts)


def read_classes(path: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """A classes file: a list of names, the first of which is value 0, or ``{"VALUE": "NAME"}``.

    Returns:
        The names in the order of their values, and value -> class index; the latter is empty for
        a list.

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
        raise InputError(f"{path} is no list of class names; {form}")
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
    """Raise InputError where there are more classes than a class map of 8 bits holds."""
    if len(names) > IGNORED:
        raise InputError(
            f"{path} has {len(names)} classes; a model has at most {IGNORED}, for {IGNORED} is the "
            "index of pixels without one: leave out the rarest, or join some"
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
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        raise InputError(f"{path} does not decode ({type(error).__name__}: {error})") from error
    if values.ndim != 2:
        raise InputError(
            f"{path} is a picture of {values.shape[2]} channels; a class map has one value a "
            "pixel (a grey or palette PNG): convert its colours to class numbers"
        )
    if values.dtype.kind not in "bui" or values.min() < 0 or values.max() >= VALUES:
        raise InputError(f"{path} holds values of {values.dtype} beyond 0 to {VALUES - 1}")
    return values.astype(np.uint16)


def class_map(values: np.ndarray, classes: Classes) -> np.ndarray:
    """Values ``[H, W]`` -> class indices ``[H, W]`` uint8, ``IGNORED`` where there is none.

    Raises:
        InputError: naming the values that are no class.
    """
    indices = classes.table()[values]
    if (indices < 0).any():
        wrong = sorted(map(int, np.unique(values[indices < 0])))
        raise InputError(f"values without a class: {wrong}")
    return indices.astype(np.uint8)


def draw_objects(
    objects: Sequence[Mapping[str, Any]], size: tuple[int, int], index_of: Mapping[Any, int]
) -> np.ndarray:
    """COCO's annotations of an image as a class map ``[H, W]`` uint8, see this module's header.

    Args:
        objects: with ``category_id``, ``iscrowd`` and ``segmentation`` (polygons or RLE).
        size: height and width in pixels.
        index_of: category id -> class index; 0 is the background.

    Raises:
        InputError: naming objects whose segmentation is none.
    """
    labels = np.zeros(size, np.uint8)
    masks, damaged = [], []
    for item in objects:
        try:
            masks.append((_decode(item["segmentation"], size), item))
        except Exception as error:  # pycocotools raises nearly everything
            damaged.append(f"{item.get('place', 'an object')} ({type(error).__name__}: {error})")
    if damaged:
        raise InputError(f"segmentations that are none: {', '.join(damaged)}")
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
