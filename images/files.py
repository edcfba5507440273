"""Image files as arrays: any number of channels, 8 bits or more, and every conversion stated.

Pillow reads what it keeps whole. It would cut colours of 16 bits to 8 and refuses many bands, so
OpenCV reads PNGs and tifffile reads TIFFs of these kinds.

A file's channels become ``--in-chans`` by one of these rules, and by no other:

* as many channels as wanted stay as they are (a palette, CMYK or YCbCr counts as its RGB);
* a channel that the file declares to be alpha is dropped;
* one channel becomes three by repetition;
* three become one by ITU-R 601 luma, 0.299 R + 0.587 G + 0.114 B (alpha dropped before).

Scale: values mean 0 to 1. An unsigned or signed integer is divided by the largest value of its
type (255 for 8 bits, 65535 for 16); floating-point files are taken as they are.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image

from backbones.errors import InputError
from images.size_limit import refuse_absurd_size

# What the decoders raise on damaged files; anything else is this project's mistake.
DECODING_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,  # tifffile computes with tags before it checks them
    AttributeError,
    ArithmeticError,
    RuntimeError,  # imagecodecs's errors, where it is installed
    struct.error,
    zlib.error,
    cv2.error,
    Image.DecompressionBombError,
)
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
EIGHT_BITS = 255  # the largest value
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# Pillow's modes that are no plain channels, and what they are read as.
READ_AS = {
    "1": "L",
    "P": "RGB",
    "PA": "RGBA",
    "La": "LA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "LAB": "RGB",
    "HSV": "RGB",
}


class ImageError(InputError):
    """An image cannot be used; the message says why, and names its file where that is known."""


@dataclass(frozen=True)
class Picture:
    """An image file whose header was read and whose pixels were not.

    Args:
        height, width: in pixels.
        channels: of a pixel, alpha included.
        alpha: whether the last channel is declared to be one.
        eight_bit: whether values are 8-bit unsigned.
        decode: from a shrinkage (1, 2, 4 or 8) to ``[h, w, channels]``; only JPEG shrinks.
    """

    height: int
    width: int
    channels: int
    alpha: bool
    eight_bit: bool
    decode: Callable[[int], np.ndarray]

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """Decode to ``[h, w, channels]``, in the file's own type.

        Args:
            shrink: sides may be divided by this, where it saves work: a JPEG's decoder can leave
                out the finest of its frequencies.

        Raises:
            ImageError: if the pixels are damaged.
        """
        try:
            return self.decode(shrink)
        except DECODING_ERRORS as error:
            raise ImageError(f"does not decode ({_words(error)}); repair or remove it") from error

    def check(self, in_chans: int) -> None:
        """Check that a rule of this module's header leads to this many channels.

        Raises:
            ImageError: if none does.
        """
        colours = self.channels - self.alpha
        pairs = ((self.channels, in_chans), (colours, in_chans))
        if any(a == b for a, b in pairs) or pairs[1] in ((1, 3), (3, 1)):
            return
        raise ImageError(
            f"has {self.channels} channel(s), not the {in_chans} of --in-chans; only grey to 3, "
            "RGB to 1 and a dropped alpha are converted"
        )


def open_picture(file: BinaryIO) -> Picture:
    """Read an image file's header.

    Raises:
        ImageError: if it is no image that can be read.
    """
    try:
        start = file.read(4)
        file.seek(0)
        picture = _open_tiff(file) if start in TIFF_STARTS else None
        return picture or _open_pillow(file)
    except DECODING_ERRORS as error:
        raise ImageError(f"cannot be read ({_words(error)}); repair or remove it") from error


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _open_pillow(file: BinaryIO) -> Picture:
    image = Image.open(file)
    width, height = image.size
    refuse_absurd_size(height, width)
    if image.mode in ("RGB", "RGBA", "LA") and "16B" in str(image.tile[0][3]):  # its args
        return _open_png_of_16_bits(file, image)
    mode = READ_AS.get(image.mode, image.mode)
    if mode == "RGB" and "transparency" in image.info and image.mode == "P":
        mode = "RGBA"

    def decode(shrink: int) -> np.ndarray:
        if shrink > 1:
            image.draft(None, (width // shrink, height // shrink))
        array = np.asarray(image if image.mode == mode else image.convert(mode))
        if mode == "I" and image.format == "PNG":  # Pillow before 11.3: greys of 16 bits
            array = array.astype(np.uint16)
        return array if array.ndim == 3 else array[..., None]

    eight_bit = mode in ("L", "LA", "RGB", "RGBA")
    bands, alpha = Image.getmodebands(mode), mode in ("LA", "RGBA")
    return Picture(height, width, bands, alpha, eight_bit, decode)


def _open_png_of_16_bits(file: BinaryIO, image: Image.Image) -> Picture:
    """OpenCV gives blue, green, red and alpha; grey with alpha as these four."""
    channels = 3 if image.mode == "RGB" else 4

    def decode(shrink: int) -> np.ndarray:
        file.seek(0)
        data = np.frombuffer(file.read(), dtype=np.uint8)
        array = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if array is None or array.shape[2:] != (channels,):
            raise InputError("OpenCV cannot decode it")
        return array[..., [2, 1, 0, 3][:channels]]

    return Picture(image.height, image.width, channels, channels == 4, False, decode)


def _open_tiff(file: BinaryIO) -> Picture | None:
    """A TIFF of many bands or bits; None for those that Pillow reads whole."""
    import tifffile  # here: it takes a fifth of a second, and most data sets need none of it

    try:
        series = tifffile.TiffFile(file).series[0]
    except Exception as error:  # it trusts a header's tags, whose types may be anything
        raise InputError(f"tifffile cannot read its tags: {error}") from error
    page: Any = series.keyframe
    photometric, alphas = tifffile.PHOTOMETRIC, ("ASSOCALPHA", "UNASSALPHA")
    alpha = bool(page.extrasamples) and tifffile.EXTRASAMPLE(page.extrasamples[-1]).name in alphas
    if page.samplesperpixel == 1:
        whole = page.bitspersample in (1, 2, 4, 8, 16) and series.dtype.kind in "bu"
    else:
        colours = {photometric.RGB: 3, photometric.YCBCR: 3, photometric.SEPARATED: 4}
        samples = colours.get(page.photometric, -1) + alpha
        whole = page.bitspersample == 8 and page.samplesperpixel == samples
    if whole and series.axes in ("YX", "YXS"):
        file.seek(0)
        return None
    others = [axis for axis in series.axes if axis not in "YX"]
    if not {"Y", "X"} <= set(series.axes) or len(others) > 1:
        raise InputError(f"a TIFF of axes {series.axes}; one image with its bands is wanted")
    sides = dict(zip(series.axes, series.shape, strict=True))

    def decode(shrink: int) -> np.ndarray:
        array = series.asarray()
        order = [series.axes.index(axis) for axis in ("Y", "X", *others)]
        return array.transpose(order).reshape(sides["Y"], sides["X"], -1)

    channels = sides[others[0]] if others else 1
    refuse_absurd_size(sides["Y"], sides["X"], channels)
    return Picture(sides["Y"], sides["X"], channels, alpha, series.dtype == np.uint8, decode)


def convert(pixels: np.ndarray, alpha: bool, in_chans: int) -> np.ndarray:
    """``[h, w, channels]`` -> ``[h, w, in_chans]`` by the rules of this module's header.

    Args:
        pixels: of a picture that :meth:`Picture.check` has let pass.
        alpha: whether the last channel is alpha.
    """
    channels = pixels.shape[-1]
    if channels == in_chans:
        return pixels
    colours = pixels[..., : channels - alpha]
    if colours.shape[-1] == in_chans:
        return colours
    if in_chans == 1:
        luma = colours.astype(np.float32) @ LUMA[:, None]
        return luma if colours.dtype.kind == "f" else np.rint(luma).astype(colours.dtype)
    return colours.repeat(in_chans, axis=-1)


def scaled(pixels: np.ndarray) -> np.ndarray:
    """Values on the scale of this module's header: 8 bits stay 8 bits, others become float32.

    Raises:
        ImageError: if a floating-point value is NaN or infinite.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind in "iu":
        return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    if not np.isfinite(pixels).all():
        raise ImageError("holds NaN or infinite values; fill them or remove it")
    return pixels.astype(np.float32)
