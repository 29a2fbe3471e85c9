"""Compute figures from timings: median, percentiles, noise, stability, the bottleneck, and which of two is faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, comb

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DRIFT_LIMIT",
    "ENQUEUE_LIMIT",
    "MEMORY_LIMIT",
    "MIN_ROUNDS",
    "NOISE_LIMIT",
    "SAME_LIMIT",
    "Relative",
    "Summary",
    "bound_by",
    "compare_rounds",
    "median_interval",
    "median_noise",
    "summarize",
    "verdict_of",
]

Milliseconds = NDArray[np.float64]

NOISE_LIMIT = 0.01
"""Largest noise of a stable measurement: the 95 % interval of the median is at most ±1 % wide.

nvbench's criterion is another: the standard deviation of the samples, relative to their mean, below 0.5 %.
"""

DECIMAL_RUNS = 100
"""Number of runs below which the noise is reported in whole per cent."""

DRIFT_LIMIT = 0.03
"""Largest drift of a stable measurement between its halves' medians: neither warming up nor throttling."""

ENQUEUE_LIMIT = 0.8
"""Share of the GPU's time above which a launch is enqueue-bound (as in trtexec's warning, ``sampleReporting.cpp``)."""

MEMORY_LIMIT = 0.6
"""Share of the GPU's time above which a batch is memory-bound.

The time compared with it is that of moving what convolutions and matrix products read and write at the full memory
bandwidth. Kernels that only copy reach about 0.9 of that bandwidth.
"""

SAME_LIMIT = 0.01
"""Two engines are equally fast where the interval of their ratio lies within 1 ∓ this."""

MIN_ROUNDS = 6
"""Fewest rounds with a 95 % interval: with five, the median lies outside the smallest and largest in 6 % of cases."""


@dataclass(frozen=True)
class Summary:
    """Figures of one measurement; times in ms.

    Args:
        noise: half the width of the median's 95 % confidence interval, relative to the median.
        drift: median of the second half over median of the first half, minus one.
        cv: coefficient of variation, standard deviation over mean.
        stable: whether noise and drift are within their limits.
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

    @property
    def verdict(self) -> str:
        """Return ``stable``, or the reason why not: the drift where it is too large, else the noise."""
        if self.stable:
            return "stable"
        if not np.isfinite(self.noise):
            return "too few runs"
        if abs(self.drift) > DRIFT_LIMIT:
            return f"drift {self.drift * 100:+.1f} %"
        return self.noise_words

    @property
    def noise_words(self) -> str:
        """Return the noise in words: ``noise 1.3 %``, or ``noise 2 %`` for fewer than 100 runs.

        The figure is rounded up, as uncertainties are (GUM, 7.2.6), so that noise over a limit never reads like the
        limit. The interval spans about 1.96·√n gaps between neighbouring samples, so its own relative uncertainty is
        one over the root of that number: ±23 % for 100 runs, ±36 % for 16.
        """
        if not np.isfinite(self.noise):
            return "noise unknown"
        digits = 1 if self.iterations >= DECIMAL_RUNS else 0
        shown = ceil(round(self.noise * 100 * 10**digits, 6)) / 10**digits  # 2.3, not 2.4 for 0.023 in binary
        return f"noise {shown:.{digits}f} %"


def median_noise(samples: Milliseconds) -> float:
    """Return half the width of the median's 95 % confidence interval over the median; infinite below 6 samples.

    The interval lies between the order statistics n/2 ∓ 1.96·√n/2. This is the normal approximation of the binomial
    distribution of the number of samples below the median; it assumes nothing about the samples' distribution (Conover,
    Practical Nonparametric Statistics, 3rd edition, section 3.2).
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


