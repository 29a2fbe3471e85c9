"""Measure an engine under a closed-loop load: a number of batches in flight, and the latency of each.

*Latency* is what a caller waits for a batch that lies in host memory: from its submission to the end of the wait for
its outputs in host memory. *Load* is a closed loop: each stream has one batch in flight, and gets the next one as soon
as that ends, like N callers who each wait for their answer. *Throughput* is that of the same load, in finished samples
per second. One thread submits and waits in turn. If ``submit`` runs to the end, as on the CPU, the callers queue up:
with N streams the latency is N times that of one, at the same throughput.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from trtbatch.backends.base import Engine, Session, Slot
from trtbatch.benchmark.loops import WINDOW_MS, Loop, Milliseconds, Taken
from trtbatch.core.sidecar import Artifact, Interval, Sidecar
from trtbatch.util.statistics import median_interval
from trtbatch.verification.checks import RowChecker, require_slots

__all__ = ["ClosedLoopLoad", "closed_loop", "throughput"]


def closed_loop(lanes: Sequence[Slot]) -> Loop:
    """Return the loop that keeps a batch in flight on every prepared lane; a sample is the latency of one batch."""
    streams = "1 batch" if len(lanes) == 1 else f"{len(lanes)} batches"
    timed = f"wall time of one batch from submission to end, from host memory to host memory, {streams} in flight"
    return Loop("load", timed, lambda count: Taken(_latencies(lanes, count)))


def _latencies(lanes: Sequence[Slot], count: int) -> Milliseconds:
    """Return the latency of each of `count` consecutive batches, in ms, with all lanes in flight throughout."""
    clock = time.perf_counter_ns
    begun = [0] * len(lanes)
    found = np.empty(count, np.int64)
    for number, lane in enumerate(lanes):
        begun[number] = clock()
        lane.submit()
    turns = itertools.cycle(range(len(lanes)))
    for index in range(-len(lanes), count):  # the first round, which fills the pipeline, isn't kept
        number = next(turns)
        lane = lanes[number]
        lane.wait()
        ended = clock()
        if index >= 0:
            found[index] = ended - begun[number]
        begun[number] = ended
        lane.submit()
    for _ in lanes:
        lanes[next(turns)].wait()
    return found / 1e6


def throughput(latencies_ms: Milliseconds, batch: int, streams: int) -> Interval:
    """Return the samples per second of a load, from the latencies of its batches in order.

    By Little's law (A proof for the queuing formula L = λW, Operations Research 9, 1961), the batches in flight are the
    rate times the mean latency; in this loop they are always `streams`. The figure is that of the median of windows of
    consecutive batches, each at least :data:`~trtbatch.benchmark.loops.WINDOW_MS` and two rounds of all lanes long,
    with its exact interval (:func:`trtbatch.util.statistics.median_interval`). The interval of fewer than 6 windows is
    infinite.
    """
    pace = float(latencies_ms.mean()) / streams
    window = 2 * streams * max(1, math.ceil(WINDOW_MS / max(2 * streams * pace, 1e-6)))
    count = max(1, latencies_ms.size // window)
    means = np.array([part.mean() for part in np.array_split(latencies_ms, count)])
    low, high = median_interval(means)
    rate = 1e3 * batch * streams
    return Interval(rate / float(np.median(means)), rate / high, rate / low if low > 0 else math.inf)


class ClosedLoopLoad:
    """Opened engine with one session and slot per stream, whose rows are checked before anything is timed.

    Args:
        engine: the opened engine.
        artifact: its artifact.
        largest: largest batch size to measure.
        cuda_graphs: whether batches may run as CUDA graphs.
        seed: seed of the random inputs.
    """

    def __init__(self, engine: Engine, artifact: Artifact, largest: int, cuda_graphs: bool, seed: int) -> None:
        self._engine = engine
        self._artifact = artifact
        self._largest = largest
        self._cuda_graphs = cuda_graphs
        self._seed = seed
        self._stack = ExitStack()
        self._sessions: list[Session] = []
        self._lanes: list[Slot] = []
        self._checker: RowChecker | None = None
        self._right: set[int] = set()

    @property
    def sidecar(self) -> Sidecar:
        """Return the engine's sidecar."""
        return self._artifact.sidecar

    def loop(self, batch: int, streams: int) -> Loop:
        """Return the loop of a batch size and a number of streams, ready to run; it is valid until the next call.

        Raises:
            RowsError: rows are wrong, or change under load.
            ExecutionError: out of memory; call :meth:`reset` before the next call.
        """
        while len(self._lanes) < streams:
            session = self._stack.enter_context(self._engine.session(self._cuda_graphs))
            self._sessions.append(session)
            self._lanes.append(session.slot())
        checker = self._require_rows(batch)
        inputs = checker.inputs(batch)
        first = self._sessions[0]
        first.bind(inputs)
        first.run()
        lanes = self._lanes[:streams]
        what = f"{self._artifact.path.name}: under load batch {batch}"
        require_slots(what, lanes, batch, inputs, first.fetch(), self.sidecar)
        return closed_loop(lanes)

    def _require_rows(self, batch: int) -> RowChecker:
        if self._checker is None:
            sidecar = self.sidecar
            self._checker = RowChecker(
                self._sessions[0],
                sidecar.inputs,
                sidecar.outputs,
                precision=sidecar.precision.name,
                smallest=sidecar.engine.corners[0],
                largest=self._largest,
                seed=self._seed,
            )
        if batch not in self._right:
            name, path = self._artifact.path.name, self._artifact.path
            self._checker.require(batch, name, f"its numbers would mean nothing; see trtbatch verify {path}")
            self._right.add(batch)
        return self._checker

    def reset(self) -> None:
        """Close every session; the next loop opens fresh ones."""
        self._checker = None
        self._lanes, self._sessions = [], []
        self._stack.close()

    def __enter__(self) -> ClosedLoopLoad:
        return self

    def __exit__(self, *raised: object) -> None:
        self.reset()
