"""A planned config: each value with its reason, and the time and memory of its training.

Each task has its own rules (:mod:`detection.plan`, :mod:`segmentation.plan`). A few steps of the
planned training are timed, with its start, its evaluation and its report; the number of iterations
is computed from these times.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import statistics
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from backbones.errors import InputError, counted, printable
from training.cli import MEMORY as USED_UP
from training.command_line.jobs import usable_cores
from training.command_line.tasks import read_facts
from training.config_files import flatten
from training.devices import find_device

LINE = 100  # characters of a line of the written file
TIMED_STEPS = 14
WARM_STEPS = 4  # not timed: memory is allocated, and libraries choose kernels
ON_TIME = 0.96  # fraction of the minutes that is planned; the rest is reserve
LEAST_STEPS = 20
MEMORY = 0.8  # fraction of the machine's memory that a training may take


@dataclass(frozen=True)
class Choice:
    """A key of a config, its value and the reason."""

    key: str
    value: Any
    reason: str


@dataclass
class Plan:
    """A config that grows, value by value.

    Attributes:
        base: the name of its ``_BASE_`` in ``det_configs``.
        choices: by key; a later choice of the same key replaces the earlier one.
    """

    base: str
    choices: dict[str, Choice] = field(default_factory=dict)

    def set(self, key: str, value: Any, reason: str) -> None:
        self.choices[key] = Choice(key, value, printable(reason))

    def __getitem__(self, key: str) -> Any:
        return self.choices[key].value

    def text(self, header: Sequence[str], base: dict[str, Any]) -> str:
        """The YAML file: what differs from the base, each value with its reason.

        Args:
            header: lines of comment.
            base: dotted key -> the base's value. Choices that equal it become comments at the end.
        """
        chosen = sorted(self.choices.values(), key=lambda one: one.key.split("."))
        kept = [one for one in chosen if _plain(base.get(one.key)) == _plain(one.value)]
        lines = [part for line in header for part in _comment(line)]
        lines.append(f"_BASE_: {_yaml(self.base)}")
        section: list[str] = []
        for choice in (one for one in chosen if one not in kept):
            *path, leaf = choice.key.split(".")
            same = [one == other for one, other in zip(path, section, strict=False)]
            shared = (*same, False).index(False)
            lines += [f"{'  ' * depth}{path[depth]}:" for depth in range(shared, len(path))]
            section, indent = path, "  " * len(path)
            value = f"{indent}{leaf}: {_yaml(choice.value)}"
            if len(value) + len(choice.reason) + 4 <= LINE:
                lines.append(f"{value}  # {choice.reason}")
            else:
                lines += [*_comment(choice.reason, indent), value]
        for choice in kept:
            lines += _comment(f"of the base: {choice.key} {_yaml(choice.value)}: {choice.reason}")
        return "\n".join(lines) + "\n"

    def table(self) -> str:
        """The choices as lines for a terminal; a long reason has a line of its own."""
        rows = [(f"{one.key} {_yaml(one.value)}", one.reason) for one in self.choices.values()]
        width = min(max(len(head) for head, _ in rows), 48)
        under = " " * (width + 2)
        lines = []
        for head, reason in rows:
            if len(head) > width:
                lines.append(head)
                head = ""
            first = f"{head:<{width}}  "
            lines += _wrapped(reason, first, under) or [first]
        return "\n".join(line.rstrip() for line in lines)


def _comment(text: str, indent: str = "") -> list[str]:
    return _wrapped(text, f"{indent}# ", f"{indent}# ")


def _wrapped(text: str, first: str, others: str) -> list[str]:
    """Lines of ``LINE`` characters that break at spaces alone: paths and flags stay whole."""
    return textwrap.wrap(
        text,
        LINE,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str):  # quoted by YAML's rules, which are not JSON's beyond 16 bits
        return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=math.inf).strip()
    return f"{value!r}"


@dataclass(frozen=True)
class Timing:
    """Time and memory of a run on this machine.

    Attributes:
        step: seconds per training step.
        image: seconds per test image, for prediction and evaluation.
        fixed: seconds of everything else: start, checks, weights, the report.
        memory_mb: the largest memory of the process, in MB.
    """

    step: float
    image: float
    fixed: float
    memory_mb: float

    def iterations(self, minutes: float, images: int) -> int:
        """How many steps fit into ``minutes`` beside an evaluation of ``images`` images."""
        left = 60 * minutes * ON_TIME - self.fixed - images * self.image
        return int(left / self.step)

    def __str__(self) -> str:
        return (
            f"{self.fixed:.0f} s to start, check and report, {self.step:.2f} s per step, "
            f"{self.image:.2f} s per test image, {self.memory_mb:.0f} MB of memory"
        )

    def fits(self, machine: Machine) -> bool:
        """Whether the machine has the memory, and some to spare."""
        return self.memory_mb <= MEMORY * machine.memory_mb

    def checked_iterations(self, minutes: float, images: int, machine: Machine) -> int:
        """As :meth:`iterations`.

        Raises:
            InputError: if these are too few to learn anything, or the memory is too little.
        """
        if not self.fits(machine):
            raise InputError(
                f"even the smallest batch takes {self.memory_mb:.0f} MB, and this machine has "
                f"{machine.memory_mb:.0f}: cut the images, or use a machine with more memory"
            )
        steps = self.iterations(minutes, images)
        if steps < LEAST_STEPS:
            least = self.minutes(LEAST_STEPS, images) / ON_TIME
            raise InputError(
                f"--minutes {minutes:g} is too little here: start, checks, report and evaluation "
                f"of {counted(images, 'image')} take {self.minutes(0, images):.1f} minutes, and a "
                f"step {self.step:.2f} seconds; give at least {least:.1f}"
            )
        return steps

    def minutes(self, iterations: int, images: int) -> float:
        """The minutes that a run of ``iterations`` and ``images`` test images takes."""
        return (self.fixed + iterations * self.step + images * self.image) / 60


def timed(
    command: Sequence[str], images: int, steps: int = TIMED_STEPS, by_processor: bool = False
) -> Timing:
    """Run a training of a few steps in another process, and read the times of its parts.

    Args:
        command: trains and evaluates; ``OUTPUT_DIR`` and ``SOLVER.MAX_ITER`` are added.
        images: number of images that it evaluates on.
        by_processor: give processor time, which other work on the machine disturbs less. The whole
            run is measured so, and divided among the parts in proportion to their wall-clock time.

    Returns:
        The times; all are infinite if it ran out of memory.

    Raises:
        InputError: with the end of its output, if it fails.
    """
    with tempfile.TemporaryDirectory(prefix="plan_") as name:
        folder = Path(name) / "run"
        began, used = time.perf_counter(), children_seconds()
        done = subprocess.run(
            [*command, "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", str(steps)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        whole = time.perf_counter() - began
        scale = (children_seconds() - used) / whole if by_processor else 1.0
        said = done.stdout + done.stderr
        if done.returncode and USED_UP in said:
            return Timing(math.inf, math.inf, math.inf, math.inf)
        if done.returncode:
            end = "\n".join(said.splitlines()[-8:])
            raise InputError(f"the short training that is timed failed:\n{end}")
        lines = (folder / "metrics.json").read_text(encoding="utf-8").splitlines()
        entries = [entry for entry in map(json.loads, lines) if "time" in entry]
        facts = dict(flatten(read_facts(folder)))
    times = [entry["time"] for entry in entries]
    step = statistics.fmean(times[WARM_STEPS:] or times)
    predict = facts.get("predict_seconds", 0.0)
    trained = steps * statistics.fmean(times)
    return Timing(
        scale * step,
        scale * predict / images if images else 0.0,
        scale * max(whole - trained - predict, 0.0),
        float(facts.get("peak_memory_mb", 0.0)),
    )


def children_seconds() -> float:
    """Processor time, in seconds, of all ended processes that this one has started."""
    times = os.times()
    return times.children_user + times.children_system


@dataclass(frozen=True)
class Machine:
    """The machine that trains.

    Attributes:
        device: "cpu", "cuda" or "mps".
        cores: how many may be used.
        memory_mb: memory of the machine, or of its GPU, in MB.
        has_detectron2: whether that engine is installed.
    """

    device: str
    cores: int
    memory_mb: float
    has_detectron2: bool = False

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"

    def __str__(self) -> str:
        cores = f"{counted(self.cores, 'core')}"
        return f"{cores if not self.is_gpu else self.device}, {self.memory_mb / 2**10:.0f} GiB"


def this_machine(device: str | None = None) -> Machine:
    """The machine that this runs on.

    Args:
        device: "cpu", "cuda" or "mps"; None for a GPU if there is one.

    Raises:
        InputError: if there is no such GPU.
    """
    found = find_device(device).type
    if found == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory / 2**20
    else:
        memory = memory_mb()
    has_detectron2 = importlib.util.find_spec("detectron2") is not None
    return Machine(found, usable_cores(), memory, has_detectron2)


def memory_mb() -> float:
    """The machine's memory, or less where a container allows less."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else ""
    total = psutil.virtual_memory().total
    return min(total, int(text) if text.isdecimal() else total) / 2**20


def plan_loader(plan: Plan, machine: Machine) -> None:
    workers = min(8 if machine.is_gpu else 1, machine.cores - 1)
    why = f"of {counted(machine.cores, 'core')}, beside the training's own"
    plan.set("DATALOADER.NUM_WORKERS", workers, why)
