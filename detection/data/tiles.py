"""Tiles of large images: their places, their size, and their samples in a prediction.

A tile is a part of an image at the image's own pixels: nothing is resized (``INPUT.MIN_SIZE_*`` and
``MAX_SIZE_*`` have no effect). Both engines call these functions before their own transforms, so
they train on the same tiles from the same state of numpy's generator.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from fvcore.common.config import CfgNode
from torch.utils.data import IterableDataset, get_worker_info

from backbones.errors import InputError, counted
from detection.data.pixels import open_record, to_tensor
from detection.data.records import Records
from images.configured import in_order
from images.windows import Windows

logger = logging.getLogger(__name__)

COUNTS_FILE = "tiles.json"  # beside results: counts of tiles' detections, joined ones among them
SIZE, OVERLAP = 1024, 256  # pixels, where no objects are known
STEP = 64  # pixels: sizes and overlaps that are computed are multiples of it
SIZES = 256, 1024  # least and largest size that is computed, pixels
PERCENTILE = 99  # of the objects' longer sides; the overlap is as long


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
        records: their objects decide; without objects 1024 and 256 are taken.

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


def tile_sample(image: Windows, tile: Tile, config: CfgNode, image_id: Any) -> dict[str, Any]:
    """A tile as the sample of a detector, see :func:`detection.data.transforms.sample_of_values`.

    Its ``height`` and ``width`` are the tile's, which the detections lie in.
    """
    pixels = to_tensor(in_order(image.read(*tile), config))
    return {"image": pixels, "height": tile.height, "width": tile.width, "image_id": image_id}


class TileSamples(IterableDataset):
    """The tiles of a data set's images, one image's after the other.

    Yields (index of the record, tile, sample), see :func:`tile_sample`. The workers of a loader
    share the images.
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
    """The counts of an evaluation's ``tiles.json`` as a sentence."""
    return (
        f"{counted(counts['tiles'], 'tile')} of {counts['size']} pixels that share "
        f"{counts['overlap']}, of {counted(counts['images'], 'image')}: "
        f"{counted(counts['found'], 'detection')}, of which {counts['repeated']} show what "
        f"another tile shows, and {counts['parts']} are parts of {counts['united']} objects that "
        "every tile cuts"
    )
