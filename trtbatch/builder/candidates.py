"""Compare engines of one model: time each at the opt batches of its profiles, and choose the fastest."""

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
"""Largest L2-relative error of a row for ``--precision best``: the limit of float16 in
:func:`trtbatch.core.rows.tolerance`."""

SECONDS = 0.5
"""Seconds of timed runs at each batch size; more while the median isn't stable."""


@dataclass(frozen=True)
class Candidate:
    """Result of one precision.

    Args:
        refused: why the precision was rejected; None if it was accepted.
        ms: median time of one run in ms, by batch size; from the build's table, else in the engine's default mode.
        accuracy: agreement with the float32 file.
    """

    precision: str
    refused: str | None = None
    ms: dict[str, float] | None = None
    accuracy: Accuracy | None = None

    @property
    def ms_per_sample(self) -> float:
        """Return the time per sample in ms, averaged over the batch sizes; infinite for a rejected precision."""
        if self.ms is None or self.refused is not None:
            return float("inf")
        return float(np.mean([time / int(batch) for batch, time in self.ms.items()]))


@dataclass(frozen=True)
class Try:
    """Result of one of several builds of the same engine.

    Args:
        ms: time of one run in ms, by batch size, each on its fastest profile.
        refused: why the build was rejected; None if it was accepted.
    """

    build_seconds: float
    ms: dict[str, float]
    refused: str | None = None


def fastest_try(tries: Sequence[Try]) -> int:
    """Return the index of the build with the smallest geometric mean of its times.

    A rejected build is chosen only if all are rejected. Two builds differ by a few percent, in either direction at
    different batch sizes. A geometric mean compares ratios, so small batches count as much as large ones.
    """

    def mean(index: int) -> float:
        each = tries[index]
        return float(np.mean(np.log(list(each.ms.values())))) if each.ms and each.refused is None else float("inf")

    return min(range(len(tries)), key=mean)


def timed(name: str, artifact: Artifact, device: int, weights: Path) -> Candidate:
    """Return a candidate with the times of an engine at the opt batch of each profile.

    The times come from the build's table if it holds all these batches, as it does if several profiles were compared or
    batch sizes were named. This is the same for every candidate of a request, so the candidates are comparable.
    Otherwise the engine's default mode is timed now. `weights` is passed to :func:`trtbatch.backends.open_engine`.
    """
    sidecar = artifact.sidecar
    opts = list(dict.fromkeys(profile.opt for profile in sidecar.engine.profiles))
    known = sidecar.engine.times
    if all(batch in known for batch in opts):
        return Candidate(name, None, {str(batch): known[batch] for batch in opts}, sidecar.precision.accuracy)
    found: dict[str, float] = {}
    with open_engine(artifact, device, weights) as engine, engine.session() as session:
        for batch in opts:
            session.bind(random_inputs(sidecar.inputs, batch, seed=0))
            mode = next(iter(session.modes().values()))
            found[str(batch)] = float(f"{np.median(measure(mode, None, SECONDS, 200.0)):.5g}")
    return Candidate(name, None, found, sidecar.precision.accuracy)


def fastest(tried: Sequence[Candidate]) -> Candidate | None:
    """Return the candidate with the smallest time per sample, or None if all were rejected."""
    best = min(tried, key=lambda each: each.ms_per_sample, default=None)
    return best if best is not None and np.isfinite(best.ms_per_sample) else None
