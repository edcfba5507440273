"""Grids of ablation runs: read a YAML file, and check all of it before anything runs.

A grid names rows; each row is pretrained and fine-tuned once per seed, by the project's own command
lines. A grid file::

    title: Global aggregation in GRN
    source: ConvNeXt V2 (arXiv 2301.00808), Table 2a, ImageNet-1K top-1 of base, 800 epochs
    baseline: l2                       # the row that the others are compared with
    seeds: [0, 1, 2]
    pretrain: {model: convnextv2_base, data: imagenet/train, epochs: 800}    # flags of the tool
    classify: {model: convnextv2_base, data: imagenet}                       # likewise
    detect: {config-file: my.yaml, SOLVER.MAX_ITER: 1000}                    # file, and keys
    segment: {config-file: upernet.yaml}                                     # likewise
    rows:
      l2: {paper: {top-1: 84.6}}
      l1: {paper: {top-1: 84.3}, grn: {aggregate: l1}}

``grn`` goes to every stage of a row. A row's own stages override single values of the grid's, or
are ``null`` to leave that stage out. A row without ``pretrain`` may name the
weights that it starts from (``init``, ``MODEL.CONVNEXT.WEIGHTS``). ``{seed}`` in a value is the
run's seed, as in ``labels_{seed}.json``. ``launcher`` may replace ``python``, for instance by
``torchrun --nproc-per-node 8``.

``_BASE_`` names another grid (beside this one, or of this project) or several, where later ones
override earlier ones. The values of a base hold wherever this file gives none, key by key within a
stage. ``rows`` are not merged: they are this file's, or the base's if it has none::

    _BASE_: grn_aggregation.yaml       # the same rows, at another scale
    pretrain: {model: convnextv2_atto, data: my_images, max-steps: 2000}
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from backbones.errors import InputError
from backbones.normalization import GRNOptions
from fcmae.classification.options import FinetuneOptions
from fcmae.classification.recipes import Recipe
from fcmae.grids.value_types import type_problems
from fcmae.pretrain_options import PretrainOptions
from training.command_line.shipped_files import ABLATIONS, find_shipped
from training.config_files import read_layers

STAGES = ("pretrain", "classify", "detect", "segment")
BY_CONFIG = ("detect", "segment")  # stages whose tool takes a config file and its keys
METRICS = ("top-1", "top-1 (averaged)", "box AP", "mask AP",
           "box AP (averaged)", "mask AP (averaged)", "mIoU", "pixel accuracy",
           "pretraining hours")  # fmt: skip
GRID_KEYS = ("title", "source", "baseline", "seeds", "launcher", "rows", *STAGES)
ROW_KEYS = ("paper", "grn", *STAGES)
SET_BY_GRID = ("output-dir", "seed", "resume", "OUTPUT_DIR", "SEED")
SET_BY_PRETRAINING = ("init", "MODEL.CONVNEXT.WEIGHTS")
FLAGS_APART = {  # flags whose names differ from the fields that they set
    "pretrain": ("raw-pixels", "wandb", "grn-aggregate", "grn-normalize", "no-grn-residual"),
    "classify": ("wandb", "grn-aggregate", "grn-normalize", "no-grn-residual"),
}
NO_FLAGS = ("norm_pix_loss", "overrides", "trackers")  # fields that other flags set


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    paper: Mapping[str, float]  # what the paper reports, by metric
    # arguments by stage; a stage that is left out is not there
    stages: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Grid:
    """A checked grid; see this module's header."""

    title: str
    source: str
    baseline: str
    seeds: Sequence[int]
    launcher: Sequence[str]
    rows: Sequence[Row] = field(default_factory=tuple)


def load_grid(path: str | Path, settings: Sequence[str] = ()) -> Grid:
    """Read and check a grid.

    Args:
        path: a file, or the name of one in ``ablations``, from any folder.
        settings: ``a.b.c=VALUE`` in YAML's notation, such as ``pretrain.data=my_images``,
            ``seeds=[0,1]`` or ``rows.l1.pretrain.epochs=10``; they change the file's values.

    Raises:
        FileNotFoundError: if there is no such file, or none that it builds on.
        InputError: with everything that is wrong in it.
    """
    path = find_shipped(path, ABLATIONS, "grid")
    tree = _read(path)
    for setting in settings:
        _change(tree, setting)
    if problems := type_problems(tree, STAGES):
        raise InputError("\n  ".join([f"{path} is no grid:", *problems]))
    problems = _problems(tree)
    rows = []
    for name, entry in tree["rows"].items():
        try:
            rows.append(_row(str(name), entry or {}, tree))
        except InputError as error:
            problems.append(f"row {name}: {error}")
    for row in rows:
        problems += _flag_problems(row)
    if problems:
        raise InputError("\n  ".join([f"the grid {path} has problems:", *problems]))
    return Grid(
        title=tree.get("title", path.stem),
        source=tree.get("source", ""),
        baseline=tree["baseline"],
        seeds=tree["seeds"],
        launcher=tree.get("launcher", "").split(),
        rows=rows,
    )


def _read(path: Path) -> dict[str, Any]:
    """A grid's tree, merged over those that it builds on."""
    problems: list[str] = []
    tree: dict[str, Any] = {}
    for _, layer in read_layers(path, problems, ABLATIONS):
        tree = _over(tree, layer)
    if problems:
        raise InputError("\n  ".join([f"the grid {path} cannot be read:", *problems]))
    return tree


