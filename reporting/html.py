"""Render a report's page as one HTML file that needs no network: style, curves, pictures inside.

Every child of an element is escaped unless it is :class:`Markup`, which only :func:`tag` and the
charts make. The page's own policy forbids requests and every script but ``report_script.SCRIPT``,
which it knows by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from reporting.blocks import (
    NO_GROUND_TRUTH,
    Block,
    Cards,
    Cell,
    Charts,
    Code,
    Details,
    Gallery,
    Number,
    Page,
    Paragraph,
    Pictures,
    RunName,
    Section,
    Table,
    Term,
)
from reporting.charts import chart_svg
from reporting.script import SCRIPT
from reporting.style import STYLE

SCRIPT_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{SCRIPT_HASH}'"
)


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, /, *children: str, **attributes: object) -> Markup:
    """An element; ``class_`` is class, ``_`` in a name is ``-``, None leaves an attribute out."""
    opening = [name]
    for key, value in attributes.items():
        if value is not None:
            shown_key = key.rstrip("_").replace("_", "-")
            opening.append(f'{shown_key}="{html.escape(str(value))}"')
    start = f"<{' '.join(opening)}>"
    if name in ("meta", "link", "img"):
        return Markup(start)
    return Markup(f"{start}{join(children)}</{name}>")


def join(children: Sequence[str]) -> Markup:
    """Children one after the other; those that are no markup are escaped."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in children))


