"""Guards a run's folder: one process at a time, no run overwritten, room for the checkpoints."""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import nn

from backbones.errors import InputError, counted
from backbones.whole_files import remove_unfinished
from training.cli import is_main_process
from training.guards.checkpoints import checkpoint_step, list_checkpoints

logger = logging.getLogger(__name__)

LOCK = ".lock"
# The files of a training, of every tool and engine.
RUN_FILES = (
    "config.yaml", "metrics.json", "metrics_summary.json", "run.json", "last_checkpoint",
    "checkpoints", "tensorboard", "events.out.tfevents.*", "inference", "reconstructions",
    "encoder.safetensors", "classifier*.safetensors", "model_*.pth", "model_final*.safetensors",
    "model_best*.safetensors", "validation.json", "report.html",
)  # fmt: skip
NO_LOCKS_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: set[Path] = set()


def refuse_existing_run(output_dir: Path, names: Sequence[str] = RUN_FILES) -> None:
    """Raise if this folder holds a file of a run, which a new run would overwrite.

    Args:
        names: patterns of the files to look for, besides checkpoints.

    Raises:
        InputError: with what was found.
    """
    if not is_main_process():
        return  # the first process may have started to write already
    if checkpoints := list_checkpoints(output_dir):
        found = f"newest: {checkpoints[-1].name}"
    elif files := sorted(p.name for name in names for p in output_dir.glob(name)):
        found = f"found: {', '.join(files)}"
    else:
        return
    raise InputError(
        f"{output_dir} holds a run already ({found}); "
        "continue it with --resume or choose another output folder"
    )


def refuse_fewer_steps(output_dir: Path, steps: int, done: int | None = None) -> None:
    """Raise if a resumed run has done more steps than now wanted.

    Args:
        steps: number of steps of the whole run.
        done: number of steps that are done; by default those of the newest checkpoint.

    Raises:
        InputError: in that case.
    """
    if done is None:
        checkpoints = list_checkpoints(output_dir)
        done = checkpoint_step(checkpoints[-1]) if checkpoints else 0
    if done > steps:
        raise InputError(
            f"{output_dir} holds a run of {counted(done, 'step')}, which cannot be continued to "
            f"{steps}: give {done} or more, or choose another output folder"
        )


@contextmanager
def held(output_dir: Path) -> Iterator[None]:
    """Keep other processes from writing to this folder. Of a training's processes the first locks.

    The operating system releases the lock however this process ends. Where a file system has no
    locks, the number in the lock file tells whether its process still runs.

    Raises:
        InputError: if another process holds it, with its number, host and start.
    """
    folder = Path(os.path.realpath(output_dir))
    if folder in _held or not is_main_process():
        yield
        return
    path, is_new = output_dir / LOCK, not output_dir.exists()
    descriptor = _lock(path)
    _held.add(folder)
    try:
        remove_unfinished(output_dir)  # left by a process that was killed
        yield
    finally:
        _held.discard(folder)
        with suppress(OSError):
            path.unlink()
            if is_new:
                output_dir.rmdir()  # a refused run leaves no empty folder
        os.close(descriptor)


def _lock(path: Path) -> int:
    """The open lock file, whose content names this process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            earlier = _holder(descriptor)
            if not _take(descriptor, earlier):
                raise InputError(_in_use(path, earlier))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the holder has removed the file: try again with a new one
    if earlier:
        logger.info(
            "%s: the lock of process %s, which has ended, is taken over", path, earlier["pid"]
        )
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_this_process()).encode(), 0)
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)
        raise OSError(error.errno or 0, error.strerror, str(path)) from error
    return descriptor


def _this_process() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
    }


def _holder(descriptor: int) -> dict[str, Any]:
    """The content of a lock file, read by its descriptor: closing a second one loses the lock."""
    with suppress(ValueError, OSError):
        found = json.loads(os.pread(descriptor, 2**16, 0))
        if isinstance(found, dict) and {"pid", "host", "since"} <= found.keys():
            return found
    return {}


def _take(descriptor: int, earlier: dict[str, Any]) -> bool:
    """Take the system's lock of the file; False if another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return not _still_runs(earlier)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS_HERE:
            return not _still_runs(earlier)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _still_runs(holder: dict[str, Any]) -> bool:
    """Whether the holder may still run. Only processes of this machine can be looked up."""
    if not holder or holder["host"] != socket.gethostname():
        return bool(holder)
    if os.name == "nt" or holder["pid"] == os.getpid():
        return holder["pid"] != os.getpid()
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _in_use(path: Path, holder: dict[str, Any]) -> str:
    who = (
        f"process {holder['pid']} on {holder['host']} since {holder['since']} "
        f"({holder.get('command', 'unknown')})"
        if holder
        else "another process"
    )
    return (
        f"{path.parent} is being written by {who}; wait for its end, or choose another output "
        f"folder. If no such process runs any more, remove {path}"
    )


def checkpoint_bytes(model: nn.Module, average: nn.Module | None = None) -> int:
    """Bytes of a checkpoint with AdamW: weights, two moments for each, and the average if any."""
    weights = sum(v.numel() * v.element_size() for v in model.state_dict().values())
    moments = sum(2 * p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return weights * (1 if average is None else 2) + moments


def refuse_full_disk(output_dir: Path, checkpoint: int, keep: int) -> None:
    """Raise if the checkpoints of a run will not fit on the disk.

    Args:
        checkpoint: bytes of one checkpoint.
        keep: how many are kept; one more exists while it is written.

    Raises:
        InputError: with both sizes.
    """
    place = Path(os.path.realpath(output_dir))
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    kept = [*output_dir.glob("checkpoints/step_*/*"), *output_dir.glob("model_*.pth")]
    there = sum(file.stat().st_size for file in kept if file.is_file())
    needed = (keep + 1) * checkpoint - there
    if free < needed:
        raise InputError(
            f"the disk of {output_dir} has {free / 2**20:,.0f} MB left, and {keep + 1} checkpoints "
            f"of this training need {needed / 2**20:,.0f} MB: make room, choose an output folder "
            "on another disk, or keep fewer checkpoints"
        )