def _over(base: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """``base`` overridden by a tree's values; those of a stage key by key."""
    stages = {
        stage: base[stage] | tree[stage]
        for stage in STAGES
        if isinstance(base.get(stage), dict) and isinstance(tree.get(stage), dict)
    }
    return base | tree | stages


def _change(tree: dict[str, Any], setting: str) -> None:
    name, equals, value = setting.partition("=")
    stage, _, key = name.partition(".")
    # a detection config's keys have dots themselves
    parts = [stage, key] if stage in STAGES and key else name.split(".")
    if stage == "rows" and len(parts) > 4:
        parts = [*parts[:3], ".".join(parts[3:])]
    if not equals or parts[0] not in GRID_KEYS:
        raise InputError(
            f"--set {setting!r}: give KEY=VALUE, such as pretrain.data=my_images, where KEY begins "
            f"with {', '.join(GRID_KEYS)}"
        )
    node = tree
    for part in parts[:-1]:
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node = node[part]
    try:
        node[parts[-1]] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set {setting!r}: the value is no YAML: {error}") from error


def _problems(tree: Mapping[str, Any]) -> list[str]:
    problems = [_unknown(key, GRID_KEYS) for key in tree if key not in GRID_KEYS]
    if tree.get("baseline") not in tree["rows"]:
        names = ", ".join(map(str, tree["rows"]))
        problems.append(f"baseline is {tree.get('baseline')!r}; name one of the rows: {names}")
    by_file: dict[str, list[str]] = {}
    for name in map(str, tree["rows"]):
        by_file.setdefault(file_name(name), []).append(name)
    problems += [
        f"the rows {', '.join(map(repr, same))} would share the folder {file!r}: rename them"
        for file, same in by_file.items()
        if len(same) > 1
    ]
    seeds = tree.get("seeds")
    if (
        not isinstance(seeds, list)
        or not seeds
        or not all(type(seed) is int and seed >= 0 for seed in seeds)
        or len(set(seeds)) < len(seeds)
    ):
        problems.append(f"seeds is {seeds!r}; give a list of different integers of at least 0")
    return problems


def file_name(row: str) -> str:
    """A row's name as a part of its folders'."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in row)


def _unknown(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(key), known, 1)
    return f"{key!r} is unknown; {f'did you mean {close[0]!r}?' if close else 'known: '}" + (
        "" if close else ", ".join(known)
    )


def _row(name: str, entry: Mapping[str, Any], tree: Mapping[str, Any]) -> Row:
    """A row's stages: the grid's, then its GRN, then its own, each overriding those before.

    Raises:
        InputError: if it has unknown keys, or nothing to do.
    """
    wrong = [_unknown(key, ROW_KEYS) for key in entry if key not in ROW_KEYS]
    paper = entry.get("paper") or {}
    wrong += [f"paper: {_unknown(key, METRICS)}" for key in paper if key not in METRICS]
    given = entry.get("grn") or {}
    known = [each.name for each in fields(GRNOptions)]
    wrong += [f"grn: {_unknown(key, known)}" for key in given if key not in known]
    grn = GRNOptions(**given) if not wrong else GRNOptions()
    stages: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        own = entry.get(stage, {})
        if (tree.get(stage) is None and not own) or own is None:
            continue
        arguments = copy.deepcopy(tree.get(stage) or {})
        if grn != GRNOptions():
            arguments |= _grn_arguments(grn, stage)
        arguments |= own
        stages[stage] = {key: value for key, value in arguments.items() if value is not None}
        wrong += [
            f"{stage}: {key} is set for every run, leave it out"
            for key in arguments
            if key in SET_BY_GRID
            or (stage != "pretrain" and "pretrain" in stages and key in SET_BY_PRETRAINING)
        ]
    if not stages:
        wrong.append(f"it has no stage: give at least one of {', '.join(STAGES)}")
    if wrong:
        raise InputError("; ".join(wrong))
    return Row(name, paper, stages)


def _grn_arguments(grn: GRNOptions, stage: str) -> dict[str, Any]:
    if stage in BY_CONFIG:
        return {
            f"MODEL.CONVNEXT.GRN.{each.name.upper()}": getattr(grn, each.name)
            for each in fields(grn)
        }
    return {
        "grn": grn.kind,
        "grn-aggregate": grn.aggregate,
        "grn-normalize": grn.normalize,
        "no-grn-residual": not grn.residual,
    }


def known_flags(stage: str) -> list[str]:
    """The flags, without dashes, of the tool that runs ``pretrain`` or ``classify``."""
    options = (PretrainOptions,) if stage == "pretrain" else (FinetuneOptions, Recipe)
    names = [each.name for kind in options for each in fields(kind) if each.name not in NO_FLAGS]
    return [*(name.replace("_", "-") for name in names), *FLAGS_APART[stage]]


def _flag_problems(row: Row) -> list[str]:
    """Problems of misspelt flags; a config's keys are checked by its task."""
    problems = []
    for stage in FLAGS_APART:
        known = known_flags(stage)
        problems += [
            f"row {row.name}: {stage}: {_unknown(key, known)}"
            for key in row.stages.get(stage, {})
            if key not in known
        ]
    problems += [
        f"row {row.name}: {stage}: it needs a config-file"
        for stage in BY_CONFIG
        if stage in row.stages and "config-file" not in row.stages[stage]
    ]
    return problems
