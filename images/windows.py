"""Reads an image file part by part, so that memory does not depend on the image's size.

TIFFs in strips or tiles and ``.npy`` arrays are never decoded as a whole. All other formats are,
and so is a TIFF that is rotated, has a palette, or consists of one large compressed strip; the log
says so if the image is large.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from images.files import Reading, open_picture
from images.picture import ImageError, Picture
from images.size_limit import size_fault

logger = logging.getLogger(__name__)

BAND_VALUES = 2**24  # number of values in the rows that are read at a time
LARGE = 2**26  # pixels from which the log says that an image is decoded as a whole


class Windows:
    """A picture whose parts are read one by one.

    Args:
        picture: the picture; its file must be open.
        reading: how its pixels become an array.
        name: its name in messages.

    Attributes:
        by_parts: whether only the requested parts are decoded.

    Raises:
        ImageError: if the picture cannot become such an array.
    """

    def __init__(self, picture: Picture, reading: Reading, name: str = "an image") -> None:
        reading.check(picture)
        self.picture, self.reading, self.name = picture, reading, name
        self.by_parts = picture.window is not None
        self._whole: np.ndarray | None = None

    @property
    def height(self) -> int:
        return self.picture.height

    @property
    def width(self) -> int:
        return self.picture.width

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The part from column x and row y on: ``[height, width, C]``, see :meth:`Reading.read`.

        Raises:
            ImageError: if it is damaged.
        """
        assert 0 <= x <= x + width <= self.width
        assert 0 <= y <= y + height <= self.height
        if self.picture.window is not None:
            return self.reading.values(self.picture, self.picture.window(y, x, height, width))
        if self._whole is None:
            if self.height * self.width > LARGE:
                _say_whole(self.name, self.width, self.height)
            self._whole = self.picture.pixels()
        return self.reading.values(self.picture, self._whole[y : y + height, x : x + width])

    @property
    def too_large(self) -> bool:
        """Whether it is too large to be decoded as a whole."""
        return self.by_parts and bool(size_fault(self.height, self.width, self.picture.channels))

    def check_pixels(self) -> float:
        """Decode all of it and return its largest value.

        Raises:
            ImageError: if it is damaged, or too large to be decoded as a whole.
        """
        if not (self.by_parts and self.reading.by_parts):
            return float(self.reading.read(self.picture).max())
        return max(float(band.max()) for band in self.bands())

    def bands(self, rows: int = 0) -> Iterator[np.ndarray]:
        """Yield all of it from top to bottom, ``rows`` at a time (0: a bounded number)."""
        rows = rows or max(1, BAND_VALUES // (self.width * self.picture.channels))
        for y in range(0, self.height, rows):
            yield self.read(0, y, self.width, min(rows, self.height - y))

    def shrunk(self, pixels: int | None) -> np.ndarray:
        """The whole image shrunk to about ``pixels``: means over squares of pixels."""
        most = pixels or np.inf
        return self.shrunk_by(max(1, int(np.ceil((self.height * self.width / most) ** 0.5))))

    def shrunk_by(self, factor: int) -> np.ndarray:
        """The whole image, its sides divided by ``factor``: means over squares of pixels."""
        if factor == 1:
            return self.read(0, 0, self.width, self.height)
        rows = factor * max(1, BAND_VALUES // (self.width * self.picture.channels * factor))
        width = max(1, round(self.width / factor))
        parts = []
        for band in self.bands(rows):
            size = (width, max(1, round(len(band) / factor)))
            channels = [
                cv2.resize(np.ascontiguousarray(channel), size, interpolation=cv2.INTER_AREA)
                for channel in np.moveaxis(band, -1, 0)
            ]
            parts.append(np.stack(channels, axis=-1))
        return np.concatenate(parts)


@cache
def _say_whole(name: str, width: int, height: int) -> None:
    logger.info(
        "%s: %d x %d pixels are decoded as a whole, for its format has no parts; a TIFF with "
        "tiles is read part by part",
        name,
        width,
        height,
    )


@contextmanager
def open_windows(path: str | Path, reading: Reading) -> Iterator[Windows]:
    """An image file's :class:`Windows`, while it is open.

    Raises:
        FileNotFoundError: if it does not exist.
        ImageError: naming it, if it cannot be used; while it is open, too.
    """
    with open(path, "rb") as file:
        try:
            yield Windows(open_picture(file), reading, str(path))
        except ImageError as error:
            if str(error).startswith(str(path)):
                raise
            raise ImageError(f"{path} {error}") from error
