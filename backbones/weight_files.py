"""Files of named tensors: read without running code, written whole or not at all.

Pickles are read by ``torch.load(weights_only=True)`` and in no other way, so that a checkpoint
cannot run code; whether a file is safetensors or a pickle is told by its first bytes.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from backbones.errors import InputError
from backbones.whole_files import REMEDIES, system_error, write_atomically

logger = logging.getLogger(__name__)

# Where training programs put the weights beside optimizer, epoch and so on.
CONTAINERS = ("model", "state_dict", "model_state_dict")
# The authors' training checkpoints hold their command line: plain attributes, no code.
torch.serialization.add_safe_globals([argparse.Namespace])


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file or of a pickled checkpoint, on the CPU, names as is.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it would run code, is damaged, or holds no tensors.
    """
    path = _existing_file(path)
    if _is_safetensors(path):
        with _open_safetensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content = read_pickle(path)
    for key in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            beside = [str(other) for other in content if other != key]
            if beside:
                logger.info("%s: reading %r; not reading %s", path, key, ", ".join(beside))
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not named tensors")
    tensors = {str(n): v for n, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no tensors; its keys: {', '.join(map(str, content))}")
    if len(tensors) < len(content):
        rest = ", ".join(str(name) for name in content if name not in tensors)
        logger.info("%s: not tensors, not read: %s", path, rest)
    return tensors


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for pickles."""
    path = _existing_file(path)
    if not _is_safetensors(path):
        return {}
    with _open_safetensors(path) as file:
        return dict(file.metadata() or {})


def _existing_file(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        inside = ", ".join(sorted(entry.name for entry in path.iterdir())) or "nothing"
        raise InputError(f"{path} is a folder; give the weights' file in it (it holds {inside})")
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint file {path}")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: its writing was cut off; copy or fetch it again")
    return path


def _first_bytes(path: Path, number: int) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(number)


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors" or _first_bytes(path, 9)[8:] == b"{"


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except Exception as error:  # SafetensorError; its module differs between versions
        _raise_system_error(error, path)
        raise InputError(_damaged(path, "safetensors file", error)) from None


def read_pickle(path: str | Path) -> Any:
    """Whatever a pickled checkpoint holds of tensors and plain values, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it would run code or is damaged.
    """
    path = _existing_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file's bytes are arbitrary, and so is what reading them raises
        _raise_system_error(error, path)
        blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and (
            blocked or _first_bytes(path, 1) == b"\x80"
        ):
            what = f"it names {blocked[1]}" if blocked else "torch.save did not write it"
            raise InputError(
                f"{path} is refused: it is a pickle that could run code when read ({what}); ask "
                "its author for the tensors alone, best as safetensors"
            ) from None
        raise InputError(_damaged(path, "PyTorch checkpoint", error)) from None


def _raise_system_error(error: Exception, path: Path) -> None:
    """Raise what the system says (no permission, too many open files): that is no damage."""
    if (number := system_error(error)) in REMEDIES:
        raise OSError(number, os.strerror(number), str(path)) from error


def _damaged(path: Path, kind: str, error: Exception) -> str:
    # torch's own text would have the reader turn the safety off.
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    return (
        f"{path} cannot be read as a {kind}: it is damaged, cut off, or something else "
        f"({path.stat().st_size} bytes; {text.splitlines()[0]}); copy or fetch it again"
    )


def save_safetensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, atomically; ``format: pt`` is what transformers wants to read."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    strings = {"format": "pt", **{key: str(value) for key, value in metadata.items()}}
    write_atomically(path, lambda partial: save_file(contiguous, partial, strings))


def save_pickle(
    tensors: Mapping[str, Tensor], path: str | Path, container: str | None = None
) -> None:
    """Write a ``.pth`` file, atomically; under the key ``container`` where one is given."""
    # A view would take its whole storage along.
    own = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    write_atomically(
        path, lambda partial: torch.save({container: own} if container else own, partial)
    )
