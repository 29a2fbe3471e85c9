"""An engine under load: so many batches in flight, and how long each of them takes.

*Latency* is what a caller waits who hands over a batch that lies in host memory: from the submission to the end of the
wait for the outputs in host memory. *Load* is a closed loop: each stream has one batch in flight, and gets the next
one as soon as that has ended, as N callers would who each wait for their answer. *Throughput* is of that very load,
samples that end per second. One thread submits and waits in turn; where ``submit`` runs to the end, as on the CPU,
the callers stand in line: with N streams the latency is N times that of one, at the same throughput.
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

__all__ = ["Load", "load_loop", "throughput"]


def load_loop(lanes: Sequence[Slot]) -> Loop:
    """A batch in flight on every lane; a sample is the latency of one. The lanes are prepared."""
    streams = "1 batch" if len(lanes) == 1 else f"{len(lanes)} batches"
    timed = f"wall time of one batch from submission to end, from host memory to host memory, {streams} in flight"
    return Loop("load", timed, lambda count: Taken(_latencies(lanes, count)))


def _latencies(lanes: Sequence[Slot], count: int) -> Milliseconds:
    """Latency of each of `count` consecutive batches, in ms, all lanes in flight from before the first to the last."""
    clock = time.perf_counter_ns
    begun = [0] * len(lanes)
    found = np.empty(count, np.int64)
    for number, lane in enumerate(lanes):
        begun[number] = clock()
        lane.submit()
    turns = itertools.cycle(range(len(lanes)))
    for index in range(-len(lanes), count):  # the first round isn't kept: it began while the pipe was filling
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
    """Samples per second of a load, from the latencies of its batches in order.

    By Little's law (A proof for the queuing formula L = λW, Operations Research 9, 1961) the batches in flight are
    the rate times the mean latency, and in this loop they are always `streams`. The figure is that of the median of
    windows of consecutive batches, :data:`~trtbatch.benchmark.loops.WINDOW_MS` and two rounds of all lanes at least,
    with its exact interval (:func:`trtbatch.util.statistics.median_interval`); of fewer than 6 windows it is infinitely
    wide.
    """
    pace = float(latencies_ms.mean()) / streams
    window = 2 * streams * max(1, math.ceil(WINDOW_MS / max(2 * streams * pace, 1e-6)))
    count = max(1, latencies_ms.size // window)
    means = np.array([part.mean() for part in np.array_split(latencies_ms, count)])
    low, high = median_interval(means)
    rate = 1e3 * batch * streams
    return Interval(rate / float(np.median(means)), rate / high, rate / low if low > 0 else math.inf)


class Load:
    """An opened engine, a session with one slot for each stream, and its rows, checked before anything is timed.

    Args:
        largest: the largest batch that will be asked for.
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
        return self._artifact.sidecar

    def loop(self, batch: int, streams: int) -> Loop:
        """The loop of a batch size and a number of streams, with everything in place; until the next call of it.

        Raises:
            RowsError: wrong rows, or other ones under load.
            ExecutionError: out of memory; :meth:`reset` before the next call.
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
        return load_loop(lanes)

    def _require_rows(self, batch: int) -> RowChecker:
        if self._checker is None:
            sidecar = self.sidecar
            self._checker = RowChecker(
                self._sessions[0],
                sidecar.inputs,
                sidecar.outputs,
                precision=sidecar.precision,
                smallest=sidecar.corners[0],
                largest=self._largest,
                seed=self._seed,
            )
        if batch not in self._right:
            name, path = self._artifact.path.name, self._artifact.path
            self._checker.require(batch, name, f"its numbers would mean nothing; see trtbatch verify {path}")
            self._right.add(batch)
        return self._checker

    def reset(self) -> None:
        """Close every session: the next loop opens fresh ones."""
        self._checker = None
        self._lanes, self._sessions = [], []
        self._stack.close()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *raised: object) -> None:
        self.reset()
