"""The labels of a study: subsets that all arms share, a split to tune on, and what leaks.

COCO files are read here as what they are, lists of images, annotations and categories; whether they
are faultless is for the training's own check.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones.errors import InputError
from backbones.whole_files import write_json
from images.files import Reading, read_image
from images.threads import in_threads
from training.progress import progress

TUNED_ON = 0.25  # share of the labelled images that rates are tuned on, and no table shows
SMALLEST = 4  # images of either half of that split


@dataclass(frozen=True)
class Labels:
    """A COCO file in memory.

    Attributes:
        path: of the file.
        images: its entries.
        annotations: by image id.
        rest: the file's other keys.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations: dict[Any, list[dict[str, Any]]]
    rest: dict[str, Any]

    def write(self, images: Sequence[dict[str, Any]], path: Path) -> Path:
        """A file of these images alone, with all categories."""
        found = [item for image in images for item in self.annotations.get(image["id"], [])]
        write_json(path, {**self.rest, "images": list(images), "annotations": found})
        return path


def read_labels(path: Path) -> Labels:
    """Read a COCO file.

    Raises:
        InputError: if it is none.
        FileNotFoundError: if it does not exist.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
        by_image: dict[Any, list[dict[str, Any]]] = {}
        for item in tree["annotations"]:
            by_image.setdefault(item["image_id"], []).append(item)
        rest = {key: value for key, value in tree.items() if key not in ("images", "annotations")}
        return Labels(path, list(tree["images"]), by_image, rest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no COCO file ({type(error).__name__}: {error}); "
            "tools/check_dataset.py lists all that is wrong with it"
        ) from error


@dataclass(frozen=True)
class Split:
    """The labelled images of a study.

    Attributes:
        pool: those that subsets are drawn from.
        tune_train, tune_test: those that rates are tuned on; in no subset and no table.
    """

    pool: list[dict[str, Any]]
    tune_train: list[dict[str, Any]]
    tune_test: list[dict[str, Any]]

    def subset(self, size: int | None, seed: int) -> list[dict[str, Any]]:
        """``size`` images of the pool (None: all), the same for every arm of a seed.

        A smaller subset of a seed is part of its larger ones.
        """
        order = list(self.pool)
        random.Random(f"labels {seed}").shuffle(order)
        return order if size is None else order[:size]


def split_labels(labels: Labels, sizes: Sequence[int | None]) -> Split:
    """Set apart the images that rates are tuned on, by their names, whatever the file's order.

    Raises:
        InputError: for too few images with objects for that split and the largest subset.
    """
    with_objects = [image for image in labels.images if labels.annotations.get(image["id"])]
    order = sorted(
        with_objects,
        key=lambda image: hashlib.sha256(str(image["file_name"]).encode()).hexdigest(),
    )
    apart = max(2 * SMALLEST, round(TUNED_ON * len(order)))
    pool, largest = order[apart:], max((size for size in sizes if size), default=1)
    if len(pool) < largest or len(pool) < SMALLEST:
        raise InputError(
            f"{labels.path} has {len(order)} images with objects; {apart} of them are set apart to "
            f"tune rates, which leaves {max(0, len(pool))}, fewer than the {largest} of --labels: "
            "ask for fewer, or label more"
        )
    half = apart // 2
    return Split(pool, order[:half], order[half:apart])


def digests(folder: Path, names: Sequence[str], reading: Reading) -> dict[str, str]:
    """Digest of an image's pixels -> its path, of files that can be read."""

    def digest(name: str) -> str | None:
        try:
            pixels = read_image(folder / name, reading)
        except (InputError, OSError):
            return None
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()

    found = progress(in_threads(digest, names), "comparing", len(names), "image")
    return {
        key: os.path.join(folder, name)
        for key, name in zip(found, names, strict=True)
        if key is not None
    }


def leaked(labels: dict[str, str], test: dict[str, str]) -> list[str]:
    """Test images that are among the labelled ones, by their pixels."""
    return [path for key, path in test.items() if key in labels]
