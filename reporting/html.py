"""Renders a report page as one HTML file, with style, curves and pictures inside.

The templates escape every value. The page's content security policy forbids requests and all
scripts except ``static/report.js``, which it names by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from itertools import accumulate

from reporting.blocks import Charts, Gallery, Page, Picture, RunName, Table
from reporting.charts import chart_svg
from reporting.templating import ENVIRONMENT, render, static


def render_html(page: Page) -> str:
    """The whole page."""
    script = static("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    style = static("report.css") + static("chart.css")
    return render("page.html", page=page, policy=policy, style=style, script=script)


def kind(value: object) -> str:
    """The class name of a block or cell, which is also the name of its macro."""
    return type(value).__name__


def percent(share: float) -> str:
    """A fraction as a percentage for CSS, limited to 0 to 100%."""
    return f"{100 * min(max(share, 0), 1):.1f}%"


def group_edges(table: Table) -> set[int]:
    """The columns that begin a group, except the first."""
    return set(accumulate(span for _, span in table.groups[:-1]))


def runs_of(charts: Charts) -> list[RunName]:
    """The runs that have a line in any of the charts."""
    return list(dict.fromkeys(line.run for chart in charts.charts for line in chart.series))


def tag_counts(gallery: Gallery) -> dict[str, Counter[str]]:
    """Filter's name -> each value, with the number of members that have it."""
    counts: dict[str, Counter[str]] = {}
    for member in gallery.members:
        for name, values in member.tags.items():
            counts.setdefault(name, Counter()).update(values)
    return counts


def data_url(picture: Picture) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture.jpeg).decode()


ENVIRONMENT.globals.update(
    kind=kind,
    percent=percent,
    group_edges=group_edges,
    runs_of=runs_of,
    tag_counts=tag_counts,
    data_url=data_url,
    svg=chart_svg,
    json=json.dumps,
)
