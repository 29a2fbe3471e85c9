"""Choose the optimization profiles of an engine, and the profile that runs each batch, from measurements.

Two steps: :func:`auto_profiles` makes the candidates before the build. After the build every (profile, batch) pair is
timed, and a :class:`Measured` per batch records the fastest profile, which the runtime looks up.
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
"""Most profiles that ``--profiles auto`` makes: each takes as long to build as the first."""

SEARCHED = 8192
"""Samples of a huge batch whose best split is searched; the others run at the size with the least time per sample."""


@dataclass(frozen=True)
class Measured:
    """Timing of one batch size after the build.

    Args:
        batch: the batch size.
        profile: index of the fastest profile.
        ms: median time of one run on that profile.
        times: median time on every profile that holds the batch, ms by profile index.
        loss: how much longer the second fastest takes, relative to `ms`; None where no other profile holds the batch.
    """

    batch: int
    profile: int
    ms: float
    times: dict[str, float] = field(default_factory=dict)
    loss: float | None = None

    def __post_init__(self) -> None:
        times = (self.ms, *self.times.values())
        if self.batch < 1 or not all(np.isfinite(time) and time > 0 for time in times):
            raise ValueError(f"batch {self.batch} takes {self.ms} ms")

    @classmethod
    def of(cls, batch: int, times: Mapping[int, float]) -> Measured:
        """Return the record of a batch from its time on each profile, ms by profile index."""
        order = sorted(times, key=lambda index: (times[index], index))
        best = times[order[0]]
        loss = float(f"{times[order[1]] / best - 1:.4g}") if len(order) > 1 and best > 0 else None
        return cls(batch, order[0], best, {str(index): times[index] for index in sorted(times)}, loss)


def powers_of_two(smallest: int, largest: int) -> list[int]:
    """Return `smallest`, the powers of two in between, and `largest`."""
    inner = [1 << bit for bit in range(largest.bit_length()) if smallest < 1 << bit < largest]
    return sorted({smallest, *inner, largest})


def auto_profiles(batches: Sequence[int], smallest: int, most: int = MAX_PROFILES) -> tuple[Profile, ...]:
    """Return a profile for each batch size of interest, tuned for that size: ``smallest:batch:batch``.

    Every profile begins at `smallest`, so that a batch between two sizes can run on all larger profiles. With more
    sizes than `most`, those are kept that minimise the largest ratio from a size to the next larger kept size. Profiles
    that are still free go to the sizes with the largest ratio, smaller sizes first.

    Raises:
        ProfileError: there are no batch sizes, one is below `smallest`, or `most` is below 1.
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
    for _ in range(50):  # bisect for the least ratio that `most` sizes can keep
        middle = (low + high) / 2
        low, high = (low, middle) if len(_covering(sizes, middle)) <= most else (middle, high)
    kept = set(_covering(sizes, high))
    while len(kept) < most:
        left = [size for size in sizes if size not in kept]
        kept.add(max(left, key=lambda size: (min(each for each in kept if each > size) / size, -size)))
    return tuple(Profile(smallest, batch, batch) for batch in sorted(kept))


def _covering(sizes: Sequence[int], ratio: float) -> list[int]:
    """Return the fewest of ascending `sizes`, with the largest, that leave no size further than `ratio` below one."""
    kept: list[int] = []
    for size in sizes:
        if not kept or size > kept[-1]:
            reach = [each for each in sizes if size <= each <= size * ratio * (1 + 1e-12)]
            kept.append(reach[-1])
    return kept


