"""Detections on an image and on a whole data set as COCO results, and their metrics in a training.

The same for both engines, for whole images and for tiles. Only the detections of a tile are kept,
so memory depends on the size of a tile and the number of objects, not on the image.
``TEST.DETECTIONS_PER_IMAGE`` limits each tile; there is no limit for the joined image.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fvcore.common.config import CfgNode
from torch import nn

from backbones.errors import counted
from backbones.whole_files import write_json
from detection.data.records import Records
from detection.data.tiles import COUNTS_FILE, Tile, TileSamples, tile_sample, tiles_of
from detection.data.transforms import sample_of_values
from detection.dataset import CocoDataset, result_parts
from detection.engines.interface import Detect
from detection.engines.seams import Result, join_tiles
from detection.engines.weights import AVERAGE_FOLDER
from detection.evaluate import AP_AT_LIMIT, evaluate_run, flat_metrics
from images.windows import Windows
from training.cli import is_main_process
from training.data import guarded_loader
from training.progress import progress

logger = logging.getLogger(__name__)

RESULTS_FILE = "coco_instances_results.json"


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


class Found(NamedTuple):
    """What one process found: (index of the record, its results), and the counts of tiles."""

    results: list[tuple[int, list[dict[str, Any]]]]
    counts: Counter[str]


def detect_on_share(
    config: CfgNode,
    dataset: CocoDataset,
    detect: Detect,
    share: range,
    batches: Iterable[Sequence[dict[str, Any]]],
) -> Found:
    """Detect on the images of a process.

    Args:
        config: this project's or detectron2's.
        share: indices of their records.
        batches: each of one sample, in the order of ``share``; not read where the config has tiles.
    """
    counts: Counter[str] = Counter()
    if config.INPUT.TILES.ENABLED:
        pairs = detect_on_records(detect, dataset.records, share, config, counts)
        return Found(list(pairs), counts)
    bar = progress(batches, "predicting", len(share), "image")
    return Found([(index, detect(one)) for index, (one,) in zip(share, bar, strict=True)], counts)


def write_results(config: CfgNode, folder: str, gathered: Sequence[Found]) -> None:
    """Write what all processes found into ``OUTPUT_DIR/FOLDER``, in the order of the records."""
    path = results_path(config, folder)
    pairs = sorted((pair for found in gathered for pair in found.results), key=lambda pair: pair[0])
    results = [result for _, of_image in pairs for result in of_image]
    write_json(path, results)
    if (tiles := config.INPUT.TILES).ENABLED:
        total = sum((found.counts for found in gathered), Counter())
        names = ("images", "tiles", "found", "repeated", "united", "parts")
        counts = {name: total[name] for name in names}
        write_json(
            path.with_name(COUNTS_FILE), {"size": tiles.SIZE, "overlap": tiles.OVERLAP} | counts
        )
    found, on = counted(len(results), "detection"), counted(len(pairs), "image")
    logger.info("%s on %s: %s", found, on, path)


def results_path(config: CfgNode, folder: str) -> Path:
    return Path(config.OUTPUT_DIR) / folder / RESULTS_FILE


def evaluate_in_training(
    config: CfgNode,
    test_sets: Sequence[CocoDataset],
    model: nn.Module,
    average: nn.Module | None,
    step: int,
    predict: Callable[[nn.Module, CocoDataset, str], Path],
) -> dict[str, float]:
    """Predict in all processes and evaluate in the main one.

    Args:
        average: the model with averaged weights, whose metrics are named ``ema/...``.
        predict: writes the results of a model on a data set into a folder of ``OUTPUT_DIR``.

    Returns:
        The metrics by name: ``bbox/AP`` of the first test set, ``LABEL/bbox/AP`` of the others;
        nothing in processes that are not the main one.
    """
    found: dict[str, float] = {}
    for prefix, detector, folder in (("", model, "inference"), ("ema/", average, AVERAGE_FOLDER)):
        for dataset, part in zip(test_sets, result_parts(test_sets), strict=True):
            if detector is None:
                continue
            results = predict(detector, dataset, f"{folder}/{part}".rstrip("/"))
            if is_main_process():
                metrics, _ = evaluate_run(config, dataset, results)
                of_set = f"{prefix}{part}{'/' if part else ''}"
                found |= {f"{of_set}{name}": value for name, value in flat_metrics(metrics).items()}
    if found:
        ends = ("/AP", f"/{AP_AT_LIMIT}")
        headline = {name: value for name, value in found.items() if name.endswith(ends)}
        logger.info("step %d: %s", step, headline)
    return found
