"""The config of a detectron2 project with this encoder: additional keys, and checks.

This file imports neither detectron2 nor other packages of this project, because a detectron2
project often has its own ``detection`` or ``training`` folder, which would hide ours.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import getitem
from typing import Any

from backbones.convnext import SIZES, STAGES
from backbones.pyramid import (
    UNCHOSEN,
    Contradiction,
    all_levels_read,
    anchor_contradictions,
    level_contradictions,
    levels_of,
    levels_read,
    plan_pyramid,
)

RGB_MEAN, RGB_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # ImageNet's, of 0 to 255

# Keys of det_configs that act only in this project's tools/train_net.py, switched off.
SWITCHES: dict[str, Any] = {
    "WANDB": False,
    "DATASETS.VAL": (),
    "INPUT.VALUE_RANGE": [],
    "INPUT.LSJ.ENABLED": False,
    "INPUT.TILES.ENABLED": False,
    "INPUT.AUGMENTATION.ROTATE_90": False,
    "INPUT.AUGMENTATION.BRIGHTNESS": 0.0,
    "INPUT.AUGMENTATION.CONTRAST": 0.0,
    "INPUT.AUGMENTATION.SATURATION": 0.0,
    "INPUT.AUGMENTATION.HUE": 0.0,
    "INPUT.AUGMENTATION.BLUR": 0.0,
    "INPUT.AUGMENTATION.NOISE": 0.0,
    "INPUT.AUGMENTATION.COPY_PASTE.ENABLED": False,
    "MODEL.CLASS_ALIASES": (),
    "MODEL.FREEZE": [],
    "SOLVER.ACCUMULATE": 1,
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.LAYER_DECAY": 1.0,
    "SOLVER.EMA.ENABLED": False,
}
# Every key of det_configs that detectron2 does not have.
KEYS: dict[str, Any] = {
    **SWITCHES,
    "ENGINE": "detectron2",
    "INPUT.SHOW_BANDS": [],
    "INPUT.LSJ.MIN_SCALE": 0.1,
    "INPUT.LSJ.MAX_SCALE": 2.0,
    "INPUT.LSJ.SIZE": 1024,
    "INPUT.TILES.SIZE": 0,
    "INPUT.TILES.OVERLAP": -1,
    "INPUT.TILES.BACKGROUND": 0.2,
    "INPUT.TILES.MIN_VISIBLE": 0.1,
    "INPUT.AUGMENTATION.COPY_PASTE.PROBABILITY": 1.0,
    "INPUT.AUGMENTATION.COPY_PASTE.MIN_SCALE": 0.8,
    "INPUT.AUGMENTATION.COPY_PASTE.MAX_SCALE": 1.25,
    "MODEL.CONVNEXT.SIZE": "convnextv2_atto",
    "MODEL.CONVNEXT.WEIGHTS": "",
    "MODEL.CONVNEXT.IN_CHANS": 3,
    "MODEL.CONVNEXT.DROP_PATH_RATE": 0.0,
    "MODEL.CONVNEXT.OUT_FEATURES": list(STAGES),
    "MODEL.CONVNEXT.OUT_NORMS": True,
    "MODEL.CONVNEXT.OUTPUT_STRIDE": 32,
    "MODEL.CONVNEXT.CHECKPOINT_STAGES": [],
    "MODEL.CONVNEXT.GRN.KIND": "grn",
    "MODEL.CONVNEXT.GRN.AGGREGATE": "l2",
    "MODEL.CONVNEXT.GRN.NORMALIZE": "mean",
    "MODEL.CONVNEXT.GRN.RESIDUAL": True,
    "MODEL.CONVNEXT.ALLOW_OTHER_GRN": False,
    "MODEL.CONVNEXT.ADAPT_CHANNELS": False,
    "MODEL.CONVNEXT.ALLOW_IGNORED_KEYS": False,
    "MODEL.ROI_HEADS.SOFT_NMS.ENABLED": False,
    "MODEL.ROI_HEADS.SOFT_NMS.METHOD": "linear",
    "MODEL.ROI_HEADS.SOFT_NMS.SIGMA": 0.5,
    "MODEL.ROI_HEADS.SOFT_NMS.MIN_SCORE": 0.001,
    "SOLVER.LAYER_DECAY_TYPE": "group",
    "SOLVER.EMA.DECAY": 0.9999,
    "SOLVER.EARLY_STOPPING.PATIENCE": 0,
    "SOLVER.AMP.PRECISION": "bf16",  # detectron2's own trainer takes fp16
    "TEST.BEST_METRIC": "bbox/AP",
}


def add_convnext_config(cfg: Any) -> None:
    """Add the keys of ``det_configs`` that detectron2 does not have; existing keys are kept.

    Call it with ``get_cfg()``, before your file is merged.
    """
    add_keys(cfg, KEYS)


def add_keys(cfg: Any, defaults: Mapping[str, Any]) -> None:
    """Add every dotted key that a config lacks, with its default."""
    for name, default in defaults.items():
        *sections, leaf = name.split(".")
        node = cfg
        for section in sections:
            node = node.setdefault(section, type(cfg)())
        node.setdefault(leaf, copy.deepcopy(default))


def config_problems(cfg: Any, extra: int | None, unchosen: bool = False) -> list[str]:
    """A message for everything that is wrong with this config of a detector on a ConvNeXt.

    Args:
        cfg: detectron2's config.
        extra: how many levels the pyramid's top block makes; None without a pyramid.
        unchosen: whether to check heads, too, whose levels are detectron2's defaults (a backbone on
            its own has no heads).
    """
    lines = []
    if "CONVNEXT" not in cfg.MODEL:
        lines.append(
            "the config has no MODEL.CONVNEXT: call backbones.d2_adapter.add_convnext_config(cfg) "
            "before you merge your file"
        )
        cfg = cfg.clone()
        cfg.defrost()
        add_convnext_config(cfg)
    model = cfg.MODEL
    found: Iterator[Contradiction] = (
        level_contradictions(model, extra) if extra is not None else _without_pyramid(model)
    )
    idle = set() if unchosen else {r for r, v in levels_read(model).items() if v == UNCHOSEN}
    lines += [problem for keys, problem in found if not idle.intersection(keys)]
    if extra == 2 and not lines:
        lines += _idle_p7(model)
    if lines:  # still a ResNet's config: list the other keys to change, too
        lines += [*_resnet_weights(model), *freezing(model), *foreign_pixels(cfg)]
    if model.CONVNEXT.SIZE not in SIZES:
        lines.append(
            f"MODEL.CONVNEXT.SIZE is {model.CONVNEXT.SIZE!r}; the sizes are {', '.join(SIZES)}"
        )
    if len(model.PIXEL_MEAN or [0] * model.CONVNEXT.IN_CHANS) != model.CONVNEXT.IN_CHANS:
        lines.append(
            f"MODEL.CONVNEXT.IN_CHANS is {model.CONVNEXT.IN_CHANS}, but MODEL.PIXEL_MEAN has "
            f"{len(model.PIXEL_MEAN)} values: give one value for each channel"
        )
    if not model.CONVNEXT.ALLOW_IGNORED_KEYS and (ours := list(_ours_alone(cfg))):
        if cfg.SOLVER.AMP.ENABLED:
            ours.append(
                f"SOLVER.AMP.PRECISION is {cfg.SOLVER.AMP.PRECISION!r}: detectron2's own trainer "
                "does not know this key and takes fp16"
            )
        lines += [
            *ours,
            "(take the file to this project's tools/train_net.py --engine detectron2, in which all "
            "keys act; or change them; or set MODEL.CONVNEXT.ALLOW_IGNORED_KEYS True to build the "
            "model nevertheless)",
        ]
    soft_nms, heads = model.ROI_HEADS.SOFT_NMS, model.ROI_HEADS.NAME
    if soft_nms.ENABLED and not heads.startswith("SoftNMS"):
        lines.append(
            f"MODEL.ROI_HEADS.SOFT_NMS.ENABLED is True, which {heads} would ignore: import "
            f"detection.suppression.detectron2_heads and set MODEL.ROI_HEADS.NAME to "
            f"SoftNMS{heads}, or set it to False"
        )
    return lines


def _without_pyramid(model: Any) -> Iterator[Contradiction]:
    """Errors of a config without a pyramid, whose heads read the encoder's stages."""
    given = list(model.CONVNEXT.OUT_FEATURES)
    key = "MODEL.CONVNEXT.OUT_FEATURES"
    if not given or (unknown := [name for name in given if name not in STAGES]):
        what = f"names {unknown}" if given else "names nothing"
        yield (key,), f"{key} {what}; the stages are {', '.join(STAGES)}"
        return
    readers = levels_read(model)
    for reader, wanted in readers.items():
        if missing := [name for name in wanted if name not in given]:
            yield (reader, key), f"{reader} names {missing}, but {key} gives {given}"
    yield from anchor_contradictions(model)
    if model.ROI_HEADS.NAME == "Res5ROIHeads" and "MODEL.ROI_HEADS.IN_FEATURES" in readers:
        (stage, *_), width = model.ROI_HEADS.IN_FEATURES, 4 * model.RESNETS.RES2_OUT_CHANNELS
        if stage in given and model.CONVNEXT.SIZE in SIZES:
            channels = SIZES[model.CONVNEXT.SIZE].dims[STAGES.index(stage)]
            if channels != width:
                yield (
                    ("MODEL.RESNETS.RES2_OUT_CHANNELS",),
                    f"MODEL.RESNETS.RES2_OUT_CHANNELS is {model.RESNETS.RES2_OUT_CHANNELS}: "
                    f"Res5ROIHeads take 4 times as many channels, but {stage} of "
                    f"{model.CONVNEXT.SIZE} has {channels}; set it to {channels // 4}",
                )


