"""A finished classifier: its weights, and everything needed to use them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from backbones.convnext import ConvNeXt
from backbones.errors import InputError, counted
from backbones.export import Export
from backbones.weights.structure import size_name
from fcmae.classification.head import build_classifier, read_classifier
from fcmae.classification.setup import DEFAULT_SIZE
from fcmae.classification.transforms import Transform, evaluation_transform, interpolation_of
from fcmae.run_files import CLASSIFIER
from images.files import Reading
from images.statistics import IMAGENET, Statistics


@dataclass(frozen=True)
class Classifier:
    """A classifier with the preparation of its images."""

    source: str  # the file
    model: ConvNeXt  # in evaluation mode
    classes: list[str]  # their names, by number
    # turns an array ``[h, w, C]``, as ``reading`` gives it, into the model's input
    transform: Transform
    reading: Reading  # how image files become arrays
    image_size: tuple[int, int]  # height and width in pixels
    # crop_pct, interpolation: see
    # :func:`fcmae.classification.transforms.evaluation_transform`
    crop_pct: float | None
    interpolation: str
    statistics: Statistics  # mean and deviation to normalise the images by
    licence: str  # of the weights

    @torch.no_grad()
    def probabilities(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Images ``[h, w, C]`` of any sizes -> probabilities float32 ``[B, classes]``."""
        device = next(self.model.parameters()).device
        batch = torch.stack([self.transform(image) for image in images])
        return self.model(batch.to(device)).float().softmax(-1).cpu().numpy()


def load_classifier(source: str | Path) -> Classifier:
    """Load a classifier: a run's folder, a file of any format, or ``timm:NAME``.

    Defaults for a file that does not say them: 224 pixels, ImageNet's mean and deviation, and
    numbers as names of the classes.

    Raises:
        FileNotFoundError: if it does not exist.
        InputError: if it has no head, or has other channels without mean and deviation.
    """
    if Path(source).is_dir():
        source = Path(source) / CLASSIFIER
    found = read_classifier(str(source))
    if not found.rows:
        raise InputError(
            f"{source} holds an encoder without a head of classes: fine-tune it by "
            "tools/finetune_classifier.py, and give the folder of that run"
        )
    assert found.file is not None  # as it has a head
    in_chans, statistics = found.file.in_chans, IMAGENET
    mean, std = found.numbers("mean"), found.numbers("std")
    if mean and std:
        statistics = Statistics(mean, std, str(source))
    elif in_chans != 3:
        raise InputError(
            f"{source} has {counted(in_chans, 'channel')} and does not say their mean and std; "
            "give a classifier of this project, which does"
        )
    height, width = (int(side) for side in found.numbers("image_size") or DEFAULT_SIZE)
    crop_pct = json.loads(found.metadata.get("crop_pct", "null"))
    interpolation = interpolation_of(found.metadata)
    rows = list(range(found.rows))
    model, _ = build_classifier(found, size_name(found.file.size), len(rows), rows, 0.0, in_chans)
    return Classifier(
        source=str(source),
        model=model.eval(),
        classes=found.classes or [str(row) for row in rows],
        transform=evaluation_transform(
            (height, width), statistics.mean, statistics.std, crop_pct, interpolation
        ),
        reading=Reading(in_chans, value_range=found.range_of_values(), show_bands=found.bands()),
        image_size=(height, width),
        crop_pct=crop_pct,
        interpolation=interpolation,
        statistics=statistics,
        licence=found.metadata.get("licence", "unknown"),
    )


class ClassifierGraph(nn.Module):
    """Images ``[B, C, H, W]``, float32 in 0..1 -> ``logits`` and ``probabilities`` ``[B, K]``."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.model = classifier.model
        for name in ("mean", "std"):
            values = torch.tensor(getattr(classifier.statistics, name))
            self.register_buffer(name, values.view(1, -1, 1, 1))
        self.dtype = next(self.model.parameters()).dtype

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        normalised = (images - self.mean) / self.std
        logits = self.model(normalised.to(self.dtype)).float()
        return {"logits": logits, "probabilities": logits.softmax(-1)}


def classifier_export(source: str | Path, precision: str = "fp32") -> Export:
    """A classifier's export, its head and normalisation included.

    Raises:
        FileNotFoundError, InputError: as :func:`load_classifier`.
    """
    classifier = load_classifier(source)
    if precision == "fp16":
        classifier.model.half()
    return Export(
        ClassifierGraph(classifier),
        {"images": torch.zeros(2, len(classifier.statistics.mean), 96, 128)},
        {"images": {0: "batch", 2: "height", 3: "width"}},
        ["logits", "probabilities"],
        {
            "kind": "classifier",
            "size": size_name(classifier.model.size),
            "class_names": json.dumps(classifier.classes),
            "licence": classifier.licence,
            "image_size": json.dumps(classifier.image_size),
            "crop_pct": json.dumps(classifier.crop_pct),
            "interpolation": json.dumps(classifier.interpolation),
            "pixel_mean": json.dumps(classifier.statistics.mean),
            "pixel_std": json.dumps(classifier.statistics.std),
            "pixel_range": "0 to 1; the graph normalises",
            "value_range": json.dumps(list(classifier.reading.value_range or ())),
        },
    )
