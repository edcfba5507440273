"""Run a feature analysis: models on the same images, or the history of runs; write its files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones.errors import InputError, counted
from backbones.whole_files import write_text
from fcmae.features.analysis import BlockFeatures, analyze
from fcmae.features.channel_maps import channel_maps, draw_channel_maps
from fcmae.features.collapse import measured_history
from fcmae.features.images import AnalysisImages, choose_view
from fcmae.features.models import load_model
from fcmae.features.plots import (
    draw_cosine_distance,
    draw_history,
    draw_other_measures,
    draw_selectivity,
)
from fcmae.features.taps import DEFAULT_TAP, Tap, tap_points
from reporting.tables import by_column, csv_text
from training.devices import find_device
from training.options import LARGEST_SEED, out_of_limits
from training.progress import progress

logger = logging.getLogger(__name__)

MEASURES = ("cosine_distance", "dead", "saturated", "effective_rank", "class_selectivity")


@dataclass(frozen=True)
class AnalysisOptions:
    """Settings of an analysis."""

    models: Mapping[str, str]  # name -> source, see ``fcmae.features.models.SOURCES``
    data: str  # a source of images; folders of classes give class selectivity too
    output_dir: Path  # where the files go
    tap: Tap = DEFAULT_TAP  # where features are read, see ``fcmae.features.taps``
    images: int | None = 1000  # largest number, over all classes; None for all
    map_image: int = 0  # index of the image of the channel maps
    # height and width in pixels; None: the size recorded with all models, or 224
    image_size: tuple[int, int] | None = None
    # batch_size, workers: of reading and running
    batch_size: int = 16
    workers: int = 0
    split: str = "train"  # of sources that have several
    seed: int = 0  # of untrained models' weights
    device: str | None = None  # "cpu", "cuda" or "mps"; None for the best there is


def analyze_models(options: AnalysisOptions) -> dict[str, list[BlockFeatures]]:
    """Measure every model on the same images; write the table and the figures.

    Returns:
        The measures by model. Beside them, in the folder: ``cosine_distance.csv`` (all measures),
        ``cosine_distance.png``, ``measures.png``, ``class_selectivity.png`` (of labelled images)
        and ``channel_maps/NAME.png``.

    Raises:
        FileNotFoundError, InputError: for a source, an image or a tap that cannot be used, or
            models for images of different numbers of channels.
    """
    device = find_device(options.device)
    least = {"at least 1": ("images", "batch_size"), "at least 0": ("workers", "seed")}
    if problems := out_of_limits(options, least):
        raise InputError("; ".join(problems))
    if options.seed > LARGEST_SEED:
        raise InputError(f"seed is {options.seed}; it must be at most {LARGEST_SEED}")
    models = [
        load_model(name, source, options.image_size, options.seed)
        for name, source in options.models.items()
    ]
    for model in models:
        tap_points(model.model, options.tap)  # an invalid tap fails before the work
    if len({model.in_chans for model in models}) > 1:
        raise InputError(
            "the models take images of different numbers of channels: "
            + ", ".join(f"{model.name} {model.in_chans}" for model in models)
        )
    if len({model.value_range for model in models}) > 1:
        raise InputError(
            "the models learnt from other ranges of values: "
            + ", ".join(f"{model.name} {model.value_range or 'of the type'}" for model in models)
        )
    images = AnalysisImages(
        options.data,
        choose_view([model.view for model in models], options.image_size),
        models[0].in_chans,
        options.images,
        options.split,
        models[0].value_range,
    )
    if not 0 <= options.map_image < len(images):
        raise InputError(f"the image of the maps is {options.map_image} of {len(images)}, from 0")
    results = {}
    title = f"{counted(len(images), 'image')}, tap {options.tap}"
    for model in models:
        network = model.model.to(device)
        batches = images.batches(model.statistics, options.batch_size, options.workers, device)
        count = -(-len(images) // options.batch_size)
        shown = progress(batches, model.name, count, "batch")
        try:
            results[model.name] = analyze(network, shown, options.tap)
            image = model.statistics.normalise(images[options.map_image][None].to(device))
            draw_channel_maps(
                channel_maps(network, image, options.tap),
                options.output_dir / "channel_maps" / f"{model.name}.png",
                f"{model.name}, tap {options.tap}",
            )
        except ValueError as error:
            raise InputError(f"{model.name} ({model.source}): {error}") from error
        network.cpu()
        logger.info("%s: %d blocks measured", model.name, len(results[model.name]))
    _write_results(options, len(images), results)
    draw_cosine_distance(results, options.output_dir / "cosine_distance.png", title)
    draw_other_measures(results, options.output_dir / "measures.png", title)
    if images.labels:
        classes = counted(len(images.classes), "class")
        words = f"{counted(len(images), 'image')} of {classes}, block outputs"
        draw_selectivity(results, options.output_dir / "class_selectivity.png", words)
    return results


def _write_results(
    options: AnalysisOptions, images: int, results: Mapping[str, list[BlockFeatures]]
) -> None:
    rows = [
        {
            "model": name,
            "source": options.models[name],
            "tap": options.tap,
            "images": images,
            "block": block.block,
            "depth": f"{block.depth:.6g}",
            "channels": block.channels,
            **{measure: f"{getattr(block, measure):.8g}" for measure in MEASURES},
        }
        for name, blocks in results.items()
        for block in blocks
    ]
    _write_csv(options.output_dir / "cosine_distance.csv", rows)


def draw_runs(runs: Mapping[str, Path], output_dir: Path) -> None:
    """Draw pretraining runs' diversity by block and epoch, from their ``metrics.json``.

    Writes ``distance_by_epoch.png`` and ``distance_by_epoch.csv``.

    Raises:
        FileNotFoundError, InputError: as :func:`fcmae.features.collapse.measured_history`.
    """
    histories = {name: measured_history(folder) for name, folder in runs.items()}
    rows = [
        {
            "run": name,
            "epoch": f"{measured.epoch:.6g}",
            "step": measured.step,
            "block": block,
            "cosine_distance": f"{distance:.8g}",
        }
        for name, history in histories.items()
        for measured in history
        for block, distance in measured.distances.items()
    ]
    _write_csv(output_dir / "distance_by_epoch.csv", rows)
    draw_history(histories, output_dir / "distance_by_epoch.png")


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text(path, csv_text(*by_column(rows)))
    logger.info("wrote %s", path)
