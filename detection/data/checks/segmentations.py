"""Check COCO segmentations; compute their bounds and areas.

pycocotools decodes a broken run-length encoding to whatever lies in memory, so encodings are
checked here first.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from operator import mul
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from backbones.errors import InputError


def is_finite(value: Any) -> bool:
    """Whether a value of a json file is a number that can be calculated with."""
    return are_finite([value])


def are_finite(values: Any) -> bool:
    """Whether a value of a json file is a list (or, of a polygon, an array) of such numbers.

    Types and sum are looked at in C: the polygons of COCO have 45 million coordinates.
    """
    if not isinstance(values, array) and (
        not isinstance(values, list) or not set(map(type, values)) <= {int, float}
    ):
        return False
    try:
        return math.isfinite(sum(values))
    except OverflowError:  # an integer beyond floating point: json has any
        return False


def mask_bounds(segmentation: Any, height: int, width: int) -> tuple[list[float], int]:
    """The [x0, y0, x1, y1] of a segmentation, and how many of its polygons are too short.

    Raises:
        InputError: saying what is wrong with it, if it cannot be used.
    """
    if isinstance(segmentation, dict):
        return pixel_bounds(segmentation, height, width), 0
    if not isinstance(segmentation, list):
        raise InputError(f"is a {type(segmentation).__name__}, not polygons or an RLE")
    for polygon in segmentation:
        if not are_finite(polygon):
            raise InputError("has a polygon that is not a list of numbers [x, y, x, y, ...]")
        if len(polygon) % 2:
            raise InputError(f"has a polygon of {len(polygon)} numbers; they come in pairs x, y")
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not polygons:
        raise InputError("has no polygon of at least 3 points")
    edges = [
        pick(pick(polygon[axis::2]) for polygon in polygons)
        for pick in (min, max)
        for axis in (0, 1)
    ]
    sides = (width, height, width, height)
    if any(not -side <= edge <= 2 * side for edge, side in zip(edges, sides, strict=True)):
        # pycocotools allocates by the length of an edge, and its integers overflow
        raise InputError(f"reaches to {edges}, further out than its image's own {width} x {height}")
    return edges, len(segmentation) - len(polygons)


def usable_segmentation(segmentation: Any, height: int, width: int) -> Any:
    """The form that training and evaluation use of a segmentation that :func:`mask_bounds` accepts.

    Polygons of at least 3 points as lists, or a compressed RLE. (pycocotools takes a polygon of 4
    numbers for a box, and if it comes first, all of the object's polygons.)
    """
    if isinstance(segmentation, dict):
        return compressed_rle(segmentation, height, width)
    return [list(polygon) for polygon in segmentation if len(polygon) >= 6]


def as_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A segmentation that :func:`mask_bounds` accepts as one compressed RLE."""
    usable = usable_segmentation(segmentation, height, width)
    if isinstance(usable, dict):
        return usable
    return mask_util.merge(mask_util.frPyObjects(usable, height, width))


def rle_of(mask: np.ndarray) -> dict[str, Any]:
    """A mask ``[height, width]`` as a compressed RLE, as json takes it."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def pixel_bounds(segmentation: Any, height: int, width: int) -> list[float]:
    """The [x0, y0, x1, y1] of the mask's pixels."""
    x, y, w, h = mask_util.toBbox(as_rle(segmentation, height, width)).tolist()
    return [x, y, x + w, y + h]


def mask_areas(segmentation: Any, height: int, width: int) -> Iterator[float]:
    """The areas that may stand beside a segmentation which :func:`mask_bounds` accepts.

    Yields:
        For polygons first what they enclose, as COCO's own files have it; then, at the cost of
        drawing them, and for an RLE, the mask's number of pixels.
    """
    if isinstance(segmentation, list):
        yield sum(_enclosed(polygon) for polygon in segmentation if len(polygon) >= 6)
    yield float(mask_util.area(as_rle(segmentation, height, width)))


def _enclosed(polygon: list[float]) -> float:
    """The area of [x, y, x, y, ...] by the shoelace formula."""
    x, y = polygon[::2], polygon[1::2]
    there, back = map(mul, x, y[1:] + y[:1]), map(mul, x[1:] + x[:1], y)
    return abs(sum(there) - sum(back)) / 2


def compressed_rle(rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """An RLE as pycocotools reads it, compressed if it was not.

    Raises:
        InputError: saying what is wrong with it, if it is not one of an image of this size.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width] or set(map(type, size)) != {int}:
        raise InputError(f"RLE size is {size}, but its image's is {[height, width]}")
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts):
            raise InputError("RLE counts are not all whole numbers of at least 0")
        if counts and max(counts) > height * width:
            raise InputError(f"RLE counts hold {max(counts)}, but its image has {height * width}")
        runs = np.asarray(counts, dtype=np.int64)
    elif isinstance(counts, str):
        runs = run_lengths(counts)
    else:
        raise InputError(f"RLE counts are a {type(counts).__name__}, not a list or a string")
    if (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        raise InputError(
            f"RLE counts add up to {runs.sum()} pixels, but its image has {height * width}"
        )
    return mask_util.frPyObjects(rle, height, width) if isinstance(counts, list) else rle


def run_lengths(counts: str) -> np.ndarray:
    """Run lengths of COCO's compressed RLE, which pycocotools does not tell.

    Each is written in 5-bit digits, lowest first, from character 48; bit 32 says that another
    digit follows, bit 16 of the last one is the sign. From the fourth on, a run is stored as the
    difference to the run before the last.
    """
    try:
        digits = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise InputError("RLE counts are not a compressed RLE string") from None
    if not digits.size or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise InputError("RLE counts are not a compressed RLE string")
    ends = np.flatnonzero(digits & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 8:
        raise InputError("RLE counts are not a compressed RLE string")
    shifts = 5 * (np.arange(digits.size) - np.repeat(starts, lengths))
    values = np.add.reduceat((digits & 31) << shifts, starts)
    values -= ((digits[ends] & 16) > 0) * (np.int64(1) << (5 * lengths))
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    return runs
