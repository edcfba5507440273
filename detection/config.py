"""Detection configs: YAML files with ``_BASE_``, read and checked without detectron2.

A config is an fvcore ``CfgNode`` with the keys of :mod:`detection.schema`. A file is a delta to
its ``_BASE_`` (relative to the file; one or a list, later ones win) and to the defaults;
``KEY VALUE`` overrides come last. Every problem is reported at once, with the file that it is in.
"""

from __future__ import annotations

import ast
import copy
import difflib
import logging
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml
from fvcore.common.config import BASE_KEY, CfgNode

from backbones.convnext import SIZES, STAGES
from backbones.errors import InputError
from backbones.normalization import GRNOptions
from detection.schema import CHANNELS, LEVELS, SCHEMA, TORCHVISION_ONLY

if TYPE_CHECKING:
    from detection.dataset import CocoDataset

logger = logging.getLogger(__name__)

OVERRIDES = "command line"
DEFAULTS = "defaults"


def default_config() -> CfgNode:
    """All keys with their defaults: a Mask R-CNN with a feature pyramid on a ConvNeXt V2 atto."""
    config = CfgNode()
    add_convnext_config(config)
    return config


def add_convnext_config(cfg: CfgNode) -> None:
    """Add every key of the schema that ``cfg`` lacks, with its default.

    This is the hook for detectron2 users: after it, their ``get_cfg()`` merges the files of
    ``det_configs``. Keys that are there keep their values.
    """
    for name, key in SCHEMA.items():
        *sections, leaf = name.split(".")
        node = cfg
        for section in sections:
            node = node.setdefault(section, type(cfg)())
        node.setdefault(leaf, copy.deepcopy(key.default))


def get(config: CfgNode, name: str) -> Any:
    """The value of a dotted key."""
    return reduce(getitem, name.split("."), config)


