"""Changes of an image's values, drawn from a config: brightness to noise, for any bands and depth.

Brightness, contrast and saturation equal detectron2's ``RandomBrightness``, ``RandomContrast`` and
``RandomSaturation``, draw by draw; detectron2 has no hue, blur and noise. All are drawn from
numpy's global generator, one after the other in that order, after the geometry.

Values of 8 bits stay uint8, deeper ones float32 in 0..1. Saturation and hue are of colours (RGB and
BGR); the others of any number of bands.

Deliberate deviations from detectron2:
  * deeper values are clipped to 0..1, as those of 8 bits are to 0..255; detectron2 clips only 8
    bits.
  * the bands of ``INPUT.FORMAT raw`` keep their own means when the contrast changes: with the mean
    of all, a dark band would become bright.
  * BGR images are treated as BGR in saturation; detectron2 takes blue for red.

References:
    detectron2 (Apache-2.0), ``data/transforms/augmentation_impl.py``.
"""

# ruff: noqa: NPY002 - numpy's global generator is what the loop seeds and what detectron2 draws from

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torchvision.transforms.functional import adjust_hue

from images.files import EIGHT_BITS

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue


def change_values(image: np.ndarray, config: Any) -> np.ndarray:
    """Draw what the config changes, and change it.

    Args:
        image: ``[H, W, C]``, uint8 or float32 in 0..1, in the channel order of ``INPUT.FORMAT``.
        config: this project's or detectron2's.

    Returns:
        The same kind of array; ``image`` itself where nothing is to change.
    """
    options, colours = config.INPUT.AUGMENTATION, config.INPUT.FORMAT
    if limit := options.BRIGHTNESS:
        image = blended(image, 0, _factor(limit))
    if limit := options.CONTRAST:
        factor = _factor(limit)
        mean = image.mean((0, 1)) if colours == "raw" else image.mean()
        image = blended(image, mean, factor)
    if limit := options.SATURATION:
        factor = _factor(limit)
        luma = LUMA[::-1] if colours == "BGR" else LUMA
        image = blended(image, image.dot(luma)[:, :, np.newaxis], factor)
    if limit := options.HUE:
        image = hue_turned(image, np.random.uniform(-limit, limit), is_bgr=colours == "BGR")
    if limit := options.BLUR:
        image = blurred(image, np.random.uniform(0, limit))
    if limit := options.NOISE:
        image = noisy(image, np.random.uniform(0, limit))
    return image


def _factor(limit: float) -> float:
    return np.random.uniform(1 - limit, 1 + limit)


def blended(image: np.ndarray, other: Any, weight: float) -> np.ndarray:
    """``weight * image + (1 - weight) * other``, cut off at black and white.

    8-bit values are rounded down, as detectron2 does.
    """
    mixed = (1 - weight) * other + weight * image.astype(np.float32)
    return np.clip(mixed, 0, _white(image)).astype(image.dtype)


def hue_turned(image: np.ndarray, turns: float, is_bgr: bool = False) -> np.ndarray:
    """The colours turned on their circle, by at most half a turn either way."""
    rgb = image[:, :, ::-1] if is_bgr else image
    tensor = torch.from_numpy(np.array(rgb, order="C")).permute(2, 0, 1)
    turned = adjust_hue(tensor, turns).permute(1, 2, 0).numpy()
    return turned[:, :, ::-1] if is_bgr else turned


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Each band under a Gaussian of ``sigma`` pixels; the border's values go on beyond it."""
    smooth = gaussian_filter(image.astype(np.float32), (sigma, sigma, 0), mode="nearest")
    return _as_values(smooth, image)


def noisy(image: np.ndarray, sigma: float) -> np.ndarray:
    """With Gaussian noise; its deviation is ``sigma`` times the range from black to white."""
    noise = np.random.standard_normal(image.shape).astype(np.float32)
    return _as_values(image + np.float32(sigma * _white(image)) * noise, image)


def _white(image: np.ndarray) -> float:
    return EIGHT_BITS if image.dtype == np.uint8 else 1.0


def _as_values(changed: np.ndarray, image: np.ndarray) -> np.ndarray:
    """float32 as values of the image's kind: to the nearest level, cut off at black and white."""
    levels = np.rint(changed) if image.dtype == np.uint8 else changed
    return np.clip(levels, 0, _white(image)).astype(image.dtype)
