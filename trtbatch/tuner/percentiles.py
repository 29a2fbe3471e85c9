"""Compute confidence intervals of percentiles by order statistics."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trtbatch.core.sidecar import Interval

__all__ = ["CONFIDENCE", "percentile_interval", "runs_needed"]

CONFIDENCE = 0.95
"""Confidence of the intervals. The true value lies beyond each end in at most half of the rest, 2.5 % of cases."""


def runs_needed(percentile: float) -> int:
    """Return the fewest samples whose largest exceeds the percentile with enough confidence: 368 for p99.

    All *n* samples lie below the percentile with probability pⁿ, which must be at most 2.5 %.
    """
    return math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(percentile / 100))


def percentile_interval(samples: NDArray[np.float64], percentile: float) -> Interval:
    """Return a percentile of the samples, and an interval that holds the true one in at least 95 % of cases.

    The number of *n* samples below the true percentile has the distribution Bin(n, p). The upper end is the *u*-th
    smallest sample, for the least *u* with P(Bin ≤ u − 1) ≥ 97.5 %. The lower end is the *l*-th, for the largest *l*
    with P(Bin ≤ l − 1) ≤ 2.5 %. This is exact for any distribution of independent samples (Conover, Practical
    Nonparametric Statistics, 3rd edition, section 3.2). If there is no such *u* or *l*, that end is infinite.

    Args:
        samples: independent samples, in any order.
        percentile: above 0 and below 100.

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
    """Return P(Bin(count, share) ≤ k) for k = 0 … count, by logarithms, since binomials overflow floats."""
    steps = np.arange(1, count + 1, dtype=np.float64)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(steps))])
    k = np.arange(count + 1)
    logs = factorials[count] - factorials - factorials[::-1] + k * math.log(share) + (count - k) * math.log1p(-share)
    return np.asarray(np.cumsum(np.exp(logs)), np.float64)
