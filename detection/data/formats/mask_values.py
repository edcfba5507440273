"""Read a mask picture as one number per pixel, 0 where there is no object.

In a picture with a palette the index is the number if index 0 is black; otherwise each colour is an
object. Transparent, negative and NaN pixels are background, and so is 255 in Pascal VOC's palette:
the edges between objects.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from images.files import ImageError, open_picture

VOC_EDGE, VOC_EDGE_COLOUR = 255, (224, 224, 192)

Note = Callable[[str, str], None]


def mask_values(path: Path, note: Note) -> np.ndarray | None:
    """The numbers of a mask ``[H, W]``; None for a file that cannot be read.

    Args:
        note: called with each deviation, and with how it is read.
    """
    values = _of_pillow(path, note)
    if values is None:
        try:
            with path.open("rb") as file:
                picture = open_picture(file)
                values = picture.pixels()
        except ImageError:
            return None
        if picture.alpha:
            values = np.where(values[..., -1:] > 0, values[..., :-1], 0)
    if values.ndim == 3:
        base = 256 if values.dtype == np.uint8 else 65536
        colours = values[..., :3] if values.shape[2] >= 3 else values[..., 0]
        if colours.ndim == 3:
            colours = (colours.astype(np.int64) * base ** np.arange(3)).sum(-1)
        values = colours
    return np.where(values > 0, values, 0)  # which NaN is not, either


def _of_pillow(path: Path, note: Note) -> np.ndarray | None:
    """Numbers or colours of a palette or of black and white; None for other files."""
    try:
        with Image.open(path) as picture:
            if (pages := getattr(picture, "n_frames", 1)) > 1:
                note(f"has {pages} pages", "the first is read")
            if picture.mode == "1":
                return np.asarray(picture)
            if picture.mode != "P":
                return None
            numbers = np.asarray(picture)
            palette = np.reshape(picture.getpalette("RGB"), (-1, 3)).astype(np.uint8)
            opaque = np.asarray(picture.convert("RGBA"))[..., 3:] > 0
    except Exception:  # Pillow's decoders raise nearly everything on damaged files
        return None
    if palette[0].any():
        return palette[numbers] * opaque
    numbers = numbers * opaque[..., 0]
    has_edges = len(palette) > VOC_EDGE and tuple(palette[VOC_EDGE].tolist()) == VOC_EDGE_COLOUR
    if has_edges and (numbers == VOC_EDGE).any():
        note("has edges between objects (255 in the palette of VOC)", "they are no object")
        numbers = np.where(numbers == VOC_EDGE, 0, numbers)
    return numbers
