"""Where images come from: a folder, tar shards, webdataset, a Hugging Face data set.

The names are timm's (``timm.data.create_dataset``), and so is the folder's reader. Pretraining
needs every image by its index, so that a sample depends on (seed, epoch, index) alone, and in any
process: shards are read by ``images.shards``, and streams without an index are refused.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from timm.data import create_dataset
from timm.data.readers.img_extensions import add_img_extensions, get_img_extensions

from backbones.errors import InputError
from images.shards import ShardReader, existing_shards, expand_braces, shards_of_split
from training.progress import progress

logger = logging.getLogger(__name__)

MORE_EXTENSIONS = (".bmp", ".tif", ".tiff", ".webp")  # beside timm's .jpeg, .jpg and .png
STREAMS = ("hfids", "tfds")


class Reader(Protocol):
    """Images by their index.

    Attributes:
        header_is_cheap: whether an image's header can be read without the rest of it.
    """

    header_is_cheap: bool

    def __len__(self) -> int: ...
    def open(self, index: int) -> BinaryIO: ...
    def name(self, index: int) -> str: ...  # for people: absolute where there is a file
    def contents(self) -> Iterable[tuple[str, int]]: ...  # names within the source, and bytes


def class_names(reader: Reader) -> list[str]:
    """The class of each image: a column of classes, webdataset's ``.cls``, or the folder's name.

    Returns:
        A name an image; "" where nothing tells it.

    Raises:
        InputError: for a Hugging Face data set with no column of classes, or several.
    """
    if isinstance(reader, HuggingFaceReader) or (isinstance(reader, ShardReader) and reader.by_key):
        return reader.labels()
    inside = 1 if isinstance(reader, ShardReader) else 0  # contents() begin with the shard
    parts = [PurePosixPath(Path(name).as_posix()).parts for name, _ in reader.contents()]
    return [p[-2] if len(p) > 1 + inside else "" for p in parts]


def fingerprint(reader: Reader) -> str:
    """A short hash over the names and sizes of the source's images (hex)."""
    digest = hashlib.sha256()
    for name, size in progress(reader.contents(), "fingerprint", len(reader), "image"):
        digest.update(f"{name}:{size}\n".encode())
    return digest.hexdigest()[:16]


class FolderReader:
    """timm's reader of image files at any depth, in natural order of their paths."""

    header_is_cheap = True

    def __init__(self, folder: Path) -> None:
        self._reader = create_dataset("", root=str(folder), search_split=False).reader

    def __len__(self) -> int:
        return len(self._reader)

    def open(self, index: int) -> BinaryIO:
        return self._reader[index][0]

    def name(self, index: int) -> str:
        return self._reader.filename(index, absolute=True)

    def contents(self) -> Iterator[tuple[str, int]]:
        for index in range(len(self)):
            path = self.name(index)
            yield (
                self._reader.filename(index),
                os.path.getsize(path) if os.path.exists(path) else -1,
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
        yield self._rows._fingerprint, len(self)  # of datasets' own: over the data

    def labels(self) -> list[str]:
        """The class's name of each row: of the one column of classes.

        Raises:
            InputError: if there is none, or more than one.
        """
        features = self._all_rows.features
        kinds = {c: f for c, f in features.items() if type(f).__name__ == "ClassLabel"}
        if len(kinds) != 1:
            raise InputError(
                f"{self._name} has {len(kinds)} columns of classes (ClassLabel), not one; its "
                f"columns: {', '.join(features)}"
            )
        ((column, feature),) = kinds.items()
        return [feature.int2str(number) for number in self._all_rows[column]]


def open_images(name: str, split: str = "train") -> Reader:
    """Open a source of images.

    Args:
        name: a folder (of images at any depth, or of .tar shards), a .tar, shards by a pattern
            (``shards/{000..010}.tar``), the same with ``wds/`` before it for webdataset's naming
            of files, or ``hfds/owner/name``.
        split: of a Hugging Face data set, or of shards whose folder has webdataset's
            ``_info.json``.

    Raises:
        FileNotFoundError: if a path does not exist.
        InputError: if there is no image in it (with the extensions that count as images), or the
            source is a stream, which has no index.
    """
    add_img_extensions(MORE_EXTENSIONS)
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
    shards = sorted(path.rglob("*.tar"))
    if webdataset and not shards:
        raise InputError(f"no .tar shards in {path}")
    extensions = get_img_extensions()
    if webdataset or (shards and _first_image(path, extensions) is None):
        return ShardReader(shards_of_split(path, split) or shards, webdataset)
    if shards:
        logger.warning("%s holds images and %d tars: the tars are not read", path, len(shards))
    if _first_image(path, extensions) is None:
        raise InputError(
            f"no images in {path}: no file in it or in its subfolders ends in "
            f"{', '.join(sorted(extensions))}, and none is a .tar"
        )
    return FolderReader(path)


def _first_image(folder: Path, extensions: Iterable[str]) -> str | None:
    wanted = set(extensions)
    for parent, _, files in os.walk(folder, followlinks=True):
        for file in files:
            if os.path.splitext(file)[1].lower() in wanted:
                return os.path.join(parent, file)
    return None
