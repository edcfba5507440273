"""Labelled images: ImageFolder layouts, shards and Hugging Face data sets, split and augmented.

Sources and names are those of pretraining (``images.readers``). A label is the name of the folder
that an image lies in (a folder or tar), webdataset's ``.cls`` field, or a Hugging Face data set's
column of classes. Classes are numbered in natural order of their names, as timm does.

Images become RGB of 8 bits by the rules of ``images.files`` (more bits are rounded), and go
through timm's transforms, which draw from the global generators alone: a sample depends on (seed,
epoch, index) as in pretraining.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import posterize
from timm.utils.misc import natural_key
from torch import Tensor

from backbones.errors import InputError
from fcmae.classification.recipes import Recipe
from fcmae.data import find_bad_headers, opened_picture
from images.bad_images import refuse_bad
from images.files import EIGHT_BITS, ImageError, Reading
from images.readers import HuggingFaceReader, Reader, class_names, open_images

logger = logging.getLogger(__name__)

TRAIN_FOLDERS = ("train", "training")
VAL_FOLDERS = ("val", "validation", "valid")
SQUASHED_FROM = 384  # pixels from which the authors evaluate whole images, squashed to a square
RGB = Reading(3)


@dataclass
class LabelledSamples:
    """Map-style samples of (image float32 ``[3, H, W]``, class), normalised.

    Args:
        reader: where the image files come from.
        indices: which of the reader's images these are.
        labels: the class of each.
        transform: from a PIL image to a tensor.
    """

    reader: Reader
    indices: Sequence[int]
    labels: Sequence[int]
    transform: Callable[[Image.Image], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        assert self.transform is not None
        return self.transform(self.picture(place)), self.labels[place]

    def picture(self, place: int) -> Image.Image:
        """An image as RGB of 8 bits.

        Raises:
            ImageError: if it cannot be used; the message names it.
        """
        try:
            with opened_picture(self.reader, self.indices[place], RGB) as picture:
                values = RGB.read(picture)
        except ImageError as error:
            raise ImageError(f"{self.describe(place)} {error}") from error
        if values.dtype != np.uint8:
            values = np.rint(values.clip(0, 1) * EIGHT_BITS).astype(np.uint8)
        return Image.fromarray(np.ascontiguousarray(values))

    def describe(self, place: int) -> str:
        """The file that a sample comes from."""
        return self.reader.name(self.indices[place])


@dataclass(frozen=True)
class LabelledData:
    """Training and validation images of the same classes.

    Args:
        classes: their names, by number.
        train, val: the samples; ``train`` is empty where only ``val`` was asked for.
        split: in words, how validation images were told from the others.
    """

    classes: list[str]
    train: LabelledSamples
    val: LabelledSamples
    split: str


def collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Samples -> images ``[B, 3, H, W]``, classes ``[B]``."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def training_transform(
    recipe: Recipe, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Any:
    """timm's, as the authors have it: crop (0.08 to 1, bicubic), flip, RandAug, erasing."""
    transform: Any = create_transform(
        size,
        is_training=True,
        color_jitter=0.0,
        auto_augment=recipe.rand_augment or None,
        interpolation="bicubic",
        re_prob=recipe.random_erasing,
        re_mode="pixel",
        mean=tuple(mean),
        std=tuple(std),
    )
    for policy in transform.transforms:
        for operation in getattr(policy, "ops", ()):
            if operation.aug_fn is posterize:
                operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's largest magnitude keeps 0 bits: a black image, which Pillow 13 refuses to make."""
    return posterize(image, max(1, bits))


def evaluation_transform(
    size: tuple[int, int], mean: Sequence[float], std: Sequence[float], crop_pct: float | None
) -> Any:
    """timm's: resize by the shorter side to ``size / crop_pct``, crop the centre (bicubic).

    ``crop_pct`` None stands for the authors' way: 0.875, and from 384 pixels on the whole image,
    squashed.
    """
    squashed = crop_pct is None and min(size) >= SQUASHED_FROM
    return create_transform(
        size,
        interpolation="bicubic",
        crop_pct=crop_pct or (1.0 if squashed else 0.875),
        crop_mode="squash" if squashed else "center",
        mean=tuple(mean),
        std=tuple(std),
    )


