"""Read numbers and polygons that are not written in COCO's form."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

from detection.data.checks.segmentations import are_finite, is_finite


def number_of(text: Any) -> float | None:
    """The finite number that a text stands for; None if none."""
    try:
        number = float(text) if isinstance(text, (str, int, float)) else float("nan")
    except (ValueError, OverflowError):
        return None
    return number if is_finite(number) else None


def holds_text(value: Any) -> bool:
    """Whether lists of any depth contain a text that is a number."""
    if isinstance(value, list):
        return any(map(holds_text, value))
    return isinstance(value, str) and number_of(value) is not None


def as_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        lists = {key: as_numbers(one) for key, one in value.items() if isinstance(one, list)}
        return value | lists
    if isinstance(value, list):
        return [as_numbers(one) for one in value]
    number = number_of(value) if isinstance(value, str) else None
    return value if number is None else int(number) if number == number // 1 else number


def as_pairs(value: Any) -> Any:
    """Lists of any depth with each {x, y} as [x, y]."""
    if isinstance(value, dict) and value.keys() == {"x", "y"}:
        return [value["x"], value["y"]]
    return [as_pairs(one) for one in value] if isinstance(value, list) else value


def is_numbers(value: Any) -> bool:
    return isinstance(value, array) or are_finite(value)


def count_of(value: Any) -> int:
    """How many values are in lists of any depth."""
    return sum(map(count_of, value)) if isinstance(value, (list, array)) else 1


def polygons_of(value: Any) -> Iterator[list[float]]:
    """The polygons in lists of any depth: flat lists of numbers, or lists of points [x, y]."""
    if is_numbers(value):
        yield list(value)
    elif isinstance(value, list) and len(value) > 2 and all(map(_is_point, value)):
        yield [number for point in value for number in point]
    elif isinstance(value, list):
        for one in value:
            yield from polygons_of(one)


def _is_point(value: Any) -> bool:
    return is_numbers(value) and len(value) == 2
