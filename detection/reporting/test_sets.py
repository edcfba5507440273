"""The report's table of several test sets: each has a row, the runs stand side by side."""

from __future__ import annotations

from collections.abc import Sequence

from detection.reporting.diagnosis import TASKS
from detection.reporting.run import Run
from reporting.blocks import NOT_RECORDED, Block, Cell, Number, RunName, Table


def test_set_blocks(runs: Sequence[tuple[RunName, Run]]) -> list[Block]:
    """One table, if a run was evaluated on several sets."""
    labels = list(dict.fromkeys(label for _, run in runs for label in run.test_sets))
    if not labels:
        return []
    rows: list[list[Cell]] = []
    at_limit = any("at_limit" in metrics for _, r in runs for _, metrics in r.test_sets.values())
    for label in labels:
        facts = next(run.test_sets[label][0] for _, run in runs if label in run.test_sets)
        row: list[Cell] = [label]
        row += [Number(facts.get(key, 0), digits=0) for key in ("images", "instances")]
        for _, run in runs:
            _, metrics = run.test_sets.get(label, ({}, {}))
            for source in (metrics, metrics.get("at_limit", {}))[: 1 + at_limit]:
                for task in TASKS:
                    measured = source.get(task, {})
                    row.append(Number(measured["AP"]) if "AP" in measured else NOT_RECORDED)
        rows.append(row)
    columns: list[Cell] = ["Test set", "images", "objects"]
    of_run: list[Cell] = [f"{title} AP" for title in TASKS.values()]
    if at_limit:
        of_run += [f"{title} AP at its limit" for title in TASKS.values()]
    columns += of_run * len(runs)
    groups: list[tuple[Cell, int]] = []
    if len(runs) > 1:
        groups = [("", 3), *[(name, len(of_run)) for name, _ in runs]]
    caption = "Every test set; all other numbers and pictures of this page are of the first"
    return [Table(columns, rows, caption, groups)]
