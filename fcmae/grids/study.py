"""A study: which start is best on given images and labels, by how much, and how certain that is.

A start is what a training begins with: random weights, an encoder, a whole model. Arms are
trainings that differ only in their start. A wave is one run of every arm on the same label subset
with the same seed. Waves are run, the most informative first, until the time is over or every
question is answered (:mod:`fcmae.grids.verdicts`). Every run is a command line of the project with
its own folder, so that a study can be stopped and continued at any time.

The time is planned from a few measured steps (:mod:`fcmae.grids.study_plan`): first FCMAE
pretraining, then tuning of each arm's learning rate on images that are in no table, then waves.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backbones.errors import InputError
from backbones.whole_files import write_json
from fcmae.grids.run import GridRun, StartCommand, shares
from fcmae.grids.study_checks import STATE, begin_or_go_on
from fcmae.grids.study_labels import LabelSet, Split
from fcmae.grids.study_plan import Arm, Measured, Plan, StudyOptions, make_plan
from fcmae.grids.study_results import Result, StudyResults
from fcmae.grids.study_runs import pretraining_of, training_of
from images.statistics import Statistics
from training.command_line.jobs import Running, Share, run_side_by_side, start_process
from training.records.energy import EnergyShares
from training.records.metrics import read_history

__all__ = ["Arm", "Result", "Study", "StudyOptions", "run_study"]

logger = logging.getLogger(__name__)

TIMED_STEPS = 8  # of the runs that are timed


class Study(StudyResults):
    """One study in its folder; see this module's header.

    Args:
        labels, split: of ``options.train``.
        tools: the folder of the command lines.
        start: starts a run; by default as a process of its own.
        clock: seconds.
        energy: of this machine.
        find_statistics: measures the images; called once, when a study begins. See
            :attr:`statistics`.
    """

    def __init__(
        self,
        options: StudyOptions,
        labels: LabelSet,
        split: Split,
        tools: Path,
        start: StartCommand | None = None,
        clock: Callable[[], float] = time.monotonic,
        energy: EnergyShares | None = None,
        find_statistics: Callable[[], Statistics | None] = lambda: None,
    ) -> None:
        super().__init__(options)
        self.labels, self.split, self.tools = labels, split, tools
        self.start, self.clock = start or start_process, clock
        self.energy = EnergyShares() if energy is None else energy
        self.find_statistics = find_statistics
        self.folder = Path(options.output_dir)
        self.rates: dict[str, float] = {}
        self.state = begin_or_go_on(options)

    def save(self, **values: Any) -> None:
        self.state |= values
        write_json(self.folder / STATE, self.state, indent=1)

    # --- runs

    def training(self, arm: Arm, folder: Path, train: Path, rate: float, seed: int,
                 **others: Any) -> GridRun:  # fmt: skip
        """See :func:`fcmae.grids.study_runs.training_of`."""
        others["statistics"] = self.statistics
        return training_of(self.options, self.labels, arm, folder, train, rate, seed, **others)

    def pretraining(self, arm: Arm, steps: int, folder: Path | None = None) -> GridRun:
        """See :func:`fcmae.grids.study_runs.pretraining_of`."""
        return pretraining_of(self.options, arm, steps, folder, self.statistics)

    @property
    def statistics(self) -> Statistics | None:
        """Mean and deviation of what starts from random weights; None for the runs' default."""
        if not (found := self.state.get("statistics")):
            return None
        return Statistics(tuple(found["mean"]), tuple(found["std"]), found["origin"])

    def run(self, jobs: Sequence[GridRun]) -> None:
        """Run what is not finished, side by side.

        Raises:
            InputError: if one fails, with the end of its log.
        """
        failed: list[str] = []
        waiting = {job.folder: job for job in jobs if not job.finished}
        begun: set[Path] = set()

        def start(job: GridRun, share: Share) -> Running:
            job.folder.parent.mkdir(parents=True, exist_ok=True)
            self.energy.begin(job.folder)
            begun.add(job.folder)
            return self.start(job.command(self.tools, ()), log_of(job), share)

        def ended(job: GridRun, code: int) -> bool:
            self._count(job.folder)
            begun.discard(job.folder)
            if code or not job.finished:
                lines = log_of(job).read_text(encoding="utf-8", errors="replace").splitlines()
                failed.append("\n  ".join([f"{job.folder} failed:", *lines[-8:]]))
            return bool(code)

        at_once = max(1, min(self.options.at_once, len(waiting)))
        try:
            run_side_by_side(waiting, start, ended, shares(at_once), look=self.energy.update)
        finally:
            for folder in begun:  # what was interrupted has used some, too
                self._count(folder)
        if failed:
            raise InputError("\n".join(failed))

    def _count(self, folder: Path) -> None:
        """Add the energy that a run has used."""
        if (used := self.energy.end(folder)) is not None:
            key = folder.relative_to(self.folder).as_posix()
            self.state["joules"][key] = self.state["joules"].get(key, 0.0) + used
            self.save()

    def joules(self, folder: Path) -> float | None:
        """The energy that the run of a folder has used; None if unknown."""
        return self.state["joules"].get(folder.relative_to(self.folder).as_posix())

    # --- the study

    def measure(self) -> Measured:
        """Time a few steps of the pretraining and of a training, once, as many as will run at a
        time; starts of whole models are tried, so that one which does not load is told now."""
        if "measured" in self.state:
            return Measured(**self.state["measured"])
        folder, options = self.folder / "timing", self.options
        found = self.find_statistics()
        self.save(statistics=asdict(found) if found else None)
        step = 1.0
        if pretrained := [arm for arm in options.arms if arm.pretrained][: options.at_once]:
            jobs = [
                self.pretraining(arm, TIMED_STEPS, folder / f"pretrain_{arm.name}")
                for arm in pretrained
            ]
            self.run(jobs)
            step = sum(_step_seconds(job.folder) for job in jobs) / len(jobs)
        train = self.labels.write(self.split.tune_train, folder / "labels")
        rate = options.of_task.rates[1]

        def trained(arm: Arm, name: str) -> GridRun:
            return self.training(arm, folder / name, train, rate, 0, steps=TIMED_STEPS)

        jobs = [trained(options.arms[0], f"train_{number}") for number in range(options.at_once)]
        began = self.clock()
        self.run(jobs)
        whole = self.clock() - began
        self.run([trained(arm, f"train_{arm.name}") for arm in options.arms if arm.detector])
        iteration = sum(_step_seconds(job.folder) for job in jobs) / len(jobs)
        measured = Measured(step, iteration, max(0.0, whole - TIMED_STEPS * iteration))
        self.save(measured=asdict(measured))
        return measured

    def tune(self, plan: Plan) -> None:
        """Choose each arm's learning rate on images that no table uses."""
        if "rates" in self.state:
            self.rates = dict(self.state["rates"])
            return
        if len(plan.rates) == 1:
            self.rates = {arm.name: plan.rates[0] for arm in self.options.arms}
            self.save(rates=self.rates, tuned=False)
            return
        folder = self.folder / "rates"
        train = self.labels.write(self.split.tune_train, folder / "train")
        test = self.labels.write(self.split.tune_test, folder / "test")
        jobs = {
            (arm.name, rate): self.training(
                arm, folder / f"{arm.name}_{rate:g}", train, rate, 0, test=test
            )
            for arm in self.options.arms
            for rate in plan.rates
        }
        self.run(list(jobs.values()))
        found: dict[str, dict[float, float]] = {}
        for (name, rate), job in jobs.items():
            found.setdefault(name, {})[rate] = self.options.of_task.measured(job.folder)[0]
        self.rates = {
            name: max(by_rate, key=by_rate.__getitem__) for name, by_rate in found.items()
        }
        tried = {name: {f"{r:g}": ap for r, ap in rates.items()} for name, rates in found.items()}
        self.save(rates=self.rates, tuned=True, tried=tried)

    def run_folder(self, arm: Arm, size: int | None, seed: int) -> Path:
        return self.folder / "runs" / f"{arm.name}_{_name(size)}_seed_{seed}"

    def wave(self, size: int | None, seed: int) -> list[GridRun]:
        """Every arm on one label subset."""
        path = self.folder / "labels" / f"{_name(size)}_seed_{seed}"
        train = self.labels.write(self.split.subset(size, seed), path)
        return [
            self.training(arm, self.run_folder(arm, size, seed), train, self.rates[arm.name], seed)
            for arm in self.options.arms
        ]

    def collect(self) -> list[Result]:
        """Every finished run, wave by wave."""
        self.results, task = [], self.options.of_task
        for seed in range(self.options.max_seeds):
            for size in self.options.labels:
                for arm in self.options.arms:
                    folder = self.run_folder(arm, size, seed)
                    if task.is_finished(folder):
                        value, other, seconds = task.measured(folder)
                        self.results.append(
                            Result(
                                *(arm.name, size, seed, self.rates[arm.name], value, other),
                                *(seconds, str(folder), self.joules(folder)),
                            )
                        )
        return self.results


