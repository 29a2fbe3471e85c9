"""Two runs that were timed apart: the ratio of their medians, and how well it is known. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, log, sqrt

import numpy as np
from numpy.typing import NDArray

from trtbatch.util.statistics import verdict_of

__all__ = ["BLOCKS", "BLOCK_RUNS", "MIN_BLOCKS", "Ratio", "ratio_of_medians"]

Milliseconds = NDArray[np.float64]

BLOCKS = 10
"""Blocks of a run. Few and long: the longer, the less neighbours matter, and beyond 10 to 30 blocks the interval
hardly gains (Schmeiser, Batch size effects in the analysis of simulation output, Operations Research 30, 1982)."""

BLOCK_RUNS = 5
"""Samples in a block, at least: shorter runs have fewer blocks …"""

MIN_BLOCKS = 6
"""… and with fewer than this there is no interval."""

BLOCK_TIMES = 8.0
"""Blocks are long enough where they have so many times the samples that are worth one independent one; the error of
shorter ones is raised in proportion. (Found by simulation: see the coverage in the tests.)"""

STUDENT = {5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5 % points of Student's t by degrees of freedom, from the tables."""


@dataclass(frozen=True)
class Ratio:
    """B's median time over A's; below 1, B is faster.

    Args:
        low, high: the 95 % interval; 0 and infinity where there are too few samples.
        blocks: that it is from, of the run that has fewer.
        verdict: what B is: ``SAME`` where the interval lies within 1 ∓ :data:`trtbatch.util.statistics.SAME_LIMIT`,
            ``FASTER`` where it lies below 1, ``SLOWER`` where it lies above, else ``UNCLEAR``.
    """

    ratio: float
    low: float
    high: float
    blocks: int
    verdict: str


def ratio_of_medians(a_ms: Milliseconds, b_ms: Milliseconds) -> Ratio:
    """B's median over A's, with a 95 % interval for samples that resemble their neighbours.

    Sectioning (Asmussen and Glynn, Stochastic Simulation, 2007, section III.5; for quantiles Nakayama, ACM TOMACS 24,
    2014): a run is cut into blocks of consecutive samples; the spread of the blocks' medians, divided by √blocks, is
    the error of the whole run's median. Here in logarithms, so that the ratio is a difference; the errors of the two
    runs add up in squares (Welch), and Student's t is taken with the degrees of freedom of the run with fewer
    blocks, which is on the safe side.

    It assumes that the blocks are longer than what makes neighbours alike; where the samples say that they aren't,
    the interval is widened (:data:`BLOCK_TIMES`). In simulations that holds 95 % with correlations of neighbours up
    to 0.9, and with 1000 samples at 0.97, but 80 % only with 30 to 60 samples at 0.97. A drift, or steps between two
    clocks, spreads the blocks and widens it too. What differs from one run to the next (heat, clocks, neighbours,
    where memory fell) is in neither run's blocks, and so isn't in the interval.

    Args:
        a_ms, b_ms: at least one each, over 0, in the order they were taken.
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
    """Of the logarithm of the median."""
    count = _blocks(samples)
    medians = np.log([np.median(block) for block in np.array_split(samples, count)])
    alike = BLOCK_TIMES * _worth_one(samples) * count / samples.size
    return float(medians.var(ddof=1)) / count * max(1.0, alike)


def _worth_one(samples: Milliseconds) -> float:
    """How many consecutive samples tell as much of the median as one independent one.

    The integrated autocorrelation time 1 + 2·(ρ + ρ² + …) = (1 + ρ) / (1 - ρ) of a chain of first order, ρ being the
    correlation of neighbours in whether they are over the median.
    """
    over = np.where(samples > np.median(samples), 1.0, -1.0)
    over -= over.mean()
    spread = float(over @ over)
    alike = float(over[1:] @ over[:-1]) / spread if spread > 0 else 0.0
    return (1 + alike) / (1 - alike) if alike > 0 else 1.0
