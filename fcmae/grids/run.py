"""Run a grid: every stage of every row and seed by the project's command lines, once.

A run's folder is ``OUT/STAGE/ROW_seed_N``; beside it lie its arguments (``.yaml``) and its output
(``.log``). Finished runs are skipped, interrupted ones continue from their last checkpoint, and
rows with the same pretraining share it. Several runs may be active at once; a run starts when the
pretraining that it needs has ended.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml

from backbones.errors import InputError, counted
from backbones.whole_files import write_text
from fcmae.grids.grid import BY_CONFIG, STAGES, Grid, Row, file_name
from fcmae.grids.table import Results, write_tables
from training.command_line.commands import shown_command
from training.command_line.jobs import Running, run_side_by_side, share_of_cores, start_process
from training.guards.run_folder import held
from training.progress import progress
from training.records.metrics import read_history

logger = logging.getLogger(__name__)

TOOLS = {
    "pretrain": "pretrain_fcmae",
    "classify": "finetune_classifier",
    "detect": "train_net",
    "segment": "train_segmentation",
}
FINISHED = {
    "pretrain": "encoder.safetensors",
    "classify": "metrics_summary.json",
    "detect": "inference/metrics_summary.json",
    "segment": "inference/metrics_summary.json",
}


# starts a command, its output appended to a file, with further environment variables
StartCommand = Callable[[Sequence[str], Path, Mapping[str, str]], Running]


@dataclass(frozen=True)
class GridRun:
    """One run of one tool."""

    stage: str  # a key of ``TOOLS``
    folder: Path  # the run's
    arguments: Mapping[str, Any]  # of the tool, all but the folder
    init: Path | None = None  # the folder of the pretraining that it starts from

    @property
    def finished(self) -> bool:
        return (self.folder / FINISHED[self.stage]).is_file()

    def command(self, tools: Path, launcher: Sequence[str]) -> list[str]:
        """The command line; ``--resume`` starts from the beginning in an empty folder."""
        start = [*(launcher or [sys.executable]), str(tools / f"{TOOLS[self.stage]}.py")]
        if self.stage not in BY_CONFIG:
            init = ["--init", str(self.init / FINISHED["pretrain"])] if self.init else []
            return [*start, *_flags(self.arguments), *init, "--output-dir", str(self.folder),
                    "--resume"]  # fmt: skip
        keys = dict(self.arguments)
        command = [*start, "--config-file", str(keys.pop("config-file")), "--resume"]
        keys |= {"OUTPUT_DIR": str(self.folder)}
        if self.init:
            keys["MODEL.CONVNEXT.WEIGHTS"] = str(self.init / FINISHED["pretrain"])
        return [*command, *(str(item) for pair in keys.items() for item in pair)]


def _flags(arguments: Mapping[str, Any]) -> list[str]:
    flags = []
    for name, value in arguments.items():
        if value is not False:
            values = value if isinstance(value, list) else [] if value is True else [value]
            flags += [f"--{name}", *map(str, values)]
    return flags


def plan(grid: Grid, output_dir: Path) -> dict[tuple[str, int], list[GridRun]]:
    """The jobs of each (row, seed), in their order; seed by seed, so that a table fills evenly."""
    pretrainings: dict[str, Path] = {}
    return {
        (row.name, seed): _jobs(row, seed, output_dir, pretrainings)
        for seed in grid.seeds
        for row in grid.rows
    }


def _jobs(row: Row, seed: int, output_dir: Path, pretrainings: dict[str, Path]) -> list[GridRun]:
    jobs: list[GridRun] = []
    init = None
    for stage in STAGES:
        if stage not in row.stages:
            continue
        folder = output_dir / stage / f"{file_name(row.name)}_seed_{seed}"
        arguments = {key: _of_seed(value, seed) for key, value in row.stages[stage].items()}
        arguments["SEED" if stage in BY_CONFIG else "seed"] = seed
        if stage == "pretrain":
            folder = init = pretrainings.setdefault(json.dumps(arguments, sort_keys=True), folder)
        jobs.append(GridRun(stage, folder, arguments, init if stage != "pretrain" else None))
    return jobs


def _of_seed(value: Any, seed: int) -> Any:
    """The value with this seed's number in place of ``{seed}``."""
    if isinstance(value, list):
        return [_of_seed(item, seed) for item in value]
    return value.replace("{seed}", str(seed)) if isinstance(value, str) else value


def shares(at_once: int, whole_machine: bool = False) -> list[dict[str, str]]:
    """Environment variables for each of several runs at once: its part of the machine.

    Args:
        at_once: how many they are. Each gets its part of the cores (where OMP_NUM_THREADS is not
            set) and one of the visible GPUs, in turn; a run alone gets all of them.
        whole_machine: runs have a launcher of their own; the machine is not divided.
    """
    if at_once == 1 or whole_machine:
        return [{} for _ in range(at_once)]
    cores = {} if "OMP_NUM_THREADS" in os.environ else share_of_cores(at_once)
    found = ",".join(map(str, range(torch.cuda.device_count())))
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", found).split(",") if gpu]
    return [
        cores | ({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})
        for number in range(at_once)
    ]


