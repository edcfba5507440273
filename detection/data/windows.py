"""Masks of large images as run lengths and back, within their boxes: never the whole image.

COCO's run lengths count pixels column by column, so a mask is encoded from strips of columns, one
after the other, to exactly what pycocotools makes of the whole image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from detection.data.checks.segmentations import run_lengths


def encode_strips(
    strips: Iterable[tuple[np.ndarray, int]], top: int, height: int, width: int
) -> dict[str, Any]:
    """The compressed RLE of a mask, its counts as text.

    Args:
        strips: bool ``[h, w]`` and the image's column that it begins at, from left to right.
        top: the image's row that all of them begin at.
    """
    parts = [np.zeros(0, np.int64)]
    for inside, left in strips:
        rows, columns = inside.shape
        edges = np.zeros((columns, rows + 2), bool)  # nothing above and below
        edges[:, 1:-1] = inside.T
        column, row = np.nonzero(edges[:, 1:] != edges[:, :-1])
        parts.append((left + column) * height + top + row)
    changes = np.concatenate(parts)
    # A run that ends where the next column's begins goes on.
    goes_on = changes[1:-1:2] == changes[2::2]
    kept = np.ones(len(changes), bool)
    kept[1:-1:2] &= ~goes_on
    kept[2::2] &= ~goes_on
    changes = changes[kept & (changes < height * width)]
    counts = np.diff(changes, prepend=0, append=height * width)
    rle = mask_util.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode()}


def decode_window(rle: Mapping[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """A compressed RLE's mask, cut out: bool ``[h, w]``, and the x and y of its first pixel."""
    height = rle["size"][0]
    x, y, w, h = map(int, mask_util.toBbox(dict(rle)))
    counts = rle["counts"]
    runs = run_lengths(counts.decode() if isinstance(counts, bytes) else counts)
    ends = np.clip(np.cumsum(runs), x * height, (x + w) * height)
    columns = np.repeat(np.arange(len(runs)) % 2 == 1, np.diff(ends, prepend=x * height))
    return np.ascontiguousarray(columns.reshape(w, height)[:, y : y + h].T), (x, y)
