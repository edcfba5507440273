"""How large an image may be: a header of a few bytes can claim sizes that no memory holds."""

from __future__ import annotations

import math
from typing import NoReturn

from backbones.errors import InputError

MAX_PIXELS = 178_956_970  # where Pillow, too, refuses to decode: 512 MiB of RGB
MAX_SIDE = 100_000
MAX_PIXELS_IN_PARTS = 2**32 - 1  # of an image that is read part by part: what run lengths count
AS_PARTS = "cut it into smaller images, or save it as a TIFF, which tiles are read from"
CHANNELS = 4  # a picture of more counts as several pictures


def size_fault(height: float, width: float, channels: int = 1, most: int = MAX_PIXELS) -> str:
    """What is absurd about an image's size, with the limit that it exceeds; "" if nothing is.

    Args:
        most: pixels, of four channels.
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
    """The same of an image of which only the number of pixels is known.

    Raises:
        InputError: naming it and the limit.
    """
    said = f"{_short(count)} pixels: more than the limit of {MAX_PIXELS} pixels"
    raise InputError(f"it claims {said}; {AS_PARTS}")


def refuse_absurd_parts(height: int, width: int) -> None:
    """The same of an image that is read part by part, of any number of channels.

    Raises:
        InputError: naming the size and the limit.
    """
    if fault := size_fault(height, width, most=MAX_PIXELS_IN_PARTS):
        raise InputError(f"it claims {fault}; cut it into smaller images")


def _short(said: str) -> str:
    """A number of a thousand digits is as absurd when it is cut."""
    return said if len(said) <= 80 else f"{said[:40]}...{said[-40:]}"