def summarize(
    milliseconds: Milliseconds, percentiles: Sequence[float] = (90, 99), max_noise: float = NOISE_LIMIT
) -> Summary:
    """Return all figures of raw samples.

    Args:
        milliseconds: the samples, ms.
        percentiles: those to compute besides the median, 0 to 100.
        max_noise: largest noise of a stable measurement.

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
        stable=noise <= max_noise and abs(drift) <= DRIFT_LIMIT,
    )


def bound_by(
    gpu_ms: float,
    enqueue_ms: float | None = None,
    parts_ms: Mapping[str, float] | None = None,
    memory_ms: float | None = None,
) -> str:
    """Return what limits a batch: ``enqueue-bound``, ``copy-bound``, ``memory-bound`` or ``compute-bound``.

    The first two are trtexec's warnings (``sampleReporting.cpp``): the CPU needs more than :data:`ENQUEUE_LIMIT` of the
    GPU's time to launch, or one direction of the copies takes at least as long as the compute. The third compares
    `memory_ms` with :data:`MEMORY_LIMIT`.

    Args:
        gpu_ms: median GPU time of a batch, without copies.
        enqueue_ms: median CPU time of a launch; None where launches don't matter.
        parts_ms: medians of ``h2d`` and ``d2h``, where the timed run copies.
        memory_ms: time of the batch's memory traffic at the full memory bandwidth; None where unknown.
    """
    if enqueue_ms is not None and enqueue_ms > ENQUEUE_LIMIT * gpu_ms:
        return "enqueue-bound"
    parts = parts_ms or {}
    if parts and max(parts.get("h2d", 0.0), parts.get("d2h", 0.0)) >= gpu_ms:
        return "copy-bound"
    if memory_ms is not None and memory_ms > MEMORY_LIMIT * gpu_ms:
        return "memory-bound"
    return "compute-bound"


@dataclass(frozen=True)
class Relative:
    """Comparison of one engine's times with another's.

    Args:
        ratio: median of the rounds' ratios, this engine's time over the other's; below 1 this engine is faster.
        low, high: the 95 % interval of that median; infinitely wide where there are too few rounds.
        rounds: number of rounds.
        verdict: ``SAME`` where the interval lies within 1 ∓ :data:`SAME_LIMIT`, ``FASTER`` where it lies below 1,
            ``SLOWER`` where it lies above, else ``UNCLEAR``.
    """

    ratio: float
    low: float
    high: float
    rounds: int
    verdict: str


def median_interval(samples: Milliseconds) -> tuple[float, float]:
    """Return an interval that contains the median in at least 95 % of cases; infinite below 6 samples.

    The interval lies between the *r*-th smallest and the *r*-th largest sample. The rank *r* is the largest for which a
    binomial variable of n trials at ½ lies below *r* with a probability of at most 2.5 %. This is exact for any
    distribution of the samples (Conover, Practical Nonparametric Statistics, 3rd edition, section 3.2).
    """
    count, below, rank = samples.size, 0, 0
    while rank < count and below + comb(count, rank) <= 0.025 * 2**count:
        below += comb(count, rank)
        rank += 1
    if rank == 0:
        return float("-inf"), float("inf")
    ordered = np.sort(samples)
    return float(ordered[rank - 1]), float(ordered[count - rank])


def compare_rounds(ours: Sequence[float], theirs: Sequence[float]) -> Relative:
    """Return which of two is faster, from the medians of both in each round.

    Both medians of a round are measured right after each other, so that drift affects both alike and their ratio varies
    by chance alone. The interval is that of the ratios' median (:func:`median_interval`).

    Raises:
        ValueError: the two have different numbers of rounds.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rounds of one, {len(theirs)} of the other")
    if not ours:
        return Relative(float("nan"), float("-inf"), float("inf"), 0, "UNCLEAR")
    ratios = np.asarray(ours, np.float64) / np.asarray(theirs, np.float64)
    low, high = median_interval(ratios)
    return Relative(float(np.median(ratios)), low, high, len(ours), verdict_of(low, high))


def verdict_of(low: float, high: float) -> str:
    """Return ``SAME``, ``FASTER``, ``SLOWER`` or ``UNCLEAR`` for the interval of a ratio of times."""
    if low >= 1 - SAME_LIMIT and high <= 1 + SAME_LIMIT:
        return "SAME"
    if high < 1:
        return "FASTER"
    return "SLOWER" if low > 1 else "UNCLEAR"
