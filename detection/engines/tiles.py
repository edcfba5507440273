"""Detection on an image's tiles, one after the other, by a detector of either engine.

A tile's detections are all that is kept of it, so memory depends on the tile and on the number of
objects, not on the image. ``TEST.DETECTIONS_PER_IMAGE`` holds for each tile; the joined image has
as many as there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from backbones.whole_files import write_json
from detection.data.records import Records
from detection.data.tiles import COUNTS_FILE, Tile, TileSamples, tile_sample, tiles_of
from detection.data.transforms import sample_of_values
from detection.engines.interface import Detect
from detection.engines.seams import Result, join_tiles
from images.windows import Windows
from training.data import guarded_loader
from training.progress import progress


def detect_on_image(
    detect: Detect, image: Windows, config: CfgNode, image_id: Any
) -> list[dict[str, Any]]:
    """The detections on an image, by its tiles where the config has them (``INPUT.TILES``).

    Raises:
        ImageError: if the image does not decode.
    """
    if not config.INPUT.TILES.ENABLED:
        values = image.read(0, 0, image.width, image.height)
        return detect(sample_of_values(values, config, image_id))
    found = [
        (tile, detect(tile_sample(image, tile, config, image_id)))
        for tile in tiles_of(image.height, image.width, config)
    ]
    return join_tiles(found, image.height, image.width)


def detect_on_records(
    detect: Detect,
    records: Records,
    share: Sequence[int],
    config: CfgNode,
    counts: Counter[str],
) -> Iterator[tuple[int, list[Result]]]:
    """Yield (index of the record, its joined detections) for the records of ``share``.

    The workers of ``DATALOADER.NUM_WORKERS`` share the images; each reads one at a time.

    Args:
        counts: see :func:`detection.engines.seams.join_tiles`; ``images`` is counted, too.
    """
    workers = min(config.DATALOADER.NUM_WORKERS, len(share))
    loader = guarded_loader(TileSamples(records, share, config), workers, batch_size=None)
    sizes = {index: (records[index]["height"], records[index]["width"]) for index in share}
    expected = {index: len(tiles_of(*size, config)) for index, size in sizes.items()}
    found: dict[int, list[tuple[Tile, list[Result]]]] = {}
    bar = progress(loader, "predicting", sum(expected.values()), "tile")
    for index, tile, sample in bar:
        of_image = found.setdefault(index, [])
        of_image.append((tile, detect(sample)))
        if len(of_image) == expected[index]:
            counts["images"] += 1
            yield index, join_tiles(found.pop(index), *sizes[index], counts)


def write_counts(results: Path, counts: Iterable[Counter[str]], config: CfgNode) -> None:
    """Write what the tiles' detections became beside the results file."""
    total = sum(counts, Counter())
    tiles = config.INPUT.TILES
    facts = {"size": tiles.SIZE, "overlap": tiles.OVERLAP}
    names = ("images", "tiles", "found", "repeated", "united", "parts")
    write_json(results.with_name(COUNTS_FILE), facts | {name: total[name] for name in names})
