"""Reads images in tar shards, such as webdataset's, by their index.

The shards are indexed once, and files in them are read by their offsets. (timm reads webdataset as
a stream and keeps tars open, so that forked processes share one file position.)
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from backbones.errors import InputError, counted
from images.folders import HIDDEN, ending_of, is_passed_over, words_of
from images.formats import image_endings
from training.progress import progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Member:
    """An image in a shard: the shard, the name in it, offset and size."""

    shard: int
    name: str
    offset: int
    size: int


class ShardReader:
    """Images in tar shards, and in tars inside them, in the order of shards and offsets.

    No file stays open, so processes share no file position.

    Args:
        shards: uncompressed tars.
        by_key: whether names follow webdataset: the part after a base name's first dot is the
            field, so ``7.seg.png`` is not an image but the field ``seg.png`` of sample 7. Nor are
            ``.npy`` files, which usually hold features there.

    Raises:
        InputError: if shards are damaged or compressed, or hold no image.
    """

    header_is_cheap = False

    def __init__(self, shards: list[Path], by_key: bool = False) -> None:
        self.shards, self.by_key = shards, by_key
        self.members: list[_Member] = []
        endings, problems = image_endings() - ({".npy"} if by_key else set()), []
        left_out: Counter[str] = Counter()
        with self._bar("indexing shards") as bar:
            for number, shard in enumerate(shards):
                try:
                    for name, offset, size in _files_of(shard, bar):
                        base = os.path.basename(name).lower()
                        ending = ending_of(base)
                        if by_key and "." in base:
                            ending = base[base.find(".") :]
                        if is_passed_over(name):
                            left_out[HIDDEN] += 1
                        elif ending in endings:
                            self.members.append(_Member(number, name, offset, size))
                        else:
                            left_out[ending] += 1
                except (tarfile.TarError, OSError) as error:
                    problems.append(f"{shard}: {error}")
        if problems:
            raise InputError(
                "these are no complete uncompressed tars (unpack .tar.gz, fetch others again):\n  "
                + "\n  ".join(problems)
            )
        if not self.members:
            raise InputError(
                f"no images in {len(shards)} shard(s) such as {shards[0]}: they hold "
                f"{words_of(left_out) or 'nothing'}. No file in them ends in "
                f"{', '.join(sorted(endings))}"
            )
        logger.info(
            "%s and %s in %s%s",
            counted(len(self.members), "image"),
            counted(left_out.total(), "other file"),
            counted(len(shards), "shard"),
            f": {words_of(left_out)}" if left_out else "",
        )

    def __len__(self) -> int:
        return len(self.members)

    def open(self, index: int) -> BinaryIO:
        member = self.members[index]
        with self.shards[member.shard].open("rb") as file:
            file.seek(member.offset)
            return io.BytesIO(file.read(member.size))

    def name(self, index: int) -> str:
        member = self.members[index]
        return f"{self.shards[member.shard]}/{member.name}"

    def contents(self) -> Iterator[tuple[str, int]]:
        for member in self.members:
            yield f"{self.shards[member.shard].name}/{member.name}", member.size

    def labels(self) -> list[str]:
        """webdataset's field ``cls`` of each image's sample, as text; "" if it has none."""
        found = {}
        with self._bar("reading labels") as bar:
            for number, shard in enumerate(self.shards):
                with shard.open("rb") as file:
                    for name, offset, size in _files_of(shard, bar):
                        key, field = _key_and_field(name)
                        if field.lower() == "cls":
                            file.seek(offset)
                            found[number, key] = file.read(size).decode().strip()
        return [found.get((m.shard, _key_and_field(m.name)[0]), "") for m in self.members]

    def _bar(self, text: str) -> tqdm:
        total = sum(os.path.getsize(shard) for shard in self.shards if shard.is_file())
        return progress(text=text, total=total, unit="B")


def _key_and_field(name: str) -> tuple[str, str]:
    """webdataset's key (folder, and base name up to its first dot) and field (the rest)."""
    folder, base = os.path.split(name)
    key, _, field = base.partition(".")
    return os.path.join(folder, key), field


def _files_of(shard: Path, bar: tqdm) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of a shard's files; the bar advances by the shard's bytes."""
    seen = 0
    with tarfile.open(shard, "r:") as archive:
        for name, offset, size in _files(archive):
            yield name, offset, size
            bar.update(offset + size - seen)
            seen = offset + size
    bar.update(os.path.getsize(shard) - seen)


def _files(archive: tarfile.TarFile, start: int = 0) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of the files of a tar, and of the tars in it."""
    for info in archive:
        offset = start + info.offset_data
        if not info.isfile():
            continue
        if info.name.endswith(".tar"):
            with tarfile.open(
                fileobj=archive.extractfile(info), mode="r:", encoding="utf-8"
            ) as inner:
                for name, place, size in _files(inner, offset):
                    yield f"{info.name}/{name}", place, size
        else:
            yield info.name, offset, info.size


def expand_braces(pattern: str) -> list[str]:
    """Shards as webdataset names them: ``{000..010}`` counts, ``{a,b}`` lists; several combine."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[part] if place % 2 == 0 else _choices(part) for place, part in enumerate(parts)]
    return ["".join(words) for words in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    counted = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if counted is None:
        return inside.split(",")
    first, last = counted.groups()
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def existing_shards(names: list[str]) -> list[Path]:
    missing = [name for name in names if not os.path.isfile(name)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {counted(len(names), 'shard')} do not exist: "
            f"{', '.join(missing[:10])}" + (", ..." if len(missing) > 10 else "")
        )
    return [Path(name) for name in names]


def shards_of_split(folder: Path, split: str) -> list[Path]:
    """The shards of a split by webdataset's ``_info.json``; none without such a file.

    Raises:
        InputError: if the file has no such split.
    """
    for file in (folder / "_info.json", folder / "info.json"):
        if file.is_file():
            splits = json.loads(file.read_text(encoding="utf-8")).get("splits", {})
            if split not in splits:
                raise InputError(f"{file} has no split {split!r}; it has {', '.join(splits)}")
            return existing_shards([str(folder / name) for name in splits[split]["filenames"]])
    return []
