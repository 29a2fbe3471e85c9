"""Confidence intervals of percentiles, by order statistics. Pure numpy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trtbatch.core.sidecar import Interval

__all__ = ["CONFIDENCE", "percentile_interval", "runs_needed"]

CONFIDENCE = 0.95
"""Of the intervals. Each end alone is missed in half of the rest: 2.5 % of cases."""


def runs_needed(percentile: float) -> int:
    """The fewest samples of which the largest lies above the percentile with enough confidence: 368 for p99.

    All *n* samples lie below it with probability pⁿ, which must be 2.5 % at the most.
    """
    return math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(percentile / 100))


def percentile_interval(samples: NDArray[np.float64], percentile: float) -> Interval:
    """A percentile of the samples, and an interval that holds the true one in 95 % of cases at least.

    The number of *n* samples below the true percentile is binomial, Bin(n, p). The upper end is the *u*-th smallest
    sample, *u* being the least with P(Bin ≤ u − 1) ≥ 97.5 %; the lower end is the *l*-th, *l* being the largest with
    P(Bin ≤ l − 1) ≤ 2.5 %: exact, whatever the distribution of the samples, as long as they are independent (Conover,
    Practical Nonparametric Statistics, 3rd edition, section 3.2). Where no such *u* or *l* exists that end is
    infinite.

    Args:
        percentile: over 0 and below 100.

    Raises:
        ValueError: there are no samples.
    """
    if samples.size == 0:
        raise ValueError("no samples")
    ordered = np.sort(samples)
    below = _binomial_cdf(samples.size, percentile / 100)
    tail = (1 - CONFIDENCE) / 2
    upper = int(np.searchsorted(below, 1 - tail)) + 1
    lower = int(np.searchsorted(below, tail, side="right"))
    return Interval(
        value=float(np.percentile(ordered, percentile)),
        low=float(ordered[lower - 1]) if lower >= 1 else -math.inf,
        high=float(ordered[upper - 1]) if upper <= samples.size else math.inf,
    )


def _binomial_cdf(count: int, share: float) -> NDArray[np.float64]:
    """P(Bin(count, share) ≤ k) for k = 0 … count; by logarithms, for the binomials are too large for floats."""
    steps = np.arange(1, count + 1, dtype=np.float64)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(steps))])
    k = np.arange(count + 1)
    logs = factorials[count] - factorials - factorials[::-1] + k * math.log(share) + (count - k) * math.log1p(-share)
    return np.asarray(np.cumsum(np.exp(logs)), np.float64)
