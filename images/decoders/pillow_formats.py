"""Opens image files by Pillow, or by OpenCV if Pillow would cut their values to 8 bits."""

from __future__ import annotations

import os
import re
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from backbones.whole_files import what_stands_there
from images.decoders.deep_formats import open_by_opencv, white_beyond_pillow
from images.picture import (
    DECODED,
    EIGHT_BITS,
    READ,
    SIXTEEN_BITS,
    ImageError,
    Picture,
    damage,
    sides_shown,
    turned,
)
from images.size_limit import refuse_absurd_size, refuse_pixels

EXIF_ORIENTATION = 0x0112
# Pillow's modes that are not plain channels, and the modes they are converted to.
READ_AS = {
    "1": "L", "La": "LA", "PA": "RGBA", "RGBa": "RGBA",
    **dict.fromkeys(("P", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"), "RGB"),
}  # fmt: skip


def open_pillow(
    file: BinaryIO,
    stored: tuple[int, int, int] | None = None,
    white: float | None = None,
    inverted: bool = False,
) -> Picture:
    """Open by Pillow, or by OpenCV if Pillow would cut values to 8 bits.

    Args:
        stored: height and width as stored, and EXIF's orientation, if they are known already.
        white: the value that becomes 1, if it is not the largest of the type.
        inverted: whether that value becomes 0 instead.
    """
    with damage(READ):
        try:
            image = Image.open(file)
        except Image.DecompressionBombError as error:  # raised at twice Pillow's limit, as here
            refuse_pixels("".join(re.findall(r"\((\d+) pixels", str(error))) or "too many")
        except UnidentifiedImageError:
            file.seek(0)
            remedy = "replace or remove it, or give it the ending of what it is"
            what = what_stands_there(file.read(256)) or f"is no image of a known format; {remedy}"
            raise ImageError(f"{READ}: it {what}") from None
        refuse_absurd_size(image.height, image.width)
        if (bits_white := white_beyond_pillow(file, image)) is not None:
            return open_by_opencv(file, image, bits_white, _orientation(file, image))
        width, height = image.size
        stored = stored or (height, width, _orientation(file, image))
    mode = READ_AS.get(image.mode, image.mode)
    if image.mode == "P" and "transparency" in image.info:
        mode = "RGBA"
    white = white or _white_of(mode, image.format)

    def decode(shrink: int) -> np.ndarray:
        with damage(DECODED):
            if shrink > 1:
                image.draft(None, (width // shrink, height // shrink))
            image.load()  # rotates TIFFs and removes the orientation tag
            orientation = _orientation(file, image)
            array = np.asarray(image if image.mode == mode else image.convert(mode))
        if mode == "I" and white == SIXTEEN_BITS:
            array = array.astype(np.uint16)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if inverted:
            array = array.dtype.type(white) - array
        return turned(array if array.ndim == 3 else array[..., None], orientation)

    eight_bit = mode in ("L", "LA", "RGB", "RGBA")
    bands, alpha = Image.getmodebands(mode), mode in ("LA", "RGBA")
    sides = sides_shown(*stored)
    return Picture(*sides, bands, alpha, decode, eight_bit, white, orientation=stored[2])


def _white_of(mode: str, image_format: str | None) -> float | None:
    if mode == "F":
        return None
    if mode == "I":  # Pillow before 11.3 for PNGs of 16 bits
        return SIXTEEN_BITS if image_format == "PNG" else 2**31 - 1
    return SIXTEEN_BITS if mode.startswith("I;16") else EIGHT_BITS


def _orientation(file: BinaryIO, image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 if there is none or EXIF is damaged, as in detectron2."""
    decoded = getattr(image, "_im", None) is not None
    if image.format == "PNG" and not decoded and not _png_may_turn(file, image):
        return 1  # Pillow would decode the whole file to look for EXIF data after the pixels
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:
        return 1
    return orientation if orientation in range(2, 9) else 1


def _png_may_turn(file: BinaryIO, image: Image.Image) -> bool:
    """Whether a PNG may have EXIF data, in its header or after the pixels."""
    if any(key in image.info for key in ("exif", "Raw profile type exif", "xmp")):
        return True
    place = file.tell()
    try:
        file.seek(8)
        seen_pixels = False
        while len(head := file.read(8)) == 8:
            kind = head[4:]
            seen_pixels |= kind == b"IDAT"
            if kind == b"eXIf" or (seen_pixels and kind in (b"iTXt", b"tEXt", b"zTXt")):
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
        return False
    finally:
        file.seek(place)
