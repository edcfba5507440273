"""Stores predictions as they come, one line per image, so that a prediction can be resumed.

Detection, segmentation and classification share it. When all images are done, each writes its own
files from it. One of them is written by :meth:`Journal.write_record`; it marks a finished
prediction.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from backbones.errors import InputError
from backbones.whole_files import write_all

logger = logging.getLogger(__name__)

JOURNAL = "unfinished.jsonl"  # while a prediction runs, and where it ended early


class Journal:
    """The lines of ``unfinished.jsonl``: the settings, then images, and files that are done.

    If the file exists, it continues after the last file that is done. Use it as a context manager,
    inside which it can be written to.

    Args:
        folder: the folder of the predictions.
        settings: the settings of the prediction; a resumed one must have the same.
        result: the file in ``folder`` that only a finished prediction has.
        record: the file there that :meth:`write_record` writes.
        resume: whether to continue; otherwise the folder must hold no prediction.

    Attributes:
        done: files that earlier sessions finished -> their names among the outputs.
        is_finished: whether the prediction was finished; then ``done`` holds the files of
            ``record``.
        counts: the counts so far.

    Raises:
        InputError: for a finished or unfinished prediction without ``resume``, or of other
            settings.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], result: str, record: str, resume: bool
    ) -> None:
        self.folder, self.path = folder, folder / JOURNAL
        self.done: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.settings = dict(settings)
        self.kept = 0  # bytes
        self.is_finished = False
        if self.path.is_file():
            if not resume:
                raise InputError(
                    f"{folder} holds an unfinished prediction: continue it with --resume, or "
                    "choose another folder"
                )
            self.kept = self._read()
        elif (folder / result).exists():
            self._recognise(folder / record, resume)

    def __enter__(self) -> Journal:
        self.stream: BinaryIO = self.path.open("r+b" if self.kept else "wb")
        self.stream.truncate(self.kept)
        self.stream.seek(self.kept)
        if not self.kept:
            self._write({"settings": self.settings})
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.close()

    def remove(self) -> None:
        self.path.unlink()

    def left(self, files: Sequence[Path]) -> list[Path]:
        """The files that are not done yet; the log says how many are."""
        left = [file for file in files if str(file) not in self.done]
        if self.done:
            done = len(files) - len(left)
            logger.info("%s: %d of %d files are predicted already", self.folder, done, len(files))
        return left

    def add(self, entry: Mapping[str, Any], counts: Mapping[str, int]) -> None:
        """Store one image or frame with what was found on it, and add to the counts."""
        self._write({**entry, "counts": counts})
        self.counts.update(counts)

    def finish(self, file: Path, name: str) -> None:
        """Mark a file as done; its outputs have this name."""
        self._write({"done": str(file), "name": name})

    def entries(self) -> Iterator[dict[str, Any]]:
        """The entries given to :meth:`add`, in that order."""
        with self.path.open("rb") as stream:
            for line in stream:
                entry = json.loads(line)
                if "counts" in entry:
                    yield entry

    def images(self) -> Iterator[dict[str, Any]]:
        """The ``image`` of each entry, which has a ``file_name``."""
        return (entry["image"] for entry in self.entries())

    def write_record(self, stream: TextIO, **further: Any) -> None:
        """A JSON object: the settings and counts as ``info``, ``images``, and further keys."""
        info = {"settings": self.settings, "counts": self.counts}
        stream.write(f'{{"info": {json.dumps(info)},\n"images": ')
        write_json_list(stream, self.images())
        for name, value in further.items():
            stream.write(f",\n{json.dumps(name)}: {json.dumps(value)}")
        stream.write("}\n")

    def _recognise(self, record: Path, resume: bool) -> None:
        tree = {}
        if resume and record.is_file():
            tree = json.loads(record.read_text(encoding="utf-8"))
        if "info" not in tree:
            raise InputError(f"{self.folder} holds predictions already: choose another folder")
        self._refuse_other(tree["info"]["settings"])
        self.done = {image["file_name"]: "" for image in tree["images"]}
        self.counts.update(tree["info"]["counts"])
        self.is_finished = True

    def _refuse_other(self, earlier: Mapping[str, Any]) -> None:
        differing = [
            f"{name} was {earlier.get(name)!r} and is now {value!r}"
            for name, value in self.settings.items()
            if earlier.get(name) != value
        ]
        if differing:
            raise InputError(
                f"{self.folder} holds a prediction with other settings: {'; '.join(differing)}; "
                "choose another folder, or continue with the same settings"
            )

    def _read(self) -> int:
        """Read the finished part; returns its length in bytes."""
        kept = position = 0
        counts = Counter[str]()
        with self.path.open("rb") as stream:
            for line in stream:
                position += len(line)
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    entry = None
                if entry is None:
                    break  # the line that was being written
                if "settings" in entry:
                    self._refuse_other(entry["settings"])
                    kept = position
                elif "done" in entry:
                    self.done[entry["done"]] = entry["name"]
                    self.counts, kept = Counter(counts), position
                else:
                    counts.update(entry["counts"])
        return kept

    def _write(self, entry: Mapping[str, Any]) -> None:
        self.stream.write(json.dumps(entry).encode() + b"\n")
        self.stream.flush()


def write_outputs(files: Mapping[Path, Callable[[TextIO], None]]) -> None:
    """Write text files, all or none, each by a function that writes to it line by line."""
    write_all({path: partial(_open_and_write, write) for path, write in files.items()})


def _open_and_write(write: Callable[[TextIO], None], path: Path) -> None:
    # file names that are not UTF-8 are written as they are
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
        write(stream)


def write_json_list(stream: TextIO, items: Iterable[Any]) -> None:
    """A JSON list, one item per line."""
    separator = "["
    for item in items:
        stream.write(f"{separator}{json.dumps(item)}")
        separator = ",\n"
    stream.write("[]" if separator == "[" else "]")
