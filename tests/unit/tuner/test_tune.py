"""The search for a batch size, on curves that are known; the command on ONNX Runtime. Nothing here asserts a time."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.support import models
from tests.support.messages import refused
from tests.support.sidecars import change_sidecar
from trtbatch.backends.onnxruntime import OnnxRuntimeSession, OnnxRuntimeSlot
from trtbatch.cli import tune as tune_command
from trtbatch.cli.console import fitting
from trtbatch.cli.tune import parse_latency
from trtbatch.core import store
from trtbatch.core.batches import Profile
from trtbatch.core.sidecar import Interval, ModelRecord, Tuned
from trtbatch.core.store import load
from trtbatch.errors import ArtifactError, ExecutionError, UsageError
from trtbatch.runtime import infer
from trtbatch.tuner import max_batch, tune
from trtbatch.tuner.closed_loop import ClosedLoopLoad, closed_loop, throughput
from trtbatch.tuner.max_batch import find_largest
from trtbatch.tuner.percentiles import percentile_interval, runs_needed
from trtbatch.tuner.search import MOST_ROUNDS, Goal, Outcome, Trial, budget_for, search
from trtbatch.tuner.tune import TuneRequest, TuneResult, plan_tune
from trtbatch.util import environment
from trtbatch.util.files import sidecar_path

Cli = Callable[..., Any]
Curve = Callable[[int, int], tuple[float, float]]
"""Latency in ms and its upper end, of a batch size and a number of streams."""


class Scripted:
    """Measures what a curve says, and remembers what was asked."""

    def __init__(self, curve: Curve) -> None:
        self._curve = curve
        self.asked: list[tuple[int, int]] = []

    def __call__(self, batch: int, streams: int) -> Trial:
        self.asked.append((batch, streams))
        latency, high = self._curve(batch, streams)
        if not math.isfinite(latency):
            return Trial.failure(batch, streams, 0, "out of memory")
        rate = 1e3 * batch * streams / latency
        rates = Interval(rate, rate * 0.99, rate * 1.01)
        return Trial(batch, streams, 0, latency, Interval(latency, latency * 0.98, high), rates, 500)


def affine(batch: int, streams: int) -> tuple[float, float]:
    """1 ms and 0.1 ms a sample, known to 5 %; two streams hide half of the fixed part."""
    latency = streams * (1.0 / min(streams, 2) + 0.1 * batch)
    return latency, 1.05 * latency


def saturating(batch: int, streams: int) -> tuple[float, float]:
    """No throughput is gained beyond batch 16."""
    latency = max(2.0, 0.125 * batch)
    return latency, latency * 1.01


def pair(trial: Trial | None) -> tuple[int, int] | None:
    return None if trial is None else (trial.batch, trial.streams)


def anywhere(batch: int) -> bool:
    return True


POWERS = [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize(("later", "chosen"), [((95.0, 95.0), 4), ((95.0, 105.0), 2)])
def test_a_size_that_missed_the_budget_must_meet_it_twice_to_be_chosen(later: tuple[float, ...], chosen: int) -> None:
    """It is measured again next to the choice, and then for itself."""
    ends = {1: [22.0] * 9, 2: [45.0] * 9, 4: [105.0, *later, *[later[-1]] * 6]}
    rates = {1: 50.0, 2: 55.0, 4: 60.0}

    def measure(batch: int, streams: int) -> Trial:
        high, rate = ends[batch].pop(0), rates[batch]
        latency = Interval(high - 5, high - 6, high)
        return Trial(batch, streams, 0, high - 5, latency, Interval(rate, rate - 1, rate + 1), 40)

    found = search([1, 2, 4], [1], measure, Goal(100.0))
    assert found.chosen is not None
    assert found.chosen.batch == chosen
    assert found.chosen.confirmed


def test_a_budget_between_two_sizes_is_closed_in_on() -> None:
    """The upper end, 1.05 · (1 + 0.1 b), is under 3 ms up to batch 18; the latency itself would be up to 19."""
    measure = Scripted(affine)
    found = search(POWERS, [1], measure, Goal(3.0), anywhere)
    assert pair(found.chosen) == (18, 1) == pair(found.best)
    smaller, larger = found.neighbours()
    assert pair(smaller) == (17, 1) or pair(smaller) == (16, 1)
    assert pair(larger) == (19, 1)
    assert found.chosen is not None
    assert found.chosen.confirmed
    assert measure.asked.count((18, 1)) == 2, "once in the search, once to confirm"


def test_without_refinement_the_given_sizes_alone_are_tried() -> None:
    measure = Scripted(affine)
    found = search([32, 4, 16], [1], measure, Goal(3.0))
    assert pair(found.chosen) == (16, 1)
    assert set(measure.asked) == {(4, 1), (16, 1), (32, 1)}


def test_sizes_in_no_profile_are_never_measured() -> None:
    measure = Scripted(affine)
    found = search(POWERS, [1], measure, Goal(3.0), lambda batch: batch % 2 == 0 or batch == 1)
    assert pair(found.chosen) == (18, 1)
    assert all(batch % 2 == 0 or batch == 1 for batch, _ in measure.asked)


def test_everything_fits() -> None:
    found = search(POWERS, [1, 2], Scripted(affine), Goal(1e6), anywhere)
    assert pair(found.chosen) == (64, 2)
    assert found.neighbours()[1] is None


def test_nothing_fits_and_the_nearest_is_known() -> None:
    found = search(POWERS, [1, 2], Scripted(affine), Goal(0.5), anywhere)
    assert found.chosen is None
    assert found.best is None
    assert found.knee() is None
    assert pair(found.nearest()) == (1, 1)
    assert found.neighbours() == (None, None)


def test_a_choice_that_was_given_up_is_not_nearer_than_one_that_was_measured_to_the_end() -> None:
    """Of 20 runs the hiccups of one in a hundred are seldom seen; where all were given up the median decides."""
    trials = {
        1: Trial(1, 1, 0, 20.0, Interval(400.0, 30.0, 500.0), Interval(50.0, 49.0, 51.0), 400),
        2: Trial(2, 1, 0, 130.0, Interval(140.0, 130.0, math.inf), Interval(15.0, 14.0, 16.0), 20),
        4: Trial(4, 1, 0, 120.0, Interval(150.0, 130.0, math.inf), Interval(33.0, 30.0, 36.0), 20),
    }
    for sizes, nearest in (([1, 2, 4], 1), ([2, 4], 4)):
        assert pair(search(sizes, [1], lambda batch, streams: trials[batch], Goal(100.0)).nearest()) == (nearest, 1)


def test_a_percentile_that_is_not_known_from_above_does_not_count() -> None:
    def unknown(batch: int, streams: int) -> tuple[float, float]:
        return affine(batch, streams)[0], math.inf if batch > 4 else affine(batch, streams)[1]

    assert pair(search(POWERS, [1], Scripted(unknown), Goal(1e6)).chosen) == (4, 1)


def test_streams_and_batches_are_chosen_together() -> None:
    """Under 3 ms: one stream reaches batch 18, 6.4 samples a ms; two streams batch 9, 6.4; the rate decides."""
    found = search(POWERS, [1, 2], Scripted(affine), Goal(3.0), anywhere)
    counting = [trial for trial in found.trials if Goal(3.0).meets(trial)]
    assert found.chosen is not None
    assert found.chosen.samples_per_s.value == max(trial.samples_per_s.value for trial in counting)
    assert {trial.streams for trial in found.trials} == {1, 2}


def test_a_choice_that_meets_the_budget_by_luck_is_dropped_when_it_is_measured_again() -> None:
    """The first measurement of batch 32 is too good."""
    times = Counter[tuple[int, int]]()

    def lucky(batch: int, streams: int) -> tuple[float, float]:
        times[batch, streams] += 1
        return (1.0, 1.1) if batch == 32 and times[batch, streams] == 1 else affine(batch, streams)

    found = search(POWERS, [1], Scripted(lucky), Goal(2.0))
    assert pair(found.chosen) == (8, 1)
    assert found.chosen is not None
    assert found.chosen.confirmed
    assert times[32, 1] == 2


def test_a_choice_is_compared_with_what_was_measured_at_the_same_time() -> None:
    """The machine is twice as fast while it searches; later the same budget allows less."""
    asked: list[tuple[int, int]] = []

    def slower(batch: int, streams: int) -> tuple[float, float]:
        asked.append((batch, streams))
        latency, high = affine(batch, streams)
        late = 0.5 if asked.count((batch, streams)) == 1 else 1.0
        return late * latency, late * high

    found = search(POWERS, [1], Scripted(slower), Goal(3.0))
    assert pair(found.chosen) == (16, 1)
    assert found.chosen is not None
    smaller, larger = found.neighbours()
    assert smaller is not None
    assert larger is not None
    assert smaller.round == larger.round == found.chosen.round > 1, "the first round was of 32 and its neighbours"
    assert larger.median_ms == affine(larger.batch, 1)[0]
    assert all(trial.round == 0 and trial.median_ms == 0.5 * affine(trial.batch, 1)[0] for trial in found.searched)
    assert found.knee() in found.searched


def test_contenders_that_change_without_end_are_measured_a_few_times() -> None:
    generator = np.random.default_rng(0)

    def wild(batch: int, streams: int) -> tuple[float, float]:
        latency = generator.uniform(1.0, 3.0)
        return latency, latency

    measure = Scripted(wild)
    found = search([1, 2, 3, 4, 5, 6, 7, 8], [1, 2], measure, Goal())
    assert found.chosen is None or found.chosen.confirmed
    assert max(Counter(measure.asked).values()) <= MOST_ROUNDS + 2


@pytest.mark.parametrize("seed", range(20))
def test_noise_does_not_lead_astray(seed: int) -> None:
    """Of ±2 % on every measurement: the choice meets the budget, and is within 8 % of the best that does."""
    generator = np.random.default_rng(seed)

    def noisy(batch: int, streams: int) -> tuple[float, float]:
        latency = affine(batch, streams)[0] * generator.uniform(0.98, 1.02)
        return latency, 1.05 * latency

    found = search(POWERS, [1], Scripted(noisy), Goal(3.0), anywhere)
    assert found.chosen is not None
    assert Goal(3.0).meets(found.chosen)
    assert 16 <= found.chosen.batch <= 20
    assert len(found.trials) <= len(POWERS) + 16


def test_a_curve_that_is_not_monotone_is_searched_all_the_same() -> None:
    """Batch 32 has a slow kernel: past it there is a faster one."""

    def bumpy(batch: int, streams: int) -> tuple[float, float]:
        latency = affine(batch, streams)[0] * (3 if 24 < batch < 40 else 1)
        return latency, 1.01 * latency

    assert pair(search(POWERS, [1], Scripted(bumpy), Goal(8.0)).chosen) == (64, 1)


def test_max_throughput_is_the_smallest_batch_near_the_best() -> None:
    found = search(POWERS, [1], Scripted(saturating), Goal(), anywhere)
    assert pair(found.chosen) == (16, 1), "15 would have 6 % less"
    assert found.best is not None
    assert found.best.samples_per_s.value == pytest.approx(8000)


def test_max_throughput_takes_the_fewest_streams_of_the_smallest_batch() -> None:
    def same(batch: int, streams: int) -> tuple[float, float]:
        latency = saturating(batch, 1)[0] * streams  # callers in line: no gain from more
        return latency, latency

    assert pair(search(POWERS, [1, 2, 4], Scripted(same), Goal(), anywhere).chosen) == (16, 1)


def test_a_size_that_does_not_run_is_no_choice() -> None:
    def bounded(batch: int, streams: int) -> tuple[float, float]:
        return affine(batch, streams) if batch * streams <= 40 else (math.inf, math.inf)

    found = search(POWERS, [1, 2], Scripted(bounded), Goal(), anywhere)
    assert found.chosen is not None
    assert found.chosen.failed is None
    assert found.best is not None
    assert found.best.batch * found.best.streams <= 40
    assert any(trial.failed == "out of memory" for trial in found.trials)
    none = search([64], [1], Scripted(bounded), Goal())
    assert none.chosen is None
    assert none.nearest() is None


def test_the_knee_is_where_the_fixed_part_is_as_large_as_the_rest() -> None:
    """b / (1 + 0.1 b)² is largest at b = 10."""
    found = search([2, 5, 10, 20, 40], [1], Scripted(affine), Goal())
    assert pair(found.knee()) == (10, 1)


def with_rate(batch: int, streams: int, rate: tuple[float, float, float], high: float = 1.0) -> Trial:
    return Trial(batch, streams, 0, 1.0, Interval(0.9, 0.8, high), Interval(*rate), 500)


def test_what_can_not_be_told_from_the_choice_is_named_and_not_taken() -> None:
    """Of those that count alone; touching ends are an overlap."""
    rates = {
        8: (80.0, 70.0, 89.9),
        12: (90.0, 70.0, 95.0),
        16: (100.0, 95.0, 105.0),
        20: (99.0, 94.0, 104.0),
        24: (104.0, 103.0, 110.0),
    }

    def known(batch: int, streams: int) -> Trial:
        return with_rate(batch, streams, rates[batch], 9.0 if batch == 24 else 1.0)

    found = search([*rates], [1], known, Goal(2.0))
    assert pair(found.chosen) == (16, 1)
    assert [pair(each) for each in found.alike(Goal(2.0))] == [(12, 1), (20, 1)]
    assert search([8], [1], lambda batch, streams: with_rate(8, 1, rates[8], 9.0), Goal(2.0)).alike(Goal(2.0)) == ()


def test_a_size_that_is_left_out_bounds_a_gap_all_the_same() -> None:
    """32 and 64 aren't tried; between 16 and 32 it is searched as if 32 had failed."""
    measure = Scripted(affine)

    def known(batch: int, streams: int) -> Trial:
        if batch in (32, 64):
            return Trial.failure(batch, streams, 0, "it took 9 ms", left_out=True)
        return measure(batch, streams)

    found = search(POWERS, [1], known, Goal(3.0), anywhere)
    assert pair(found.chosen) == (18, 1)
    assert not {32, 64} & {batch for batch, _ in measure.asked}
    assert {trial.batch for trial in found.trials if trial.left_out} == {32, 64}


