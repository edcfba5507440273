"""Arms of an experiment, several seeds each, compared: mean, spread, paired difference, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from backbones.errors import InputError
from detection.reporting.run import Run, read_run
from reporting.blocks import Chart, RunName, Series
from reporting.charts import chart_svg, downsample
from reporting.tables import markdown_table
from training.records.intervals import estimate, paired_difference

TASKS = {"bbox": "box AP", "segm": "mask AP"}


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed only: ``runs`` is seed -> run."""

    name: str
    runs: Mapping[int, Run]

    def values(self, task: str) -> dict[int, float]:
        """seed -> AP in percent."""
        found = {seed: run.metric(task, "AP") for seed, run in self.runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}


def read_arms(folders: Mapping[str, Sequence[Path]]) -> list[Arm]:
    """The runs of each arm, by their recorded seeds.

    Raises:
        InputError: all at once: folders that hold no finished run, seeds that are missing or used
            twice in an arm, and test data that is not the same in all runs.
    """
    arms, problems, tested = [], [], {}
    for name, members in folders.items():
        runs: dict[int, Run] = {}
        for folder in members:
            try:
                run = read_run(folder)
            except ValueError as error:
                problems.append(str(error))
                continue
            seed = run.fact("seed")
            if not run.metrics:
                problems.append(f"{folder} has no metrics: its run is not finished")
            if not isinstance(seed, int) or seed in runs:
                problems.append(f"{folder}: seed {seed!r} is no number or twice in arm {name}")
                continue
            runs[seed] = run
            tested[str(folder)] = run.fact("datasets", "test", "fingerprint")
        arms.append(Arm(name, runs))
    if len(set(tested.values())) > 1:
        listed = ", ".join(f"{folder}: {mark}" for folder, mark in tested.items())
        problems.append(f"the runs were not tested on the same data: {listed}")
    if problems:
        raise InputError("\n".join(problems))
    return arms


def compare(arms: Sequence[Arm]) -> str:
    """A Markdown table: AP of each arm and its difference to the first arm, paired by seed."""
    titles = ["", "seeds"]
    for title in TASKS.values():
        titles += [title, "of each seed", "difference to the first"]
    rows = []
    for arm in arms:
        row = [arm.name, ", ".join(map(str, sorted(arm.runs)))]
        for task in TASKS:
            values = arm.values(task)
            row.append(estimate(list(values.values())).said() if values else "not recorded")
            row.append(", ".join(f"{values[seed]:.2f}" for seed in sorted(values)))
            found = paired_difference(values, arms[0].values(task)) if arm is not arms[0] else None
            row.append(found.said(sign="+") if found else "")
        rows.append(row)
    return markdown_table(titles, rows) + "\n"


def curves(arms: Sequence[Arm], name: str = "total_loss") -> str:
    """The mean over seeds of a quantity of ``metrics.json`` by iteration: an SVG file's text.

    Raises:
        InputError: if no run recorded it.
    """
    series = []
    for index, arm in enumerate(arms):
        by_iteration: dict[float, list[float]] = {}
        for run in arm.runs.values():
            for iteration, value in run.history.get(name, []):
                by_iteration.setdefault(iteration, []).append(value)
        points = [(i, sum(v) / len(v)) for i, v in sorted(by_iteration.items())]
        if points:
            series.append(Series(RunName(index, arm.name), downsample(points)[0]))
    if not series:
        recorded = sorted({key for arm in arms for run in arm.runs.values() for key in run.history})
        raise InputError(
            f"no run has {name!r} in its metrics.json; recorded: {', '.join(recorded) or 'nothing'}"
        )
    return chart_svg(Chart(f"{name}, the mean over seeds", series), standalone=True)
