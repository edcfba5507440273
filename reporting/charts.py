"""Line charts as SVG, drawn here so that they have the page's colours."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from markupsafe import Markup

from reporting.blocks import Chart
from reporting.templating import render, static

MAX_POINTS = 150  # per line; more points are averaged in groups

Place = Callable[[float, float], tuple[float, float]]  # data point -> point of the drawing

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 42, 54, 10, 26  # margins of the plot
LABEL = 13  # height of a line's label
# Charts in separate files have no style sheet: colours for light and dark pages.
STANDALONE_COLOURS = {
    **{"muted": "#75808f", "hair": "#8884", "ink": "#75808f"},
    **{"s0": "#2f6fde", "s1": "#d9730d", "s2": "#0f9d74"},
    **{"s3": "#b44bc2", "s4": "#c2410c", "s5": "#64748b"},
}


def downsample(points: Sequence[tuple[float, float]]) -> tuple[list[tuple[float, float]], int]:
    """At most MAX_POINTS points, each the mean of a group at its last x; and the group's size."""
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


def chart_svg(chart: Chart, standalone: bool = False) -> Markup:
    """A line chart as an SVG element; colours come from the page's style sheet.

    Args:
        chart: at least one line of at least one point; the y axis starts at 0.
        standalone: whether it becomes a separate file, with colours for light and dark pages.
    """
    points = [point for series in chart.series for point in series.points]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    ys += [end for series in chart.series for _, *ends in series.band for end in ends]
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    x_ticks = [t for t in ticks(x_low, x_high, 4) if x_low <= t <= x_high]
    if max(xs) == min(xs):
        x_ticks = [x_low]
    elif chart.x == "iteration":  # only whole numbers
        x_ticks = [t for t in x_ticks if math.isclose(t, round(t))]
    y_ticks = ticks(min(0, *ys), max(0, *ys) or 1, 4)

    def at(x: float, y: float) -> tuple[float, float]:
        share_x = (x - x_low) / (x_high - x_low)
        share_y = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        right, down = share_x * (WIDTH - LEFT - RIGHT), share_y * (HEIGHT - TOP - BOTTOM)
        return round(LEFT + right, 1), round(HEIGHT - BOTTOM - down, 1)

    lines = []
    for series in chart.series:
        said = f"{series.run.name}, {chart.x}"
        places = [(*at(x, y), f"{said} {x:g}: {y:.5g}") for x, y in series.points]
        upper = [at(x, high) for x, _, high in series.band]
        lower = [at(x, low) for x, low, _ in series.band]
        outline = [*upper, *reversed(lower)]
        lines.append({"colour": series.run.index % 6, "places": places, "band": outline})
    svg = render(
        "chart.svg",
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        bottom=HEIGHT - BOTTOM,
        description=describe(chart),
        style=_standalone_style() if standalone else "",
        rows=[(at(x_low, tick)[1], short(tick)) for tick in y_ticks],
        columns=[(at(tick, 0)[0], short(tick)) for tick in x_ticks],
        lines=lines,
        ends=_end_labels(chart, at),
    )
    return Markup("").join(svg.splitlines())


def _standalone_style() -> Markup:
    sheet = static("chart.css") + Markup("text{font-family:system-ui,sans-serif}")
    return Markup(re.sub(r"var\(--(\w+)\)", lambda v: STANDALONE_COLOURS[v[1]], sheet))


def _end_labels(chart: Chart, at: Place) -> list[tuple[int, float, str]]:
    """For each line its colour, and the place and text of its last value.

    Labels are moved apart so that they do not overlap each other or the x axis's numbers.
    """
    ends = sorted(
        (at(*series.points[-1])[1], series.points[-1][1], series.run.index % 6)
        for series in chart.series
    )
    labels, previous = [], TOP - 14.0
    for below, (y, value, colour) in zip(range(len(ends) - 1, -1, -1), ends, strict=True):
        lowest = HEIGHT - BOTTOM - LABEL * below
        previous = round(max(min(y, lowest), previous + LABEL), 1)
        labels.append((colour, previous, precise(value)))
    return labels
