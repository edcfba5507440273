"""Draw boxes, masks and labels on an image, readable at any image size.

The image is first resized to its final size, then drawn on, so that lines and labels can be read
on a 200 px thumbnail and on a 4000 px photograph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle_codec

from detection.data.windows import decode_window
from detection.drawing.labels import Label, Rectangle, draw_labels, drawable
from detection.evaluation.results import segmentation_to_rle
from reporting.palette import class_colour

MASK_OPACITY = 0.42
READABLE = 640, 160  # least pixels of the longer and the shorter side that leave room for labels
ROWS = 64  # of a mask that are filled at once
IN_WINDOWS = 2**26  # pixels of an image from which masks are resized within their boxes
MOST_ENLARGED = 3200  # pixels of the longer side of what is enlarged


@dataclass(frozen=True)
class Instance:
    """One object to draw.

    Args:
        box: x, y, width, height in pixels of the image.
        colour_index: which colour; the class's position among the classes.
        label: the text on it, such as "cat 0.97".
        mask: compressed RLE of the image's size, or None.
        crowd: drawn without filling, since it marks a region and no object.
    """

    box: tuple[float, float, float, float]
    colour_index: int
    label: str
    mask: Mapping[str, Any] | None = None
    crowd: bool = False


class Drawing(NamedTuple):
    """``image [h, w, 3]`` uint8 RGB; ``unlabelled``: instances whose label found no free place."""

    image: np.ndarray
    unlabelled: int


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

    Raises:
        ValueError: if a segmentation is neither polygons nor an RLE.
    """
    positions = {category: index for index, category in enumerate(class_names)}
    instances = []
    for entry in sorted(entries, key=lambda entry: -entry.get("score", 1.0)):
        category, mask, box = entry["category_id"], None, entry.get("bbox")
        if entry.get("segmentation"):
            mask = segmentation_to_rle(entry["segmentation"], height, width)
            box = box or rle_codec.toBbox(mask).tolist()
        crowd = bool(entry.get("iscrowd", 0))
        label = (drawable(class_names[category]) or f"class {category}") + (
            " (crowd)" if crowd else ""
        )
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
    size: tuple[int, int] | None = None,
) -> Drawing:
    """Draw instances on a copy of an image.

    Args:
        image: ``[H, W, 3]`` uint8, RGB.
        instances: masks and boxes in the image's pixels; the first get their labels placed first.
        long_side: pixels of the drawing's longer side; None keeps that of ``image``.
        font_size: pixels of the drawing; by default a 40th of its longer side, less on a strip, at
            least 11.
        size: height and width of the image that the instances are of, if ``image`` was shrunk.
    """
    height, width = size or image.shape[:2]
    scale = (long_side or max(image.shape[:2])) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrinks = size[0] < image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    is_same = size == image.shape[1::-1]
    canvas = np.array(image if is_same else cv2.resize(image, size, interpolation=method))
    thickest = max(size) / 450
    largest_first = sorted(instances, key=lambda i: -i.box[2] * i.box[3])  # small ones stay visible
    for instance in largest_first:
        if instance.mask is not None:
            _draw_mask(canvas, instance, instance.mask, _line(instance, scale, thickest))
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for instance in largest_first:
        box = _scaled_box(instance, scale, size)
        line = _line(instance, scale, thickest)
        pen.rectangle(box, outline=class_colour(instance.colour_index), width=line)
    labels = [
        Label(i.label, _scaled_box(i, scale, size), class_colour(i.colour_index)) for i in instances
    ]
    fitting = max(11, min(max(size) / 40, min(size) / 8))
    unlabelled = draw_labels(pen, labels, size, font_size or fitting)
    return Drawing(np.asarray(picture), unlabelled)


def readable_scale(height: int, width: int) -> float:
    """How many times to enlarge an image so that labels on it can be read; 1 for most."""
    longer, shorter = max(height, width), min(height, width)
    wanted = max(READABLE[0] / longer, READABLE[1] / shorter)
    return max(1.0, min(wanted, MOST_ENLARGED / longer))


def _draw_mask(canvas: np.ndarray, instance: Instance, mask: Mapping[str, Any], line: int) -> None:
    """Fill (unless it is a crowd) and outline the mask, in place."""
    colour = class_colour(instance.colour_index)
    inside, (left, top) = _window(mask, canvas.shape[0], canvas.shape[1])
    if not inside.size:
        return
    opacity = MASK_OPACITY / 3 if instance.crowd else MASK_OPACITY
    levels = np.arange(256)[:, None]
    mixed = ((1 - opacity) * levels + opacity * np.array(colour)).round().astype(np.uint8)
    for first in range(0, len(inside), ROWS):
        marked = inside[first : first + ROWS]
        pixels = canvas[top + first :, left:][: len(marked), : marked.shape[1]]
        np.copyto(pixels, cv2.LUT(pixels, mixed[None]), where=marked[..., None])
    outlines, _ = cv2.findContours(
        inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(left, top)
    )
    cv2.drawContours(canvas, outlines, -1, colour, line, cv2.LINE_AA)


def _window(mask: Mapping[str, Any], height: int, width: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A mask on a drawing of this size: bool ``[h, w]``, and the x and y of its first pixel."""
    inside, corner = decode_window(mask)
    size = tuple(mask["size"])
    if size == (height, width):
        return inside, corner
    if size[0] * size[1] > IN_WINDOWS:
        return _shrunk(inside, corner, size, (height, width))
    whole = np.zeros(size, np.uint8)
    (x, y), (h, w) = corner, inside.shape
    whole[y : y + h, x : x + w] = 255 * inside
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_LINEAR) > 127, (0, 0)


def _shrunk(
    inside: np.ndarray, corner: tuple[int, int], size: Sequence[int], drawn: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """A part of a mask of a large image, on a drawing of another size."""
    if not inside.size:
        return inside, (0, 0)
    factors = drawn[1] / size[1], drawn[0] / size[0]
    start = [int(first * factor) for first, factor in zip(corner, factors, strict=True)]
    ends = [
        min(max(math.ceil((first + side) * factor), low + 1), most)
        for first, side, factor, low, most in zip(
            corner, inside.shape[::-1], factors, start, drawn[::-1], strict=True
        )
    ]
    shape = ends[0] - start[0], ends[1] - start[1]
    bitmap = cv2.resize(inside.astype(np.uint8) * 255, shape, interpolation=cv2.INTER_AREA)
    return bitmap > 127, (start[0], start[1])


def _line(instance: Instance, scale: float, thickest: float) -> int:
    """Pixels of an outline: at most a tenth of the object, so that small ones stay visible."""
    return max(1, round(min(thickest, min(instance.box[2:]) * scale / 10)))


def _scaled_box(instance: Instance, scale: float, size: tuple[int, int]) -> Rectangle:
    """The box in the drawing's pixels, clipped to it so that its lines stay visible."""
    x, y, w, h = instance.box
    corners = np.array([x, y, x + max(w, 0), y + max(h, 0)]) * scale
    left, top, right, bottom = np.clip(corners, 0, np.array([*size, *size]) - 1.0).tolist()
    return left, top, right, bottom