def flat_values(config: CfgNode) -> dict[str, int | float | str]:
    """Every key of the schema with its value, as experiment trackers take them: lists as text."""
    values = {name: get(config, name) for name in SCHEMA}
    return {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in values.items()}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a config file with its bases and overrides, checked as a whole, frozen.

    Args:
        path: a YAML file.
        overrides: ``KEY VALUE KEY VALUE ...`` as on detectron2's command line.

    Raises:
        InputError: listing all problems: unreadable YAML, unknown keys, wrong types, bad values,
            and values that contradict each other or the engine.
        FileNotFoundError: if the file or one of its bases is missing.
    """
    problems: list[str] = []
    layers = list(_read_layers(Path(path), problems, ()))
    layers.append((OVERRIDES, _overrides(overrides, problems)))
    config = default_config()
    origin: dict[str, str] = {}
    faulty: set[str] = set()
    for source, values in layers:
        for name, value in values.items():
            origin[name] = source
            faulty.discard(name)
            if problem := _set(config, name, value):
                faulty.add(name)
                problems.append(f"{source}: {problem}")
    for names, problem in _contradictions(config):
        if not faulty.intersection(names):
            sources = dict.fromkeys(origin.get(name, DEFAULTS) for name in names)
            problems.append(f"{', '.join(sources)}: {problem}")
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError("\n  ".join([f"{count} in the config {path}:", *problems]))
    late = [step for step in config.SOLVER.STEPS if step >= config.SOLVER.MAX_ITER]
    if late:
        logger.warning("SOLVER.STEPS %s lie behind MAX_ITER %d", late, config.SOLVER.MAX_ITER)
    config.freeze()
    return config


def to_detectron2(config: CfgNode) -> Any:
    """The config as detectron2's ``CfgNode``, with all of detectron2's other keys; not frozen.

    ``MODEL.DEVICE: auto`` becomes the device itself, and the ROI heads become those with soft-NMS
    (which this registers) where that is enabled; every other value is taken over as it is.

    Raises:
        InputError: if detectron2 is not installed.
    """
    try:
        from detectron2.config import get_cfg
    except ImportError as error:
        raise InputError(
            "ENGINE detectron2 needs detectron2, which is not installed (see README, "
            f'"detectron2"), or use ENGINE torchvision: {error}'
        ) from error
    cfg = get_cfg()
    add_convnext_config(cfg)
    for name in SCHEMA:
        *sections, leaf = name.split(".")
        reduce(getitem, sections, cfg)[leaf] = copy.deepcopy(get(config, name))
    cfg.MODEL.DEVICE = resolve_device(config)
    if cfg.MODEL.ROI_HEADS.SOFT_NMS.ENABLED:
        import detection.engines.detectron2.heads  # noqa: F401 - registers these heads

        cfg.MODEL.ROI_HEADS.NAME = f"SoftNMS{cfg.MODEL.ROI_HEADS.NAME}"
    return cfg


def resolve_device(config: CfgNode) -> str:
    """``MODEL.DEVICE``, with ``auto`` resolved to "cuda" where there is a GPU and else "cpu"."""
    if config.MODEL.DEVICE != "auto":
        return config.MODEL.DEVICE
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_precision(config: Any) -> Literal["no", "bf16", "fp16"]:
    """The precision of ``SOLVER.AMP``, by the words of ``training.options``.

    Args:
        config: this project's config or detectron2's.

    Raises:
        InputError: for fp16 on a CPU.
    """
    amp = config.SOLVER.AMP
    if not amp.ENABLED:
        return "no"
    if amp.PRECISION == "fp16" and torch.device(resolve_device(config)).type == "cpu":
        raise InputError(
            "SOLVER.AMP.PRECISION is fp16, which needs a GPU, but MODEL.DEVICE is "
            f"{config.MODEL.DEVICE} and trains on the CPU: use bf16, or SOLVER.AMP.ENABLED False"
        )
    return amp.PRECISION


def resolve_num_classes(config: CfgNode, dataset: CocoDataset) -> int:
    """The number of classes: the data set's, which a given ``NUM_CLASSES`` must equal.

    Raises:
        InputError: if it does not.
    """
    given, counted = config.MODEL.ROI_HEADS.NUM_CLASSES, len(dataset.class_names)
    if given not in (0, counted):
        raise InputError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {given}, but {dataset.annotations} has {counted} "
            f"categories; set it to {counted}, or to 0 to take the annotations' number"
        )
    return counted


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, of which PyYAML would silently drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_layers(
    path: Path, problems: list[str], readers: tuple[Path, ...]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file, dotted key -> value) for a file's bases and then the file itself."""
    path = path.expanduser()
    chain = (*readers, path.resolve())
    if path.resolve() in readers:
        raise InputError(f"{BASE_KEY} goes in a circle: {' -> '.join(map(str, chain))}")
    if not path.is_file():
        reader = f", which is the {BASE_KEY} of {readers[-1]}" if readers else ""
        raise FileNotFoundError(f"there is no config file {path}{reader}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        line = f", line {mark.line + 1}" if mark else ""
        problems.append(f"{path}{line}: not readable as YAML: {problem}")
        return
    if not isinstance(tree, dict):
        problems.append(f"{path}: a config is a mapping of keys to values, not {tree!r:.80}")
        return
    bases = tree.pop(BASE_KEY, [])
    for base in [bases] if isinstance(bases, str) else bases:
        yield from _read_layers(path.parent / Path(base).expanduser(), problems, chain)
    yield str(path), dict(_flatten(tree))


def _flatten(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in SCHEMA:
            yield from _flatten(value, f"{name}.")
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


def _set(config: CfgNode, name: str, value: Any) -> str | None:
    """Set one key; returns what is wrong with it, if anything."""
    if name not in SCHEMA:
        if any(known.startswith(f"{name}.") for known in SCHEMA):
            return f"{name} is a section, it cannot be {value!r}"
        close = difflib.get_close_matches(name, SCHEMA, n=1, cutoff=0.5)
        return f"unknown key {name}" + (f"; the closest known key is {close[0]}" if close else "")
    key = SCHEMA[name]
    value = _coerce(value, key.default)
    if type(value) is not type(key.default) or not key.is_valid(value):
        return f"{name} is {value!r}; it must be {key.allowed}"
    *sections, leaf = name.split(".")
    reduce(getitem, sections, config)[leaf] = value
    return None


def _coerce(value: Any, default: Any) -> Any:
    """Bring a value to the default's type where that loses nothing.

    As in detectron2, a string is read as a Python literal where no string is wanted (YAML gives
    ``1e-4`` as a string), and lists and tuples stand for each other. An integer may stand for a
    float.
    """
    if isinstance(value, str) and not isinstance(default, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        row = default[0] if default else None
        is_nested = isinstance(row, (list, tuple))
        return type(default)(_coerce(item, row) if is_nested else item for item in value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    return value


def _contradictions(config: CfgNode) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (keys involved, what is wrong) for valid values that do not go together."""
    size, lsj, model = config.INPUT.MIN_SIZE_TRAIN, config.INPUT.LSJ, config.MODEL
    if config.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and not (
        len(size) == 2 and size[0] <= size[1]
    ):
        yield (
            ("INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TRAIN_SAMPLING"),
            f"INPUT.MIN_SIZE_TRAIN is {size}; MIN_SIZE_TRAIN_SAMPLING 'range' needs (low, high)",
        )
    if lsj.MIN_SCALE > lsj.MAX_SCALE:
        yield (
            ("INPUT.LSJ.MIN_SCALE", "INPUT.LSJ.MAX_SCALE"),
            f"INPUT.LSJ.MIN_SCALE {lsj.MIN_SCALE} is above MAX_SCALE {lsj.MAX_SCALE}",
        )
    yield from _channel_contradictions(config)
    yield from _grn_contradictions(model.CONVNEXT)
    yield from _level_contradictions(model)
    yield from _cascade_contradictions(model)
    if config.SOLVER.IMS_PER_BATCH % config.SOLVER.ACCUMULATE:
        yield (
            ("SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATE"),
            f"SOLVER.IMS_PER_BATCH is {config.SOLVER.IMS_PER_BATCH}, the images of one optimizer "
            f"step, which SOLVER.ACCUMULATE {config.SOLVER.ACCUMULATE} does not divide",
        )
    low, high = model.RPN.IOU_THRESHOLDS
    if not low <= high <= 1:
        yield (
            ("MODEL.RPN.IOU_THRESHOLDS",),
            f"MODEL.RPN.IOU_THRESHOLDS is {[low, high]}; it must be [low, high], at most 1",
        )
    if config.ENGINE == "torchvision":
        for name, allowed in TORCHVISION_ONLY.items():
            if get(config, name) not in allowed:
                yield (
                    (name, "ENGINE"),
                    f"{name} is {get(config, name)!r}, but ENGINE torchvision only has "
                    f"{' or '.join(map(repr, allowed))}; change it, or use ENGINE detectron2",
                )


def _channel_contradictions(config: CfgNode) -> Iterator[tuple[tuple[str, ...], str]]:
    channels = CHANNELS[config.INPUT.FORMAT]
    for name, count in (
        ("MODEL.CONVNEXT.IN_CHANS", config.MODEL.CONVNEXT.IN_CHANS),
        ("MODEL.PIXEL_MEAN", len(config.MODEL.PIXEL_MEAN)),
        ("MODEL.PIXEL_STD", len(config.MODEL.PIXEL_STD)),
    ):
        if count != channels:
            yield (
                (name, "INPUT.FORMAT"),
                f"{name} is for {count} channels, but INPUT.FORMAT {config.INPUT.FORMAT!r} "
                f"has {channels}",
            )


def _grn_contradictions(convnext: CfgNode) -> Iterator[tuple[tuple[str, ...], str]]:
    keys = tuple(f"MODEL.CONVNEXT.GRN.{name}" for name in convnext.GRN)
    try:
        options = GRNOptions.of_config(convnext.GRN)
    except ValueError as error:
        yield keys, f"MODEL.CONVNEXT.GRN: {error}"
        return
    if SIZES[convnext.SIZE].version == 1 and options != GRNOptions():
        yield (
            ("MODEL.CONVNEXT.SIZE", *keys),
            f"MODEL.CONVNEXT.GRN is {options}, but {convnext.SIZE}, a ConvNeXt V1, has no GRN",
        )


def _cascade_contradictions(model: CfgNode) -> Iterator[tuple[tuple[str, ...], str]]:
    """What detectron2's Cascade heads would meet by an assert."""
    if model.ROI_HEADS.NAME != "CascadeROIHeads":
        return
    cascade, first = model.ROI_BOX_CASCADE_HEAD, list(model.ROI_HEADS.IOU_THRESHOLDS)
    if not model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        yield (
            ("MODEL.ROI_HEADS.NAME", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"),
            "MODEL.ROI_HEADS.NAME is 'CascadeROIHeads', whose stages refine one box for all "
            "classes: set MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG to True",
        )
    if len(cascade.IOUS) != len(cascade.BBOX_REG_WEIGHTS):
        yield (
            ("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"),
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS is for {len(cascade.IOUS)} stages, "
            f"BBOX_REG_WEIGHTS for {len(cascade.BBOX_REG_WEIGHTS)}; give one of each a stage",
        )
    if list(cascade.IOUS[:1]) != first:
        yield (
            ("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "MODEL.ROI_HEADS.IOU_THRESHOLDS"),
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS begins with {cascade.IOUS[0]}, but the first stage "
            f"learns from what MODEL.ROI_HEADS.IOU_THRESHOLDS {first} selects: make them equal",
        )


def _level_contradictions(model: CfgNode) -> Iterator[tuple[tuple[str, ...], str]]:
    """The chain of feature maps: stages -> pyramid -> RPN, its anchors, and ROI heads."""
    stages = [STAGES.index(name) for name in model.FPN.IN_FEATURES]
    if stages != list(range(stages[0], stages[-1] + 1)):
        yield (
            ("MODEL.FPN.IN_FEATURES",),
            f"MODEL.FPN.IN_FEATURES is {model.FPN.IN_FEATURES}; its stages must be consecutive",
        )
    pyramid = list(LEVELS[stages[0] : stages[-1] + 2])
    for name, inputs, maker, outputs in (
        ("FPN", model.FPN, "CONVNEXT.OUT_FEATURES", model.CONVNEXT.OUT_FEATURES),
        ("RPN", model.RPN, "FPN.IN_FEATURES", pyramid),
        ("ROI_HEADS", model.ROI_HEADS, "FPN.IN_FEATURES", pyramid[:-1]),
    ):
        if missing := [level for level in inputs.IN_FEATURES if level not in outputs]:
            yield (
                (f"MODEL.{name}.IN_FEATURES", f"MODEL.{maker}"),
                f"MODEL.{name}.IN_FEATURES names {missing}, but MODEL.{maker} gives {outputs}",
            )
    levels = len(model.RPN.IN_FEATURES)
    anchors = model.ANCHOR_GENERATOR
    for name, rows in (("SIZES", anchors.SIZES), ("ASPECT_RATIOS", anchors.ASPECT_RATIOS)):
        if len(rows) not in (1, levels) or len({len(row) for row in rows}) > 1:
            yield (
                (f"MODEL.ANCHOR_GENERATOR.{name}", "MODEL.RPN.IN_FEATURES"),
                f"MODEL.ANCHOR_GENERATOR.{name} is {rows}; it must have 1 list or {levels}, one "
                "for each of MODEL.RPN.IN_FEATURES, all of one length",
            )
