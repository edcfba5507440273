"""Predictions as they come, one line per image, so that an interrupted prediction can go on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from backbones.errors import InputError

logger = logging.getLogger(__name__)

JOURNAL = "unfinished.jsonl"  # while a prediction runs, and where it ended early
PREDICTIONS, IMAGES = "predictions.json", "images.json"


def refuse_other_settings(folder: Path, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise if a prediction was begun otherwise than it is to go on.

    Raises:
        InputError: with each setting that differs.
    """
    differing = [
        f"{name} was {earlier.get(name)!r} and is now {value!r}"
        for name, value in now.items()
        if earlier.get(name) != value
    ]
    if differing:
        raise InputError(
            f"{folder} holds a prediction with other settings: {'; '.join(differing)}; choose "
            "another folder, or go on with the same"
        )


class Journal:
    """The lines of ``unfinished.jsonl``: the settings, then images, and files that are done.

    One that is there already goes on behind the last file that is done. It is a context manager,
    which writes.

    Args:
        folder: of the predictions.
        settings: that a prediction which goes on must share.

    Attributes:
        done: file -> its overlay's name, of what earlier sessions finished.
        counts: ``images``, ``detections`` and ``shown`` so far.

    Raises:
        InputError: if there is a journal of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path = folder / JOURNAL
        self.done: dict[str, str] = {}
        self.counts = {"images": 0, "detections": 0, "shown": 0}
        self.settings = dict(settings)
        self.kept = self._read(folder) if self.path.is_file() else 0  # bytes

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

    def _read(self, folder: Path) -> int:
        """Take over what is finished; how many bytes of the file that is."""
        kept = position = 0
        counts = dict(self.counts)
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
                    refuse_other_settings(folder, entry["settings"], self.settings)
                    kept = position
                elif "done" in entry:
                    self.done[entry["done"]] = entry["name"]
                    self.counts, kept = dict(counts), position
                else:
                    _count(counts, entry["results"], self.settings["score_threshold"])
        return kept

    def add(self, entry: Mapping[str, Any], results: list[dict[str, Any]]) -> None:
        """Keep one image or frame and its detections."""
        self._write({"image": entry, "results": results})
        _count(self.counts, results, self.settings["score_threshold"])

    def finish(self, file: Path, name: str) -> None:
        """Say that all of a file is kept, its overlay written under this name."""
        self._write({"done": str(file), "name": name})

    def images(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Every image or frame that is kept and its detections, in their order."""
        with self.path.open("rb") as stream:
            for line in stream:
                entry = json.loads(line)
                if "image" in entry:
                    yield entry["image"], entry["results"]

    def _write(self, entry: Mapping[str, Any]) -> None:
        self.stream.write(json.dumps(entry).encode() + b"\n")
        self.stream.flush()


def _count(counts: dict[str, int], results: list[dict[str, Any]], threshold: float) -> None:
    counts["images"] += 1
    counts["detections"] += len(results)
    counts["shown"] += sum(result["score"] >= threshold for result in results)
