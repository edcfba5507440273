"""Changes of an image's geometry, drawn from a config: crop, flips, turns, sizes.

The draws, from numpy's global generator, and the results are those of detectron2's augmentations:
``RandomCrop``, ``ResizeShortestEdge``, ``RandomFlip`` (two of them for both directions) and
``RandomRotation`` by a choice of 0, 90, 180 and 270 degrees; with large-scale jitter
``RandomFlip``, the turn, ``ResizeScale`` and ``FixedSizeCrop(pad=False)``.

Deliberate deviations:
  * a turn moves pixels as they are, for any number of channels; detectron2's asks OpenCV to warp
    them, with the same result for the images that it takes.
  * a crop keeps at least one pixel.

Coordinates: x to the right, y down, pixels; the image spans [0, width] x [0, height].
"""

# ruff: noqa: NPY002 - numpy's global generator is what the loop seeds and what detectron2 draws from

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from images.resizing import resized

ANGLES = (0, 90, 180, 270)  # degrees, counter-clockwise


class Transform(Protocol):
    """A change of an image's geometry."""

    def pixels(self, image: np.ndarray, resample: Image.Resampling) -> np.ndarray:
        """``[H, W]`` or ``[H, W, C]`` of uint8 or float32 -> the same, transformed."""

    def points(self, xy: np.ndarray) -> np.ndarray:
        """``[N, 2]`` float64 points -> the same, transformed."""


@dataclass(frozen=True)
class Resize:
    """From ``height x width`` to ``new_height x new_width``, by Pillow (antialiased)."""

    height: int
    width: int
    new_height: int
    new_width: int

    def pixels(self, image: np.ndarray, resample: Image.Resampling) -> np.ndarray:
        return resized(image, self.new_height, self.new_width, resample)

    def points(self, xy: np.ndarray) -> np.ndarray:
        return xy * [self.new_width * 1.0 / self.width, self.new_height * 1.0 / self.height]


@dataclass(frozen=True)
class Flip:
    """Mirror x within ``extent`` (the width), or y within it (the height)."""

    axis: int  # 0: x, 1: y
    extent: int

    def pixels(self, image: np.ndarray, resample: Image.Resampling) -> np.ndarray:
        return np.flip(image, axis=1 - self.axis)

    def points(self, xy: np.ndarray) -> np.ndarray:
        flipped = xy.copy()
        flipped[:, self.axis] = self.extent - flipped[:, self.axis]
        return flipped


@dataclass(frozen=True)
class Turn:
    """``quarters`` times 90 degrees counter-clockwise, of an image of ``height x width``."""

    quarters: int
    height: int
    width: int

    def pixels(self, image: np.ndarray, resample: Image.Resampling) -> np.ndarray:
        return np.rot90(image, self.quarters)

    def points(self, xy: np.ndarray) -> np.ndarray:
        width, height = self.width, self.height
        for _ in range(self.quarters % 4):
            xy = np.stack([xy[:, 1], width - xy[:, 0]], axis=1)
            width, height = height, width
        return xy


@dataclass(frozen=True)
class Crop:
    """The part of at most ``height x width`` pixels whose upper left corner is (x, y)."""

    x: int
    y: int
    height: int
    width: int

    def pixels(self, image: np.ndarray, resample: Image.Resampling) -> np.ndarray:
        return image[self.y : self.y + self.height, self.x : self.x + self.width]

    def points(self, xy: np.ndarray) -> np.ndarray:
        return xy - [self.x, self.y]


def resize_shortest_edge(height: int, width: int, shortest: int, longest: int) -> Resize:
    """The shorter side becomes ``shortest``, or less where the longer would exceed ``longest``."""
    scale = shortest / min(height, width)
    new_height, new_width = scale * height, scale * width
    # detectron2 takes the shorter side as it is, not as scale * side: a matter of rounding.
    if height < width:
        new_height = float(shortest)
    else:
        new_width = float(shortest)
    if max(new_height, new_width) > longest:
        scale = longest / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return Resize(height, width, max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1))


def resize_into_square(height: int, width: int, side: float) -> Resize:
    """The largest size of the same shape that fits into a square, rounded half to even."""
    scale = min(side / height, side / width)
    return Resize(height, width, max(round(height * scale), 1), max(round(width * scale), 1))


