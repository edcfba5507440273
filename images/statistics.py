"""Mean and standard deviation of a data set's channels, to normalise images.

They refer to values scaled to 0..1: 8-bit values divided by 255, 16-bit values by 65535,
floating-point values as they are (``images.files``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import Dataset

from backbones.errors import InputError, counted
from images.files import EIGHT_BITS, ImageError, Reading, open_picture, read_image
from images.windows import open_windows
from training.data import guarded_loader
from training.progress import progress

logger = logging.getLogger(__name__)

FAINT = 0.1
ROWS = 512


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation to normalise images by.

    Args:
        mean, std: a value for each channel, of values scaled to 0..1.
        origin: where they come from, in words.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str

    def normalise(self, images: Tensor) -> Tensor:
        """uint8, or float in 0..1, ``[B, C, H, W]`` -> float32 of mean 0 and deviation 1."""
        scale = 1 if images.is_floating_point() else EIGHT_BITS
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).view(shape) * scale
        std = torch.tensor(self.std, device=images.device).view(shape) * scale
        return images.to(torch.float32, copy=True).sub_(mean).div_(std)

    def of_pixels(self, input_format: str = "RGB") -> tuple[list[float], list[float]]:
        """Mean and std of 0 to 255, in the order of ``INPUT.FORMAT``: the values of a config."""
        return to_pixel_scale(self.mean, input_format), to_pixel_scale(self.std, input_format)

    def of_pixels_rounded(self, input_format: str = "RGB") -> tuple[list[float], list[float]]:
        """The same to a tenth, for people to read."""
        mean, std = self.of_pixels(input_format)
        return [round(value, 1) for value in mean], [round(value, 1) for value in std]

    def shown(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std by which normalised images are turned into pictures to look at.

        If the images use only a small part of their type's range, as those of many sensors do, the
        values returned spread mean +- 2 std over all brightnesses.
        """
        if max(self.std) >= FAINT and min(self.mean) >= 0 and max(self.mean) <= 1:
            return self.mean, self.std
        return (0.5,) * len(self.mean), (0.25,) * len(self.std)

    def check_resumed(
        self, mean: Sequence[float] | None, std: Sequence[float] | None, in_chans: int, config: str
    ) -> None:
        """Check that a resumed run's options agree with the statistics that it was started with.

        Raises:
            InputError: if they do not.
        """
        given = {"--mean": (mean, self.mean), "--std": (std, self.std)}
        problems = [
            f"{name} is {list(new)}, the run's is {list(stored)}"
            for name, (new, stored) in given.items()
            if new is not None and tuple(new) != stored
        ]
        if in_chans != len(self.mean):
            problems.append(f"--in-chans is {in_chans}, the run's is {len(self.mean)}")
        if problems:
            raise InputError(
                f"this contradicts the run that is resumed ({config}): {'; '.join(problems)}; "
                "give the values of the run, or start another run"
            )


class Images(Protocol):
    """Images to measure statistics of, such as :class:`fcmae.data.PretrainingSamples`."""

    skip_bad_images: bool

    @property
    def in_chans(self) -> int: ...
    def __len__(self) -> int: ...

    def whole_image(self, index: int) -> np.ndarray:
        """``[h, w, in_chans]``: uint8, or float32 in 0..1; raises ImageError."""

    def eight_bit(self) -> bool:
        """Whether the first usable image has values of 8 bits."""


class ImageFiles:
    """The image files of a labelled data set as :class:`Images`.

    Args:
        paths: of the files.
        reading: how they are read; ``channels`` must be given.
    """

    skip_bad_images = False

    def __init__(self, paths: Sequence[str], reading: Reading) -> None:
        assert reading.channels is not None
        self.paths, self.reading, self.in_chans = paths, reading, reading.channels

    def __len__(self) -> int:
        return len(self.paths)

    def whole_image(self, index: int) -> np.ndarray:
        """The image; of one that is only read part by part, ``ROWS`` rows from top to bottom."""
        if not self.reading.by_parts:
            return read_image(self.paths[index], self.reading)
        with open_windows(self.paths[index], self.reading) as image:
            if not image.too_large:
                return image.read(0, 0, image.width, image.height)
            rows = np.linspace(0, image.height - 1, ROWS).astype(int)
            return np.concatenate([image.read(0, int(row), image.width, 1) for row in rows])

    def eight_bit(self) -> bool:
        for path in self.paths:
            try:
                with open(path, "rb") as file:
                    return self.reading.is_eight_bit(open_picture(file))
            except (ImageError, OSError):
                continue  # reading it later reports the error
        return True


def to_pixel_scale(values: Sequence[float], input_format: str) -> list[float]:
    """Values of 0 to 1, red first -> values of 0 to 255 in the order of ``INPUT.FORMAT``."""
    scaled = [float(f"{value * EIGHT_BITS:.8g}") for value in values]
    return scaled[::-1] if input_format == "BGR" else scaled


IMAGENET = Statistics(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, "ImageNet")