def _idle_p7(model: Any) -> Iterator[str]:
    plan = plan_pyramid(model.FPN.IN_FEATURES, all_levels_read(model), extra=2)
    if len(plan.above) == 1 and plan.above[0] == levels_of(plan.stages, 1)[-1]:
        yield (
            f"{' and '.join(levels_read(model))} name {plan.above[0]} without the level above it, "
            "whose convolution would be idle: name both, or take build_convnext_fpn_backbone"
        )


def _resnet_weights(model: Any) -> Iterator[str]:
    if model.WEIGHTS.startswith("detectron2://ImageNetPretrained/"):
        yield (
            f"MODEL.WEIGHTS is {model.WEIGHTS}, another network's: empty it, and name an encoder "
            "in MODEL.CONVNEXT.WEIGHTS"
        )


def freezing(model: Any) -> Iterator[str]:
    if model.BACKBONE.FREEZE_AT == 2:
        yield (
            "MODEL.BACKBONE.FREEZE_AT is 2, detectron2's default for ResNets: stem and stage1 do "
            "not learn. Set it to 0 to train all of the encoder, as ConvNeXt's recipes do"
        )


def foreign_pixels(
    cfg: Any, mean: Any = None, std: Any = None, source: str = "ConvNeXt's weights"
) -> Iterator[str]:
    """Messages about pixel settings that differ from those the encoder was trained with.

    Args:
        mean, std: of the encoder's images, RGB, from 0 to 255; ImageNet's if not given.
        source: whose they are, for the messages.
    """
    mean, std = mean or RGB_MEAN, std or RGB_STD
    if len(mean) == 3 and cfg.INPUT.FORMAT != "RGB":
        yield f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; {source} learnt from 'RGB'"
    for name, ours in (("PIXEL_MEAN", mean), ("PIXEL_STD", std)):
        if not (given := list(cfg.MODEL[name])):
            continue  # empty: the encoder's are taken
        ordered = given[::-1] if cfg.INPUT.FORMAT == "BGR" else given
        if len(given) != len(ours) or any(
            abs(a - b) > 0.5 for a, b in zip(ordered, ours, strict=True)
        ):
            yield f"MODEL.{name} is {given}; {source} learnt with {[round(v, 3) for v in ours]}"
        elif ordered != given and given != given[::-1]:  # right values in the wrong order
            yield f"MODEL.{name} is {given}, in BGR's order; in RGB's it is {ordered}"


