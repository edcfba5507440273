"""A small valid file of each format that is read, by its ending."""

from __future__ import annotations

import io
from importlib.util import find_spec

import cv2
import numpy as np
import tifffile
from PIL import Image, features

from images.formats import image_endings

ROWS, COLUMNS = np.mgrid[:48, :40]
# smooth, so that lossy formats keep it nearly
PIXELS = np.stack([5 * ROWS, 6 * COLUMNS, 2 * (ROWS + COLUMNS)], -1).astype(np.uint8)
BY_PILLOW = {
    ".jpg": "jpeg", ".jpeg": "jpeg", ".jpe": "jpeg", ".jfif": "jpeg", ".png": "png", ".bmp": "bmp",
    ".dib": "dib", ".tif": "tiff", ".tiff": "tiff", ".webp": "webp", ".gif": "gif", ".tga": "tga",
    ".ppm": "ppm", ".avif": "avif", ".jp2": "jpeg2000", ".j2k": "jpeg2000",
    ".heic": "heif",
}  # fmt: skip
FORMATS = [
    ending
    for ending, name in BY_PILLOW.items()
    if (name != "avif" or features.check("avif"))
    and (name != "jpeg2000" or features.check("jpg_2000"))
    and (name != "heif" or find_spec("pillow_heif"))
] + [".npy", "16-bit.tif", "16-bit.png"]


def image_bytes(ending: str, pixels: np.ndarray = PIXELS, **settings: object) -> bytes:
    """The pixels as a file of a format; lossless where the format can be."""
    stream = io.BytesIO()
    if ending == ".npy":
        np.save(stream, pixels)
    elif ending == "16-bit.tif":
        wide = pixels.astype(np.uint16) * 257
        tifffile.imwrite(stream, wide, photometric="rgb", compression="zlib")
    elif ending == "16-bit.png":
        wide = pixels[..., ::-1].astype(np.uint16) * 257
        return cv2.imencode(".png", wide)[1].tobytes()
    else:
        name = BY_PILLOW[ending]
        if name in ("jpeg", "avif", "heif"):
            settings = {"quality": 95, **settings}
        if name == "webp":
            settings = {"lossless": True, **settings}
        image_endings()  # registers Pillow's plugins
        Image.fromarray(pixels).save(stream, name, **settings)
    return stream.getvalue()
