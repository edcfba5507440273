"""Tiles of large images: where they lie, which are drawn to train on, and what they show.

A tile is a part of an image at the image's own pixels: nothing is resized (``INPUT.MIN_SIZE_*`` and
``MAX_SIZE_*`` do not act). Both engines call these functions before their own transforms, so they
train on the same tiles from the same state of numpy's generator.

Training draws ``INPUT.TILES.BACKGROUND`` of its tiles where no annotation lies (crowds count, too)
if ``TRIES`` places tell of such a one, and all others around an object, whole wherever it fits.
An image counts as often in an epoch as tiles side by side would show its objects.

What a tile shows of an object that it cuts is its mask's pixels in the tile, and the box around
them. An object is left out if fewer pixels of it are to be seen than ``INPUT.TILES.MIN_VISIBLE`` of
the object's or of the tile's, whichever is less; crowds stay crowds, however little is seen.
"""

# ruff: noqa: NPY002 - numpy's global generator is what the loop seeds and what detectron2 draws from

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
from fvcore.common.config import CfgNode
from torch.utils.data import IterableDataset, get_worker_info

from backbones.errors import InputError
from detection.data.pixels import open_record, to_tensor
from detection.data.records import Records
from detection.data.windows import decode_window, encode_strips
from images.configured import in_order
from images.windows import Windows

logger = logging.getLogger(__name__)

COUNTS_FILE = "tiles.json"  # beside results: what the tiles' detections became
TRIES = 20  # places where a tile of no object is looked for
SIZE, OVERLAP = 1024, 256  # where nothing is known of the objects
STEP = 64  # of sizes and overlaps that are found
SIZES = 256, 1024  # that are found
PERCENTILE = 99  # of the objects' longer sides that the overlap holds


class Tile(NamedTuple):
    """A part of an image, in its pixels."""

    x: int
    y: int
    width: int
    height: int


def grid(height: int, width: int, size: int, overlap: int) -> list[Tile]:
    """Tiles that cover an image, row by row: as few as share ``overlap`` pixels, evenly spread.

    An image whose side is ``size`` or less has one along it, as long as the side.
    """
    return [
        Tile(x, y, min(size, width), min(size, height))
        for y in _starts(height, size, overlap)
        for x in _starts(width, size, overlap)
    ]


def _starts(side: int, size: int, overlap: int) -> list[int]:
    count = max(1, math.ceil((side - overlap) / (size - overlap)))
    last = max(side - size, 0)
    return [round(place * last / (count - 1)) for place in range(count)] if count > 1 else [0]


def tiles_of(height: int, width: int, config: CfgNode) -> list[Tile]:
    """The tiles that a config predicts an image by."""
    return grid(height, width, config.INPUT.TILES.SIZE, config.INPUT.TILES.OVERLAP)


def resolve_tiles(config: CfgNode, records: Records) -> CfgNode:
    """The config with a size of 0 and an overlap of -1 replaced by what the objects ask for.

    The overlap holds 99 of 100 objects by their longer side, so that each is whole in some tile;
    the size is four times that, between 256 and 1024 pixels. Both are multiples of 64 and the
    overlap at most half of the size: what is larger is united from its parts.

    Args:
        records: whose objects are looked at; where there is none, 1024 and 256 are taken.

    Raises:
        InputError: if the overlap, of a run that is evaluated otherwise, is not below the size.
    """
    tiles = config.INPUT.TILES
    if not tiles.ENABLED or (tiles.SIZE and tiles.OVERLAP >= 0):
        if tiles.ENABLED and tiles.OVERLAP >= tiles.SIZE:
            raise InputError(
                f"INPUT.TILES.OVERLAP is {tiles.OVERLAP}, but INPUT.TILES.SIZE {tiles.SIZE}: give "
                "an overlap below the size, half of it at most"
            )
        return config
    sides = [
        max(item["bbox"][2:])
        for record in records
        for item in record["annotations"]
        if not item["iscrowd"]
    ]
    config = config.clone()
    config.defrost()
    tiles = config.INPUT.TILES
    said = f"{PERCENTILE} of 100 objects are at most"
    long = float(np.percentile(sides, PERCENTILE)) if sides else OVERLAP
    if not tiles.SIZE:
        size = SIZE if not sides else math.ceil(4 * long / STEP) * STEP
        tiles.SIZE = max(size, SIZES[0], tiles.OVERLAP + STEP)
        tiles.SIZE = max(min(tiles.SIZE, SIZES[1]), tiles.OVERLAP + STEP)
    if tiles.OVERLAP < 0:
        tiles.OVERLAP = min(math.ceil(long / STEP) * STEP, tiles.SIZE // 2)
    config.freeze()
    why = f"{said} {long:.0f} pixels long" if sides else "no objects to find them by"
    logger.info("tiles of %d pixels that share %d (%s)", tiles.SIZE, tiles.OVERLAP, why)
    return config


def training_records(records: Records, config: CfgNode) -> Records:
    """Each record as often as tiles side by side would show its objects, at least once."""
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
    """The record of the tile, of those of a prediction, that most annotations meet."""
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
    """An annotation in the tile's pixels; None if too little of it is to be seen."""
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
        part = mask[y0 - top : y + height - top, x0 - left : x + width - left]
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


def tile_sample(image: Windows, tile: Tile, config: CfgNode, image_id: Any) -> dict[str, Any]:
    """A tile as the sample of a detector, see :func:`detection.data.transforms.prediction_sample`.

    Its ``height`` and ``width`` are the tile's, which the detections lie in.
    """
    pixels = to_tensor(in_order(image.read(*tile), config))
    return {"image": pixels, "height": tile.height, "width": tile.width, "image_id": image_id}


class TileSamples(IterableDataset):
    """The tiles of a data set's images, one image's after the other.

    Yields (index of the record, tile, sample), see :func:`tile_sample`. The workers of a loader
    share the images.

    Args:
        records: of the data set.
        share: indices of the records to read.
        config: a detection config, its tiles resolved.
    """

    def __init__(self, records: Records, share: Sequence[int], config: CfgNode) -> None:
        self.records, self.share, self.config = records, list(share), config

    def __iter__(self) -> Iterator[tuple[int, Tile, dict[str, Any]]]:
        worker = get_worker_info()
        step = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in self.share[step[0] :: step[1]]:
            record = self.records[index]
            with open_record(record, self.config) as image:
                for tile in tiles_of(image.height, image.width, self.config):
                    yield index, tile, tile_sample(image, tile, self.config, record["image_id"])


def tiles_sentence(counts: Mapping[str, int]) -> str:
    """What ``tiles.json`` says of an evaluation, in words."""
    return (
        f"{counts['tiles']} tiles of {counts['size']} pixels that share {counts['overlap']}, of "
        f"{counts['images']} images: {counts['found']} detections, of which {counts['repeated']} "
        f"show what another tile shows, and {counts['parts']} are parts of {counts['united']} "
        "objects that every tile cuts"
    )
