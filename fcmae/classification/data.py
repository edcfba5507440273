"""Labelled images: folders of classes, shards and Hugging Face data sets, split and augmented.

Sources and names are those of pretraining (``images.readers``); ``images.labels`` finds classes and
parts. Classes are numbered in the natural order of their names, as in timm. ``images.files`` reads
images as arrays, and ``fcmae.classification.transforms`` makes samples of them. These use only the
global random generators, so a sample depends on (seed, epoch, index), as in pretraining.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from timm.utils.misc import natural_key
from torch import Tensor

from backbones.errors import InputError, counted
from fcmae.data import find_bad_headers
from fcmae.samples import ImageSamples
from images.bad_images import refuse_bad
from images.files import Reading
from images.labels import Labels, read_labels
from images.readers import Reader, open_images

logger = logging.getLogger(__name__)

RGB = Reading(3)

Sample = tuple[Tensor, int, dict[int, str]]
Batch = tuple[Tensor, Tensor, dict[int, str]]


@dataclass(kw_only=True)
class LabelledSamples(ImageSamples):
    """Samples of (image float32 ``[C, H, W]``, class, bad images met), normalised.

    A bad image is replaced by the next good one, with its class (the first follows the last).
    """

    indices: Sequence[int]  # their indices in the reader, without bad images
    labels: Sequence[int]  # the class of each
    # from an array ``[h, w, C]`` (uint8, or float32 in 0..1) to a tensor
    transform: Callable[[np.ndarray], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def index_of(self, place: int) -> int:
        return self.indices[place]

    def __getitem__(self, place: int) -> Sample:
        """
        Raises:
            ImageError: for a bad image if they are not skipped, or if all are bad.
        """
        if not 0 <= place < len(self):
            raise IndexError(place)  # ends an iteration over the samples
        used, image, met = self.first_usable(place, self._transformed)
        return image, self.labels[used], met

    def _transformed(self, place: int) -> Tensor:
        assert self.transform is not None
        with self.opened(place) as picture:
            return self.transform(self.reading.read(picture))

    def subset(self, places: Sequence[int]) -> LabelledSamples:
        """Some of these samples."""
        indices, labels = ([of[place] for place in places] for of in (self.indices, self.labels))
        return replace(self, indices=indices, labels=labels)


@dataclass(frozen=True)
class LabelledData:
    """Training and validation images of the same classes."""

    classes: list[str]  # their names, by number
    # train, val: the samples; ``train`` is empty if only ``val`` was asked for
    train: LabelledSamples
    val: LabelledSamples
    split: str  # in words, how validation images were chosen


def collate(samples: list[Sample]) -> Batch:
    """Samples -> images ``[B, C, H, W]``, classes ``[B]``, bad images that were met."""
    images, labels, met = zip(*samples, strict=True)
    return (
        torch.stack(images),
        torch.tensor(labels),
        {index: why for one in met for index, why in one.items()},
    )


@dataclass(frozen=True)
class _Source:
    """An opened source of labelled images."""

    name: str  # as it was given
    reader: Reader
    labels: Labels
    # reading, skip_bad_images: as in :class:`LabelledSamples`
    reading: Reading
    skip_bad_images: bool

    @classmethod
    def open(cls, name: str, split: str, reading: Reading, skip_bad_images: bool) -> _Source:
        reader = open_images(name, split)
        return cls(name, reader, read_labels(reader), reading, skip_bad_images)

    def samples(self, indices: Sequence[int], classes: list[str] | None = None) -> LabelledSamples:
        """Samples of the usable images; labels are positions in ``classes`` (None: their own).

        Raises:
            ImageError: for bad images, if they are not skipped or more than half are bad.
            InputError: for images without a class.
        """
        bad = find_bad_headers(self.reader, self.reading, indices)
        if bad and (not self.skip_bad_images or 2 * len(bad) > len(indices)):
            refuse_bad(self.reader, bad)
        good = [index for index in indices if index not in bad]
        names = [self.labels.classes[index] for index in good]
        if lacking := [index for index, name in zip(good, names, strict=True) if not name]:
            raise InputError(
                f"{len(lacking)} of {counted(len(good), 'image')} have no label (the folder that "
                "an image lies in, or webdataset's .cls): "
                + ", ".join(os.path.basename(self.reader.name(index)) for index in lacking[:10])
            )
        if classes is None:
            classes = sorted(set(names), key=natural_key)
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers[name] for name in names]
        return LabelledSamples(
            reader=self.reader,
            reading=self.reading,
            skip_bad_images=self.skip_bad_images,
            bad=bad,
            indices=good,
            labels=labels,
        )

    def classes(self, indices: Sequence[int]) -> list[str]:
        """The names of the classes of some of its images, in natural order."""
        return sorted({self.labels.classes[index] for index in indices} - {""}, key=natural_key)


def labelled_data(
    data: str,
    val_data: str | None = None,
    split: str = "train",
    val_split: str = "validation",
    val_fraction: float = 0.1,
    split_seed: int = 0,
    only_val: bool = False,
    reading: Reading | None = None,
    skip_bad_images: bool = False,
) -> LabelledData:
    """Open sources by their names, check them, and make samples (without transforms).

    Args:
        data: a source of labelled images, see ``images.labels``. If it has the parts train and val
            (or test, without val), these are used.
        val_data: the source of validation images, or of its part val or test.
        split, val_split: the splits of sources that have several.
        val_fraction: without validation images, this fraction of each class is set apart: those
            whose sha256 of ``"split_seed:name"`` is smallest, at least one for a class of two or
            more.
        split_seed: see above. It is not the run's seed, so that runs of several seeds are evaluated
            on the same images.
        only_val: only evaluate: without ``val_data`` and a part val or test, on all of ``data``.
        reading, skip_bad_images: see :class:`LabelledSamples`; RGB if ``reading`` is None.

    Raises:
        FileNotFoundError, InputError: for sources that cannot be read, have no labels, fewer than
            two classes, or validation classes that are not in the training's.
    """
    reading = reading or RGB
    if only_val:
        name = val_data or data
        source = _Source.open(name, val_split if val_data else split, reading, skip_bad_images)
        indices = source.labels.of_part("val", "test", "train")
        val = source.samples(indices)
        return LabelledData(source.classes(val.indices), source.samples([]), val, "all")
    source = _Source.open(data, split, reading, skip_bad_images)
    indices = source.labels.of_part("train")
    if not indices:
        raise InputError(
            f"{data} has images to evaluate and none to train on: train/ is missing beside "
            f"{', '.join(sorted({part for part in source.labels.parts if part}))}/"
        )
    train = source.samples(indices)
    classes = source.classes(train.indices)
    _need_two(classes, source, indices)
    val_source, held_out = source, []
    if val_data is not None:
        val_source = _Source.open(val_data, val_split, reading, skip_bad_images)
        held_out = val_source.labels.of_part("val", "test", "train")
    elif any(source.labels.parts):
        held_out = source.labels.of_part("val", "test")
    if held_out:
        words = val_data or f"part {source.labels.parts[held_out[0]]} of {data}"
        part = source.labels.parts[indices[0]]
        trained = f"part {part} of {data}" if part else data
        if unknown := [c for c in val_source.classes(held_out) if c not in set(classes)]:
            raise InputError(
                f"{words} has {len(unknown)} class(es) that {trained} lacks: "
                f"{', '.join(unknown[:20])}{', ...' * (len(unknown) > 20)}; train on images of "
                "them, too, or remove them"
            )
        val = val_source.samples(held_out, classes)
    else:
        names = [source.labels.names[index] for index in train.indices]
        chosen = set_apart(names, train.labels, val_fraction, split_seed)
        rest = [place for place in range(len(train)) if place not in chosen]
        train, val = train.subset(rest), replace(train.subset(sorted(chosen)), bad={})
        words = f"{val_fraction:g} of each class, set apart with split seed {split_seed}"
    logger.info(
        "%s, %s to train on, %d to evaluate (%s)",
        *(counted(len(classes), "class"), counted(len(train), "image"), len(val), words),
    )
    return LabelledData(classes, train, val, words)


def set_apart(names: Sequence[str], labels: Sequence[int], fraction: float, seed: int) -> set[int]:
    """Indices of validation images; the rule stands in :func:`labelled_data`.

    An image's rank depends only on its name, not on other images.

    Raises:
        InputError: if ``fraction`` is not between 0 and 1, or each class has only one image.
    """
    if not 0 < fraction < 1:
        raise InputError(f"val_fraction is {fraction}; it must be between 0 and 1")

    def rank(index: int) -> bytes:  # names are bytes on Linux, whatever their encoding
        return hashlib.sha256(f"{seed}:{names[index]}".encode(errors="surrogateescape")).digest()

    wanted = {
        label: max(1, math.floor(fraction * count + 0.5))
        for label, count in Counter(labels).items()
        if count > 1
    }
    chosen = set()
    for index in sorted(range(len(names)), key=rank):
        if wanted.get(labels[index], 0) > 0:
            wanted[labels[index]] -= 1
            chosen.add(index)
    if not chosen:
        raise InputError(
            "no class has a second image that could be set apart for validation; give --val-data"
        )
    return chosen


def _need_two(classes: Sequence[str], source: _Source, indices: Sequence[int]) -> None:
    if len(classes) >= 2:
        return
    below = sorted({path[1] for i in indices if len(path := source.labels.names[i].split("/")) > 2})
    hint = f"; the classes may be the folders below: {', '.join(below[:10])}" if below else ""
    raise InputError(
        f"{source.name} has {len(classes)} class ({', '.join(map(repr, classes))}); a classifier "
        f"needs at least two: one folder of images for each class{hint}"
    )
