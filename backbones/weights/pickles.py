"""Reads pickled checkpoints without running code in them.

``torch.load(weights_only=True)`` only builds tensors and plain values. Training programs store more
beside the weights: their command line, numpy's numbers, paths, a history of the losses. None of it
is needed here, so each object of another class becomes an empty stand-in: nothing that the file
names is imported or called, and the tensors can be read. A file that names a function of Python's
own library that builds no plain value (``os.system``, ``builtins.eval``) is refused, although a
stand-in would be harmless.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import pickletools
import re
import sys
import tarfile
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from backbones.errors import InputError
from backbones.whole_files import REMEDIES, system_error

logger = logging.getLogger(__name__)

# Enums of Python's library, their members if these are pickled by name (signal.SIGINT), and the
# functions that join members of a flag.
ENUMS = (
    r"http\.(HTTPStatus|HTTPMethod)|inspect\._ParameterKind|plistlib\.PlistFormat|pstats\.SortKey"
    r"|py_compile\.PycInvalidationMode|re\.RegexFlag|signal\.(Signals|Handlers|Sigmasks)"
    r"|socket\.(AddressFamily|AddressInfo|MsgFlag|SocketKind)|ssl\.(AlertDescription|Options|Purpose"
    r"|SSLErrorNumber|TLSVersion|VerifyFlags|VerifyMode|_SSLMethod|_TLS\w+)|tkinter\.EventType"
    r"|uuid\.SafeUUID|_operator\.or_|(signal|socket|ssl|re|http)\.[A-Z][A-Z0-9_]+"
)
# Classes of Python's library that only hold values; functools.partial and getattr are not called.
PLAIN = re.compile(
    rf"{ENUMS}|"
    r"pathlib\.\w+|datetime\.\w+|decimal\.Decimal|fractions\.Fraction|uuid\.UUID|typing\.\w+"
    r"|enum\.\w+|types\.SimpleNamespace|functools\.partial|copyreg\._reconstructor"
    r"|time\.struct_time|zoneinfo\.\w+|logging\.\w+|re\._compile"
    r"|builtins\.(slice|range|frozenset|object|list|dict|tuple|int|float|str|bool|bytes)"
)
MODULES = "torch.nn.modules."  # the classes in models that were pickled as objects
TORCHS_OWN = re.compile(r"torch\.|collections\.(OrderedDict|Counter)")  # which it builds itself
# Names whose stand-in is filled as a dictionary or list afterwards.
DICTIONARIES = re.compile(
    r"collections\.defaultdict|(.+\.)?(CfgNode|CN|ConfigDict|AttrDict|EasyDict|AttributeDict"
    r"|DotDict|Dict|Box)"
)
LISTS = re.compile(r"collections\.deque")
ATTRIBUTES = re.compile(r"builtins\.getattr")  # names a class within a class
# Arrays may be the weights themselves (detectron2's .pkl).
ARRAYS: dict[str, Any] = {
    f"{module}.{name}": value
    for module in ("numpy._core.multiarray", "numpy.core.multiarray")
    for name, value in (
        ("_reconstruct", np.ndarray([0]).__reduce__()[0]),
        ("scalar", np.float64(0).__reduce__()[0]),
    )
} | {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **dict.fromkeys(  # of protocol 5
        ("numpy._core.numeric._frombuffer", "numpy.core.numeric._frombuffer"),
        np.zeros(1).__reduce_ex__(5)[0],
    ),
}
ARRAY_TYPES = [
    (value, f"numpy.dtypes.{name}")
    for name, value in vars(np.dtypes).items()
    if isinstance(value, type)
]


PICKLE_STARTS = (b"\x80", b"(", b"}", b"]", b"c")  # of any protocol: text has no number of it
STATE_DICT = "the named tensors alone: torch.save(model.state_dict(), FILE)"


class StandIn:
    """Takes the place of an object in the file: stores nothing and does nothing.

    Attributes:
        __qualname__: the name in the file.
    """

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _maker(name: str, make: Callable[[], Any]) -> type:
    """A class of that name whose call returns ``make()``, whatever the arguments."""
    return type(name, (), {"__new__": lambda cls, *_, **__: make()})


def stand_in(name: str) -> Any | None:
    """The stand-in for a name (``module.name``) in a pickle; None for names that are refused."""
    package = name.partition(".")[0]
    if DICTIONARIES.fullmatch(name):
        return _maker(name, OrderedDict)  # filled with the file's items, as torch does
    if LISTS.fullmatch(name):
        return _maker(name, list)
    if ATTRIBUTES.fullmatch(name):
        return _maker(name, lambda: StandIn)
    is_known = name.startswith(MODULES) or PLAIN.fullmatch(name)
    if not is_known and package in {*sys.stdlib_module_names, "torch", ""} - {"__main__"}:
        return None
    return type(name, (StandIn,), {"__module__": __name__})


def read_pickle(path: Path) -> Any:
    """The tensors, arrays and plain values of a pickle, on the CPU.

    Args:
        path: a file of ``torch.save``, or a plain pickle of arrays.

    Raises:
        InputError: if it names functions that do not belong in a checkpoint, or is damaged.
    """
    if fault := _another_archive(path):
        raise InputError(f"{path} {fault}")
    try:
        with open(path, "rb") as stream:
            is_torch, names = _names_in(stream)
        if not is_torch:  # arrays alone, as in detectron2's model zoo
            with open(path, "rb") as stream:
                return _ArrayUnpickler(stream, encoding="latin1").load()
        allowed: list[Any] = [(value, name) for name, value in ARRAYS.items()] + ARRAY_TYPES
        allowed += [(argparse.Namespace, "argparse.Namespace"), (StandIn, f"{__name__}.StandIn")]
        known = {name for _, name in allowed}
        stood_in = []
        for name in sorted(names - known):
            if TORCHS_OWN.match(name) and not name.startswith(MODULES):
                continue
            if (inert := stand_in(name)) is not None:
                allowed.append((inert, name))
                stood_in.append(name)
        with torch.serialization.safe_globals(allowed), open(path, "rb") as stream:
            # a path would be read by its ending
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # a file's bytes are arbitrary, and so is what reading them raises
        raise_system_error(error, path)
        raise InputError(_refusal(path, error)) from None
    if stood_in:
        logger.info("%s: not read, beside the weights: %s", path, ", ".join(stood_in))
    return content


def zip_members(path: Path) -> list[str] | None:
    """The names in a zip archive; None for other files and damaged archives."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return None  # whoever reads it says that it is damaged