def _name(size: int | None) -> str:
    return "all" if size is None else str(size)


def log_of(job: GridRun) -> Path:
    return job.folder.with_name(job.folder.name + ".log")


def _step_seconds(folder: Path) -> float:
    """The mean seconds of a step, by ``metrics.json``."""
    return statistics.fmean(t for _, t in read_history(folder / "metrics.json")[0]["time"])


def run_study(study: Study, write: Callable[[Study], Path]) -> Path:
    """Run until the time is over or every question is answered, writing the page after each wave.

    Args:
        write: writes ``study.csv`` and the report, and returns the report's path.

    Raises:
        InputError: if the time is too little, or a run fails.
    """
    options = study.options
    spent, began = study.state["spent"], study.clock()

    def used() -> float:
        return spent + study.clock() - began

    try:
        measured = study.measure()
        plan = make_plan(options, measured)
        logger.info("%s", plan.said(options))
        steps = study.state.get("pretraining_steps", plan.pretraining_steps)  # as it was begun
        study.save(pretraining_steps=steps, plan=plan.said(options))
        study.run([study.pretraining(arm, steps) for arm in options.arms if arm.pretrained])
        study.tune(plan)
        study.collect()
        page = write(study)
        one = plan.seconds[2]
        while chosen := study.next_waves(options.waves_at_once):
            left, before = 3600 * options.hours - used(), used()
            if left < one:
                minutes = left / 60, one / 60
                logger.info("%.0f minutes are left, a wave takes %.1f: the end", *minutes)
                break
            for size, seed in chosen:
                logger.info("wave: %s labels, seed %d", _name(size), seed)
            study.run([job for size, seed in chosen for job in study.wave(size, seed)])
            study.collect()
            page = write(study)
            study.save(spent=used())
            one = max(plan.seconds[2], used() - before)
        else:
            logger.info("every question is answered, or has %d pairs", options.max_seeds)
    finally:  # however it ends, this time is spent
        study.save(spent=used())
    return page
