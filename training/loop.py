"""The training loop of pretraining, classification and the torchvision engine.

On ``accelerate``, which brings several processes, mixed precision and trackers. Batches are
*global*: the same steps see the same samples whatever the number of processes and accumulated
micro-batches. All randomness of a step derives from (seed, step), and of a sample from (seed,
epoch, index), so that a resumed run continues as if it had never stopped.

An exponential moving average (EMA) of the weights is an object that the caller makes, as it makes
the optimizer, and that the loop updates after each optimizer step, saves and restores::

    ema = ModelEmaV3(model, decay=0.9999, use_warmup=True)    # from timm.utils
    train(model, optimizer, ..., ema=ema)
    ema.module                                                # the model with averaged weights

Also within ``after_step``, ``ema.module`` is that model, on the training's device and in
evaluation mode. A checkpoint holds it as ``ema.safetensors`` beside ``model.safetensors``, under
the same names.
"""

from __future__ import annotations

import copy
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
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration
from safetensors.torch import load_model, save_model
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from backbones.errors import InputError
from training.data import BatchOrder, Samples, build_loader, seed_generators, to_device
from training.devices import find_device
from training.guards.checkpoints import (
    CheckpointError,
    checkpoint_step,
    list_checkpoints,
    newest_checkpoint,
    write_checkpoint,
)
from training.guards.endings import (
    CHECKPOINT,
    PATIENCE,
    EndedError,
    Endings,
    requeue,
    requeue_is_asked,
)
from training.guards.processes import (
    all_finite,
    check_joined,
    gather_weights,
    in_any_process,
    largest_of_processes,
    mean_over_processes,
    prepare_sharding,
    process_state,
)
from training.guards.run_folder import checkpoint_bytes, refuse_existing_run, refuse_full_disk
from training.guards.workers import StallWatch, hold_dead_workers_back, loader_problem
from training.options import LoopOptions
from training.progress import progress
from training.records.environment import device_name, warn_of_slow_bf16
from training.records.metrics import MetricsFile, Window, log_line
from training.records.trackers import PROJECT, LoggedValues, log_pictures
from training.schedule import LrFactor

logger = logging.getLogger(__name__)

EMA_FILE = "ema.safetensors"
ComputeLosses = Callable[[nn.Module, Any], dict[str, Tensor]]
AfterStep = Callable[[int, nn.Module], LoggedValues | None]


class NonFiniteLossError(InputError):
    """Loss or weights became NaN or infinite; the message names step, files, last checkpoint."""


