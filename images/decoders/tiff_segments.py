"""Reads parts of a TIFF from the strips or tiles that hold them, by tifffile (BSD licence).

Neighbouring parts need the same strips or tiles, so the last decoded ones are kept, up to ``KEPT``
bytes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

KEPT = 2**27  # bytes of decoded strips or tiles
LARGEST = 2**27  # most bytes of a strip or tile; files with larger ones are decoded whole
PLAIN = ("MINISBLACK", "MINISWHITE", "RGB")  # photometric kinds that need no conversion
JPEG = 7

# top, left, height, width, within the image -> [height, width, channels]
Window = Callable[[int, int, int, int], np.ndarray]


def tiff_window(series: Any) -> Window | None:
    """A reader of parts of a TIFF's first image, as stored; None if it has no parts.

    Args:
        series: tifffile's, with the axes Y and X and at most one other.
    """
    pages = list(series.pages)
    key = series.keyframe
    plain = getattr(key.photometric, "name", "") in PLAIN
    jpeg = key.compression == JPEG and getattr(key.photometric, "name", "") == "YCBCR"
    whole_bits = key.dtype is not None and key.bitspersample == 8 * key.dtype.itemsize
    if not ((plain or jpeg) and whole_bits and key.axes in ("YX", "YXS", "SYX")):
        return None
    if any(page is None for page in pages) or key.shaped[1] != 1:
        return None
    bands = math.prod(series.shape) // math.prod(key.shape)
    if bands != len(pages) or (bands > 1 and key.axes != "YX"):
        return None
    if key.is_contiguous and key.compression == 1 and not key.is_tiled and key.fillorder == 1:
        return _by_rows(pages, key)
    if _segment_bytes(key) > LARGEST:
        return None
    try:  # decode nothing, to find out whether the decoder is installed
        key.decode(None, 0)
    except Exception:
        return None
    return _by_segments(pages, key)


def _segment_bytes(page: Any) -> int:
    rows, columns = page.rowsperstrip, page.imagewidth
    if page.is_tiled:
        rows, columns = page.tilelength, page.tilewidth
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    return min(rows, page.imagelength) * columns * samples * page.dtype.itemsize


def _by_rows(pages: Sequence[Any], key: Any) -> Window:
    """For values stored one after the other: only the part's rows are read."""
    planes, _, length, width, samples = key.shaped
    stored = key.dtype.newbyteorder(key.parent.byteorder)
    pixel = stored.itemsize * samples

    def read(top: int, left: int, height: int, columns: int) -> np.ndarray:
        parts = []
        for page in pages:
            for plane in range(planes):
                first = page.dataoffsets[0] + plane * length * width * pixel
                part = np.empty((height, columns, samples), key.dtype)
                for row in range(height):
                    file = key.parent.filehandle
                    file.seek(first + ((top + row) * width + left) * pixel)
                    part[row] = np.frombuffer(file.read(columns * pixel), stored).reshape(
                        columns, samples
                    )
                parts.append(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    return read


def _by_segments(pages: Sequence[Any], key: Any) -> Window:
    planes, _, length, width, samples = key.shaped
    rows, columns = (key.tilelength, key.tilewidth) if key.is_tiled else (key.rowsperstrip, width)
    rows = min(rows, length) if not key.is_tiled else rows
    down, across = math.ceil(length / rows), math.ceil(width / columns)
    kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def segment(number: int, index: int) -> np.ndarray:
        """A segment ``[h, w, samples]`` of a page; the last of a row or column may be cut."""
        if (number, index) in kept:
            kept.move_to_end((number, index))
            return kept[number, index]
        page, file = pages[number], key.parent.filehandle
        size = page.databytecounts[index]
        data = None
        if size:
            file.seek(page.dataoffsets[index])
            data = file.read(size)
        decoded, _, shape = key.decode(data, index, jpegtables=page.jpegtables)
        if decoded is None:  # a segment that the file leaves out
            decoded = np.full(shape, key.nodata, key.dtype)
        array = decoded[0].astype(key.dtype, copy=False)
        kept[number, index] = array
        while len(kept) > 1 and sum(part.nbytes for part in kept.values()) > KEPT:
            kept.popitem(last=False)
        return array

    def read(top: int, left: int, height: int, wide: int) -> np.ndarray:
        part = np.empty((height, wide, len(pages) * planes * samples), key.dtype)
        for number in range(len(pages)):
            for plane in range(planes):
                channel = (number * planes + plane) * samples
                for row in range(top // rows, (top + height - 1) // rows + 1):
                    for column in range(left // columns, (left + wide - 1) // columns + 1):
                        array = segment(number, (plane * down + row) * across + column)
                        y, x = row * rows, column * columns
                        y0, y1 = max(top, y), min(top + height, y + rows)
                        x0, x1 = max(left, x), min(left + wide, x + columns)
                        part[
                            y0 - top : y1 - top, x0 - left : x1 - left, channel : channel + samples
                        ] = array[y0 - y : y1 - y, x0 - x : x1 - x]
        return part

    return read
