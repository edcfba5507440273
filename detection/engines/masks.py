"""From masks in their boxes, as the head predicts them, to masks of the image; for both engines.

A pixel is set where the predicted mask, sampled bilinearly at the pixel's centre and 0 outside of
its box, is at least 0.5. :func:`encode_masks` holds a part of one mask at a time, so that memory
depends neither on the image nor on the number of detections.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from detection.data.windows import encode_strips

PASTE_PIXELS = 2**26  # mask pixels pasted at a time on a GPU: 256 MB of float32
STRIP_PIXELS = 2**21  # of a mask sampled at a time: 8 MB of float32, 16 MB of coordinates


def encode_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """What :func:`paste_masks` gives, as compressed RLE: the same bit for bit.

    Args:
        masks: probabilities ``[D, M, M]``.
        boxes: ``[D, 4]`` in pixels of the image, not empty.
        size: height and width of the image.
    """
    encoded = []
    for mask, box, (x0, y0, x1, y1) in zip(masks, boxes, windows(boxes, size), strict=True):
        columns = max(1, STRIP_PIXELS // max(1, y1 - y0))

        def strips(mask=mask, box=box, x0=x0, y0=y0, x1=x1, y1=y1, columns=columns) -> Iterator:
            for left in range(x0, x1, columns):
                part = (y1 - y0, min(columns, x1 - left))
                inside = sample_masks(mask[None], box[None], (left, y0), part)[0] >= 0.5
                yield inside.cpu().numpy(), left

        encoded.append(encode_strips(strips(), y0, *size))
    return encoded


def paste_masks(masks: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Masks ``[D, M, M]`` (probabilities) in their boxes -> bool ``[D, H, W]``."""
    height, width = image_size
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    if masks.device.type == "cpu":
        for mask, box, canvas, (x0, y0, x1, y1) in zip(
            masks, boxes, pasted, windows(boxes, image_size), strict=True
        ):
            window = canvas[y0:y1, x0:x1]
            window[:] = sample_masks(mask[None], box[None], (x0, y0), window.shape)[0] >= 0.5
        return pasted
    for part in torch.arange(len(masks)).split(max(1, PASTE_PIXELS // (height * width))):
        pasted[part] = sample_masks(masks[part], boxes[part], (0, 0), image_size) >= 0.5
    return pasted


def windows(boxes: Tensor, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """The pixels (x0, y0, x1, y1) that each box can set: a pixel more on each side."""
    height, width = size
    return [
        (
            max(math.floor(x0) - 1, 0),
            max(math.floor(y0) - 1, 0),
            min(math.ceil(x1) + 1, width),
            min(math.ceil(y1) + 1, height),
        )
        for x0, y0, x1, y1 in boxes.tolist()
    ]


def sample_masks(
    masks: Tensor, boxes: Tensor, corner: tuple[int, int], size: torch.Size | tuple[int, int]
) -> Tensor:
    """Masks ``[D, M, M]`` at the centres of the pixels of a window -> ``[D, *size]``.

    Args:
        corner, size: the window's (x, y) of its first pixel and (height, width).
    """
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
    x, y = (
        torch.arange(first, first + count, device=masks.device, dtype=torch.float32) + 0.5
        for first, count in zip(corner, reversed(size), strict=True)
    )
    x, y = (x - x0) / (x1 - x0) * 2 - 1, (y - y0) / (y1 - y0) * 2 - 1
    shape = (len(masks), *size)
    grid = torch.stack((x[:, None, :].expand(shape), y[:, :, None].expand(shape)), dim=-1)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