def _make_accelerator(options: LoopOptions) -> Accelerator:
    device = find_device(options.device)
    # accelerate keeps the first Accelerator's settings for the whole process; a second training
    # in the same process (tests, notebooks) may have others.
    AcceleratorState._reset_state(reset_partial_state=device.type == "cpu")
    process_state(device)
    accelerator = Accelerator(
        mixed_precision=options.precision,
        # Without a GPU, too, accelerate must be told "cpu": else it leaves torchrun's processes
        # alone with each other's files.
        cpu=device.type == "cpu",
        log_with=list(options.trackers) or None,
        project_config=ProjectConfiguration(
            str(options.output_dir), logging_dir=str(options.output_dir / "tensorboard")
        ),
    )
    check_joined(accelerator.num_processes)
    return accelerator


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    lr_factor: LrFactor,
    samples: Samples,
    collate: Callable[[list[Any]], Any],
    compute_losses: ComputeLosses,
    options: LoopOptions,
    after_step: AfterStep | None = None,
    ema: ModelEmaV3 | None = None,
    measure: Callable[[int, nn.Module], dict[str, float]] | None = None,
    is_over: Callable[[], bool] = lambda: False,
) -> nn.Module:
    """Train ``model`` and return it, unwrapped (with FSDP: a whole copy on the CPU).

    Args:
        model: on any device; it is moved.
        optimizer: its groups' ``lr`` are the base rates that ``lr_factor`` multiplies.
        lr_factor: from the number of finished steps to a multiplier.
        samples: a map-style data set that draws its randomness from the global generators.
        collate: from a list of samples to a batch of tensors (nested in lists, tuples, dicts).
        compute_losses: from (model, batch on the device) to named losses, means over the batch;
            their sum is minimised.
        options: see :class:`LoopOptions`.
        after_step: called with (finished steps, unwrapped model) in every process, of which one
            should write files. What it returns goes to the trackers: pictures, and numbers, which
            are also a line of ``metrics.json``. With FSDP, all must run the model's forward as
            often. A resumed run calls it again for the step it resumes from.
        ema: made from ``model``; updated with the number of finished steps after each of them
            (its first update copies the weights), see this module's header.
        measure: called as ``after_step``, but before each line of ``metrics.json``, which what it
            returns joins: by name, the same in every process.
        is_over: asked before each step, in every process alike: True ends the training there, with
            a checkpoint, as if it had been the last.

    Raises:
        InputError: for an output folder that holds a run when not resuming, or a batch size that
            processes and micro-batches do not divide.
        NonFiniteLossError: when the loss, or a weight before a checkpoint, is not finite.
        CheckpointError: when a checkpoint cannot be written, or does not fit the training.
        EndedError: after SIGINT, SIGTERM or SIGHUP, with a checkpoint written; ends the process
            with 130, 143 or 129.
    """
    accelerator = _make_accelerator(options)
    shares = accelerator.num_processes * options.accumulate
    if options.batch_size % shares:
        raise InputError(
            f"batch size {options.batch_size} is not divisible by {accelerator.num_processes} "
            f"process(es) x {options.accumulate} accumulated micro-batch(es)"
        )
    whole_model = copy.deepcopy(model) if prepare_sharding(accelerator) else None
    if whole_model is not None and ema is not None:
        raise InputError("averaged weights (EMA) are whole in each process: train without FSDP")
    run = _Run(accelerator, options, samples, model, optimizer, lr_factor, compute_losses, ema)
    run.is_sharded = whole_model is not None
    start = run.restore()
    batches = run.batches(start, collate)
    logger.info(
        "training %d steps of %d images on %s, %d process(es)",
        options.max_steps - start,
        options.batch_size,
        device_name(accelerator.device),
        accelerator.num_processes,
    )
    if accelerator.is_main_process:
        warn_of_slow_bf16(options.precision, accelerator.device)
    steps = progress(
        text="training", total=options.max_steps, unit="step", initial=start, leave=True
    )
    run.model.train()
    # The first process, whose checkpoint is the whole training's, may leave between steps at once;
    # another one breaks the others' step, and leaves late. With FSDP all must write together.
    hold_dead_workers_back()
    patience = None if run.is_sharded else 0.0 if accelerator.is_main_process else PATIENCE
    endings = Endings(run.lost, patience)
    with steps, endings, StallWatch(lambda: getattr(batches, "_workers", ())) as stalls:
        try:
            if start and after_step is not None:  # the interruption may have come before its end
                run.call(after_step, start, endings)
            for done in range(start + 1, options.max_steps + 1):
                if is_over():
                    run.end_early(steps)
                    break
                run.step(done - 1, batches, endings, stalls)
                steps.update()
                last = done == options.max_steps
                ending, asked = largest_of_processes(
                    accelerator, [int(endings.received or 0), int(endings.checkpoint_asked)]
                )
                endings.checkpoint_asked = False
                if last or done % options.log_every == 0 or ending:
                    run.report(done, steps, measure(done, run.bare_model) if measure else {})
                    run.model.train()
                if last or done % options.checkpoint_every == 0 or ending or asked:
                    run.save(done)
                if asked and requeue_is_asked():
                    if accelerator.is_main_process:
                        requeue()
                    ending = int(CHECKPOINT or 0)
                if ending:
                    raise EndedError(ending)
                if after_step is not None:
                    run.call(after_step, done, endings)
        except EndedError as error:
            run.save_alone(steps)
            written = "checkpoint written, --resume goes on"
            said = written if run.saved == run.done > 0 else f"lost: {run.lost()}"
            logger.warning("%s at step %d: %s", error, run.done, said)
            raise
        except (RuntimeError, OSError, EOFError) as error:
            problem = stalls.problem or loader_problem(error, options.workers > 0)
            left = endings.received and accelerator.num_processes > 1  # another one, by the signal
            if problem is None and not left:
                raise
            run.save_alone(steps)
            if endings.received:  # which reached the workers, too
                logger.warning("the signal broke this step: %s", str(error).partition("\n")[0])
                raise EndedError(endings.received) from None
            raise InputError(
                f"{problem}. The checkpoint of step {run.saved} is written: go on with --resume"
                if run.saved
                else problem
            ) from error
    for tracker in accelerator.trackers:  # not end_training: it dissolves the process group
        tracker.finish()
    if whole_model is not None:
        gather_weights(run.bare_model, whole_model)
        return whole_model
    return run.bare_model


