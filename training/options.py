"""The options of a training, each written once: its default, its help, its flag.

:class:`TrainingOptions` is what pretraining, classification and the loop itself share; a training
adds its own fields. A field that is made by :func:`option` is a flag of the command line,
see :class:`training.command_line.parsers.OptionsParser`.
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
    """A field of options that is a flag of the command line, too.

    Args:
        text: the flag's help.
        value: the field's default; it is required without one.
        settings: ``add_argument``'s, where they do not follow from the field's type and default.
    """
    return field(default=value, metadata={"help": text, "settings": settings})


# What a resumed run may change without learning anything else.
FREE_ON_RESUME = (
    "output_dir", "max_steps", "workers", "accumulate", "precision", "device", "kernels",
    "log_every", "checkpoint_every", "keep_checkpoints", "trackers",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What every training has; the fields' help says what they are.

    Args:
        device: "cpu", "cuda" or "mps" (Apple's GPU); None for the best there is.
        trackers: accelerate's names of experiment trackers.
    """

    output_dir: str | Path = option("the run's folder", type=str)
    batch_size: int = option("images per step, over all processes and micro-batches", 64)
    max_steps: int | None = option("end after so many steps, and schedule for them", None)
    clip_norm: float | None = option("largest global gradient norm", None)
    precision: Literal["no", "bf16", "fp16"] = option("no: float32; else mixed", "no")
    workers: int = option("loader processes of each training process", 2)
    accumulate: int = option("micro-batches per step", 1)
    seed: int = option("for weights, data order, augmentation, masks and mixing", 0)
    device: str | None = option("default: a GPU, if there is one", None, choices=list(DEVICES))
    log_every: int = option(
        "steps between two lines of metrics.json, which are means over these steps", 20
    )
    checkpoint_every: int = option(
        "steps between two checkpoints; the last step writes one, too", 500
    )
    keep_checkpoints: int = option("number of the newest to keep", 2)
    trackers: tuple[str, ...] = ("tensorboard",)


@dataclass(frozen=True, kw_only=True)
class LoopOptions(TrainingOptions):
    """How the loop trains.

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


LIMITS: dict[str, Callable[[float], bool]] = {  # of numbers, by their words
    "at least 0": lambda value: value >= 0,
    "at least 1": lambda value: value >= 1,
    "positive": lambda value: value > 0,
    "in [0, 1]": lambda value: 0 <= value <= 1,
    "in [0, 1)": lambda value: 0 <= value < 1,
    "in (0, 1]": lambda value: 0 < value <= 1,
}


def out_of_limits(options: Any, limits: Mapping[str, Sequence[str]]) -> list[str]:
    """What lies out of its limits, in words; None is within all.

    Args:
        limits: keys of ``LIMITS``, each with the names of the options that it is for.
    """
    return [
        f"{name} is {value}; it must be {words}"
        for words, names in limits.items()
        for name in names
        if (value := getattr(options, name)) is not None and not LIMITS[words](value)
    ]


def not_finite(values: Mapping[str, Any]) -> list[str]:
    """What is NaN or infinite among numbers and tuples of numbers, in words."""
    return [
        f"{name} is {value}; it must be a finite number"
        for name, value in values.items()
        for number in (value if isinstance(value, tuple) else (value,))
        if isinstance(number, float) and not math.isfinite(number)
    ]


def training_problems(options: TrainingOptions, further_counts: Sequence[str] = ()) -> list[str]:
    """What is wrong with a training's options, in words.

    Args:
        further_counts: other fields of it that must be at least 1 (or None).
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
            problems.append("precision fp16 needs a GPU of NVIDIA's; elsewhere use bf16 or no")
    except InputError as error:
        problems.append(str(error))
    return problems + tracker_problems(options.trackers)
