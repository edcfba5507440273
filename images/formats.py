"""Reads the headers of image files, each format by a library that keeps all bits of its values.

Pillow reads most formats. It would cut colours of 16 bits to 8 and refuses many bands. So OpenCV
reads PNG, PNM and JPEG 2000 of more than 8 bits, tifffile TIFFs of many bands or bits, pydicom
DICOM (the extra ``dicom``), and NumPy ``.npy`` arrays ``[H, W]`` or ``[H, W, C]``. Of an animation
the first image is read; AVIF, HEIC (where ``pillow-heif`` is installed) and WebP are read with 8
bits.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import BinaryIO

from PIL import features

from images.decoders.array_formats import open_dicom, open_npy
from images.decoders.pillow_formats import open_pillow
from images.decoders.tiff import open_tiff
from images.picture import Picture

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NPY_START, DICOM_START = b"\x93NUMPY", b"DICM"

# fmt: off
ENDINGS = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif",
    ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".npy",
])
# fmt: on
# ending -> what is needed to read it
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
        return open_tiff(file)
    return open_pillow(file)
