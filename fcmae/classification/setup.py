"""What training and evaluating a classifier share: data, checkpoint, how images are seen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from backbones.errors import InputError
from fcmae.classification.data import LabelledData, evaluation_transform, labelled_data
from fcmae.classification.head import Source, choose_rows, read_classifier
from fcmae.classification.options import FinetuneOptions
from images.statistics import IMAGENET

DEFAULT_SIZE = (224, 224)


@dataclass(frozen=True)
class Setup:
    """What follows from the options, the data and the checkpoint.

    Args:
        data: training and validation images.
        source: the checkpoint.
        rows: of its head, one for each class of the data; None for a new head.
        image_size, crop_pct, mean, std: how images are seen.
    """

    data: LabelledData
    source: Source
    rows: list[int] | None
    image_size: tuple[int, int]
    crop_pct: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def evaluation(self) -> Any:
        return evaluation_transform(self.image_size, self.mean, self.std, self.crop_pct)

    def vision(self) -> dict[str, Any]:
        """How images are seen, as YAML and JSON know it."""
        return {
            "image_size": list(self.image_size),
            "crop_pct": self.crop_pct,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def set_up(options: FinetuneOptions, only_val: bool = False) -> Setup:
    """Open data and checkpoint.

    Raises:
        InputError, FileNotFoundError: for those that cannot be used, or do not fit each other.
    """
    data = labelled_data(
        options.data,
        options.val_data,
        options.split,
        options.val_split,
        options.val_fraction,
        options.split_seed,
        only_val,
    )
    source = read_classifier(options.init)
    rows = choose_rows(source, data.classes, options.class_list)
    size = options.image_size or source.numbers("image_size") or DEFAULT_SIZE
    crop_pct = options.crop_pct
    if crop_pct is None and options.image_size is None and "crop_pct" in source.metadata:
        crop_pct = json.loads(source.metadata["crop_pct"])
    mean = options.mean or source.numbers("mean") or IMAGENET.mean
    std = options.std or source.numbers("std") or IMAGENET.std
    if len(mean) != 3:
        raise InputError(
            f"{options.init} is of images of {len(mean)} channels; classification is of RGB images"
        )
    height, width = (int(side) for side in size)
    return Setup(data, source, rows, (height, width), crop_pct, tuple(mean), tuple(std))
