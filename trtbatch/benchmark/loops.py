"""Run the timing loops, decide when they stop, and mark bad samples.

*Wall*: a clock around each synchronous call (``execute_v2``, ``run``, ``latency``). *Event*: CUDA events before and
after each launch on a busy stream (``async``, ``graph``); the host waits for the launch before the last one, so that
the next one is already queued. *Throughput*: batches in flight on several lanes; the result is the mean time between
their ends.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import Event, Mode, Slot
from trtbatch.benchmark.clocks import ClockWatch, fault
from trtbatch.util.statistics import NOISE_LIMIT, summarize

__all__ = [
    "MIN_ITERATIONS",
    "QUEUE_DEPTH",
    "TIME_OUT",
    "WINDOW_MS",
    "Loop",
    "Milliseconds",
    "Samples",
    "StopRule",
    "Taken",
    "collect",
    "latency_loop",
    "measure",
    "mode_loop",
    "throughput_loop",
]

Milliseconds = NDArray[np.float64]

QUEUE_DEPTH = 2
"""Launches in flight in the event loop: one running, one waiting."""

MIN_ITERATIONS = 10
TIME_OUT = 3.0
"""Multiple of ``min_time`` after which an unstable measurement ends and is reported as unstable."""

CHUNK_S = 0.05
"""Seconds of runs between checks of the time and of the GPU's clocks."""

WINDOW_MS = 5.0
"""Smallest length of a window of throughput in ms. Batches that end in pairs have intervals of two lengths, and the
median of the intervals is one of the two. The mean over several rounds of all lanes is the true pace."""

PARTS_RUNS = 30
"""Runs in which copies and compute are timed separately."""


def _none() -> Milliseconds:
    return np.empty(0, np.float64)


@dataclass(frozen=True)
class Taken:
    """Samples in ms, in order, and the CPU time of each launch if launches are asynchronous."""

    ms: Milliseconds
    enqueue_ms: Milliseconds = field(default_factory=_none)


@dataclass(frozen=True)
class Loop:
    """Prepared loop that takes samples on demand.

    Args:
        name: the mode.
        timed: description of what one sample covers.
        take: runs the loop and returns the given number of samples.
        window: number of batches that one sample is the mean of.
        parts: returns the medians, in ms, of ``h2d``, ``gpu`` and ``d2h``; empty if unknown.
    """

    name: str
    timed: str
    take: Callable[[int], Taken]
    window: int = 1
    parts: Callable[[], dict[str, float]] = dict


@dataclass(frozen=True)
class StopRule:
    """Rule for when there are enough samples.

    Args:
        iterations: exact number of samples; None goes by time and noise.
        min_time: seconds of runs, at least.
        time_out: seconds after which the measurement ends, stable or not.
        max_noise: largest noise of the median that counts as stable.
        least: number of samples, at least.
        patience: seconds after which :data:`MIN_ITERATIONS` samples are enough.
    """

    iterations: int | None = None
    min_time: float = 1.0
    time_out: float = TIME_OUT
    max_noise: float = NOISE_LIMIT
    least: int = MIN_ITERATIONS
    patience: float = math.inf


