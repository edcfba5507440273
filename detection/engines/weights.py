"""Whole-detector weights of the two engines: one renamed into the other, exactly, both ways.

The detectors are the same function of their weights, so only names differ, and the rows of the
predictors: detectron2 puts the background last in the classifier and gives it no box and no mask;
torchvision puts it first and gives it 4 box rows and 1 mask row, which are 0 here and never read.

| detectron2                                 | torchvision                                    |
| ------------------------------------------ | ---------------------------------------------- |
| backbone.bottom_up.*                       | backbone.body.*                                |
| backbone.fpn_lateral{2..5}, fpn_output     | backbone.fpn.inner_blocks.{0..3}, layer_blocks |
| proposal_generator.rpn_head.*              | rpn.head.*                                     |
| roi_heads.box_head.conv{i}, fc{i}          | roi_heads.box_head.{i-1}, fc{i+5}              |
| roi_heads.mask_head.mask_fcn{i}, ...       | roi_heads.mask_head.{i-1}, mask_predictor.*    |
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.checkpoint import OWN_WEIGHTS
from backbones.convnext import ConvNeXt
from backbones.errors import InputError
from backbones.weights.layouts import adapt_stem
from backbones.weights.sources import read_source
from detection.engines.mmdetection import is_mmdetection, mmdetection_to_detectron2
from detection.engines.transfer import Classes, names_in, parse_aliases, select_classes
from training.command_line.tasks import read_facts
from training.configured import newest_weights

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]
AVERAGE_FOLDER = "inference_EMA"  # results of the averaged weights, in OUTPUT_DIR

# Of these two rules one applies, by the number of the RPN's convolutions.
SINGLE_RPN_CONV = "proposal_generator.rpn_head.conv.{p}"
INDEXED_RPN_CONV = "proposal_generator.rpn_head.conv.conv{n}.{p}"
MANY_RPN_CONVS = {
    "proposal_generator.rpn_head.conv.conv1.weight",
    "rpn.head.conv.1.0.weight",
}

# detectron2 name, torchvision name, and how much larger detectron2's index {n} is ("levels": by the
# number of the pyramid's lowest level).
# {p} is weight or bias; a convolution is a module of its own on one side, a part on the other.
RULES: tuple[tuple[str, str, Any], ...] = (
    ("backbone.bottom_up.{rest}", "backbone.body.{rest}", 0),
    ("backbone.fpn_lateral{n}.{p}", "backbone.fpn.inner_blocks.{n}.0.{p}", "levels"),
    ("backbone.fpn_lateral{n}.norm.{p}", "backbone.fpn.inner_blocks.{n}.1.{p}", "levels"),
    ("backbone.fpn_output{n}.{p}", "backbone.fpn.layer_blocks.{n}.0.{p}", "levels"),
    ("backbone.fpn_output{n}.norm.{p}", "backbone.fpn.layer_blocks.{n}.1.{p}", "levels"),
    (SINGLE_RPN_CONV, "rpn.head.conv.0.0.{p}", 0),
    (INDEXED_RPN_CONV, "rpn.head.conv.{n}.0.{p}", 0),
    ("proposal_generator.rpn_head.objectness_logits.{p}", "rpn.head.cls_logits.{p}", 0),
    ("proposal_generator.rpn_head.anchor_deltas.{p}", "rpn.head.bbox_pred.{p}", 0),
    ("roi_heads.box_head.conv{n}.{p}", "roi_heads.box_head.{n}.0.{p}", 1),
    ("roi_heads.box_head.conv{n}.norm.{p}", "roi_heads.box_head.{n}.1.{p}", 1),
    ("roi_heads.box_head.fc{n}.{p}", "roi_heads.box_head.fc{n}.{p}", -5),
    ("roi_heads.box_predictor.cls_score.{p}", "roi_heads.box_predictor.cls_score.{p}", 0),
    ("roi_heads.box_predictor.bbox_pred.{p}", "roi_heads.box_predictor.bbox_pred.{p}", 0),
    ("roi_heads.mask_head.mask_fcn{n}.{p}", "roi_heads.mask_head.{n}.0.{p}", 1),
    ("roi_heads.mask_head.mask_fcn{n}.norm.{p}", "roi_heads.mask_head.{n}.1.{p}", 1),
    ("roi_heads.mask_head.deconv.{p}", "roi_heads.mask_predictor.conv5_mask.{p}", 0),
    ("roi_heads.mask_head.predictor.{p}", "roi_heads.mask_predictor.mask_fcn_logits.{p}", 0),
)
CLASSIFIER = "roi_heads.box_predictor.cls_score."
BACKGROUND_ROWS = {  # torchvision names
    "roi_heads.box_predictor.bbox_pred.": 4,
    "roi_heads.mask_predictor.mask_fcn_logits.": 1,
}
CASCADE_STAGE = re.compile(r"roi_heads\.box_(head|predictor)\.\d+\.")  # detectron2's
STEM = "downsample_layers.0.0.weight"
PARTS_OF_DETECTOR = {  # what their names begin with, in both engines
    "encoder": ("backbone.bottom_up.", "backbone.body."),
    "pyramid": ("backbone.fpn",),
    "heads": ("proposal_generator.", "rpn.", "roi_heads."),
}
FIELDS = {"{n}": r"(?P<n>\d+)", "{p}": "(?P<p>weight|bias)", "{rest}": "(?P<rest>.+)"}


def is_detectron2(names: Iterable[str]) -> bool:
    """Whether these are the names of a detectron2 detector's weights."""
    return any(name.startswith(("backbone.bottom_up.", "proposal_generator.")) for name in names)


