"""Config files: YAML with ``_BASE_``, checked against a schema; all errors are reported at once.

A file has the keys that differ from its ``_BASE_`` and from the defaults. ``_BASE_`` is a path
relative to the file, or the name of a config in ``det_configs``, or a list, of which later ones
win. ``KEY VALUE`` overrides come last. Grids of runs have the same ``_BASE_``, in ``ablations``.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import BASE_KEY, CfgNode

from backbones.d2_config import add_keys
from backbones.errors import InputError, listed
from training.command_line.shipped_files import DET_CONFIGS, find_shipped, shipped_of_name
from training.config_keys import Key

OVERRIDES = "command line"
DEFAULTS = "defaults"

Keys = Mapping[str, Key]
# config -> for each contradiction the keys that it concerns, and the message
Contradictions = Callable[[CfgNode], Iterator[tuple[tuple[str, ...], str]]]


def get(config: CfgNode, name: str) -> Any:
    """The value of a dotted key."""
    return reduce(getitem, name.split("."), config)


def add_defaults(config: CfgNode, keys: Keys) -> None:
    """Add every key that ``config`` lacks, with its default."""
    add_keys(config, {name: key.default for name, key in keys.items()})


def read_config(
    path: str | Path, overrides: Sequence[str], keys: Keys, contradictions: Contradictions
) -> CfgNode:
    """A file with its bases and overrides, checked as a whole, frozen.

    Args:
        path: a YAML file, or the name of one in ``det_configs``, from any folder.
        overrides: ``KEY VALUE KEY VALUE ...``.
        keys: the schema, by dotted name.
        contradictions: finds values that are valid, but not together.

    Raises:
        InputError: listing all problems, each with its file.
        FileNotFoundError: if the file or one of its bases is missing.
    """
    problems: list[str] = []
    path = find_shipped(path, DET_CONFIGS, "config file")
    layers = [(name, dict(flatten(tree, keys))) for name, tree in read_layers(path, problems)]
    layers.append((OVERRIDES, _overrides(overrides, problems)))
    config = CfgNode()
    add_defaults(config, keys)
    origin: dict[str, str] = {}
    faulty: set[str] = set()
    for source, values in layers:
        for name, value in values.items():
            origin[name] = source
            faulty.discard(name)
            if problem := _set(config, name, value, keys):
                faulty.add(name)
                problems.append(f"{source}: {problem}")
    for names, problem in contradictions(config):
        if not faulty.intersection(names):
            sources = dict.fromkeys(origin.get(name, DEFAULTS) for name in names)
            problems.append(f"{', '.join(sources)}: {problem}")
    if problems:
        raise InputError(listed(problems, f"the config {path}"))
    config.freeze()
    return config


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice; PyYAML would silently drop the first one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r:.80} cannot be a key", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_layers(
    path: Path, problems: list[str], shipped: Path = DET_CONFIGS, readers: tuple[Path, ...] = ()
) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Yield (file, its tree without ``_BASE_``) for a file's bases and then the file itself.

    Args:
        path: a YAML file.
        problems: gets a message for each file that is not a YAML mapping; such files are skipped.
        shipped: the project's folder to search for a base that does not lie beside its file.
        readers: the files that name this one as their base, outermost first.

    Raises:
        InputError: for bases that go in a circle.
        FileNotFoundError: if the file or one of its bases is missing.
    """
    path = path.expanduser()
    chain = (*readers, path.resolve())
    if path.resolve() in readers:
        raise InputError(f"{BASE_KEY} goes in a circle: {' -> '.join(map(str, chain))}; remove one")
    if not path.is_file():
        reader = f", which is the {BASE_KEY} of {readers[-1]}" if readers else ""
        raise FileNotFoundError(f"there is no config file {path}{reader}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader) or {}
        _refuse_endless(tree)
    except (yaml.YAMLError, ValueError, RecursionError, KeyError, AttributeError) as error:
        # PyYAML raises the last two for a value that does not fit its tag, such as !!bool x
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        line = f", line {mark.line + 1}" if mark else ""
        problems.append(f"{path}{line}: not readable as YAML: {problem}")
        return
    if not isinstance(tree, dict):
        problems.append(f"{path}: a config is a mapping of keys to values, not {tree!r:.80}")
        return
    bases = tree.pop(BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(
        isinstance(base, str) and "\0" not in base for base in bases
    ):
        problems.append(f"{path}: {BASE_KEY} is {bases!r:.80}; give a file's name, or a list")
        return
    for base in bases:
        beside = path.parent / Path(base).expanduser()
        ours = [] if beside.is_file() else shipped_of_name(base, shipped)
        yield from read_layers(ours[0] if len(ours) == 1 else beside, problems, shipped, chain)
    yield str(path), tree


def _refuse_endless(tree: Any, around: tuple[int, ...] = ()) -> None:
    """Refuse a mapping or list that is inside itself, which YAML's anchors can write."""
    if isinstance(tree, (dict, list)):
        if id(tree) in around:
            raise yaml.YAMLError("a value holds itself, by an anchor")
        for value in tree.values() if isinstance(tree, dict) else tree:
            _refuse_endless(value, (*around, id(tree)))


def flatten(
    tree: Mapping[Any, Any], keys: Collection[str] = (), prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of a tree; a mapping whose name is in ``keys`` is a value."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in keys:
            yield from flatten(value, keys, f"{name}.")
        else:
            yield name, value


def _overrides(items: Sequence[str], problems: list[str]) -> dict[str, Any]:
    if len(items) % 2:
        problems.append(
            f"{OVERRIDES}: overrides are KEY VALUE pairs, but {items[-1]!r} has no value"
        )
    values: dict[str, Any] = dict(zip(items[::2], items[1::2], strict=False))
    for name, value in values.items():
        # A data set's name is one string on the command line; detectron2 would want ('NAME',).
        if name.startswith("DATASETS.") and value and value[0] not in "[(":
            values[name] = (value,)
    return values


def _set(config: CfgNode, name: str, value: Any, keys: Keys) -> str | None:
    """Set one key; returns what is wrong with it, if anything."""
    if name not in keys:
        if any(known.startswith(f"{name}.") for known in keys):
            return f"{name} is a section, it cannot be {value!r}"
        close = difflib.get_close_matches(name, keys, n=1, cutoff=0.5)
        return f"unknown key {name}" + (f"; the closest known key is {close[0]}" if close else "")
    key = keys[name]
    value = _coerce(value, key.default)
    if type(value) is not type(key.default) or not key.is_valid(value):
        return f"{name} is {value!r}; it must be {key.allowed}"
    *sections, leaf = name.split(".")
    reduce(getitem, sections, config)[leaf] = value
    return None


def _coerce(value: Any, default: Any) -> Any:
    """Convert a value to the default's type, if that loses nothing.

    As in detectron2, a string is read as a Python literal if the default is not a string (YAML
    reads ``1e-4`` as a string). Lists and tuples are converted into each other, and integers into
    floats.
    """
    if isinstance(value, str) and not isinstance(default, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return value
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        row = default[0] if default else None
        is_nested = isinstance(row, (list, tuple))
        return type(default)(_coerce(item, row) if is_nested else item for item in value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    return value
