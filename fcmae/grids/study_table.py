"""``study.csv``: one line per run, with all numbers of the page about its start and labels.

So every number of the page's sentences, tables and charts stands in this file.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcmae.grids.study import Study
from fcmae.grids.study_plan import Arm
from fcmae.grids.study_runs import pretraining_folder
from fcmae.grids.verdicts import Verdict
from training.records.intervals import Estimate, estimate
from training.records.metrics import read_history


@dataclass(frozen=True)
class Cost:
    """Time and energy of a start: its pretraining, and the mean of its trainings; None: unknown."""

    steps: int
    hours: float
    minutes: float | None
    pretraining_kilojoules: float | None
    kilojoules: float | None


@dataclass(frozen=True)
class Rows:
    """The content of the table; the page uses it too."""

    # titles, cells: of ``study.csv``
    titles: list[str]
    cells: list[list[Any]]
    labelled: dict[int | None, int]  # number of labelled images by label size
    # by start and label size, of those that have runs
    groups: dict[tuple[str, int | None], Estimate]
    costs: dict[str, Cost]  # by start


def study_rows(study: Study) -> Rows:
    """Everything that a study has found so far."""
    options, results = study.options, study.results
    labelled = {s: len(study.split.pool) if s is None else s for s in options.labels}
    groups = {
        key: estimate([r.value for r in results if (r.arm, r.labels) == key])
        for key in {(r.arm, r.labels) for r in results}
    }
    costs = {arm.name: _cost(study, arm) for arm in options.arms}
    answers = study.answers()
    others = list(dict.fromkeys(question.against for question in answers))
    rates = [f"{rate:g}" for rate in options.of_task.rates]
    losses = {run.folder: loss_by_iteration(Path(run.folder)) for run in results}
    iterations = sorted({step for found in losses.values() for step in found})
    mean_losses = {
        (key, step): statistics.fmean(values)
        for key in groups
        for step in iterations
        if (values := [losses[r.folder][step] for r in results
                       if (r.arm, r.labels) == key and step in losses[r.folder]])
    }  # fmt: skip
    titles = ["arm", "labels", "seed", "rate", *options.of_task.metrics, "train seconds", "folder",
              "joules", "labelled images", "mean", "spread", "mean from", "mean to", "runs",
              "FCMAE steps", "FCMAE hours", "FCMAE kJ", "minutes per training",
              "kJ per training"]  # fmt: skip
    for other in others:
        titles += [f"difference to {other}", f"low against {other}", f"high against {other}",
                   f"pairs against {other}", f"answer against {other}"]  # fmt: skip
    titles += [f"tried at {rate}" for rate in rates]
    titles += [f"loss at {step}" for step in iterations]
    titles += [f"mean loss at {step}" for step in iterations]
    cells: list[list[Any]] = []
    for r in results:
        group, cost = groups[r.arm, r.labels], costs[r.arm]
        row: list[Any] = [
            *(r.arm, "all" if r.labels is None else r.labels, r.seed, r.rate, r.value, r.other),
            *(r.seconds, r.folder, r.joules, labelled[r.labels]),
            *(group.mean, group.deviation, group.low, group.high, group.runs),
            *(cost.steps, cost.hours, cost.pretraining_kilojoules, cost.minutes, cost.kilojoules),
        ]
        for other in others:
            row += _answer({(q.arm, q.size): v for q, v in answers.items() if q.against == other}
                           .get((r.arm, r.labels)))  # fmt: skip
        row += [study.state.get("tried", {}).get(r.arm, {}).get(rate) for rate in rates]
        row += [losses[r.folder].get(step) for step in iterations]
        row += [mean_losses.get(((r.arm, r.labels), step)) for step in iterations]
        cells.append(row)
    return Rows(titles, cells, labelled, groups, costs)


def _answer(found: Verdict | None) -> list[Any]:
    if found is None:
        return [None] * 5
    return [found.mean, found.low, found.high, found.pairs, found.answer]


def _cost(study: Study, arm: Arm) -> Cost:
    runs = [r for r in study.results if r.arm == arm.name]
    seconds = [r.seconds for r in runs if r.seconds]
    joules = [r.joules for r in runs if r.joules is not None]
    steps, hours, pretraining = 0, 0.0, None
    if folder := pretraining_folder(study.options, arm):
        steps = study.state.get("pretraining_steps", 0)
        hours = steps * study.state.get("measured", {}).get("pretraining_step", 0.0) / 3600
        used = study.joules(folder)
        pretraining = None if used is None else used / 1e3
    elif study.energy.readable:
        pretraining = 0.0
    return Cost(
        steps,
        hours,
        statistics.fmean(seconds) / 60 if seconds else None,
        pretraining,
        statistics.fmean(joules) / 1e3 if joules else None,
    )


def loss_by_iteration(folder: Path) -> dict[int, float]:
    """A run's total loss, by its ``metrics.json``."""
    return dict(read_history(folder / "metrics.json")[0].get("total_loss", []))
