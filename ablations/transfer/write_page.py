"""Put what measure.py measured into docs/transfer.md and docs/transfer.csv.

    python ablations/transfer/write_page.py runs/transfer/transfer.csv

A difference is of the seeds that both arms have.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from reporting.tables import markdown_table, write_between
from training.cli import ToolParser, run_tool
from training.records.intervals import estimate, paired_difference

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
MARKS = ("<!-- begin measured -->", "<!-- end measured -->")
RANDOM, ENCODER, DETECTOR = "random weights", "the detector's encoder", "the detector"
OWN = "random weights, own statistics"
FROM_DETECTOR = (
    (ENCODER, RANDOM), (DETECTOR, RANDOM), (DETECTOR, ENCODER),
    (OWN, RANDOM), (ENCODER, OWN), (DETECTOR, OWN),
)  # fmt: skip
MEASURED = "8 bits, measured statistics"


class Section(NamedTuple):
    """An experiment's heading, and which arm is compared with which."""

    heading: str
    pairs: tuple[tuple[str, str], ...]


SECTIONS = {
    "detector to nuclei": Section("Detector to detector: nuclei", FROM_DETECTOR),
    "detector to fruits_nuts": Section("Detector to detector: fruits and nuts", FROM_DETECTOR),
    "a fourth band": Section(
        "A band that alone shows the objects", (("photographs and the band", "photographs"),)
    ),
    "deep images": Section(
        "Deep images",
        (
            ("12 bits in 16", "8 bits"),
            ("12 bits in 16", MEASURED),
            ("8 bits, rounded statistics", MEASURED),
            ("12 bits in 16", "their upper 8 bits"),
            (MEASURED, "8 bits"),
        ),
    ),
}
# (experiment, labelled images) -> arm -> seed -> (box AP, mask AP)
Figures = dict[tuple[str, int], dict[str, dict[int, tuple[float, float]]]]


def read(path: Path) -> Figures:
    """What a CSV of measure.py's holds."""
    found: Figures = {}
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            arms = found.setdefault((row["experiment"], int(row["labelled"])), {})
            scores = float(row["box AP"]), float(row["mask AP"])
            arms.setdefault(row["arm"], {})[int(row["seed"])] = scores
    return found


def said(seeds: Collection[int]) -> str:
    """ "0 to 4" for what has no gap, else each."""
    first, last = min(seeds), max(seeds)
    whole = len(seeds) == last - first + 1
    return f"{first} to {last}" if whole else ", ".join(map(str, sorted(seeds)))


def section(name: str, figures: Figures) -> str:
    """An experiment's two tables: each arm, and the differences."""
    values, differences = [], []
    for (experiment, labelled), arms in figures.items():
        if experiment != name:
            continue
        for arm, seeds in arms.items():
            scores = [estimate([s[task] for s in seeds.values()]).said(1) for task in (0, 1)]
            values.append((labelled, arm, said(seeds), *scores))
        for first, second in SECTIONS[name].pairs:
            of = [
                [
                    {seed: s[task] for seed, s in arms.get(arm, {}).items()}
                    for arm in (first, second)
                ]
                for task in (0, 1)
            ]
            apart = [paired_difference(*both) for both in of]
            cells = [found.said(1, "+") for found in apart if found]
            if not cells:
                continue  # an arm that is not measured yet
            differences.append((labelled, f"{first} over {second}", *cells))
    titles = ("labelled", "arm", "seeds", "box AP", "mask AP")
    return "\n\n".join(
        (
            f"## {SECTIONS[name].heading}",
            markdown_table(titles, values),
            markdown_table(("labelled", "difference", "box AP", "mask AP"), differences),
        )
    )


def main() -> None:
    parser = ToolParser(__doc__)
    parser.add_argument("csv", type=Path, help="measure.py's")
    source = parser.parse_args().csv
    if source.resolve() != (DOCS / "transfer.csv").resolve():
        shutil.copy(source, DOCS / "transfer.csv")
    figures = read(DOCS / "transfer.csv")
    body = "\n\n".join(section(name, figures) for name in SECTIONS)
    write_between(DOCS / "transfer.md", MARKS, body)


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
