"""From an image to what a classifier sees: timm's transforms, and their like for other images.

RGB of 8 bits goes through timm's transforms, bit for bit. They are Pillow's, which knows no other
kind of colour image: images of another number of channels or of more bits are cropped, resized,
flipped and erased as tensors, with every channel and every level, and RandAugment, whose colours
are Pillow's, is left out for them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import posterize
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from fcmae.classification.recipes import Recipe
from images.files import EIGHT_BITS

logger = logging.getLogger(__name__)

SQUASHED_FROM = 384  # pixels from which the authors evaluate whole images, squashed to a square
CROP_SCALE, CROP_RATIO = [0.08, 1.0], [3 / 4, 4 / 3]
CROP_PCT = 0.875
BICUBIC = "bicubic"
INTERPOLATIONS = (BICUBIC, "bilinear")  # of what an encoder's source may tell


@dataclass
class Transform:
    """An image to a normalised tensor float32 ``[C, H, W]``."""

    of_rgb: Callable[[Image.Image], Tensor]  # of Pillow's RGB images
    of_others: Callable[[Tensor], Tensor]  # of ``[C, h, w]``, float32 in 0..1

    def __call__(self, image: Image.Image | np.ndarray) -> Tensor:
        """
        Args:
            image: ``[h, w, C]``, uint8 or float32 in 0..1; or a Pillow image, RGB.
        """
        if isinstance(image, Image.Image):
            return self.of_rgb(image)
        if image.dtype == np.uint8 and image.shape[-1] == 3:
            return self.of_rgb(Image.fromarray(np.ascontiguousarray(image)))
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return self.of_others(values if values.is_floating_point() else values / EIGHT_BITS)


def training_transform(
    recipe: Recipe, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Transform:
    """As the authors have it: crop (0.08 to 1, bicubic), flip, RandAug, normalise, erase."""
    erasing = RandomErasing(recipe.random_erasing, mode="pixel", device="cpu")
    # not a function within this one: spawned workers could not be sent it
    of_others = partial(_train_others, size=size, mean=mean, std=std, erasing=erasing)
    if len(mean) != 3:
        return Transform(_refuse_rgb, of_others)
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
    return Transform(transform, of_others)


def _train_others(
    image: Tensor,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    erasing: Callable[[Tensor], Tensor],
) -> Tensor:
    crop = RandomResizedCrop.get_params(image, CROP_SCALE, CROP_RATIO)
    resized = F.resized_crop(image, *crop, list(size), InterpolationMode.BICUBIC, antialias=True)
    flipped = resized.flip(-1) if torch.rand(()) < 0.5 else resized
    return erasing(F.normalize(flipped, list(mean), list(std)))


def _evaluate_others(
    image: Tensor,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float,
    squashed: bool,
    interpolation: InterpolationMode,
) -> Tensor:
    cropped = resized_and_cropped(image, size, crop_pct, squashed, interpolation)
    return F.normalize(cropped, list(mean), list(std))


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's largest magnitude keeps 0 bits: a black image, which Pillow 13 refuses to make."""
    return posterize(image, max(1, bits))


def evaluation_transform(
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float | None,
    interpolation: str = BICUBIC,
) -> Transform:
    """timm's: resize by the shorter side to ``size / crop_pct``, crop the centre.

    Args:
        crop_pct: None stands for the authors' way: 0.875, and from 384 pixels on the whole image,
            squashed.
        interpolation: of the resizing, one of ``INTERPOLATIONS``.
    """
    share, squashed = shown_share(size, crop_pct)
    of_others = partial(
        _evaluate_others,
        size=size,
        mean=mean,
        std=std,
        crop_pct=share,
        squashed=squashed,
        interpolation=InterpolationMode(interpolation),
    )
    if len(mean) != 3:
        return Transform(_refuse_rgb, of_others)
    of_rgb: Any = create_transform(
        size,
        interpolation=interpolation,
        crop_pct=share,
        crop_mode="squash" if squashed else "center",
        mean=tuple(mean),
        std=tuple(std),
    )
    return Transform(of_rgb, of_others)


def shown_share(size: Sequence[int], crop_pct: float | None) -> tuple[float, bool]:
    """The share of a resized image that is shown, and whether the whole image is squashed."""
    squashed = crop_pct is None and min(size) >= SQUASHED_FROM
    return crop_pct or (1.0 if squashed else CROP_PCT), squashed


def interpolation_of(metadata: Mapping[str, str]) -> str:
    """The interpolation that a source's images were resized by; bicubic where it does not tell."""
    told = json.loads(metadata.get("interpolation", "null"))
    if told is not None and told not in INTERPOLATIONS:
        logger.warning("its images were resized by %r interpolation; here by %r", told, BICUBIC)
    return told if told in INTERPOLATIONS else BICUBIC


def _refuse_rgb(image: Image.Image) -> Tensor:
    raise AssertionError(f"an RGB image for a model of other channels: {image}")


def resized_and_cropped(
    image: Tensor,
    size: Sequence[int],
    crop_pct: float,
    squashed: bool = False,
    interpolation: InterpolationMode = InterpolationMode.BICUBIC,
) -> Tensor:
    """What :func:`evaluation_transform` shows of an image ``[C, h, w]`` of any type: its centre.

    The side that must grow most gets its size, the other follows, rounded down as in timm.
    """
    sides = [(int(w / crop_pct), s) for w, s in zip(size, image.shape[1:], strict=True)]
    to, side = max(sides, key=lambda pair: pair[0] / pair[1])
    wanted = [s * to // side for s in image.shape[1:]]
    if squashed:
        wanted = [to for to, _ in sides]
    resized = F.resize(image, wanted, interpolation, antialias=True)
    return F.center_crop(resized, list(size))
