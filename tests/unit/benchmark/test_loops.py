"""The loops on clocks and devices of our own. Nothing here looks at how long anything took."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from trtbatch.backends.base import Mode
from trtbatch.benchmark import loops
from trtbatch.benchmark.clocks import ClockState, ClockWatch
from trtbatch.benchmark.loops import Loop, Samples, StopRule, Taken, collect, latency_loop, mode_loop, throughput_loop
from trtbatch.util.statistics import summarize


class Watch(ClockWatch):
    """One that sees what it is told."""

    def __init__(self, states: Iterator[ClockState | None]) -> None:
        super().__init__()
        self._states = states

    def look(self) -> ClockState | None:
        return next(self._states)


class Lane:
    """A slot that writes down what is done with it."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name, self._log = name, log
        self._busy = False

    def prepare(self, batch: int) -> dict[str, Any]:
        return {}

    def warm(self, batch: int) -> None:
        return

    def submit(self) -> None:
        assert not self._busy, "it was waited for"
        self._busy = True
        self._log.append(f"submit {self._name}")

    def wait(self) -> dict[str, Any]:
        assert self._busy, "it was submitted"
        self._busy = False
        self._log.append(f"wait {self._name}")
        return {}

    def run(self) -> dict[str, Any]:
        self._log.append(f"run {self._name}")
        return {}

    def parts(self) -> dict[str, float]:
        self._log.append("parts")
        return {"h2d": 1.0, "gpu": float(len(self._log)), "d2h": 2.0}


def steady(ms: float, count: int) -> Taken:
    return Taken(np.full(count, ms), np.full(count, ms / 2))


def test_the_cache_is_flushed_before_each_launch_and_outside_of_its_events() -> None:
    log: list[str] = []

    class Event:
        def record(self) -> None:
            log.append("event")

        def synchronize(self) -> None: ...

        def milliseconds_since(self, earlier: Any) -> float:
            return 1.0

    mode = Mode("async", "a launch", lambda: log.append("launch"), Event)
    loop = mode_loop(mode, lambda: log.append("flush"))
    taken = loop.take(3)
    assert log == ["flush", "event", "launch", "event"] * (loops.QUEUE_DEPTH + 3)
    assert taken.ms.tolist() == [1.0] * 3
    assert taken.enqueue_ms.shape == (3,)
    assert loop.timed == "a launch, the L2 cache flushed before each"


def test_a_synchronous_mode_is_flushed_before_the_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    def clock() -> int:
        log.append("clock")
        return len(log)

    monkeypatch.setattr("time.perf_counter_ns", clock)
    mode_loop(Mode("execute_v2", "a call", lambda: log.append("launch")), lambda: log.append("flush")).take(2)
    assert log == ["flush", "clock", "launch", "clock"] * 2


def test_throughput_keeps_all_lanes_busy_and_leaves_them_empty() -> None:
    log: list[str] = []
    lanes = [Lane(name, log) for name in "abc"]
    loop = throughput_loop(lanes)
    assert loop.window % 6 == 0, "whole rounds, two at least"
    log.clear()
    taken = loop.take(2)
    assert taken.ms.shape == (2,)
    assert log[:7] == ["submit a", "submit b", "submit c", "wait a", "submit a", "wait b", "submit b"]
    assert log[-4:] == ["submit c", "wait a", "wait b", "wait c"]
    assert len([line for line in log if line.startswith("submit")]) == 3 + 3 + 2 * loop.window


def test_a_sample_of_throughput_is_the_time_per_batch_of_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a device that ends batches in pairs, after 1 and 3 ms: the pace is 2 ms, which no single batch takes."""
    now = 0
    ends = iter([1_000_000, 3_000_000] * 10_000)

    class Paired(Lane):
        def wait(self) -> dict[str, Any]:
            nonlocal now
            now += next(ends)
            return super().wait()

    monkeypatch.setattr("time.perf_counter_ns", lambda: now)
    loop = throughput_loop([Paired(name, []) for name in "ab"])
    assert loop.window == 4
    assert loop.take(5).ms.tolist() == [2.0] * 5


def test_latency_runs_one_slot_and_its_parts_are_medians() -> None:
    log: list[str] = []
    loop = latency_loop(Lane("a", log))
    loop.take(2)
    assert log == ["run a"] * 2
    log.clear()
    parts = loop.parts()
    assert len(log) == 1 + loops.PARTS_RUNS
    assert parts == {"h2d": 1.0, "gpu": float(np.median(np.arange(2, 2 + loops.PARTS_RUNS))), "d2h": 2.0}


def test_samples_of_chunks_in_which_the_clocks_changed_are_bad() -> None:
    full, slow = ClockState(1980, 0), ClockState(1500, 0)
    capped = ClockState(1980, 0x4)
    watch = Watch(iter([full, full, slow, slow, capped, full, full]))
    loop = Loop("run", "", lambda count: steady(50.0, count))  # one sample a chunk
    samples = collect(loop, StopRule(iterations=6), 0.0, watch)
    assert samples.ms.size == 6
    assert samples.enqueue_ms.size == 6
    assert samples.bad == ((1, 2), (3, 4))
    assert samples.faults == ("changed clock", "software power cap")
    assert not samples.throttled
    assert samples.kept(np.arange(6.0)).tolist() == [0, 2, 4, 5]


def test_a_clock_that_comes_back_is_a_change_too() -> None:
    watch = Watch(iter([ClockState(1500, 0), ClockState(1980, 0), ClockState(1980, 0)]))
    samples = collect(Loop("run", "", lambda count: steady(50.0, count)), StopRule(iterations=2), 0.0, watch)
    assert samples.bad == ((0, 1),)


def test_where_most_samples_are_bad_all_of_them_count() -> None:
    samples = Samples(np.arange(5.0), np.empty(0), ((0, 3),), ("hardware slowdown",))
    assert samples.throttled
    assert samples.kept(samples.ms).size == 5
    assert samples.kept(samples.enqueue_ms).size == 0


def test_it_goes_on_until_the_noise_is_as_low_as_wanted_or_the_time_is_out() -> None:
    generator = np.random.default_rng(0)
    noisy = Loop("run", "", lambda count: Taken(50 + 25 * generator.random(count)))
    rule = StopRule(None, min_time=0.0, time_out=60.0, max_noise=0.02)
    samples = collect(noisy, rule, 0.0, ClockWatch())
    assert summarize(samples.ms, max_noise=0.02).stable
    assert not summarize(samples.ms[:20]).stable
    ended = collect(noisy, StopRule(None, 0.0, 0.0, 1e-9), 0.0, ClockWatch())
    assert ended.ms.size == loops.MIN_ITERATIONS


@pytest.mark.parametrize(
    ("seconds", "patience", "count"),
    [
        (0.25, 30.0, 120),  # patience ends, with too few
        (0.25, float("inf"), 368),  # there is no end to it
        (0.05, 30.0, 368),  # enough in time
        (5.0, 30.0, loops.MIN_ITERATIONS),  # fewer than these are no measurement
    ],
)
def test_samples_that_become_slow_end_when_patience_does(
    monkeypatch: pytest.MonkeyPatch, seconds: float, patience: float, count: int
) -> None:
    now = 0.0

    def take(size: int) -> Taken:
        nonlocal now
        now += size * seconds
        return steady(seconds * 1e3, size)

    monkeypatch.setattr("time.perf_counter", lambda: now)
    rule = StopRule(min_time=1.0, time_out=3.0, least=368, patience=patience)
    assert collect(Loop("load", "", take), rule, 0.0, ClockWatch()).ms.size == count
