"""Computes metrics of class maps from one integer confusion matrix of a whole data set.

Two conventions of the mean IoU are in use. They differ for a class without a pixel in the truth:
detectron2 leaves it out; mmsegmentation counts it as 0 if it is predicted anywhere. Both are
computed, each equal to that project's own code.

Boundary IoU (arXiv 2103.16562) compares only pixels within a distance of each region's boundary:
0.02 of the image's diagonal, as in its authors' code. Its pixels are summed over the set.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from segmentation.upernet import IGNORED

BOUNDARY = 0.02  # distance, as a fraction of the image's diagonal


class ConfusionMatrix:
    """Counts pixels; add up those of several processes by ``+=``.

    Args:
        num_classes: K.
        boundary: whether to count boundary pixels, too, which takes most of the time.

    Attributes:
        counts: int64 ``[K, K]``, rows are the truth, columns the prediction.
        boundary: int64 ``[K, 3]``: for each class, the intersection of its boundaries, and their
            sizes in truth and prediction; None if not counted.
    """

    def __init__(self, num_classes: int, boundary: bool = True) -> None:
        self.counts = np.zeros((num_classes, num_classes), np.int64)
        self.boundary = np.zeros((num_classes, 3), np.int64) if boundary else None

    def add(self, truth_hw: np.ndarray, prediction_hw: np.ndarray) -> np.ndarray:
        """Count the pixels of class maps ``[H, W]``, except where the truth is ``IGNORED``.

        Returns:
            The counts of this image, ``[K, K]``.
        """
        classes = len(self.counts)
        labelled = truth_hw != IGNORED
        truth, prediction = truth_hw[labelled].astype(np.int64), prediction_hw[labelled]
        counts = np.bincount(truth * classes + prediction, minlength=classes**2)
        counts = counts.reshape(classes, classes)
        self.counts += counts
        if self.boundary is not None:
            present = np.flatnonzero(counts.sum(0) + counts.sum(1))
            for k in present:
                of_truth = boundary_region((truth_hw == k) & labelled)
                of_prediction = boundary_region((prediction_hw == k) & labelled)
                both = (of_truth & of_prediction).sum()
                self.boundary[k] += both, of_truth.sum(), of_prediction.sum()
        return counts

    def __iadd__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        self.counts += other.counts
        if self.boundary is not None and other.boundary is not None:
            self.boundary += other.boundary
        return self


def boundary_region(mask_hw: np.ndarray) -> np.ndarray:
    """The pixels of a mask within the distance of its edge or the image's edge; bool."""
    height, width = mask_hw.shape
    distance = max(1, round(BOUNDARY * float(np.hypot(height, width))))
    padded = cv2.copyMakeBorder(mask_hw.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return mask_hw & ~inner.astype(bool)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole`` in percent; NaN if the whole is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, 100 * part / whole, np.nan)


def segmentation_metrics(matrix: ConfusionMatrix, class_names: list[str]) -> dict[str, Any]:
    """All metrics in percent; None for those without a pixel to measure.

    Returns:
        ``{"sem_seg": {"mIoU", "mIoU_mmseg", "mACC", "pACC", "fwIoU", "boundary_IoU"},
        "per_class": {name: {"IoU", "ACC", "boundary_IoU", "pixels", "predicted_pixels"}},
        "counts": {"pixels", "classes_in_truth"}}``. ``mIoU`` is detectron2's, ``mIoU_mmseg``
        mmsegmentation's; ``mACC`` is the mean of the classes' accuracies (recalls), ``pACC`` that
        of all pixels, ``fwIoU`` the mean IoU weighted by the classes' pixels.
    """
    counts = matrix.counts.astype(np.float64)
    hits, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    union = truth + predicted - hits
    iou, accuracy = _share(hits, union), _share(hits, truth)
    in_truth = truth > 0
    boundary = np.full(len(hits), np.nan)
    if matrix.boundary is not None:
        both, of_truth, of_prediction = matrix.boundary.astype(np.float64).T
        boundary = _share(both, of_truth + of_prediction - both)
    means = {
        "mIoU": iou[in_truth],
        "mIoU_mmseg": iou[union > 0],
        "mACC": accuracy[in_truth],
        "boundary_IoU": boundary[in_truth],
    }
    summary = {name: _mean(values) for name, values in means.items()}
    total = truth.sum()
    summary["pACC"] = float(100 * hits.sum() / total) if total else None
    weighted = (iou[in_truth] * truth[in_truth] / total).sum() if total else None
    summary["fwIoU"] = float(weighted) if weighted is not None else None
    return {
        "sem_seg": summary,
        "per_class": {
            name: {
                "IoU": _number(iou[k]),
                "ACC": _number(accuracy[k]),
                "boundary_IoU": _number(boundary[k]),
                "pixels": int(truth[k]),
                "predicted_pixels": int(predicted[k]),
            }
            for k, name in enumerate(class_names)
        },
        "counts": {"pixels": int(total), "classes_in_truth": int(in_truth.sum())},
    }


def _mean(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
