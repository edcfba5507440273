"""Reads files of named tensors without running code, and writes them completely or not at all.

Pickles are read by :mod:`backbones.weights.pickles`, so that a checkpoint cannot run code. The
first bytes of a file say whether it is safetensors or a pickle.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from backbones.errors import InputError
from backbones.weights import pickles
from backbones.weights.pickles import STATE_DICT, StandIn, damaged, raise_system_error
from backbones.whole_files import what_stands_there, write_atomically

logger = logging.getLogger(__name__)

# The keys under which training programs store weights, the preferred ones first.
CONTAINERS = (
    "model", "state_dict", "model_state_dict", "model_state", "module", "net", "network", "weights",
)  # fmt: skip
NO_WEIGHTS = re.compile(r".*(optim|sched|scaler|rng|random|loss|message_hub).*", re.IGNORECASE)
DEEPEST = 4  # nested containers that are searched


def split_key(source: str | Path) -> tuple[Path, str | None]:
    """``FILE#KEY`` -> the file, and the key of one of its sets of tensors, or None.

    If a file with such a name, ``#`` included, exists, it is that file.
    """
    path = Path(source)
    if "#" not in path.name or path.exists():
        return path, None
    file, _, key = str(source).rpartition("#")
    return Path(file), key


def read_state_dict(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of :func:`read_weights`."""
    return read_weights(path, key)[0]


