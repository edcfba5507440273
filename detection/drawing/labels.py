"""Place labels on a picture: font, size, and the place where they hide the least.

Text is set in DejaVu Sans, which matplotlib ships (OpenCV's own fonts know ASCII only), or, if it
lacks a character, in the first font of this machine that has all of the text. Where there is
none, the characters that cannot be drawn are left out; :func:`drawable` says what remains.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

from reporting.palette import Colour

logger = logging.getLogger(__name__)

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom

DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
DARK, WHITE = (4, 4, 6), (255, 255, 255)
SMALLEST = 10  # pixels of a font that can still be read
HIDDEN_SHARE = 0.35  # of another object's box that a label may hide
LABELLED_SHARE = 0.15  # of the picture that labels may hide together


class Label(NamedTuple):
    """A text for the box of one object, on the object's colour."""

    text: str
    box: Rectangle
    colour: Colour


def draw_labels(
    pen: ImageDraw.ImageDraw, labels: Sequence[Label], size: tuple[int, int], font_size: float
) -> int:
    """Draw each label where it is free, the first ones first.

    A label lies inside the picture and on no other label. It hides at most HIDDEN_SHARE of another
    object, and all labels together at most LABELLED_SHARE of the picture. The font shrinks where
    objects are smaller than its letters.

    Args:
        labels: of all objects; one without text is an object that must not be hidden.
        font_size: pixels, for objects that are large enough.

    Returns:
        How many labels found no place and are not drawn.
    """
    boxes = np.array([label.box for label in labels], dtype=float).reshape(-1, 4)
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    typical = float(np.median(sides)) if len(sides) else 0.0
    pixels = max(SMALLEST, round(float(np.clip(typical / 3, 0.6 * font_size, font_size))))
    taken: list[Rectangle] = []
    space = LABELLED_SHARE * size[0] * size[1]
    unlabelled = 0
    for index, label in enumerate(labels):
        if not label.text:
            continue
        font = font_for(label.text, pixels)
        text = _fit(label.text, font, size[0] - 8)
        left, _, right, _ = font.getbbox(text)
        margin = max(2, pixels / 5)
        w, h = right - left + 2 * margin, pixels * 1.1 + margin
        others = np.delete(boxes, index, axis=0)
        place = None
        if w * h <= space and w <= size[0] and h <= size[1]:
            place = _free_place(label.box, w, h, taken, others, size)
        if place is None or not text:
            unlabelled += 1
            continue
        taken.append(place)
        space -= w * h
        pen.rounded_rectangle(place, radius=margin, fill=label.colour)
        pen.text(
            (place[0] + margin - left, (place[1] + place[3]) / 2),
            text,
            fill=text_colour(label.colour),
            font=font,
            anchor="lm",
        )
    return unlabelled


def _free_place(
    box: Rectangle,
    w: float,
    h: float,
    taken: Sequence[Rectangle],
    others: np.ndarray,
    size: tuple[int, int],
) -> Rectangle | None:
    """The first free place for a label of ``w x h`` above, in or below its box."""
    for x, y in _places(box, w, h):
        if not 0 <= y <= size[1] - h:
            continue
        x = min(max(x, 0), size[0] - w)
        place = (x, y, x + w, y + h)
        if any(_overlap(place, other) for other in taken) or _hides(place, others):
            continue
        return place
    return None


def _places(box: Rectangle, w: float, h: float) -> Iterator[tuple[float, float]]:
    """Left upper corners to try, the best first."""
    left, top, right, bottom = box
    yield left, top - h
    if (right - left) * (bottom - top) > 4 * w * h:  # a label would hide a smaller object
        yield left, top
        yield left, bottom - h
    yield right - w, top - h
    yield left, bottom
    yield right - w, bottom


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _hides(place: Rectangle, boxes: np.ndarray) -> bool:
    """Whether a label would hide too much of one of the boxes ``[N, 4]``."""
    sides = np.minimum(boxes[:, 2:], place[2:]) - np.maximum(boxes[:, :2], place[:2])
    hidden = sides.clip(0).prod(1)
    return bool((hidden > HIDDEN_SHARE * (boxes[:, 2:] - boxes[:, :2]).prod(1)).any())


def text_colour(background: Colour) -> Colour:
    """Dark or white, whichever has the greater contrast."""
    return max((DARK, WHITE), key=lambda colour: contrast(colour, background))


def contrast(first: Colour, second: Colour) -> float:
    """WCAG 2's contrast ratio, 1 to 21; text wants 4.5."""
    values = np.array([first, second]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    low, high = np.sort(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    return float(high / low)


def _fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, cut to the width with an ellipsis if it must be; maybe empty."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…" if text else ""


@lru_cache(maxsize=1024)
def drawable(text: str) -> str:
    """The part of a text that can be drawn; a warning is logged once where that is not all."""
    if _font_with(text) is not None:
        return text
    known = _characters(DEJAVU)
    rest = "".join(character for character in text if ord(character) in known).strip()
    logger.warning(
        "no font on this machine has all characters of %r: pictures show %s. Install a font for "
        "them, such as one of the Noto fonts",
        text,
        repr(rest) if rest else "the class's number",
    )
    return rest


def font_for(text: str, pixels: int) -> ImageFont.FreeTypeFont:
    """The font that draws all of a text, or DejaVu Sans where none does."""
    return _load(_font_with(text) or DEJAVU, pixels)


@lru_cache(maxsize=1024)
def _font_with(text: str) -> Path | None:
    """The first font file that has all characters of a text."""
    wanted = set(map(ord, text))
    if wanted <= _characters(DEJAVU):
        return DEJAVU
    for path in _other_fonts():
        if wanted <= _characters(path):
            return path
    return None


@lru_cache
def _other_fonts() -> list[Path]:
    from matplotlib.font_manager import findSystemFonts  # slow to import, and rarely needed

    return sorted(map(Path, findSystemFonts()))


@lru_cache
def _characters(path: Path) -> frozenset[int]:
    """Code points that a font can draw in any size; none for one that Pillow cannot load."""
    try:
        _load(path, 20)
        return frozenset(FT2Font(str(path)).get_charmap())
    except (OSError, RuntimeError):  # bitmap fonts, damaged files
        return frozenset()


@lru_cache
def _load(path: Path, pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), pixels)  # old versions of Pillow take no Path
