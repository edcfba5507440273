"""Write examples/python.ipynb from docs/python.md: a cell for each block of code, one between."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from backbones.errors import InputError
from training.cli import ToolParser, run_tool

ROOT = Path(__file__).resolve().parent.parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
EXAMPLES = """\
examples:
  python dev/write_notebook.py           # after a change of the page
  python dev/write_notebook.py --check   # exit code 1 where the notebook is out of date
"""


def cell(number: int, kind: str, text: str) -> dict[str, Any]:
    """A cell in Jupyter's format (nbformat 4.5)."""
    found: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
    if kind == "code":
        found |= {"execution_count": None, "outputs": []}
    return found | {"source": text.strip("\n").splitlines(keepends=True)}


def notebook(page: str) -> dict[str, Any]:
    """A page of Markdown as a notebook."""
    parts = re.split(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    kinds = (("markdown", "code")[place % 2] for place in range(len(parts)))
    filled = [(kind, text) for kind, text in zip(kinds, parts, strict=True) if text.strip()]
    cells = [cell(number, *each) for number, each in enumerate(filled)]
    return {"cells": cells, "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 5}


def main() -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument("--page", type=Path, default=ROOT / "docs/python.md")
    parser.add_argument("--output", type=Path, default=ROOT / "examples/python.ipynb")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args()
    tree = notebook(options.page.read_text(encoding="utf-8"))
    text = json.dumps(tree, indent=1, ensure_ascii=False) + "\n"
    if not options.check:
        options.output.write_text(text, encoding="utf-8")
        print(options.output)
    elif not options.output.is_file() or options.output.read_text(encoding="utf-8") != text:
        raise InputError(f"{options.output} is out of date: run dev/write_notebook.py")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