def read_weights(
    path: str | Path, key: str | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a ``.safetensors`` file or a pickled checkpoint, on the CPU.

    Args:
        path: the file, or ``FILE#KEY``.
        key: which of several sets of tensors to read: a container (``"teacher"``,
            ``"model.encoder"``), or a prefix of the tensors' names, which is then removed.

    Returns:
        The tensors, and the metadata. A pickle's metadata are its entry ``metadata``, as
        :func:`save_pickle` writes it, and the names of OpenMMLab's classes as ``class_names``.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it would run code, is damaged, holds no tensors, or holds several sets and
            ``key`` is not given.
    """
    path, of_path = split_key(path)
    path, key = _existing_file(path), key or of_path
    if _is_safetensors(path):
        with _open_safetensors(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
        return (_under_prefix(path, {"": tensors}, key) if key else tensors), metadata
    content = _arrays_of_npz(path) or pickles.read_pickle(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds {_kind(content)}, not named tensors; save {STATE_DICT}")
    found = dict(_sets_of_tensors(content))
    if not found:
        keys = ", ".join(_described(content)) or "none"
        raise InputError(
            f"{path} holds no tensors of a model; its keys: {keys}; give the file of the weights, "
            f"or save {STATE_DICT}"
        )
    place = _chosen_set(path, found, key)
    chosen = _under_prefix(path, found, key) if place is None else found[place]
    beside = [str(o) for o in content if place and o not in (place.split(".")[0], "metadata")]
    if beside:
        others = [other for other in found if other not in ("", place)]
        hint = f" (--key takes {', '.join(others)})" if others else ""
        logger.info("%s: reading %r; not reading %s%s", path, place, ", ".join(beside), hint)
    if rest := [str(name) for name, value in chosen.items() if not _is_tensor(value)]:
        logger.info("%s: not tensors, not read: %s", path, ", ".join(rest))
    tensors = {str(n): torch.as_tensor(v) for n, v in chosen.items() if _is_tensor(v)}
    return tensors, _metadata_of(content)


def _metadata_of(content: Mapping) -> dict[str, str]:
    written = content.get("metadata")
    found = {}
    if isinstance(written, Mapping):
        found = {str(k): v for k, v in written.items() if isinstance(v, str)}
    meta = content.get("meta")
    places = [meta, meta.get("dataset_meta")] if isinstance(meta, Mapping) else []
    for place in reversed(places):  # of mmdetection 3.x, 2.x
        if isinstance(place, Mapping):
            names = next((v for k, v in place.items() if str(k).lower() == "classes"), None)
            if isinstance(names, list | tuple) and "class_names" not in found:
                found["class_names"] = json.dumps([str(n).strip() for n in names])
    return found


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    )


def _kind(value: Any) -> str:
    if isinstance(value, StandIn):
        return f"a {type(value).__name__}, an object of the program that wrote it"
    return f"a {type(value).__name__}"


def _described(content: Mapping) -> list[str]:
    """The keys of a checkpoint without tensors, with the types of objects of other programs."""
    return [f"{k} ({_kind(v)})" if isinstance(v, StandIn) else str(k) for k, v in content.items()]


def _sets_of_tensors(content: Mapping, place: str = "") -> Iterator[tuple[str, Mapping]]:
    """(place, mapping) for each mapping in a checkpoint that holds tensors itself."""
    if any(_is_tensor(value) for value in content.values()):
        yield place, content
    if place.count(".") >= DEEPEST - 1:
        return
    for name, value in content.items():
        if isinstance(value, Mapping) and not NO_WEIGHTS.fullmatch(str(name)):
            yield from _sets_of_tensors(value, f"{place}.{name}".removeprefix("."))


def _chosen_set(path: Path, found: Mapping[str, Mapping], key: str | None) -> str | None:
    """The place of the set to read; None if there is no such key."""
    for container in CONTAINERS if key is None else (key,):
        if container in found:
            return container
        under = [place for place in found if place.startswith(f"{container}.")]
        if len(under) == 1:
            return under[0]
        if under:
            break
    if key is not None:
        return None
    if "" in found:
        return ""
    if len(found) > 1:
        listed = ", ".join(f"{place} ({len(found[place])})" for place in found)
        raise InputError(
            f"{path} holds several sets of tensors: {listed}; name one behind the file, "
            f"as {path}#{next(iter(found))}, or by tools/convert_checkpoint.py's --key"
        )
    return next(iter(found))


def _under_prefix(path: Path, found: Mapping[str, Mapping], key: str | None) -> dict[str, Any]:
    """The tensors whose names begin with ``key``, which is removed."""
    prefix = f"{key}."
    for tensors in found.values():
        names = [name for name in tensors if str(name).startswith(prefix)]
        if names:
            return {str(name).removeprefix(prefix): tensors[name] for name in names}
    tensor_names = [str(name) for tensors in found.values() for name in tensors]
    first = sorted({name.partition(".")[0] for name in tensor_names})
    known = [place for place in found if place] + first
    raise InputError(
        f"{path} has nothing under the key {key!r}; it has {', '.join(known[:12])}"
        f"{', ...' * (len(known) > 12)}"
    )


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a file, see :func:`read_weights`; {} for a pickle without any."""
    path = _existing_file(split_key(path)[0])
    if _is_safetensors(path):
        with _open_safetensors(path) as file:
            return dict(file.metadata() or {})
    content = pickles.read_pickle(path)
    return _metadata_of(content) if isinstance(content, Mapping) else {}


def _existing_file(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        inside = ", ".join(sorted(entry.name for entry in path.iterdir())) or "nothing"
        raise InputError(f"{path} is a folder; give the file of weights in it (it holds {inside})")
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint file {path}")
    with open(path, "rb") as stream:
        if fault := what_stands_there(stream.read(256)):
            raise InputError(f"{path} {fault}")
    return path


def read_pickle(path: str | Path) -> Any:
    """Whatever a pickled checkpoint holds, see :func:`backbones.weights.pickles.read_pickle`.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: as that does.
    """
    return pickles.read_pickle(_existing_file(path))


def _is_safetensors(path: Path) -> bool:
    """By its first bytes; what begins as nothing known, by its name."""
    with open(path, "rb") as stream:
        start = stream.read(9)
    is_pickle = start.startswith((b"PK", b"\x80"))
    return start[8:] == b"{" or (path.suffix == ".safetensors" and not is_pickle)


def _arrays_of_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that ``numpy.savez`` wrote; {} of any other file."""
    members = pickles.zip_members(path)
    if members is None or not all(name.endswith(".npy") for name in members):
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # of its bytes
        raise_system_error(error, path)
        raise InputError(damaged(path, "file of arrays", str(error) or "no arrays")) from None


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except Exception as error:  # SafetensorError; its module differs between versions
        raise_system_error(error, path)
        text = str(error) or type(error).__name__
        raise InputError(damaged(path, "safetensors file", text)) from None


def save_safetensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, atomically, with ``format: pt``, which transformers requires."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    strings = {"format": "pt", **{key: str(value) for key, value in metadata.items()}}
    write_atomically(path, lambda partial: save_file(contiguous, partial, strings))


def save_pickle(
    tensors: Mapping[str, Tensor],
    path: str | Path,
    container: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a ``.pth`` file, atomically.

    Args:
        container: the key under which the tensors are stored; None for none.
        metadata: stored beside them, under ``metadata``; needs a container.
    """
    # A view would be written with its whole storage.
    own = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    content: dict[str, Any] = {container: own} if container else own
    if metadata:
        assert container, "metadata among the tensors would be read as one of them"
        content["metadata"] = dict(metadata)
    write_atomically(path, partial(save_stream, content))


def save_stream(content: Any, path: Path) -> None:
    """``torch.save`` to a stream; to a path, it would write the temporary name into the file."""
    with path.open("wb") as stream:
        torch.save(content, stream)
