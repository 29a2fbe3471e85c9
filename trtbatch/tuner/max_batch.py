"""Find the largest batch that an engine runs on this machine, by doubling and then bisection."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import Engine, Slot
from trtbatch.core.rows import random_inputs
from trtbatch.core.sidecar import Sidecar
from trtbatch.errors import ExecutionError
from trtbatch.runtime.pipeline import SPARE

__all__ = ["MaxBatchResult", "attempt", "find_largest"]

_OF_MEMORY = ("memory", "alloc")
"""Words of out-of-memory errors: those of pycuda, TensorRT, ONNX Runtime and numpy all contain one of them."""


@dataclass(frozen=True)
class MaxBatchResult:
    """Result of the search for the largest batch.

    Args:
        batch: largest batch size that ran.
        bound: ``profile`` if no profile holds more, ``memory`` if more runs out of memory, ``error`` if more fails
            otherwise.
        refused: smallest batch size that failed; None if all ran.
        reason: error of that batch.
        tried: every batch size that was run, in order, and whether it ran.
        most: largest batch size that a profile holds.
        origins: where the engine and the batch sizes came from, in words.
    """

    batch: int
    bound: Literal["profile", "memory", "error"]
    refused: int | None = None
    reason: str | None = None
    tried: tuple[tuple[int, bool], ...] = ()
    most: int = 0
    engine: str = ""
    origins: dict[str, str] = field(default_factory=dict)


def find_largest(sizes: Sequence[int], run: Callable[[int], str | None]) -> MaxBatchResult:
    """Return the largest of the sizes that runs, assuming that all smaller ones run too.

    Args:
        sizes: allowed batch sizes, ascending.
        run: runs a batch; returns None on success, else the error.

    Raises:
        ExecutionError: not even the smallest size runs; or the size found fails when it runs again after larger ones
            failed.
    """
    failures: dict[int, str] = {}
    tried: list[tuple[int, bool]] = []

    def runs(place: int) -> bool:
        reason = run(sizes[place])
        if reason is not None:
            failures[sizes[place]] = reason
        tried.append((sizes[place], reason is None))
        return reason is None

    if not runs(0):
        raise ExecutionError(
            f"batch {sizes[0]}, the smallest of the engine, doesn't run: {failures[sizes[0]]}",
            "free memory, or build with a smaller `max`",
        )
    good, bad = 0, len(sizes)
    while good + 1 < len(sizes) and bad == len(sizes):
        place = max(good + 1, bisect_right(sizes, 2 * sizes[good]) - 1)
        good, bad = (place, bad) if runs(place) else (good, place)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if runs(middle) else (good, middle)
    if bad == len(sizes):
        return MaxBatchResult(sizes[good], "profile", tried=tuple(tried))
    if not runs(good):  # an error can break more than its own session
        raise ExecutionError(
            f"batch {sizes[good]} ran, and after the failure of batch {sizes[bad]} it doesn't: {failures[sizes[good]]}",
            "free memory, and search again",
        )
    reason = failures[sizes[bad]]
    of_memory = any(word in reason.lower() for word in _OF_MEMORY)
    return MaxBatchResult(sizes[good], "memory" if of_memory else "error", sizes[bad], reason, tuple(tried))


def attempt(engine: Engine, sidecar: Sidecar, batch: int, cuda_graphs: bool = True) -> str | None:
    """Run a batch in a fresh session with as many slots as ``infer`` has; return the error, or None on success.

    The session is always closed, so a batch that didn't fit leaves nothing behind.
    """
    try:
        sample = random_inputs(sidecar.inputs, 1, seed=0)
        with engine.session(cuda_graphs) as session:
            slots = [session.slot() for _ in range(session.in_flight + SPARE)]
            for slot in slots:
                _repeat(slot, batch, sample)
            flying = slots[: session.in_flight]
            for slot in flying:
                slot.submit()
            for slot in flying:
                slot.wait()
    except ExecutionError as error:
        return error.problem
    except MemoryError as error:
        return f"out of memory: {error}" if str(error) else "out of memory"
    return None


def _repeat(slot: Slot, batch: int, sample: dict[str, NDArray[Any]]) -> None:
    """Write one sample repeatedly into a slot; a separate batch would need the memory twice."""
    room = slot.prepare(batch)
    for name, array in sample.items():
        np.copyto(room[name], array)
