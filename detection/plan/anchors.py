"""Choose anchors by the sizes and shapes of the labelled objects, without any training.

The overlap (IoU) of an object with an anchor at the same centre is ``min(w, w') * min(h, h') /
union``. The region proposal network counts an anchor with an overlap of 0.7 as an object (Faster
R-CNN, arXiv 1506.01497, 3.1.2), and where no anchor reaches that it learns from the best one. So,
from a short list of usual sizes and ratios, those are taken for which the objects' best overlaps
have the highest mean.
"""

from __future__ import annotations

import numpy as np

LEVELS = 5
FIRST_SIZES = (4, 6, 8, 12, 16, 24, 32)  # of the level of stride 4; twice as large on the next
USUAL_RATIOS = (0.5, 1.0, 2.0)  # detectron2's, height / width
QUANTILES = (10, 50, 90)  # percentiles of the objects' ratios
WIDE_QUANTILES = (5, 25, 50, 75, 95)
GAIN = 0.02  # least gain of mean overlap for which other ratios than the usual are taken


def best_overlap(boxes: np.ndarray, sizes: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """The overlap (IoU) of each object with the anchor that fits it best, centres put together.

    Args:
        boxes: ``[M, 2]``, width and height.
        sizes: ``[S]``, square roots of anchors' areas.
        ratios: ``[R]``, heights / widths.
    """
    widths = (sizes[:, None] / np.sqrt(ratios)).ravel()
    heights = (sizes[:, None] * np.sqrt(ratios)).ravel()
    best = np.zeros(len(boxes))
    for width, height in zip(widths, heights, strict=True):  # no [M, S * R]: M may be a million
        common = np.minimum(boxes[:, 0], width) * np.minimum(boxes[:, 1], height)
        union = boxes.prod(1) + width * height - common
        best = np.maximum(best, common / union)
    return best


def ladder(first: float) -> np.ndarray:
    """The sizes of all levels, each twice the one before, as its stride is."""
    return first * 2.0 ** np.arange(LEVELS)


def fitted_anchors(boxes: np.ndarray) -> tuple[list[int], list[float], float, float]:
    """Sizes and ratios for objects at the size at which they are trained.

    Args:
        boxes: ``[M, 2]``, width and height in the pixels of a training sample.

    Returns:
        The size on each level, the ratios, and the mean best overlap with them and with
        detectron2's 32 to 512.
    """
    usual = np.array(USUAL_RATIOS)
    means = {first: best_overlap(boxes, ladder(first), usual).mean() for first in FIRST_SIZES}
    first = max(FIRST_SIZES, key=lambda one: (round(means[one], 3), one))
    ratios, found = usual, means[first]
    shapes = np.log(boxes[:, 1] / boxes[:, 0])
    for quantiles in (QUANTILES, WIDE_QUANTILES):
        others = np.unique(np.round(np.exp(np.percentile(shapes, quantiles)), 2))
        others = others[others > 0]
        if (mean := best_overlap(boxes, ladder(first), others).mean()) > found + GAIN:
            ratios, found = others, mean
    return ladder(first).astype(int).tolist(), ratios.tolist(), float(found), float(means[32])
