"""What is wrong with a data set, in words: which file, where in it, what, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

LISTED = 50
PLACES = 5


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        severity: errors stop a training; warnings do not, but a reader of results should know them.
        file: the annotation file or the image.
        places: where in the file, such as "annotation 5 (image 3)"; an error has at most one.
        message: what is wrong there.
        remedy: what to do about it.
    """

    severity: Literal["error", "warning"]
    file: str
    places: tuple[str, ...]
    message: str
    remedy: str

    def __str__(self) -> str:
        """One line, with the first five places and the number of the others."""
        where = f"{self.file}: {shorten(self.places)}" if self.places else self.file
        return printable(f"{where}: {self.message}; {self.remedy}")


class Findings:
    """The problems of one annotation file as they are found.

    Each error is a problem of its own; warnings of the same words become one with many places.
    """

    def __init__(self, file: Path) -> None:
        self.file = str(file)
        self.errors: list[Problem] = []
        self.places: dict[tuple[str, str], list[str]] = {}

    def error(self, where: str, message: str, remedy: str, file: str = "") -> None:
        places = (where,) if where else ()
        self.errors.append(Problem("error", file or self.file, places, message, remedy))

    def warn(self, where: str, message: str, remedy: str) -> None:
        self.places.setdefault((message, remedy), []).append(where)

    def problems(self) -> list[Problem]:
        """All of them, errors first."""
        warnings = [
            Problem("warning", self.file, tuple(places), message, remedy)
            for (message, remedy), places in self.places.items()
        ]
        return self.errors + warnings


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value of a json file is text that can be written: half a character cannot."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def printable(text: str) -> str:
    """Text from a file without what would steer a terminal or break a line: it is escaped."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


def shorten(places: Sequence[str]) -> str:
    """The first few of many places, and how many more there are."""
    rest = f" and {len(places) - PLACES} more" if len(places) > PLACES else ""
    return ", ".join(places[:PLACES]) + rest


def describe(problems: Sequence[Problem], what: str) -> str:
    """The problems as one message, at most 50 of them in full and the rest counted."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"{count} in {what}:", *map(str, problems[:LISTED])]
    if len(problems) > LISTED:
        lines.append(f"and {len(problems) - LISTED} more (tools/check_dataset.py lists all)")
    return "\n  ".join(lines)
