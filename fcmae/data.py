"""Unlabelled images for pretraining, through timm's readers.

Any name that ``timm.data.create_dataset`` knows: a folder (flat or nested), tar shards,
``wds/...``, ``hfds/...``. Augmentation as in the released code: RandomResizedCrop of scale 0.2 to
1 (bicubic) and horizontal flip.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.readers.img_extensions import add_img_extensions, get_img_extensions
from torch import Tensor
from torchvision.transforms import v2
from tqdm import tqdm

from fcmae.masking import grid_size, random_mask

logger = logging.getLogger(__name__)

MORE_EXTENSIONS = (".bmp", ".tif", ".tiff", ".webp")  # beside timm's .jpeg, .jpg and .png
NAMED_SOURCES = ("hfds", "hfids", "tfds", "wds")
DECODING_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class ImageError(ValueError):
    """An image cannot be decoded; the message names its file."""


def augmentation(
    height: int,
    width: int,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    scale: tuple[float, float] = (0.2, 1.0),
) -> v2.Compose:
    """PIL image -> float32 ``[C, height, width]``, randomly cropped and flipped, normalised."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                (height, width), scale=scale, interpolation=v2.InterpolationMode.BICUBIC
            ),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(mean), list(std)),
        ]
    )


class Reader(Protocol):
    """timm's readers: ``reader[i]`` is (open file, target)."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Any, Any]: ...
    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str: ...
    def filenames(self, basename: bool = False, absolute: bool = False) -> list[str]: ...


@dataclass
class PretrainingSamples:
    """Map-style samples of (image, mask), for :func:`training.loop.train`.

    The mask is drawn with the sample, from the same seeded generators, so that it depends on
    (seed, epoch, index) alone. Images come from timm's reader, not from its data set, which
    replaces an image that does not decode by the next one.

    Args:
        reader: where the image files come from.
        transform: PIL image -> ``[C, H, W]``.
        grid: rows and columns of patches of the transformed image.
        mask_ratio: share of patches to remove.
    """

    reader: Reader
    transform: v2.Transform
    grid: tuple[int, int]
    mask_ratio: float

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        try:
            image = to_rgb(Image.open(self.reader[index][0]))
        except DECODING_ERRORS as error:
            raise ImageError(
                f"{self.describe(index)} does not decode ({error}); repair or remove it"
            ) from error
        return self.transform(image), random_mask(1, self.grid, self.mask_ratio)[0]

    def describe(self, index: int) -> str:
        """The file that a sample comes from."""
        return self.reader.filename(index, absolute=True)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB; 16-bit grey is divided by 257, where Pillow would cut it at 255."""
    if image.mode.startswith("I;16"):
        return Image.fromarray(
            (np.asarray(image, dtype=np.uint16) // 257).astype(np.uint8)
        ).convert("RGB")
    return image.convert("RGB")


def collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Samples -> images ``[B, C, H, W]`` and masks ``[B, H/32, W/32]``."""
    images, masks = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(masks)


def open_images(name: str, split: str = "train") -> Reader:
    """Open a folder of images or any other source that timm reads by index.

    Args:
        name: a folder (images directly in it or at any depth), a .tar of images, or the name of a
            timm data set with its prefix, such as ``hfds/owner/name``.
        split: the split of a named source.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if there is no image in it (with the extensions that count as images), or the
            source is a stream, which has no index.
    """
    if name.partition("/")[0] in NAMED_SOURCES:
        reader = create_dataset(name, root=os.environ.get("TIMM_DATA_DIR"), split=split).reader
        if not hasattr(reader, "__getitem__"):
            raise ValueError(f"{name} is a stream without an index; unpack it into a folder")
        return reader
    path = Path(name)
    if not path.exists():
        raise FileNotFoundError(f"the image folder {path} does not exist")
    if path.is_file() and path.suffix != ".tar":
        raise ValueError(f"{path} is a file; --data takes a folder of images or a .tar of images")
    add_img_extensions(MORE_EXTENSIONS)
    extensions = get_img_extensions()
    if path.is_dir() and next(_image_files(path, extensions), None) is None:
        raise ValueError(
            f"no images in {path}: no file in it or in its subfolders ends in "
            f"{', '.join(sorted(extensions))}"
        )
    return create_dataset("", root=str(path), split=split, search_split=False).reader


def _image_files(folder: Path, extensions: Iterable[str]) -> Iterator[str]:
    for parent, _, files in os.walk(folder, followlinks=True):
        for file in files:
            if os.path.splitext(file)[1].lower() in set(extensions):
                yield os.path.join(parent, file)


def check_headers(reader: Reader, limit: int = 50) -> None:
    """Open every image file's header before training starts, and name all that are none.

    Only sources with files on disk can be checked beforehand; pixel data that is damaged behind a
    good header shows when the image is first used, as an :class:`ImageError`.

    Raises:
        ImageError: with every unreadable file (the first ``limit`` by name, the rest counted).
    """
    names = reader.filenames(absolute=True)
    bad = []
    for name in tqdm(names, desc="checking images", unit="image", disable=None, leave=False):
        try:
            with Image.open(name):
                pass
        except FileNotFoundError:
            return  # members of archives have names but are no files
        except DECODING_ERRORS as error:
            bad.append(f"{name}: {type(error).__name__}")
    if bad:
        more = f"\n  and {len(bad) - limit} more" if len(bad) > limit else ""
        raise ImageError(
            f"{len(bad)} of {len(names)} images cannot be read; repair or remove them:\n  "
            + "\n  ".join(bad[:limit])
            + more
        )


def fingerprint(reader: Reader) -> str:
    """A short hash over the names and sizes of the source's files (hex)."""
    digest = hashlib.sha256()
    names = zip(reader.filenames(), reader.filenames(absolute=True), strict=True)
    for relative, path in names:
        size = os.path.getsize(path) if os.path.exists(path) else -1
        digest.update(f"{relative}:{size}\n".encode())
    return digest.hexdigest()[:16]


def pretraining_samples(
    name: str, image_size: Sequence[int], mask_ratio: float, split: str = "train"
) -> PretrainingSamples:
    """Everything from a name to samples, checked: see :func:`open_images`, :func:`check_headers`.

    Args:
        image_size: height and width in pixels, multiples of 32.
    """
    height, width = image_size
    grid = grid_size(height, width)
    reader = open_images(name, split)
    check_headers(reader)
    logger.info("%d images from %s", len(reader), name)
    return PretrainingSamples(reader, augmentation(height, width), grid, mask_ratio)
