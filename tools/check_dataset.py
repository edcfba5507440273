"""Check a COCO-format data set before training: list every problem, and what training will use.

With --repair, errors that have only one remedy are repaired and listed; contradictions stay errors.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from backbones.errors import InputError, counted
from detection.data.check import check_coco, training_sentence
from detection.data.checks.problems import Problem
from detection.data.checks.sets import check_overlap, compare_classes, duplicate_images, image_files
from detection.data.coco_file import write_coco
from detection.data.repair import repair_coco
from training.cli import ToolParser, run_tool, say

EXAMPLES = """
examples:
  python tools/check_dataset.py train.json --images images
  python tools/check_dataset.py train.json --images images --against val.json
  python tools/check_dataset.py train.json --images images --json > problems.json

  # repair errors that have only one remedy, list each change, and check the new file
  python tools/check_dataset.py train.json --images images --repair fixed.json

exit code: 0 without errors (warnings may remain), 1 with errors, 2 on wrong usage
"""


def parse_arguments() -> argparse.Namespace:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("annotations", type=Path, help="COCO json")
    add("--images", type=Path, required=True, metavar="DIR", help="image folder")
    add(
        "--against",
        type=Path,
        metavar="OTHER",
        help="another COCO json: no image may be in both, and the classes must agree",
    )
    add(
        "--against-images",
        type=Path,
        metavar="DIR",
        help="image folder of OTHER, if it is another one",
    )
    add(
        "--repair",
        type=Path,
        metavar="FIXED",
        help="repair what has only one remedy, and write the result to this file",
    )
    add("--no-masks", action="store_true", help="do not require masks")
    add("--headers-only", action="store_true", help="read only the headers of the images (faster)")
    add("--json", action="store_true", help="print the problems as JSON")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    masks, decode = not options.no_masks, not options.headers_only
    changes: list[Problem] = []
    annotations = options.annotations
    if options.repair:
        changes, annotations = repair(annotations, options.images, masks, options.repair)
    tree, problems = check_coco(annotations, options.images, masks=masks, decode=decode)
    files = image_files(tree, options.images)
    if decode:
        problems += duplicate_images(files, annotations)
    if options.against:
        folder = options.against_images or options.images
        other, other_problems = check_coco(options.against, folder, masks=masks, decode=decode)
        problems += other_problems
        problems += compare_classes(tree, other, str(annotations), str(options.against))
        problems += check_overlap(
            files, image_files(other, folder), f"{annotations}", f"{options.against}", pixels=decode
        )
    found = Counter(problem.severity for problem in problems)
    if options.json:
        repaired = [asdict(change) | {"severity": "repaired"} for change in changes]
        say(json.dumps([*repaired, *map(asdict, problems)], indent=2))
    else:
        for change in changes:
            say(f"repaired: {change}")
        print_report(options, tree, problems, found)
    return 1 if found["error"] else 0


def repair(annotations: Path, images: Path, masks: bool, fixed: Path) -> tuple[list[Problem], Path]:
    """Write the repaired file. Returns what was changed, and the file to check afterwards.

    Raises:
        InputError: if the repaired file would replace its source.
    """
    if fixed.exists() and annotations.exists() and fixed.samefile(annotations):
        raise InputError(f"--repair {fixed} would overwrite the file itself: give another name")
    tree, changes = repair_coco(annotations, images, masks)
    if not tree:
        return [], annotations  # not a COCO file: the check says so
    write_coco(tree, fixed)
    return changes, fixed


def print_report(
    options: argparse.Namespace, tree: dict, problems: list[Problem], found: Counter
) -> None:
    for problem in sorted(problems, key=lambda problem: problem.severity):
        say(f"{problem.severity}: {problem}")
    named = [("image", "images"), ("annotation", "annotations"), ("category", "categories")]
    counts = ", ".join(counted(len(tree.get(many, [])), one, many) for one, many in named)
    totals = ", ".join(counted(found[kind], kind, f"{kind}s") for kind in ("error", "warning"))
    if tree and not found["error"]:
        print(training_sentence(tree))
    elif tree and not options.repair:
        again = shlex.join([str(options.annotations), "--images", str(options.images)])
        again += " --no-masks" * options.no_masks
        say(f"to repair what has only one remedy, in a copy: python tools/check_dataset.py {again} "
            "--repair fixed.json")  # fmt: skip
    print(f"{counts}: {totals}")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
