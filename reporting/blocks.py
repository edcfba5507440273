"""What a report is made of: ``report_html`` and ``report_markdown`` render the same page.

A :class:`Page` has sections, a section has blocks. Text in blocks is plain text from anywhere,
a class name or a config file included: the renderers escape it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

NOT_RECORDED = "not recorded"
NO_GROUND_TRUTH = "–"


@dataclass(frozen=True)
class Number:
    """A number that is shown rounded and kept in full."""

    value: float | None  # None stands for "there is no ground truth to measure this"
    digits: int = 1  # decimals shown
    signed: bool = False  # show a plus sign: it is a difference
    bar: float | None = None  # a bar behind it, as a share of the cell's width (0 to 1)
    shade: float | None = None  # how strongly the cell is coloured (0 to 1), as in a heat map

    @property
    def direction(self) -> Literal["up", "down", ""]:
        """Of a difference, as it is shown: one that rounds to 0 is neither."""
        rounded = round(self.value, self.digits) if self.signed and self.value else 0.0
        return "up" if rounded > 0 else "down" if rounded < 0 else ""

    def __str__(self) -> str:
        if self.value is None:
            return NO_GROUND_TRUTH
        rounded = round(self.value, self.digits) + 0.0  # + 0.0: no negative zero
        sign = "+" if self.direction == "up" else ""
        return (sign + f"{rounded:,.{self.digits}f}").replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class RunName:
    """A run's name; ``index`` is its place among the runs and its colour in the charts."""

    index: int
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Code:
    """Text to be set in a fixed-width font."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Term:
    """A name with its meaning in small print."""

    name: str
    meaning: str

    def __str__(self) -> str:
        return f"{self.name}: {self.meaning}"


Cell = str | Number | RunName | Code | Term


@dataclass(frozen=True)
class Paragraph:
    text: str
    kind: Literal["plain", "note", "warning", "small"] = "plain"


@dataclass(frozen=True)
class Cards:
    """A few big numbers: label, value, what it is."""

    cards: Sequence[tuple[str, Cell, str]]


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows."""

    columns: Sequence[Cell]  # one title per column; "" for none
    rows: Sequence[Sequence[Cell]]  # as many cells each as there are columns
    caption: str  # what the table says; read out by screen readers
    # titles over several columns, each with the number of columns
    groups: Sequence[tuple[Cell, int]] = ()
    long: bool = False  # many rows: shown in a box that scrolls
    prose: bool = False  # the cells are text, not numbers

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.caption
        assert not self.groups or sum(span for _, span in self.groups) == len(self.columns)


@dataclass(frozen=True)
class Series:
    """One run's line: ``points`` are (iteration, value).

    ``band``: (iteration, low, high) of an interval that is shaded behind the line.
    """

    run: RunName
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Chart:
    """Lines of several runs over the same x axis; ``x`` says what that axis counts."""

    title: str
    series: Sequence[Series]
    x: str = "iteration"


@dataclass(frozen=True)
class Charts:
    """Small multiples with one legend."""

    charts: Sequence[Chart]


@dataclass(frozen=True)
class Picture:
    """A JPEG with its label and the text for those who cannot see it."""

    jpeg: bytes  # what the page shows
    label: str
    alternative: str
    run: RunName | None = None
    # the name and JPEG of a larger version, a file beside the page that is linked
    full: tuple[str, bytes] | None = None


@dataclass(frozen=True)
class Pictures:
    """Pictures that belong beside each other, under one title.

    ``tags``: filter's name -> the values that these pictures have, in a :class:`Gallery`.
    """

    title: str
    pictures: Sequence[Picture]
    tags: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Gallery:
    """Many pictures; a reader chooses among them by their tags."""

    members: Sequence[Pictures]


@dataclass(frozen=True)
class Details:
    """A long text that is shown when asked for."""

    summary: str
    text: str


Block = Paragraph | Cards | Table | Charts | Pictures | Gallery | Details


@dataclass(frozen=True)
class Section:
    """``key`` is the section's address in the page (``#metrics``)."""

    key: str
    title: str
    blocks: Sequence[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: str
    sections: Sequence[Section]
