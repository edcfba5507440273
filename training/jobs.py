"""Run command lines of this project side by side, with a progress bar for each."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from backbones.errors import InputError
from training.progress import progress


class Stoppable(Protocol):
    """What ends a process, of ``subprocess.Popen``."""

    def terminate(self) -> None: ...
    def wait(self) -> int: ...


@dataclass
class Job:
    """A command and the run that it makes.

    Args:
        title: what its progress bar says.
        command: program and arguments.
        run: the output folder, whose ``metrics.json`` tells the progress; what the command prints
            goes to ``<run>.log`` beside it.
        steps: of the whole run.
    """

    title: str
    command: list[str]
    run: Path
    steps: int

    @property
    def log(self) -> Path:
        return self.run.with_name(self.run.name + ".log")


def usable_cores() -> int:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_of_cores(at_once: int) -> dict[str, str]:
    """The environment variable that gives one of several processes its part of the cores."""
    return {"OMP_NUM_THREADS": str(max(1, usable_cores() // at_once))}


def end_all(processes: Iterable[Stoppable]) -> None:
    """End what still runs and wait for it; SIGTERM makes the tools write a checkpoint first."""
    processes = list(processes)
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def run_jobs(jobs: Sequence[Job], cwd: Path) -> None:
    """Run the jobs at the same time, each with its share of the cores; one after another if there
    are fewer cores than jobs.

    Raises:
        InputError: if one fails, with the end of its log.
    """
    if usable_cores() < len(jobs):
        for job in jobs:
            run_jobs([job], cwd)
        return
    environment = {**os.environ, **share_of_cores(len(jobs))}
    running = [(job, _start(job, cwd, environment), _bar(job, i)) for i, job in enumerate(jobs)]
    try:
        while any(process.poll() is None for _, process, _ in running):
            for job, _, bar in running:
                bar.update(finished_steps(job.run) - bar.n)
            time.sleep(0.5)
    finally:
        end_all(process for _, process, _ in running)
        for job, _, bar in running:
            bar.update(finished_steps(job.run) - bar.n)
            bar.close()
    for job, process, _ in running:
        if process.returncode:
            end = "\n".join(job.log.read_text(encoding="utf-8").splitlines()[-15:])
            raise InputError(f"{job.title} failed with exit code {process.returncode}:\n{end}")


def finished_steps(run: Path) -> int:
    """The last step that a run's ``metrics.json`` tells of."""
    metrics = run / "metrics.json"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    return int(json.loads(lines[-1])["iteration"]) if lines else 0


def _start(job: Job, cwd: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            job.command, cwd=cwd, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def _bar(job: Job, place: int) -> tqdm:
    return progress(
        text=f"{job.title:<24}", total=job.steps, unit="step", position=place, leave=True
    )
