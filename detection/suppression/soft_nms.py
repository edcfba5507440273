"""Soft non-maximum suppression: overlapping detections lose score instead of being removed.

Both engines call this function after their box heads (``MODEL.ROI_HEADS.SOFT_NMS``); neither
detectron2 nor torchvision has soft-NMS. Proposals are still suppressed by ordinary NMS.

The greedy loop takes the best detection of *all* classes in each step, not of one class after the
other. The result is the same, since classes do not affect each other and a score never rises; and
the detections come out best first, so that the loop ends after as many as are wanted.

References:
    "Soft-NMS: Improving Object Detection With One Line of Code" (arXiv 1704.04503), Figure 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SoftNMS:
    """How the scores of overlapping detections decay, as a function of the detections.

    Args:
        method: "linear" multiplies a score by 1 - IoU where the IoU with a better detection of
            the class is at least ``threshold``; "gaussian" by exp(-IoU^2 / ``sigma``).
        threshold: IoU; of "linear" alone.
        sigma: of "gaussian" alone.
        min_score: detections whose score decays below are dropped.
    """

    method: Literal["linear", "gaussian"] = "linear"
    threshold: float = 0.5
    sigma: float = 0.5
    min_score: float = 0.001

    @classmethod
    def from_config(cls, config: Any) -> SoftNMS | None:
        """The soft-NMS that a config asks for (``MODEL.ROI_HEADS``); None for ordinary NMS."""
        heads = config.MODEL.ROI_HEADS
        options = heads.SOFT_NMS
        if not options.ENABLED:
            return None
        return cls(options.METHOD, heads.NMS_THRESH_TEST, options.SIGMA, options.MIN_SCORE)

    def __call__(
        self, boxes: Tensor, scores: Tensor, classes: Tensor, limit: int
    ) -> tuple[Tensor, Tensor]:
        """The best ``limit`` detections of one image (all of them if it is negative).

        Args:
            boxes: ``[N, 4]`` of x0, y0, x1, y1.
            scores, classes: ``[N]``; detections of different classes leave each other alone.

        Returns:
            Indices ``[D]`` of the detections that stay and their decayed scores ``[D]``, best
            first.
        """
        # In numpy: each step is a few operations on the boxes of one class, smaller than what
        # torch and a GPU need to start them.
        low, high = boxes.detach().cpu().numpy().reshape(-1, 2, 2).swapaxes(0, 1)
        left, group = scores.detach().cpu().numpy().copy(), classes.cpu().numpy()
        areas = (high - low).prod(1)
        keep, kept_scores = [], []
        for _ in range(len(left) if limit < 0 else min(limit, len(left))):
            best = left.argmax()
            if left[best] < self.min_score:
                break
            keep.append(best)
            kept_scores.append(left[best])
            rest = np.flatnonzero(group == group[best])
            sides = np.minimum(high[rest], high[best]) - np.maximum(low[rest], low[best])
            overlap = sides.clip(min=0).prod(1)
            union = areas[rest] + areas[best] - overlap
            left[rest] *= self.decay(overlap / np.where(union > 0, union, 1))
            left[best] = -1
        return classes.new_tensor(keep, dtype=torch.int64), scores.new_tensor(kept_scores)

    def decay(self, iou: np.ndarray) -> np.ndarray:
        """The factor by which an overlap of ``iou`` with a better detection lowers a score."""
        if self.method == "gaussian":
            return np.exp(-(iou**2) / self.sigma)
        return np.where(iou >= self.threshold, 1 - iou, 1)
