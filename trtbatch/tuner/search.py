"""Search for the best batch size and number of streams, over any function that measures a pair of them.

Every size of a coarse list is measured with every number of streams. Then the gaps on both sides of the winner are
halved until its neighbors are near. The winner is measured again, and the figures are those of the fresh samples: the
best of many noisy measurements is partly luck. Its neighbors and the best are measured again in the same round, so that
no figure is compared with one from an earlier, busier or cooler time. With a budget, a choice must meet it both times.
This also protects against hiccups that come in clumps, which one of the two measurements may miss.

With a budget, the choice has the largest measured throughput, even if its interval overlaps with others. Those are
reported (:meth:`Outcome.alike`), not chosen. Intervals are wide if little was measured, so choosing the smallest batch
that can't be told from the best would give up more throughput on a noisier machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from trtbatch.core.sidecar import Interval

__all__ = ["NEAR", "Goal", "Outcome", "Trial", "budget_for", "search"]

NEAR = 0.02
"""Relative distance to the best throughput that counts as equal to it."""

FINEST = 16
"""Divisor of the batch size that gives the width of a gap that is narrow enough: 1 up to 31, 2 up to 47, 4 at 64."""

MOST_REFINED = 16
"""Largest number of choices that are measured in addition to the coarse list."""


MOST_ROUNDS = 3
"""Rounds of measuring the contenders, which noise may change each time; then only the winner is measured again."""


@dataclass(frozen=True)
class Trial:
    """Measurement of one batch size with one number of streams.

    Args:
        profile: index of the optimization profile.
        median_ms: median latency.
        latency_ms: the requested percentile of the latency.
        samples_per_s: throughput of the same load.
        runs: number of measured batches.
        failed: why the choice doesn't run or was left out; None if it ran.
        left_out: whether it wasn't tried, because known times rule it out.
        confirmed: whether the previous measurement was within the budget too, if there is one.
        round: round of the measurement: 0 is the search, later rounds measure contenders together.
        faults: reasons why the GPU's clocks changed or were limited.
        latencies_ms: every raw sample.
    """

    batch: int
    streams: int
    profile: int
    median_ms: float
    latency_ms: Interval
    samples_per_s: Interval
    runs: int
    failed: str | None = None
    confirmed: bool = False
    faults: tuple[str, ...] = ()
    latencies_ms: tuple[float, ...] = ()
    round: int = 0
    left_out: bool = False

    @classmethod
    def failure(cls, batch: int, streams: int, profile: int, reason: str, left_out: bool = False) -> Trial:
        """Return the trial of a choice that doesn't run, or that isn't tried."""
        never = Interval(math.inf, -math.inf, math.inf)
        return cls(
            batch, streams, profile, math.inf, never, Interval(0.0, 0.0, 0.0), 0, failed=reason, left_out=left_out
        )


@dataclass(frozen=True)
class Goal:
    """Goal of a search.

    Args:
        budget_ms: latency budget, within which the throughput should be the largest; None chooses the smallest batch,
            and for it the fewest streams, within :data:`NEAR` of the largest throughput.
    """

    budget_ms: float | None = None

    def meets(self, trial: Trial) -> bool:
        """Return whether a choice is valid: it runs, with the *upper* end of its latency interval below the budget."""
        return trial.failed is None and (self.budget_ms is None or trial.latency_ms.high < self.budget_ms)

    def fastest(self, trials: Sequence[Trial]) -> Trial | None:
        """Return the valid choice with the largest throughput; ties go to the smaller batch, then to fewer streams."""
        counting = [trial for trial in trials if self.meets(trial)]
        return min(counting, key=lambda each: (-each.samples_per_s.value, each.batch, each.streams), default=None)

    def choice(self, trials: Sequence[Trial]) -> Trial | None:
        """Return the choice to use; None if no choice is valid."""
        best = self.fastest(trials)
        if best is None or self.budget_ms is not None:
            return best
        enough = (1 - NEAR) * best.samples_per_s.value
        near = [trial for trial in trials if self.meets(trial) and trial.samples_per_s.value >= enough]
        return min(near, key=lambda each: (each.batch, each.streams))


@dataclass(frozen=True)
class Outcome:
    """Result of a search.

    Args:
        trials: trials as last measured, by streams, then batch.
        searched: the same trials as the search measured them, before any was measured again.
    """

    trials: tuple[Trial, ...]
    chosen: Trial | None
    best: Trial | None
    searched: tuple[Trial, ...] = ()

    def line(self, streams: int) -> tuple[Trial, ...]:
        """Return the trials that ran with this number of streams, by batch."""
        return _ran(self.trials, streams)

    def contenders(self) -> tuple[Trial, ...]:
        """Return what the verdict compares, each once: the choice, the best, and the neighbors of the choice."""
        found = (self.chosen, self.best, *self.neighbours())
        return tuple({(each.streams, each.batch): each for each in found if each is not None}.values())

    def neighbours(self) -> tuple[Trial | None, Trial | None]:
        """Return the next smaller and the next larger batch measured with the chosen number of streams."""
        if self.chosen is None:
            return None, None
        line = self.line(self.chosen.streams)
        place = line.index(self.chosen)
        return (line[place - 1] if place else None), (line[place + 1] if place + 1 < len(line) else None)

    def knee(self) -> Trial | None:
        """Return the trial with the largest throughput over latency, of those with the chosen number of streams.

        Below it, a larger batch gains relatively more throughput than it costs in latency; above it, less. This is
        Kleinrock's *power* (Power and deterministic rules of thumb for probabilistic problems in computer
        communications, ICC 1979). The latency is the median, which is less noisy than a high percentile. All figures
        are those of the search.
        """
        if self.chosen is None:
            return None
        line = _ran(self.searched or self.trials, self.chosen.streams)
        return max(line, key=lambda trial: (trial.samples_per_s.value / trial.median_ms, -trial.batch))

    def alike(self, goal: Goal) -> tuple[Trial, ...]:
        """Return the other valid trials whose throughput interval overlaps with that of the choice."""
        if self.chosen is None:
            return ()
        own, pair = self.chosen.samples_per_s, (self.chosen.batch, self.chosen.streams)
        counting = (trial for trial in self.trials if goal.meets(trial) and (trial.batch, trial.streams) != pair)
        return tuple(
            trial for trial in counting if trial.samples_per_s.low <= own.high and own.low <= trial.samples_per_s.high
        )

    def nearest(self) -> Trial | None:
        """Return the trial with the least latency; None if nothing runs.

        Trials with a known upper end of their percentile come first, since few runs give too small a percentile. The
        others are compared by the median, which is known better.
        """
        ran = [trial for trial in self.trials if trial.failed is None]
        return min(ran, key=_latency_known, default=None)


def _latency_known(trial: Trial) -> tuple[bool, float, int, int]:
    unknown = math.isinf(trial.latency_ms.high)
    return unknown, trial.median_ms if unknown else trial.latency_ms.value, trial.batch, trial.streams


def _ran(trials: Sequence[Trial], streams: int) -> tuple[Trial, ...]:
    return tuple(trial for trial in trials if trial.streams == streams and trial.failed is None)


def search(
    batches: Sequence[int],
    streams: Sequence[int],
    measure: Callable[[int, int], Trial],
    goal: Goal,
    inside: Callable[[int], bool] | None = None,
) -> Outcome:
    """Measure the coarse list, refine it, measure the contenders again together, and choose.

    Args:
        batches: coarse list of batch sizes.
        streams: numbers of batches in flight.
        measure: measures a batch size with a number of streams; called again for winners and their neighbors.
        goal: what to choose.
        inside: returns whether a batch size between two others can run; None keeps to the coarse list.
    """
    found = _Found(measure)
    for count in sorted(set(streams)):
        for batch in sorted(set(batches)):
            found.add(batch, count)
    if inside is not None:
        for _ in range(MOST_REFINED):
            wanted = _next_probe(found.trials, goal, inside)
            if wanted is None:
                break
            found.add(*wanted)
    number = 0
    while True:
        outcome = found.outcome(goal)
        contenders = outcome.contenders()
        winners = [each for each in (outcome.chosen, outcome.best) if each is not None]
        doubtful = [each for each in winners if not each.confirmed]
        if not doubtful and all(each.round == number > 0 for each in contenders):
            return outcome
        if not winners:
            return outcome
        if number >= MOST_ROUNDS and not doubtful:
            return outcome
        number += 1
        for each in contenders if number <= MOST_ROUNDS else doubtful[:1]:
            found.again(each, number, goal)


class _Found:
    """Measurements so far, by streams and batch."""

    def __init__(self, measure: Callable[[int, int], Trial]) -> None:
        self._measure = measure
        self._by_pair: dict[tuple[int, int], Trial] = {}
        self._searched: dict[tuple[int, int], Trial] = {}

    @property
    def trials(self) -> tuple[Trial, ...]:
        return _sorted(self._by_pair)

    def add(self, batch: int, streams: int) -> None:
        found = self._measure(batch, streams)
        self._by_pair[streams, batch] = self._searched[streams, batch] = found

    def again(self, trial: Trial, number: int, goal: Goal) -> None:
        fresh = self._measure(trial.batch, trial.streams)
        self._by_pair[trial.streams, trial.batch] = replace(fresh, confirmed=goal.meets(trial), round=number)

    def outcome(self, goal: Goal) -> Outcome:
        trials = self.trials
        return Outcome(trials, goal.choice(trials), goal.fastest(trials), _sorted(self._searched))


def _sorted(by_pair: Mapping[tuple[int, int], Trial]) -> tuple[Trial, ...]:
    return tuple(by_pair[pair] for pair in sorted(by_pair))


ADVICE_RUNS = 2
"""Fresh measurements behind an advised budget, which the choice will have to meet twice."""

ADVICE_MARGIN = 1.1
"""Margin over the largest upper end of these, since the next run's end will vary around it."""


