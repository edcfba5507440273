"""Renders a report page as Markdown, for a repository or a ticket; figures are separate files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from reporting.blocks import (
    Block,
    Cards,
    Cell,
    Charts,
    Code,
    Details,
    Gallery,
    Page,
    Paragraph,
    Pictures,
    Table,
)
from reporting.charts import chart_svg, describe
from reporting.tables import markdown_table


def markdown_files(page: Page, path: Path) -> dict[Path, bytes | str]:
    """The files to write: the text at ``path``, and figures in the folder ``{stem}_files``."""
    writer = _Writer(path.parent / f"{path.stem}_files")
    lines = [f"# {escape(page.title)}", escape(page.subtitle)]
    for section in page.sections:
        lines.append(f"## {escape(section.title)}")
        lines += [writer.block(block) for block in section.blocks]
    return {**writer.files, path: "\n\n".join(lines) + "\n"}


def escape(text: str) -> str:
    """Plain text as Markdown that shows exactly that text, in one line."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", " ".join(text.split()))


def cell_text(cell: Cell) -> str:
    if isinstance(cell, Code) and cell.text and not re.search(r"[`|\n]", cell.text):
        return f"`{cell.text}`"
    return escape(str(cell))


class _Writer:
    """Renders blocks; numbers the figure files as they come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[Path, bytes | str] = {}

    def block(self, block: Block) -> str:
        if isinstance(block, Paragraph):
            return ("> " if block.kind in ("note", "warning") else "") + escape(block.text)
        if isinstance(block, Cards):
            rows = [[label, value, what] for label, value, what in block.cards]
            return self.table(["", "", ""], rows)
        if isinstance(block, Table):
            return f"{escape(block.caption)}\n\n" + self.table(
                _flat_columns(block), block.rows, block.prose
            )
        if isinstance(block, Details):
            fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", block.text)), default=0))
            return (
                f"<details><summary>{escape(block.summary)}</summary>\n\n"
                f"{fence}\n{block.text}\n{fence}\n\n</details>"
            )
        if isinstance(block, Charts):
            return "\n\n".join(
                self.figure(chart_svg(chart, standalone=True).encode(), "svg", describe(chart))
                for chart in block.charts
            )
        if isinstance(block, Gallery):
            return "\n\n".join(map(self.pictures, block.members))
        return self.pictures(block)

    def pictures(self, block: Pictures) -> str:
        images = [self.figure(p.jpeg, "jpg", p.alternative) for p in block.pictures]
        labels = [escape(picture.label) for picture in block.pictures]
        return f"**{escape(block.title)}**\n\n{markdown_table(labels, [images])}"

    def table(
        self, columns: Sequence[Cell], rows: Sequence[Sequence[Cell]], prose: bool = False
    ) -> str:
        titles, *texts = [[cell_text(cell) for cell in line] for line in (columns, *rows)]
        return markdown_table(titles, texts, () if prose else range(1, len(columns)))

    def figure(self, data: bytes, suffix: str, alternative: str) -> str:
        path = self.folder / f"{len(self.files) + 1:03d}.{suffix}"
        self.files[path] = data
        return f"![{escape(alternative)}](<{self.folder.name}/{path.name}>)"


def _flat_columns(table: Table) -> list[Cell]:
    """Titles in one line, as Markdown needs: a group's title is put before its columns' titles."""
    groups: list[Cell] = [title for title, span in table.groups for _ in range(span)]
    titles: list[Cell] = []
    for group, column in zip(groups or [""] * len(table.columns), table.columns, strict=True):
        titles.append(f"{group} {column}".strip() if str(group) else column)
    return titles
