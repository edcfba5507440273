"""Reads PNG, PNM and JPEG 2000 of more than 8 bits by OpenCV, because Pillow would cut them."""

from __future__ import annotations

import re
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from images.picture import (
    DECODED,
    EIGHT_BITS,
    SIXTEEN_BITS,
    ImageError,
    Picture,
    damage,
    sides_shown,
    turned,
)


def white_beyond_pillow(file: BinaryIO, image: Image.Image) -> int | None:
    """The largest value of a file whose values Pillow would cut or stretch; else None."""
    if image.format == "PNG":
        tiles = getattr(image, "tile", [])
        is_deep = any("16B" in str(tile[3]) for tile in tiles)  # its arguments
        return SIXTEEN_BITS if is_deep and image.mode in ("RGB", "RGBA", "LA") else None
    if image.format == "PPM":
        largest = _largest_of_pnm(file)
        return largest if largest > EIGHT_BITS else None
    if image.format == "JPEG2000":
        bits = _bits_of_jpeg2000(file)
        return 2**bits - 1 if bits > 8 else None
    return None


def _start_of(file: BinaryIO, size: int) -> bytes:
    place = file.tell()
    file.seek(0)
    start = file.read(size)
    file.seek(place)
    return start


def _largest_of_pnm(file: BinaryIO) -> int:
    """The largest value: the header's fourth word; comments go from # to the line's end."""
    start = _start_of(file, 4096)
    words = re.sub(rb"#[^\n\r]*", b"", start).split(maxsplit=4)
    deep = start[:2] in (b"P2", b"P3", b"P5", b"P6") and len(words) > 3 and words[3].isdigit()
    return int(words[3]) if deep else 0


def _bits_of_jpeg2000(file: BinaryIO) -> int:
    """The most bits of a component, by the marker SIZ; 0 if it is not found."""
    start = _start_of(file, 2**16)
    place = start.find(b"\xff\x51")
    count = int.from_bytes(start[place + 38 : place + 40], "big") if place >= 0 else 0
    return max(((bits & 127) + 1 for bits in start[place + 40 :: 3][:count]), default=0)


def _mode_of_png(file: BinaryIO) -> str:
    """The mode by the PNG's header: some versions of Pillow call grey with alpha "RGBA"."""
    return {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}[_start_of(file, 26)[25]]


def open_by_opencv(file: BinaryIO, image: Image.Image, white: int, orientation: int) -> Picture:
    """A picture whose values Pillow would cut.

    OpenCV returns blue, green, red and alpha, also for grey with alpha, and for RGB with one colour
    that is declared to be transparent.

    Args:
        white: see :func:`white_beyond_pillow`.
        orientation: EXIF's.
    """
    orders = {"RGB": [2, 1, 0], "RGBA": [2, 1, 0, 3], "LA": [0, 3]}
    mode = _mode_of_png(file) if image.format == "PNG" else image.mode
    order = orders.get(mode, [0])

    def decode(shrink: int) -> np.ndarray:
        with damage(DECODED):
            file.seek(0)
            # OpenCV needs a character after the last number of a PNM in text form
            data = np.frombuffer(file.read() + b"\n", dtype=np.uint8)
            array = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
            if array is None:
                remedy = "repair or remove it, or save it as PNG or TIFF"
                raise ImageError(f"does not decode (OpenCV: no image); {remedy}")
        array = array if array.ndim == 3 else array[..., None]
        keyed = mode == "RGB" and image.format == "PNG" and array.shape[2] == 4
        if array.shape != (image.height, image.width, 4 if keyed else max(order) + 1):
            raise ImageError(f"decodes to {array.shape}, not as its header says; repair it")
        return turned(array[..., order], orientation)

    sides = sides_shown(image.height, image.width, orientation)
    alpha = mode in ("RGBA", "LA")
    return Picture(*sides, len(order), alpha, decode, False, white, orientation=orientation)
