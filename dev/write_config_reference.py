"""Write docs/configuration.md, the reference of every key, from the schema of detection configs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import detection.schema
from backbones.errors import InputError
from detection.schema import SCHEMA, TORCHVISION_ONLY
from training.cli import ToolParser, run_tool

EXAMPLES = """
examples:
  python dev/write_config_reference.py
  python dev/write_config_reference.py --check   # exit code 1 if the page is out of date
"""
HEAD = """# Configuration

Every key of a detection config, with its default and the values it may have. Set a key in a config
file, or on the command line after the other arguments:
`fcmae train --config-file FILE SOLVER.MAX_ITER 1000`. A key that detectron2 has keeps its name,
type and meaning. A misspelt key, a wrong type or a bad value is an error. All errors are listed at
once, each with the closest known key and the allowed values. The column "torchvision" says what
that engine takes where it can do less.
(`dev/write_config_reference.py` writes this page from the schema.)
"""


def comments() -> dict[str, str]:
    """Key -> the remark beside it in the schema's source."""
    found = {}
    for line in inspect.getsource(detection.schema).splitlines():
        if matched := re.match(r'\s+"([A-Z_0-9.]+)": .*?\s# (.+)$', line):
            found[matched[1]] = matched[2]
    return found


def render() -> str:
    remarks, parts = comments(), [HEAD]
    group = ""
    for name, key in SCHEMA.items():
        head = name.rpartition(".")[0] or "Top level"
        if head != group:
            group = head
            parts.append(f"\n## {group}\n\n| key | default | allowed | torchvision | |")
            parts.append("| --- | --- | --- | --- | --- |")
        limited = ", ".join(map(repr, TORCHVISION_ONLY.get(name, ())))
        cells = [f"`{name.rpartition('.')[2]}`", f"`{key.default!r}`", key.allowed]
        cells += [f"only {limited}" if limited else "", remarks.get(name, "")]
        parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument("--output", type=Path, default=Path("docs/configuration.md"))
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args()
    page = render()
    if not options.check:
        options.output.write_text(page, encoding="utf-8")
    elif options.output.read_text(encoding="utf-8") != page:
        raise InputError(f"{options.output} is out of date: run dev/write_config_reference.py")
    print(options.output)


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
