"""The training loop of pretraining, classification and the torchvision engine.

On ``accelerate``, which brings several processes, mixed precision, gradient accumulation and
trackers. Batches are *global*: the same steps see the same samples whatever the number of
processes and accumulated micro-batches. All randomness of a step derives from (seed, step), and
of a sample from (seed, epoch, index), so that a resumed run continues as if it had never stopped.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from training.checkpoints import (
    checkpoint_step,
    list_checkpoints,
    newest_checkpoint,
    refuse_existing_run,
    write_checkpoint,
)
from training.data import BatchOrder, Samples, build_loader, seed_generators, to_device
from training.environment import device_name, peak_memory_mb
from training.schedule import LrFactor

logger = logging.getLogger(__name__)

PROJECT = "convnextv2"  # its name in experiment trackers
ComputeLosses = Callable[[nn.Module, Any], dict[str, Tensor]]


class TerminatedError(SystemExit):
    """SIGTERM came: a checkpoint was written, and the process ends with the code 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class NonFiniteLossError(ValueError):
    """The loss became NaN or infinite; the message names step, files and last good checkpoint."""


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
        problems = [
            f"{name} is {getattr(self, name)}; it must be at least 1"
            for name in ("max_steps", "batch_size", "log_every", "checkpoint_every", "accumulate")
            if getattr(self, name) < 1
        ]
        if self.precision not in ("no", "bf16", "fp16"):
            problems.append(f"precision is {self.precision!r}; allowed: no, bf16, fp16")
        if self.precision == "fp16" and (self.device == "cpu" or not torch.cuda.is_available()):
            problems.append("precision fp16 needs a GPU; on a CPU use bf16 or no")
        if problems:
            raise ValueError("; ".join(problems))


class MetricsFile:
    """``metrics.json``: one JSON object a line, detectron2's key names."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        self.path = path
        kept = []
        if resumed_step and path.exists():
            kept = [
                line
                for line in path.read_text().splitlines()
                if json.loads(line)["iteration"] <= resumed_step
            ]
        path.write_text("".join(line + "\n" for line in kept))

    def write(self, entry: dict[str, float | int]) -> None:
        with self.path.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")


def _make_accelerator(options: LoopOptions) -> Accelerator:
    # accelerate keeps the first Accelerator's settings for the whole process; a second training
    # in the same process (tests, notebooks) may have others.
    AcceleratorState._reset_state(reset_partial_state=options.device == "cpu")
    return Accelerator(
        mixed_precision=options.precision,
        gradient_accumulation_steps=options.accumulate,
        cpu=options.device == "cpu",
        log_with=list(options.trackers) or None,
        project_config=ProjectConfiguration(
            str(options.output_dir), logging_dir=str(options.output_dir / "tensorboard")
        ),
    )


def _restore(accelerator: Accelerator, options: LoopOptions) -> int:
    """Load the newest complete checkpoint; the number of steps behind it, 0 without one."""
    if not options.resume:
        refuse_existing_run(options.output_dir)
        return 0
    checkpoint = newest_checkpoint(options.output_dir)
    if checkpoint is None:
        logger.info("nothing to resume in %s: starting at step 0", options.output_dir)
        return 0
    accelerator.load_state(str(checkpoint))
    step = checkpoint_step(checkpoint)
    logger.info("resumed from %s at step %d", checkpoint, step)
    return step


def _in_any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether any process has the flag: all must act at the same step."""
    if accelerator.num_processes == 1:
        return flag
    flags = torch.tensor(float(flag), device=accelerator.device)
    return bool(accelerator.reduce(flags, reduction="sum") > 0)


