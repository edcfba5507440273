"""The headers of the formats that are read, each by the library that keeps its values whole.

Pillow reads most. It would cut colours of 16 bits to 8 and refuses many bands, so OpenCV reads
PNG, PNM and JPEG 2000 of more than 8 bits, tifffile TIFFs of many bands or bits, pydicom DICOM
(the extra ``dicom``), NumPy ``.npy`` arrays ``[H, W]`` or ``[H, W, C]``. Of an animation the first
image is read; AVIF, HEIC (where ``pillow-heif`` is installed) and WebP are read with 8 bits.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import replace
from functools import cache
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, features

from images.array_formats import open_dicom, open_npy
from images.deep_formats import open_by_opencv, white_beyond_pillow
from images.picture import (
    DECODED,
    EIGHT_BITS,
    READ,
    SIXTEEN_BITS,
    ImageError,
    Picture,
    damage,
    plain_values,
    sides_shown,
    turned,
)
from images.size_limit import (
    refuse_absurd_parts,
    refuse_absurd_size,
    refuse_pixels,
    size_fault,
)
from images.tiff_segments import Window, tiff_window

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NPY_START, DICOM_START = b"\x93NUMPY", b"DICM"
EXIF_ORIENTATION = 0x0112
# Pillow's modes that are no plain channels, and what they are read as.
READ_AS = {
    "1": "L", "La": "LA", "PA": "RGBA", "RGBa": "RGBA",
    **dict.fromkeys(("P", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"), "RGB"),
}  # fmt: skip

# fmt: off
ENDINGS = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif",
    ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".npy",
])
# fmt: on
# ending -> what reads it, and how to get that
OPTIONAL = {
    ".avif": "Pillow 11.3 or later",
    **dict.fromkeys((".jp2", ".j2k", ".jpx", ".j2c"), "a Pillow with OpenJPEG"),
    **dict.fromkeys((".heic", ".heif", ".hif"), "pip install pillow-heif"),
    **dict.fromkeys((".dcm", ".dicom"), "pip install pydicom"),
}


@cache
def image_endings() -> frozenset[str]:
    """The endings of file names, lower case, of images that can be read here."""
    found = set(ENDINGS)
    if "avif" in features.modules and features.check("avif"):
        found.add(".avif")
    if features.check("jpg_2000"):
        found |= {".jp2", ".j2k", ".jpx", ".j2c"}
    if importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
        found |= {".heic", ".heif", ".hif"}
    if importlib.util.find_spec("pydicom"):
        found |= {".dcm", ".dicom"}
    return frozenset(found)


def open_any(file: BinaryIO) -> Picture:
    """Read an image file's header, whatever its format.

    Raises:
        ImageError: if it is no image that can be read.
    """
    image_endings()  # registers Pillow's plugins
    start = file.read(132)
    file.seek(0)
    if start.startswith(NPY_START):
        return open_npy(file)
    if start[128:] == DICOM_START:
        return open_dicom(file)
    if start.startswith(TIFF_STARTS):
        return _open_tiff(file)
    return _open_pillow(file)


def _open_pillow(
    file: BinaryIO,
    stored: tuple[int, int, int] | None = None,
    white: float | None = None,
    inverted: bool = False,
) -> Picture:
    """By Pillow, or by OpenCV where Pillow would cut values to 8 bits.

    Args:
        stored: height and width as stored, and EXIF's orientation, where they are known already.
        white: the value that means 1, where it is not the largest of the type.
        inverted: whether it means 0.
    """
    with damage(READ):
        try:
            image = Image.open(file)
        except Image.DecompressionBombError as error:  # at twice its limit, which is ours, too
            refuse_pixels("".join(re.findall(r"\((\d+) pixels", str(error))) or "too many")
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
            image.load()  # turns TIFFs, and removes the tag that says so
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
    """EXIF's orientation, 1 to 8; 1 where there is none or EXIF is damaged, as in detectron2."""
    decoded = getattr(image, "_im", None) is not None
    if image.format == "PNG" and not decoded and not _png_may_turn(file, image):
        return 1  # Pillow would decode all of it to look for EXIF data behind its pixels
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:
        return 1
    return orientation if orientation in range(2, 9) else 1


