"""Reads TIFFs by Pillow if that keeps all values (it decompresses more), else by tifffile.

Other images in the file are ignored if they are smaller copies (levels of a pyramid) or additions
of a slide scanner. A file with further images is refused, because they would be left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from backbones.errors import counted
from images.decoders.pillow_formats import open_pillow
from images.decoders.tiff_segments import Window, tiff_window
from images.picture import (
    DECODED,
    EIGHT_BITS,
    READ,
    ImageError,
    Picture,
    damage,
    plain_values,
    sides_shown,
    turned,
)
from images.size_limit import refuse_absurd_parts, refuse_absurd_size, size_fault

ALPHAS = ("ASSOCALPHA", "UNASSALPHA")
# compressions that Pillow always decodes: none, CCITT's, LZW, JPEG, Deflate, PackBits, zstd
BY_PILLOW = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 50000}
JPEG = {6, 7}
# photometric kinds whose values are plain channels; for single channels none need be stated
PLAIN = ("MINISBLACK", "MINISWHITE", "RGB", "CFA", "LINEAR_RAW", "MASK", "")
SCANNERS = ("svs", "scn", "qpi", "ndpi", "bif", "avs", "philips")


def open_tiff(file: BinaryIO) -> Picture:
    """Read a TIFF's header.

    Raises:
        ImageError: if it is damaged, or does not hold one image of numbers.
    """
    import tifffile  # here, because the import takes a fifth of a second and is seldom needed

    with damage(READ):
        series = _image_of(file)
        page: Any = series.keyframe
        kind, extra = getattr(page.photometric, "name", ""), page.extrasamples
        last = tifffile.EXTRASAMPLE(extra[-1]).name if extra else ""
        alpha = last in ALPHAS
        bits, samples, dtype = page.bitspersample, page.samplesperpixel, series.dtype
        if dtype is None or not (isinstance(bits, int) and 1 <= bits <= 64):
            raise ImageError(f"cannot be read: a TIFF of {bits} bits; save 8, 16 or 32")
        tag = page.tags.get("Orientation")
        orientation = tag.value if tag is not None and tag.value in range(2, 9) else 1
        dark = kind == "MINISWHITE"
        if samples == 1:
            grey = kind in ("MINISBLACK", "MINISWHITE")
            whole = (grey and bits in (1, 2, 4, 8, 12, 16)) or (kind == "PALETTE" and bits <= 8)
            whole = whole and dtype.kind in "bu"
        else:
            names = {"RGB": 3, "YCBCR": 3, "SEPARATED": 4}
            whole = bits == 8 and dtype == np.uint8 and samples == names.get(kind, -1) + alpha
        # Pillow reads the first page
        whole = whole and page.compression in BY_PILLOW and page.index == 0
        sides = dict(zip(series.axes, series.shape, strict=True))
    white = None if dtype.kind == "f" else 2 ** (bits - (dtype.kind == "i")) - 1
    others = [axis for axis in series.axes if axis not in "YX"]
    divided = alpha and last == "ASSOCALPHA"
    part = _part_of_tiff(series, white if dark and dtype.kind == "u" else None)
    if orientation != 1 or divided:
        part = None
    if part and whole and size_fault(sides["Y"], sides["X"]):
        whole = False  # Pillow does not open it
    if whole and series.axes in ("YX", "YXS"):
        file.seek(0)
        stored = (sides["Y"], sides["X"], orientation)
        picture = open_pillow(file, stored, white if bits > 8 else None, dark and bits > 8)
        return replace(picture, window=part)
    if not {"Y", "X"} <= set(series.axes) or len(others) > 1:
        raise ImageError(
            f"cannot be read: a TIFF of axes {series.axes} ({series.shape}); save one image, with "
            "its bands as channels or pages of grey"
        )
    if dtype.kind not in "buif":
        raise ImageError(f"cannot be read: its values are {dtype}; save integers or real numbers")
    inks = kind == "SEPARATED" and samples - alpha == 4 and dtype.kind == "u"
    plain = kind in PLAIN or (kind == "SEPARATED" and dtype.kind in "uif")
    if not (plain or (kind == "YCBCR" and page.compression in JPEG)):
        raise ImageError(f"cannot be read: a TIFF of {kind} colours of {dtype}; save RGB or grey")

    stored_channels = sides[others[0]] if others else 1
    channels = stored_channels - inks  # CMYK becomes RGB

    def decode(shrink: int) -> np.ndarray:
        with damage(READ):
            refuse_absurd_size(sides["Y"], sides["X"], channels, by_parts=part is not None)
        with damage(DECODED):
            array = series.asarray()
        order = [series.axes.index(axis) for axis in ("Y", "X", *others)]
        array = plain_values(array.transpose(order).reshape(sides["Y"], sides["X"], -1))
        if dark and dtype.kind == "u":
            array = dtype.type(white) - array
        if divided:
            array = _colours_by_alpha(array, white or 1)
        if inks:
            array = _rgb_of_cmyk(array, white or 1)
        return turned(array, orientation)

    with damage(READ):
        if part:
            refuse_absurd_parts(sides["Y"], sides["X"])
        else:
            refuse_absurd_size(sides["Y"], sides["X"], stored_channels)
    shown = sides_shown(sides["Y"], sides["X"], orientation)
    eight_bit = (dtype == np.uint8 and bits == 8) or dtype.kind == "b"
    white = EIGHT_BITS if dtype.kind == "b" else white
    return Picture(
        *shown, channels, alpha, decode, eight_bit, white, orientation=orientation, window=part
    )


def _image_of(file: BinaryIO) -> Any:
    """The pages that are the file's image: tifffile's series of them.

    Raises:
        ImageError: if it holds several.
    """
    import tifffile

    tiff = tifffile.TiffFile(file)
    if tiff.is_shaped and len({(s.shape, s.dtype) for s in tiff.series}) < len(tiff.series):
        file.seek(0)
        tiff = tifffile.TiffFile(file, is_shaped=False)  # pages that tifffile wrote one by one
    images = [s for s in tiff.series if not s.keyframe.is_reduced] or list(tiff.series)
    first = images[0]
    from_scanner = any(getattr(tiff, f"is_{name}", False) for name in SCANNERS)
    others = [s for s in images[1:] if not (from_scanner or _is_smaller_copy(s, first))]
    if others:
        sizes = "; ".join(f"{list(s.shape)} of {s.dtype}" for s in [first, *others][:4])
        raise ImageError(
            f"cannot be read: a TIFF of {counted(1 + len(others), 'image')} ({sizes}), of which "
            "one alone would be read; save each as a file, or bands as pages of one size and type"
        )
    return first


def _is_smaller_copy(series: Any, first: Any) -> bool:
    """Whether it is a level of the first one's pyramid: both sides are smaller by one factor."""
    if series.axes != first.axes or series.dtype != first.dtype:
        return False
    sides = [(s.shape[s.axes.index("Y")], s.shape[s.axes.index("X")]) for s in (series, first)]
    (height, width), (whole_height, whole_width) = sides
    factor = whole_width / width
    return factor > 1.5 and abs(whole_height / factor - height) <= 1 + 0.02 * height