def _another_archive(path: Path) -> str:
    """What an archive is that holds no pickled weights, with the remedy; "" for other files."""
    if tarfile.is_tarfile(path):
        return "is a tar archive: unpack it and give the file of the weights"
    if (members := zip_members(path)) is not None:
        if any(name.endswith("/constants.pkl") for name in members):
            return f"is TorchScript, a program: load it by torch.jit.load, and save {STATE_DICT}"
        if not any(name.endswith("/data.pkl") for name in members):
            inside = ", ".join(members[:5]) + ", ..." * (len(members) > 5)
            return (
                f"is an archive without PyTorch's weights (it holds {inside or 'nothing'}): unpack "
                f"it and give the file of the weights, or save {STATE_DICT}"
            )
    return ""


def _names_in(stream: IO[bytes]) -> tuple[bool, set[str]]:
    """Whether torch wrote the file, and the names that unpickling would import."""
    names: set[str] = set()
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            members = [name for name in archive.namelist() if name.endswith("data.pkl")]
            return True, _globals_of(archive.read(members[0])) if members else names
    stream.seek(0)
    codes = list(islice(pickletools.genops(stream), 3))  # torch's first pickle is one number
    first = next((argument for code, argument, _ in codes if code.name.startswith("LONG")), None)
    if first != torch.serialization.MAGIC_NUMBER:
        stream.seek(0)
        # a file that begins as no pickle is left to torch, which says that it is damaged
        return stream.read(1) not in PICKLE_STARTS, names
    for _ in range(3):  # protocol, system, the content
        names |= _globals_of(stream)
    return True, names


def _globals_of(pickled: bytes | IO[bytes]) -> set[str]:
    found = set()
    for code, argument, _ in pickletools.genops(pickled):
        if code.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            # as torch does: protocol 2 has the names of Python 2
            module, name = NAME_MAPPING.get(
                (module, name), (IMPORT_MAPPING.get(module, module), name)
            )
            found.add(f"{module}.{name}")
    return found


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy's arrays and numbers, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in (known := {**ARRAYS, "collections.OrderedDict": OrderedDict}):
            return known[full]
        if full == "_codecs.encode":  # of arrays that Python 2 or an old protocol wrote
            return lambda text, encoding: str(text).encode("latin1")
        raise pickle.UnpicklingError(f"GLOBAL {full}")


def _refusal(path: Path, error: Exception) -> str:
    blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and blocked:
        return (
            f"{path} is refused: it is a pickle that could run code when read (it names "
            f"{blocked[1]}); ask its author for the tensors alone, best as safetensors"
        )
    # not torch's own text, which advises to switch the protection off
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    return damaged(path, "PyTorch checkpoint", text)


def raise_system_error(error: Exception, path: Path) -> None:
    """Raise an error of the system (no permission, too many open files), which is no damage."""
    if (number := system_error(error)) in REMEDIES:
        raise OSError(number, os.strerror(number), str(path)) from error


def damaged(path: Path, kind: str, text: str) -> str:
    """The message about a file that cannot be read; ``text`` is the reader's own message."""
    return (
        f"{path} cannot be read as a {kind}: it is damaged, cut off, or something else "
        f"({path.stat().st_size} bytes; {text.splitlines()[0]}); copy or fetch it again"
    )
