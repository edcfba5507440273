"""Means of repeated runs with their spread and 95% confidence interval (Student's t)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backbones.errors import InputError

# the 97.5% quantile for 1, 2, ... 10 degrees of freedom; the expansion below serves from there
QUANTILES = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
NORMAL = 1.9599640


def t_quantile(degrees: int) -> float:
    """The 97.5% quantile of Student's t, to 1e-3.

    Raises:
        InputError: for fewer than 1 degree of freedom.

    References:
        Abramowitz and Stegun, 26.7.5: the expansion for many degrees of freedom.
    """
    if degrees < 1:
        raise InputError(f"an interval has {degrees} degrees of freedom; it needs at least 1")
    if degrees <= len(QUANTILES):
        return QUANTILES[degrees - 1]
    z = NORMAL
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )


@dataclass(frozen=True)
class Estimate:
    """A mean over runs.

    Args:
        mean: of them.
        deviation: their standard deviation (n - 1); None for a single run.
        half_width: of the mean's 95% confidence interval; None for a single run.
        runs: how many.
    """

    mean: float
    deviation: float | None
    half_width: float | None
    runs: int


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one or more runs.

    Raises:
        InputError: if there is none.
    """
    if not values:
        raise InputError("no run to take the mean of")
    runs = len(values)
    if runs == 1:
        return Estimate(values[0], None, None, 1)
    deviation = statistics.stdev(values)
    half_width = t_quantile(runs - 1) * deviation / math.sqrt(runs)
    return Estimate(statistics.fmean(values), deviation, half_width, runs)


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float]
) -> Estimate | None:
    """``values - baseline`` over the seeds that both have; None if there are none."""
    common = sorted(values.keys() & baseline.keys())
    return estimate([values[seed] - baseline[seed] for seed in common]) if common else None
