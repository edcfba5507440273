"""Checkpoints of a run; incomplete and damaged ones are skipped.

A checkpoint is a folder ``checkpoints/step_00000120``. It is written under another name and
renamed when it is complete, so a killed run leaves no incomplete one. Its ``state.json`` holds
the size and hash of every file, by which later damage is found.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from backbones.errors import InputError
from backbones.whole_files import REMEDIES, flush, system_error

logger = logging.getLogger(__name__)

STATE_FILE = "state.json"


class CheckpointError(InputError):
    """A checkpoint cannot be written; the message names the cause and the last good one."""


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first. :func:`damage` checks their files."""
    return [folder for folder in _folders(output_dir) if (folder / STATE_FILE).is_file()]


def _folders(output_dir: Path) -> list[Path]:
    found = (output_dir / "checkpoints").glob("step_*")
    return sorted(folder for folder in found if folder.suffix != ".partial")


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if nothing is.

    Raises:
        PermissionError: if this user may not read it.
    """
    try:
        state = _state(folder)
        if folder.name != f"step_{int(state['step']):08d}":
            return f"{STATE_FILE} is of step {state['step']}"
        for name, expected in state["files"].items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
            if sha256_of(file) != expected["sha256"]:
                return f"{name} is not what was written"
    except PermissionError:
        raise  # which is no damage
    except FileNotFoundError:
        return f"{STATE_FILE} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return f"{STATE_FILE} cannot be read"
    return None


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The newest undamaged checkpoint; the log names damaged ones.

    Raises:
        CheckpointError: if there are checkpoints and all are damaged.
    """
    checkpoints = _folders(output_dir)
    for folder in reversed(checkpoints):
        if (problem := damage(folder)) is None:
            return folder
        logger.warning("checkpoint %s is damaged and passed over: %s", folder, problem)
    if checkpoints:
        raise CheckpointError(
            f"every checkpoint in {output_dir / 'checkpoints'} is damaged; remove all to restart"
        )
    return None


def checkpoint_step(folder: Path) -> int:
    """The number of optimizer steps before a checkpoint."""
    return int(_state(folder)["step"])


def _state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))


def write_checkpoint(
    output_dir: Path,
    step: int,
    write: Callable[[Path], None],
    keep: int,
    is_main: bool = True,
    barrier: Callable[[], None] = lambda: None,
) -> Path:
    """Write a checkpoint through ``write(folder)`` and remove all but the newest ``keep``.

    Every process must call it, because sharded states are written by all. The main process creates,
    renames and removes folders, with a ``barrier`` before and after the writing.

    Raises:
        CheckpointError: if it cannot be written (a full disk); earlier ones are left as they are.
    """
    final = output_dir / "checkpoints" / f"step_{step:08d}"
    partial = final.with_suffix(".partial")
    try:
        if is_main:
            for cut_short in final.parent.glob("*.partial"):
                shutil.rmtree(cut_short, ignore_errors=True)
            partial.mkdir(parents=True)
        barrier()
        write(partial)
        barrier()
        if is_main:
            _seal(partial, step)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            flush(final.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        number = system_error(error, output_dir)
        shutil.rmtree(partial, ignore_errors=True)
        if number is None:
            raise
        good = list_checkpoints(output_dir)
        remedy = REMEDIES.get(number, "mend that")
        raise CheckpointError(
            f"the checkpoint of step {step} cannot be written: {os.strerror(number)}: {final}. The "
            f"last good one is {good[-1] if good else 'none'}; {remedy}, and continue with --resume"
        ) from error
    if is_main:
        for old in list_checkpoints(output_dir)[:-keep]:
            shutil.rmtree(old)
    return final


def _seal(folder: Path, step: int) -> None:
    """Record every file's size and hash, and wait until all of it is on the disk."""
    files = {}
    written = sorted(file for file in folder.rglob("*") if file.is_file())
    (folder / STATE_FILE).touch()
    mode = stat.S_IMODE((folder / STATE_FILE).stat().st_mode)  # the umask's
    for file in written:
        name = file.relative_to(folder).as_posix()
        files[name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        flush(file)
        file.chmod(mode)
    (folder / STATE_FILE).write_text(json.dumps({"step": step, "files": files}), encoding="utf-8")
    flush(folder / STATE_FILE)


def sha256_of(file: Path) -> str:
    """The sha256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()
