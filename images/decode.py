"""One decoder of image files for the data check, both engines and prediction.

The rules, which neither detectron2's reader nor Pillow's ``convert`` follow for 16 bits (both cut
grey values at 255):

  * EXIF rotation is applied;
  * of 16 bits a channel the upper 8 count, so that 0 to 65535 becomes 0 to 255 (value // 256), in
    grey as in colour;
  * grey becomes colour by repeating it, colour becomes grey ("L") by ITU-R 601's luma;
  * transparency is dropped, and of several pages the first is read;
  * floating-point and 32-bit images are refused: nothing says which of their values is white;
  * sizes beyond ``images.size_limit`` are refused by the header, before pixels are decoded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from backbones.errors import InputError
from images.size_limit import refuse_absurd_size


def decode_image(path: str | Path, channels: str = "RGB") -> np.ndarray:
    """Decode an image file to uint8 ``[H, W, 3]``, or ``[H, W]`` for "L".

    Args:
        path: of the file.
        channels: "RGB", "BGR" or "L".

    Raises:
        InputError: naming the file, if it does not decode or has other values than 8 or 16 bits.
        FileNotFoundError: if it does not exist.
    """
    try:
        with Image.open(path) as file:
            refuse_absurd_size(file.height, file.width)
            return pixels_of(with_8_bits(ImageOps.exif_transpose(file)), channels)
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        raise InputError(f"{path} does not decode ({type(error).__name__}: {error})") from error


def pixels_of(image: Image.Image, channels: str) -> np.ndarray:
    """The pixels of an image of 8 bits in this order of channels."""
    pixels = np.asarray(image.convert("L" if channels == "L" else "RGB"))
    return pixels[:, :, ::-1] if channels == "BGR" else pixels


def with_8_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel. Colour of 16 bits has come from Pillow so already.

    Raises:
        InputError: for floating-point values, or integers beyond 16 bits.
    """
    if image.mode == "F":
        raise InputError("floating-point values, which have no stated white")
    if not image.mode.startswith("I"):
        image.load()
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"values from {values.min()} to {values.max()}, beyond 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


def bits_per_channel(image: Image.Image) -> int:
    """8 or 16, by the header of an image that is opened and not yet decoded."""
    raw_modes = [str(tile[3]) for tile in getattr(image, "tile", [])]  # such as "RGB;16B"
    is_deep = image.mode.startswith("I") or any(";16" in raw_mode for raw_mode in raw_modes)
    return 16 if is_deep else 8
