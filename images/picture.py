"""An image file whose header was read: its properties, and how to decode it.

Other libraries' decoders are called inside :func:`damage`, which turns whatever they raise on a
damaged file into an :class:`ImageError`. Nothing else may be inside it, so that mistakes of this
project keep their own exceptions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from backbones.errors import InputError

EIGHT_BITS, SIXTEEN_BITS = 255, 65535  # the largest values
READ, DECODED = "cannot be read", "does not decode"  # in messages about damaged files
AN_IMAGE = "[height, width] or [height, width, channels] of integers or real numbers"


class ImageError(InputError):
    """An image cannot be used; the message says why, and names its file if that is known."""


@contextmanager
def damage(what: str) -> Iterator[None]:
    """Turn whatever another library's decoder raises into an :class:`ImageError`.

    Pillow, OpenCV, tifffile, NumPy and pydicom raise nearly every type on damaged files.

    Args:
        what: what fails: "cannot be read" or "does not decode".
    """
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except InputError as error:  # the image is too large
        raise ImageError(f"{what}: {error}") from error
    except Exception as error:
        said = (f"{type(error).__name__}: {error}".splitlines() or [type(error).__name__])[0]
        needs_codecs = "imagecodecs" in said and not find_spec("imagecodecs")
        remedy = "pip install imagecodecs" if needs_codecs else "repair or remove it"
        raise ImageError(f"{what} ({said}); {remedy}") from error


@dataclass(frozen=True)
class Picture:
    """An image file whose header was read and whose pixels were not.

    Args:
        height, width: in pixels, after EXIF's orientation is applied.
        channels: number of channels, alpha included.
        alpha: whether the last channel is declared to be alpha.
        decode: called with a shrink factor (1, 2, 4 or 8; only JPEG shrinks); returns
            ``[h, w, channels]``, EXIF's orientation applied.
        eight_bit: whether values are unsigned 8-bit integers.
        white: the value that becomes 1, by the file's bits or its type; None for floating-point
            values, which stay as they are.
        orientation: EXIF's, 1 to 8, which ``decode`` applies.
        note: a hint for the message about a wrong number of channels.
        window: called with top, left, height and width of a part; decodes only that part,
            ``[h, w, channels]``. None if the format has no parts. An image with parts may be larger
            than one that is decoded as a whole.
    """

    height: int
    width: int
    channels: int
    alpha: bool
    decode: Callable[[int], np.ndarray]
    eight_bit: bool
    white: float | None
    orientation: int = 1
    note: str = ""
    window: Callable[[int, int, int, int], np.ndarray] | None = None

    @property
    def colours(self) -> int:
        """Channels without alpha."""
        return self.channels - self.alpha

    @property
    def depth(self) -> str:
        """The depth of the values in words: "8 bits", "real numbers"."""
        if self.white is None:
            return "real numbers"
        bits = int(self.white).bit_length()
        return f"{bits + 1} bits with a sign" if bits in (7, 15, 31) else f"{bits} bits"

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """Decode to ``[h, w, channels]``, in the file's own type, as shown.

        Args:
            shrink: the sides may be divided by this factor if that saves work: a JPEG's decoder can
                leave out the highest frequencies.

        Raises:
            ImageError: if the pixels are damaged, or more than may be decoded as a whole.
        """
        return self.decode(shrink)


def is_image(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether an array is ``[H, W]`` or ``[H, W, C]`` of numbers."""
    return len(shape) in (2, 3) and 0 not in shape and dtype.kind in "buif"


def largest_value(dtype: np.dtype) -> float | None:
    """The largest value of an integer type, which becomes 1; None for floating-point types."""
    if dtype.kind == "b":
        return EIGHT_BITS
    return None if dtype.kind == "f" else float(np.iinfo(dtype).max)


def plain_values(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order; booleans become 0 and 255."""
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * np.uint8(EIGHT_BITS)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def picture_of(pixels: np.ndarray) -> Picture:
    """An array ``[H, W]`` or ``[H, W, C]`` as if it came from a file.

    Raises:
        ImageError: if it is no image.
    """
    if not is_image(pixels.shape, pixels.dtype):
        raise ImageError(
            f"an array {list(pixels.shape)} of {pixels.dtype} is no image: give {AN_IMAGE}"
        )
    height, width, channels = (*pixels.shape, 1)[:3]
    values = plain_values(pixels).reshape(height, width, channels)
    white, eight_bit = largest_value(values.dtype), values.dtype == np.uint8

    def window(top: int, left: int, rows: int, columns: int) -> np.ndarray:
        return values[top : top + rows, left : left + columns]

    return Picture(
        height, width, channels, False, lambda shrink: values, eight_bit, white, window=window
    )


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply EXIF's orientation (1 to 8) to pixels ``[h, w, ...]`` as stored."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def sides_shown(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Height and width after EXIF's orientation is applied."""
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)