def _colours_by_alpha(array: np.ndarray, white: float) -> np.ndarray:
    """Divide colours that were multiplied by alpha, the last channel, by it, as Pillow does."""
    colours, alpha = array[..., :-1].astype(np.float64), array[..., -1:].astype(np.float64)
    colours = np.where(alpha > 0, colours * white / np.maximum(alpha, 1e-12), colours)
    return np.concatenate([_as_type(colours, array.dtype, white), array[..., -1:]], axis=-1)


def _rgb_of_cmyk(array: np.ndarray, white: float) -> np.ndarray:
    """CMYK to RGB as Pillow does: ``(1 - ink) * (1 - black)``; alpha stays the last channel."""
    light = white - array[..., :4].astype(np.float64)
    colours = _as_type(light[..., :3] * light[..., 3:] / white, array.dtype, white)
    return np.concatenate([colours, array[..., 4:]], axis=-1)


def _as_type(values: np.ndarray, dtype: np.dtype, white: float) -> np.ndarray:
    if dtype.kind != "f":
        values = np.rint(np.clip(values, 0, white))
    return values.astype(dtype)


def _part_of_tiff(series: Any, darkest: float | None) -> Window | None:
    """How to read a part of a TIFF.

    Args:
        darkest: the value that means black, if 0 means white.
    """
    with damage(READ):
        stored: Callable[..., np.ndarray] | None = tiff_window(series)
    if stored is None:
        return None

    def window(top: int, left: int, height: int, width: int) -> np.ndarray:
        with damage(DECODED):
            part = stored(top, left, height, width)
        part = plain_values(part)
        return part if darkest is None else part.dtype.type(darkest) - part

    return window
