"""What training and evaluating a classifier share: data, checkpoint, how images are seen."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

from backbones.errors import InputError
from fcmae.classification.data import LabelledData, labelled_data
from fcmae.classification.head import Source, choose_rows, read_classifier
from fcmae.classification.options import FinetuneOptions
from fcmae.classification.transforms import Transform, evaluation_transform, interpolation_of
from images.display import bands_problems
from images.files import Reading
from images.statistics import Statistics, choose_statistics

logger = logging.getLogger(__name__)

DEFAULT_SIZE = (224, 224)
MEASURED_IMAGES = 2000  # at most


@dataclass(frozen=True)
class Setup:
    """What follows from the options, the data and the checkpoint."""

    data: LabelledData  # training and validation images
    source: Source  # the checkpoint
    rows: list[int] | None  # of its head, one for each class of the data; None for a new head
    # image_size, crop_pct, interpolation, statistics: how images are seen
    image_size: tuple[int, int]
    crop_pct: float | None
    interpolation: str
    statistics: Statistics

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.data.val.in_chans

    def evaluation(self) -> Transform:
        mean, std = self.statistics.mean, self.statistics.std
        return evaluation_transform(self.image_size, mean, std, self.crop_pct, self.interpolation)

    def vision(self) -> dict[str, Any]:
        """How images are seen, as YAML and JSON know it."""
        reading = self.data.val.reading
        return {
            "image_size": list(self.image_size),
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
            "mean": list(self.statistics.mean),
            "std": list(self.statistics.std),
            "value_range": list(reading.value_range) if reading.value_range else None,
            "show_bands": list(reading.show_bands) or None,
        }


def set_up(options: FinetuneOptions, only_val: bool = False) -> Setup:
    """Open data and checkpoint.

    Raises:
        InputError, FileNotFoundError: for those that cannot be used, or do not fit each other.
    """
    source = read_classifier(options.init, options.in_chans)
    in_chans = options.in_chans
    if in_chans is None:
        in_chans = source.file.in_chans if source.file else len(options.mean or (0, 0, 0))
    data = labelled_data(
        options.data,
        options.val_data,
        options.split,
        options.val_split,
        options.val_fraction,
        options.split_seed,
        only_val,
        Reading(
            in_chans,
            value_range=options.value_range or source.range_of_values(),
            show_bands=_bands(options, source, in_chans),
        ),
        options.skip_bad_images,
    )
    rows = choose_rows(source, data.classes, options.class_list, some=only_val)
    size = options.image_size or source.numbers("image_size") or DEFAULT_SIZE
    crop_pct = options.crop_pct
    if crop_pct is None and options.image_size is None and "crop_pct" in source.metadata:
        crop_pct = json.loads(source.metadata["crop_pct"])
    height, width = (int(side) for side in size)
    statistics = _statistics(options, source, data)
    interpolation = interpolation_of(source.metadata)
    return Setup(data, source, rows, (height, width), crop_pct, interpolation, statistics)


def _bands(options: FinetuneOptions, source: Source, in_chans: int) -> tuple[int, ...]:
    """The channels that pictures show: those given, else the checkpoint's if it has as many.

    Raises:
        InputError: for channels that the images have not.
    """
    if options.show_bands is None:
        of_source = source.file is not None and source.file.in_chans == in_chans
        return source.bands() if of_source else ()
    if problems := bands_problems(options.show_bands, in_chans):
        raise InputError(problems[0])
    return options.show_bands


def _statistics(options: FinetuneOptions, source: Source, data: LabelledData) -> Statistics:
    """The given statistics, else the checkpoint's, else ImageNet's or measured ones.

    Raises:
        InputError: see :func:`images.statistics.choose_statistics`.
    """
    samples = data.train if len(data.train) else data.val
    mean, std = source.numbers("mean"), source.numbers("std")
    if options.mean is None and mean and std and len(mean) == samples.in_chans:
        logger.info("mean %s and std %s of %s", list(mean), list(std), source.name)
        return Statistics(mean, std, source.name)
    images, seed, workers = MEASURED_IMAGES, options.seed, options.workers
    return choose_statistics(samples, options.mean, options.std, "auto", images, seed, workers)
