"""A grey PNG of 8 bits that is written row by row, so that a large map is never held whole."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY_8_BITS = bytes((8, 0, 0, 0, 0))  # depth, colour, compression, filter, no interlacing


class GreyPngWriter:
    """Writes ``path`` from top to bottom; a context manager.

    References:
        PNG (Portable Network Graphics) Specification, second edition, sections 5 and 11.
    """

    def __init__(self, path: Path, height: int, width: int) -> None:
        self.path, self.shape = path, (height, width)

    def __enter__(self) -> GreyPngWriter:
        self.file = self.path.open("wb")
        self.compressor = zlib.compressobj(6)
        self.file.write(SIGNATURE)
        height, width = self.shape
        self._chunk(b"IHDR", struct.pack(">II", width, height) + GREY_8_BITS)
        return self

    def write(self, rows: np.ndarray) -> None:
        """The next rows, ``[n, width]`` uint8."""
        unfiltered = np.zeros((len(rows), 1), np.uint8)  # a byte before each row: no filter
        data = np.concatenate((unfiltered, rows), axis=1).tobytes()
        if compressed := self.compressor.compress(data):
            self._chunk(b"IDAT", compressed)

    def __exit__(self, _kind: object, error: BaseException | None, _at: object) -> None:
        if error is None:
            self._chunk(b"IDAT", self.compressor.flush())
            self._chunk(b"IEND", b"")
        self.file.close()

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self.file.write(struct.pack(">I", len(data)) + kind + data)
        self.file.write(struct.pack(">I", zlib.crc32(kind + data)))
