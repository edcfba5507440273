"""The options of the training loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch

from backbones.errors import InputError
from training.trackers import tracker_problems


@dataclass(frozen=True)
class LoopOptions:
    """How a run trains.

    Args:
        output_dir: where ``metrics.json``, ``checkpoints/`` and ``tensorboard/`` go.
        max_steps: optimizer steps of the whole run, those before a resume included.
        batch_size: images of one optimizer step, over all processes and micro-batches.
        workers: loader processes for each training process.
        precision: "no" (float32), "bf16" or "fp16" autocast.
        log_every: steps between two lines of ``metrics.json``, which hold means over that window.
        checkpoint_every: steps between two checkpoints; the last step always writes one.
        keep_checkpoints: how many are kept.
        clip_norm: the largest global norm of the gradients.
        accumulate: micro-batches of one optimizer step.
        seed: of weights' noise (drop path), data order and augmentation.
        resume: continue from the newest complete checkpoint, where there is one.
        device: "cpu" to keep off an accelerator that is there; None for the best there is.
        trackers: accelerate's names of experiment trackers.
        tracked_config: flat values that the trackers record as the run's configuration.
    """

    output_dir: Path
    max_steps: int
    batch_size: int
    workers: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    clip_norm: float | None = None
    accumulate: int = 1
    seed: int = 0
    resume: bool = False
    device: str | None = None
    trackers: tuple[str, ...] = ("tensorboard",)
    tracked_config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if problems := loop_problems(self):
            raise InputError("; ".join(problems))


def loop_options(options: Any, steps: int, resume: bool) -> LoopOptions:
    """The loop's part of a training's options, whose fields of the same names it takes.

    Args:
        options: a dataclass with all fields of :class:`LoopOptions` but ``resume`` and
            ``tracked_config``.
        steps: optimizer steps of the whole run.
        resume: continue from the newest complete checkpoint, where there is one.
    """
    own = {f.name for f in fields(LoopOptions)} - {"resume", "tracked_config"}
    values = {name: getattr(options, name) for name in own}
    values |= {"output_dir": Path(options.output_dir), "max_steps": steps}
    flat = {k: v for k, v in asdict(options).items() if isinstance(v, (int, float, str))}
    return LoopOptions(**values, resume=resume, tracked_config=flat)


def loop_problems(options: Any, further_counts: Sequence[str] = ()) -> list[str]:
    """What is wrong with options that have fields of :class:`LoopOptions`, in words.

    Args:
        options: of the loop, or of a training that passes them on.
        further_counts: other fields of it that must be at least 1 (or None).
    """
    counts = ("max_steps", "batch_size", "log_every", "checkpoint_every", "accumulate")
    values = {name: getattr(options, name) for name in (*counts, *further_counts)}
    problems = [
        f"{name} is {value}; it must be at least 1"
        for name, value in values.items()
        if value is not None and value < 1
    ]
    if options.precision not in ("no", "bf16", "fp16"):
        problems.append(f"precision is {options.precision!r}; allowed: no, bf16, fp16")
    if options.precision == "fp16" and (options.device == "cpu" or not torch.cuda.is_available()):
        problems.append("precision fp16 needs a GPU; on a CPU use bf16 or no")
    return problems + tracker_problems(options.trackers)