def _ours_alone(cfg: Any) -> Iterator[str]:
    """Messages about keys that detectron2's own trainer would ignore."""
    for name, off in SWITCHES.items():
        if (value := reduce(getitem, name.split("."), cfg)) != off:
            yield f"{name} is {value!r}: detectron2's own trainer does not know this key"
    solver, model = cfg.SOLVER, cfg.MODEL
    if solver.CLIP_GRADIENTS.ENABLED and solver.CLIP_GRADIENTS.CLIP_TYPE == "full_model":
        yield (
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE is 'full_model': detectron2's own trainer knows "
            "'value' and 'norm'"
        )
    if cfg.INPUT.RANDOM_FLIP == "both":
        yield "INPUT.RANDOM_FLIP is 'both': detectron2's own trainer flips in one direction"
    if model.DEVICE == "auto":
        yield "MODEL.DEVICE is 'auto': detectron2's own trainer knows 'cuda' and 'cpu'"
    classes = {"ROI_HEADS": model.ROI_HEADS, "RETINANET": model.RETINANET}
    for section in {name.split(".")[1] for name in levels_read(model)} & set(classes):
        if classes[section].NUM_CLASSES == 0:
            yield f"MODEL.{section}.NUM_CLASSES is 0: give the number of your classes"
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if str(name).startswith("json:"):
                yield (
                    f"DATASETS.{key} is {name!r}: register it by detectron2's "
                    "register_coco_instances and give its name"
                )
