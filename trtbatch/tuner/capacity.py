"""The largest batch that an engine runs on this machine: by doubling, then by halving what is left."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import Engine, Slot
from trtbatch.core.rows import random_inputs
from trtbatch.core.sidecar import Sidecar
from trtbatch.errors import ExecutionError
from trtbatch.runtime.pipeline import SPARE

__all__ = ["Largest", "attempt", "find_largest"]

_OF_MEMORY = ("memory", "alloc")
"""Words by which an error is of memory: pycuda's, TensorRT's, ONNX Runtime's and numpy's all have one of them."""


@dataclass(frozen=True)
class Largest:
    """What was found.

    Args:
        batch: the largest that ran.
        bound: ``profile`` where no profile holds more; ``memory`` where more runs out of it; ``error`` where more
            fails in another way.
        refused: the smallest batch that didn't run; None where all did.
        reason: its error.
        tried: every batch size that was run, in order, and whether it ran.
    """

    batch: int
    bound: Literal["profile", "memory", "error"]
    refused: int | None = None
    reason: str | None = None
    tried: tuple[tuple[int, bool], ...] = ()


def find_largest(sizes: Sequence[int], run: Callable[[int], str | None]) -> Largest:
    """The largest of the sizes that runs, taken for granted that all smaller ones do too.

    Args:
        sizes: allowed batch sizes, ascending.
        run: runs a batch; None where that went well, else what went wrong.

    Raises:
        ExecutionError: not even the smallest runs; or the one found doesn't, once more, after larger ones have failed.
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
            "free memory, or build with a smaller --max",
        )
    good, bad = 0, len(sizes)
    while good + 1 < len(sizes) and bad == len(sizes):
        place = max(good + 1, bisect_right(sizes, 2 * sizes[good]) - 1)
        good, bad = (place, bad) if runs(place) else (good, place)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if runs(middle) else (good, middle)
    if bad == len(sizes):
        return Largest(sizes[good], "profile", tried=tuple(tried))
    if not runs(good):  # an error can break more than the session that met it
        raise ExecutionError(
            f"batch {sizes[good]} ran, and after the failure of batch {sizes[bad]} it doesn't: {failures[sizes[good]]}",
            "free memory, and search again",
        )
    reason = failures[sizes[bad]]
    of_memory = any(word in reason.lower() for word in _OF_MEMORY)
    return Largest(sizes[good], "memory" if of_memory else "error", sizes[bad], reason, tuple(tried))


def attempt(engine: Engine, sidecar: Sidecar, batch: int, cuda_graphs: bool = True) -> str | None:
    """Run a batch for real in a fresh session, with the slots that ``infer`` has; what went wrong, or None.

    The session is closed whatever happens, so that a batch that didn't fit leaves nothing behind.
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
    """One sample, over and over, written straight into the slot: a batch beside it would need its memory twice."""
    room = slot.prepare(batch)
    for name, array in sample.items():
        np.copyto(room[name], array)
