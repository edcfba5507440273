"""Run a grid of ablations, several seeds each, and write their table beside the paper's figures.

Each run pretrains an encoder and fine-tunes it, as a classifier, a detector or a segmenter.
OUTPUT_DIR gets table.md, table.csv, runs.csv, and a folder for every run. Start it again after an
interruption: finished runs are skipped, the others continue.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fcmae.grids.grid import load_grid
from fcmae.grids.run import run_grid
from training.cli import ToolParser, at_least, log_to, run_tool
from training.command_line.commands import TOOLS

EXAMPLES = """\
examples:
  # a table of the paper, with its settings (8 GPUs, ImageNet at the paths that the grid names)
  python tools/ablate.py ablations/grn_aggregation.yaml --output-dir runs/aggregation \\
      --set launcher='torchrun --nproc-per-node 8'

  # one row of it
  python tools/ablate.py ablations/grn_aggregation.yaml --output-dir runs/aggregation --rows l1

  # four runs at a time, each with a quarter of the cores, or a GPU of its own if there are four
  python tools/ablate.py ablations/grn_aggregation.yaml --output-dir runs/aggregation --jobs 4

  # the same comparison on a laptop, on your images: docs/ablations.md shows my_grid.yaml, which
  # builds on the paper's grid; --set changes values of it
  python tools/ablate.py my_grid.yaml --output-dir runs/small --set seeds=[0,1] \\
      pretrain.max-steps=500 classify.max-steps=200
"""


def parse() -> argparse.Namespace:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("grid", metavar="GRID.yaml", help="what to run; see ablations/ and docs/ablations.md")
    add("--output-dir", required=True, type=Path, help="for the table and every run's folder")
    add("--rows", nargs="+", default=[], metavar="NAME", help="run only these rows")
    add(
        "--jobs",
        type=at_least(1),
        default=1,
        metavar="N",
        help="number of runs at a time, on this machine",
    )
    add(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change values of the grid, such as seeds=[0,1]",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    grid = load_grid(arguments.grid, arguments.set)
    log_to(arguments.output_dir)
    table = run_grid(grid, arguments.output_dir, TOOLS, arguments.rows, arguments.jobs)
    print(table.read_text(encoding="utf-8"))
    print(f"wrote {table}")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
