"""The optimizer of both engines and the average of its weights, from the same config keys."""

from __future__ import annotations

from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from backbones.convnext import SIZES
from backbones.param_groups import parameter_groups
from training.schedule import warn_of_schedule


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


def warn_of_solver(solver: Any) -> None:
    """Warn of a schedule that cannot teach what it is meant to."""
    drops = [] if "Cosine" in solver.LR_SCHEDULER_NAME else solver.STEPS
    warn_of_schedule(
        solver.MAX_ITER,
        solver.WARMUP_ITERS,
        [step for step in drops if step < solver.MAX_ITER],
        solver.WARMUP_FACTOR,
    )


def build_average(config: Any, model: nn.Module) -> ModelEmaV3 | None:
    """The exponential moving average of the weights; None without ``SOLVER.EMA.ENABLED``.

    After step n it is ``d * average + (1 - d) * weights`` with ``d = 1 - n ** (-2 / 3)``, at most
    ``SOLVER.EMA.DECAY``: 0.98 after 300 steps, 0.9996 after 130,000. So a short run's average
    forgets where it began.

    Args:
        model: on its device, with the weights to begin from.
    """
    ema = config.SOLVER.EMA
    return ModelEmaV3(model, decay=ema.DECAY, use_warmup=True) if ema.ENABLED else None
