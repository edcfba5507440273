"""Put the figures of runs/augmentation (made by run.sh) into docs/augmentation.md.

A row's table stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; a grid that has not
been run leaves its table as it is, and a row without runs is "not yet run".
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from fcmae.grids.grid import load_grid
from reporting.tables import markdown_table, write_between
from training.records.intervals import estimate, paired_difference

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs/augmentation.md"
METRICS = ("box AP", "mask AP")
AVERAGED = "box AP (averaged)"
COLUMNS = ("", "runs", *(f"Δ {metric}" for metric in METRICS), "Δ box AP of averaged weights")

Values = dict[str, dict[str, dict[int, float]]]  # row -> metric -> seed


def read_runs(folder: Path) -> Values:
    values: Values = defaultdict(lambda: defaultdict(dict))
    with (folder / "runs.csv").open(encoding="utf-8", newline="") as stream:
        for line in csv.DictReader(stream):
            values[line["row"]][line["metric"]][int(line["seed"])] = float(line["value"])
    return values


def difference(values: dict[int, float], baseline: dict[int, float]) -> str:
    """With half of its 95% interval, paired by seed."""
    found = paired_difference(values, baseline)
    return found.said(sign="+") if found else ""


def table(name: str, values: Values) -> str:
    """A row's differences from "none", and those of its averaged from its own last weights."""
    grid = load_grid(HERE / f"{name}.yaml")
    rows = []
    for row in (each.name for each in grid.rows):
        of_row = values.get(row, {})
        if not of_row:
            rows.append([row, "not yet run", *[""] * (len(COLUMNS) - 2)])
            continue
        cells = [row, str(len(of_row[METRICS[0]]))]
        for metric in METRICS:
            if row == grid.baseline:
                cells.append(f"({estimate(list(of_row[metric].values())).said()})")
                continue
            baseline = values[grid.baseline][metric]
            cells.append(difference(of_row[metric], baseline))
        rows.append([*cells, difference(of_row[AVERAGED], of_row["box AP"])])
    return markdown_table(COLUMNS, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="runs/augmentation")
    options = parser.parse_args()
    for name in ("nuclei", "coco_mini"):
        if not (options.runs / name / "runs.csv").is_file():
            continue
        found = table(name, read_runs(options.runs / name))
        write_between(PAGE, (f"<!-- begin {name} -->", f"<!-- end {name} -->"), f"\n{found}")


if __name__ == "__main__":
    main()
