"""Optimizer parameter groups: layer-wise learning-rate decay and the no-decay rule.

The one implementation for pretraining, classification and both detection engines.

Weight decay does not apply to norms, biases, GRN's gamma and beta and V1's layer scale. (The
authors' pretraining does decay GRN's, which have several dimensions there.) Layer ids follow the
authors' fine-tuning code (facebookresearch/ConvNeXt-V2, ``optim_factory.py``), generalised
from base's depths to any: a learning rate is multiplied by ``layer_decay ** (last - id)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import nn

from backbones.errors import InputError

LayerDecayType = Literal["single", "group", "stage"]
STAGE_LAYERS = 12  # the default for "stage"


def is_undecayed(name: str, ndim: int, decay_grn: bool = False) -> bool:
    """Whether weight decay spares this parameter: norms, biases, GRN, layer scale."""
    if decay_grn and name.endswith((".grn.gamma", ".grn.beta")):
        return False
    return ndim <= 1 or name.endswith((".bias", ".gamma", ".beta"))


def last_layer_id(
    depths: Sequence[int], kind: LayerDecayType, stage_layers: int = STAGE_LAYERS
) -> int:
    """The id of everything after the encoder's stages, which keeps the full learning rate.

    * "group": three blocks of the third stage share an id. For base the ids are 0 to 12 inside the
      encoder, and this is 13.
    * "single": each block has an id; for base this is 37.
    * "stage": each stage has one id, stem and downsampling have 0, and this is ``stage_layers`` +
    1.
      The segmentation recipes use it (``stage_wise`` of mmsegmentation).
    """
    if kind == "stage":
        return stage_layers + 1
    return 4 + math.ceil(depths[2] / 3) if kind == "group" else sum(depths) + 1


def layer_id(
    name: str,
    depths: Sequence[int],
    kind: LayerDecayType = "group",
    stage_layers: int = STAGE_LAYERS,
) -> int:
    """The layer id of an encoder parameter, by its name in :class:`backbones.convnext.ConvNeXt`.

    Args:
        name: such as ``"stages.2.4.dwconv.weight"``, relative to the encoder.
        depths: blocks of the four stages.
        kind, stage_layers: see :func:`last_layer_id`.

    Returns:
        0 or 1 for the stem up to ``last_layer_id(depths, kind)`` for output norms and head.
    """
    part, *rest = name.split(".")
    if part not in ("downsample_layers", "stages"):
        return last_layer_id(depths, kind, stage_layers)
    stage = int(rest[0])
    if kind == "stage":
        return stage + 1 if part == "stages" else 0
    block = int(rest[1]) if part == "stages" else 0
    if kind == "single":
        return sum(depths[:stage]) + block + 1
    if part == "downsample_layers" and stage == 0:
        return 0
    if stage == 3:
        return last_layer_id(depths, kind) - 1
    return stage + 1 + (block // 3 if stage == 2 else 0)


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    depths: Sequence[int] = (),
    layer_decay: float = 1.0,
    layer_decay_type: LayerDecayType = "group",
    encoder_prefix: str = "",
    stage_layers: int = STAGE_LAYERS,
    decay_grn: bool = False,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, one for each (layer id, decayed or not) that occurs.

    Args:
        model: its parameters with ``requires_grad`` are grouped, each exactly once.
        lr: the learning rate of the last layer id (heads, decoder).
        weight_decay: of the decayed parameters; the others get 0.
        depths: the encoder's, needed when ``layer_decay`` is not 1.
        layer_decay: factor per layer id; 1 gives every parameter ``lr``.
        layer_decay_type, stage_layers: how ids are given, see :func:`last_layer_id`.
        encoder_prefix: the prefix of the encoder's names in the model, such as
            ``"backbone.bottom_up."``; parameters without it have the last layer id.
        decay_grn: decay GRN's gamma and beta, too.

    Returns:
        Dictionaries of ``params``, ``param_names``, ``lr`` and ``weight_decay``, by layer id.

    Raises:
        InputError: if layer decay is asked for and no parameter has the prefix, or the values are
            out of range.
    """
    if not 0 < layer_decay <= 1:
        raise InputError(f"layer decay is {layer_decay}; it must be in (0, 1]")
    if layer_decay_type not in get_args(LayerDecayType):
        allowed = ", ".join(get_args(LayerDecayType))
        raise InputError(f"layer decay type is {layer_decay_type!r}; allowed: {allowed}")
    if layer_decay != 1:
        if len(depths) != 4:
            raise InputError(f"layer decay needs the encoder's four depths, got {tuple(depths)}")
        if not any(
            name.startswith(encoder_prefix + "stages.") for name, _ in model.named_parameters()
        ):
            raise InputError(f"layer decay: no parameter is named {encoder_prefix}stages.*")
    last = last_layer_id(depths, layer_decay_type, stage_layers) if layer_decay != 1 else 0
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        undecayed = is_undecayed(name, parameter.ndim, decay_grn)
        layer = last
        if layer_decay != 1 and name.startswith(encoder_prefix):
            inner = name.removeprefix(encoder_prefix)
            layer = layer_id(inner, depths, layer_decay_type, stage_layers)
        group = groups.setdefault(
            (layer, undecayed),
            {
                "params": [],
                "param_names": [],
                "lr": lr * layer_decay ** (last - layer),
                "weight_decay": 0.0 if undecayed else weight_decay,
            },
        )
        group["params"].append(parameter)
        group["param_names"].append(name)
    return [groups[key] for key in sorted(groups)]
