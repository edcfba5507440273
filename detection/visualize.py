"""Draw boxes, masks and labels on an image, readable at any image size.

Everything is drawn after the image was brought to its final size, so that a line is a line and a
label can be read on a 200 px thumbnail and on a 4000 px photograph. Text is set in DejaVu Sans,
which matplotlib ships: OpenCV's own fonts know ASCII only.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as rle_codec

from detection.evaluate_input import segmentation_to_rle

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom
Colour = tuple[int, int, int]  # RGB, 0-255

PALETTE: tuple[Colour, ...] = (
    (64, 169, 255),
    (255, 145, 66),
    (82, 208, 132),
    (240, 98, 146),
    (178, 132, 255),
    (255, 208, 61),
    (46, 208, 208),
    (255, 107, 94),
    (160, 205, 70),
    (222, 120, 232),
    (120, 144, 255),
    (214, 168, 112),
)
MASK_OPACITY = 0.42


@dataclass(frozen=True)
class Instance:
    """One object to draw.

    Args:
        box: x, y, width, height in pixels of the image.
        colour_index: which colour; the class's position among the classes.
        label: the text on it, such as "cat 0.97".
        mask: ``[H, W]`` bool of the image's size, or None.
        crowd: drawn without filling, since it marks a region and no object.
    """

    box: tuple[float, float, float, float]
    colour_index: int
    label: str
    mask: np.ndarray | None = None
    crowd: bool = False


class Drawing(NamedTuple):
    """``image [h, w, 3]`` uint8 RGB; ``unlabelled``: instances whose label found no free place."""

    image: np.ndarray
    unlabelled: int


def class_colour(index: int) -> Colour:
    """A colour for a class: hand-picked for the first 12, then hues by the golden angle."""
    if index < len(PALETTE):
        return PALETTE[index]
    hue = (index * 0.61803398875) % 1
    lightness, saturation = (0.62, 0.72, 0.54)[index % 3], (0.85, 0.7)[index % 2]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


def coco_instances(
    entries: Sequence[Mapping[str, Any]],
    class_names: Mapping[int, str],
    height: int,
    width: int,
) -> list[Instance]:
    """COCO annotations or results of one image as instances to draw, best score first.

    Args:
        entries: each with ``category_id`` and ``bbox`` or ``segmentation``; a ``score`` is shown.
        class_names: category id -> name, of all classes: its order gives the colours.
        height, width: the image's size in the annotations.

    Raises:
        ValueError: if a segmentation is neither polygons nor an RLE.
    """
    positions = {category: index for index, category in enumerate(class_names)}
    instances = []
    for entry in sorted(entries, key=lambda entry: -entry.get("score", 1.0)):
        category, mask, box = entry["category_id"], None, entry.get("bbox")
        if entry.get("segmentation"):
            rle = segmentation_to_rle(entry["segmentation"], height, width)
            mask = rle_codec.decode(rle).astype(bool)
            box = box or rle_codec.toBbox(rle).tolist()
        crowd = bool(entry.get("iscrowd", 0))
        label = class_names[category] + (" (crowd)" if crowd else "")
        if "score" in entry:
            label += f" {entry['score']:.2f}"
        x, y, w, h = box or (0, 0, 0, 0)
        instances.append(Instance((x, y, w, h), positions[category], label, mask, crowd))
    return instances


def draw_instances(
    image: np.ndarray,
    instances: Sequence[Instance],
    long_side: int | None = None,
    font_size: int | None = None,
) -> Drawing:
    """Draw instances on a copy of an image.

    Args:
        image: ``[H, W, 3]`` uint8, RGB.
        instances: masks and boxes in the image's pixels; the first get their labels placed first.
        long_side: pixels of the drawing's longer side; None keeps the image's size.
        font_size: pixels of the drawing; by default a 38th of its longer side, 11 to 36.
    """
    height, width = image.shape[:2]
    scale = 1.0 if long_side is None else long_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    canvas = np.array(cv2.resize(image, size, interpolation=method) if scale != 1 else image)
    line = max(1, round(max(size) / 450))
    largest_first = sorted(instances, key=lambda i: -i.box[2] * i.box[3])  # small ones stay visible
    for instance in largest_first:
        if instance.mask is not None:
            _draw_mask(canvas, instance, line)
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for instance in largest_first:
        box = _scaled_box(instance, scale, size)
        pen.rectangle(box, outline=class_colour(instance.colour_index), width=line)
    font = _font(font_size or int(np.clip(max(size) / 38, 11, 36)))
    unlabelled = _draw_labels(pen, instances, font, scale, size)
    return Drawing(np.asarray(picture), unlabelled)


def _draw_mask(canvas: np.ndarray, instance: Instance, line: int) -> None:
    """Fill (unless it is a crowd) and outline the mask, in place."""
    assert instance.mask is not None
    colour = class_colour(instance.colour_index)
    bitmap: np.ndarray = instance.mask.astype(np.uint8) * 255
    if bitmap.shape != canvas.shape[:2]:
        bitmap = cv2.resize(bitmap, canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    inside = bitmap > 127
    opacity = MASK_OPACITY / 3 if instance.crowd else MASK_OPACITY
    mixed = (1 - opacity) * canvas[inside] + opacity * np.array(colour)
    canvas[inside] = mixed.round().astype(np.uint8)
    outlines, _ = cv2.findContours(
        inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    cv2.drawContours(canvas, outlines, -1, colour, line, cv2.LINE_AA)


def _scaled_box(instance: Instance, scale: float, size: tuple[int, int]) -> Rectangle:
    """The box in the drawing's pixels, clipped to it so that its lines stay visible."""
    x, y, w, h = instance.box
    corners = np.array([x, y, x + max(w, 0), y + max(h, 0)]) * scale
    left, top, right, bottom = np.clip(corners, 0, np.array([*size, *size]) - 1.0).tolist()
    return left, top, right, bottom


