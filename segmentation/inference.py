"""Predicts class scores of an image: as a whole or by a sliding window, with scales and flips.

In overlapping windows, logits are averaged over the windows that see a pixel. Scales and flips are
averaged as probabilities, as in mmsegmentation. Scores are resized to the image's own size before
the largest is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmentation.model import UPerNet
from segmentation.transforms import fitted, resize_image
from segmentation.upernet import resize


@dataclass(frozen=True)
class InferenceOptions:
    """How an image is predicted."""

    # long and short side, in pixels, that it is fitted into; None keeps its size
    scale: tuple[int, int] | None = (2048, 512)
    # height and width of the sliding window; None predicts the whole image
    window: tuple[int, int] | None = None
    stride: tuple[int, int] = (341, 341)  # of the window
    scales: tuple[float, ...] = (1.0,)  # factors of ``scale`` whose probabilities are averaged
    flip: bool = False  # average with the mirrored image, too


@torch.no_grad()
def segment(model: UPerNet, image_hwc: np.ndarray, testing: InferenceOptions) -> Tensor:
    """Scores of an image ``[K, H, W]`` float32: logits, or probabilities of several views.

    Args:
        model: in evaluation mode, on its device.
        image_hwc: the image, in the config's channel order.
    """
    views = view_logits(model, image_hwc, testing)
    total: Tensor | None = None
    for logits in views:
        if logits.shape[-2:] != image_hwc.shape[:2]:
            logits = resize(logits[None], size=image_hwc.shape[:2])[0]
        scores = logits if len(views) == 1 else logits.softmax(0) / len(views)
        total = scores if total is None else total + scores
    assert total is not None
    return total


@torch.no_grad()
def view_logits(model: UPerNet, image_hwc: np.ndarray, testing: InferenceOptions) -> list[Tensor]:
    """Logits ``[K, h, w]`` of each view of an image, at the view's size and not mirrored."""
    found = []
    for view, mirrored in _views(image_hwc, testing):
        tensor = torch.from_numpy(view.copy()).permute(2, 0, 1)
        logits = window_logits(model, tensor, testing)
        found.append(logits.flip(-1) if mirrored else logits)
    return found


def _views(image: np.ndarray, testing: InferenceOptions) -> Iterator[tuple[np.ndarray, bool]]:
    """The image at each scale, and whether it is mirrored."""
    for factor in testing.scales:
        scale = testing.scale or (max(image.shape[:2]), min(image.shape[:2]))
        size = fitted(image.shape[:2], (scale[0] * factor, scale[1] * factor))
        same = size == image.shape[:2]
        view = image if same else resize_image(image, size)
        yield view, False
        if testing.flip:
            yield view[:, ::-1], True


def window_logits(model: UPerNet, image_chw: Tensor, testing: InferenceOptions) -> Tensor:
    """Logits ``[K, H, W]`` of an image at its own size, by windows or as a whole."""
    height, width = image_chw.shape[1:]
    if testing.window is None:
        return model([{"image": image_chw}])[0]
    tops = starts(height, testing.window[0], testing.stride[0])
    lefts = starts(width, testing.window[1], testing.stride[1])
    total: Tensor | None = None
    seen = torch.zeros(height, width)
    for top in tops:
        for left in lefts:
            rows = slice(top, min(top + testing.window[0], height))
            columns = slice(left, min(left + testing.window[1], width))
            logits = model([{"image": image_chw[:, rows, columns]}])[0]
            if total is None:
                total = logits.new_zeros(len(logits), height, width)
            total[:, rows, columns] += logits
            seen[rows, columns] += 1
    assert total is not None
    return total / seen.to(total.device)


def starts(side: int, window: int, stride: int) -> list[int]:
    """The starts of windows along a side, so that they cover it without leaving it."""
    last = max(side - window, 0)
    return [min(start, last) for start in range(0, last + stride, stride)]
