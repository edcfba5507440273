"""Rename whole-detector weights between the two engines, in both directions, exactly.

Both detectors compute the same function of their weights. Only names and the predictors' rows
differ: detectron2 puts the background last in the classifier and gives it no box and no mask;
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

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from backbones.errors import InputError, counted

StateDict = dict[str, Tensor]

# Of these two rules one applies, by the number of the RPN's convolutions.
SINGLE_RPN_CONV = "proposal_generator.rpn_head.conv.{p}"
INDEXED_RPN_CONV = "proposal_generator.rpn_head.conv.conv{n}.{p}"
MANY_RPN_CONVS = {
    "proposal_generator.rpn_head.conv.conv1.weight",
    "rpn.head.conv.1.0.weight",
}

# detectron2 name, torchvision name, and how much larger detectron2's index {n} is ("levels": by the
# number of the pyramid's lowest level).
# {p} is weight or bias. A convolution is a module of its own in one engine, part of one in the
# other.
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
                f"these heads predict {found // rows} {what} for {counted(classes, 'class')}, "
                f"{remedy}"
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
            f"{len(unknown)} of {counted(len(state_dict), 'tensor')} are not a "
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
