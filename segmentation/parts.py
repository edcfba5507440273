"""Predicts class maps of large images from top to bottom, in memory independent of their size.

Images of more than ``WHOLE`` pixels are predicted

* at their own size (``TEST.SCALE`` [0, 0]): tile by tile, each with a margin that is discarded, so
  that only one tile's scores of all classes are in memory;
* fitted into ``TEST.SCALE``: as a whole, because the resized image is small. The scores are
enlarged
  to the image's size a few rows at a time. An image that is too large to be decoded as a whole is
  first shrunk, by means over squares of pixels, to at least ``FINER`` times the size of the scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from images.windows import Windows
from segmentation.config import inference_options
from segmentation.engine import model_pixels
from segmentation.inference import InferenceOptions, segment, view_logits
from segmentation.model import UPerNet

WHOLE = 4_000_000  # pixels
TILE, MARGIN = 1536, 128  # side of a tile, and margin around it, in pixels
FINER = 2
SCORES = 2**25  # most scores in memory while rows are resized


def class_bands(model: UPerNet, image: Windows, config: CfgNode) -> Iterator[np.ndarray]:
    """Yield the class index of every pixel, uint8 ``[rows, width]``, from top to bottom.

    Args:
        model: in evaluation mode, on its device.
    """
    options = inference_options(config)
    if image.height * image.width <= WHOLE:
        pixels = model_pixels(image.read(0, 0, image.width, image.height), config)
        yield segment(model, pixels, options).argmax(0).to(torch.uint8).cpu().numpy()
    elif options.scale is None:
        yield from _by_tiles(model, image, config, options)
    else:
        most = None
        if image.too_large:
            largest = max(options.scales) * FINER
            most = int(options.scale[0] * options.scale[1] * largest**2)
        pixels = model_pixels(image.shrunk(most), config)
        views = view_logits(model, pixels, options)
        rows = max(1, SCORES // (len(views[0]) * image.width))
        for top in range(0, image.height, rows):
            stop = min(top + rows, image.height)
            yield _resized_rows(views, range(top, stop), image.height, image.width)


def _by_tiles(
    model: UPerNet, image: Windows, config: CfgNode, options: InferenceOptions
) -> Iterator[np.ndarray]:
    for top in range(0, image.height, TILE):
        band = np.empty((min(TILE, image.height - top), image.width), np.uint8)
        y0, y1 = max(0, top - MARGIN), min(top + TILE + MARGIN, image.height)
        for left in range(0, image.width, TILE):
            x0, x1 = max(0, left - MARGIN), min(left + TILE + MARGIN, image.width)
            part = model_pixels(image.read(x0, y0, x1 - x0, y1 - y0), config)
            found = segment(model, part, options).argmax(0).to(torch.uint8).cpu().numpy()
            inner = found[top - y0 : top - y0 + TILE, left - x0 : left - x0 + TILE]
            band[:, left : left + TILE] = inner
        yield band


def _resized_rows(views: Sequence[Tensor], rows: range, height: int, width: int) -> np.ndarray:
    """The best class of each pixel, for some rows of the bilinearly resized scores."""
    total: Tensor | None = None
    for logits in views:
        part = _between(logits, rows, height, axis=1)
        part = _between(part, range(width), width, axis=2)
        scores = part if len(views) == 1 else part.softmax(0) / len(views)
        total = scores if total is None else total + scores
    assert total is not None
    return total.argmax(0).to(torch.uint8).cpu().numpy()


def _between(values: Tensor, places: range, length: int, axis: int) -> Tensor:
    """Interpolate along an axis at some places, as ``interpolate(align_corners=False)`` does."""
    known = values.shape[axis]
    at = (torch.arange(places.start, places.stop, dtype=torch.float64) + 0.5) * known / length - 0.5
    at = at.clamp(0, known - 1)
    low = at.floor().long().clamp(max=max(known - 2, 0))
    shape = [1] * values.ndim
    shape[axis] = -1
    weight = (at - low).to(values).view(shape)
    low = low.to(values.device)
    high = (low + 1).clamp(max=known - 1)
    return values.index_select(axis, low) * (1 - weight) + values.index_select(axis, high) * weight
