"""The entries of a config's schema: a default, the allowed values in words, and their test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Key:
    """One key: its default, its allowed values in words, and the test of a value.

    ``is_valid`` only sees values of the default's type.
    """

    default: Any
    allowed: str
    is_valid: Callable[[Any], bool]


def text(default: str = "") -> Key:
    return Key(default, "a string", lambda value: True)


def flag(default: bool) -> Key:
    return Key(default, "True or False", lambda value: True)


def one_of(*values: Any) -> Key:
    """The first value is the default."""
    allowed = " or ".join(repr(value) for value in values)
    if len(values) == 1:
        allowed += " (the only value)"
    return Key(values[0], allowed, values.__contains__)


def number(default: float, low: float, high: float = float("inf"), above: bool = False) -> Key:
    """From ``low`` (excluded if ``above``) to ``high``; an integer if the default is one."""
    kind = "an integer" if isinstance(default, int) else "a number"
    allowed = f"{kind} {'above' if above else 'of at least'} {low:g}"
    if high < float("inf"):
        allowed += f" and at most {high:g}"
    return Key(
        default, allowed, lambda value: low <= value <= high and not (above and value == low)
    )


def numbers(default: Sequence[float], low: float, count: int | None = None, what: str = "") -> Key:
    """A list of numbers of at least ``low``: integers if the defaults are integers."""
    types = (int,) if all(isinstance(item, int) for item in default) else (int, float)
    kind = "integer" if types == (int,) else "number"
    many = f"one {kind}" if count == 1 else f"{count or 'one or more'} {kind}s"
    return Key(
        default,
        what or f"a list of {many} of at least {low:g}",
        lambda value: (
            len(value) == (count or max(len(value), 1))
            and all(type(item) in types and item >= low for item in value)
        ),
    )


def names_of(default: Sequence[str], allowed: Sequence[str], empty: bool = False) -> Key:
    """A list of different names out of ``allowed``, in the order of ``allowed``."""
    count = "none or more" if empty else "one or more"
    return Key(
        default,
        f"a list of {count} of {', '.join(allowed)}, in this order",
        lambda value: (
            (empty or len(value) > 0) and list(value) == [name for name in allowed if name in value]
        ),
    )


def is_nested(value: Sequence[Any]) -> bool:
    """Whether this is one or more lists of one or more positive numbers."""
    return len(value) > 0 and all(
        isinstance(row, (list, tuple))
        and len(row) > 0
        and all(type(item) in (int, float) and item > 0 for item in row)
        for row in value
    )


def nested(default: list[list[float]]) -> Key:
    allowed = "a list of lists of positive numbers: one list for all levels, or one for each"
    return Key(default, allowed, is_nested)


def value_range() -> Key:
    def is_range(value: Sequence[Any]) -> bool:
        are_numbers = all(type(item) in (int, float) for item in value)
        return not value or (len(value) == 2 and are_numbers and value[0] < value[1])

    return Key([], "[] or [LOW, HIGH], two numbers, the first below the second", is_range)


def bands() -> Key:
    return Key(
        [],
        "[], or the numbers of one or three channels, counted from 1",
        lambda value: (
            len(value) in (0, 1, 3) and all(type(item) is int and item >= 1 for item in value)
        ),
    )


def statistics(above: float = -math.inf) -> Key:
    words = "" if above == -math.inf else f" above {above:g}"
    return Key(
        [],
        f"[], or a list of one number{words} for each channel",
        lambda value: all(type(item) in (int, float) and item > above for item in value),
    )