def _png_may_turn(file: BinaryIO, image: Image.Image) -> bool:
    """Whether a PNG has EXIF data or texts, in its header or by a chunk behind the pixels."""
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


def _open_tiff(file: BinaryIO) -> Picture:
    """By tifffile, or by Pillow where that keeps all: its compressions need no further package."""
    import tifffile  # here: it takes a fifth of a second, and most data sets need none of it

    with damage(READ):
        series = tifffile.TiffFile(file).series[0]
        page: Any = series.keyframe
        alphas, kind = ("ASSOCALPHA", "UNASSALPHA"), page.photometric
        extra = page.extrasamples
        alpha = bool(extra) and tifffile.EXTRASAMPLE(extra[-1]).name in alphas
        bits, samples, dtype = page.bitspersample, page.samplesperpixel, series.dtype
        if dtype is None or not (isinstance(bits, int) and 1 <= bits <= 64):
            raise ImageError(f"cannot be read: a TIFF of {bits} bits; save 8, 16 or 32")
        tag = page.tags.get("Orientation")
        orientation = tag.value if tag is not None and tag.value in range(2, 9) else 1
        dark = kind == tifffile.PHOTOMETRIC.MINISWHITE
        if samples == 1:
            whole = bits in (1, 2, 4, 8, 12, 16) and dtype.kind in "bu"
        else:
            names = {"RGB": 3, "YCBCR": 3, "SEPARATED": 4}
            whole = bits == 8 and samples == names.get(getattr(kind, "name", ""), -1) + alpha
        sides = dict(zip(series.axes, series.shape, strict=True))
    white = None if dtype.kind == "f" else 2 ** (bits - (dtype.kind == "i")) - 1
    others = [axis for axis in series.axes if axis not in "YX"]
    part = _part_of_tiff(series, white if dark and dtype.kind == "u" else None)
    if orientation != 1 or (whole and alpha and "UN" not in tifffile.EXTRASAMPLE(extra[-1]).name):
        part = None  # turned, or Pillow divides its colours by alpha
    if part and whole and size_fault(sides["Y"], sides["X"]):
        whole = False  # Pillow does not open it
    if whole and series.axes in ("YX", "YXS"):
        file.seek(0)
        stored = (sides["Y"], sides["X"], orientation)
        picture = _open_pillow(file, stored, white if bits > 8 else None, dark and bits > 8)
        return replace(picture, window=part)
    if not {"Y", "X"} <= set(series.axes) or len(others) > 1:
        raise ImageError(
            f"cannot be read: a TIFF of axes {series.axes} ({series.shape}); save one image, with "
            "its bands as channels or pages of grey"
        )
    if dtype.kind not in "uif":
        raise ImageError(f"cannot be read: its values are {dtype}; save integers or real numbers")

    channels = sides[others[0]] if others else 1

    def decode(shrink: int) -> np.ndarray:
        with damage(READ):
            refuse_absurd_size(sides["Y"], sides["X"], channels, by_parts=part is not None)
        with damage(DECODED):
            array = series.asarray()
        order = [series.axes.index(axis) for axis in ("Y", "X", *others)]
        array = array.transpose(order).reshape(sides["Y"], sides["X"], -1)
        if dark and dtype.kind == "u":
            array = dtype.type(white) - array
        return turned(array, orientation)

    with damage(READ):
        if part:
            refuse_absurd_parts(sides["Y"], sides["X"])
        else:
            refuse_absurd_size(sides["Y"], sides["X"], channels)
    shown = sides_shown(sides["Y"], sides["X"], orientation)
    eight_bit = dtype == np.uint8 and bits == 8
    return Picture(
        *shown, channels, alpha, decode, eight_bit, white, orientation=orientation, window=part
    )


def _part_of_tiff(series: Any, darkest: float | None) -> Window | None:
    """How a part of a TIFF is read.

    Args:
        darkest: the value that means black, where 0 means white.
    """
    with damage(READ):
        stored = tiff_window(series)
    if stored is None:
        return None

    def window(top: int, left: int, height: int, width: int) -> np.ndarray:
        with damage(DECODED):
            part = stored(top, left, height, width)
        part = plain_values(part)
        return part if darkest is None else part.dtype.type(darkest) - part

    return window