def _draw_labels(
    pen: ImageDraw.ImageDraw,
    instances: Sequence[Instance],
    font: ImageFont.FreeTypeFont,
    scale: float,
    size: tuple[int, int],
) -> int:
    """Labels at the first free place above, in or below their boxes; how many found none."""
    taken: list[Rectangle] = []
    unlabelled = 0
    for instance in instances:
        text = _shorten(instance.label, font, size[0] - 8)
        if not text:
            continue
        left, _, right, _ = font.getbbox(text)
        margin = max(2, font.size / 5)
        w, h = right - left + 2 * margin, font.size * 1.1 + margin
        place = _free_place(_scaled_box(instance, scale, size), w, h, taken, size)
        if place is None:
            unlabelled += 1
            continue
        taken.append(place)
        colour = class_colour(instance.colour_index)
        luminance = np.dot(colour, (0.299, 0.587, 0.114))
        pen.rounded_rectangle(place, radius=margin, fill=colour)
        pen.text(
            (place[0] + margin - left, (place[1] + place[3]) / 2),
            text,
            fill=(20, 20, 24) if luminance > 110 else (255, 255, 255),
            font=font,
            anchor="lm",
        )
    return unlabelled


def _free_place(
    box: Rectangle, w: float, h: float, taken: Sequence[Rectangle], size: tuple[int, int]
) -> Rectangle | None:
    left, top, right, bottom = box
    places = [(left, top - h), (right - w, top - h), (left, bottom), (right - w, bottom)]
    if (right - left) * (bottom - top) > 4 * w * h:  # a label would hide a smaller object
        places[1:1] = [(left, top), (left, bottom - h)]
    for x, y in places:
        if not 0 <= y <= size[1] - h:
            continue
        x = min(max(x, 0), size[0] - w)
        place = (x, y, x + w, y + h)
        if not any(_overlap(place, other) for other in taken):
            return place
    return None


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…" if text else ""


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(path, size)
