"""Checks of the types of a grid's values, before anything reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Test = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_name(value: Any) -> bool:
    return isinstance(value, (str, int, float))


def is_argument(value: Any) -> bool:
    """Whether a value fits a flag or config key: text, a number, True or False, a list of these."""
    if isinstance(value, list):
        return all(is_argument(item) for item in value)
    return value is None or is_name(value)


OF_GRID: dict[str, tuple[Test, str]] = {
    "title": (is_text, "text"),
    "source": (is_text, "text"),
    "launcher": (is_text, "text, such as 'torchrun --nproc-per-node 8'"),
    "baseline": (is_name, "a row's name"),
}
OF_ROW: dict[str, tuple[Test, str]] = {"paper": (is_number, "a number"), "grn": (is_name, "a name")}
AN_ARGUMENT = (is_argument, "text, a number, True, False or a list of these")


def type_problems(tree: Mapping[Any, Any], stages: Sequence[str]) -> list[str]:
    """A line for each value of a wrong type; unknown keys are checked elsewhere."""
    rows = tree.get("rows")
    if not isinstance(rows, dict) or not rows:
        return [f"rows is {rows!r:.80}; give a mapping from name to row"]
    problems = [
        f"{key} is {tree[key]!r:.80}; give {words}"
        for key, (fits, words) in OF_GRID.items()
        if key in tree and not fits(tree[key])
    ]
    problems += _mappings("", tree, dict.fromkeys(stages, AN_ARGUMENT))
    for name, row in rows.items():
        if not is_name(name):
            problems.append(f"the row's name {name!r} is no text")
        elif isinstance(row, dict):
            problems += _mappings(f"row {name}: ", row, dict.fromkeys(stages, AN_ARGUMENT) | OF_ROW)
        elif row is not None:
            problems.append(f"row {name} is {row!r:.80}; give a mapping, or nothing")
    return problems


def _mappings(
    where: str, tree: Mapping[Any, Any], values: Mapping[str, tuple[Test, str]]
) -> Iterator[str]:
    """Keys of ``tree`` that are no mapping from text to values of their kind."""
    for key, (fits, words) in values.items():
        found = tree.get(key)
        if isinstance(found, dict):
            for name, value in found.items():
                if not isinstance(name, str):
                    yield f"{where}{key}: the key {name!r} is no text"
                elif not fits(value):
                    yield f"{where}{key}: {name} is {value!r:.80}; give {words}"
        elif found is not None:
            yield f"{where}{key} is {found!r:.80}; give a mapping, such as {{key: value}}"
