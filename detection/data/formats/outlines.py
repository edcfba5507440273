"""Polygons: of masks, so that they give the same mask again when they are drawn; of ellipses.

A contour runs along the edges of pixels, not through their centres, so that pycocotools draws
exactly the pixels that it encloses. Holes (and, where a format allows only one polygon,
parts) are joined by a line that runs there and back and so encloses nothing.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
from numpy.typing import ArrayLike

from detection.data.checks.segmentations import as_rle


def outlines(segmentation: Any, height: int, width: int) -> list[list[float]]:
    """A polygon [x, y, x, y, ...] for each part of a mask, its holes joined to it."""
    return [part.reshape(-1).tolist() for part in _parts(segmentation, height, width)]


def joined_outline(segmentation: Any, height: int, width: int) -> list[float]:
    """One polygon for the whole mask; empty for an empty one."""
    parts = _parts(segmentation, height, width)
    if not parts:
        return []
    outline = parts[0]
    for part in parts[1:]:
        outline = _joined(outline, part)
    return outline.reshape(-1).tolist()


def _parts(segmentation: Any, height: int, width: int) -> list[np.ndarray]:
    """The outline ``[N, 2]`` of each part, the largest first."""
    rle = as_rle(segmentation, height, width)
    x, y, w, h = (int(value) for value in mask_util.toBbox(rle))
    if not w or not h:
        return []
    crop = mask_util.decode(rle)[y : y + h, x : x + w]
    # of twice the size, the centre of each border pixel stands for the corner or edge that it is at
    double = np.pad(crop.repeat(2, 0).repeat(2, 1), 2)
    contours, tree = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    found = []
    for index, contour in enumerate(contours):
        if tree[0][index][3] >= 0:
            continue  # a hole
        outline = _corners(contour, x, y)
        hole = tree[0][index][2]
        while hole >= 0:
            outline = _joined(outline, _corners(contours[hole], x, y))
            hole = tree[0][hole][0]
        found.append(outline)
    return sorted(found, key=len, reverse=True)


def _corners(contour: np.ndarray, x: int, y: int) -> np.ndarray:
    """The corners ``[N, 2]`` of a contour, on the edges of pixels."""
    points = (contour[:, 0].astype(np.int64) - 2 + 1) // 2 + [x, y]
    points = points[(points != np.roll(points, 1, 0)).any(1)]
    step, came = np.roll(points, -1, 0) - points, points - np.roll(points, 1, 0)
    turns = step[:, 0] * came[:, 1] != step[:, 1] * came[:, 0]
    return points[turns].astype(np.float64)


def _joined(outline: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Two closed lines as one, joined by a line between two of their points, there and back."""
    step = max(1, len(outline) // 200)  # near is enough: any two points will do
    some = outline[::step]
    distances = ((some[:, None] - other[None, :: max(1, len(other) // 200)]) ** 2).sum(-1)
    nearest = np.unravel_index(int(distances.argmin()), distances.shape)
    here, there = int(nearest[0]) * step, int(nearest[1]) * max(1, len(other) // 200)
    round_trip = np.roll(other, -there, 0)
    return np.concatenate([outline[: here + 1], round_trip, round_trip[:1], outline[here:]])


def points_of(value: Any) -> np.ndarray | None:
    """A value of a file as points ``[N, 2]``; None if it is no list of pairs of finite numbers."""
    try:
        points = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return (
        points if points.ndim == 2 and points.shape[1] == 2 and np.isfinite(points).all() else None
    )


def enclosed(points: np.ndarray) -> float:
    """The area of a polygon ``[N, 2]`` by the shoelace formula."""
    x, y = points[:, 0], points[:, 1]
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def ellipse(centre: ArrayLike, radii: ArrayLike, degrees: float = 0.0) -> list[float]:
    """A polygon of 64 points on an ellipse, turned clockwise as it is seen."""
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    points = np.stack([np.cos(angles), np.sin(angles)], -1) * np.asarray(radii)
    return (turned(points, degrees) + np.asarray(centre)).reshape(-1).tolist()


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """Points ``[N, 2]`` turned around the origin, clockwise as it is seen (y points down)."""
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])