@pytest.mark.parametrize(
    ("ends", "budget"),
    [((50.0, 41.0, 49.0), 55.0), ((50.0, 50.1, 40.0), 56.0), ((0.0123, 0.0123, 0.0123), 0.014), ((91.0,) * 3, 110.0)],
)
def test_a_budget_is_advised_above_all_that_was_measured(ends: tuple[float, ...], budget: float) -> None:
    first, *fresh = (with_rate(1, 1, (1.0, 1.0, 1.0), end) for end in ends)
    later = iter(fresh)
    assert budget_for(first, lambda batch, streams: next(later)) == pytest.approx(budget)


def test_no_budget_is_advised_where_no_upper_end_is_known() -> None:
    unknown = with_rate(1, 1, (1.0, 1.0, 1.0), math.inf)
    asked: list[int] = []

    def measure(batch: int, streams: int) -> Trial:
        asked.append(batch)
        return unknown

    assert budget_for(unknown, measure) == math.inf
    assert len(asked) == 1


@pytest.mark.slow
def test_who_follows_the_advice_finds_a_batch() -> None:
    """Of 200 noisy machines, on which the very figure of the first search fails often."""
    generator = np.random.default_rng(5)

    def noisy(batch: int, streams: int) -> Trial:
        samples = affine(batch, streams)[0] * (1 + generator.gamma(2.0, 0.01, size=400))
        latency = percentile_interval(samples, 99.0)
        return Trial(batch, streams, 0, float(np.median(samples)), latency, throughput(samples, batch, streams), 400)

    advised, exact = 0, 0
    for _ in range(200):
        nearest = search([1, 2, 4], [1], noisy, Goal(0.5)).nearest()
        assert nearest is not None
        advised += search([1, 2, 4], [1], noisy, Goal(budget_for(nearest, noisy))).chosen is not None
        exact += search([1, 2, 4], [1], noisy, Goal(nearest.latency_ms.high)).chosen is not None
    assert advised >= 198, (advised, exact)
    assert exact < 120, (advised, exact)


