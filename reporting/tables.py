"""Writes Markdown tables and CSV.

Both take titles and rows. :func:`by_column` makes them from records, one dictionary per row::

    markdown_table(["run", "AP"], [["scratch", 12.5], ["FCMAE", None]], right=[1])
    csv_text(*by_column([{"run": "scratch", "AP": 12.5}, {"run": "FCMAE"}]))
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backbones.errors import InputError
from backbones.whole_files import write_text


def by_column(
    records: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> tuple[list[str], list[list[Any]]]:
    """Titles and rows of records; None if a record lacks a column.

    Args:
        columns: the columns, in this order; by default all, in the order in which they appear.
    """
    names = dict.fromkeys(name for record in records for name in record)
    titles = list(names if columns is None else columns)
    return titles, [[record.get(name) for name in titles] for record in records]


def markdown_table(
    titles: Sequence[Any], rows: Iterable[Sequence[Any]], right: Iterable[int] = ()
) -> str:
    """A Markdown table, without a line end at its end.

    Args:
        titles: one per column.
        rows: one cell per column each. Text is taken as Markdown, in one line, its ``|`` escaped; a
            float is shown with three significant digits, None as an empty cell.
        right: numbers of the right-aligned columns.
    """
    numbers = set(right)
    rule = ["---:" if column in numbers else "---" for column in range(len(titles))]
    lines = []
    for line in (titles, rule, *rows):
        assert len(line) == len(titles), line
        lines.append(f"| {' | '.join(map(_cell, line))} |")
    return "\n".join(lines)


def write_between(page: Path, marks: tuple[str, str], text: str) -> None:
    """Replace the lines of a page between two marks.

    Raises:
        InputError: if the page lacks one of the marks.
    """
    write_text(page, with_between(page, marks, text))


def with_between(page: Path, marks: tuple[str, str], text: str) -> str:
    """The page as :func:`write_between` would write it."""
    before, first, rest = page.read_text(encoding="utf-8").partition(marks[0])
    _, last, after = rest.partition(marks[1])
    if not first or not last:
        raise InputError(f"{page} has no lines {marks[0]} and {marks[1]} for the table")
    return f"{before}{first}\n{text}\n{last}{after}"


def csv_text(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A CSV file's text: the titles, then the rows with all digits; None becomes empty."""
    return csv_lines([titles]) + csv_lines(rows)


def csv_lines(rows: Iterable[Sequence[Any]]) -> str:
    """Rows of such a file."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.3g}" if isinstance(value, float) else " ".join(str(value).split())
    return re.sub(r"(?<!\\)\|", r"\\|", text)  # except those that are escaped already
