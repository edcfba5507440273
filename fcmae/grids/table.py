"""The tables of a grid: every metric's mean and spread, beside what the paper reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backbones.errors import counted
from backbones.whole_files import write_text
from fcmae.grids.grid import METRICS, Grid
from reporting.tables import by_column, csv_text, markdown_table
from training.records.intervals import Estimate, estimate, paired_difference

# row name -> metric -> seed -> value
Results = dict[str, dict[str, dict[int, float]]]
COLUMNS = ("row", "metric", "runs", "mean", "deviation", "half_width", "difference",
           "difference_half_width", "paired_runs", "paper", "paper_difference")  # fmt: skip
RUN_COLUMNS = ("row", "metric", "seed", "value")


def write_tables(grid: Grid, results: Results, output_dir: Path) -> None:
    """Write ``table.md``, ``table.csv`` and ``runs.csv``, which has one line per run."""
    rows = _rows(grid, results)
    runs = [
        {"row": name, "metric": metric, "seed": seed, "value": value}
        for name, metrics in results.items()
        for metric, values in metrics.items()
        for seed, value in sorted(values.items())
    ]
    write_text(output_dir / "table.md", _markdown(grid, rows))
    write_text(output_dir / "table.csv", csv_text(*by_column(rows, COLUMNS)))
    write_text(output_dir / "runs.csv", csv_text(*by_column(runs, RUN_COLUMNS)))


def _rows(grid: Grid, results: Results) -> list[dict[str, Any]]:
    rows = []
    paper_baseline = next(row.paper for row in grid.rows if row.name == grid.baseline)
    for metric in METRICS:
        baseline = results.get(grid.baseline, {}).get(metric, {})
        for row in grid.rows:
            values = results.get(row.name, {}).get(metric, {})
            paper = row.paper.get(metric)
            if not values and paper is None:
                continue
            mean = estimate(list(values.values())) if values else Estimate(0, None, None, 0)
            apart = paired_difference(values, baseline) if row.name != grid.baseline else None
            paper_apart = None
            if paper is not None and metric in paper_baseline and row.name != grid.baseline:
                paper_apart = paper - paper_baseline[metric]
            rows.append(
                {
                    "row": row.name,
                    "metric": metric,
                    "runs": mean.runs,
                    "mean": mean.mean if mean.runs else None,
                    "deviation": mean.deviation,
                    "half_width": mean.half_width,
                    "difference": apart.mean if apart else None,
                    "difference_half_width": apart.half_width if apart else None,
                    "paired_runs": apart.runs if apart else None,
                    "paper": paper,
                    "paper_difference": paper_apart,
                }
            )
    return rows


def _markdown(grid: Grid, rows: list[dict[str, Any]]) -> str:
    paragraphs = [f"# {grid.title}"]
    if grid.source:
        paragraphs.append(f"The paper's figures: {grid.source}.")
    paragraphs.append(
        f"Mean ± half of its 95% confidence interval over {counted(len(grid.seeds), 'seed')}, "
        f"and the standard deviation of the runs. Differences from *{grid.baseline}* are paired by "
        "seed; a single run has no interval."
    )
    for metric in METRICS:
        if not (of_metric := [row for row in rows if row["metric"] == metric]):
            continue
        digits = 3 if metric.endswith("hours") else 2
        titles = (metric, "mean", "deviation", "runs", "difference", "paper", "paper's difference")
        cells = [
            (
                row["row"],
                _interval(row["mean"], row["half_width"], digits),
                _number(row["deviation"], digits),
                row["runs"],
                _interval(row["difference"], row["difference_half_width"], digits, "+"),
                _number(row["paper"], 1),
                _number(row["paper_difference"], 1, "+"),
            )
            for row in of_metric
        ]
        paragraphs.append(markdown_table(titles, cells))
    return "\n\n".join(paragraphs) + "\n"


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.{digits}f}"


def _interval(value: float | None, half_width: float | None, digits: int, sign: str = "") -> str:
    return "" if value is None else Estimate(value, None, half_width, 0).said(digits, sign)
