"""Learning-rate factors: functions from the number of finished steps to a multiplier."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from backbones.errors import counted

logger = logging.getLogger(__name__)

LrFactor = Callable[[int], float]


def cosine_with_warmup(total_steps: int, warmup_steps: int, final_factor: float = 0.0) -> LrFactor:
    """Linear from 0 over the warm-up, then half a cosine down to ``final_factor`` at the end.

    References:
        The schedule of MAE and of FCMAE's released code, by step instead of by epoch.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * min(1, progress)))

    return factor


def warn_of_schedule(
    steps: int, warmup: int, drops: Sequence[int] = (), first_factor: float = 0.0
) -> None:
    """Warn, before the training, if warm-up or drops do not fit the number of steps.

    Args:
        steps: number of steps of the run.
        warmup: number of steps of the warm-up.
        drops: steps at which the rate falls.
        first_factor: fraction of the rate at the first step of the warm-up.
    """
    if warmup >= steps and warmup:
        logger.warning(
            "the warm-up of %s does not end within the run of %d: the learning rate never "
            "reaches its value; shorten the warm-up or train longer",
            *(counted(warmup, "step"), steps),
        )
    if steps == 1 and warmup and first_factor == 0:
        logger.warning("this run of one step has a learning rate of 0: it learns nothing")
    if early := [step for step in drops if step <= warmup]:
        logger.warning(
            "the learning rate drops at step %s, within the warm-up of %s, before it has "
            "reached its value; shorten the warm-up or let it drop later",
            *(", ".join(map(str, early)), counted(warmup, "step")),
        )
