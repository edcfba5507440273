"""Shrunk copies of large images (``--cache DIR``), so that pretraining decodes each of them once.

Decoding a PNG or TIFF of 12 megapixels takes twenty times as long as all further work on a sample.
A copy is the image with both sides divided by a whole number; each value is the mean over a square
of the image. The number is the largest with which the smallest crop of pretraining (by default a
fifth of the area, sides of 3 : 4) is not smaller than a sample, so crops of copies are never
enlarged. A crop on whole squares is exactly the mean of the image's own crop. Images with the
number 1 have no copy.

A copy is a ``.npy`` array of the pixels as :mod:`images.files` reads them; a crop reads only its
own rows. The copy's name is a hash of the file's path, size and time and of all settings that
affect the copy, so a changed file or setting gives a new copy. Several processes may share a
folder; each makes missing copies, completely or not at all. When the folder is full, further images
are read from their own files. ``headers.json`` lists the files whose headers were found good.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from backbones.errors import InputError, counted
from backbones.whole_files import write_atomically, write_json
from images.files import ImageError, Reading
from images.readers import Reader
from images.windows import open_windows
from training.cli import process_count
from training.progress import progress

logger = logging.getLogger(__name__)

HEADERS = "headers.json"
FORMAT = 1  # of the copies
NARROWEST = 3 / 4  # shortest side / longest side of a crop
THREADS = min(4, os.cpu_count() or 1)
GIGABYTE = 10**9


def shrink_factor(
    height: int, width: int, image_size: Sequence[int], smallest_crop: float = 0.2
) -> int:
    """The number by which an image's sides may be divided so that no crop is below a sample's size.

    Args:
        image_size: height and width of a sample.
        smallest_crop: its fraction of the image's area.
    """
    smallest = min((smallest_crop * NARROWEST * height * width) ** 0.5, height, width)
    return max(1, int(smallest // max(image_size)))


def state_of(path: Path) -> tuple[int, int]:
    """A file's size in bytes and time in nanoseconds, to notice changes."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


class Header(NamedTuple):
    """The sides of a good image file, and the depth of its values in words."""

    height: int
    width: int
    depth: str


@dataclass
class ShrunkCopies:
    """The copies of a source's images in one folder.

    Raises:
        InputError: if the source's images are not files.
    """

    folder: Path  # created if it does not exist
    reader: Reader  # a reader of files in a folder
    reading: Reading  # how files become arrays
    image_size: tuple[int, int]  # height and width of a sample
    smallest_crop: float = 0.2  # fraction of an image's area
    gigabytes: float = 50.0  # most that the folder may take, with copies of other runs
    _paths: dict[int, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.reader.header_is_cheap:
            raise InputError(
                f"--cache {self.folder} keeps copies of files; {self.reader.name(0)} is not a "
                "file: give a folder of images, or leave out --cache"
            )

    def path_of(self, index: int) -> Path:
        """Where the copy of an image is, or would be."""
        file = Path(self.reader.name(index))
        made_by = [
            FORMAT, os.path.abspath(file), *state_of(file), max(self.image_size),
            self.smallest_crop, self.reading.channels, self.reading.value_range,
        ]  # fmt: skip
        digest = hashlib.sha256(repr(made_by).encode(errors="surrogateescape")).hexdigest()[:32]
        return self.folder / digest[:2] / f"{digest}.npy"

    def make(self, header: Callable[[Path], Header], among: Sequence[int]) -> None:
        """Make missing copies, several at a time, with a progress bar.

        Args:
            among: the indices of images to copy, without bad ones.
        """
        wanted, sizes = {}, {}
        for index in among:
            height, width, depth = header(Path(self.reader.name(index)))
            if (factor := shrink_factor(height, width, self.image_size, self.smallest_crop)) > 1:
                wanted[index], sizes[index] = factor, height * width / factor**2
                sizes[index] *= (self.reading.channels or 3) * (1 if depth == "8 bits" else 4)
        self._paths = {index: self.path_of(index) for index in wanted}
        missing = [index for index, path in self._paths.items() if not path.is_file()]
        if not missing:
            logger.info("%d of %d images are read from copies in %s", len(wanted), len(among),
                        self.folder)  # fmt: skip
            return
        left = self.gigabytes * GIGABYTE - sum(f.stat().st_size for f in self.folder.rglob("*.npy"))
        fitting: list[int] = []
        for index in missing:
            left -= sizes[index]
            if left < 0:
                break
            fitting.append(index)
        if len(fitting) < len(missing):
            logger.warning(
                "%s is full: %s without a copy. Allow more by --cache-gb (%g), or "
                "remove the folder, which may hold copies of other runs",
                self.folder, counted(len(missing) - len(fitting), "image"), self.gigabytes,
            )  # fmt: skip
        # each process starts at another image, and skips copies that others have made
        first = int(os.environ.get("RANK", 0)) * len(fitting) // process_count()
        fitting = fitting[first:] + fitting[:first]
        with ThreadPoolExecutor(THREADS) as pool:
            made = pool.map(lambda index: self._make(index, wanted[index]), fitting)
            count = sum(progress(made, "shrinking large images", len(fitting), "image"))
        logger.info("%d copies of large images written to %s", count, self.folder)

    def _make(self, index: int, factor: int) -> bool:
        """Write one copy; a damaged image gets none, and is reported when it is used."""
        path = self._paths[index]
        if path.is_file():  # another process was here
            return False
        try:
            with open_windows(self.reader.name(index), self.reading) as windows:
                pixels = windows.shrunk_by(factor)
        except ImageError:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda partial: np.save(partial, pixels))
        return True

    def open(self, index: int) -> np.ndarray | None:
        """An image's copy ``[h, w, C]``, uint8 or float32 in 0..1; None if it has none."""
        if (path := self._paths.get(index)) is None:
            return None
        try:
            return np.load(path, mmap_mode="r")
        except (OSError, ValueError):  # the copy was removed: the image itself is read
            return None


class KnownHeaders:
    """Remembers in a folder which files' headers were found good, by path, size and time.

    Args:
        folder: the folder of ``headers.json``; None remembers nothing.
        reading: how files are read; other settings need another check.
    """

    def __init__(self, folder: Path | None, reading: Reading) -> None:
        self._folder = folder
        self._of = repr((FORMAT, reading.channels, reading.converts))
        self._known: dict[str, list] = self._load()
        self._new = False

    def _load(self) -> dict[str, list]:
        if self._folder is None:
            return {}
        try:
            tree = json.loads((self._folder / HEADERS).read_text(encoding="utf-8"))
            return tree["files"] if tree["of"] == self._of else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def find(self, path: Path) -> Header | None:
        """The header of a good file that has not changed since."""
        known = self._known.get(os.path.abspath(path))
        return self.header(path) if known and known[:2] == list(state_of(path)) else None

    def header(self, path: Path) -> Header:
        """The header of a file that was found or noted."""
        return Header(*self._known[os.path.abspath(path)][2:])

    def note(self, path: Path, header: Header) -> None:
        """Remember a good file."""
        if self._folder is not None:
            self._known[os.path.abspath(path)] = [*state_of(path), *header]
            self._new = True

    def save(self) -> None:
        """Write the notes to the folder."""
        if self._folder is not None and self._new:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(self._folder / HEADERS, {"of": self._of, "files": self._known})
