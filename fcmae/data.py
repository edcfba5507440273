"""Unlabelled images for pretraining: samples of (image, mask) as functions of (seed, epoch, index).

Augmentation as in the released code: RandomResizedCrop of scale 0.2 to 1 (bicubic) and horizontal
flip. Colours change only with ``grey_share``. 8-bit images stay uint8 until they are on the
training's device, where they are normalised (``images.statistics``). That saves time in the
loader's workers and three quarters of the bytes to copy.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from backbones.errors import counted
from fcmae.copies import Header, KnownHeaders, ShrunkCopies
from fcmae.masking import PATCH, draw_mask, grid_size
from fcmae.packed_mask import PackedMask
from fcmae.samples import ImageSamples, opened_picture
from images.bad_images import refuse_bad
from images.files import EIGHT_BITS, ImageError, Picture, Reading
from images.picture import picture_of
from images.readers import Reader, open_images
from training.data import evenly_spread
from training.progress import progress

logger = logging.getLogger(__name__)

CROP_SCALE, CROP_RATIO = (0.2, 1.0), [3 / 4, 4 / 3]
HEADER_THREADS = 8
VALUES_READ = 2000  # images, evenly spread, whose values are checked before a run
LARGE = 2**22  # pixels from which only the crop is read, if the format has parts
SPARE = 2  # large JPEGs are decoded at a scale with at least so many pixels per sample pixel

Sample = tuple[Tensor, Tensor, dict[int, str]]
Batch = tuple[Tensor, PackedMask, dict[int, str]]


@dataclass(kw_only=True)
class PretrainingSamples(ImageSamples):
    """Samples of (image, mask, bad images met), for :func:`training.loop.train`.

    The mask is drawn with the sample, from the same seeded generators, so that it depends on
    (seed, epoch, index) alone. A bad image is replaced by the next good one by index (the first
    follows the last), cropped, flipped and masked by the same random numbers.
    """

    CANDIDATES = "half of all images behind it"

    # height and width of a sample in pixels, multiples of ``patch_size``
    image_size: tuple[int, int]
    mask_ratio: float  # fraction of patches to remove
    patch_size: int = PATCH  # side of the patches that are removed, in pixels, a multiple of 32
    # smallest and largest fraction of an image's area in a crop
    crop_scale: tuple[float, float] = CROP_SCALE
    grey_share: float = 0.0  # fraction of samples made grey (3 channels only)
    # shrunk copies of large images, from which crops are cut
    copies: ShrunkCopies | None = None
    whole_jpegs: bool = False  # never decode a JPEG at a smaller scale

    def __getitem__(self, index: int) -> Sample:
        """Image uint8 ``[C, H, W]`` (float32 in 0..1 from files of more than 8 bits), mask bool
        ``[H/32, W/32]``, and index and reason of bad images that were met.

        Raises:
            ImageError: for a bad image if they are not skipped, or if half of all are bad.
        """
        _, image, met = self.first_usable(index, self._augmented)
        mask = draw_mask(1, self.image_size, self.mask_ratio, self.patch_size)[0]
        if self.grey_share and torch.rand(()) < self.grey_share:
            image = F.rgb_to_grayscale(image, num_output_channels=3)
        return image, mask, met

    def _augmented(self, index: int) -> Tensor:
        if self.copies and (copy := self.copies.open(index)) is not None:
            reading = Reading(self.in_chans)
            return augmented(picture_of(copy), reading, self.image_size, self.crop_scale)
        with self.opened(index) as picture:
            return augmented(
                picture, self.reading, self.image_size, self.crop_scale, self.whole_jpegs
            )

    def candidates(self, index: int) -> Iterator[int]:
        for step in range(len(self) // 2 + 1):
            candidate = (index + step) % len(self)
            if candidate not in self.bad:
                yield candidate


def augmented(
    picture: Picture,
    reading: Reading,
    image_size: tuple[int, int],
    crop_scale: tuple[float, float] = CROP_SCALE,
    whole_jpegs: bool = False,
) -> Tensor:
    """Decode, crop at random, resize, flip at random: uint8 or float32 ``[C, H, W]``.

    Raises:
        ImageError: if the pixels are damaged, or values are beyond the stated range.
    """
    sides = torch.empty((1, picture.height, picture.width), device="meta")
    crop = RandomResizedCrop.get_params(sides, list(crop_scale), CROP_RATIO)
    shrink = min(
        size // (SPARE * wanted) for size, wanted in zip(crop[2:], image_size, strict=True)
    )
    if picture.window is not None and picture.height * picture.width > LARGE:
        part = picture.window(*crop)
    else:
        pixels = picture.pixels(1 if whole_jpegs else max(1, shrink))
        top, left, height, width = (round(v * len(pixels) / picture.height) for v in crop)
        part = pixels[top : top + max(1, height), left : left + max(1, width)]
    values = reading.values(picture, part)
    image = torch.from_numpy(np.array(values)).permute(2, 0, 1)
    image = F.resize(image, list(image_size), InterpolationMode.BICUBIC, antialias=True)
    return image.flip(-1) if torch.rand(()) < 0.5 else image


def collate(samples: list[Sample]) -> Batch:
    """Samples -> images ``[B, C, H, W]`` (channels last), masks with their tables, bad images."""
    images, masks, met = zip(*samples, strict=True)
    if len({image.dtype for image in images}) > 1:
        images = tuple(x if x.is_floating_point() else x / EIGHT_BITS for x in images)
    stacked = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    packed = PackedMask.of(torch.stack(masks))
    return stacked, packed, {index: why for one in met for index, why in one.items()}


def find_bad_headers(
    reader: Reader,
    reading: Reading,
    among: Sequence[int] | None = None,
    known: KnownHeaders | None = None,
) -> dict[int, str]:
    """Index and reason of every file that is not an image, or has a wrong number of channels.

    For real numbers, and if a range is stated, the values of ``VALUES_READ`` images are checked,
    too. Other damage after a good header is only found when the image is first used; so is all
    damage in sources whose headers cannot be read alone. Several depths give a warning. Several
    files are read at a time, because most of the time is waiting for the disk.

    Args:
        among: the indices of the images to check; None for all.
        known: headers found good by earlier starts; good ones are added.
    """
    bad, depths = {}, defaultdict[str, list[int]](list)
    indices: Sequence[int] = range(len(reader)) if among is None else among
    if not reader.header_is_cheap:
        indices = ()
    known = known or KnownHeaders(None, reading)
    watched = {indices[place] for place in evenly_spread(indices, VALUES_READ)}

    def depth_of(index: int) -> str | ImageError:
        path = Path(reader.name(index))
        if (header := known.find(path)) is not None:
            return header.depth
        try:
            with opened_picture(reader, index, reading) as picture:
                if index in watched and _may_hold_others(picture, reading):
                    reading.read(picture)
                known.note(path, Header(picture.height, picture.width, picture.depth))
                return picture.depth
        except ImageError as error:
            return error

    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        found = progress(pool.map(depth_of, indices), "checking images", len(indices), "image")
        for index, depth in zip(indices, found, strict=True):
            if isinstance(depth, ImageError):
                bad[index] = str(depth)
            else:
                depths[depth].append(index)
    known.save()
    if len(depths) > 1 and reading.value_range is None:
        counts = (
            f"{len(found)} of {depth} such as {reader.name(found[0])}"
            for depth, found in depths.items()
        )
        logger.warning(
            "images of several depths: %s. Levels are kept, and the largest value of each depth "
            "counts as white: make sure that it is, or state %s",
            ", ".join(counts),
            reading.range_setting,
        )
    return bad


def _may_hold_others(picture: Picture, reading: Reading) -> bool:
    """Whether values may be NaN or beyond a stated range, in an image that several threads hold."""
    is_small = picture.height * picture.width * picture.channels <= 4 * LARGE
    stated = picture.white is None or reading.value_range is not None
    return is_small and stated and not reading.is_eight_bit(picture)


def pretraining_samples(
    name: str,
    image_size: Sequence[int],
    mask_ratio: float,
    in_chans: int = 3,
    split: str = "train",
    value_range: tuple[float, float] | None = None,
    cache: Path | None = None,
    cache_gb: float = 50.0,
    **sampling: Any,
) -> PretrainingSamples:
    """Open a source by its name (:func:`images.readers.open_images`), and check it.

    Args:
        value_range: the values that become 0 and 1, see ``images.files``.
        cache: a folder of shrunk copies of large images (:mod:`fcmae.copies`); None for none.
        cache_gb: most gigabytes that they may take.
        sampling: further fields of :class:`PretrainingSamples`.

    Raises:
        InputError: for a ``cache`` with a source that is not a folder of images.
        ImageError: with every file that is known to be bad; if ``skip_bad_images``, only where
            more than half are.
    """
    height, width = image_size
    samples = PretrainingSamples(
        reader=open_images(name, split),
        reading=Reading(in_chans, value_range=value_range),
        image_size=(height, width),
        mask_ratio=mask_ratio,
        **sampling,
    )
    grid_size(height, width, samples.patch_size)
    reader, reading, smallest = samples.reader, samples.reading, samples.crop_scale[0]
    copies = cache and ShrunkCopies(cache, reader, reading, (height, width), smallest, cache_gb)
    known = KnownHeaders(cache, reading)
    bad = samples.bad = find_bad_headers(reader, reading, known=known)
    if bad and (not samples.skip_bad_images or 2 * len(bad) > len(reader)):
        refuse_bad(reader, bad)
    logger.info("%s from %s, %d of them bad", counted(len(reader), "image"), name, len(bad))
    if copies:
        copies.make(known.header, [index for index in range(len(reader)) if index not in bad])
        samples.copies = copies
    return samples