def plan_auto(
    smallest: int | None, largest: int | None, batches: Sequence[int] | None, most: int = MAX_PROFILES
) -> tuple[Profile, ...]:
    """Return the profiles of ``--profiles auto`` for the values given of ``--min``, ``--max`` and ``--batch``.

    Without batch sizes of interest the profiles are those of the powers of two from 1 to 32, or from `smallest` to
    `largest`.

    Raises:
        ProfileError: a batch size of interest is outside `smallest` to `largest`.
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
    """Return the ranges of batch sizes between the smallest minimum and the largest maximum that no profile holds."""
    found: list[tuple[int, int]] = []
    reached = min(profile.min for profile in profiles) - 1
    for profile in sorted(profiles):
        if profile.min > reached + 1:
            found.append((reached + 1, profile.min - 1))
        reached = max(reached, profile.max)
    return found


def widest(profiles: Sequence[Profile]) -> int:
    """Return the index of the profile that holds the most batch sizes; the first on a tie."""
    return max(range(len(profiles)), key=lambda index: (profiles[index].max - profiles[index].min, -index))


def look_up(profiles: Sequence[Profile], table: Sequence[Measured], batch: int) -> int | None:
    """Return the index of the profile that runs `batch`, or None where no profile holds it.

    A measured batch has its fastest profile. A batch between two measured ones has that of the next larger, or else of
    the next smaller, where that profile holds the batch. Otherwise the profile with the nearest opt runs it.
    """
    rows = sorted(table, key=lambda row: row.batch)
    place = bisect_left([row.batch for row in rows], batch)
    for row in (*rows[place : place + 1], *rows[max(0, place - 1) : place]):
        if row.profile < len(profiles) and batch in profiles[row.profile]:
            return row.profile
    return pick_profile(profiles, batch)


def split_batch(batch: int, profiles: Sequence[Profile], times: Mapping[int, float]) -> list[int]:
    """Return the sizes, largest first, of the fastest split of a batch that is larger than every profile.

    Times between measured sizes are interpolated. Without any times, the time of a size is taken to be proportional to
    the next power of two, so that few large pieces win. A size below the smallest minimum costs the time of its padded
    size.

    A huge batch runs at c, the size with the least time per sample, except for a rest. With a rest of c times the
    largest size the split is optimal: among any c pieces some add up to a multiple of c, and pieces of c run them as
    fast. The rest has at most :data:`SEARCHED` samples, which keeps the search short. Where c is larger than that, the
    rest is one piece.

    Args:
        batch: the size to split.
        profiles: the engine's profiles.
        times: ms by measured batch size.

    Returns:
        The sizes; ``[batch]`` where no split is needed.
    """
    largest = max(profile.max for profile in profiles)
    if batch <= largest:
        return [batch]
    sizes = np.arange(1, largest + 1)
    cost = _interpolated(sizes, times)
    _add_padding(cost, profiles)
    per_sample = cost / sizes
    common = largest - int(np.argmin(per_sample[::-1]))  # the largest on a tie
    if common > SEARCHED:
        whole, rest = divmod(batch, common)
        return [common] * whole + [rest] * (rest > 0)
    whole = max(0, -((min(common * largest, SEARCHED) - batch) // common))
    return sorted([common] * whole + fastest_pieces(batch - whole * common, cost), reverse=True)


def _add_padding(cost: NDArray[np.float64], profiles: Sequence[Profile]) -> None:
    """Give a size that no profile holds the cost of the next larger size that one does hold."""
    held = np.zeros(len(cost), np.bool_)
    for profile in profiles:
        held[profile.min - 1 : profile.max] = True
    places = np.flatnonzero(held)  # always includes the largest size
    cost[:] = cost[places[np.searchsorted(places, np.arange(len(cost)))]]


def fastest_pieces(batch: int, cost: NDArray[np.float64]) -> list[int]:
    """Return the pieces of a batch that take the least time, by dynamic programming.

    Args:
        batch: the size to split.
        cost: time of a piece of 1, 2, … samples.
    """
    # best[n]: the least time for n samples, which is that of a last piece and the best split of the rest.
    best = np.zeros(batch + 1)
    last = np.zeros(batch + 1, np.int64)
    for count in range(1, batch + 1):
        reach = min(count, len(cost))
        totals = best[count - reach : count][::-1] + cost[:reach]
        last[count] = reach - int(np.argmin(totals[::-1]))  # the largest piece on a tie
        best[count] = totals[last[count] - 1]
    pieces: list[int] = []
    while batch:
        pieces.append(int(last[batch]))
        batch -= pieces[-1]
    return pieces


def _interpolated(sizes: NDArray[np.int64], times: Mapping[int, float]) -> NDArray[np.float64]:
    """Return each size's time, ms: linear between measured sizes, proportional above them, constant below them."""
    if not times:
        return np.asarray(2.0 ** np.ceil(np.log2(sizes)))
    known = sorted(times)
    cost = np.asarray(np.interp(sizes, known, [times[size] for size in known]), np.float64)
    beyond = sizes > known[-1]
    cost[beyond] = times[known[-1]] * sizes[beyond] / known[-1]
    return cost