@dataclass(frozen=True)
class Samples:
    """All samples of a measurement.

    Args:
        ms: every sample, in order.
        enqueue_ms: CPU time of each launch; empty if launches are synchronous.
        bad: ``(first, end)`` of the ranges of samples in which the GPU's clocks changed or were limited.
        faults: reasons why these are bad, each reason once.
    """

    ms: Milliseconds
    enqueue_ms: Milliseconds
    bad: tuple[tuple[int, int], ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def throttled(self) -> bool:
        """Return whether more than half of the samples are bad.

        The good samples are then no better guide than all of them.
        """
        return 2 * sum(end - first for first, end in self.bad) > self.ms.size

    def kept(self, values: Milliseconds) -> Milliseconds:
        """Return those of `values`, one per sample, that belong to good samples; all if the run is throttled."""
        if not self.bad or self.throttled or not values.size:
            return values
        keep = np.ones(values.size, np.bool_)
        for first, end in self.bad:
            keep[first:end] = False
        return values[keep]


def measure(mode: Mode, iterations: int | None, min_time: float, warmup_ms: float) -> Milliseconds:
    """Return times of runs of the bound batch, in ms.

    There are exactly `iterations`, or else at least `min_time` seconds of runs and :data:`MIN_ITERATIONS` samples, and
    more until the measurement is stable or :data:`TIME_OUT` times `min_time` have passed.
    """
    rule = StopRule(iterations, min_time, TIME_OUT * min_time)
    return collect(mode_loop(mode), rule, warmup_ms, ClockWatch()).ms


def collect(loop: Loop, rule: StopRule, warmup_ms: float, watch: ClockWatch) -> Samples:
    """Warm up, then take samples until the rule is met; the GPU's clocks are checked between chunks."""
    seconds = _warm_up(loop, warmup_ms) * loop.window
    chunk = int(np.clip(CHUNK_S / max(seconds, 1e-6), 1, 1000))
    taken: list[Taken] = []
    faults: list[str | None] = []
    count = 0
    before = watch.look()
    begun = time.perf_counter()
    while True:
        size = chunk if rule.iterations is None else min(chunk, rule.iterations - count)
        taken.append(loop.take(size))
        after = watch.look()
        faults.append(fault(before, after))
        before = after
        count += size
        if rule.iterations is not None:
            if count >= rule.iterations:
                return _samples(taken, faults)
            continue
        elapsed = time.perf_counter() - begun
        wanted = rule.least if elapsed < rule.patience else min(rule.least, MIN_ITERATIONS)
        if elapsed < rule.min_time or count < wanted:
            continue
        samples = _samples(taken, faults)
        if elapsed >= rule.time_out or _is_stable(samples, rule.max_noise):
            return samples


def _is_stable(samples: Samples, max_noise: float) -> bool:
    return not samples.throttled and summarize(samples.kept(samples.ms), max_noise=max_noise).stable


def _samples(taken: Sequence[Taken], faults: Sequence[str | None]) -> Samples:
    """Return the chunks joined, with adjacent bad ones as one range."""
    ends = np.cumsum([part.ms.size for part in taken]).tolist()
    bad: list[tuple[int, int]] = []
    for first, end, why in zip([0, *ends], ends, faults):
        if why is None:
            continue
        if bad and bad[-1][1] == first:
            bad[-1] = (bad[-1][0], end)
        else:
            bad.append((first, end))
    ms, enqueue = (np.concatenate(parts) for parts in zip(*((part.ms, part.enqueue_ms) for part in taken)))
    return Samples(ms, enqueue, tuple(bad), tuple(dict.fromkeys(why for why in faults if why is not None)))


def _warm_up(loop: Loop, warmup_ms: float) -> float:
    """Run for `warmup_ms` and at least three times; return seconds per batch at the end."""
    begun = time.perf_counter()
    runs = 0
    while runs < 3 or (time.perf_counter() - begun) * 1e3 < warmup_ms:
        last = loop.take(1).ms
        runs += 1
    return float(last[0]) / 1e3


def mode_loop(mode: Mode, flush: Callable[[], None] | None = None) -> Loop:
    """Return the loop of one of a session's own modes.

    `flush` evicts the L2 cache before each launch and isn't timed. For a synchronous mode it must wait until that is
    done.
    """
    timed = mode.timed if flush is None else f"{mode.timed}, the L2 cache flushed before each"
    if mode.new_event is None:
        return Loop(mode.name, timed, lambda count: Taken(_wall_times(mode.launch, count, flush)))
    new_event = mode.new_event
    return Loop(mode.name, timed, lambda count: _event_times(mode.launch, new_event, count, flush))


def latency_loop(slot: Slot) -> Loop:
    """Return the loop over one batch at a time, from host memory to host memory. `slot` must be prepared."""
    timed = "one batch from host memory to host memory, synchronous, wall time per call"
    return Loop("latency", timed, lambda count: Taken(_wall_times(slot.run, count, None)), 1, lambda: _parts(slot))


def throughput_loop(lanes: Sequence[Slot]) -> Loop:
    """Return the loop that keeps every lane busy, so that copies and compute overlap. The lanes must be prepared."""
    rounds = 2 * len(lanes)
    pace = float(np.mean(_paces(lanes, 2, rounds)))
    window = rounds * max(1, int(np.ceil(WINDOW_MS / max(pace * rounds, 1e-6))))
    timed = (
        f"mean wall time per batch over windows of consecutive batches ({WINDOW_MS:g} ms and {rounds} batches at "
        f"least), from host memory to host memory, {len(lanes)} in flight"
    )
    take: Callable[[int], Taken] = lambda count: Taken(_paces(lanes, count, window))  # noqa: E731
    return Loop("throughput", timed, take, window, lambda: _parts(lanes[0]))


def _parts(slot: Slot) -> dict[str, float]:
    """Return the medians in ms of the copies and the compute of a batch, each timed alone."""
    first = slot.parts()  # not kept: the first call creates the events
    if not first:
        return {}
    runs = [slot.parts() for _ in range(PARTS_RUNS)]
    return {name: float(np.median([run[name] for run in runs])) for name in first}


def _wall_times(launch: Callable[[], object], count: int, flush: Callable[[], None] | None) -> Milliseconds:
    """Return the wall time of each of `count` synchronous launches, in ms."""
    clock = time.perf_counter_ns
    nanoseconds = np.empty(count, np.int64)
    for index in range(count):
        if flush is not None:
            flush()
        begun = clock()
        launch()
        nanoseconds[index] = clock() - begun
    return nanoseconds / 1e6


def _event_times(
    launch: Callable[[], None], new_event: Callable[[], Event], count: int, flush: Callable[[], None] | None
) -> Taken:
    """Return the GPU time between the events around each asynchronous launch, and its CPU time, in ms."""
    clock = time.perf_counter_ns
    ring: list[tuple[Event, Event]] = [(new_event(), new_event()) for _ in range(QUEUE_DEPTH)]
    milliseconds = np.empty(count, np.float64)
    enqueued = np.empty(count, np.int64)
    for index in range(-QUEUE_DEPTH, count + QUEUE_DEPTH):  # the first launches meet an idle GPU, and aren't kept
        begin, end = ring[index % QUEUE_DEPTH]
        finished = index - QUEUE_DEPTH
        if index >= 0:
            end.synchronize()
        if finished >= 0:
            milliseconds[finished] = end.milliseconds_since(begin)
        if index < count:
            if flush is not None:
                flush()
            begin.record()
            begun = clock()
            launch()
            ended = clock()
            end.record()
            if index >= 0:
                enqueued[index] = ended - begun
    return Taken(milliseconds, enqueued / 1e6)


def _paces(lanes: Sequence[Slot], count: int, window: int) -> Milliseconds:
    """Return the mean time per batch, in ms, over each of `count` windows of consecutive batches in all lanes."""
    clock = time.perf_counter_ns
    marks = np.empty(count + 1, np.int64)
    turns = itertools.cycle(lanes)
    for lane in lanes:
        lane.submit()
    for index in range(count + 1):
        for _ in range(window if index else len(lanes)):  # the first round fills the pipeline, untimed
            lane = next(turns)
            lane.wait()
            lane.submit()
        marks[index] = clock()
    for _ in lanes:
        next(turns).wait()
    return np.diff(marks) / 1e6 / window
