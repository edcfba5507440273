"""Detection configs: YAML files with ``_BASE_``, read and checked without detectron2.

A config is an fvcore ``CfgNode`` with the keys of :mod:`detection.schema`; files are read as
:mod:`training.config_files` says.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvcore.common.config import CfgNode

from backbones.d2_config import add_convnext_config
from backbones.errors import InputError
from backbones.pyramid import Contradiction, level_contradictions
from detection.data.augmentation.checks import augmentation_contradictions
from detection.schema import IN_TRAINING_ALONE, SCHEMA, TORCHVISION_ONLY
from images.configured import known_statistics, shared_contradictions
from training.config_files import add_defaults, get, read_config
from training.configured import resolve_device

if TYPE_CHECKING:
    from detection.dataset import CocoDataset

__all__ = ["add_convnext_config", "default_config", "load_config", "to_detectron2"]

logger = logging.getLogger(__name__)

LEAST_TILE = 64  # pixels: the stride of the pyramid's level p6


def default_config() -> CfgNode:
    """All keys with their defaults: a Mask R-CNN with a feature pyramid on a ConvNeXt V2 atto."""
    config = CfgNode()
    add_defaults(config, SCHEMA)
    return config


def load_config(path: str | Path, overrides: Sequence[str] = (), training: bool = True) -> CfgNode:
    """Read a config file with its bases and overrides, checked as a whole, frozen.

    Args:
        path: a YAML file, or the name of one in ``det_configs``, from any folder.
        overrides: ``KEY VALUE KEY VALUE ...`` as on detectron2's command line.
        training: False for a detector that is trained already: settings that matter in training
            alone may be those of the other engine.

    Raises:
        InputError: listing all problems: unreadable YAML, unknown keys, wrong types, bad values,
            and values that contradict each other or the engine.
        FileNotFoundError: if the file or one of its bases is missing.
    """
    config = read_config(path, overrides, SCHEMA, partial(_contradictions, training=training))
    late = [step for step in config.SOLVER.STEPS if step >= config.SOLVER.MAX_ITER]
    if late and training:
        logger.warning("SOLVER.STEPS %s lie behind MAX_ITER %d", late, config.SOLVER.MAX_ITER)
    return config


def has_detectron2() -> bool:
    return importlib.util.find_spec("detectron2") is not None


def require_detectron2() -> None:
    """Raise an InputError that says how to install detectron2, where it is not."""
    if not has_detectron2():
        raise InputError(
            "ENGINE is detectron2, which is not installed. Install it with\n"
            '  pip install --no-build-isolation "git+https://github.com/facebookresearch/detectron2"'
            "\n(it needs a C++ compiler and takes some minutes), or use --engine torchvision, "
            "which gives the same numbers"
        )


def to_detectron2(config: CfgNode) -> Any:
    """The config as detectron2's ``CfgNode``, with all of detectron2's other keys; not frozen.

    ``MODEL.DEVICE: auto`` becomes the device itself, and the ROI heads become those with soft-NMS
    (which this registers) where that is enabled; mean and deviation that are not given are
    ImageNet's; every other value is taken over as it is.

    Raises:
        InputError: if detectron2 is not installed.
    """
    require_detectron2()
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_convnext_config(cfg)
    for name in SCHEMA:
        *sections, leaf = name.split(".")
        reduce(getitem, sections, cfg)[leaf] = copy.deepcopy(get(config, name))
    cfg.MODEL.DEVICE = resolve_device(config)
    cfg.MODEL.CONVNEXT.ALLOW_IGNORED_KEYS = True  # this project's trainer ignores none
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = known_statistics(config)
    if cfg.MODEL.ROI_HEADS.SOFT_NMS.ENABLED:
        import detection.suppression.detectron2_heads  # noqa: F401 - registers these heads

        cfg.MODEL.ROI_HEADS.NAME = f"SoftNMS{cfg.MODEL.ROI_HEADS.NAME}"
    return cfg


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


def _contradictions(config: CfgNode, training: bool) -> Iterator[Contradiction]:
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
    yield from _tile_contradictions(config, training)
    yield from augmentation_contradictions(config)
    yield from _validation_contradictions(config)
    yield from shared_contradictions(config)
    yield from level_contradictions(model, extra=1, roi_extra=False)
    yield from _cascade_contradictions(model)
    low, high = model.RPN.IOU_THRESHOLDS
    if not low <= high <= 1:
        yield (
            ("MODEL.RPN.IOU_THRESHOLDS",),
            f"MODEL.RPN.IOU_THRESHOLDS is {[low, high]}; it must be [low, high], at most 1",
        )
    if config.ENGINE == "torchvision":
        for name, allowed in TORCHVISION_ONLY.items():
            if get(config, name) not in allowed and (training or name not in IN_TRAINING_ALONE):
                yield (
                    (name, "ENGINE"),
                    f"{name} is {get(config, name)!r}, but ENGINE torchvision only has "
                    f"{' or '.join(map(repr, allowed))}; change it, or use ENGINE detectron2",
                )


def _tile_contradictions(config: CfgNode, training: bool) -> Iterator[Contradiction]:
    tiles, key = config.INPUT.TILES, "INPUT.TILES"
    if not tiles.ENABLED:
        return
    if tiles.SIZE and tiles.SIZE < LEAST_TILE:
        yield (
            (f"{key}.SIZE",),
            f"{key}.SIZE is {tiles.SIZE}, less than the {LEAST_TILE} pixels that one place of the "
            f"coarsest level sees; give at least {LEAST_TILE}, or 0 to take it from the objects",
        )
    if tiles.SIZE and tiles.OVERLAP >= tiles.SIZE:
        yield (
            (f"{key}.OVERLAP", f"{key}.SIZE"),
            f"{key}.OVERLAP is {tiles.OVERLAP}, but tiles of {key}.SIZE {tiles.SIZE} can share at "
            f"most {tiles.SIZE - 1} pixels; half of SIZE is already a large overlap",
        )
    for others, wanted, remedy in (
        ("INPUT.LSJ.ENABLED", False, "tiles keep their images' pixels: switch one of them off"),
        ("TEST.AUG.ENABLED", False, "tiles are not augmented: switch one of them off"),
        ("INPUT.MASK_FORMAT", "bitmask", "tiles cut masks as bitmaps: set it to bitmask"),
    ):
        is_late = others in IN_TRAINING_ALONE or others == "INPUT.LSJ.ENABLED"
        if get(config, others) != wanted and (training or not is_late):
            value = get(config, others)
            yield (others, f"{key}.ENABLED"), f"{others} is {value!r} beside {key}, but {remedy}"


def _validation_contradictions(config: CfgNode) -> Iterator[tuple[tuple[str, ...], str]]:
    """What contradicts ``DATASETS.VAL``, the data that choose the best weights."""
    sets, patience = config.DATASETS, config.SOLVER.EARLY_STOPPING.PATIENCE
    for other, why in (
        ("TRAIN", "the best weights would be chosen by images that they were trained on"),
        ("TEST", "its result would be too good, because the weights were chosen by it"),
    ):
        for name in sorted(set(sets.VAL) & set(sets[other])):
            yield (
                ("DATASETS.VAL", f"DATASETS.{other}"),
                f"DATASETS.VAL and {other} both name {name}: {why}. Split it in two",
            )
    if sets.VAL and not config.TEST.EVAL_PERIOD:
        yield (
            ("DATASETS.VAL", "TEST.EVAL_PERIOD"),
            "DATASETS.VAL chooses the best weights at each TEST.EVAL_PERIOD, which is 0: set it to "
            f"{max(config.SOLVER.MAX_ITER // 10, 1)}, say, a tenth of SOLVER.MAX_ITER",
        )
    if patience and not sets.VAL:
        yield (
            ("SOLVER.EARLY_STOPPING.PATIENCE", "DATASETS.VAL"),
            f"SOLVER.EARLY_STOPPING.PATIENCE is {patience}, but nothing tells when to stop: name a "
            "set in DATASETS.VAL, or set PATIENCE to 0",
        )
    if sets.VAL and config.TEST.BEST_METRIC.startswith("segm") and not config.MODEL.MASK_ON:
        yield (
            ("TEST.BEST_METRIC", "MODEL.MASK_ON"),
            f"TEST.BEST_METRIC is {config.TEST.BEST_METRIC}, but MODEL.MASK_ON is False: take bbox",
        )


def _cascade_contradictions(model: CfgNode) -> Iterator[Contradiction]:
    """Settings on which detectron2's Cascade heads would fail with a bare assertion."""
    name = model.ROI_HEADS.NAME
    if name not in ("CascadeROIHeads", "PerClassCascadeROIHeads"):
        return
    cascade, first = model.ROI_BOX_CASCADE_HEAD, list(model.ROI_HEADS.IOU_THRESHOLDS)
    if name == "PerClassCascadeROIHeads":
        for key, value, why in (
            ("ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG,
             "has a box for each class"),
            ("ROI_HEADS.SOFT_NMS.ENABLED", model.ROI_HEADS.SOFT_NMS.ENABLED,
             "does not suppress softly"),
        ):  # fmt: skip
            if value:
                keys = ("MODEL.ROI_HEADS.NAME", f"MODEL.{key}")
                yield keys, f"MODEL.{key} is True, but MODEL.ROI_HEADS.NAME {name} {why}"
    elif not model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        yield (
            ("MODEL.ROI_HEADS.NAME", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"),
            "MODEL.ROI_HEADS.NAME is 'CascadeROIHeads', whose stages refine one box for all "
            "classes: set MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG to True",
        )
    if len(cascade.IOUS) != len(cascade.BBOX_REG_WEIGHTS):
        yield (
            ("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"),
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS is for {len(cascade.IOUS)} stages, "
            f"BBOX_REG_WEIGHTS for {len(cascade.BBOX_REG_WEIGHTS)}; give one of each per stage",
        )
    if list(cascade.IOUS[:1]) != first:
        yield (
            ("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "MODEL.ROI_HEADS.IOU_THRESHOLDS"),
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS begins with {cascade.IOUS[0]}, but the first stage "
            f"learns from what MODEL.ROI_HEADS.IOU_THRESHOLDS {first} selects: make them equal",
        )
