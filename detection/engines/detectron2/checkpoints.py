"""Checkpoints of the detectron2 engine, and how a signal ends its training.

detectron2's checkpointer writes under the final name and reads any pickle; this one writes a
file whole or not at all, skips damaged ones, and never runs code from a file.

References:
    detectron2 and fvcore (Apache-2.0), ``fvcore/common/checkpoint.py``.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.utils import comm

from backbones.errors import InputError, counted
from backbones.weight_files import read_pickle, save_stream
from backbones.whole_files import REMEDIES, write_atomically, write_text
from training.guards.checkpoints import CheckpointError
from training.guards.endings import (
    CHECKPOINT,
    PATIENCE,
    EndedError,
    Endings,
    requeue,
    requeue_is_asked,
)
from training.guards.workers import StallWatch, hold_dead_workers_back, loader_problem

logger = logging.getLogger(__name__)

POINTER = "last_checkpoint"


class StrictCheckpointer(DetectionCheckpointer):
    """Resumes only the same detector, and runs no code that is in a pickle."""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write weights and states, whole or not at all, and point to them.

        Raises:
            CheckpointError: if it cannot be written; earlier ones are left as they are.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data |= {key: each.state_dict() for key, each in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        logger.info("writing checkpoint %s", path)
        try:
            write_atomically(path, partial(save_stream, data | kwargs))
            self.tag_last_checkpoint(path.name)
        except OSError as error:
            remedy = REMEDIES.get(error.errno or 0, "mend that")
            raise CheckpointError(
                f"the checkpoint {path} cannot be written: {error.strerror}. The last good one is "
                f"{self.get_checkpoint_file() or 'none'}; {remedy}, and continue with --resume"
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_text(Path(self.save_dir) / POINTER, last_filename_basename)

    def _load_file(self, f: str) -> dict[str, Any]:
        checkpoint = read_pickle(f)  # detectron2 unpickles .pkl and .pyth whatever they do
        if not isinstance(checkpoint, dict) or "model" not in checkpoint:
            raise InputError(f"{f} is no checkpoint to resume from: it holds no 'model'")
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        result = super()._load_model(checkpoint)
        if any((result.missing_keys, result.unexpected_keys, result.incorrect_shapes)):
            raise InputError(f"the checkpoint to resume from is of another detector: {result}")
        return result


def point_to_sound_checkpoint(output_dir: Path) -> bool:
    """Make ``last_checkpoint`` name the newest undamaged one; a warning names each damaged one.

    Returns:
        Whether there is one.

    Raises:
        CheckpointError: if there are checkpoints and all are damaged.
    """
    pointer = output_dir / POINTER
    earlier = sorted(output_dir.glob("model_[0-9]*.pth"), reverse=True)
    named = (
        pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.exists() else ""
    )
    final = [output_dir / named] if named and (output_dir / named).name == named else []
    found = list(dict.fromkeys([*final, *earlier]))
    for path in found:
        if (problem := _damage(path)) is None:
            if path.name != named and comm.is_main_process():
                write_text(pointer, path.name)
            return True
        logger.warning("checkpoint %s is damaged and passed over: %s", path, problem)
    if found:
        raise CheckpointError(f"every checkpoint in {output_dir} is damaged; remove all to restart")
    return False


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's file, by the sums that ``torch.save`` writes into it."""
    if path.suffix != ".pth":
        return None  # of the other engine, which reads it strictly
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except PermissionError:
        raise  # which is no damage
    except FileNotFoundError:
        return "it is missing"
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        return str(error)
    return f"{damaged} in it is not what was written" if damaged else None


class EndingHook(HookBase):
    """Writes a checkpoint when a signal asks for it, at the end of a step, in all processes.

    It is the last hook: the step, its averaged weights and its log lines are done by then.
    """

    def __init__(self, endings: Endings) -> None:
        self.endings = endings

    def after_step(self) -> None:
        own = [int(self.endings.received or 0), int(self.endings.checkpoint_asked)]
        ending, asked = _largest(own, self.trainer.cfg.MODEL.DEVICE)
        self.endings.checkpoint_asked = False
        if not (ending or asked):
            return
        save_step(self.trainer)
        comm.synchronize()
        if asked and requeue_is_asked():
            if comm.is_main_process():
                requeue()
            ending = int(CHECKPOINT or 0)
        if ending:
            raise EndedError(ending)


def _largest(values: list[int], device: str) -> list[int]:
    if comm.get_world_size() == 1:
        return values
    own = torch.tensor(values, device=device)
    torch.distributed.all_reduce(own, torch.distributed.ReduceOp.MAX)
    return [int(value) for value in own.tolist()]


def save_step(trainer: Any) -> None:
    """Write a checkpoint of the steps that are done, if there is none."""
    if trainer.done == trainer.start_iter or not comm.is_main_process():
        return
    name = f"model_{trainer.done - 1:07d}"
    if Path(trainer.checkpointer.get_checkpoint_file()).name != f"{name}.pth":
        trainer.iter = trainer.done - 1  # while it waits for data, it counts the next one
        trainer.checkpointer.save(name, iteration=trainer.done - 1)


@contextmanager
def ended_with_checkpoint(trainer: Any) -> Iterator[tuple[Endings, StallWatch]]:
    """Delay ending signals while a trainer trains, and write a checkpoint before it ends.

    Raises:
        EndedError: after a signal.
        InputError: for a loader worker that died or stood still.
    """

    def lost() -> str:
        newest = trainer.checkpointer.get_checkpoint_file()
        saved = os.path.basename(newest)[6:-4]
        steps = trainer.done - (int(saved) + 1 if saved.isdigit() else 0)
        return (
            f"{counted(steps, 'step')} after {newest}"
            if newest
            else f"{counted(steps, 'step')} of the whole run"
        )

    hold_dead_workers_back()
    endings = Endings(lost, patience=0.0 if comm.is_main_process() else PATIENCE)
    with endings, StallWatch(multiprocessing.active_children) as stalls:
        try:
            yield endings, stalls
        except EndedError as error:
            save_step(trainer)
            logger.warning("%s at step %d; --resume goes on", error, trainer.done)
            raise
        except (RuntimeError, OSError, EOFError) as error:
            problem = stalls.problem or loader_problem(
                error, waits=trainer.cfg.DATALOADER.NUM_WORKERS > 0
            )
            left = endings.received and comm.get_world_size() > 1  # another process, by the signal
            if problem is None and not left:
                raise
            save_step(trainer)
            if endings.received:  # which reached the workers, too
                logger.warning("the signal broke this step: %s", str(error).partition("\n")[0])
                raise EndedError(endings.received) from None
            raise InputError(f"{problem}. Then go on with --resume") from error
