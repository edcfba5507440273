"""Makes pictures to look at from images of any number of channels and any depth.

8-bit grey and RGB are shown as they are. Of more channels three are chosen (by default the first
three), and float32 values are stretched: each shown band from its 1st to its 99th percentile.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from images.files import EIGHT_BITS, Reading, open_picture
from images.picture import ImageError
from images.windows import Windows

PERCENTILES = (1, 99)
LARGEST = 2**25  # most pixels of a picture of an image that is only read part by part


def shown(pixels: np.ndarray, bands: Sequence[int] = ()) -> np.ndarray:
    """``[H, W, C]`` uint8 or float32 -> ``[H, W, 3]`` uint8 RGB.

    Args:
        bands: numbers of one or three channels, counted from 1, shown as grey or red, green, blue.

    Raises:
        ImageError: for a band that the image does not have.
    """
    channels = pixels.shape[-1]
    if missing := [band for band in bands if not 1 <= band <= channels]:
        raise ImageError(f"has {channels} channel(s), but bands to show are {missing}")
    chosen = [band - 1 for band in bands] or list(range(3 if channels >= 3 else 1))
    values = pixels[..., chosen]
    if values.dtype != np.uint8:
        values = stretched(values)
    return np.ascontiguousarray(values if len(chosen) == 3 else values.repeat(3, axis=-1))


def bands_problems(bands: Sequence[int] | None, channels: int) -> list[str]:
    """A message for each error in the numbers of the bands to show."""
    given = list(bands or ())
    if len(given) not in (0, 1, 3) or not all(1 <= band <= channels for band in given):
        return [
            f"--show-bands is {' '.join(map(str, given))}; give one or three of the channels 1 to "
            f"{channels}"
        ]
    return []


def stretched(values: np.ndarray) -> np.ndarray:
    """``[H, W, C]`` -> uint8, each channel from its 1st to its 99th percentile."""
    low, high = np.percentile(values, PERCENTILES, axis=(0, 1), keepdims=True)
    scaled = (values - low) / np.where(high > low, high - low, 1)
    return np.rint(scaled.clip(0, 1) * EIGHT_BITS).astype(np.uint8)


def read_shown(path: str | Path, bands: Sequence[int] = ()) -> np.ndarray:
    """An image file as a picture for people, ``[H, W, 3]`` uint8 RGB.

    An image that is only read part by part is shrunk to at most ``LARGEST`` pixels.

    Raises:
        FileNotFoundError, ImageError: if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            picture = open_picture(file)
            channels = picture.channels if bands else picture.colours
            image = Windows(picture, Reading(channels if bands or channels != 1 else 3))
            return shown(image.shrunk(LARGEST if image.too_large else None), bands)
    except ImageError as error:
        raise ImageError(f"{path} {error}") from error
