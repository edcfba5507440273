"""The images of an analysis: without augmentation, in the order of their classes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from timm.utils.misc import natural_key
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode

from backbones.errors import InputError, counted
from backbones.weights.sources import numbers
from fcmae.classification.transforms import (
    BICUBIC,
    CROP_PCT,
    interpolation_of,
    resized_and_cropped,
    shown_share,
)
from fcmae.data import pretraining_samples
from images.labels import read_labels
from images.statistics import Statistics
from training.data import guarded_loader

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class View:
    """How images are resized and cropped."""

    image_size: tuple[int, int] = (224, 224)  # height and width in pixels, multiples of 32
    # crop_pct, interpolation: see
    # :func:`fcmae.classification.transforms.evaluation_transform`
    crop_pct: float | None = CROP_PCT
    interpolation: str = BICUBIC

    def cut(self, image: Tensor, interpolation: str | None = None) -> Tensor:
        """An image ``[C, h, w]`` of any type as it is seen.

        Args:
            interpolation: another one, such as "nearest" for labels.
        """
        mode = InterpolationMode(interpolation or self.interpolation)
        share, squashed = shown_share(self.image_size, self.crop_pct)
        return resized_and_cropped(image, self.image_size, share, squashed, mode)


def told_view(metadata: Mapping[str, str]) -> View | None:
    """How a classifier's or a published encoder's images are evaluated; None if not recorded.

    None too for sizes that are not multiples of 32.
    """
    size = numbers(metadata, "image_size")
    if not size or "crop_pct" not in metadata or any(side % 32 for side in size):
        return None
    height, width = (int(side) for side in size)
    crop = json.loads(metadata["crop_pct"])
    return View((height, width), crop, interpolation_of(metadata))


def choose_view(told: Sequence[View | None], image_size: tuple[int, int] | None) -> View:
    """One view for all models: of the given size, else the recorded one if it is common, else 224.

    Args:
        told: the recorded view of each model, from :func:`told_view`.
        image_size: height and width in pixels, multiples of 32; None if not given.
    """
    if image_size is not None:
        return View(image_size)
    views = set(told)
    found = next(iter(views)) if len(views) == 1 else None
    if len(views) > 1:
        logger.info("the models tell different sizes of their images, or none: 224 pixels")
    return found or View()


class AnalysisImages(Dataset):
    """Images resized by their shorter side and cropped at the centre.

    Args:
        data: see :func:`images.readers.open_images`.
        view: how.
        in_chans: channels.
        images: largest number of images; they are spread evenly over all images in the order of
            their classes, so that as many classes as possible occur; None for all.
        split: of sources that have several.
        value_range: the values that count as 0 and 1, see ``images.files``.
        show_bands: the channels that pictures show, likewise.

    Attributes:
        classes: the names of the images' classes, see :func:`images.labels.read_labels`, in
            natural order.
        labels: the class of each image; None where there are fewer than two, or an image without.

    Raises:
        InputError, FileNotFoundError: as :func:`fcmae.data.pretraining_samples`, or if ``images``
            is less than 1.
    """

    def __init__(
        self,
        data: str,
        view: View,
        in_chans: int = 3,
        images: int | None = 1000,
        split: str = "train",
        value_range: tuple[float, float] | None = None,
        show_bands: Sequence[int] = (),
    ) -> None:
        if images is not None and images < 1:
            raise InputError(f"the number of images is {images}; it must be at least 1")
        self.view, self.show_bands = view, tuple(show_bands)
        self._samples = pretraining_samples(
            data, view.image_size, 0.0, in_chans, split, value_range=value_range
        )
        logger.info(
            "images are seen at %dx%d pixels, crop %s, %s",
            *(*view.image_size, view.crop_pct, view.interpolation),
        )
        try:
            names = read_labels(self._samples.reader).classes
        except ValueError as error:
            logger.warning("%s", error)
            names = [""] * len(self._samples)
        order = sorted(range(len(names)), key=lambda index: natural_key(names[index]))
        wanted = len(order) if images is None else min(images, len(order))
        self.indices = [order[place * len(order) // wanted] for place in range(wanted)]
        chosen = [names[index] for index in self.indices]
        self.classes = sorted(set(chosen), key=natural_key)
        numbers = {name: number for number, name in enumerate(self.classes)}
        labelled = len(self.classes) > 1 and "" not in self.classes
        self.labels = [numbers[n] for n in chosen] if labelled else None
        logger.info(
            "%d of %d images, %s",
            wanted,
            len(order),
            counted(len(self.classes), "class")
            if self.labels
            else "no classes: no class selectivity",
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Tensor:
        """``[C, H, W]``, uint8, or float32 in 0..1 of files of more than 8 bits."""
        image = torch.from_numpy(self.whole(place).copy()).permute(2, 0, 1)
        return self.view.cut(image)

    def name(self, place: int) -> str:
        """The file that an image comes from."""
        return self._samples.describe(self.indices[place])

    def whole(self, place: int) -> np.ndarray:
        """An image as it is, ``[h, w, C]``: uint8, or float32 in 0..1."""
        return self._samples.whole_image(self.indices[place])

    def batches(
        self, statistics: Statistics, batch_size: int, workers: int, device: torch.device
    ) -> Iterator[tuple[Tensor, list[int] | None]]:
        """Normalised images ``[B, C, H, W]`` on the device, and their classes."""
        place = 0
        for images in guarded_loader(self, workers, batch_size=batch_size):
            labels = self.labels[place : place + len(images)] if self.labels else None
            place += len(images)
            yield statistics.normalise(images.to(device)), labels
