"""The training loop of pretraining, classification and the torchvision engine.

It uses ``accelerate`` for several processes, mixed precision and trackers. Batches are *global*: a
step sees the same samples whatever the number of processes and accumulated micro-batches. The
random numbers of a step depend on (seed, step), those of a sample on (seed, epoch, index), so a
resumed run continues as if it had never stopped.

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
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration
from timm.utils import ModelEmaV3
from torch import nn

from backbones.errors import InputError, counted
from training.data import Samples
from training.devices import find_device
from training.guards.endings import (
    CHECKPOINT,
    PATIENCE,
    EndedError,
    Endings,
    requeue,
    requeue_is_asked,
)
from training.guards.processes import (
    check_joined,
    gather_weights,
    largest_of_processes,
    prepare_sharding,
    process_state,
)
from training.guards.workers import StallWatch, hold_dead_workers_back, loader_problem
from training.options import LoopOptions
from training.progress import progress
from training.records.environment import device_name, warn_of_slow_bf16
from training.records.trackers import PROJECT
from training.run_in_progress import AfterStep, ComputeLosses, NonFiniteLossError, TrainingRun
from training.schedule import LrFactor

__all__ = ["PROJECT", "NonFiniteLossError", "train"]

logger = logging.getLogger(__name__)


def _make_accelerator(options: LoopOptions) -> Accelerator:
    device = find_device(options.device)
    # accelerate keeps the first Accelerator's settings for the whole process; a second training
    # in the same process (tests, notebooks) may have others.
    AcceleratorState._reset_state(reset_partial_state=device.type == "cpu")
    process_state(device)
    accelerator = Accelerator(
        mixed_precision=options.precision,
        # accelerate must be told "cpu" even without a GPU; otherwise torchrun's processes do not
        # join and overwrite each other's files.
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
        collate: makes a batch of tensors (in lists, tuples, dicts) of a list of samples.
        compute_losses: called with (model, batch on the device); returns losses by name, means over
            the batch. Their sum is minimised.
        options: see :class:`LoopOptions`.
        after_step: called with (finished steps, unwrapped model) in every process; only one should
            write files. It returns pictures and numbers for the trackers; the numbers also become a
            line of ``metrics.json``. With FSDP, all processes must run the model's forward equally
            often. A resumed run calls it again for the step it resumes from.
        ema: made from ``model``; updated after each step (the first update copies the weights), see
            this module's header.
        measure: called like ``after_step``, but before each line of ``metrics.json``; the values
            that it returns, by name, are added to the line. They must be the same in every process.
        is_over: called before each step in every process; if True, the training ends there, with a
            checkpoint, as after its last step.

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
        raise InputError("averaged weights (EMA) do not work with FSDP: switch one of them off")
    run = TrainingRun(
        accelerator, options, samples, model, optimizer, lr_factor, compute_losses, ema
    )
    run.is_sharded = whole_model is not None
    start = run.restore()
    batches = run.batches(start, collate)
    logger.info(
        "training %s of %s on %s, %s",
        counted(options.max_steps - start, "step"),
        counted(options.batch_size, "image"),
        device_name(accelerator.device),
        counted(accelerator.num_processes, "process"),
    )
    if accelerator.is_main_process:
        warn_of_slow_bf16(options.precision, accelerator.device)
    steps = progress(
        text="training", total=options.max_steps, unit="step", initial=start, leave=True
    )
    run.model.train()
    # The first process, which writes the checkpoint, may leave between steps at once. Another one
    # would break the others' step, so it leaves late. With FSDP all must write together.
    hold_dead_workers_back()
    patience = None if run.is_sharded else 0.0 if accelerator.is_main_process else PATIENCE
    endings = Endings(run.lost, patience)
    with steps, endings, StallWatch(lambda: getattr(batches, "_workers", ())) as stalls:
        try:
            if start and after_step is not None:  # the interruption may have come before its end
                run.call(after_step, start, endings)
            for done in range(start + 1, options.max_steps + 1):
                if is_over():
                    run.finish(steps)
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
            run.finish(steps, alone=True)
            written = "checkpoint written, --resume continues"
            said = written if run.saved == run.done > 0 else f"lost: {run.lost()}"
            logger.warning("%s at step %d: %s", error, run.done, said)
            raise
        except (RuntimeError, OSError, EOFError) as error:
            problem = stalls.problem or loader_problem(error, options.workers > 0)
            left = endings.received and accelerator.num_processes > 1  # another one, by the signal
            if problem is None and not left:
                raise
            run.finish(steps, alone=True)
            if endings.received:  # which reached the workers, too
                logger.warning("the signal broke this step: %s", str(error).partition("\n")[0])
                raise EndedError(endings.received) from None
            raise InputError(
                f"{problem}. The checkpoint of step {run.saved} is written: continue with --resume"
                if run.saved
                else problem
            ) from error
    for tracker in accelerator.trackers:  # not end_training: it dissolves the process group
        tracker.finish()
    if whole_model is not None:
        gather_weights(run.bare_model, whole_model)
        return whole_model
    return run.bare_model
