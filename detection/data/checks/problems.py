"""Problems of a data set as messages: file, place in it, fault, remedy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

from backbones.errors import printable

LISTED = 50
PLACES = 5
# What may differ between two messages of one cause: quoted values and numbers.
VALUES = re.compile(r"'[^']*'|-?\d[\d.e+-]*(?:, -?\d[\d.e+-]*)*|nan|inf")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, at every place where it is.

    Attributes:
        severity: errors stop a training; warnings do not, but a reader of results should know them.
        file: the annotation file, or the image that alone has this.
        places: where in the file, such as "annotation 5 (image 3)".
        message: what is wrong there; with several places, in the words of the first.
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
        count = len(self.places)
        if count > PLACES:
            where = f"{self.file}: {count} times: {shorten(self.places)}"
        return printable(f"{where}: {self.message}; {self.remedy}")


class Findings:
    """The problems of one annotation file as they are found.

    Messages that differ only in numbers and quoted values, with the same remedy, become one problem
    with many places.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = str(file)
        self.errors: dict[tuple[str, str], _Kind] = {}
        self.warnings: dict[tuple[str, str], _Kind] = {}

    def error(self, where: str, message: str, remedy: str, file: str = "") -> None:
        """Note an error; ``file`` where it is an image's and not this annotation file's."""
        key = (VALUES.sub("#", message), VALUES.sub("#", remedy)) if where else (message, remedy)
        kind = self.errors.setdefault(key, _Kind(message, remedy))
        kind.places.append((where, file))

    def warn(self, where: str, message: str, remedy: str) -> None:
        kind = self.warnings.setdefault((message, remedy), _Kind(message, remedy))
        kind.places.append((where, ""))

    def problems(self) -> list[Problem]:
        """All of them, errors first."""
        errors = [kind.problem("error", self.file) for kind in self.errors.values()]
        return errors + [kind.problem("warning", self.file) for kind in self.warnings.values()]


@dataclass
class _Kind:
    """What is wrong at each (place, file of an image or "")."""

    message: str
    remedy: str
    places: list[tuple[str, str]] = field(default_factory=list)

    def problem(self, severity: Literal["error", "warning"], file: str) -> Problem:
        if len(self.places) == 1:
            (where, of_image), *_ = self.places
            of_one = (where,) if where else ()
            return Problem(severity, of_image or file, of_one, self.message, self.remedy)
        places = tuple(f"{where} ({name})" if name else where for where, name in self.places)
        return Problem(severity, file, tuple(filter(None, places)), self.message, self.remedy)


def is_text(value: Any, null: bool = False) -> TypeGuard[str]:
    """Whether a value of a json file is text that can be written: half a character cannot.

    Args:
        null: whether it may hold the character 0, which no file's name does.
    """
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return null or "\0" not in value


def shorten(places: Sequence[Any]) -> str:
    """The first few of many places or values, and how many more there are."""
    rest = f" and {len(places) - PLACES} more" if len(places) > PLACES else ""
    return ", ".join(map(str, places[:PLACES])) + rest


def describe(problems: Sequence[Problem], what: str) -> str:
    """The problems as one message, at most 50 kinds of them in words and the rest counted."""
    total = sum(max(1, len(problem.places)) for problem in problems)
    count = "1 problem" if total == 1 else f"{total} problems"
    lines = [f"{count} in {what}:", *map(str, problems[:LISTED])]
    if len(problems) > LISTED:
        lines.append(f"and {len(problems) - LISTED} more kinds (tools/check_dataset.py lists all)")
    return "\n  ".join(lines)
