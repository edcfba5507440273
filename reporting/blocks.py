"""The parts of a report: a :class:`Page` has sections, and a section has blocks.

``reporting.html`` and ``reporting.markdown`` render the same page. Text in blocks is plain text,
such as a class name or a config file; the renderers escape it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

NOT_RECORDED = "not recorded"
NO_GROUND_TRUTH = "–"


@dataclass(frozen=True)
class Number:
    """A number that is shown rounded; the page keeps all its digits."""

    value: float | None  # None: there is no ground truth to measure it
    digits: int = 1  # decimals shown
    signed: bool = False  # show a plus sign: it is a difference
    bar: float | None = None  # length of a bar behind it, as a fraction of the cell's width
    shade: float | None = None  # strength of the cell's colour (0 to 1), as in a heat map

    @property
    def direction(self) -> Literal["up", "down", ""]:
        """The sign of a difference, as it is shown: one that rounds to 0 has none."""
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
    """A few large numbers, each with a label and an explanation."""

    cards: Sequence[tuple[str, Cell, str]]


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows."""

    columns: Sequence[Cell]  # one title per column; "" for none
    rows: Sequence[Sequence[Cell]]  # as many cells each as there are columns
    caption: str  # a sentence about the table; screen readers read it out
    # titles that span several columns: (title, number of columns)
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
    """Lines of several runs over the same x axis; ``x`` is the axis's quantity."""

    title: str
    series: Sequence[Series]
    x: str = "iteration"


@dataclass(frozen=True)
class Charts:
    """Several small charts with one legend."""

    charts: Sequence[Chart]


@dataclass(frozen=True)
class Picture:
    """A JPEG with its label and its alternative text."""

    jpeg: bytes  # what the page shows
    label: str
    alternative: str
    run: RunName | None = None
    # name and JPEG of a larger version, which becomes a linked file beside the page
    full: tuple[str, bytes] | None = None


@dataclass(frozen=True)
class Pictures:
    """Pictures to be shown side by side, under one title.

    ``tags``: for a :class:`Gallery`, a filter's name -> the values that these pictures have.
    """

    title: str
    pictures: Sequence[Picture]
    tags: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Gallery:
    """Many pictures, which a reader can filter by their tags."""

    members: Sequence[Pictures]


@dataclass(frozen=True)
class Details:
    """A long text that is shown after a click."""

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
