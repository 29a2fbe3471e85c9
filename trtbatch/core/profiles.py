"""Which optimization profiles an engine has, and which of them runs a batch: measured where it was. Pure.

Two passes: :func:`auto_profiles` makes the candidates before the build; after it every (profile, batch) pair is
timed, and a :class:`Measured` for each batch says which profile won. The runtime looks the winner up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trtbatch.core.batches import Profile, pick_profile
from trtbatch.errors import ProfileError

__all__ = [
    "MAX_PROFILES",
    "Measured",
    "auto_profiles",
    "gaps",
    "look_up",
    "plan_auto",
    "powers_of_two",
    "split_batch",
    "widest",
]

MAX_PROFILES = 8
"""Profiles that ``--profiles auto`` makes at the most: each takes as long to build as the first."""

SEARCHED = 8192
"""Samples of a huge batch for which the best split is searched; the others run at the size that is best by far."""


@dataclass(frozen=True)
class Measured:
    """One batch size as it was timed after the build.

    Args:
        batch: its size.
        profile: index of the profile that was the fastest.
        ms: median time of one run on it.
        times: of every profile that holds the batch, ms by index.
        loss: how much longer the next best takes, relative to `ms`; None where no other profile holds it.
    """

    batch: int
    profile: int
    ms: float
    times: dict[str, float] = field(default_factory=dict)
    loss: float | None = None

    def __post_init__(self) -> None:
        times = (self.ms, *self.times.values())
        if self.batch < 1 or not all(np.isfinite(time) and time > 0 for time in times):
            raise ValueError(f"batch {self.batch} is said to take {self.ms} ms")

    @classmethod
    def of(cls, batch: int, times: Mapping[int, float]) -> Measured:
        """The row of a batch, from the time on each profile."""
        order = sorted(times, key=lambda index: (times[index], index))
        best = times[order[0]]
        loss = float(f"{times[order[1]] / best - 1:.4g}") if len(order) > 1 and best > 0 else None
        return cls(batch, order[0], best, {str(index): times[index] for index in sorted(times)}, loss)


def powers_of_two(smallest: int, largest: int) -> list[int]:
    """`smallest`, the powers of two between, and `largest`."""
    inner = [1 << bit for bit in range(largest.bit_length()) if smallest < 1 << bit < largest]
    return sorted({smallest, *inner, largest})


def auto_profiles(batches: Sequence[int], smallest: int, most: int = MAX_PROFILES) -> tuple[Profile, ...]:
    """A profile for each batch size of interest, tuned for it: ``smallest:batch:batch``.

    Every one begins at `smallest`, so that a batch between two sizes has all larger profiles to choose from. Where
    there are more sizes than `most`, those stay that keep the worst ratio from a size to the next one that has a
    profile as small as can be; what is then left over goes to the sizes with the largest ratio, the smaller ones first.

    Raises:
        ProfileError: no batch sizes, or one under `smallest`, or `most` under 1.
    """
    sizes = sorted(set(batches))
    if not sizes or sizes[0] < smallest or most < 1:
        raise ProfileError(
            f"no profiles for batches {list(batches)} from {smallest} on, {most} at the most",
            "give batch sizes from `min` on, and `max_profiles=1` or more",
        )
    if len(sizes) <= most:
        return tuple(Profile(smallest, batch, batch) for batch in sizes)
    low, high = 1.0, sizes[-1] / sizes[0]
    for _ in range(50):  # halves the interval to the least ratio that so many can hold
        middle = (low + high) / 2
        low, high = (low, middle) if len(_covering(sizes, middle)) <= most else (middle, high)
    kept = set(_covering(sizes, high))
    while len(kept) < most:
        left = [size for size in sizes if size not in kept]
        kept.add(max(left, key=lambda size: (min(each for each in kept if each > size) / size, -size)))
    return tuple(Profile(smallest, batch, batch) for batch in sorted(kept))


def _covering(sizes: Sequence[int], ratio: float) -> list[int]:
    """The fewest of ascending `sizes`, the largest among them, so that none is further than `ratio` below one."""
    kept: list[int] = []
    for size in sizes:
        if not kept or size > kept[-1]:
            reach = [each for each in sizes if size <= each <= size * ratio * (1 + 1e-12)]
            kept.append(reach[-1])
    return kept


def plan_auto(
    smallest: int | None, largest: int | None, batches: Sequence[int] | None, most: int = MAX_PROFILES
) -> tuple[Profile, ...]:
    """The profiles of ``--profiles auto``, from what was given of ``--min``, ``--max`` and ``--batch``.

    Without sizes of interest they are the powers of two from 1 to 32, or from `smallest` to `largest`.

    Raises:
        ProfileError: a size of interest outside `smallest` to `largest`.
    """
    low = smallest if smallest is not None else 1
    high = largest if largest is not None else max(batches) if batches else max(32, low)
    outside = [batch for batch in batches or () if not low <= batch <= high]
    if not 1 <= low <= high:
        raise ProfileError(f"no batch is from `min={low}` to `max={high}`", "give 1 ≤ `min` ≤ `max`")
    if outside:
        raise ProfileError(
            f"`batches=[{outside[0]}]` is outside `min={low}` to `max={high}`",
            "widen `min` and `max`, or leave them out: `batches` says it",
        )
    return auto_profiles(sorted({*batches, high}) if batches else powers_of_two(low, high), low, most)


def gaps(profiles: Sequence[Profile]) -> list[tuple[int, int]]:
    """Ranges of batch sizes between the smallest minimum and the largest maximum that no profile holds."""
    found: list[tuple[int, int]] = []
    reached = min(profile.min for profile in profiles) - 1
    for profile in sorted(profiles):
        if profile.min > reached + 1:
            found.append((reached + 1, profile.min - 1))
        reached = max(reached, profile.max)
    return found


def widest(profiles: Sequence[Profile]) -> int:
    """Index of the profile that holds the most batch sizes; of several, the first."""
    return max(range(len(profiles)), key=lambda index: (profiles[index].max - profiles[index].min, -index))


def look_up(profiles: Sequence[Profile], table: Sequence[Measured], batch: int) -> int | None:
    """Index of the profile that runs `batch`; None where none holds it.

    A measured batch has its winner; one between two measured ones that of the next larger, if it holds the batch,
    else of the next smaller. Beyond the table it is the profile whose opt is nearest.
    """
    rows = sorted(table, key=lambda row: row.batch)
    place = bisect_left([row.batch for row in rows], batch)
    for row in (*rows[place : place + 1], *rows[max(0, place - 1) : place]):
        if row.profile < len(profiles) and batch in profiles[row.profile]:
            return row.profile
    return pick_profile(profiles, batch)


def split_batch(batch: int, profiles: Sequence[Profile], times: Mapping[int, float]) -> list[int]:
    """The sizes, larger ones first, that a batch larger than every profile is run in: those that take least time.

    Times between measured sizes are interpolated; without any, time is taken to be proportional to the next power
    of two, so that few large pieces win. What a rest under the smallest minimum costs is its padding's time.

    Of a huge batch, all but a rest runs at the size that takes the least time per sample, c. With a rest of c times the
    largest size that is the best split there is: of any c pieces some add up to a multiple of c, which pieces of c run
    as fast. The rest is at most :data:`SEARCHED` samples, so that the search is short; where c is more than that, it is
    one piece.

    Args:
        times: ms by measured batch size.

    Returns:
        ``[batch]`` where it needs no splitting.
    """
    largest = max(profile.max for profile in profiles)
    if batch <= largest:
        return [batch]
    sizes = np.arange(1, largest + 1)
    cost = _interpolated(sizes, times)
    _add_padding(cost, profiles)
    per_sample = cost / sizes
    common = largest - int(np.argmin(per_sample[::-1]))  # of equal ones the largest
    if common > SEARCHED:
        whole, rest = divmod(batch, common)
        return [common] * whole + [rest] * (rest > 0)
    whole = max(0, -((min(common * largest, SEARCHED) - batch) // common))
    return sorted([common] * whole + fastest_pieces(batch - whole * common, cost), reverse=True)


def _add_padding(cost: NDArray[np.float64], profiles: Sequence[Profile]) -> None:
    """Let a size that no profile holds take what the next larger size takes that one does hold."""
    held = np.zeros(len(cost), np.bool_)
    for profile in profiles:
        held[profile.min - 1 : profile.max] = True
    places = np.flatnonzero(held)  # the largest size is one of them
    cost[:] = cost[places[np.searchsorted(places, np.arange(len(cost)))]]


def fastest_pieces(batch: int, cost: NDArray[np.float64]) -> list[int]:
    """The pieces of a batch that take the least time, by dynamic programming.

    Args:
        cost: time of a piece of 1, 2, … samples.
    """
    # best[n]: the least time for n samples; each n is a last piece and the best for the rest.
    best = np.zeros(batch + 1)
    last = np.zeros(batch + 1, np.int64)
    for count in range(1, batch + 1):
        reach = min(count, len(cost))
        totals = best[count - reach : count][::-1] + cost[:reach]
        last[count] = reach - int(np.argmin(totals[::-1]))  # of equal ones the largest piece
        best[count] = totals[last[count] - 1]
    pieces: list[int] = []
    while batch:
        pieces.append(int(last[batch]))
        batch -= pieces[-1]
    return pieces


def _interpolated(sizes: NDArray[np.int64], times: Mapping[int, float]) -> NDArray[np.float64]:
    """Time of each size, ms: linear between measured ones, proportional above the largest, constant below the least."""
    if not times:
        return np.asarray(2.0 ** np.ceil(np.log2(sizes)))
    known = sorted(times)
    cost = np.asarray(np.interp(sizes, known, [times[size] for size in known]), np.float64)
    beyond = sizes > known[-1]
    cost[beyond] = times[known[-1]] * sizes[beyond] / known[-1]
    return cost
