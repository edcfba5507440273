"""The labels of a study: subsets shared by all arms, a split for tuning, and leaks between sets.

COCO files and folders of classes are read without checks; the training itself checks them.
Segmentation's class maps are read by :mod:`segmentation.subsets`, as another :class:`LabelSet`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from backbones.errors import InputError, counted
from backbones.whole_files import linked_folder, write_json
from images.files import Reading, pixel_digest, read_image
from images.folders import files_of_folder
from images.threads import in_threads
from training.progress import progress

TUNED_ON = 0.25  # share of the labelled images for tuning learning rates; in no table
SMALLEST = 4  # images of either half of that split, where there is one kind of image


class LabelSet(Protocol):
    """Labelled images of which parts can be written as labels of their own."""

    @property
    def path(self) -> Path: ...

    @property
    def images(self) -> Sequence[Any]: ...

    def key(self, image: Any) -> str:
        """A name that does not depend on the other images."""

    def kind(self, image: Any) -> str | None:
        """Images of every kind are in every subset; None: it has no labels to learn from."""

    def file(self, image: Any) -> Path:
        """Its file."""

    def write(self, images: Sequence[Any], path: Path) -> Path:
        """Write these images' labels to ``path``, or that with an ending; keep existing files."""

    def told(self, path: Path) -> str:
        """The data set name to give to a training."""


@dataclass(frozen=True)
class Labels:
    """A COCO file in memory."""

    path: Path  # of the file
    images: list[dict[str, Any]]  # its entries
    annotations: dict[Any, list[dict[str, Any]]]  # by image id
    rest: dict[str, Any]  # the file's other keys
    folder: Path  # of the images

    def key(self, image: dict[str, Any]) -> str:
        return str(image["file_name"])

    def kind(self, image: dict[str, Any]) -> str | None:
        return "" if self.annotations.get(image["id"]) else None

    def file(self, image: dict[str, Any]) -> Path:
        return self.folder / self.key(image)

    def write(self, images: Sequence[dict[str, Any]], path: Path) -> Path:
        """A file of these images alone, with all categories."""
        path = path.with_name(path.name.removesuffix(".json") + ".json")
        if not path.is_file():
            found = [item for image in images for item in self.annotations.get(image["id"], [])]
            write_json(path, {**self.rest, "images": list(images), "annotations": found})
        return path

    def told(self, path: Path) -> str:
        return f"json:{path}:{self.folder}"