def labelled_data(
    data: str,
    val_data: str | None = None,
    split: str = "train",
    val_split: str = "validation",
    val_fraction: float = 0.1,
    split_seed: int = 0,
    only_val: bool = False,
) -> LabelledData:
    """Everything from names to samples (without transforms), checked.

    Args:
        data: a source of labelled images, see this module's header; where it is a folder that
            holds ``train`` and ``val`` (also training, validation, valid), these two.
        val_data: the source of validation images.
        split, val_split: of sources that have several.
        val_fraction: where there are no validation images, this share of each class is set apart:
            those whose sha256 of ``"split_seed:name"`` is smallest, at least one of a class of
            two or more.
        split_seed: see above. It is not the run's seed, so that runs of several seeds are
            evaluated on the same images.
        only_val: evaluate alone: without ``val_data`` and a ``val`` folder, all of ``data``.

    Raises:
        FileNotFoundError, InputError: for sources that cannot be read, have no labels, fewer than
            two classes, or validation classes that are not in the training's.
    """
    train_source, val_source = data, val_data
    if (folder := _subfolder(data, TRAIN_FOLDERS)) is not None:
        train_source = folder
    if val_source is None:
        val_source = _subfolder(data, VAL_FOLDERS)
    elif (folder := _subfolder(val_source, VAL_FOLDERS)) is not None:
        val_source = folder
    if only_val and val_source is None:
        val_source = train_source
    nothing: list[int] = []
    if only_val:
        assert val_source is not None
        val_reader = _opened(val_source, val_split if val_data else split)
        classes, labels = _numbered(_names(val_reader))
        val = LabelledSamples(val_reader, range(len(labels)), labels)
        return LabelledData(classes, LabelledSamples(val_reader, nothing, nothing), val, "all")
    reader = _opened(train_source, split)
    classes, labels = _numbered(_names(reader))
    _need_two(classes, train_source)
    if val_source is not None:
        val_reader = _opened(val_source, val_split)
        val_names = _names(val_reader)
        if unknown := sorted(set(val_names) - set(classes), key=natural_key):
            raise InputError(
                f"{val_source} has {len(unknown)} class(es) that {train_source} lacks: "
                f"{', '.join(unknown[:20])}{', ...' * (len(unknown) > 20)}"
            )
        numbers = {name: number for number, name in enumerate(classes)}
        val_labels = [numbers[name] for name in val_names]
        train = LabelledSamples(reader, range(len(labels)), labels)
        val = LabelledSamples(val_reader, range(len(val_labels)), val_labels)
        words = val_source
    else:
        names = [name for name, _ in reader.contents()]
        if isinstance(reader, HuggingFaceReader):
            names = [str(row) for row in range(len(reader))]
        chosen = set_apart(names, labels, val_fraction, split_seed)
        rest = [index for index in range(len(labels)) if index not in chosen]
        train, val = (
            LabelledSamples(reader, indices, [labels[index] for index in indices])
            for indices in (rest, sorted(chosen))
        )
        words = f"{val_fraction:g} of each class, set apart with split seed {split_seed}"
    logger.info(
        "%d classes, %d images to train on, %d to evaluate (%s)",
        len(classes),
        len(train),
        len(val),
        words,
    )
    return LabelledData(classes, train, val, words)


def set_apart(names: Sequence[str], labels: Sequence[int], fraction: float, seed: int) -> set[int]:
    """Indices of validation images; the rule stands in :func:`labelled_data`.

    An image's rank depends on its name alone, whatever else is in the folder.

    Raises:
        InputError: if ``fraction`` is not between 0 and 1, or each class has but one image.
    """
    if not 0 < fraction < 1:
        raise InputError(f"val_fraction is {fraction}; it must be between 0 and 1")
    ranked = sorted(
        range(len(names)), key=lambda i: hashlib.sha256(f"{seed}:{names[i]}".encode()).digest()
    )
    wanted = {
        label: max(1, math.floor(fraction * count + 0.5))
        for label, count in Counter(labels).items()
        if count > 1
    }
    chosen = set()
    for index in ranked:
        if wanted.get(labels[index], 0) > 0:
            wanted[labels[index]] -= 1
            chosen.add(index)
    if not chosen:
        raise InputError(
            "no class has a second image that could be set apart for validation; give --val-data"
        )
    return chosen


def _subfolder(source: str, names: Sequence[str]) -> str | None:
    return next((str(Path(source, n)) for n in names if Path(source, n).is_dir()), None)


def _opened(source: str, split: str) -> Reader:
    reader = open_images(source, split)
    if bad := find_bad_headers(reader, RGB):
        refuse_bad(reader, bad)
    return reader


def _numbered(names: Sequence[str]) -> tuple[list[str], list[int]]:
    classes = sorted(set(names), key=natural_key)
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, [numbers[name] for name in names]


def _need_two(classes: Sequence[str], source: str) -> None:
    if len(classes) < 2:
        raise InputError(
            f"{source} has {len(classes)} class ({', '.join(map(repr, classes))}); a classifier "
            "needs at least two: one folder of images for each class"
        )


def _names(reader: Reader) -> list[str]:
    """The class's name of each image.

    Raises:
        InputError: if images have none; they are counted and some named.
    """
    names = class_names(reader)
    if lacking := [index for index, name in enumerate(names) if not name]:
        raise InputError(
            f"{len(lacking)} of {len(names)} images have no label (the folder that an image lies "
            "in, or webdataset's .cls): "
            + ", ".join(os.path.basename(reader.name(index)) for index in lacking[:10])
        )
    return names
