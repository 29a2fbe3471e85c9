"""After a build: each batch size timed on each profile that holds it, and the winner of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import Session
from trtbatch.benchmark.bench import measure
from trtbatch.core.batches import pick_profile
from trtbatch.core.profiles import Measured
from trtbatch.core.rows import random_inputs
from trtbatch.core.sidecar import Sidecar
from trtbatch.errors import ExecutionError

__all__ = ["time_profiles"]

ROUNDS = 3
"""In each round every profile has its turn, so that a drift of the clocks meets all of them alike."""

SECONDS = 0.03
"""Of timed runs in each turn; stretched while the median isn't stable."""

WARM_UP = 15.0
"""Milliseconds of runs before each turn."""


def time_profiles(
    session: Session, sidecar: Sidecar, batches: Sequence[int], tell: Callable[[str], None] = lambda words: None
) -> tuple[Measured, ...]:
    """Time every (profile, batch) pair that fits, briefly, as a CUDA graph where there can be one.

    On ONNX Runtime a profile is a range that is allowed, and nothing else: each batch is timed once.
    """
    rows = []
    for batch in sorted(set(batches)):
        fitting = [index for index, profile in enumerate(sidecar.profiles) if batch in profile]
        if sidecar.backend != "tensorrt":
            nearest = pick_profile(sidecar.profiles, batch)
            fitting = [] if nearest is None else [nearest]
        if fitting:
            tell(f"timing batch {batch}")
            rows.append(Measured.of(batch, _times(session, sidecar, batch, fitting)))
    session.use_profile(None)
    return tuple(rows)


def _times(session: Session, sidecar: Sidecar, batch: int, profiles: Sequence[int]) -> dict[int, float]:
    """Median over the rounds of the median time of one run, ms, by profile."""
    inputs = random_inputs(sidecar.inputs, batch, seed=0)
    found: dict[int, list[float]] = {index: [] for index in profiles}
    for _ in range(ROUNDS):
        for index in profiles:
            session.use_profile(index)
            session.bind(inputs)
            found[index].append(float(np.median(_samples(session))))
    return {index: float(f"{np.median(times):.5g}") for index, times in found.items()}


def _samples(session: Session) -> NDArray[np.float64]:
    """Times of what is bound, ms, in the mode that adds least to the computing itself."""
    modes = session.modes()
    if "graph" in modes:
        try:
            return measure(modes["graph"], None, SECONDS, WARM_UP)
        except ExecutionError:  # it can't be captured: the session has said so, and does without from now on
            modes = session.modes()
    return measure(modes.get("async") or next(iter(modes.values())), None, SECONDS, WARM_UP)
