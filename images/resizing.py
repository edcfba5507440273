"""Resizing by Pillow (antialiased) for any number of channels and both kinds of values.

8-bit grey and RGB images are resized as in detectron2. With other numbers of channels, each channel
is resized alone, because Pillow would treat the fourth as alpha. So are float32 values, without
rounding. The geometry is the same for all.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def resized(pixels: np.ndarray, height: int, width: int, resample: Image.Resampling) -> np.ndarray:
    """``[H, W]`` or ``[H, W, C]`` of uint8 or float32 -> the same kind of ``height x width``."""
    size = (width, height)
    if pixels.ndim == 2 or (pixels.dtype == np.uint8 and pixels.shape[2] == 3):
        return np.asarray(Image.fromarray(pixels).resize(size, resample))
    bands = (np.ascontiguousarray(band) for band in np.moveaxis(pixels, -1, 0))
    images = (Image.fromarray(band).resize(size, resample) for band in bands)
    return np.stack([np.asarray(image) for image in images], axis=-1)
