"""COCO segmentations: whether they can be used, and where they lie.

pycocotools decodes a broken run-length encoding to whatever lies in memory; so it is checked here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pycocotools.mask as mask_util


def is_finite(value: Any) -> bool:
    """Whether a value of a json file is a number that can be calculated with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def mask_bounds(segmentation: Any, height: int, width: int) -> tuple[list[float], int]:
    """The [x0, y0, x1, y1] of a segmentation, and how many of its polygons are too short.

    Raises:
        ValueError: saying what is wrong with it, if it cannot be used.
    """
    if isinstance(segmentation, dict):
        x, y, w, h = mask_util.toBbox(compressed_rle(segmentation, height, width)).tolist()
        return [x, y, x + w, y + h], 0
    if not isinstance(segmentation, list):
        raise ValueError(f"is a {type(segmentation).__name__}, not polygons or an RLE")
    parts = []
    for polygon in segmentation:
        if not isinstance(polygon, list) or not all(is_finite(value) for value in polygon):
            raise ValueError("has a polygon that is not a list of numbers [x, y, x, y, ...]")
        if len(polygon) % 2:
            raise ValueError(f"has a polygon of {len(polygon)} numbers; they come in pairs x, y")
        if len(polygon) >= 6:
            parts.append(np.asarray(polygon, dtype=float).reshape(-1, 2))
    if not parts:
        raise ValueError("has no polygon of at least 3 points")
    points = np.concatenate(parts)
    return [*points.min(0).tolist(), *points.max(0).tolist()], len(segmentation) - len(parts)


def compressed_rle(rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """An RLE as pycocotools reads it, compressed if it was not.

    Raises:
        ValueError: saying what is wrong with it, if it is not one of an image of this size.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        raise ValueError(f"RLE size is {size}, but its image's is {[height, width]}")
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("RLE counts are not all whole numbers of at least 0")
        runs = np.asarray(counts, dtype=np.int64)
    elif isinstance(counts, str):
        runs = _decompress(counts)
    else:
        raise ValueError(f"RLE counts are a {type(counts).__name__}, not a list or a string")
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(
            f"RLE counts add up to {runs.sum()} pixels, but its image has {height * width}"
        )
    return mask_util.frPyObjects(rle, height, width) if isinstance(counts, list) else rle


def _decompress(counts: str) -> np.ndarray:
    """Run lengths of COCO's compressed RLE, which pycocotools does not tell.

    Each is written in 5-bit digits, lowest first, from character 48; bit 32 says that another
    digit follows, bit 16 of the last one is the sign. From the fourth on, a run is stored as the
    difference to the run before the last.
    """
    try:
        digits = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise ValueError("RLE counts are not a compressed RLE string") from None
    if not digits.size or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError("RLE counts are not a compressed RLE string")
    ends = np.flatnonzero(digits & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 8:
        raise ValueError("RLE counts are not a compressed RLE string")
    shifts = 5 * (np.arange(digits.size) - np.repeat(starts, lengths))
    values = np.add.reduceat((digits & 31) << shifts, starts)
    values -= ((digits[ends] & 16) > 0) * (np.int64(1) << (5 * lengths))
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    return runs