def budget_for(trial: Trial, measure: Callable[[int, int], Trial]) -> float:
    """Return a budget, in ms, that a choice nearly always meets, rounded up to two digits.

    It is infinite if the upper end of a latency is unknown. `measure` is that of :func:`search`, but measures to the
    end whatever the latency.
    """
    first = trial.latency_ms
    known = first.high if math.isfinite(first.high) else first.value
    for _ in range(ADVICE_RUNS):
        known = max(known, measure(trial.batch, trial.streams).latency_ms.high)
        if math.isinf(known):
            return known
    least = ADVICE_MARGIN * known
    digit = 10.0 ** (math.floor(math.log10(least)) - 1)
    return float(f"{math.ceil(least / digit - 1e-9) * digit:.2g}")


def _next_probe(trials: Sequence[Trial], goal: Goal, inside: Callable[[int], bool]) -> tuple[int, int] | None:
    """Return the (batch, streams) in the middle of a gap that is still wide, next to the choice or the best."""
    for centre in dict.fromkeys((goal.choice(trials), goal.fastest(trials))):
        if centre is None:
            continue
        sizes = sorted(trial.batch for trial in trials if trial.streams == centre.streams)
        place = sizes.index(centre.batch)
        for low, high in ((place, place + 1), (place - 1, place)):  # the larger side first, where the throughput is
            if low < 0 or high >= len(sizes) or sizes[high] - sizes[low] <= max(1, centre.batch // FINEST):
                continue
            middle = (sizes[low] + sizes[high]) // 2
            if inside(middle):
                return middle, centre.streams
    return None