def detectron2_to_torchvision(state_dict: StateDict) -> StateDict:
    """A detectron2 detector's weights under torchvision's names; tensors may share memory.

    Raises:
        InputError: for heads that torchvision does not have (Cascade, one box or mask for all
            classes), or naming every key that is none of a ConvNeXt Mask R-CNN's.
    """
    _check_heads(state_dict)
    renamed = _rename(state_dict, source=0, target=1)
    for name, value in renamed.items():
        if name.startswith(CLASSIFIER):
            renamed[name] = value.roll(1, 0)
        elif rows := background_rows(name):
            renamed[name] = torch.cat((value.new_zeros(rows, *value.shape[1:]), value))
    return renamed


def torchvision_to_detectron2(state_dict: StateDict) -> StateDict:
    """The inverse of :func:`detectron2_to_torchvision`.

    Raises:
        InputError: naming every key that is none of a ConvNeXt Mask R-CNN's, or whose rows of the
            background are not 0 and would be lost.
    """
    values, learnt = {}, []
    for name, value in state_dict.items():
        rows = background_rows(name)
        if name.startswith(CLASSIFIER):
            value = value.roll(-1, 0)
        elif rows and value[:rows].any():
            learnt.append(name)
        values[name] = value[rows:]
    if learnt:
        raise InputError(
            f"the background's rows are not 0 in {', '.join(learnt)}; detectron2 has no place for "
            "them. These weights were not trained by this project's torchvision engine"
        )
    return _rename(values, source=1, target=0)


def _check_heads(state_dict: StateDict) -> None:
    """Raise a ValueError for detectron2's heads that torchvision does not have."""
    remedy = "which the torchvision engine does not have: evaluate them with ENGINE detectron2"
    if any(CASCADE_STAGE.match(name) for name in state_dict):
        raise InputError(f"these are Cascade heads, {remedy}")
    classes = len(state_dict.get(f"{CLASSIFIER}bias", ())) - 1
    for prefix, rows, what in (
        ("roi_heads.box_predictor.bbox_pred.", 4, "box"),
        ("roi_heads.mask_head.predictor.", 1, "mask"),
    ):
        found = len(state_dict.get(f"{prefix}bias", ()))
        if classes > 0 and found and found != rows * classes:
            raise InputError(
                f"these heads predict {found // rows} {what} for {classes} classes, {remedy}"
            )


def background_rows(torchvision_name: str) -> int:
    """How many leading rows of a torchvision tensor belong to the background alone."""
    return next((n for key, n in BACKGROUND_ROWS.items() if torchvision_name.startswith(key)), 0)


