"""Limits the size of images: a damaged header can state sizes that no memory can hold."""

from __future__ import annotations

import math
from typing import NoReturn

from backbones.errors import InputError

MAX_PIXELS = 178_956_970  # Pillow's limit, too: 512 MiB of RGB
MAX_SIDE = 100_000
MAX_PIXELS_IN_PARTS = 2**32 - 1  # for images read part by part; the limit of run lengths
AS_PARTS = "cut it into smaller images, or save it as a TIFF, which tiles are read from"
CHANNELS = 4  # an image of more channels counts as several images


def size_fault(height: float, width: float, channels: int = 1, most: int = MAX_PIXELS) -> str:
    """A message about an image that is too large, with the limit; "" if it is not.

    Args:
        most: largest number of pixels, for up to four channels.
    """
    said = f"{width} x {height} pixels" + (f" x {channels} channels" if channels > CHANNELS else "")
    if max(height, width) > MAX_SIDE:
        return f"{_short(said)}: a side is over the limit of {MAX_SIDE}"
    if height * width * math.ceil(channels / CHANNELS) > most:
        each = f" for each {CHANNELS} channels" if channels > CHANNELS else ""
        return f"{_short(said)}: more than the limit of {most} pixels{each}"
    return ""


def refuse_absurd_size(height: int, width: int, channels: int = 1, by_parts: bool = False) -> None:
    """Raise before anything of this size is decoded or allocated.

    Args:
        by_parts: whether it could be read part by part.

    Raises:
        InputError: naming the size and the limit.
    """
    if fault := size_fault(height, width, channels):
        tiles = "work on its tiles (INPUT.TILES.ENABLED True; predict.py: --tiles), which are read "
        by_itself = f"{tiles}part by part, or cut it into smaller images"
        raise InputError(f"it claims {fault}; {by_itself if by_parts else AS_PARTS}")


def refuse_pixels(count: str) -> NoReturn:
    """As :func:`refuse_absurd_size`, if only the number of pixels is known.

    Raises:
        InputError: naming it and the limit.
    """
    said = f"{_short(count)} pixels: more than the limit of {MAX_PIXELS} pixels"
    raise InputError(f"it claims {said}; {AS_PARTS}")


def refuse_absurd_parts(height: int, width: int) -> None:
    """As :func:`refuse_absurd_size`, for an image that is read part by part.

    Raises:
        InputError: naming the size and the limit.
    """
    if fault := size_fault(height, width, most=MAX_PIXELS_IN_PARTS):
        raise InputError(f"it claims {fault}; cut it into smaller images")


def _short(said: str) -> str:
    """Shorten numbers of very many digits."""
    return said if len(said) <= 80 else f"{said[:40]}...{said[-40:]}"
