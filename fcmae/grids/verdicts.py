"""Decide which of two starts is better from paired runs, also when looking repeatedly.

Runs of a pair share the label subset and the seed. Their differences are taken as draws of one
normal distribution, so that Student's t gives an interval for the mean. Two things would make such
an interval miss the true mean too often. Both are corrected by a stricter level:

  * several questions: each gets its part of 5% (Bonferroni);
  * looking while runs come in, and stopping when the interval leaves 0. A verdict is taken at a few
    numbers of pairs that are fixed beforehand (``LOOKS``) and no other, and each look spends an
    equal part of the question's level (alpha spending: Lan and DeMets, Biometrika 70, 1983; equal
    parts hold whatever the looks' dependence, by the union bound).

So all intervals of a study together miss a true mean in at most 5% of studies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from training.records.intervals import LEVEL, estimate

LOOKS = (3, 5, 8, 12, 20)  # numbers of pairs


@dataclass(frozen=True)
class Verdict:
    """The answer of the pairs so far about a difference."""

    pairs: int  # how many were looked at
    mean: float | None = None  # of the differences; None without a pair
    # low, high: the interval's ends; None before the first look
    low: float | None = None
    high: float | None = None
    # "better" or "worse" where the interval leaves 0 out, else "cannot tell"
    answer: Literal["better", "worse", "cannot tell"] = "cannot tell"


def verdict(differences: Sequence[float], questions: int) -> Verdict:
    """Look at differences in the order in which their pairs were run.

    The first look that leaves 0 out decides, and later pairs do not change it.

    Args:
        differences: of each pair.
        questions: how many a study asks.
    """
    level = LEVEL / (questions * len(LOOKS))
    found = Verdict(len(differences), sum(differences) / len(differences) if differences else None)
    for look in LOOKS:
        if len(differences) < look:
            break
        seen = estimate(differences[:look], level)
        low, high = seen.low, seen.high
        assert low is not None
        assert high is not None
        answer: Literal["better", "worse", "cannot tell"] = "cannot tell"
        if low > 0 or high < 0:
            answer = "better" if low > 0 else "worse"
        found = Verdict(look, seen.mean, low, high, answer)
        if answer != "cannot tell":
            break
    return found
