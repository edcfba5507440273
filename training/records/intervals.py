"""Means of repeated runs with their spread and confidence interval (Student's t)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from scipy.stats import t as students_t

from backbones.errors import InputError

LEVEL = 0.05  # probability that an interval misses the true mean


@cache
def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """The value above which Student's t lies with probability ``level / 2``.

    Raises:
        InputError: for fewer than 1 degree of freedom.
    """
    if degrees < 1:
        raise InputError(f"an interval has {degrees} degrees of freedom; it needs at least 1")
    return float(students_t.ppf(1 - level / 2, degrees))


@dataclass(frozen=True)
class Estimate:
    """A mean over runs.

    Args:
        mean: the mean.
        deviation: standard deviation of the runs (n - 1); None for a single run.
        half_width: half the width of the mean's confidence interval, 95% unless said otherwise;
            None for a single run.
        runs: number of runs.
    """

    mean: float
    deviation: float | None
    half_width: float | None
    runs: int

    @property
    def low(self) -> float | None:
        """The interval's lower end."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """The interval's upper end."""
        return None if self.half_width is None else self.mean + self.half_width

    def said(self, digits: int = 2, sign: str = "") -> str:
        """The mean with its interval, or alone for a single run; ``sign`` "+" shows plus signs."""
        width = "" if self.half_width is None else f" ± {self.half_width:.{digits}f}"
        return f"{self.mean:{sign}.{digits}f}{width}"


def estimate(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """The mean of one or more runs.

    Args:
        level: probability that the interval misses the true mean.

    Raises:
        InputError: if there is none.
    """
    if not values:
        raise InputError("no run to take the mean of")
    runs = len(values)
    if runs == 1:
        return Estimate(values[0], None, None, 1)
    deviation = statistics.stdev(values)
    half_width = t_quantile(runs - 1, level) * deviation / math.sqrt(runs)
    return Estimate(statistics.fmean(values), deviation, half_width, runs)


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float]
) -> Estimate | None:
    """``values - baseline`` over the seeds that both have; None if there are none."""
    common = sorted(values.keys() & baseline.keys())
    return estimate([values[seed] - baseline[seed] for seed in common]) if common else None