def render_html(page: Page) -> str:
    """The whole page."""
    links = [tag("a", section.title, href=f"#{section.key}") for section in page.sections]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", page.title),
        tag("style", Markup(STYLE)),
    )
    body = tag(
        "body",
        tag(
            "header",
            tag("h1", page.title),
            tag("p", page.subtitle, class_="subtitle"),
            tag("nav", *links, aria_label="Sections"),
        ),
        tag("main", *map(_section, page.sections)),
        tag("script", Markup(SCRIPT)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _section(section: Section) -> Markup:
    heading = tag("h2", section.title)
    return tag("section", heading, *map(_block, section.blocks), id=section.key)


def _block(block: Block) -> Markup:
    return RENDERERS[type(block)](block)


def _paragraph(block: Paragraph) -> Markup:
    return tag("p", block.text, class_=block.kind)


def _cell(cell: Cell) -> Markup:
    if isinstance(cell, RunName):
        return tag("span", tag("i", class_=f"dot b{cell.index % 6}"), cell.name, class_="run")
    if isinstance(cell, Term):
        return join([cell.name, tag("small", cell.meaning)])
    if isinstance(cell, Code):
        return tag("code", cell.text)
    if not isinstance(cell, Number):
        return join([cell])
    if cell.value is None:
        return tag("span", NO_GROUND_TRUTH, class_="none", title="no ground truth to measure this")
    sign = "" if not cell.signed else "up" if cell.value > 0 else "down" if cell.value < 0 else ""
    number = tag("data", str(cell), value=repr(cell.value), class_=sign or None)
    if cell.shade is not None:
        share = f"{100 * min(max(cell.shade, 0), 1):.0f}%"
        return tag("span", number, class_="shade", style=f"--share:{share}")
    if cell.bar is None:
        return number
    width = f"{100 * min(max(cell.bar, 0), 1):.1f}%"
    return join([tag("span", class_="bar", style=f"width:{width}"), number])


def _cards(block: Cards) -> Markup:
    cards = [
        tag("div", tag("dt", label), tag("dd", _cell(value)), tag("dd", what, class_="what"))
        for label, value, what in block.cards
    ]
    return tag("dl", *cards, class_="cards")


def _table(block: Table) -> Markup:
    spans = [span for _, span in block.groups]
    edges = set(accumulate(spans[:-1]))  # columns that begin a group
    head = []
    if block.groups:
        groups = [
            tag("th", _cell(cell), colspan=span, scope="colgroup", class_="edge" if i else None)
            for i, (cell, span) in enumerate(block.groups)
        ]
        head.append(tag("tr", *groups, class_="groups"))
    titles = [
        tag("th", _cell(cell), scope="col", class_="edge" if i in edges else None)
        for i, cell in enumerate(block.columns)
    ]
    head.append(tag("tr", *titles))
    rows = []
    for first, *others in block.rows:
        cells = [
            _table_cell(cell, i in edges, str(block.columns[i]) if block.prose else "")
            for i, cell in enumerate(others, 1)
        ]
        rows.append(tag("tr", tag("th", _cell(first), scope="row"), *cells))
    table = tag(
        "table",
        tag("thead", *head),
        tag("tbody", *rows),
        class_="prose" if block.prose else None,
        aria_label=block.caption,
    )
    kind = "scroll long" if block.long else "scroll"
    box = tag("div", table, class_=kind, tabindex=0, role="region", aria_label=block.caption)
    return join([tag("p", block.caption, class_="small"), box])


def _table_cell(cell: Cell, edge: bool, column: str) -> Markup:
    """``column``, where given, is shown in front of the cell on a narrow screen."""
    with_bar = isinstance(cell, Number) and cell.bar is not None
    classes = " ".join([name for name, on in (("barred", with_bar), ("edge", edge)) if on])
    return tag("td", _cell(cell), class_=classes or None, data_column=column or None)


def _charts(block: Charts) -> Markup:
    runs = {series.run: None for chart in block.charts for series in chart.series}
    legend = tag("p", *map(_cell, runs), class_="legend") if len(runs) > 1 else Markup("")
    figures = [
        tag(
            "figure",
            tag("figcaption", chart.title, tag("small", f"by {chart.x}")),
            Markup(chart_svg(chart)),
        )
        for chart in block.charts
    ]
    return join([legend, tag("div", *figures, class_="charts")])


def _pictures(block: Pictures) -> Markup:
    figures = []
    for picture in block.pictures:
        source = "data:image/jpeg;base64," + base64.b64encode(picture.jpeg).decode()
        dot = tag("i", class_=f"dot b{picture.run.index % 6}") if picture.run else Markup("")
        image = tag("img", src=source, alt=picture.alternative, decoding="async")
        zoom = tag("button", image, type="button", class_="zoom", title="Enlarge")
        link = Markup("")
        if picture.full:
            link = tag("a", "full size", href=picture.full[0], class_="full")
        figures.append(tag("figure", tag("figcaption", dot, picture.label, link), zoom))
    columns = f"--columns:{min(3, len(figures))}"
    strip = tag("div", *figures, class_="strip", style=columns)
    tags = json.dumps(dict(block.tags)) if block.tags else None
    return tag("article", tag("h3", block.title), strip, class_="pictures", data_tags=tags)


def _gallery(block: Gallery) -> Markup:
    """The filters are hidden until the script, which works them, shows them."""
    values: dict[str, dict[str, int]] = {}
    for member in block.members:
        for name, held in member.tags.items():
            for value in held:
                counts = values.setdefault(name, {})
                counts[value] = counts.get(value, 0) + 1
    selects = []
    for name, counts in values.items():
        options = [
            tag("option", f"{value} ({count})", value=value) for value, count in counts.items()
        ]
        select = tag("select", tag("option", "all", value=""), *options, data_filter=name)
        selects.append(tag("label", name, select))
    shown = tag("output", f"{len(block.members)} of {len(block.members)}", aria_live="polite")
    filters = tag("form", *selects, shown, class_="filters", hidden="", aria_label="Filter")
    return tag("div", filters, *map(_pictures, block.members), class_="gallery")


def _details(block: Details) -> Markup:
    return tag("details", tag("summary", block.summary), tag("pre", block.text, tabindex=0))


RENDERERS: dict[type, Callable[[Any], Markup]] = {
    Paragraph: _paragraph,
    Cards: _cards,
    Table: _table,
    Charts: _charts,
    Pictures: _pictures,
    Gallery: _gallery,
    Details: _details,
}
