"""Records of tiles: draw the tiles to train on, and cut their objects.

A share ``INPUT.TILES.BACKGROUND`` of the training tiles is placed where no annotation lies (crowds
count too), if one of ``TRIES`` random places is such a one. All others are placed around an object,
which is whole wherever it fits. With the
image cut into cells of a tile's size, an epoch has one tile for each cell that holds the centre of
an object, and at least one.

Of an object that a tile cuts, the mask's pixels in the tile remain, and the box around them. An
object is left out if fewer of its pixels are visible than ``INPUT.TILES.MIN_VISIBLE`` times the
object's or the tile's pixels, whichever is less; a crowd stays as long as one pixel is visible.
"""

# ruff: noqa: NPY002 - numpy's global generator is what the loop seeds and what detectron2 draws from

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from fvcore.common.config import CfgNode

from detection.data.records import Records
from detection.data.tiles import Tile, tiles_of
from detection.data.windows import decode_window, encode_strips

logger = logging.getLogger(__name__)

TRIES = 20  # random places that are tried for a tile without objects


def training_records(records: Records, config: CfgNode) -> Records:
    """Each record once for every cell of a tile's size that holds an object's centre."""
    tiles = config.INPUT.TILES
    if not tiles.ENABLED:
        return records
    counts = []
    for record in records:
        boxes = _boxes([item for item in record["annotations"] if not item["iscrowd"]])
        cells = (boxes[:, :2] + boxes[:, 2:]) // (2 * tiles.SIZE)
        counts.append(max(1, len(np.unique(cells, axis=0))))
    logger.info(
        "an epoch is %d tiles of %d pixels of %d images", sum(counts), tiles.SIZE, len(records)
    )
    return records.repeated(counts)


def training_record(record: dict[str, Any], config: CfgNode) -> dict[str, Any]:
    """A record of a tile that is drawn from numpy's global generator; without tiles, the record.

    It has ``tile`` (what :func:`detection.data.pixels.read_record` reads alone), ``image_size``
    (height and width of the whole) and the tile's ``height``, ``width`` and ``annotations``.
    """
    if not config.INPUT.TILES.ENABLED:
        return record
    tile = draw_tile(record, config.INPUT.TILES)
    return cut_record(record, tile, config.INPUT.TILES.MIN_VISIBLE)


def busiest_tile(record: dict[str, Any], config: CfgNode) -> dict[str, Any]:
    """The record of the tile with the most annotations, of the tiles of a prediction."""
    if not config.INPUT.TILES.ENABLED:
        return record
    boxes = _boxes(record["annotations"])
    tiles = tiles_of(record["height"], record["width"], config)
    return cut_record(record, max(tiles, key=lambda tile: _meets(boxes, tile).sum()), 0.0)


def draw_tile(record: dict[str, Any], options: CfgNode) -> Tile:
    """Draw a tile to train on, see the module's header.

    Args:
        options: the section ``INPUT.TILES`` of a config, its size resolved.
    """
    height, width = record["height"], record["width"]
    wide, high = min(options.SIZE, width), min(options.SIZE, height)
    if (wide, high) == (width, height):
        return Tile(0, 0, wide, high)
    boxes = _boxes(record["annotations"])
    objects = boxes[[not item["iscrowd"] for item in record["annotations"]]]
    if np.random.uniform() < options.BACKGROUND or not len(objects):
        for _ in range(TRIES):
            x = np.random.randint(width - wide + 1)
            y = np.random.randint(height - high + 1)
            if not _meets(boxes, Tile(x, y, wide, high)).any():
                return Tile(x, y, wide, high)
        if not len(objects):
            return Tile(x, y, wide, high)
    x0, y0, x1, y1 = objects[np.random.randint(len(objects))]
    return Tile(_draw_start(x0, x1, wide, width), _draw_start(y0, y1, high, height), wide, high)


