"""Compare the arms (variants) of an experiment: AP with 95% intervals, paired by seed.

Prints a Markdown table; with --curves also draws each arm's mean loss, or another
quantity of metrics.json, by iteration.
"""

from __future__ import annotations

from pathlib import Path

from backbones.whole_files import write_text
from detection.reporting.arms import compare, curves, read_arms
from training.cli import ToolParser, run_tool

EXAMPLES = """
examples:
  python tools/compare_arms.py --arm scratch runs/scratch_1 runs/scratch_2 runs/scratch_3 \\
      --arm FCMAE runs/fcmae_1 runs/fcmae_2 runs/fcmae_3 --curves losses.svg

exit code: 0; 1 for folders that cannot be compared, all at once; 2 on wrong usage
"""


def main() -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add(
        "--arm",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "RUN"),
        help="an arm's name and its runs' folders; the first arm is the baseline",
    )
    add("--curves", type=Path, metavar="FILE", help="an .svg file")
    add("--metric", default="total_loss", help="what --curves draws, such as bbox/AP")
    options = parser.parse_args()
    if alone := [arm[0] for arm in options.arm if len(arm) < 2]:
        parser.error(f"--arm needs a name and one or more runs: {', '.join(alone)} has none")
    arms = read_arms({name: [Path(run) for run in runs] for name, *runs in options.arm})
    print(compare(arms), end="")
    if options.curves:
        write_text(options.curves, curves(arms, options.metric))


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
