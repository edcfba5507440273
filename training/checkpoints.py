"""Checkpoints of a run: complete or absent, newest last.

A checkpoint is a folder ``checkpoints/step_00000120``. It is written under another name and
renamed when whole, so that a folder of that name is complete whenever the run was killed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

STATE_FILE = "state.json"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(
        folder
        for folder in (output_dir / "checkpoints").glob("step_*")
        if folder.suffix != ".partial" and (folder / STATE_FILE).is_file()
    )


def checkpoint_step(folder: Path) -> int:
    """The number of optimizer steps behind a checkpoint."""
    return int(json.loads((folder / STATE_FILE).read_text())["step"])


def write_checkpoint(
    output_dir: Path,
    step: int,
    write: Callable[[Path], None],
    keep: int,
    is_main: bool = True,
    barrier: Callable[[], None] = lambda: None,
) -> Path:
    """Write a checkpoint through ``write(folder)`` and remove all but the newest ``keep``.

    Every process calls it (sharded states are written by all); the main one makes, renames and
    prunes folders, with a ``barrier`` before and after the writing.
    """
    final = output_dir / "checkpoints" / f"step_{step:08d}"
    partial = final.with_suffix(".partial")
    if is_main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()
    write(partial)
    barrier()
    if is_main:
        (partial / STATE_FILE).write_text(json.dumps({"step": step}))
        for file in partial.rglob("*"):
            if file.is_file():
                with open(file, "rb") as stream:
                    os.fsync(stream.fileno())
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in list_checkpoints(output_dir)[:-keep]:
            shutil.rmtree(old)
    return final