# Figures.


def exact_tail(count: int, percentile: float, below: int) -> float:
    """P(Bin(count, p) ≤ below), in fractions of integers."""
    from fractions import Fraction

    p = Fraction(str(percentile)) / 100
    return float(sum(math.comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(below + 1)))


@pytest.mark.parametrize(("count", "percentile"), [(30, 50.0), (100, 90.0), (400, 99.0), (368, 99.0), (50, 10.0)])
def test_the_ends_of_an_interval_are_the_order_statistics_that_the_binomial_asks_for(
    count: int, percentile: float
) -> None:
    interval = percentile_interval(np.random.default_rng(0).permutation(np.arange(1.0, count + 1)), percentile)
    upper, lower = int(interval.high), int(interval.low)
    assert exact_tail(count, percentile, upper - 1) >= 0.975 > exact_tail(count, percentile, upper - 2)
    assert exact_tail(count, percentile, lower - 1) <= 0.025 < exact_tail(count, percentile, lower)
    assert lower <= interval.value <= upper


def test_of_too_few_samples_a_percentile_has_no_upper_end() -> None:
    assert runs_needed(99.0) == 368
    assert runs_needed(50.0) == 6
    for percentile in (50.0, 90.0, 99.0, 99.9):
        needed = runs_needed(percentile)
        assert math.isfinite(percentile_interval(np.arange(needed, dtype=np.float64), percentile).high)
        assert percentile_interval(np.arange(needed - 1, dtype=np.float64), percentile).high == math.inf
    with pytest.raises(ValueError, match="no samples"):
        percentile_interval(np.empty(0), 99.0)