def problems_of(
    mean: Sequence[float] | None, std: Sequence[float] | None, choice: str, in_chans: int
) -> list[str]:
    """A message for each contradiction among the options about statistics."""
    if in_chans < 1:
        return []  # reported elsewhere
    problems = []
    if (mean is None) != (std is None):
        given, other = ("mean", "std") if std is None else ("std", "mean")
        problems.append(f"--{given} is given without --{other}; give both or neither")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != in_chans:
            problems.append(
                f"--{name} has {len(values)} value(s) for {in_chans} channel(s) (--in-chans)"
            )
    if std is not None and min(std, default=1.0) <= 0:
        problems.append(f"--std is {' '.join(map(str, std))}; each value must be positive")
    if (mean is not None or std is not None) and choice != "auto":
        problems.append(f"--mean and --std are given, and --statistics {choice} asks for others")
    if choice == "imagenet" and in_chans != 3:
        problems.append(f"--statistics imagenet has 3 channels; --in-chans is {in_chans}: measure")
    return problems


def choose_statistics(
    samples: Images,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    choice: str,
    images: int,
    seed: int,
    workers: int,
) -> Statistics:
    """Choose the given, ImageNet's or measured statistics.

    Args:
        samples: the images to be normalised.
        mean, std: given values, or None.
        choice: "imagenet", "measure", or "auto": ImageNet's for 3 channels of 8 bits.
        images: number of images to measure at most.
        seed: chooses these images.
        workers: number of loader processes that measure.

    Raises:
        InputError: for given values that are not on the scale of 0..1, or a constant channel.
    """
    eight_bit = samples.eight_bit()
    if mean is not None and std is not None:
        if eight_bit and max(*mean, *std) > 1:
            raise InputError(
                f"--mean {' '.join(map(str, mean))} and --std {' '.join(map(str, std))} must be of "
                "values scaled to 0..1; divide values of 8 bits by 255"
            )
        chosen = Statistics(tuple(mean), tuple(std), "given")
    elif choice == "imagenet" or (choice == "auto" and samples.in_chans == 3 and eight_bit):
        chosen = IMAGENET
    else:
        if choice == "auto":
            logger.info(
                "measuring mean and std: ImageNet's are for 3 channels of 8 bits, and these images "
                "have %d of %s; --mean and --std, or --statistics imagenet, would save this",
                samples.in_chans,
                "8 bits" if eight_bit else "another type",
            )
        chosen = measure(samples, images, seed, workers)
    for name, values in (("mean", chosen.mean), ("std", chosen.std)):
        logger.info("%s: %s (%s)", name, " ".join(f"{v:.6g}" for v in values), chosen.origin)
    return chosen


def measure(
    samples: Images, images: int, seed: int, workers: int = 0, least_share: float = 0.0
) -> Statistics:
    """Measure over all pixels of the data set, or of ``images`` images chosen by ``seed``.

    Every pixel counts alike. Sums are float64; images are combined by the parallel form of
    Welford's algorithm (Chan, Golub and LeVeque, 1983), in an order that does not depend on
    ``workers``. Bad images are left out where ``samples`` skips them.

    Args:
        least_share: of the largest channel's deviation, that each channel gets at least. So a
            channel of noise alone is not made as loud as the others.

    Raises:
        ImageError: for a bad image where they are not skipped.
        InputError: for a channel that is constant: it cannot be normalised.
    """
    total = len(samples)
    chosen = np.arange(total)
    if images < total:
        chosen = np.sort(np.random.default_rng([seed, 3]).choice(total, images, replace=False))
    moments_of = _Moments(samples, chosen)
    loader = guarded_loader(moments_of, workers, batch_size=None, collate_fn=_unchanged)
    count, mean, squares = 0, np.zeros(samples.in_chans), np.zeros(samples.in_chans)
    read = 0
    for moments in progress(loader, "measuring", unit="image"):
        if moments is None:
            continue
        pixels, its_mean, its_squares = moments
        count, before = count + pixels, count
        difference = its_mean - mean
        mean = mean + difference * (pixels / count)
        squares = squares + its_squares + difference**2 * (before * pixels / count)
        read += 1
    if not read:
        raise ImageError(f"none of the {counted(len(chosen), 'image')} to measure can be used")
    std = np.sqrt(squares / count)
    std = np.maximum(std, least_share * std.max())
    if constant := [str(channel) for channel in np.flatnonzero(std == 0)]:
        raise InputError(
            f"channel(s) {', '.join(constant)} (from 0) have the same value in all "
            f"{counted(read, 'image')} measured and cannot be normalised; leave them out of the "
            "files, or give --mean, --std"
        )
    return Statistics(
        tuple(mean.tolist()),
        tuple(std.tolist()),
        f"measured over {read} of {counted(total, 'image')}",
    )


def _unchanged(moments: object) -> object:
    return moments


class _Moments(Dataset):
    """For each image: number of pixels, and per channel mean and summed squared deviations."""

    def __init__(self, samples: Images, indices: np.ndarray) -> None:
        self.samples, self.indices = samples, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[int, np.ndarray, np.ndarray] | None:
        try:
            pixels = self.samples.whole_image(int(self.indices[place]))
        except ImageError:
            if self.samples.skip_bad_images:
                return None
            raise
        scale = EIGHT_BITS if pixels.dtype == np.uint8 else 1
        values = pixels.reshape(-1, pixels.shape[-1]).astype(np.float64) / scale
        mean = values.mean(0)
        return len(values), mean, ((values - mean) ** 2).sum(0)
