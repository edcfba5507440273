"""Rename detectors of mmdetection (2.x, 3.x, the ConvNeXt authors') to detectron2's names.

Only names differ: rows, anchors, box deltas and the background's place (last) are detectron2's. A
cascade has three box heads, of convolutions with a norm, and three mask heads.

| mmdetection                              | detectron2                                    |
| ---------------------------------------- | --------------------------------------------- |
| backbone.* (its names), backbone.norm{i} | backbone.bottom_up.* (ours), out_norms        |
| neck.lateral_convs.{i}.conv, fpn_convs   | backbone.fpn_lateral{i+2}, fpn_output         |
| rpn_head.rpn_conv, rpn_cls, rpn_reg      | proposal_generator.rpn_head.conv, ...         |
| roi_head.bbox_head.shared_fcs.{i}        | roi_heads.box_head.fc{i+1}                    |
| roi_head.bbox_head.shared_convs.{i}      | roi_heads.box_head.conv{i+1}                  |
| roi_head.mask_head.convs.{i}, upsample   | roi_heads.mask_head.mask_fcn{i+1}, deconv     |

References:
    mmdetection (Apache-2.0), ``configs/convnext``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

from backbones.errors import InputError, counted
from backbones.key_adapters import to_ours

P = r"(weight|bias)"
STAGE = r"((?:\d\.)?)"  # of a cascade
BN = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
RULES: tuple[tuple[str, str], ...] = (
    (rf"neck\.lateral_convs\.(\d)\.conv\.{P}", "backbone.fpn_lateral{n}.{1}"),
    (rf"neck\.fpn_convs\.(\d)\.conv\.{P}", "backbone.fpn_output{n}.{1}"),
    (rf"rpn_head\.rpn_conv\.{P}", "proposal_generator.rpn_head.conv.{0}"),
    (rf"rpn_head\.rpn_cls\.{P}", "proposal_generator.rpn_head.objectness_logits.{0}"),
    (rf"rpn_head\.rpn_reg\.{P}", "proposal_generator.rpn_head.anchor_deltas.{0}"),
    (
        rf"roi_head\.bbox_head\.{STAGE}shared_convs\.(\d)\.conv\.{P}",
        "roi_heads.box_head.{0}conv{m}.{2}",
    ),
    (
        rf"roi_head\.bbox_head\.{STAGE}shared_convs\.(\d)\.bn\.{BN}",
        "roi_heads.box_head.{0}conv{m}.norm.{2}",
    ),
    (rf"roi_head\.bbox_head\.{STAGE}shared_fcs\.(\d)\.{P}", "roi_heads.box_head.{0}fc{m}.{2}"),
    (rf"roi_head\.bbox_head\.{STAGE}fc_cls\.{P}", "roi_heads.box_predictor.{0}cls_score.{1}"),
    (rf"roi_head\.bbox_head\.{STAGE}fc_reg\.{P}", "roi_heads.box_predictor.{0}bbox_pred.{1}"),
    (
        rf"roi_head\.mask_head\.{STAGE}convs\.(\d)\.conv\.{P}",
        "roi_heads.mask_head.{0}mask_fcn{m}.{2}",
    ),
    (rf"roi_head\.mask_head\.{STAGE}upsample\.{P}", "roi_heads.mask_head.{0}deconv.{1}"),
    (rf"roi_head\.mask_head\.{STAGE}conv_logits\.{P}", "roi_heads.mask_head.{0}predictor.{1}"),
)
LOWEST_LEVEL = 2  # of the pyramid: stride 4


def is_mmdetection(names: Iterable[str]) -> bool:
    """Whether these are the names of a whole detector of mmdetection's."""
    return any(name.startswith(("neck.", "rpn_head.", "roi_head.")) for name in names)


def mmdetection_to_detectron2(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """A detector of mmdetection's under detectron2's names; tensors may share memory.

    Raises:
        InputError: naming every key that is none of a ConvNeXt Mask R-CNN's or Cascade's.
    """
    detector = {n: t for n, t in state_dict.items() if not n.startswith("data_preprocessor.")}
    encoder = to_ours({n: t for n, t in detector.items() if n.startswith("backbone.")})
    renamed = {f"backbone.bottom_up.{name}": tensor for name, tensor in encoder.tensors.items()}
    unknown = list(encoder.others)
    for name, tensor in detector.items():
        if name.startswith("backbone."):
            continue
        if (new := _renamed(name)) is None:
            unknown.append(name)
        else:
            renamed[new] = tensor
    if unknown:
        raise InputError(
            f"{len(unknown)} of {counted(len(detector), 'tensor')} are not of mmdetection's Mask "
            f"R-CNN or Cascade Mask R-CNN of a ConvNeXt: {', '.join(unknown)}"
        )
    return renamed


def _renamed(name: str) -> str | None:
    for pattern, template in RULES:
        if match := re.fullmatch(pattern, name):
            groups = match.groups()
            number = next((int(g) for g in groups if g and g.isdecimal()), 0)
            return template.format(*groups, n=number + LOWEST_LEVEL, m=number + 1)
    return None
