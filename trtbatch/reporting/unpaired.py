"""Compare two runs that were timed separately, by the ratio of their medians and its interval; only numpy."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, log, sqrt

import numpy as np
from numpy.typing import NDArray

from trtbatch.util.statistics import verdict_of

__all__ = ["BLOCKS", "BLOCK_RUNS", "MIN_BLOCKS", "Ratio", "ratio_of_medians"]

Milliseconds = NDArray[np.float64]

BLOCKS = 10
"""Most blocks of a run. Longer blocks depend less on each other, and beyond 10 to 30 blocks the interval hardly gains
(Schmeiser, Batch size effects in the analysis of simulation output, Operations Research 30, 1982)."""

BLOCK_RUNS = 5
"""Fewest samples in a block: shorter runs have fewer blocks."""

MIN_BLOCKS = 6
"""Fewest blocks for an interval."""

BLOCK_TIMES = 8.0
"""Length of a long enough block, in units of the samples that are worth one independent sample. The error of shorter
blocks is raised in proportion. (Found by simulation: see the coverage in the tests.)"""

STUDENT = {5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5 % points of Student's t by degrees of freedom, from published tables."""


@dataclass(frozen=True)
class Ratio:
    """Ratio of B's median time to A's; below 1, B is faster.

    Args:
        low, high: 95 % interval; 0 and infinity where there are too few samples.
        blocks: number of blocks that the interval is from, of the run with fewer.
        verdict: verdict on B: ``SAME`` where the interval lies within 1 ∓
            :data:`trtbatch.util.statistics.SAME_LIMIT`, ``FASTER`` where it lies below 1, ``SLOWER`` where it lies
            above 1, else ``UNCLEAR``.
    """

    ratio: float
    low: float
    high: float
    blocks: int
    verdict: str


def ratio_of_medians(a_ms: Milliseconds, b_ms: Milliseconds) -> Ratio:
    """Return B's median over A's, with a 95 % interval for samples that resemble their neighbours.

    The method is sectioning (Asmussen and Glynn, Stochastic Simulation, 2007, section III.5; for quantiles Nakayama,
    ACM TOMACS 24, 2014). A run is cut into blocks of consecutive samples; the spread of the blocks' medians, divided by
    √blocks, is the error of the whole run's median. The errors are of logarithms, so that the ratio is a difference.
    The errors of the two runs add up in squares (Welch). Student's t has the degrees of freedom of the run with fewer
    blocks, which is on the safe side.

    The method assumes that blocks are longer than the range of the correlation between neighbours. Where the samples
    show that they aren't, the interval is widened (:data:`BLOCK_TIMES`). In simulations the interval holds 95 % with
    correlations of neighbours up to 0.9, and with 1000 samples at 0.97, but only 80 % with 30 to 60 samples at 0.97.
    Drift, or steps between two clocks, spreads the blocks and widens the interval too. Whatever differs from one run to
    the next (heat, clocks, neighbours, the place of memory) is in neither run's blocks, and so not in the interval.

    Args:
        a_ms: samples of A in ms, at least one, above 0, in the order they were taken.
        b_ms: samples of B, likewise.
    """
    blocks = min(_blocks(a_ms), _blocks(b_ms))
    ratio = float(np.median(b_ms)) / float(np.median(a_ms))
    if blocks < MIN_BLOCKS:
        return Ratio(ratio, 0.0, inf, blocks, "UNCLEAR")
    reach = STUDENT[blocks - 1] * sqrt(_squared_error(a_ms) + _squared_error(b_ms))
    low, high = exp(log(ratio) - reach), exp(log(ratio) + reach)
    return Ratio(ratio, low, high, blocks, verdict_of(low, high))


def _blocks(samples: Milliseconds) -> int:
    return min(BLOCKS, samples.size // BLOCK_RUNS)


def _squared_error(samples: Milliseconds) -> float:
    """Return the squared error of the logarithm of the median."""
    count = _blocks(samples)
    medians = np.log([np.median(block) for block in np.array_split(samples, count)])
    alike = BLOCK_TIMES * _worth_one(samples) * count / samples.size
    return float(medians.var(ddof=1)) / count * max(1.0, alike)


def _worth_one(samples: Milliseconds) -> float:
    """Return how many consecutive samples say as much about the median as one independent sample.

    This is the integrated autocorrelation time 1 + 2·(ρ + ρ² + …) = (1 + ρ) / (1 - ρ) of a chain of first order. ρ is
    the correlation of neighbours in whether they are above the median.
    """
    over = np.where(samples > np.median(samples), 1.0, -1.0)
    over -= over.mean()
    spread = float(over @ over)
    alike = float(over[1:] @ over[:-1]) / spread if spread > 0 else 0.0
    return (1 + alike) / (1 - alike) if alike > 0 else 1.0
