"""Run command lines of this project side by side, with a progress bar for each."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from tqdm import tqdm

from backbones.errors import InputError
from training.command_line.commands import shown_command
from training.guards.endings import PARENT
from training.progress import progress

POLL_SECONDS = 0.2
END_WITHIN = 40.0  # seconds; the tools themselves end within 30
Share = Mapping[str, str]  # environment variables that limit a run to its part of the machine
T = TypeVar("T")


class Running(Protocol):
    """The part of ``subprocess.Popen`` that is used here."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def wait(self) -> int: ...


@dataclass
class Job:
    """A command line and the run that it starts.

    Args:
        title: what its progress bar says.
        command: program and arguments.
        run: the output folder. Its ``metrics.json`` shows the progress; the command's output goes
            to ``<run>.log`` beside it.
        steps: number of steps of the whole run.
    """

    title: str
    command: list[str]
    run: Path
    steps: int

    @property
    def log(self) -> Path:
        return self.run.with_name(self.run.name + ".log")


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_of_cores(at_once: int) -> dict[str, str]:
    """The environment variable that limits one of several processes to its part of the cores."""
    return {"OMP_NUM_THREADS": str(max(1, usable_cores() // at_once))}


def run_side_by_side(
    waiting: dict[Path, T],
    start: Callable[[T, Share], Running],
    ended: Callable[[T, int], bool],
    shares: Sequence[Share],
    needs: Callable[[T], Path | None] = lambda _: None,
    look: Callable[[], None] = lambda: None,
) -> None:
    """Run jobs in their order, as many at once as there are shares of the machine.

    If this process is interrupted or ended, it ends the running jobs first.

    Args:
        waiting: jobs by their folders; empty afterwards.
        start: starts a job.
        ended: called with a job and its exit code; returns whether it failed.
        shares: parts of the machine, each for one job at a time.
        needs: for a job, the folder of the job that must end before it. A job whose needed job
            failed is left out.
        look: called now and then.
    """
    free = list(shares)
    running: dict[Path, tuple[T, Share, Running]] = {}
    try:
        while waiting or running:
            for folder, job in list(waiting.items()):
                if free and needs(job) not in waiting and needs(job) not in running:
                    share = free.pop(0)
                    running[folder] = (waiting.pop(folder), share, start(job, share))
            look()
            codes = {folder: process.poll() for folder, (_, _, process) in running.items()}
            for folder, code in codes.items():
                if code is None:
                    continue
                job, share, _ = running.pop(folder)
                free.append(share)
                if ended(job, code):
                    for other in [f for f, later in waiting.items() if needs(later) == folder]:
                        del waiting[other]
            if all(code is None for code in codes.values()):
                time.sleep(POLL_SECONDS)
    finally:
        end_all(process for _, _, process in running.values())


def end_all(processes: Iterable[Running]) -> None:
    """End the running processes by SIGTERM, on which trainings write a checkpoint, and wait.

    Processes that run for 40 more seconds are killed; so are all at a second signal to this one.
    """
    processes = list(processes)

    def kill() -> None:
        for process in processes:
            if process.poll() is None:
                process.kill()

    for process in processes:
        process.terminate()
    insist = threading.Timer(END_WITHIN, kill)
    insist.daemon = True
    insist.start()
    try:
        for process in processes:
            process.wait()
    except BaseException:
        kill()
        raise
    finally:
        insist.cancel()


def run_jobs(jobs: Sequence[Job], cwd: Path) -> None:
    """Run the jobs at the same time, each with its share of the cores; one after another if there
    are fewer cores than jobs.

    Raises:
        InputError: if a job fails, with the end of its log; the others are ended.
    """
    at_once = len(jobs) if usable_cores() >= len(jobs) else 1
    bars = {job.run: _bar(job, place) for place, job in enumerate(jobs)}

    def start(job: Job, share: Share) -> Running:
        return start_process(job.command, job.log, share, cwd)

    def ended(job: Job, code: int) -> bool:
        if code:
            lines = job.log.read_text(encoding="utf-8", errors="replace").splitlines()
            end = "\n".join(line for line in lines[-15:] if not line.startswith("$ "))
            raise InputError(f"{job.title} failed with exit code {code}:\n{end}")
        return False

    def look() -> None:
        for run, bar in bars.items():
            bar.update(finished_steps(run) - bar.n)

    try:
        run_side_by_side(
            {job.run: job for job in jobs}, start, ended, [share_of_cores(at_once)] * at_once,
            look=look,
        )  # fmt: skip
    finally:
        look()
        for bar in bars.values():
            bar.close()


def start_process(
    command: Sequence[str], log: Path, share: Share, cwd: Path | None = None
) -> Running:
    """Start a process that ends when this one does; its output goes to the log file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"$ {shown_command(command)}\n")
        stream.flush()
        environment = {**os.environ, **share, PARENT: str(os.getpid())}
        return subprocess.Popen(
            command, cwd=cwd, stdout=stream, stderr=subprocess.STDOUT, env=environment
        )


def finished_steps(run: Path) -> int:
    """The last step in a run's ``metrics.json``; its last line may be half-written."""
    metrics = run / "metrics.json"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    for line in reversed(lines[-2:]):
        with suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["iteration"])
    return 0


def _bar(job: Job, place: int) -> tqdm:
    return progress(
        text=f"{job.title:<24}", total=job.steps, unit="step", position=place, leave=True
    )