def test_the_interval_holds_the_percentile_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    truth = -math.log(0.01)  # p99 of the exponential distribution
    intervals = [percentile_interval(generator.exponential(size=1000), 99.0) for _ in range(2000)]
    held = sum(each.low <= truth <= each.high for each in intervals) / len(intervals)
    assert 0.94 <= held <= 0.985
    over = sum(each.high < truth for each in intervals) / len(intervals)
    assert over <= 0.035, "a choice that misses its budget passes in 2.5 % of cases"


def test_many_samples_are_no_trouble_for_the_binomial() -> None:
    interval = percentile_interval(np.arange(200_000, dtype=np.float64), 99.9)
    assert 199_760 < interval.low < interval.value < interval.high < 199_840


class Device:
    """Runs batches one after the other, 10 ms each, on a clock of its own; lanes are submitted to it."""

    def __init__(self) -> None:
        self.now = 0
        self.free = 0
        self.most, self.flying = 0, 0


class Lane:
    def __init__(self, device: Device) -> None:
        self._device = device
        self._end = 0

    def submit(self) -> None:
        self._device.free = self._end = max(self._device.free, self._device.now) + 10_000_000
        self._device.flying += 1
        self._device.most = max(self._device.most, self._device.flying)

    def wait(self) -> dict[str, Any]:
        self._device.now = max(self._device.now, self._end)
        self._device.flying -= 1
        return {}

    def prepare(self, batch: int) -> dict[str, Any]:
        return {}

    def warm(self, batch: int) -> None:
        return

    def run(self) -> dict[str, Any]:
        self.submit()
        return self.wait()

    def parts(self) -> dict[str, float]:
        return {}


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_callers_of_a_busy_device_wait_for_each_other(monkeypatch: pytest.MonkeyPatch, streams: int) -> None:
    device = Device()
    monkeypatch.setattr("time.perf_counter_ns", lambda: device.now)
    loop = closed_loop([Lane(device) for _ in range(streams)])
    samples = loop.take(20).ms
    assert samples.tolist() == [10.0 * streams] * 20, "also of the first: the pipe was full"
    assert device.most == streams
    assert device.flying == 0
    rate = throughput(samples, 8, streams)
    assert rate.value == pytest.approx(800.0), "8 samples every 10 ms, however many callers"


def test_throughput_has_an_interval_from_windows() -> None:
    few = throughput(np.full(5, 10.0), 4, 1)
    assert (few.low, few.high) == (0.0, math.inf)
    assert few.value == pytest.approx(400.0)
    noisy = 10 + np.random.default_rng(0).random(2000)
    rate = throughput(noisy, 4, 1)
    assert rate.low < 4e3 / 10.5 < rate.high
    assert rate.high / rate.low < 1.02


# The largest batch.


def test_the_largest_batch_is_that_of_the_profile_where_all_run() -> None:
    runs: list[int] = []

    def run(batch: int) -> None:
        runs.append(batch)

    found = find_largest(range(1, 101), run)
    assert (found.batch, found.bound, found.refused) == (100, "profile", None)
    assert runs == [1, 2, 4, 8, 16, 32, 64, 100]


@pytest.mark.parametrize("limit", [1, 2, 3, 31, 32, 33, 63, 99])
def test_the_largest_batch_that_fits_is_found_exactly(limit: int) -> None:
    found = find_largest(range(1, 101), lambda batch: None if batch <= limit else "1 byte of GPU memory can't be had")
    assert (found.batch, found.bound, found.refused) == (limit, "memory", limit + 1)
    assert len(found.tried) <= 16, "run once more after the failures"
    assert found.tried[-1] == (limit, True), "run once more after the failures"


def test_sizes_between_profiles_are_passed_over() -> None:
    found = find_largest([1, 2, 16, 17, 64], lambda batch: None if batch < 17 else "out of memory")
    assert (found.batch, found.refused) == (16, 17)


def test_an_error_that_is_not_of_memory_is_called_so() -> None:
    found = find_largest([1, 2, 4], lambda batch: None if batch < 4 else "node /Reshape fails")
    assert (found.bound, found.reason) == ("error", "node /Reshape fails")


def test_where_nothing_runs_or_a_failure_breaks_everything_it_is_an_error() -> None:
    with pytest.raises(ExecutionError, match="batch 2, the smallest of the engine, doesn't run: out of memory"):
        find_largest([2, 4], lambda batch: "out of memory")
    broken: list[int] = []

    def sticky(batch: int) -> str | None:
        broken.extend([batch] if batch > 4 else [])
        return "out of memory" if broken else None

    with pytest.raises(ExecutionError, match="after the failure of batch 8 it doesn't"):
        find_largest([1, 2, 4, 8], sticky)


# The command.


QUICK = ("--min-time", 0.01)


