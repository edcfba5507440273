"""How large an image may be: a header of a few bytes can claim sizes that no memory holds."""

from __future__ import annotations

import math

from backbones.errors import InputError

MAX_PIXELS = 178_956_970  # where Pillow, too, refuses to decode: 512 MiB of RGB
MAX_SIDE = 100_000
CHANNELS = 4  # a picture of more counts as several pictures


def size_fault(height: float, width: float, channels: int = 1) -> str:
    """What is absurd about an image's size, with the limit that it exceeds; "" if nothing is."""
    said = f"{width} x {height} pixels" + (f" x {channels} channels" if channels > CHANNELS else "")
    if max(height, width) > MAX_SIDE:
        return f"{_short(said)}: a side is over the limit of {MAX_SIDE}"
    if height * width * math.ceil(channels / CHANNELS) > MAX_PIXELS:
        each = f" for each {CHANNELS} channels" if channels > CHANNELS else ""
        return f"{_short(said)}: more than the limit of {MAX_PIXELS} pixels{each}"
    return ""


def refuse_absurd_size(height: int, width: int, channels: int = 1) -> None:
    """Raise before anything of this size is decoded or allocated.

    Raises:
        InputError: naming the size and the limit.
    """
    if fault := size_fault(height, width, channels):
        raise InputError(f"it claims {fault}; cut it into smaller images")


def _short(said: str) -> str:
    """A number of a thousand digits is as absurd when it is cut."""
    return said if len(said) <= 80 else f"{said[:40]}...{said[-40:]}"