def read_labels(path: Path, folder: Path | None = None) -> Labels:
    """Read a COCO file.

    Args:
        folder: of the images; default: the file's own.

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
        return Labels(path, list(tree["images"]), by_image, rest, folder or path.parent)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no COCO file ({type(error).__name__}: {error}); "
            "tools/check_dataset.py lists all that is wrong with it"
        ) from error


@dataclass(frozen=True)
class ClassFolders:
    """A folder that holds a folder of images for each class; each of its images is a path in it."""

    path: Path
    images: list[str]

    def key(self, image: str) -> str:
        return image

    def kind(self, image: str) -> str:
        return image.partition("/")[0]

    def file(self, image: str) -> Path:
        return self.path / image

    def write(self, images: Sequence[str], path: Path) -> Path:
        """A folder of the same form, whose files are links to these."""
        return linked_folder(path, {image: self.path / image for image in images})

    def told(self, path: Path) -> str:
        return str(path)


def read_class_folders(path: Path) -> ClassFolders:
    """The images of a folder of class folders.

    Raises:
        InputError: if there are none, or some that lie in no class's folder.
    """
    names = [file.relative_to(path).as_posix() for file in files_of_folder(path).images]
    if not names or (lonely := [name for name in names if "/" not in name]):
        what = (
            f"{counted(len(lonely), 'image')} that lie in no class's folder"
            if names
            else "no images"
        )
        raise InputError(f"{path} has {what}: a classifier needs one folder of images per class")
    return ClassFolders(path, names)


@dataclass(frozen=True)
class Split:
    """The labelled images of a study."""

    pool: list[Any]  # those that subsets are drawn from
    # tune_train, tune_test: those that rates are tuned on; in no subset and no table
    tune_train: list[Any]
    tune_test: list[Any]
    kinds: list[str]  # of each image of the pool, see :meth:`LabelSet.kind`

    def subset(self, size: int | None, seed: int) -> list[Any]:
        """``size`` images of the pool (None: all), the same for every arm of a seed.

        A smaller subset of a seed is part of its larger ones, and one image of every kind is in
        each of them.
        """
        order = list(range(len(self.pool)))
        random.Random(f"labels {seed}").shuffle(order)
        first = {self.kinds[place]: place for place in reversed(order)}.values()
        order.sort(key=lambda place: place not in first)  # which is stable
        return [self.pool[place] for place in (order if size is None else order[:size])]


def split_labels(labels: LabelSet, sizes: Sequence[int | None]) -> Split:
    """Set apart the images that rates are tuned on, by their names, whatever the file's order.

    Raises:
        InputError: for too few labelled images for that split and the largest subset, and for
            subsets that cannot hold every class.
    """
    by_kind: dict[str, list[Any]] = {}
    for image in labels.images:
        if (kind := labels.kind(image)) is not None:
            by_kind.setdefault(kind, []).append(image)
    pool, tune_train, tune_test, problems = [], [], [], []
    for kind, images in by_kind.items():
        order = sorted(images, key=lambda image: _hash(labels.key(image)))
        least = 2 * SMALLEST if len(by_kind) == 1 else 2
        apart = max(least, round(TUNED_ON * len(order)))
        if len(by_kind) > 1 and len(order) <= apart:
            problems.append(
                f"class {kind} has {counted(len(order), 'image')}; {apart + 1} are needed"
            )
        tune_train += order[: apart // 2]
        tune_test += order[apart // 2 : apart]
        pool += [(kind, image) for image in order[apart:]]
    found = sum(map(len, by_kind.values()))
    apart = len(tune_train) + len(tune_test)
    largest, smallest = (pick((s for s in sizes if s), default=1) for pick in (max, min))
    if len(pool) < largest or len(pool) < SMALLEST:
        problems.append(
            f"{labels.path} has {counted(found, 'image')} with labels; {apart} of them are set "
            f"apart to tune rates, which leaves {len(pool)}, fewer than the "
            f"{max(largest, SMALLEST)} of --labels: ask for fewer, or label more"
        )
    if smallest < len(by_kind) and any(sizes):
        problems.append(
            f"--labels {smallest} cannot hold an image of each of "
            f"{counted(len(by_kind), 'class')}: give at least {len(by_kind)}"
        )
    if problems:
        raise InputError("\n".join(problems))
    pool.sort(key=lambda pair: _hash(labels.key(pair[1])))
    return Split([i for _, i in pool], tune_train, tune_test, [kind for kind, _ in pool])


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()


def digests(files: Iterable[Path], reading: Reading) -> dict[str, Path]:
    """Digest of an image's pixels -> its path, of files that can be read."""
    paths = list(files)

    def digest(path: Path) -> str | None:
        try:
            pixels = read_image(path, reading)
        except (InputError, OSError):
            return None
        return pixel_digest(pixels)

    found = progress(in_threads(digest, paths), "comparing", len(paths), "image")
    return {key: path for key, path in zip(found, paths, strict=True) if key is not None}


def content_of(name: str, without: Path) -> str:
    """A digest of what a data set's name stands for: a file's bytes, a folder's names and sizes.

    Args:
        name: a path, or several behind ``masks:`` or ``json:``; of anything else the name itself.
        without: a folder that is passed over.
    """
    paths = [Path(name)] if Path(name).exists() else [Path(part) for part in name.split(":")]
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            with path.open("rb") as stream:
                while part := stream.read(1 << 20):
                    digest.update(part)
        elif path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file() and without not in p.parents)
            for file in files:
                line = f"{file.relative_to(path).as_posix()} {os.path.getsize(file)}\n"
                digest.update(line.encode(errors="surrogateescape"))
        else:
            digest.update(str(path).encode(errors="surrogateescape"))
    return digest.hexdigest()
