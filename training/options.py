"""The options of a training. Each is written once, with its default and the help of its flag.

:class:`TrainingOptions` has the options that pretraining, classification and the loop share; a
training adds its own fields. A field made by :func:`option` becomes a flag of the command line
(:class:`training.command_line.parsers.OptionsParser`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from backbones.errors import InputError
from training.devices import DEVICES, find_device
from training.records.trackers import tracker_problems

LARGEST_SEED = 2**63 - 1  # torch's generators take no larger one


def option(text: str, value: Any = MISSING, /, **settings: Any) -> Any:
    """A dataclass field that also becomes a flag of the command line.

    Args:
        text: the flag's help.
        value: the field's default; without one the flag is required.
        settings: arguments of ``add_argument`` that the field's type and default do not give.
    """
    return field(default=value, metadata={"help": text, "settings": settings})


# Options that a resumed run may change, because they do not change what it learns.
FREE_ON_RESUME = (
    "output_dir", "max_steps", "workers", "accumulate", "precision", "device", "kernels",
    "log_every", "checkpoint_every", "keep_checkpoints", "trackers",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The options of every training; the help of each field says what it is.

    Args:
        device: "cpu", "cuda" or "mps" (Apple's GPU); None for the best there is.
        trackers: accelerate's names of experiment trackers.
    """

    output_dir: str | Path = option("the run's folder, where everything is written", type=str)
    batch_size: int = option("images per step, of all processes and micro-batches together", 64)
    max_steps: int | None = option(
        "end after this many steps, whatever the epochs; the schedule ends there, too", None
    )
    clip_norm: float | None = option("limit of the norm of all gradients; default: none", None)
    precision: Literal["no", "bf16", "fp16"] = option(
        "no: float32; bf16, fp16: mixed precision", "no"
    )
    workers: int = option(
        "processes that load images, for each training process; 0: it loads them itself", 2
    )
    accumulate: int = option(
        "split each step into this many parts, one after the other, to save memory", 1
    )
    seed: int = option(
        "seed of new weights, order of the images, augmentation, masks and mixing", 0
    )
    device: str | None = option(
        "where to compute; default: a GPU, if there is one", None, choices=list(DEVICES)
    )
    log_every: int = option(
        "steps between two lines of metrics.json; a line has the means over these steps", 20
    )
    checkpoint_every: int = option(
        "steps between two checkpoints; the last step writes one, too", 500
    )
    keep_checkpoints: int = option("how many of the newest checkpoints to keep", 2)
    trackers: tuple[str, ...] = ("tensorboard",)


@dataclass(frozen=True, kw_only=True)
class LoopOptions(TrainingOptions):
    """The options of the training loop.

    Args:
        max_steps: optimizer steps of the whole run, those before a resume included.
        resume: continue from the newest complete checkpoint, where there is one.
        tracked_config: flat values that the trackers record as the run's configuration.
    """

    output_dir: Path
    max_steps: int
    batch_size: int
    workers: int = 0
    resume: bool = False
    tracked_config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if problems := training_problems(self):
            raise InputError("; ".join(problems))


def loop_options(options: TrainingOptions, steps: int, resume: bool) -> LoopOptions:
    """The loop's part of a training's options.

    Args:
        steps: optimizer steps of the whole run.
        resume: continue from the newest complete checkpoint, where there is one.
    """
    values = {f.name: getattr(options, f.name) for f in fields(TrainingOptions)}
    values |= {"output_dir": Path(options.output_dir), "max_steps": steps}
    flat = {k: v for k, v in asdict(options).items() if isinstance(v, (int, float, str))}
    return LoopOptions(**values, resume=resume, tracked_config=flat)


LIMITS: dict[str, Callable[[float], bool]] = {  # the words of a message: the test of a number
    "at least 0": lambda value: value >= 0,
    "at least 1": lambda value: value >= 1,
    "positive": lambda value: value > 0,
    "in [0, 1]": lambda value: 0 <= value <= 1,
    "in [0, 1)": lambda value: 0 <= value < 1,
    "in (0, 1]": lambda value: 0 < value <= 1,
}


def out_of_limits(options: Any, limits: Mapping[str, Sequence[str]]) -> list[str]:
    """A message for each option that is beyond its limits; None is always allowed.

    Args:
        limits: for keys of ``LIMITS``, the names of the options that they apply to.
    """
    return [
        f"{name} is {value}; it must be {words}"
        for words, names in limits.items()
        for name in names
        if (value := getattr(options, name)) is not None and not LIMITS[words](value)
    ]


def not_finite(values: Mapping[str, Any]) -> list[str]:
    """A message for each number, alone or in a tuple, that is NaN or infinite."""
    return [
        f"{name} is {value}; it must be a finite number"
        for name, value in values.items()
        for number in (value if isinstance(value, tuple) else (value,))
        if isinstance(number, float) and not math.isfinite(number)
    ]


def training_problems(options: TrainingOptions, further_counts: Sequence[str] = ()) -> list[str]:
    """A message for each option of a training that is wrong.

    Args:
        further_counts: other fields that must be at least 1 (or None).
    """
    counts = (
        "max_steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints",
        "accumulate", *further_counts,
    )  # fmt: skip
    limits = {"at least 1": counts, "positive": ["clip_norm"], "at least 0": ["workers"]}
    problems = out_of_limits(options, limits)
    problems += not_finite({each.name: getattr(options, each.name) for each in fields(options)})
    problems += [
        f"{name} is empty; give a name, or leave it out"
        for name in ("output_dir", "data", "init")
        if getattr(options, name, None) == ""
    ]
    if not 0 <= options.seed <= LARGEST_SEED:
        problems.append(f"seed is {options.seed}; it must be from 0 to {LARGEST_SEED}")
    if options.precision not in ("no", "bf16", "fp16"):
        problems.append(f"precision is {options.precision!r}; allowed: no, bf16, fp16")
    try:
        on_gpu = find_device(options.device).type == "cuda"
        if options.precision == "fp16" and not on_gpu:
            problems.append("precision fp16 needs an NVIDIA GPU; elsewhere use bf16 or no")
    except InputError as error:
        problems.append(str(error))
    return problems + tracker_problems(options.trackers)
