"""The report's curves: line charts as SVG, drawn here so that they follow the page's colours."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

from reporting.blocks import Chart, Series

MAX_POINTS = 150  # a line: more are averaged in groups

Place = Callable[[float, float], tuple[float, float]]  # a point of the data -> of the drawing

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 42, 54, 10, 26  # margins of the plot
LABEL = 13  # height of a line's label
# Charts in files of their own know nothing of the page's style sheet.
STANDALONE_COLOURS = ("#2f6fde", "#d9730d", "#0f9d74", "#b44bc2", "#c2410c", "#64748b")
STANDALONE_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#75808f}.grid{stroke:#8884}.hit{fill:transparent}"
    ".line{fill:none;stroke-width:2;stroke-linejoin:round}text[class]{font-weight:600}"
) + "".join(
    f"polyline.s{i}{{stroke:{colour}}}text.s{i},circle.s{i}{{fill:{colour}}}"
    for i, colour in enumerate(STANDALONE_COLOURS)
)


def downsample(points: Sequence[tuple[float, float]]) -> tuple[list[tuple[float, float]], int]:
    """At most MAX_POINTS points, each the mean of a group placed at its last; the group's size."""
    group = math.ceil(len(points) / MAX_POINTS)
    groups = [points[start : start + group] for start in range(0, len(points), group or 1)]
    return [(g[-1][0], sum(y for _, y in g) / len(g)) for g in groups], group


def ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers from ``low`` up to and including one that is >= ``high``."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= min((1, 2, 5, 10), key=lambda factor: abs((high - low) / (step * factor) - count))
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def short(value: float) -> str:
    """A number for an axis: 12k, 0.54, 5e-4."""
    if value == 0:
        return "0"
    if abs(value) >= 1000 and value == int(value):
        return f"{value / 1000:g}k" if value % 100 == 0 else f"{value:,.0f}"
    if abs(value) < 1e-2:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.3g}"


def precise(value: float) -> str:
    """A measured value at a line's end: three digits."""
    if value == 0 or abs(value) >= 1000:
        return short(round(value))
    if abs(value) < 1e-2:
        return short(value)
    return f"{value:#.3g}".rstrip(".")


def describe(chart: Chart) -> str:
    """The chart in words: each line's first and last point."""
    sentences = []
    for series in chart.series:
        (x0, y0), (x1, y1) = series.points[0], series.points[-1]
        sentences.append(f"{series.run.name} from {y0:.4g} at {x0:g} to {y1:.4g} at {x1:g}")
    return f"{chart.title} by {chart.x}: " + "; ".join(sentences)


def chart_svg(chart: Chart, standalone: bool = False) -> str:
    """A line chart as an SVG element; colours come from the page's style sheet.

    Args:
        chart: at least one line of at least one point; the y axis starts at 0.
        standalone: a file of its own, with colours that suit light and dark pages.
    """
    points = [point for series in chart.series for point in series.points]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    x_ticks = [t for t in ticks(x_low, x_high, 4) if x_low <= t <= x_high]
    if max(xs) == min(xs):
        x_ticks = [x_low]
    elif chart.x == "iteration":  # there is none between two of them
        x_ticks = [t for t in x_ticks if math.isclose(t, round(t))]
    y_ticks = ticks(min(0, *ys), max(0, *ys) or 1, 4)

    def at(x: float, y: float) -> tuple[float, float]:
        share_x = (x - x_low) / (x_high - x_low)
        share_y = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + share_x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - share_y * (
            HEIGHT - TOP - BOTTOM
        )

    parts = [f"<title>{html.escape(describe(chart))}</title>"]
    for tick in y_ticks:
        _, y = at(x_low, tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>'
        )
    for tick in x_ticks:
        x, y = at(tick, y_ticks[0])
        parts.append(
            f'<text x="{x:.1f}" y="{y + 17:.1f}" text-anchor="middle">{short(tick)}</text>'
        )
    for series in chart.series:
        parts.append(_line(series, at, chart.x))
    parts += _end_labels(chart, at)
    style = f"<style>{STANDALONE_STYLE}</style>" if standalone else ""
    size = f' width="{2 * WIDTH}"' if standalone else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"{size}>'
        f"{style}{''.join(parts)}</svg>"
    )


def _line(series: Series, at: Place, x_name: str) -> str:
    """A line, and over each of its points an invisible disc that names its value."""
    colour = f"s{series.run.index % 6}"
    places = [(at(x, y), x, y) for x, y in series.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for (x, y), _, _ in places)
    name = html.escape(series.run.name)
    discs = "".join(
        f'<circle class="hit" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{name}, {x_name} {at_x:g}: '
        f"{value:.5g}</title></circle>"
        for (x, y), at_x, value in places
    )
    if len(places) == 1:
        (x, y), *_ = places[0]
        return f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>{discs}'
    return f'<polyline class="line {colour}" points="{path}"/>{discs}'


def _end_labels(chart: Chart, at: Place) -> list[str]:
    """Each line's last value beside its end, moved apart where they would overlap.

    They stay above the x axis, whose numbers would overlap with them otherwise.
    """
    ends = sorted(
        (at(*series.points[-1])[1], series.points[-1][1], series.run.index % 6)
        for series in chart.series
    )
    labels, previous = [], TOP - 14.0
    for below, (y, value, colour) in zip(range(len(ends) - 1, -1, -1), ends, strict=True):
        lowest = HEIGHT - BOTTOM - LABEL * below
        previous = max(min(y, lowest), previous + LABEL)
        labels.append(
            f'<text class="s{colour}" x="{WIDTH - RIGHT + 6}" y="{previous + 4:.1f}">'
            f"{precise(value)}</text>"
        )
    return labels