@contextmanager
def _terminations() -> Iterator[list[int]]:
    """Collect SIGTERM (a preempted job) for as long as the training can act on it."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    lr_factor: LrFactor,
    samples: Samples,
    collate: Callable[[list[Any]], Any],
    compute_losses: ComputeLosses,
    options: LoopOptions,
    after_step: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """Train ``model`` and return it (unwrapped).

    Args:
        model: on any device; it is moved.
        optimizer: its groups' ``lr`` are the base rates that ``lr_factor`` multiplies.
        lr_factor: from the number of finished steps to a multiplier.
        samples: a map-style data set that draws its randomness from the global generators.
        collate: from a list of samples to a batch of tensors (nested in lists, tuples, dicts).
        compute_losses: from (model, batch on the device) to named losses; their sum is minimised.
        options: see :class:`LoopOptions`.
        after_step: called on the main process with (finished steps, unwrapped model).

    Raises:
        ValueError: for an output folder that holds a run when not resuming, or a batch size that
            processes and micro-batches do not divide.
        NonFiniteLossError: when the loss is not finite.
        TerminatedError: after SIGTERM, with a checkpoint written; ends the process with 143.
    """
    accelerator = _make_accelerator(options)
    shares = accelerator.num_processes * options.accumulate
    if options.batch_size % shares:
        raise ValueError(
            f"batch size {options.batch_size} is not divisible by {accelerator.num_processes} "
            f"process(es) x {options.accumulate} accumulated micro-batch(es)"
        )
    base_lrs = [group["lr"] for group in optimizer.param_groups]
    model, optimizer = accelerator.prepare(model, optimizer)
    bare_model = accelerator.unwrap_model(model)
    start = _restore(accelerator, options)
    order = BatchOrder(
        len(samples),
        options.batch_size // options.accumulate,
        options.seed,
        first_batch=start * options.accumulate,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    pin_memory = accelerator.device.type == "cuda"
    batches = iter(build_loader(samples, order, collate, options.workers, pin_memory))
    if accelerator.is_main_process:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        metrics_file = MetricsFile(options.output_dir / "metrics.json", start)
    if options.trackers:
        accelerator.init_trackers(PROJECT, config=options.tracked_config)
    logger.info(
        "training %d steps of %d images on %s, %d process(es)",
        options.max_steps - start,
        options.batch_size,
        device_name(accelerator.device),
        accelerator.num_processes,
    )

    window: dict[str, list[float]] = defaultdict(list)
    progress = tqdm(
        total=options.max_steps,
        initial=start,
        unit="step",
        disable=not (sys.stderr.isatty() and accelerator.is_main_process),
    )
    model.train()
    with logging_redirect_tqdm(), progress, _terminations() as terminations:
        for step in range(start, options.max_steps):
            began = time.perf_counter()
            for group, base_lr in zip(optimizer.param_groups, base_lrs, strict=True):
                group["lr"] = base_lr * lr_factor(step)
            for micro in range(options.accumulate):
                waited = time.perf_counter()
                keys, batch = next(batches)
                batch = to_device(batch, accelerator.device)
                window["data_time"].append(time.perf_counter() - waited)
                seed_generators(options.seed, 2, step, micro, accelerator.process_index)
                with accelerator.accumulate(model):
                    with accelerator.autocast():
                        losses = compute_losses(model, batch)
                    total = torch.stack(list(losses.values())).sum()
                    values = {name: loss.item() for name, loss in losses.items()}
                    if not math.isfinite(sum(values.values())):
                        _raise_non_finite(step, values, keys, samples, options)
                    accelerator.backward(total)
                    if options.clip_norm is not None and accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), options.clip_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                for name, value in values.items():
                    window[name].append(value)
                window["total_loss"].append(sum(values.values()))
            window["time"].append(time.perf_counter() - began)

            done = step + 1
            progress.update()
            if done % options.log_every == 0 or done == options.max_steps:
                entry = _summarise(window, done, optimizer.param_groups[-1]["lr"], options)
                window.clear()
                if accelerator.is_main_process:
                    metrics_file.write(entry)
                    progress.set_postfix(loss=f"{entry['total_loss']:.4f}")
                    if progress.disable:
                        logger.info("%s", _log_line(entry, options.max_steps))
                accelerator.log({k: v for k, v in entry.items() if k != "iteration"}, step=done)
            stop = _in_any_process(accelerator, bool(terminations))
            if done % options.checkpoint_every == 0 or done == options.max_steps or stop:
                write_checkpoint(
                    options.output_dir,
                    done,
                    lambda folder: accelerator.save_state(str(folder)),
                    options.keep_checkpoints,
                    accelerator.is_main_process,
                    accelerator.wait_for_everyone,
                )
            if stop:
                logger.warning("terminated at step %d: checkpoint written, --resume goes on", done)
                raise TerminatedError
            if after_step is not None and accelerator.is_main_process:
                after_step(done, bare_model)
                model.train()
    for tracker in accelerator.trackers:  # not end_training: it dissolves the process group
        tracker.finish()
    return bare_model


def _summarise(
    window: dict[str, list[float]], done: int, lr: float, options: LoopOptions
) -> dict[str, float | int]:
    """A line of ``metrics.json``: means over the window, seconds and MB."""
    means = {name: sum(values) / len(values) for name, values in window.items()}
    data_time = sum(window["data_time"]) / len(window["time"])
    return {
        "iteration": done,
        **means,
        "data_time": data_time,
        "lr": lr,
        "images_per_second": options.batch_size / means["time"],
        "eta_seconds": (options.max_steps - done) * means["time"],
        "max_mem": peak_memory_mb(),
    }


def _log_line(entry: dict[str, float | int], max_steps: int) -> str:
    losses = "  ".join(f"{k} {v:.4f}" for k, v in entry.items() if "loss" in k)
    eta = time.strftime("%H:%M:%S", time.gmtime(entry["eta_seconds"]))
    return (
        f"step {entry['iteration']}/{max_steps}  {losses}  lr {entry['lr']:.2e}  "
        f"{entry['images_per_second']:.1f} images/s  data {entry['data_time']:.3f} s  "
        f"{entry['max_mem']:.0f} MB  eta {eta}"
    )


def _raise_non_finite(
    step: int, values: dict[str, float], keys: list, samples: Samples, options: LoopOptions
) -> None:
    describe = getattr(samples, "describe", lambda index: f"sample {index}")
    checkpoints = list_checkpoints(options.output_dir)
    raise NonFiniteLossError(
        f"the loss is not finite at step {step}: {values}; batch: "
        f"{', '.join(describe(key.sample) for key in keys)}; last good checkpoint: "
        f"{checkpoints[-1] if checkpoints else 'none'}. Lower the learning rate, or clip gradients"
    )
