"""Write the table of docs/segmentation.md from the config files of det_configs/ade20k.

Parameters and FLOPs are counted with ADE20K's 150 classes (seconds for all sizes). Published mIoU
is what a file's header says after "Expected:".
"""

from __future__ import annotations

import re
from pathlib import Path

from reporting.tables import markdown_table, write_between
from segmentation.complexity import complexity
from segmentation.config import load_config
from training.cli import ToolParser, run_tool

CLASSES = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "150"]
MARKS = ("<!-- table -->", "<!-- end of table -->")
EXAMPLES = """\
examples:
  # after a change of the files
  python dev/write_segmentation_table.py
"""


def table(folder: Path) -> str:
    """The table as Markdown."""
    rows = []
    for path in sorted(folder.glob("upernet_*.yaml")):
        config = load_config(path, CLASSES)
        short = config.INPUT.CROP.SIZE[0]
        count = complexity(config, 4 * short, short)
        header = path.read_text(encoding="utf-8").partition("\n_BASE_")[0]
        expected = re.search(r"^# Expected: (.*)\.$", header, re.MULTILINE)
        assert expected, f"{path}: its header has no line '# Expected:'"
        rows.append(
            [
                f"`{path.name}`",
                f"{count.parameters / 1e6:.0f} M",
                f"{count.flops / 1e9:.0f} G",
                f"{short} x {4 * short}",
                expected[1],
            ]
        )
    titles = ["config", "parameters", "FLOPs", "of an image", "published mIoU"]
    return markdown_table(titles, rows)


def main() -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--configs", type=Path, default=Path("det_configs/ade20k"), help="their folder")
    add("--page", type=Path, default=Path("docs/segmentation.md"), help="the page")
    arguments = parser.parse_args()
    write_between(arguments.page, MARKS, table(arguments.configs).rstrip())


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
