"""Which batch size, with how many streams: the search, over whatever measures a pair of them. Pure.

Every size of a coarse list is measured with every number of streams; then the gaps on both sides of the winner are
halved until its neighbours are near. What wins is measured once more, from fresh samples, and the figures are those of
that time: the best of many noisy measurements is partly the luckiest. What it is compared with, its neighbours and the
best, is measured again in the same round, so that nothing is held against figures of an earlier, busier or cooler time.
With a budget a choice must have met it both times, which also guards against hiccups that come in clumps, of which the
one or the other measurement saw none.

With a budget the choice is the largest throughput as measured, also where its interval overlaps with others': those are
named (:meth:`Outcome.alike`), not taken. Intervals are wide where little was measured, and to take the smallest batch
that can't be told from the best would give up more throughput the noisier the machine is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from trtbatch.core.sidecar import Interval

__all__ = ["NEAR", "Goal", "Outcome", "Trial", "budget_for", "search"]

NEAR = 0.02
"""Of the best throughput: what is within this of it counts as good as it."""

FINEST = 16
"""A gap is narrow enough at this part of the batch size: 1 up to 31, 2 up to 47, 4 at 64."""

MOST_REFINED = 16
"""Choices that are measured beside the coarse list, at the most."""


MOST_ROUNDS = 3
"""After so many rounds of the contenders, which noise may change each time, only what wins is measured again."""


@dataclass(frozen=True)
class Trial:
    """One batch size with one number of streams, as measured.

    Args:
        profile: index of the optimization profile.
        median_ms: of the latency.
        latency_ms: the percentile asked for.
        samples_per_s: throughput of the same load.
        runs: batches whose latency was taken.
        failed: why it doesn't run, or is left out, where that is so.
        left_out: whether it wasn't tried: what is known of it rules it out.
        confirmed: whether the measurement before this one, too, was within the budget, if there is one.
        round: in which it was measured: 0 is the search, 1 and later ones are of contenders, side by side.
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
    round: int = 0
    left_out: bool = False

    @classmethod
    def failure(cls, batch: int, streams: int, profile: int, reason: str, left_out: bool = False) -> Trial:
        """A choice that doesn't run, or that isn't tried."""
        never = Interval(math.inf, -math.inf, math.inf)
        return cls(
            batch, streams, profile, math.inf, never, Interval(0.0, 0.0, 0.0), 0, failed=reason, left_out=left_out
        )


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
    """What a search has found.

    Args:
        trials: as last measured, by streams, then batch.
        searched: the same as the search itself measured them, before any was measured again.
    """

    trials: tuple[Trial, ...]
    chosen: Trial | None
    best: Trial | None
    searched: tuple[Trial, ...] = ()

    def line(self, streams: int) -> tuple[Trial, ...]:
        """The trials with so many streams that ran, by batch."""
        return _ran(self.trials, streams)

    def contenders(self) -> tuple[Trial, ...]:
        """What the verdict compares: the choice, the best, and the neighbours of the choice; each once."""
        found = (self.chosen, self.best, *self.neighbours())
        return tuple({(each.streams, each.batch): each for each in found if each is not None}.values())

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
        communications, ICC 1979); the latency is the median, which is less noisy than a high percentile. All figures
        are those of the search.
        """
        if self.chosen is None:
            return None
        line = _ran(self.searched or self.trials, self.chosen.streams)
        return max(line, key=lambda trial: (trial.samples_per_s.value / trial.median_ms, -trial.batch))

    def alike(self, goal: Goal) -> tuple[Trial, ...]:
        """Of the others that count, those whose throughput's interval overlaps with the choice's."""
        if self.chosen is None:
            return ()
        own, pair = self.chosen.samples_per_s, (self.chosen.batch, self.chosen.streams)
        counting = (trial for trial in self.trials if goal.meets(trial) and (trial.batch, trial.streams) != pair)
        return tuple(
            trial for trial in counting if trial.samples_per_s.low <= own.high and own.low <= trial.samples_per_s.high
        )

    def nearest(self) -> Trial | None:
        """Of what runs, the choice with the least latency; None where nothing runs.

        Those whose percentile is known from above come first: of a few runs it is too small. Of the others the median
        decides, which is better known.
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
    """Measure, refine, measure the contenders again side by side, choose.

    Args:
        batches: the coarse list.
        streams: numbers of batches in flight.
        measure: of a batch size and a number of streams; called again for pairs that win, and for those beside them.
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
    """What has been measured, by streams and batch."""

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
"""Fresh measurements of a choice whose budget is to be advised: it will have to meet that twice."""

ADVICE_MARGIN = 1.1
"""Over the largest upper end of these: the next run's will lie around it, not below it."""


def budget_for(trial: Trial, measure: Callable[[int, int], Trial]) -> float:
    """A budget, in ms, that a choice meets nearly always, rounded up to two digits; infinite where no end is known.

    Args:
        measure: as :func:`search` has it, but to the end, whatever the latency.
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