def _rename(state_dict: StateDict, source: int, target: int) -> StateDict:
    """Apply ``RULES`` from column ``source`` to column ``target`` (0 detectron2, 1 torchvision)."""
    rules = [_compile(*rule) for rule in _rules_for(state_dict, source, target)]
    renamed, unknown = {}, []
    for name, value in state_dict.items():
        new_name = next((new for rule in rules if (new := rule(name))), None)
        if new_name is None:
            unknown.append(name)
        else:
            renamed[new_name] = value
    if unknown:
        raise InputError(
            f"{len(unknown)} of {len(state_dict)} tensors are not a "
            f"{('detectron2', 'torchvision')[source]} ConvNeXt Mask R-CNN's: {', '.join(unknown)}"
        )
    return renamed


def _rules_for(state_dict: StateDict, source: int, target: int) -> list[tuple[str, str, int]]:
    """(pattern, template, what to add to {n}): ``RULES`` for this detector and direction."""
    lowest = _lowest_level(state_dict)
    has_many_convs = not MANY_RPN_CONVS.isdisjoint(state_dict)
    rules = []
    for *names, shift in RULES:
        if names[0] == (SINGLE_RPN_CONV if has_many_convs else INDEXED_RPN_CONV):
            continue
        shift = lowest if shift == "levels" else shift
        rules.append((names[source], names[target], shift * (source - target)))
    return rules


def _lowest_level(names: Iterable[str]) -> int:
    """The number of a pyramid's lowest level, 2 for ``p2``.

    torchvision counts its convolutions from 0; the last of them belongs to the last stage, behind
    which nothing is built.
    """

    def numbers(pattern: str) -> list[int]:
        return [int(match[1]) for name in names if (match := re.match(pattern, name))]

    names = list(names)
    if levels := numbers(r"backbone\.fpn_lateral(\d)\.weight"):
        return min(levels)
    count = len(numbers(r"backbone\.fpn\.inner_blocks\.(\d)\.0\.weight"))
    top = 2 + max(numbers(r"backbone\.body\.stages\.(\d)\."), default=3)
    return top - count + 1


def _compile(pattern: str, template: str, shift: int) -> Callable[[str], str | None]:
    """A function from a name to its new name, or to None where the rule does not apply."""
    expression = re.escape(pattern)
    for field, fields_expression in FIELDS.items():
        expression = expression.replace(re.escape(field), fields_expression)

    def apply(name: str) -> str | None:
        if not (match := re.fullmatch(expression, name)):
            return None
        fields = match.groupdict()
        if "n" in fields:
            fields["n"] = str(int(fields["n"]) + shift)
        return template.format(**fields)

    return apply


def read_detector(
    path: str | Path,
    model: nn.Module,
    classes: Classes | None = None,
    adapt_channels: bool = False,
) -> None:
    """Load a whole detector of any known layout into a model of either engine, strictly.

    Args:
        path: safetensors or a PyTorch checkpoint (read without running code in it).
        model: untouched if an error is raised.
        classes: those that the model is to have: rows of the file's classes of these names are
            kept, the others are new. None where the file's must be the model's.
        adapt_channels: a stem of other channels is turned into the model's.

    Raises:
        FileNotFoundError: if the file does not exist.
        InputError: if the file is unreadable or not exactly this detector; every tensor that does
            not fit is named.
    """
    (tensors, metadata), wanted = read_source(path), model.state_dict()
    remedy = (
        "MODEL.WEIGHTS takes a whole detector of this config; "
        "an encoder goes into MODEL.CONVNEXT.WEIGHTS"
    )
    if not any(STEM in name for name in tensors):
        raise InputError(
            f"{path} is of another architecture: it has no ConvNeXt, but {len(tensors)} tensors "
            f"such as {', '.join(list(tensors)[:3])}. {remedy}"
        )
    try:
        if is_mmdetection(tensors):
            tensors = mmdetection_to_detectron2(tensors)
        if classes is not None:
            tensors = _with_classes(tensors, metadata, classes, str(path))
        if is_detectron2(tensors) != is_detectron2(wanted):
            to_torchvision = is_detectron2(tensors)
            rename = detectron2_to_torchvision if to_torchvision else torchvision_to_detectron2
            tensors = rename(tensors)
    except InputError as error:
        raise InputError(f"{path} is not this detector: {error}. {remedy}") from None
    for name in (name for name in tensors if adapt_channels and STEM in name and name in wanted):
        if tensors[name].shape[1] != (channels := wanted[name].shape[1]):
            logger.warning("%s: its stem is turned into one of %d channels", path, channels)
            tensors[name] = adapt_stem(tensors[name], channels)
    tensors = _without_idle(path, tensors, wanted)
    misshapen = [
        f"{name} ({tuple(tensors[name].shape)} in the file, {tuple(wanted[name].shape)} here)"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names)}"
        for what, names in (
            ("missing in the file", [name for name in wanted if name not in tensors]),
            ("not in the model", [name for name in tensors if name not in wanted]),
            ("of another size", misshapen),
        )
        if names
    ]
    encoders = [module for module in model.modules() if isinstance(module, ConvNeXt)]
    theirs = metadata.get("grn")
    for ours in (encoder.grn for encoder in encoders):
        if None not in (ours, theirs) and str(ours) != theirs:
            problems.append(f"trained with {theirs}; MODEL.CONVNEXT.GRN is {ours}")
    if problems:
        raise InputError("\n  ".join([f"{path} is not this detector. {remedy}", *problems]))
    model.load_state_dict(tensors)
    logger.info("%d of %d tensors from the detector %s", len(wanted), len(wanted), path)