def draw_transforms(
    options: Any, height: int, width: int, training: bool, scale: float = 1.0
) -> list[Transform]:
    """Draw the transforms of one image of ``height x width`` from numpy's global generator.

    Args:
        options: the section ``INPUT`` of a config.
        height, width: of the image in its file.
        training: with augmentation.
        scale: what the drawn size is multiplied by; large-scale jitter has its own.
    """
    if not training:
        if options.MIN_SIZE_TEST == 0 or options.TILES.ENABLED:
            return []
        return [resize_shortest_edge(height, width, options.MIN_SIZE_TEST, options.MAX_SIZE_TEST)]
    drawn: list[Transform] = []
    if options.LSJ.ENABLED:
        drawn += _draw_flips(options.RANDOM_FLIP, height, width)
        turned, (height, width) = _draw_turn(options, height, width)
        factor = np.random.uniform(options.LSJ.MIN_SCALE, options.LSJ.MAX_SCALE)
        resize = resize_into_square(height, width, options.LSJ.SIZE * factor)
        crop = _draw_jitters_crop(options.LSJ.SIZE, resize.new_height, resize.new_width)
        return [*drawn, *turned, resize, crop]
    if options.CROP.ENABLED:
        crop = draw_crop(options.CROP.TYPE, options.CROP.SIZE, height, width)
        drawn, height, width = [crop], crop.height, crop.width
    resize = scaled(_draw_size(options, height, width), scale)
    if not options.TILES.ENABLED or scale != 1:  # else a tile keeps its image's pixels
        drawn.append(resize)
        height, width = resize.new_height, resize.new_width
    flips = _draw_flips(options.RANDOM_FLIP, height, width)
    return [*drawn, *flips, *_draw_turn(options, height, width)[0]]


def _draw_size(options: Any, height: int, width: int) -> Resize:
    """The size of a training sample; a tile's is its own."""
    if options.TILES.ENABLED:
        return Resize(height, width, height, width)
    sizes = options.MIN_SIZE_TRAIN
    if options.MIN_SIZE_TRAIN_SAMPLING == "range":
        shortest = np.random.randint(sizes[0], sizes[1] + 1)
    else:
        shortest = np.random.choice(sizes)
    return resize_shortest_edge(height, width, int(shortest), options.MAX_SIZE_TRAIN)


def scaled(resize: Resize, scale: float) -> Resize:
    """The same to ``scale`` times its size, a pixel at least."""
    height, width = (max(round(s * scale), 1) for s in (resize.new_height, resize.new_width))
    return Resize(resize.height, resize.width, height, width)


def draw_crop(kind: str, size: Any, height: int, width: int) -> Crop:
    """detectron2's ``RandomCrop`` of an image of ``height x width``.

    Args:
        kind: "relative" (``size`` are parts of height and width), "relative_range" (from these
            parts to all), "absolute" (pixels) or "absolute_range" (of each side between these).
    """
    low, high = size
    if kind == "relative":
        rows, columns = int(height * low + 0.5), int(width * high + 0.5)
    elif kind == "relative_range":
        parts = np.asarray(size, dtype=np.float32)
        part_y, part_x = parts + np.random.rand(2) * (1 - parts)
        rows, columns = int(height * part_y + 0.5), int(width * part_x + 0.5)
    elif kind == "absolute":
        rows, columns = min(low, height), min(high, width)
    else:
        rows = np.random.randint(min(height, low), min(height, high) + 1)
        columns = np.random.randint(min(width, low), min(width, high) + 1)
    rows, columns = max(int(rows), 1), max(int(columns), 1)
    y = int(np.random.randint(height - rows + 1))
    return Crop(int(np.random.randint(width - columns + 1)), y, rows, columns)


def _draw_flips(direction: str, height: int, width: int) -> list[Transform]:
    chosen = ("horizontal", "vertical") if direction == "both" else (direction,)
    return [
        Flip(0, width) if each == "horizontal" else Flip(1, height)
        for each in chosen
        if each != "none" and np.random.uniform() < 0.5
    ]


def _draw_turn(options: Any, height: int, width: int) -> tuple[list[Transform], tuple[int, int]]:
    """A turn, if the config has any and it is not by 0 degrees; the size after it."""
    quarters = int(np.random.choice(ANGLES)) // 90 if options.AUGMENTATION.ROTATE_90 else 0
    size = (width, height) if quarters % 2 else (height, width)
    return [Turn(quarters, height, width)] if quarters else [], size


def _draw_jitters_crop(size: int, height: int, width: int) -> Crop:
    # One draw for both sides, as detectron2's: large images are cropped along their diagonal.
    offset = np.random.uniform(0.0, 1.0)
    x, y = (round(max(side - size, 0) * offset) for side in (width, height))
    return Crop(x, y, size, size)


def recomputes_boxes(options: Any) -> bool:
    """Whether boxes are those of the masks, as their transformed corners are no longer tight."""
    copy_paste = options.AUGMENTATION.COPY_PASTE.ENABLED
    return options.LSJ.ENABLED or options.CROP.ENABLED or copy_paste
