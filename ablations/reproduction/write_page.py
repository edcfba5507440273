"""Put the figures of runs/reproduction (made by run.sh) into docs/reproduction.md and docs/images.

Every run's figures go to docs/reproduction.csv, where those of earlier runs stay until a run of the
same grid, row and seed replaces them: so a part can be run alone, or on another day. The tables and
the drawings come from there. A table stands between ``<!-- begin NAME -->`` and ``<!-- end NAME
-->``, and under ``command FOLDER`` the line of run.sh that writes to that folder of the runs.

``--page``, ``--figures`` and ``--runs`` do the same for the tables of other pages: what the run.sh
of ``ablations/segmentation`` and ``ablations/choosing`` made.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from backbones.errors import InputError
from detection.reporting.arms import read_arms
from fcmae.features.plots import COLOURS, MARKERS
from fcmae.grids.grid import file_name
from reporting.tables import csv_text, markdown_table
from training.cli import run_tool
from training.records.intervals import estimate, paired_difference

ROOT = Path(__file__).resolve().parent.parent.parent
LABELS = {"16": 16, "64": 64, "all": 400}  # labelled tiles of a grid's runs
BOX = "box AP"
DETECTED = (BOX, "mask AP")
LOSS, HOURS = "loss of the last steps", "pretraining hours"
MEASURED = {  # of the last line of a pretraining's metrics.json
    LOSS: "total_loss",
    "distance, mean of the blocks": "feature_distance/mean",
    "of the lowest block": "feature_distance/lowest",
}
PRETRAINED = ("scratch", "fcmae")
ENCODERS = ("fcmae", "no_grn", "mask_token")
COLUMNS = ("grid", "row", "metric", "seed", "value")


class Table(NamedTuple):
    """What a table shows: rows of a grid, of which the first is the baseline, and metrics.

    ``planned``: rows that have not been run are listed, too.
    """

    grid: str
    rows: Sequence[str]
    metrics: Sequence[str] = DETECTED
    digits: int = 2
    planned: bool = False


SMALL_DATA = (
    *("default", "hard patches", "crops of 0.5 to 1", "a fifth without colour", "ratio 0.4"),
    *("ratio 0.75", "patches of 64", "longer", "wider", "from published weights"),
)
TABLES = {
    "small_data": Table("small_data", SMALL_DATA, planned=True),
    "pretraining": Table("pretraining", ENCODERS, (*MEASURED, HOURS), 3),
    "pretraining_long": Table("pretraining_long", ENCODERS, (LOSS, HOURS), 3),
    "classification": Table("classification", ("fcmae", "scratch", *ENCODERS[1:]), ("top-1",)),
    **{f"detection_{name}": Table(f"detection_{name}", PRETRAINED) for name in LABELS},
    "detection_encoders": Table("detection_64", ENCODERS),
    "one_pretraining": Table("one_pretraining", ENCODERS),
    "detection_long": Table("detection_long_64", PRETRAINED),
    "detection_long_all": Table("detection_long_all", PRETRAINED),
    "detection_long_encoders": Table("detection_long_64", ENCODERS),
    "detection_long_fcmae_again": Table("detection_long_64", ("fcmae", "fcmae_again")),
    "detection_long_no_grn_again": Table("detection_long_64", ("no_grn", "no_grn_again")),
}
TABLES |= {  # of docs/segmentation.md
    f"segmentation_{name}": Table(name, PRETRAINED, ("mIoU", "pixel accuracy"), planned=True)
    for name in ("nuclei", "scenes", "coco_mini")
}
TABLES |= {  # of docs/feature_analysis.md
    f"choosing_{name}": Table(name, ("random", "k-centre", "typicality"), planned=True)
    for name in (f"{data}_{count}" for data in ("nuclei", "coco_mini") for count in (16, 32, 64))
}
RATES = {"rates": DETECTED, "rates_long": DETECTED, "classification_rates": ("top-1",)}
COMPARED = {  # by iteration: the grid, the row and what it is compared with
    **{
        f"FCMAE over random weights, {labels} tiles": (f"detection_{name}", "fcmae", "scratch")
        for name, labels in LABELS.items()
    },
    "without GRN over with it, 64 tiles": ("detection_64", "no_grn", "fcmae"),
    "mask tokens over the sparse view, 64 tiles": ("detection_64", "mask_token", "fcmae"),
}
PICTURES = {
    "diversity_by_epoch/distance_by_epoch.png": "reproduction_by_epoch.png",
    "diversity/cosine_distance.png": "reproduction_by_block.png",
    "diversity_supervised/distance_by_epoch.png": "reproduction_supervised_by_epoch.png",
    "diversity_long/distance_by_epoch.png": "reproduction_long_by_epoch.png",
}
# (grid, row, metric) -> seed -> value
Figures = dict[tuple[str, str, str], dict[int, float]]


def read_figures(path: Path) -> Figures:
    """What docs/reproduction.csv holds; nothing where there is none."""
    found: Figures = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as stream:
            for grid, row, metric, seed, value in list(csv.reader(stream))[1:]:
                found.setdefault((grid, row, metric), {})[int(seed)] = float(value)
    return found


def write_figures(figures: Figures, path: Path) -> None:
    rows = [
        [*names, seed, f"{values[seed]:.6g}"]
        for names, values in figures.items()
        for seed in sorted(values)
    ]
    path.write_text(csv_text(COLUMNS, rows), encoding="utf-8", newline="\n")


def measured(grid: Path) -> Iterator[tuple[str, str, int, float]]:
    """(row, metric, seed, value) of every finished run of a grid."""
    detections: dict[str, list[Path]] = defaultdict(list)
    with (grid / "runs.csv").open(newline="", encoding="utf-8") as stream:
        for run in csv.DictReader(stream):
            row, metric, seed = run["row"], run["metric"], int(run["seed"])
            folder = f"{file_name(row)}_seed_{seed}"
            yield row, metric, seed, float(run["value"])
            if metric == HOURS:
                metrics = grid / "pretrain" / folder / "metrics.json"
                last = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
                yield from ((row, m, seed, last[key]) for m, key in MEASURED.items() if key in last)
            if metric == BOX:
                detections[row].append(grid / "detect" / folder)
    for arm in read_arms(detections):
        for seed, detector in arm.runs.items():
            end = detector.history["total_loss"][-1][0], arm.values("bbox")[seed]
            for iteration, ap in [*detector.history.get("bbox/AP", []), end]:
                yield arm.name, f"{BOX} at {iteration:.0f}", seed, ap


def compare(figures: Figures, wanted: Table) -> str:
    """Means with 95% intervals, and differences to the first row, paired by seed."""
    grid, rows, metrics, digits, planned = wanted
    if not planned:
        metrics = [m for m in metrics if any((grid, row, m) in figures for row in rows)]
        rows = [row for row in rows if metrics and (grid, row, metrics[0]) in figures]
    lines = [["", "seeds"]]
    for metric in metrics:
        lines[0] += [metric, "difference to the first"]
    for row in rows:
        if (grid, row, metrics[0]) not in figures:
            lines.append([row, "not yet run", *([""] * (2 * len(metrics)))])
            continue
        lines.append([row, ", ".join(map(str, sorted(figures[grid, row, metrics[0]])))])
        for metric in metrics:
            values = figures[grid, row, metric]
            lines[-1].append(estimate(list(values.values())).said(digits))
            apart = paired_difference(values, figures.get((grid, rows[0], metric), {}))
            lines[-1].append(apart.said(digits, "+") if apart and row != rows[0] else "")
    return markdown_table(lines[0], lines[1:])


def rates(figures: Figures, grid: str, metrics: Sequence[str]) -> str:
    """Every row of a grid, without differences."""
    lines = [["", "seeds", *metrics]]
    for row in dict.fromkeys(row for of_grid, row, _ in figures if of_grid == grid):
        of_row = [figures[grid, row, metric] for metric in metrics]
        means = [estimate(list(values.values())).said() for values in of_row]
        lines.append([row, ", ".join(map(str, sorted(of_row[0]))), *means])
    return markdown_table(lines[0], lines[1:])


def by_iteration(figures: Figures, grid: str, row: str) -> dict[int, dict[int, float]]:
    """iteration -> seed -> box AP, the end of the training included."""
    start = f"{BOX} at "
    return {
        int(metric.removeprefix(start)): values
        for (of_grid, of_row, metric), values in figures.items()
        if (of_grid, of_row) == (grid, row) and metric.startswith(start)
    }


def differences_by_iteration(figures: Figures) -> str:
    """Of each pair of rows: the paired difference of box AP at every evaluation."""
    found: dict[str, dict[int, str]] = {}
    for title, (grid, *rows) in COMPARED.items():
        ours, theirs = (by_iteration(figures, grid, row) for row in rows)
        apart = {i: paired_difference(ours[i], theirs[i]) for i in ours.keys() & theirs.keys()}
        found[title] = {i: each.said(sign="+") for i, each in apart.items() if each}
    iterations = sorted({iteration for row in found.values() for iteration in row})
    lines = [["box AP at iteration", *map(str, iterations)]]
    lines += [[title, *(row.get(i, "") for i in iterations)] for title, row in found.items() if row]
    return markdown_table(lines[0], lines[1:])


def command(folder: str) -> str:
    """The command of run.sh that writes to a folder of the runs, its variables replaced."""
    text = (ROOT / "ablations/reproduction/run.sh").read_text(encoding="utf-8")
    variables = dict(re.findall(r"(?m)^(\w+)=(\S+)$", text)) | {"data": "DATA"}
    for line in re.findall(r"(?m)^python (?:.*\\\n)*.*$", text):
        while found := re.search(r"\$(\w+)", line):
            line = line.replace(found[0], variables[found[1]])
        if re.search(rf" --output-dir runs/reproduction/{folder}\s", line + "\n"):
            return f"```bash\n{line}\n```"
    raise InputError(f"no line of run.sh writes to {folder}")


def block(name: str, figures: Figures) -> str:
    """What stands in the page under a name."""
    if name.startswith("command "):
        return command(name.removeprefix("command "))
    if name == "by_iteration":
        return differences_by_iteration(figures)
    if name in RATES:
        return rates(figures, name, RATES[name])
    return compare(figures, TABLES[name])


def draw_iterations(figures: Figures, path: Path) -> None:
    """Box AP by iteration, a panel for each number of labelled tiles, with 95% intervals."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    panels = figure.subplots(1, len(LABELS), sharey=True)
    for axis, (name, labels) in zip(panels, LABELS.items(), strict=True):
        for index, row in enumerate(("scratch", *ENCODERS)):
            points = sorted(by_iteration(figures, f"detection_{name}", row).items())
            if not points:
                continue
            iterations = [iteration for iteration, _ in points]
            found = [estimate(list(values.values())) for _, values in points]
            low, high = (
                [each.mean + side * (each.half_width or 0) for each in found] for side in (-1, 1)
            )
            style = {"color": COLOURS[index], "marker": MARKERS[index], "label": row}
            axis.plot(iterations, [each.mean for each in found], **style)
            axis.fill_between(iterations, low, high, color=COLOURS[index], alpha=0.15, linewidth=0)
        axis.set(title=f"{labels} labelled tiles", xlabel="iteration")
        if axis.lines:
            axis.legend(frameon=False, loc="upper left")
    panels[0].set(ylabel=BOX, ylim=(0, None))  # of all panels, once all are drawn
    figure.savefig(path, dpi=150)