@pytest.mark.parametrize(
    ("text", "ms"), [("5ms", 5.0), ("500us", 0.5), ("500 µs", 0.5), ("0.005s", 5.0), ("1.5MS", 1.5), (".5ms", 0.5)]
)
def test_latencies(text: str, ms: float) -> None:
    assert parse_latency(text) == pytest.approx(ms)


@pytest.mark.parametrize("text", ["5", "ms", "-5ms", "0ms", "5m", "1e3ms", "nan", "", "5ms5ms", "٣ms"])
def test_wrong_latencies(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        parse_latency(text)


def test_a_plan_says_where_each_value_came_from_and_opens_nothing(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "open_engine", lambda artifact, device: pytest.fail("the engine was opened"))
    plan = plan_tune(TuneRequest(None))
    assert (plan.artifact.path.name, plan.batches, plan.refines, plan.known) == (engine.name, (1, 2, 4, 8), True, {})
    assert plan.origins == {
        "engine": "the newest in engines/ that runs here",
        "streams": "the default, 1",
        "batches": "powers of two, and the ends and opts of the profiles",
        "known": "nothing is known of this device",
    }
    change_sidecar(engine, engine={"table": [{"batch": 4, "profile": 0, "ms": 1.5}]})
    plan = plan_tune(TuneRequest(engine))
    assert (plan.batches, plan.known) == ((4,), {4: 1.5})
    assert (plan.origins["batches"], plan.origins["known"]) == ("the build's table", "the build's table")
    plan = plan_tune(TuneRequest(engine, batches=[3, 8], streams=[1, 2]))
    assert (plan.batches, plan.refines, plan.known) == ((3, 8), False, {})
    assert plan.origins == {"engine": "given", "streams": "given", "batches": "given"}
    plan = plan_tune(TuneRequest(engine, max_batch_search=True))
    assert plan.batches == tuple(range(1, 9))
    assert plan.origins["batches"] == "all that a profile holds"


def test_the_search_for_the_largest_batch_does_not_ask_for_the_device(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = load(engine, "engine")
    record = replace(artifact.sidecar.engine, backend="tensorrt")
    on_gpu = replace(artifact, sidecar=replace(artifact.sidecar, engine=record))
    asked: list[str] = []
    monkeypatch.setattr(tune, "resolve_engine", lambda *args: on_gpu)
    monkeypatch.setattr(environment, "ask_nvml", lambda ask: asked.append("device"))
    assert plan_tune(TuneRequest(engine, max_batch_search=True)).device == {}
    assert asked == []
    plan_tune(TuneRequest(engine, save=False))
    assert asked == ["device"]


def test_the_choice_is_kept_in_the_sidecar_and_infer_takes_it(cli: Cli, engine: Path, folder: Path) -> None:
    before, artifact = load(engine, "engine").sidecar, engine.read_bytes()
    assert before.engine.best_batch == 4
    result = cli("tune", "--latency", "10s", "--batch", "2,3", "--streams", "1,2", *QUICK, "--json", "r.json")
    assert result.exit_code == 0, result.output
    after = load(engine, "engine")
    tuned = after.sidecar.engine.tuned
    assert tuned is not None
    assert tuned.batch in (2, 3)
    assert tuned.streams in (1, 2)
    assert tuned.profile == 0
    assert tuned.asked == "p99 latency under 10000 ms"
    assert tuned.device["cpu"]
    assert tuned.created
    assert tuned.latency_ms.low <= tuned.latency_ms.value <= tuned.latency_ms.high < 10_000
    assert replace(after.sidecar, engine=replace(after.sidecar.engine, tuned=None)) == before
    assert engine.read_bytes() == artifact
    store.check_file(after)
    assert sorted(path.name for path in engine.parent.iterdir()) == [engine.name, sidecar_path(engine).name]
    assert after.sidecar.engine.best_batch == tuned.batch
    done = infer.infer(infer.InferRequest(engine, "random", count=12))
    assert set(done.executed) == {tuned.batch}
    data = json.loads((folder / "r.json").read_text())
    assert data["chosen"]["batch"] == tuned.batch
    assert data["chosen"]["confirmed"] is True
    assert data["chosen"]["round"] >= 1
    assert "again: measured after the search" in result.output
    assert {(row["batch"], row["streams"]) for row in data["trials"]} == {(b, s) for b in (2, 3) for s in (1, 2)}
    assert all(len(row["latencies_ms"]) == row["runs"] for row in data["trials"])
    for words in ("chosen", "knee", "sure", f"batch {tuned.batch}", "p99", "1 batch in flight", "2 batches in flight"):
        assert words in result.output, result.output


def test_nothing_is_kept_where_that_is_asked(cli: Cli, engine: Path) -> None:
    before = sidecar_path(engine).read_bytes()
    result = cli("tune", "--max-throughput", "--batch", "1-8", *QUICK, "--no-save")
    assert result.exit_code == 0
    assert sidecar_path(engine).read_bytes() == before
    assert "kept in" not in result.output


def test_a_sidecar_that_cannot_be_written_is_told_before_anything_runs(
    cli: Cli, engine: Path, closed: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed(engine.parent)
    with monkeypatch.context() as patch:
        patch.setattr(tune, "open_engine", None)
        result = cli("tune", engine, "--max-throughput", "--batch", 2, *QUICK)
    refused(result, 1, f"the sidecar of {engine}: {engine.parent}: Read-only file system", "pass --no-save")
    assert cli("tune", engine, "--max-throughput", "--batch", 2, *QUICK, "--no-save").exit_code == 0


def test_what_cannot_be_kept_in_the_end_is_shown_all_the_same(
    cli: Cli, engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(artifact: Any, **fields: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(sidecar_path(artifact.path)))

    monkeypatch.setattr(store, "rewrite", full)
    result = cli("tune", engine, "--max-throughput", "--batch", 2, *QUICK, "--json", "r.json")
    refused(result, 1, "isn't kept in the engine's sidecar", f"{engine.name}.json: No space left", "--no-save")
    assert "chosen" in result.stdout
    assert "kept in the engine's sidecar: infer" not in result.stdout
    data = json.loads((folder / "r.json").read_text())
    assert data["chosen"]["batch"] == 2
    assert data["saved"] is False
    assert "No space left" in data["unkept"]


def test_sizes_are_the_tables_else_powers_of_two(cli: Cli, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[int, ...]] = []

    def script(batches: tuple[int, ...], streams: list[int], measure: object, goal: Goal, inside: Any) -> Outcome:
        begun.append(batches)
        assert [batch for batch in range(12) if inside(batch)] == list(range(1, 9))
        return search(batches, streams, Scripted(affine), goal, inside)

    monkeypatch.setattr(tune, "search", script)
    assert cli("tune", "--max-throughput", "--no-save").exit_code == 0
    line = ("build", "small.onnx", "--max", 8, "--opt", 4, "--batch", "3,5,7", "--output", "engines/t.ort.onnx")
    assert cli(*line).exit_code == 0
    assert cli("tune", "engines/t.ort.onnx", "--latency", "1.51ms", "--no-save").exit_code == 0
    assert begun == [(1, 2, 4, 8), (3, 5, 7)]


def test_no_batch_meets_the_budget(cli: Cli, engine: Path) -> None:
    before = sidecar_path(engine).read_bytes()
    result = cli("tune", "--latency", "0.000001us", "--batch", "2,8", *QUICK)
    refused(
        result, 1, "no batch size keeps p99 latency under 1e-09 ms", "the nearest is batch", "pass a --latency of about"
    )
    assert "try smaller batches" in result.output
    assert sidecar_path(engine).read_bytes() == before


def test_too_few_runs_for_the_percentile_are_said(cli: Cli, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "PATIENCE", 0.0)
    line = ("tune", "--latency", "100s", "--percentile", 99.9999, "--batch", 8, *QUICK)
    refused(cli(*line), 1, "p99.9999 needs 3688878 to be known from above", "raise --min-time")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((), "tune needs a goal"),
        ((), "pass --latency 5ms, --max-throughput or --max-batch-search"),
        (("--latency", "5ms", "--max-throughput"), "--latency and --max-throughput are two questions"),
        (("--latency", "fast"), "--latency 'fast' is not a time"),
        (("--latency", "5ms", "--percentile", 100), "--percentile 100 has no interval"),
        (("--max-throughput", "--streams", "0"), "--streams '0'"),
        (("--max-throughput", "--streams", "1,2,4,...,128"), "1 to 64"),
        (("--max-throughput", "--batch", "9"), "batch 9 is outside every profile"),
        (("--max-batch-search", "--latency", "5ms"), "--latency and --max-batch-search are two questions"),
        (("--max-batch-search", "--batch", "4"), "--max-batch-search tries every batch size"),
        (("--max-batch-search", "--streams", "1,2"), "--max-batch-search has one batch in memory at a time"),
        (("--max-throughput", "--json", "engines"), "engines is a folder"),
    ],
)
def test_wrong_words(cli: Cli, engine: Path, args: tuple[object, ...], told: str) -> None:
    refused(cli("tune", *args), 2, told)


def test_a_wrong_engine_is_not_tuned(cli: Cli, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, runs = OnnxRuntimeSlot.submit, iter([True])

    def submit_once(self: OnnxRuntimeSlot) -> None:
        if next(runs, False):
            real(self)

    monkeypatch.setattr(OnnxRuntimeSlot, "submit", submit_once)
    line = ("tune", "--max-throughput", "--batch", 4, *QUICK)
    refused(cli(*line), 1, "under load batch 4 gives other rows of output than the run that was checked")


def tuned_of(engine: Path, *args: object, **times: float) -> None:
    """Give the engine's sidecar a table of these times, ``b4=1.5``."""
    table = [{"batch": int(name[1:]), "profile": 0, "ms": ms, "times": {"0": ms}} for name, ms in times.items()]
    change_sidecar(engine, engine={"table": table})


@pytest.mark.slow
def test_what_the_builds_times_rule_out_is_left_out_and_said(
    cli: Cli, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over twice the budget alone; at twice it a size is tried."""
    tried = watched(monkeypatch)
    tuned_of(engine, b1=1e-6, b4=1e-6, b8=2_000.0)
    result = cli("tune", "--latency", "1s", *QUICK, "--no-save")
    assert result.exit_code == 0
    assert {1, 4, 8} <= set(tried)
    assert "left out" not in result.output
    tried.clear()
    tuned_of(engine, b1=1e-6, b4=1e-6, b8=2_000.1)
    result = cli("tune", "--latency", "1s", *QUICK, "--streams", "1,2", "--no-save", "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert {1, 4} <= set(tried)
    assert 8 not in tried
    said = "batch 8 is left out: it took 2000 ms alone when the engine was built"
    assert result.stderr.count(f"note: {said}, over 2 × the budget\n") == 1
    assert result.stdout.count(said) == 1
    row = next(row for row in json.loads(Path("r.json").read_text())["trials"] if row["batch"] == 8)
    assert row["left_out"] is True
    assert row["runs"] == 0
    tried.clear()
    assert cli("tune", "--latency", "1s", "--batch", "2,8", *QUICK, "--no-save").exit_code == 0
    assert 8 in tried, "it was asked for by name"
    tried.clear()
    assert cli("tune", "--max-throughput", *QUICK, "--no-save").exit_code == 0
    assert 8 in tried, "no budget rules anything out"


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes whose load is prepared, from now on."""
    tried: list[int] = []
    real = ClosedLoopLoad.loop

    def loop(self: ClosedLoopLoad, batch: int, streams: int) -> Any:
        tried.append(batch)
        return real(self, batch, streams)

    monkeypatch.setattr(ClosedLoopLoad, "loop", loop)
    return tried


def test_times_of_a_busy_build_rule_nothing_out(cli: Cli, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest size, which is always tried, runs a thousandfold faster than the build said: so may the others."""
    tuned_of(engine, b1=50_000.0, b2=60_000.0, b8=70_000.0)
    tried = watched(monkeypatch)
    result = cli("tune", "--latency", "10s", *QUICK, "--no-save")
    assert result.exit_code == 0
    assert {1, 2, 8} <= set(tried)
    assert "left out" not in result.output


@pytest.mark.slow
def test_times_of_another_machine_rule_nothing_out(cli: Cli, engine: Path) -> None:
    tuned_of(engine, b1=1e-6, b8=5_000.0)
    change_sidecar(engine, build={"device": {"cpu": "another"}})
    result = cli("tune", "--latency", "1s", *QUICK, "--no-save")
    assert result.exit_code == 0
    assert "left out" not in result.output


def a_result(several: bool) -> TuneResult:
    trials = tuple(
        Trial(batch, streams, 0, 1234.5, Interval(1234.5, 1200.5, 1300.5), Interval(12345.0, 12000.0, 13000.0), 36789)
        for streams in ((1, 2) if several else (1,))
        for batch in (8, 16, 32)
    )
    lost = Trial.failure(64, 1, 0, "out of memory " * 20)
    profiles = (Profile(100, 1000, 1000),)
    model = ModelRecord("resnet18", "random (seed 0)")
    one = replace(trials[0], confirmed=True, round=1)
    return TuneResult(
        engine="resnet18_dynamic.ort.onnx", backend="onnxruntime", precision="fp32", model=model, profiles=profiles,
        asked="p99 latency under 100 ms", chosen=one, best=trials[1], knee=one, smaller=None, larger=trials[1],
        trials=(one, *trials[1:], lost), timed={}, settings={"percentile": 99.0}, tools={}, device={}, environment={},
        created="", saved=True, alike=(trials[1],),
    )  # fmt: skip


BY_IMPORTANCE = ("runs", "p50 ms", "95 %", "profile", "streams", "95 % ")
"""Columns, the least important first; the first 95 % is the throughput's, the second the latency's."""


@pytest.mark.parametrize("several", [False, True])
def test_the_table_does_without_columns_before_it_wraps(several: bool) -> None:
    result, order = a_result(several), ("batch", "streams", "profile", "samples/s", "95 %", "p50 ms", "p99 ms", "95 % ")
    shown = {}
    for width in (200, 120, 110, 100, 90, 80, 70, 64):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(fitting(console, *(tune_command.trials_table(result, count) for count in range(7))))
        lines = [line for line in console.export_text().splitlines() if line.startswith(("│", "┃"))]
        assert len(lines) == 1 + len(result.trials), "no line is wrapped, none cut"
        assert "…" not in "".join(lines), "no line is wrapped, none cut"
        assert "chosen, knee, again" in lines[1]
        assert "doesn't run" in lines[-1]
        shown[width] = [cell.strip() for cell in lines[0].split("┃")[1:-1]]
    possible = []
    for count in range(7):
        gone = set(BY_IMPORTANCE[:count]) - ({"streams"} if several else set())
        possible.append([name.strip() for name in (*order, "runs", "") if name not in gone])
    assert all(columns in possible for columns in shown.values()), shown
    assert shown[200] == possible[0]
    assert shown[80] == possible[4]
    assert [len(columns) for columns in shown.values()] == sorted(map(len, shown.values()), reverse=True)


@pytest.mark.parametrize(
    ("ends", "cell", "sentence"),
    [
        ((4.1, 4.4), "4.1–4.4", "4.1–4.4 ms"),
        ((4.1, math.inf), "over 4.1", "over 4.1 ms"),
        ((0.0, 4.4), "up to 4.4", "up to 4.4 ms"),
        ((0.0, math.inf), "not known", "not known from 5 runs"),
        ((-math.inf, math.inf), "not known", "not known from 5 runs"),
    ],
)
def test_an_end_that_is_not_known_is_words(ends: tuple[float, float], cell: str, sentence: str) -> None:
    interval = Interval(4.2, *ends)
    trial = Trial(4, 1, 0, 4.0, interval, interval, 5)
    assert tune_command.interval_text(interval, tune_command.ms_text) == cell
    assert tune_command.latency_text(trial, "p99") == f"p99 {sentence}"


def test_an_interval_that_too_few_runs_give_is_said_in_words(
    cli: Cli, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "throughput", lambda latencies, batch, streams: Interval(1000.0, 0.0, math.inf))
    monkeypatch.setattr(tune, "percentile_interval", lambda latencies, percentile: Interval(2.0, -math.inf, math.inf))
    result = cli("tune", "--max-throughput", "--batch", "2,4", *QUICK)
    assert result.exit_code == 0, result.output
    assert re.search(
        r"fresh runs after the search: p99 not known from \d+ runs, samples/s not known from", result.output
    )
    assert "?" not in result.output
    assert "–inf" not in result.output
    assert "0–" not in result.output


def test_choices_that_can_not_be_told_apart_are_said(cli: Cli, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wide(latencies: Any, batch: int, streams: int) -> Interval:
        return Interval(1000.0 + batch, 900.0, 1100.0)

    monkeypatch.setattr(tune, "throughput", wide)
    result = cli("tune", "--latency", "10s", "--batch", "2,4", *QUICK, "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert "alike    no clear difference in throughput: batch 2 (900–1,100 samples/s)" in result.output
    data = json.loads(Path("r.json").read_text())
    assert [row["batch"] for row in data["alike"]] == [2]
    assert data["chosen"]["batch"] == 4
    monkeypatch.setattr(tune, "throughput", lambda latencies, batch, streams: Interval(*[1000.0 * batch] * 3))
    result = cli("tune", "--latency", "10s", "--batch", "2,4", *QUICK)
    assert result.exit_code == 0
    assert "no clear difference" not in result.output


class Limited:
    """ONNX Runtime's slots with a memory for so many samples at once, as a GPU would have."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int, error: Callable[[int], BaseException]) -> None:
        self.closed = 0
        real_prepare, real_close = OnnxRuntimeSlot.prepare, OnnxRuntimeSession.close

        def prepare(slot: OnnxRuntimeSlot, batch: int) -> dict[str, Any]:
            if batch > limit:
                raise error(batch)
            return real_prepare(slot, batch)

        def close(session: OnnxRuntimeSession) -> None:
            self.closed += 1
            real_close(session)

        monkeypatch.setattr(OnnxRuntimeSlot, "prepare", prepare)
        monkeypatch.setattr(OnnxRuntimeSession, "close", close)


def no_room(batch: int) -> BaseException:
    return ExecutionError(f"{batch} bytes of GPU memory can't be had: out of memory", "free GPU memory")


@pytest.mark.parametrize("error", [no_room, MemoryError])
def test_the_search_for_the_largest_batch_survives_running_out_of_memory(
    cli: Cli, engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[int], BaseException]
) -> None:
    limited = Limited(monkeypatch, 5, error)
    result = cli("tune", "--max-batch-search", "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert "largest batch: 5 of 8" in result.output
    assert "bounded by memory: batch 6 fails" in result.output
    data = json.loads((folder / "r.json").read_text())
    assert data["batch"] == 5
    assert data["bound"] == "memory"
    assert limited.closed == len(data["tried"])
    assert data["tried"] == [[1, True], [2, True], [4, True], [8, False], [6, False], [5, True], [5, True]]


def test_the_profile_may_be_the_bound(cli: Cli, engine: Path) -> None:
    result = cli("tune", "--max-batch-search")
    assert result.exit_code == 0
    assert "largest batch: 8 of 8" in result.output
    assert "bounded by the profile, not by memory" in result.output


def test_a_tuning_goes_on_with_fresh_sessions_after_a_batch_that_does_not_fit(
    cli: Cli, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = Limited(monkeypatch, 4, no_room)
    result = cli("tune", "--max-throughput", "--batch", "8,4,6,2", *QUICK)
    assert result.exit_code == 0, result.output
    assert result.output.count("doesn't run: ") == 2
    assert limited.closed >= 3
    tuned = load(engine, "engine").sidecar.engine.tuned
    assert tuned is not None
    assert tuned.batch <= 4


def test_where_no_batch_runs_the_reason_is_told(cli: Cli, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Limited(monkeypatch, 0, no_room)
    refused(cli("tune", "--max-throughput", *QUICK), 1, "runs at no batch size: 1 bytes of GPU memory can't be had")
    refused(cli("tune", "--max-batch-search"), 1, "batch 1, the smallest of the engine, doesn't run")


def test_attempts_leave_nothing_behind(engine: Path) -> None:
    from trtbatch.backends import open_engine

    artifact = load(engine, "engine")
    with open_engine(artifact) as opened:
        assert max_batch.attempt(opened, artifact.sidecar, 8) is None


# The sidecar.


def a_tuned(batch: int) -> Tuned:
    return Tuned("the largest throughput", batch, 1, 0, 99.0, Interval(1.0, 0.9, math.inf), Interval(800, 790, 810))


def test_a_rewritten_sidecar_keeps_what_others_wrote(engine: Path) -> None:
    artifact = load(engine, "engine")
    beside = sidecar_path(engine)
    change_sidecar(engine, of_a_newer_release={"x": 1}, engine={"newer": 2}, precision={"asked": "changed meanwhile"})
    written = store.rewrite(artifact, tuned=a_tuned(3))
    assert written.sidecar.engine.tuned == a_tuned(3), "an infinite end too"
    kept = json.loads(beside.read_text())
    assert kept["of_a_newer_release"] == {"x": 1}
    assert kept["engine"]["newer"] == 2
    assert kept["precision"]["asked"] == "changed meanwhile"
    assert str(a_tuned(3)) == "batch 3 with 1 stream: 800 samples/s, p99 1 ms (asked: the largest throughput)"


@pytest.mark.slow
def test_the_sidecar_of_an_artifact_that_was_made_anew_is_left_alone(cli: Cli, engine: Path, folder: Path) -> None:
    artifact = load(engine, "engine")
    models.deep(folder / "small.onnx")
    assert cli("build", "small.onnx", "--max", 8, "--backend", "onnxruntime").exit_code == 0
    before = sidecar_path(engine).read_bytes()
    with pytest.raises(ArtifactError, match="made anew meanwhile"):
        store.rewrite(artifact, tuned=a_tuned(3))
    assert sidecar_path(engine).read_bytes() == before


def test_a_tuned_batch_that_no_profile_holds_is_not_the_best(engine: Path) -> None:
    record = load(engine, "engine").sidecar.engine
    assert replace(record, tuned=a_tuned(3)).best_batch == 3
    assert replace(record, tuned=a_tuned(3), profiles=(Profile(4, 6, 8),)).best_batch == 6
