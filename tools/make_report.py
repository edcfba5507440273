"""Write the report of a detection run, or of several compared with the first."""

from __future__ import annotations

import argparse
from pathlib import Path

from detection.report import write_report
from training.cli import ToolParser, log_to, run_tool

EXAMPLES = """
examples:
  python tools/make_report.py runs/scratch --output report.html
  python tools/make_report.py runs/scratch runs/fcmae --output compare.html \\
      --names scratch FCMAE --pretraining runs/pretraining
  # a folder that a detectron2 script of your own wrote
  python tools/make_report.py output --output report.html --annotations val.json --images images

exit code: 0, 1 for folders that hold no run, 2 on wrong usage
"""


def parse_arguments() -> argparse.Namespace:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="a run's OUTPUT_DIR; the first is the baseline of the differences",
    )
    add(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the page, an .html file; the same as Markdown is written beside it",
    )
    add("--names", nargs="+", metavar="NAME", help="names of the runs on the page, in their order")
    add(
        "--note",
        action="append",
        default=[],
        metavar="TEXT",
        help="a paragraph under the headline; may be given several times",
    )
    add(
        "--pretraining",
        type=Path,
        metavar="DIR",
        help="the run folder of the FCMAE pretraining, to show it, too",
    )
    add(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO json of the test set, for folders that do not record it; needs --images",
    )
    add("--images", type=Path, metavar="DIR", help="its images")
    options = parser.parse_args()
    if bool(options.annotations) != bool(options.images):
        parser.error("--annotations and --images go together")
    return options


def main() -> None:
    options = parse_arguments()
    log_to()
    write_report(
        options.runs,
        options.output,
        names=options.names,
        notes=options.note,
        pretraining=options.pretraining,
        test_set=(options.annotations, options.images) if options.annotations else None,
    )
    print(options.output)


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
