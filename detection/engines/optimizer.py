"""The optimizer of both engines, from the same keys of the config."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from backbones.convnext import SIZES
from backbones.param_groups import parameter_groups


def build_adamw(config: Any, model: nn.Module, encoder_prefix: str) -> torch.optim.AdamW:
    """AdamW with layer-wise decay, by ``SOLVER`` and ``MODEL.CONVNEXT.SIZE``.

    Args:
        config: this project's config or detectron2's.
        model: a detector.
        encoder_prefix: what precedes the encoder's names in it, such as ``"backbone.body."``.
    """
    solver = config.SOLVER
    groups = parameter_groups(
        model,
        solver.BASE_LR,
        solver.WEIGHT_DECAY,
        depths=SIZES[config.MODEL.CONVNEXT.SIZE].depths,
        layer_decay=solver.LAYER_DECAY,
        layer_decay_type=solver.LAYER_DECAY_TYPE,
        encoder_prefix=encoder_prefix,
    )
    return torch.optim.AdamW(groups, lr=solver.BASE_LR)
