"""Select the K opts that serve a traffic in the least time, by dynamic programming over sorted candidates.

Each request runs on the fastest of the selected profiles that hold it. If the time of a batch never falls as the opt
grows, that is the profile with the next larger opt, and the selection splits into intervals of batch sizes.

Let *f(k, j)* be the least time of all requests up to candidate *j* on *k* profiles of which the largest is *j*:

    f(k, j) = min over i < j of f(k − 1, i) + cost of the requests over candidate i, up to j, on j

This is the recurrence of one-dimensional k-medians (Hassin and Tamir, Improved complexity bounds for location problems
on the real line, Operations Research Letters 10, 1991). If measured times do fall, every set is tried when there are
few candidates. Otherwise the recurrence is used, and reported as an assumption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trtbatch.core.profiles import auto_profiles, powers_of_two

__all__ = ["FEW", "Choice", "Costs", "best_choices", "most_frequent", "powers"]

Array = NDArray[np.float64]

FEW = 15
"""Largest number of candidates of which every set is tried: at most 32,767 sets."""


class Costs:
    """Cost of a traffic on any set of opts.

    Args:
        counts: number of requests by batch size.
        times: returns the ms of the given batch sizes on the profile of an opt; infinite if the profile doesn't hold
            them.
    """

    def __init__(self, counts: Mapping[int, int], times: Callable[[Sequence[int], int], Array]) -> None:
        self.counts = dict(sorted(counts.items()))
        self.batches = list(self.counts)
        self._weights = np.array(list(self.counts.values()), np.float64)
        self._times = times
        self._columns: dict[int, Array] = {}

    @property
    def requests(self) -> int:
        """Return the number of requests."""
        return sum(self.counts.values())

    def column(self, opt: int) -> Array:
        """Return the total ms of each batch size's requests on one opt."""
        if opt not in self._columns:
            self._columns[opt] = self._times(self.batches, opt) * self._weights
        return self._columns[opt]

    def total(self, opts: Sequence[int]) -> float:
        """Return the ms of all requests, each on its fastest profile; infinite if a batch fits none."""
        return float(np.min([self.column(opt) for opt in opts], axis=0).sum())


@dataclass(frozen=True)
class Choice:
    """Best set of at most K opts.

    Args:
        slack: largest possible excess over the `total_ms` of the best possible set, relative to it; 0 if this is the
            best one.
    """

    opts: tuple[int, ...]
    total_ms: float
    slack: float = 0.0


Method = Literal["recurrence", "every set", "assumption"]


def best_choices(costs: Costs, candidates: Sequence[int], most: int) -> tuple[list[Choice], Method]:
    """Return the best choices of 1, 2, … `most` opts, and the method that found them.

    There are at most as many choices as candidates. `candidates` includes the largest batch of the traffic, or a larger
    one.
    """
    sizes = sorted(set(candidates))
    most = min(most, len(sizes))
    table = np.array([costs.column(opt) for opt in sizes])
    if _grows(table):
        return [Choice(opts, costs.total(opts)) for opts, _ in _recurrence(costs, sizes, table, most)], "recurrence"
    if len(sizes) <= FEW:
        sets = (min(combinations(sizes, count), key=costs.total) for count in range(1, most + 1))
        return [Choice(opts, costs.total(opts)) for opts in sets], "every set"
    return _assumed(costs, sizes, table, most), "assumption"


def _assumed(costs: Costs, sizes: Sequence[int], table: Array, most: int) -> list[Choice]:
    """Return the choices of the recurrence although some times fall, each with a bound of its excess.

    Replace each time by the least on this opt *or a larger one*. Then no time falls, and no set costs more than before.
    So the recurrence gives a lower bound of the best total, and a second set to choose from.
    """
    least = np.minimum.accumulate(table[::-1], axis=0)[::-1]
    least = np.where(np.isfinite(table), least, np.inf)
    pairs = zip(_recurrence(costs, sizes, table, most), _recurrence(costs, sizes, least, most))
    found = []
    for (one, _), (two, bound) in pairs:
        opts = min(one, two, key=costs.total)
        found.append(Choice(opts, costs.total(opts), max(0.0, costs.total(opts) / bound - 1)))
    return found


def _grows(table: Array) -> bool:
    """Return whether no batch gets faster on a larger opt."""
    earlier, later = table[:-1], table[1:]
    both = np.isfinite(earlier)
    return bool((later[both] >= earlier[both] * (1 - 1e-9)).all())


def _recurrence(costs: Costs, sizes: Sequence[int], table: Array, most: int) -> list[tuple[tuple[int, ...], float]]:
    """Return the best sets of 1 … `most` opts and their totals if each batch runs on the next larger opt.

    The module's docstring has the recurrence. `table` holds the total ms of each batch size's requests (columns) on
    each candidate (rows).
    """
    many = len(sizes)
    held = np.searchsorted(costs.batches, sizes, side="right")  # number of batch sizes up to each candidate
    # share[i, j]: cost, on candidate j, of the requests above candidate i - 1 (all for i = 0) and up to j.
    share = np.full((many, many), np.inf)
    for j in range(many):
        sums = np.concatenate([[0.0], np.cumsum(table[j, : held[j]])])
        firsts = np.concatenate([[0], held[:j]])
        share[: j + 1, j] = sums[held[j]] - sums[firsts]
    ends = [place for place in range(many) if held[place] == len(costs.batches)]
    best = share[0].copy()
    before: list[NDArray[np.int64]] = []
    sets = []
    for count in range(most):
        if count:
            totals = best[:-1, None] + share[1:, :]  # rows: last but one candidate, columns: last
            before.append(np.argmin(totals, axis=0))
            best = totals.min(axis=0)
        last = min(ends, key=lambda place: float(best[place]))
        sets.append((_traced(sizes, before, last), float(best[last])))
    return sets


def _traced(sizes: Sequence[int], before: Sequence[NDArray[np.int64]], last: int) -> tuple[int, ...]:
    """Return the set that ends with a candidate, from the argmins of each step."""
    places = [last]
    for choice in reversed(before):
        places.append(int(choice[places[-1]]))
    return tuple(sizes[place] for place in reversed(places))


def most_frequent(counts: Mapping[int, int], many: int) -> tuple[int, ...]:
    """Return the greedy set: the largest size, which needs a profile, and the most frequent ones, larger ones first."""
    top = max(counts)
    others = sorted((size for size in counts if size != top), key=lambda size: (-counts[size], -size))
    return tuple(sorted([top, *others[: many - 1]]))


def powers(counts: Mapping[int, int], many: int) -> tuple[int, ...]:
    """Return the usual set: powers of two up to the largest size, thinned out like ``build --profiles auto``."""
    return tuple(profile.opt for profile in auto_profiles(powers_of_two(1, max(counts)), 1, many))