def _with_classes(
    tensors: StateDict, metadata: Mapping[str, str], classes: Classes, source: str
) -> StateDict:
    """The rows that ``classes`` want; tensors of the same layout, untouched where nothing changes.

    Rows are chosen in detectron2's layout, which both engines' detectors have.
    """
    ours = is_detectron2(tensors)
    d2 = tensors if ours else torchvision_to_detectron2(tensors)
    chosen = select_classes(d2, names_in(metadata, d2), classes, source)
    if all(chosen[name] is d2[name] for name in d2):
        return tensors
    return chosen if ours else detectron2_to_torchvision(chosen)


def wanted_classes(config: Any, class_names: Sequence[str] | None) -> Classes | None:
    """The classes of the data for :func:`read_detector`, from either engine's config."""
    if class_names is None:
        return None
    return Classes(class_names, parse_aliases(config.MODEL.CLASS_ALIASES), max(config.SEED, 0))


def freeze_parts(model: nn.Module, parts: Sequence[str]) -> None:
    """Stop parts of a detector of either engine from learning (``MODEL.FREEZE``).

    Raises:
        InputError: if nothing is left that learns.
    """
    for part in parts:
        names = [n for n, _ in model.named_parameters() if n.startswith(PARTS_OF_DETECTOR[part])]
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.requires_grad_(False)
        logger.info("MODEL.FREEZE: %s does not learn, %d tensors", part, len(names))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"MODEL.FREEZE is {list(parts)}: nothing is left that learns")


def _without_idle(path: str | Path, tensors: StateDict, wanted: StateDict) -> StateDict:
    """Without output norms and stages that no head reads: detectors of old have them."""
    part = re.compile(r"backbone\.(?:body|bottom_up)\.(out_norms|downsample_layers|stages)\.(\d*)")

    def stage(name: str) -> int:
        found = part.match(name)
        return int(found[2]) if found and found[2] else -1

    built = max(map(stage, wanted), default=3)
    idle = [
        name
        for name in tensors
        if name not in wanted
        and (found := part.match(name))
        and (found[1] == "out_norms" or stage(name) > built)
    ]
    if idle:
        logger.info("%d tensors of %s that no head reads are left out", len(idle), path)
    return {name: tensor for name, tensor in tensors.items() if name not in idle}


def encoder_licence(output_dir: Path) -> str | None:
    """The licence of the encoder that a run began with, as far as ``run.json`` knows."""
    facts = read_facts(output_dir)
    if "encoder" not in facts:
        return None
    return facts["encoder"]["licence"] if facts["encoder"] else OWN_WEIGHTS


def averaged_weights(output_dir: Path) -> Path | None:
    """The average (``SOLVER.EMA``) of the weights of a finished run, if it has one."""
    final = newest_weights(output_dir)
    path = final.with_name(f"{final.stem}_ema{final.suffix}")
    return path if path.is_file() else None