def _draw_start(low: float, high: float, size: int, side: int) -> int:
    """Where a tile begins that holds all from ``low`` to ``high``, or nothing else."""
    ends = sorted((math.ceil(high) - size, math.floor(low)))
    first, last = (min(max(end, 0), side - size) for end in ends)
    return int(np.random.randint(first, last + 1))


def _boxes(annotations: Sequence[dict[str, Any]]) -> np.ndarray:
    """float64 ``[N, 4]``: x0, y0, x1, y1."""
    boxes = np.array([item["bbox"] for item in annotations], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _meets(boxes: np.ndarray, tile: Tile) -> np.ndarray:
    x, y, width, height = tile
    inside = (boxes[:, :2] < [x + width, y + height]) & (boxes[:, 2:] > [x, y])
    return np.all(inside, axis=1)


def cut_record(record: dict[str, Any], tile: Tile, min_visible: float) -> dict[str, Any]:
    """A record of what a tile shows, see :func:`training_record`."""
    size, annotations = (record["height"], record["width"]), record["annotations"]
    found = [
        _cut(item, box, tile, size, min_visible)
        for item, box, meets in zip(
            annotations,
            _boxes(annotations),
            _meets(_boxes(annotations), tile),
            strict=True,
        )
        if meets
    ]
    return record | {
        "tile": tile,
        "image_size": size,
        "height": tile.height,
        "width": tile.width,
        "annotations": [item for item in found if item is not None],
    }


def _cut(
    item: dict[str, Any], box: np.ndarray, tile: Tile, size: tuple[int, int], min_visible: float
) -> dict[str, Any] | None:
    """An annotation in the tile's pixels; None if too little of it is visible."""
    x, y, width, height = tile
    segmentation = item.get("segmentation")
    is_inside = (box >= [x, y, x, y]).all() and (box <= [x + width, y + height] * 2).all()
    if is_inside and not isinstance(segmentation, dict):
        left, top, *sides = item["bbox"]
        cut = item | {"bbox": [left - x, top - y, *sides]}
        if segmentation:
            cut["segmentation"] = [
                (np.reshape(np.asarray(p, np.float64), (-1, 2)) - [x, y]).ravel().tolist()
                for p in segmentation
            ]
        return cut
    if segmentation:
        rle = segmentation
        if not isinstance(rle, dict):
            polygons = [np.asarray(p, np.float64).ravel() for p in segmentation]
            rle = mask_util.merge(mask_util.frPyObjects(polygons, *size))
        mask, (left, top) = decode_window(rle)
        whole = int(mask.sum())
        x0, y0 = max(left, x), max(top, y)
        # A mask may lie beyond the tile that its box meets: then nothing of it is seen.
        y1, x1 = max(y + height - top, 0), max(x + width - left, 0)
        part = mask[y0 - top : y1, x0 - left : x1]
        rows, columns = (np.flatnonzero(part.any(axis)) for axis in (1, 0))
        visible = int(part.sum())
        if not visible:
            return None
        cut = item | {"segmentation": encode_strips([(part, x0 - x)], y0 - y, height, width)}
        if not is_inside:
            first, last = (columns[0], rows[0]), (columns[-1] + 1, rows[-1] + 1)
            corner = [float(first[0] + x0 - x), float(first[1] + y0 - y)]
            cut["bbox"] = [*corner, *(float(b - a) for a, b in zip(first, last, strict=True))]
        else:
            cut["bbox"] = [item["bbox"][0] - x, item["bbox"][1] - y, *item["bbox"][2:]]
    else:
        x0, y0 = max(box[0], x), max(box[1], y)
        sides = [min(box[2], x + width) - x0, min(box[3], y + height) - y0]
        cut = item | {"bbox": [float(value) for value in (x0 - x, y0 - y, *sides)]}
        whole, visible = item["bbox"][2] * item["bbox"][3], sides[0] * sides[1]
    if item["iscrowd"] or visible >= min_visible * min(whole, width * height):
        return cut
    return None
