"""Timings to figures: median, percentiles, noise, and whether a measurement was stable. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["DRIFT_LIMIT", "NOISE_LIMIT", "Summary", "median_noise", "summarize"]

NOISE_LIMIT = 0.01
"""Stable means: the 95 % interval of the median is at most ±1 % wide. (nvbench stops at 0.5 % of the mean's
standard error, which is about the same width for a 95 % interval.)"""

DRIFT_LIMIT = 0.03
"""… and the median of the second half is within 3 % of the first half's: no warming up, no throttling."""


@dataclass(frozen=True)
class Summary:
    """Figures of one measurement; times in ms.

    Args:
        noise: half width of the 95 % confidence interval of the median, relative to it.
        drift: median of the second half over median of the first half, less one.
        cv: coefficient of variation, standard deviation over mean.
        stable: noise and drift are within their limits.
    """

    iterations: int
    median: float
    mean: float
    minimum: float
    maximum: float
    percentiles: dict[str, float]
    cv: float
    noise: float
    drift: float
    stable: bool


def median_noise(samples: NDArray[np.float64]) -> float:
    """Half width of the median's 95 % confidence interval over the median; infinite below 6 samples.

    The interval lies between order statistics n/2 ∓ 1.96·√n/2: the binomial distribution of the number of
    samples under the median, by its normal approximation, no assumption on the samples' distribution
    (Conover, Practical Nonparametric Statistics, 3rd edition, section 3.2).
    """
    count = samples.size
    if count < 6:
        return float("inf")
    ordered = np.sort(samples)
    reach = 1.96 * np.sqrt(count) / 2
    low = max(0, int(np.floor(count / 2 - reach)))
    high = min(count - 1, int(np.ceil(count / 2 + reach)))
    median = float(np.median(ordered))
    return float(ordered[high] - ordered[low]) / 2 / median if median > 0 else float("inf")


def summarize(milliseconds: NDArray[np.float64], percentiles: Sequence[float] = (90, 99)) -> Summary:
    """All figures of raw samples in ms.

    Raises:
        ValueError: there are no samples.
    """
    if milliseconds.size == 0:
        raise ValueError("no samples")
    half = milliseconds.size // 2
    median = float(np.median(milliseconds))
    first = float(np.median(milliseconds[:half])) if half else median
    drift = float(np.median(milliseconds[half:])) / first - 1 if first > 0 else 0.0
    mean = float(milliseconds.mean())
    noise = median_noise(milliseconds)
    return Summary(
        iterations=int(milliseconds.size),
        median=median,
        mean=mean,
        minimum=float(milliseconds.min()),
        maximum=float(milliseconds.max()),
        percentiles={f"p{p:g}": float(np.percentile(milliseconds, p)) for p in percentiles},
        cv=float(milliseconds.std()) / mean if mean > 0 else 0.0,
        noise=noise,
        drift=drift,
        stable=noise <= NOISE_LIMIT and abs(drift) <= DRIFT_LIMIT,
    )
