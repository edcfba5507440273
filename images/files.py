"""Reads image files as arrays, by the same rules for every task.

Files may have any number of channels of integers of 8 to 32 bits or real numbers; EXIF's
orientation is applied. If the number of channels is not the wanted one, only these conversions are
made:

* a palette, CMYK or YCbCr counts as RGB;
* a channel that the file declares to be alpha is dropped;
* one channel becomes three by repetition;
* three become one by ITU-R 601 luma, 0.299 R + 0.587 G + 0.114 B, after alpha is dropped.

Values are scaled to 0 to 1. 8-bit values stay uint8 and stand for value / 255. Other integers
become float32, divided by the largest value that the file declares (TIFF's ``BitsPerSample``,
DICOM's ``BitsStored``, PNM's maximum), else by that of their type. Real numbers stay as they are. A
stated range of values (``--value-range``, ``INPUT.VALUE_RANGE``) replaces these rules: its ends
become 0 and 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from images.formats import open_any
from images.picture import EIGHT_BITS, ImageError, Picture

__all__ = [
    "EIGHT_BITS", "ImageError", "Picture", "Reading", "as_range", "open_picture",
    "range_problems", "read_image",
]  # fmt: skip

THIRTY_TWO_BITS = 2**32 - 1
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Reading:
    """How a run reads its image files.

    Args:
        channels: wanted number of channels; None for as many as the file has, alpha included.
        converts: whether grey may become RGB and RGB grey.
        value_range: the values that become 0 and 1; None for the rules of this module's header.
        channels_setting, range_setting: the flag or key to change, for messages.
        all_channels: the setting that takes ``{}`` channels as they are, for messages; "" for a
            finished model, whose channels cannot change.
        show_bands: numbers of the one or three channels, counted from 1, that pictures show; () for
            the first three.
        by_parts: whether images are read part by part (:mod:`images.windows`), so that they may be
            larger than an image that is decoded as a whole.
    """

    channels: int | None = 3
    converts: bool = True
    value_range: tuple[float, float] | None = None
    channels_setting: str = "--in-chans"
    range_setting: str = "--value-range"
    all_channels: str = "--in-chans {}"
    by_parts: bool = False
    show_bands: tuple[int, ...] = ()

    def check(self, picture: Picture) -> None:
        """Check that the picture has the wanted channels, or can be converted to them.

        Raises:
            ImageError: if none does, or nothing tells the scale of its values.
        """
        if picture.white is not None and picture.white > THIRTY_TWO_BITS and not self.value_range:
            raise ImageError(
                "holds integers of 64 bits, and nothing tells which of them is white; save 8 to 32 "
                f"bits, or state the values that are black and white by {self.range_setting}"
            )
        wanted = self.channels
        if wanted in (None, picture.channels, picture.colours):
            return
        if self.converts and (picture.colours, wanted) in ((1, 3), (3, 1)):
            return
        taken = self.all_channels.format(picture.channels)
        rules = "grey to 3, RGB to 1 and a dropped alpha are converted"
        raise ImageError(
            f"has {picture.channels} channel(s), not the {wanted} of {self.channels_setting}; only "
            f"{rules if self.converts else 'a dropped alpha is converted'}"
            + (f"; to take them as they are: {taken}" if taken else "")
            + (f" ({picture.note})" if picture.note else "")
        )

    def is_eight_bit(self, picture: Picture) -> bool:
        """Whether its values stay 8 bits."""
        return picture.eight_bit and self.value_range in (None, (0, EIGHT_BITS))

    def read(self, picture: Picture, shrink: int = 1) -> np.ndarray:
        """Read a whole picture: ``[h, w, channels]``, uint8, or float32 in 0..1.

        Args:
            shrink: see :meth:`Picture.pixels`.

        Raises:
            ImageError: if it is damaged, its channels cannot become these, or a value is NaN,
                infinite or outside of the stated range.
        """
        self.check(picture)
        return self.values(picture, picture.pixels(shrink))

    def values(self, picture: Picture, pixels: np.ndarray) -> np.ndarray:
        """A part of a checked picture's pixels, converted and scaled, see :meth:`read`."""
        wanted = self.channels or picture.channels
        return self._scaled(picture, converted(pixels, picture.alpha, wanted))

    def _scaled(self, picture: Picture, pixels: np.ndarray) -> np.ndarray:
        if self.is_eight_bit(picture):
            return pixels
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise ImageError("holds NaN or infinite values; fill them or remove it")
        low, high = self.value_range or (None, picture.white)
        if high is None:
            return pixels.astype(np.float32)
        least = 0 if low is None else low
        lowest, highest = (pixels.min(), pixels.max()) if pixels.size else (least, high)
        if highest > high or (low is not None and lowest < low):
            said = "the bits that the file states" if low is None else self.range_setting
            raise ImageError(
                f"holds values from {lowest} to {highest}, beyond the {least:g} to {high:g} of "
                f"{said}; give the range that holds all images' values by {self.range_setting}"
            )
        if low is None or low == 0:
            return pixels.astype(np.float32) / np.float32(high)
        return ((pixels.astype(np.float64) - low) / (high - low)).astype(np.float32)


def range_problems(value_range: Sequence[float] | None) -> list[str]:
    """A message if the given range of values is wrong."""
    if value_range is None or (len(value_range) == 2 and value_range[0] < value_range[1]):
        return []
    given = " ".join(f"{value:g}" for value in value_range)
    return [f"--value-range is {given}; give LOW and HIGH, the first below the second"]


def as_range(values: Sequence[float] | None) -> tuple[float, float] | None:
    """Two numbers as a range; None for none."""
    return (values[0], values[1]) if values else None


def open_picture(file: BinaryIO) -> Picture:
    """Read an image file's header.

    Raises:
        ImageError: if it is no image that can be read.
    """
    return open_any(file)


def read_image(path: str | Path, reading: Reading) -> np.ndarray:
    """An image file as ``[h, w, channels]``: uint8, or float32 in 0..1.

    Raises:
        FileNotFoundError: if it does not exist.
        ImageError: naming it, if it cannot be used.
    """
    try:
        with open(path, "rb") as file:
            return reading.read(open_picture(file))
    except ImageError as error:
        raise ImageError(f"{path} {error}") from error


def converted(pixels: np.ndarray, alpha: bool, channels: int) -> np.ndarray:
    """``[h, w, C]`` -> ``[h, w, channels]`` by the rules of this module's header.

    Args:
        pixels: of a picture that has passed :meth:`Reading.check`.
        alpha: whether the last channel is alpha.
    """
    if pixels.shape[-1] == channels:
        return pixels
    colours = pixels[..., : pixels.shape[-1] - alpha]
    if colours.shape[-1] == channels:
        return colours
    if channels != 1:
        return colours.repeat(channels, axis=-1)
    if colours.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(colours)).convert("L"))[..., None]
    luma = colours.astype(np.float32) @ LUMA[:, None]
    return luma if colours.dtype.kind == "f" else np.rint(luma).astype(colours.dtype)


def pixel_digest(pixels_hwc: np.ndarray) -> str:
    """SHA-256 of pixels ``[H, W, C]``; a grey image saved as RGB has the same."""
    if pixels_hwc.shape[2] == 1:
        pixels_hwc = pixels_hwc.repeat(3, axis=2)
    return hashlib.sha256(repr(pixels_hwc.shape).encode() + pixels_hwc.tobytes()).hexdigest()
