"""Image formats that store plain values: NumPy's ``.npy`` and DICOM."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from images.picture import (
    AN_IMAGE,
    DECODED,
    EIGHT_BITS,
    READ,
    ImageError,
    Picture,
    damage,
    is_image,
    largest_value,
    plain_values,
)
from images.size_limit import refuse_absurd_parts, refuse_absurd_size


def open_npy(file: BinaryIO) -> Picture:
    """An array ``[H, W]`` or ``[H, W, C]`` of NumPy's own format."""
    with damage(READ):
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}
        shape, fortran, dtype = read.get(version, np.lib.format.read_array_header_2_0)(file)
    if not is_image(shape, dtype):
        raise ImageError(
            f"cannot be read: an array {list(shape)} of {dtype}; an image is {AN_IMAGE}"
        )
    height, width, channels = (*shape, 1)[:3]
    first = file.tell()
    with damage(READ):
        if fortran:
            refuse_absurd_size(height, width, channels)
        else:
            refuse_absurd_parts(height, width)

    def decode(shrink: int) -> np.ndarray:
        with damage(READ):
            refuse_absurd_size(height, width, channels, by_parts=not fortran)
        with damage(DECODED):
            file.seek(0)
            array = np.load(file, allow_pickle=False).reshape(height, width, channels)
        return plain_values(array)

    def window(top: int, left: int, rows: int, columns: int) -> np.ndarray:
        part, pixel = np.empty((rows, columns, channels), dtype), channels * dtype.itemsize
        with damage(DECODED):
            for row in range(rows):
                file.seek(first + ((top + row) * width + left) * pixel)
                part[row] = np.frombuffer(file.read(columns * pixel), dtype).reshape(-1, channels)
        return plain_values(part)

    note = f"its array {list(shape)} is read as [height, width, channels]"
    eight_bit = dtype in (np.uint8, np.bool_)
    white, by_parts = largest_value(dtype), None if fortran else window
    return Picture(
        height, width, channels, False, decode, eight_bit, white, note=note, window=by_parts
    )


def open_dicom(file: BinaryIO) -> Picture:
    """One frame of a DICOM file, scaled by ``BitsStored``; MONOCHROME1 is inverted."""
    try:
        import pydicom
    except ImportError as error:
        raise ImageError("is DICOM, which needs pydicom: pip install pydicom") from error
    with damage(READ):
        header = pydicom.dcmread(file, stop_before_pixels=True)
        height, width = int(header.Rows), int(header.Columns)
        channels, bits = int(header.SamplesPerPixel), int(header.BitsStored)
        frames, kind = int(header.get("NumberOfFrames", 1) or 1), header.PhotometricInterpretation
        signed = bool(header.PixelRepresentation)
        refuse_absurd_size(height, width, channels)
    if frames > 1 or kind == "PALETTE COLOR":
        what = f"{frames} frames" if frames > 1 else "a palette of colours"
        raise ImageError(f"cannot be read: DICOM with {what}; save single images, grey or RGB")
    white = 2 ** (bits - signed) - 1

    def decode(shrink: int) -> np.ndarray:
        with damage(DECODED):
            file.seek(0)
            array = pydicom.dcmread(file).pixel_array.reshape(height, width, channels)
        if kind == "MONOCHROME1":  # its largest value is black
            array = array.dtype.type(-1 if signed else white) - array
        return array.astype(np.uint8) if eight_bit and array.max() <= EIGHT_BITS else array

    eight_bit = bits == 8 and not signed
    return Picture(height, width, channels, False, decode, eight_bit, white)
