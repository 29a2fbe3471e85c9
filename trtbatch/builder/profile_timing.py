"""Time each batch size on each profile that holds it, after a build."""

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
"""Rounds of timing. Every profile runs once in each round, so a drift of the clocks affects all alike."""

SECONDS = 0.03
"""Seconds of timed runs per profile and round; more while the median isn't stable."""

WARM_UP = 15.0
"""Milliseconds of runs before each timing."""


def time_profiles(
    session: Session, sidecar: Sidecar, batches: Sequence[int], tell: Callable[[str], None] = lambda words: None
) -> tuple[Measured, ...]:
    """Time every (profile, batch) pair that fits, as a CUDA graph if possible.

    ONNX Runtime treats a profile as a range only, so each batch size is timed once there.
    """
    rows = []
    for batch in sorted(set(batches)):
        fitting = [index for index, profile in enumerate(sidecar.engine.profiles) if batch in profile]
        if sidecar.engine.backend != "tensorrt":
            nearest = pick_profile(sidecar.engine.profiles, batch)
            fitting = [] if nearest is None else [nearest]
        if fitting:
            tell(f"timing batch {batch}")
            rows.append(Measured.of(batch, _times(session, sidecar, batch, fitting)))
    session.use_profile(None)
    return tuple(rows)


def _times(session: Session, sidecar: Sidecar, batch: int, profiles: Sequence[int]) -> dict[int, float]:
    """Return the median time of one run in ms, by profile: over the rounds, the median of each round's median."""
    inputs = random_inputs(sidecar.inputs, batch, seed=0)
    found: dict[int, list[float]] = {index: [] for index in profiles}
    for _ in range(ROUNDS):
        for index in profiles:
            session.use_profile(index)
            session.bind(inputs)
            found[index].append(float(np.median(_samples(session))))
    return {index: float(f"{np.median(times):.5g}") for index, times in found.items()}


def _samples(session: Session) -> NDArray[np.float64]:
    """Return times of the bound batch in ms, in the mode with the least overhead."""
    modes = session.modes()
    if "graph" in modes:
        try:
            return measure(modes["graph"], None, SECONDS, WARM_UP)
        except ExecutionError:  # capture failed: the session has logged it, and has no graph mode now
            modes = session.modes()
    return measure(modes.get("async") or next(iter(modes.values())), None, SECONDS, WARM_UP)
