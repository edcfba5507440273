"""Check a COCO-format data set before training: every problem at once."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from detection.data.check import check_coco, check_overlap, image_files
from detection.data.problems import Problem
from training.cli import ToolParser, run_tool

EXAMPLES = """
examples:
  python tools/check_dataset.py train.json --images images
  python tools/check_dataset.py train.json --images images --against val.json
  python tools/check_dataset.py train.json --images images --json > problems.json

exit code: 0 without errors (warnings may remain), 1 with errors, 2 on wrong usage
"""


def parse_arguments() -> argparse.Namespace:
    parser = ToolParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=Path, help="COCO json")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="image folder")
    parser.add_argument(
        "--against", type=Path, metavar="OTHER", help="a json that must not share an image with it"
    )
    parser.add_argument(
        "--against-images", type=Path, metavar="DIR", help="OTHER's image folder, if not the same"
    )
    parser.add_argument("--no-masks", action="store_true", help="objects need boxes only")
    parser.add_argument("--headers-only", action="store_true", help="do not decode the images")
    parser.add_argument("--json", action="store_true", help="print the problems as JSON")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    tree, problems = check_coco(
        options.annotations,
        options.images,
        masks=not options.no_masks,
        decode=not options.headers_only,
    )
    if options.against:
        folder = options.against_images or options.images
        other, other_problems = check_coco(
            options.against, folder, masks=not options.no_masks, decode=not options.headers_only
        )
        problems += other_problems
        problems += check_overlap(
            image_files(tree, options.images),
            image_files(other, folder),
            f"{options.annotations}",
            f"{options.against}",
            pixels=not options.headers_only,
        )
    found = Counter(problem.severity for problem in problems)
    if options.json:
        print(json.dumps([asdict(problem) for problem in problems], indent=2))
    else:
        print_report(tree, problems, found)
    return 1 if found["error"] else 0


def print_report(tree: dict, problems: list[Problem], found: Counter) -> None:
    for problem in sorted(problems, key=lambda problem: problem.severity):
        print(f"{problem.severity}: {problem}")
    counts = ", ".join(
        f"{len(tree.get(key, []))} {key}" for key in ("images", "annotations", "categories")
    )
    totals = ", ".join(
        f"{found[kind]} {kind}{'' if found[kind] == 1 else 's'}" for kind in ("error", "warning")
    )
    print(f"{counts}: {totals}")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
