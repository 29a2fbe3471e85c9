"""Which batch size, with how many streams: the search, over whatever measures a pair of them. Pure.

Every size of a coarse list is measured with every number of streams; then the gaps on both sides of the winner are
halved until its neighbours are near. What wins is measured once more, from fresh samples, and the figures are those of
that time: the best of many noisy measurements is partly the luckiest. With a budget a choice must have met it both
times, which also guards against hiccups that come in clumps, of which the one or the other measurement saw none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trtbatch.artifacts import Interval

__all__ = ["NEAR", "Goal", "Outcome", "Trial", "search"]

NEAR = 0.02
"""Of the best throughput: what is within this of it counts as good as it."""

FINEST = 16
"""A gap is narrow enough at this part of the batch size: 1 up to 31, 2 up to 47, 4 at 64."""

MOST_REFINED = 16
"""Choices that are measured beside the coarse list, at the most."""


@dataclass(frozen=True)
class Trial:
    """One batch size with one number of streams, as measured.

    Args:
        profile: index of the optimization profile.
        median_ms: of the latency.
        latency_ms: the percentile asked for.
        samples_per_s: throughput of the same load.
        runs: batches whose latency was taken.
        failed: why it doesn't run, where it doesn't.
        confirmed: whether these are the figures of a second measurement.
        faults: why the GPU's clocks didn't hold.
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

    @classmethod
    def failure(cls, batch: int, streams: int, profile: int, reason: str) -> Trial:
        """A choice that doesn't run."""
        never = Interval(math.inf, -math.inf, math.inf)
        return cls(batch, streams, profile, math.inf, never, Interval(0.0, 0.0, 0.0), 0, reason)


@dataclass(frozen=True)
class Goal:
    """What is wanted.

    Args:
        budget_ms: the largest throughput with the latency below this; None is the smallest batch, and of it the
            fewest streams, within :data:`NEAR` of the largest throughput of all.
    """

    budget_ms: float | None = None

    def meets(self, trial: Trial) -> bool:
        """Whether a choice counts: it runs, and the *upper* end of its latency's interval is below the budget."""
        return trial.failed is None and (self.budget_ms is None or trial.latency_ms.high < self.budget_ms)

    def fastest(self, trials: Sequence[Trial]) -> Trial | None:
        """The largest throughput of those that count; of equal ones the smaller batch, then fewer streams."""
        counting = [trial for trial in trials if self.meets(trial)]
        return min(counting, key=lambda each: (-each.samples_per_s.value, each.batch, each.streams), default=None)

    def choice(self, trials: Sequence[Trial]) -> Trial | None:
        """What is to be used; None where nothing counts."""
        best = self.fastest(trials)
        if best is None or self.budget_ms is not None:
            return best
        enough = (1 - NEAR) * best.samples_per_s.value
        near = [trial for trial in trials if self.meets(trial) and trial.samples_per_s.value >= enough]
        return min(near, key=lambda each: (each.batch, each.streams))


@dataclass(frozen=True)
class Outcome:
    """What a search has found; the trials by streams, then batch."""

    trials: tuple[Trial, ...]
    chosen: Trial | None
    best: Trial | None

    def line(self, streams: int) -> tuple[Trial, ...]:
        """The trials with so many streams that ran, by batch."""
        return tuple(trial for trial in self.trials if trial.streams == streams and trial.failed is None)

    def neighbours(self) -> tuple[Trial | None, Trial | None]:
        """The next smaller and the next larger batch that were measured with the chosen number of streams."""
        if self.chosen is None:
            return None, None
        line = self.line(self.chosen.streams)
        place = line.index(self.chosen)
        return (line[place - 1] if place else None), (line[place + 1] if place + 1 < len(line) else None)

    def knee(self) -> Trial | None:
        """Where throughput over latency is the largest, with the chosen number of streams.

        Below it a larger batch gains more throughput, relatively, than it costs in latency; above it less. This is
        Kleinrock's *power* (Power and deterministic rules of thumb for probabilistic problems in computer
        communications, ICC 1979); the latency is the median, which is less noisy than a high percentile.
        """
        if self.chosen is None:
            return None
        line = self.line(self.chosen.streams)
        return max(line, key=lambda trial: (trial.samples_per_s.value / trial.median_ms, -trial.batch))

    def nearest(self) -> Trial | None:
        """Of what runs, the choice with the least latency; None where nothing runs."""
        ran = [trial for trial in self.trials if trial.failed is None]
        return min(ran, key=lambda each: (each.latency_ms.value, each.batch, each.streams), default=None)


def search(
    batches: Sequence[int],
    streams: Sequence[int],
    measure: Callable[[int, int], Trial],
    goal: Goal,
    inside: Callable[[int], bool] | None = None,
) -> Outcome:
    """Measure, refine, confirm, choose.

    Args:
        batches: the coarse list.
        streams: numbers of batches in flight.
        measure: of a batch size and a number of streams; called a second time for a pair that wins.
        inside: whether a batch size between two others can be run; None keeps to the coarse list.
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
    while True:
        trials = found.trials
        winners = [each for each in (goal.choice(trials), goal.fastest(trials)) if each is not None]
        doubtful = next((each for each in winners if not each.confirmed), None)
        if doubtful is None:
            return Outcome(trials, goal.choice(trials), goal.fastest(trials))
        found.confirm(doubtful)


class _Found:
    """What has been measured, by streams and batch."""

    def __init__(self, measure: Callable[[int, int], Trial]) -> None:
        self._measure = measure
        self._by_pair: dict[tuple[int, int], Trial] = {}

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(self._by_pair[pair] for pair in sorted(self._by_pair))

    def add(self, batch: int, streams: int) -> None:
        self._by_pair[streams, batch] = self._measure(batch, streams)

    def confirm(self, trial: Trial) -> None:
        self._by_pair[trial.streams, trial.batch] = replace(self._measure(trial.batch, trial.streams), confirmed=True)


def _next_probe(trials: Sequence[Trial], goal: Goal, inside: Callable[[int], bool]) -> tuple[int, int] | None:
    """The middle of a gap beside the choice, or beside the best, that is still wide; (batch, streams)."""
    for centre in dict.fromkeys((goal.choice(trials), goal.fastest(trials))):
        if centre is None:
            continue
        sizes = sorted(trial.batch for trial in trials if trial.streams == centre.streams)
        place = sizes.index(centre.batch)
        for low, high in ((place, place + 1), (place - 1, place)):  # the larger one first: there the throughput is
            if low < 0 or high >= len(sizes) or sizes[high] - sizes[low] <= max(1, centre.batch // FINEST):
                continue
            middle = (sizes[low] + sizes[high]) // 2
            if inside(middle):
                return middle, centre.streams
    return None
