"""Opens sources of images: a folder, tar shards, webdataset, a Hugging Face data set.

The names are timm's (``timm.data.create_dataset``). Every image has an index, so that a sample
depends only on (seed, epoch, index) and any process can read it. So shards are read by
``images.shards``, and streams, which have no index, are refused.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from backbones.errors import InputError, counted
from images.folders import FolderFiles, files_of_folder, is_passed_over
from images.formats import image_endings
from images.shards import ShardReader, existing_shards, expand_braces, shards_of_split
from training.progress import progress

logger = logging.getLogger(__name__)

STREAMS = ("hfids", "tfds")


class Reader(Protocol):
    """Images by their index.

    Attributes:
        header_is_cheap: whether an image's header can be read without the rest of it.
    """

    header_is_cheap: bool

    def __len__(self) -> int: ...
    def open(self, index: int) -> BinaryIO: ...
    def name(self, index: int) -> str: ...  # for messages: an absolute path if it is a file
    def contents(self) -> Iterable[tuple[str, int]]: ...  # names within the source, and sizes


def fingerprint(reader: Reader) -> str:
    """A short hash over the names and sizes of the source's images (hex)."""
    digest = hashlib.sha256()
    for name, size in progress(reader.contents(), "fingerprint", len(reader), "image"):
        digest.update(f"{name}:{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


class FolderReader:
    """The images of a folder at any depth (:mod:`images.folders`), in natural order of their paths.

    Args:
        folder: the folder, for messages.
        found: the files in it.
    """

    header_is_cheap = True

    def __init__(self, folder: Path, found: FolderFiles) -> None:
        self._folder, self._paths = folder, found.images
        if said := found.words():
            logger.info("%s: %s; left out: %s", folder, counted(len(found.images), "image"), said)

    def __len__(self) -> int:
        return len(self._paths)

    def open(self, index: int) -> BinaryIO:
        return self._paths[index].open("rb")

    def name(self, index: int) -> str:
        return str(self._paths[index])

    def contents(self) -> Iterator[tuple[str, int]]:
        for path in self._paths:
            yield (
                os.path.relpath(path, self._folder),
                os.path.getsize(path) if path.exists() else -1,
            )


class HuggingFaceReader:
    """The image column of a Hugging Face data set; it needs no labels, unlike timm's reader.

    Raises:
        InputError: if the package is missing, or the data set has no split or column of this kind.
        FileNotFoundError: if there is no such data set.
    """

    header_is_cheap = False

    def __init__(self, name: str, split: str) -> None:
        try:
            import datasets
        except ImportError as error:
            raise InputError(
                f"hfds/{name} needs the package datasets: pip install datasets"
            ) from error
        try:
            rows = datasets.load_dataset(
                name, split=split, cache_dir=os.environ.get("TIMM_DATA_DIR")
            )
        except (ConnectionError, TimeoutError) as error:
            raise InputError(f"hfds/{name} cannot be fetched: {error}") from error
        columns = [c for c, f in rows.features.items() if isinstance(f, datasets.Image)]
        if not columns:
            raise InputError(f"hfds/{name} has no image column; it has {', '.join(rows.features)}")
        self._name, self._column = f"hfds/{name}", columns[0]
        self._all_rows = rows
        self._rows = rows.select_columns(columns[:1]).cast_column(
            columns[0], datasets.Image(decode=False)
        )
        logger.info("images of %s: split %s, column %s", self._name, split, self._column)

    def __len__(self) -> int:
        return len(self._rows)

    def open(self, index: int) -> BinaryIO:
        image: dict[str, Any] = self._rows[index][self._column] or {}
        if image.get("bytes"):
            return io.BytesIO(image["bytes"])
        if not image.get("path"):
            raise InputError("the row holds no image")
        return open(image["path"], "rb")

    def name(self, index: int) -> str:
        return f"{self._name} row {index}"

    def contents(self) -> Iterator[tuple[str, int]]:
        yield self._rows._fingerprint, len(self)  # the package's own fingerprint of the data

    def labels(self) -> list[str]:
        """The class name of each row, from the only column of classes.

        Raises:
            InputError: if there is none, or more than one.
        """
        features = self._all_rows.features
        kinds = {c: f for c, f in features.items() if type(f).__name__ == "ClassLabel"}
        if len(kinds) != 1:
            raise InputError(
                f"{self._name} has {counted(len(kinds), 'column')} of classes (ClassLabel), not "
                f"one; its columns: {', '.join(features)}"
            )
        ((column, feature),) = kinds.items()
        return [feature.int2str(number) for number in self._all_rows[column]]


def open_images(name: str, split: str = "train") -> Reader:
    """Open a source of images.

    Args:
        name: a folder (of images at any depth, or of .tar shards), a .tar, shards by a pattern
            (``shards/{000..010}.tar``), the same with ``wds/`` before it for webdataset shards, or
            ``hfds/owner/name``.
        split: of a Hugging Face data set, or of shards whose folder has webdataset's
            ``_info.json``.

    Raises:
        FileNotFoundError: if a path does not exist.
        InputError: if there is no image in it (with the extensions that count as images), or the
            source is a stream, which has no index.
    """
    prefix, _, rest = name.partition("/")
    if prefix == "hfds":
        return HuggingFaceReader(rest, split)
    if prefix in STREAMS or re.match(r"(wds/)?(\w+://|pipe:)", name):
        raise InputError(
            f"{name} is a stream without an index, so that no run over it could be resumed or "
            "repeated; download it and give its folder or shards (a Hugging Face data set: hfds/)"
        )
    webdataset = prefix == "wds"
    path = Path(rest if webdataset else name)
    if webdataset and not path.is_absolute():
        path = Path(os.environ.get("TIMM_DATA_DIR", "")) / path
    if "{" in str(path) and not path.exists():
        return ShardReader(existing_shards(expand_braces(str(path))), webdataset)
    if not path.exists():
        raise FileNotFoundError(f"the image folder {path} does not exist")
    if path.is_file():
        if path.suffix != ".tar":
            raise InputError(f"{path} is a file; --data takes a folder of images, or .tar shards")
        return ShardReader([path], webdataset)
    shards = sorted(
        shard
        for shard in path.rglob("*.tar")
        if not is_passed_over(str(shard.relative_to(path))) and shard.is_file()
    )
    if webdataset and not shards:
        raise InputError(f"no .tar shards in {path}")
    found = FolderFiles() if webdataset else files_of_folder(path)
    if shards and not found.images:
        return ShardReader(shards_of_split(path, split) or shards, webdataset)
    if shards:
        logger.warning("%s holds images and %s, not read", path, counted(len(shards), "tar"))
    if not found.images:
        there = f"it holds {found.words()}" if found.left_out else "it is empty"
        raise InputError(
            f"no images in {path}: {there}. No file in it or in its subfolders ends in "
            f"{', '.join(sorted(image_endings()))}, and none is a .tar"
        )
    return FolderReader(path, found)
