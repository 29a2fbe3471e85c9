"""Engines of one model in several precisions: each timed at its profiles' opt batches, and the fastest chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trtbatch.backends import open_engine
from trtbatch.benchmark.bench import measure
from trtbatch.core.rows import random_inputs
from trtbatch.core.sidecar import Accuracy, Artifact

__all__ = ["TOLERANCE", "Candidate", "Try", "fastest", "fastest_try", "timed"]

TOLERANCE = 1e-2
"""Largest L2-relative error of a row for ``--precision best``: what float16 is allowed, by :func:`rows.tolerance`."""

SECONDS = 0.5
"""Of timed runs at each batch; stretched while the median isn't stable."""


@dataclass(frozen=True)
class Candidate:
    """One precision that was tried.

    Args:
        refused: why it is out; None where it is in.
        ms: median time of one run by batch size: of the build's own table, else in the engine's default mode.
        accuracy: against the float32 file.
    """

    precision: str
    refused: str | None = None
    ms: dict[str, float] | None = None
    accuracy: Accuracy | None = None

    @property
    def ms_per_sample(self) -> float:
        """Mean over the batches of time per sample; infinite for what is out."""
        if self.ms is None or self.refused is not None:
            return float("inf")
        return float(np.mean([time / int(batch) for batch, time in self.ms.items()]))


@dataclass(frozen=True)
class Try:
    """One of several builds of the same engine.

    Args:
        ms: time of one run by batch size, each on its fastest profile.
        refused: why it is out; None where it is in.
    """

    build_seconds: float
    ms: dict[str, float]
    refused: str | None = None


def fastest_try(tries: Sequence[Try]) -> int:
    """Index of the build with the least geometric mean of its times; of those that are out only where all are.

    Two builds differ by a few per cent, at some batches the one way and at others the other way: ratios count, so that
    small batches count as much as large ones.
    """

    def mean(index: int) -> float:
        each = tries[index]
        return float(np.mean(np.log(list(each.ms.values())))) if each.ms and each.refused is None else float("inf")

    return min(range(len(tries)), key=mean)


def timed(name: str, artifact: Artifact, device: int, weights: Path) -> Candidate:
    """Times of an engine at the opt batch of each of its profiles; `weights` as for `open_engine`.

    The build's table has them where profiles were compared or batch sizes were named: whether it does is the same for
    every candidate of a request, so that like is compared with like. Elsewhere the default mode is timed now.
    """
    sidecar = artifact.sidecar
    opts = list(dict.fromkeys(profile.opt for profile in sidecar.profiles))
    known = sidecar.times
    if all(batch in known for batch in opts):
        return Candidate(name, None, {str(batch): known[batch] for batch in opts}, sidecar.accuracy)
    found: dict[str, float] = {}
    with open_engine(artifact, device, weights) as engine, engine.session() as session:
        for batch in opts:
            session.bind(random_inputs(sidecar.inputs, batch, seed=0))
            mode = next(iter(session.modes().values()))
            found[str(batch)] = float(f"{np.median(measure(mode, None, SECONDS, 200.0)):.5g}")
    return Candidate(name, None, found, sidecar.accuracy)


def fastest(tried: Sequence[Candidate]) -> Candidate | None:
    """The candidate with the least time per sample; None where all are out."""
    best = min(tried, key=lambda each: each.ms_per_sample, default=None)
    return best if best is not None and np.isfinite(best.ms_per_sample) else None