def draw_labels(figures: Figures, path: Path) -> None:
    """Box AP by the number of labelled tiles, one line per arm: means and 95% intervals."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for index, row in enumerate(PRETRAINED):
        found = {
            labels * 1.04**index: estimate(list(values.values()))
            for name, labels in LABELS.items()  # moved, so that intervals do not cover others
            if (values := figures.get((f"detection_{name}", row, BOX)))
        }
        axis.errorbar(
            list(found),
            [each.mean for each in found.values()],
            [each.half_width or 0.0 for each in found.values()],
            color=COLOURS[index],
            marker=MARKERS[index],
            capsize=3,
            label=row,
        )
    axis.set(xscale="log", xlabel="labelled tiles", ylabel=BOX, ylim=(0, None))
    axis.set_xticks(list(LABELS.values()), list(map(str, LABELS.values())))
    axis.minorticks_off()
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduction"))
    docs = ROOT / "docs"
    parser.add_argument("--page", type=Path, default=docs / "reproduction.md")
    parser.add_argument("--figures", type=Path, default=docs / "reproduction.csv")
    options = parser.parse_args()
    out, page, kept = options.runs, options.page, options.figures
    figures = read_figures(kept)
    grids = sorted(file.parent for file in out.glob("*/runs.csv"))
    for grid in grids:
        for row, metric, seed, value in measured(grid):
            figures.setdefault((grid.name, row, metric), {})[seed] = value
    if figures:
        write_figures(figures, kept)
    figures = read_figures(kept)  # as rounded there

    def filled(found: re.Match[str]) -> str:
        return f"{found[1]}\n\n{block(found[2], figures)}\n\n{found[3]}"

    pattern = r"(<!-- begin ([\w ]+) -->).*?(<!-- end \2 -->)"
    page.write_text(
        re.sub(pattern, filled, page.read_text(encoding="utf-8"), flags=re.DOTALL), encoding="utf-8"
    )
    if page.name != "reproduction.md":
        return
    for source, picture in PICTURES.items():
        if (out / source).is_file():
            shutil.copyfile(out / source, docs / "images" / picture)
    if grids:
        draw_labels(figures, docs / "images/reproduction_labels.png")
        draw_iterations(figures, docs / "images/reproduction_iterations.png")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
