"""The list of bad images that a run met and replaced, with ``--skip-bad-images``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from backbones.errors import counted
from images.files import ImageError
from images.readers import Reader

logger = logging.getLogger(__name__)

FILE = "bad_images.txt"
SHOWN = 50


def refuse_bad(reader: Reader, bad: Mapping[int, str]) -> NoReturn:
    """Raise an :class:`ImageError` with every bad image (50 by name)."""
    lines = [f"{reader.name(index)}: {why}" for index, why in list(bad.items())[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"and {len(bad) - SHOWN} more")
    raise ImageError(
        f"{len(bad)} of {counted(len(reader), 'image')} cannot be used"
        + (", more than half" if 2 * len(bad) > len(reader) else "")
        + ":\n  "
        + "\n  ".join(lines)
    )


class BadImages:
    """Counts bad images, each once, and lists them in the run's ``bad_images.txt``.

    A line has an image's name, a tab, and the reason. A resumed run keeps the lines. Several
    processes write to the file, each the bad images that it met first.

    Args:
        output_dir: the run's folder.
        reader: gives the images' names.
    """

    def __init__(self, output_dir: Path, reader: Reader) -> None:
        self.path, self.reader = output_dir / FILE, reader
        self.found: dict[int, str] = {}

    def add(self, met: Mapping[int, str]) -> None:
        """Record bad images, by index, with the reasons.

        Raises:
            ImageError: when more than half of all images turn out to be bad.
        """
        new = {index: why for index, why in met.items() if index not in self.found}
        if not new:
            return
        self.found.update(new)
        listed = self._text().splitlines() if self.path.exists() else []
        names = {line.partition("\t")[0] for line in listed}
        with self.path.open("a", encoding="utf-8", errors="surrogateescape") as file:
            for index, why in new.items():
                name = self.reader.name(index)
                if name not in names:
                    file.write(f"{name}\t{why}\n")
        if 2 * len(self.found) > len(self.reader):
            refuse_bad(self.reader, self.found)

    def _text(self) -> str:
        return self.path.read_text(encoding="utf-8", errors="surrogateescape")

    def summary(self) -> None:
        """Log how many there were."""
        if self.found:
            logger.warning(
                "%d of %d images could not be used; the next good one by index took the place of "
                "each. They are listed in %s",
                len(self.found),
                len(self.reader),
                self.path,
            )