class _Run:
    """What the steps of one run share; the arguments are those of :func:`train`."""

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
        # accelerate would leave autocast in the model's forward, and who evaluates it between
        # steps would get another result than of the same weights in a file; steps have their own.
        self.bare_model = accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.ema = ema.to(accelerator.device) if ema is not None else None
        self.window = Window(options.batch_size, options.max_steps)
        self.seconds = 0.0  # of this training's earlier sessions
        self.done = self.saved = 0  # steps behind the weights, and behind the newest checkpoint
        self.is_sharded = False  # by FSDP, whose parts all processes write together
        self.is_changing = False  # while the optimizer is at it

    def restore(self) -> int:
        """Load the newest complete checkpoint and cut the logs back to it.

        Returns:
            The number of steps behind it; 0 where there is none or a new run starts.
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
            # steps that an earlier session logged beyond its last checkpoint are taken back
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
                f"{checkpoint} lacks {Path(error.filename).name}: it is a run with FSDP that goes "
                "on without, or the other way round; resume it as it was started"
            ) from error
        if self.ema is not None:
            if not (checkpoint / EMA_FILE).is_file():
                raise CheckpointError(
                    f"{checkpoint} has no averaged weights ({EMA_FILE}): the run was started "
                    "without EMA; continue it so, or start another"
                )
            device = str(self.accelerator.device)
            load_model(self.ema.module, checkpoint / EMA_FILE, device=device)

    def batches(self, start: int, collate: Callable[[list[Any]], Any]) -> Iterator:
        """This process's micro-batches from a step on."""
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
        """Tell the window's means to ``metrics.json``, the trackers and whoever looks on."""
        means = mean_over_processes(self.accelerator, self.window.means())
        entry = self.window.entry(done, self.optimizer.param_groups[-1]["lr"], means) | measured
        entry["train_seconds"] = self.seconds + time.perf_counter() - self.began
        self.record(entry)
        if self.accelerator.is_main_process:
            steps.set_postfix(loss=f"{entry['total_loss']:.4f}")
            if steps.disable:
                logger.info("%s", log_line(entry, self.options.max_steps))

    def record(self, entry: dict[str, Any]) -> None:
        """Write a line of ``metrics.json``, and tell it to the trackers."""
        if self.accelerator.is_main_process:
            self.metrics_file.write(entry)
        values = {name: value for name, value in entry.items() if name != "iteration"}
        self.accelerator.log(values, step=entry["iteration"])

    def call(self, after_step: AfterStep, done: int, endings: Endings) -> None:
        """Let the caller act, until a signal comes, and show what it returns."""
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

    def end_early(self, steps: tqdm) -> None:
        """Write the metrics and the weights so far, if they are not; all processes do."""
        if "time" in self.window.values:
            self.report(self.done, steps, {})
        if self.done != self.saved:
            self.save(self.done)

    def lost(self) -> str:
        """What would be lost if the process ended now."""
        newest = list_checkpoints(self.options.output_dir)
        where = f"after {newest[-1]}" if newest else "of the whole run"
        return f"{self.done - self.saved} steps {where}"

    def save_alone(self, steps: tqdm) -> None:
        """Write the weights and the metrics so far, if they are not, without other processes."""
        if self.accelerator.num_processes == 1 and "time" in self.window.values:
            self.report(self.done, steps, {})
        can_write = self.accelerator.is_main_process and not self.is_sharded
        if self.done != self.saved and can_write and not self.is_changing:
            self.save(self.done, alone=True)

    def save(self, done: int, alone: bool = False) -> None:
        """Write a checkpoint, unless the last step spoilt the weights."""
        spoilt = not all_finite(self.bare_model)
        if spoilt if alone else in_any_process(self.accelerator, spoilt):
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
