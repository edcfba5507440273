"""Learning-rate factors: functions from the number of finished steps to a multiplier."""

from __future__ import annotations

import math
from collections.abc import Callable

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