def run_grid(
    grid: Grid,
    output_dir: Path,
    tools: Path,
    rows: Sequence[str] = (),
    at_once: int = 1,
    start_command: StartCommand | None = None,
) -> Path:
    """Run what is not finished, and write the table after every run.

    Args:
        tools: the folder of the command lines.
        rows: run these alone; all if none is named.
        at_once: how many runs there may be at a time, see :func:`shares`.
        start_command: starts a job; by default as a process of its own.

    Returns:
        The path of ``table.md``. Beside it: ``table.csv`` and ``runs.csv``.

    Raises:
        InputError: for a row that does not exist, a run in the folder that had other arguments,
            and, when all else is done, with every run that failed.
    """
    names = [row.name for row in grid.rows]
    if unknown := [name for name in rows if name not in names]:
        raise InputError(f"no row is named {', '.join(unknown)}; the rows are {', '.join(names)}")
    if at_once < 1:
        raise InputError(f"{counted(at_once, 'run')} at once; give at least 1")
    jobs = plan(grid, output_dir)
    chosen = {key: value for key, value in jobs.items() if not rows or key[0] in rows}
    _refuse_other_arguments(chosen)
    waiting = {job.folder: job for steps in chosen.values() for job in steps if not job.finished}
    failures: list[str] = []
    bar = progress(text="grid", total=len(waiting), unit="run", leave=True)

    def start(job: GridRun, share: Mapping[str, str]) -> Running:
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        arguments = yaml.safe_dump(dict(job.arguments), sort_keys=False)
        write_text(_beside(job.folder, ".yaml"), arguments)
        command = job.command(tools, grid.launcher)
        logger.info("%s", shown_command(command))
        return (start_command or start_process)(command, _beside(job.folder, ".log"), share)

    def ended(job: GridRun, code: int) -> bool:
        if code := code or (0 if job.finished else 1):
            failures.append(f"{job.folder}: exit code {code}, see {job.folder}.log")
            logger.error("failed: %s", failures[-1])
        bar.update()
        write_tables(grid, _results(jobs), output_dir)
        return bool(code)

    with held(output_dir):
        write_tables(grid, _results(jobs), output_dir)
        run_side_by_side(
            waiting,
            start,
            ended,
            shares(at_once, whole_machine=bool(grid.launcher)),
            needs=lambda job: job.init,
        )
    bar.close()
    if failures:
        raise InputError("\n  ".join([f"{counted(len(failures), 'run')} failed:", *failures]))
    return output_dir / "table.md"


def _beside(folder: Path, suffix: str) -> Path:
    return folder.parent / (folder.name + suffix)


def _refuse_other_arguments(jobs: Mapping[tuple[str, int], Sequence[GridRun]]) -> None:
    problems = []
    for job in (job for steps in jobs.values() for job in steps):
        file = _beside(job.folder, ".yaml")
        stored = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
        if stored is not None and stored != dict(job.arguments):
            keys = sorted(stored.keys() | job.arguments.keys())
            problems += [
                f"{job.folder}: {key} was {stored.get(key)!r}, is {job.arguments.get(key)!r}"
                for key in keys
                if stored.get(key) != job.arguments.get(key)
            ]
    if problems:
        text = "runs in the folder had other arguments; name another --output-dir, or remove them:"
        raise InputError("\n  ".join([text, *problems]))


def _results(jobs: Mapping[tuple[str, int], Sequence[GridRun]]) -> Results:
    """By row and metric, the value of each seed."""
    results: Results = {}
    for (name, seed), steps in jobs.items():
        for metric, value in (pair for job in steps if job.finished for pair in _measured(job)):
            results.setdefault(name, {}).setdefault(metric, {})[seed] = value
    return results


def _measured(job: GridRun) -> list[tuple[str, float]]:
    if job.stage == "pretrain":
        windows = [(0, 0.0), *read_history(job.folder / "metrics.json")[0].get("time", [])]
        # of each window, its steps and the mean seconds of one
        seconds = [(b - a) * time for (a, _), (b, time) in pairwise(windows)]
        return [("pretraining hours", sum(seconds) / 3600)]
    summary = json.loads((job.folder / FINISHED[job.stage]).read_text(encoding="utf-8"))
    if job.stage == "classify":
        names = {"top-1": "trained", "top-1 (averaged)": "averaged"}
        return [(m, summary[name]["top1"]) for m, name in names.items() if name in summary]
    if job.stage == "segment":
        names = {"mIoU": "mIoU", "pixel accuracy": "pACC"}
        return [(m, summary["sem_seg"][name]) for m, name in names.items()]
    names = {"box AP": "bbox", "mask AP": "segm"}
    found = [(m, summary[name]["AP"]) for m, name in names.items() if name in summary]
    averaged = job.folder / "inference_EMA/metrics_summary.json"
    if averaged.is_file():
        summary = json.loads(averaged.read_text(encoding="utf-8"))
        found += [
            (f"{m} (averaged)", summary[name]["AP"]) for m, name in names.items() if name in summary
        ]
    return found
