"""One run of the training loop: its state, what it writes, and what it loads to continue."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from backbones.errors import InputError, counted
from training.data import BatchOrder, Samples, build_loader, seed_generators, to_device
from training.guards.checkpoints import (
    CheckpointError,
    checkpoint_step,
    list_checkpoints,
    newest_checkpoint,
    write_checkpoint,
)
from training.guards.endings import Endings
from training.guards.processes import all_finite, largest_of_processes, mean_over_processes
from training.guards.run_folder import checkpoint_bytes, refuse_existing_run, refuse_full_disk
from training.guards.workers import StallWatch
from training.options import LoopOptions
from training.records.metrics import MetricsFile, Window, log_line
from training.records.trackers import PROJECT, LoggedValues, log_pictures
from training.schedule import LrFactor

logger = logging.getLogger(__name__)

EMA_FILE = "ema.safetensors"
ComputeLosses = Callable[[nn.Module, Any], dict[str, Tensor]]
AfterStep = Callable[[int, nn.Module], LoggedValues | None]


class NonFiniteLossError(InputError):
    """Loss or weights became NaN or infinite; the message names step, files and last checkpoint."""


class TrainingRun:
    """The state of one run; the arguments are those of :func:`training.loop.train`."""

    def __init__(
        self,
        accelerator: Accelerator,
        options: LoopOptions,
        samples: Samples,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_factor: LrFactor,
        compute_losses: ComputeLosses,
        ema: ModelEmaV3 | None,
    ) -> None:
        self.accelerator, self.options, self.samples = accelerator, options, samples
        self.lr_factor, self.compute_losses = lr_factor, compute_losses
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        # accelerate would leave autocast in the model's forward; an evaluation between steps would
        # then differ from one of the same weights read from a file. So steps set autocast
        # themselves.
        self.bare_model = accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.ema = ema.to(accelerator.device) if ema is not None else None
        self.window = Window(options.batch_size, options.max_steps)
        self.seconds = 0.0  # training time of earlier sessions
        self.done = self.saved = 0  # steps of the weights, and of the newest checkpoint
        self.is_sharded = False  # by FSDP; then all processes write checkpoints together
        self.is_changing = False  # True while the optimizer changes the weights

    def restore(self) -> int:
        """Load the newest complete checkpoint and cut the logs back to it.

        Returns:
            Its number of steps; 0 if there is none or a new run starts.
        """
        options, step = self.options, 0
        if not options.resume:
            refuse_existing_run(options.output_dir, ["metrics.json"])
        elif (checkpoint := newest_checkpoint(options.output_dir)) is None:
            logger.info("nothing to resume in %s: starting at step 0", options.output_dir)
        else:
            self._load(checkpoint)
            self.done = self.saved = step = checkpoint_step(checkpoint)
            logger.info("resumed from %s at step %d", checkpoint, step)
        if self.accelerator.is_main_process:
            options.output_dir.mkdir(parents=True, exist_ok=True)
            self.metrics_file = MetricsFile(options.output_dir / "metrics.json", step)
            self.seconds = self.metrics_file.seconds
            size = checkpoint_bytes(self.bare_model, self.ema and self.ema.module)
            refuse_full_disk(options.output_dir, size, options.keep_checkpoints)
        if options.trackers:
            # remove the lines of steps after the last checkpoint
            purge = {"tensorboard": {"purge_step": step + 1}} if options.resume else {}
            config = None if step else dict(options.tracked_config)
            self.accelerator.init_trackers(PROJECT, config=config, init_kwargs=purge)
        self.began = time.perf_counter()
        return step

    def _load(self, checkpoint: Path) -> None:
        try:
            self.accelerator.load_state(str(checkpoint))
        except FileNotFoundError as error:  # its own files are all there: see newest_checkpoint
            raise CheckpointError(
                f"{checkpoint} lacks {Path(error.filename).name}: a run with FSDP cannot be "
                "resumed without it, nor the other way round; resume it as it was started"
            ) from error
        if self.ema is not None:
            if not (checkpoint / EMA_FILE).is_file():
                raise CheckpointError(
                    f"{checkpoint} has no averaged weights ({EMA_FILE}): the run was started "
                    "without EMA; resume it without, or start another run"
                )
            device = str(self.accelerator.device)
            load_model(self.ema.module, checkpoint / EMA_FILE, device=device)

    def batches(self, start: int, collate: Callable[[list[Any]], Any]) -> Iterator:
        """The micro-batches of this process, from a step on."""
        options = self.options
        order = BatchOrder(
            len(self.samples),
            options.batch_size // options.accumulate,
            options.seed,
            first_batch=start * options.accumulate,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            repeats=getattr(self.samples, "repeats", None),
        )
        pin_memory = self.accelerator.device.type == "cuda"
        return iter(build_loader(self.samples, order, collate, options.workers, pin_memory))

    def step(self, step: int, batches: Iterator, endings: Endings, stalls: StallWatch) -> None:
        """One optimizer step; a signal may interrupt the wait for its data."""
        accelerator, options, window = self.accelerator, self.options, self.window
        began = time.perf_counter()
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * self.lr_factor(step)
        for micro in range(options.accumulate):
            waited = time.perf_counter()
            with endings.interruptible(), stalls.waiting():
                keys, batch = next(batches)
            batch = to_device(batch, accelerator.device)
            window.add(data_time=time.perf_counter() - waited)
            seed_generators(options.seed, 2, step, micro, accelerator.process_index)
            last = micro == options.accumulate - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    losses = self.compute_losses(self.model, batch)
                values = {name: loss.item() for name, loss in losses.items()}
                if not math.isfinite(sum(values.values())):
                    _raise_non_finite(step, values, keys, self.samples, options)
                total = torch.stack(list(losses.values())).sum()
                accelerator.backward(total / options.accumulate)
            window.add(**values, total_loss=sum(values.values()))
        if options.clip_norm is not None:
            accelerator.clip_grad_norm_(self.model.parameters(), options.clip_norm)
        self.is_changing = True
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.bare_model, step + 1)
        self.done, self.is_changing = step + 1, False
        window.add(time=time.perf_counter() - began)

    def report(self, done: int, steps: tqdm, measured: dict[str, float]) -> None:
        """Write the means since the last line to ``metrics.json``, trackers, log and bar."""
        means = mean_over_processes(self.accelerator, self.window.means())
        entry = self.window.entry(done, self.optimizer.param_groups[-1]["lr"], means) | measured
        entry["train_seconds"] = self.seconds + time.perf_counter() - self.began
        self.record(entry)
        if self.accelerator.is_main_process:
            steps.set_postfix(loss=f"{entry['total_loss']:.4f}")
            if steps.disable:
                logger.info("%s", log_line(entry, self.options.max_steps))

    def record(self, entry: dict[str, Any]) -> None:
        """Write a line of ``metrics.json``, and send it to the trackers."""
        if self.accelerator.is_main_process:
            self.metrics_file.write(entry)
        values = {name: value for name, value in entry.items() if name != "iteration"}
        self.accelerator.log(values, step=entry["iteration"])

    def call(self, after_step: AfterStep, done: int, endings: Endings) -> None:
        """Call ``after_step``, which a signal may interrupt, and send its result to trackers."""
        with endings.interruptible():
            shown = after_step(done, self.bare_model) or {}
        pictures = {n: value for n, value in shown.items() if isinstance(value, np.ndarray)}
        entry: dict[str, Any] = {
            "iteration": done,
            **{n: v for n, v in shown.items() if n not in pictures},
        }
        is_known = self.accelerator.is_main_process and self.metrics_file.holds(entry)
        if len(entry) > 1 and not is_known:
            self.record(entry)
        if pictures:
            log_pictures(self.accelerator.trackers, pictures, done)
        self.model.train()

    def lost(self) -> str:
        """A message: what is lost if the process ends now."""
        newest = list_checkpoints(self.options.output_dir)
        where = f"after {newest[-1]}" if newest else "of the whole run"
        return f"{counted(self.done - self.saved, 'step')} {where}"

    def finish(self, steps: tqdm, alone: bool = False) -> None:
        """Write the last metrics and weights, if they are not written yet.

        Args:
            alone: whether other processes do not take part, because a signal ends this one.
        """
        if "time" in self.window.values and (not alone or self.accelerator.num_processes == 1):
            self.report(self.done, steps, {})
        is_whole = self.accelerator.is_main_process and not (self.is_sharded or self.is_changing)
        if self.done != self.saved and (is_whole or not alone):
            self.save(self.done, alone)

    def save(self, done: int, alone: bool = False) -> None:
        """Write a checkpoint, if the weights are finite."""
        spoilt = [int(not all_finite(self.bare_model))]
        if any(spoilt if alone else largest_of_processes(self.accelerator, spoilt)):
            raise NonFiniteLossError(
                f"the weights are not finite after step {done - 1}, though its loss was; "
                f"{_remedy(self.options)}"
            )

        def write(folder: Path) -> None:
            self.accelerator.save_state(str(folder))
            if self.ema is not None and self.accelerator.is_main_process:
                save_model(self.ema.module, str(folder / EMA_FILE))

        write_checkpoint(
            self.options.output_dir,
            done,
            write,
            self.options.keep_checkpoints,
            self.accelerator.is_main_process,
            (lambda: None) if alone else self.accelerator.wait_for_everyone,
        )
        self.saved = done


def _raise_non_finite(
    step: int, values: dict[str, float], keys: list, samples: Samples, options: LoopOptions
) -> None:
    describe = getattr(samples, "describe", lambda index: f"sample {index}")
    raise NonFiniteLossError(
        f"the loss is not finite at step {step}: {values}; batch: "
        f"{', '.join(describe(key.sample) for key in keys)}; {_remedy(options)}"
    )


def _remedy(options: LoopOptions) -> str:
    checkpoints = list_checkpoints(options.output_dir)
    return (
        f"last good checkpoint: {checkpoints[-1] if checkpoints else 'none'}. "
        "Lower the learning rate, or clip gradients"
    )
