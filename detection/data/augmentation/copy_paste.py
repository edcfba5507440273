"""Copy-Paste: objects of another training image, pasted onto an image.

Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation",
arXiv 2012.07177, section 3: both images are jittered in scale and flipped, a random subset of the
objects of one is pasted onto the other without blending, masks below are cut, boxes are those of
what is left, and objects that are fully covered are dropped.

Deliberate deviation: where the two images differ in height or width, the smaller lies at a random
place along the larger, instead of at the upper left corner.
"""

# ruff: noqa: NPY002 - numpy's global generator is what the loop seeds

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Objects(NamedTuple):
    """An image and its objects; both engines' samples are made from it.

    Attributes:
        image: ``[C, H, W]``, 0 to 255, uint8 or float32.
        masks: bool ``[N, H, W]``.
        labels: int64 ``[N]``.
    """

    image: Tensor
    masks: Tensor
    labels: Tensor


def copy_paste(
    options: Any, target: Objects, count: int, read: Callable[[int, float], Objects]
) -> Objects:
    """Draw whether to paste, from which image, which objects and where; then paste.

    Returns the target unchanged if nothing is pasted.

    Args:
        options: the section ``INPUT`` of a config.
        count: images to draw from.
        read: the augmented image of an index, its size multiplied by a scale.
    """
    chosen = options.AUGMENTATION.COPY_PASTE
    if np.random.uniform() >= chosen.PROBABILITY:
        return target
    index, scale = np.random.randint(count), 1.0
    if not options.LSJ.ENABLED:
        scale = np.random.uniform(chosen.MIN_SCALE, chosen.MAX_SCALE)
    source = read(int(index), scale)
    spare = np.subtract(target.image.shape[1:], source.image.shape[1:])
    y, x = np.rint(spare * np.random.uniform(size=2)).astype(int)
    subset = torch.from_numpy(np.random.uniform(size=len(source.labels)) < 0.5)
    return pasted(target, source, subset, int(x), int(y))


def pasted(target: Objects, source: Objects, subset: Tensor, x: int, y: int) -> Objects:
    """The target with some of the source's objects on it.

    Args:
        subset: bool, which of the source's objects.
        x, y: where the source's upper left corner lies in the target, or outside of it.

    Returns:
        The objects of the target, then those of the source, without those that are fully
        covered.
    """
    image, other = target.image, source.image
    if image.dtype != other.dtype:  # files of different depth
        image, other = image.float(), other.float()
    height, width = image.shape[1:]
    masks = _placed(source.masks[subset], height, width, x, y)
    covered = masks.any(0)
    image = torch.where(covered, _placed(other, height, width, x, y), image)
    masks = torch.cat([target.masks & ~covered, masks])
    labels = torch.cat([target.labels, source.labels[subset]])
    seen = masks.flatten(1).any(1)
    return Objects(image, masks[seen], labels[seen])


def _placed(layers: Tensor, height: int, width: int, x: int, y: int) -> Tensor:
    """``[N, h, w]`` -> ``[N, height, width]``, its corner at (x, y), zeros elsewhere."""
    canvas = layers.new_zeros(len(layers), height, width)
    rows, columns = layers.shape[1:]
    top, left = max(y, 0), max(x, 0)
    bottom, right = max(min(y + rows, height), top), max(min(x + columns, width), left)
    canvas[:, top:bottom, left:right] = layers[:, top - y : bottom - y, left - x : right - x]
    return canvas


def tight_boxes(masks: Tensor) -> Tensor:
    """bool ``[N, H, W]`` -> float32 ``[N, 4]`` around the pixels; zeros for an empty mask."""
    boxes = torch.zeros(len(masks), 4)
    for box, mask in zip(boxes, masks, strict=True):
        if mask.any():
            x, y = mask.any(0).nonzero(), mask.any(1).nonzero()
            box.copy_(torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1]))
    return boxes
