"""How long a batch takes on a profile that doesn't exist yet, from those that were measured. Pure.

A profile here is ``min:o:o``, tuned for its largest batch *o*, as ``build --profiles auto`` makes them; *t(b, o)* is
the time of batch *b* on it.

* On a measured profile it is piecewise-linear in *b* between the measured batches, and constant below the least.
* Between two measured opts it is interpolated linearly in *o*, at the same *fullness* b / o on both: a full profile
  lies between two full ones, one that runs half empty between two that do. (At the same *b* there would be nothing
  to interpolate for a batch larger than the smaller opt.)
* Below the smallest measured opt it is that profile's time: what a smaller one gains isn't known.
* Beyond the largest one it grows in proportion to *o*, at the same fullness.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trtbatch.core.batches import Profile
from trtbatch.core.profiles import Measured
from trtbatch.errors import ArtifactError

__all__ = ["TimeModel"]

Array = NDArray[np.float64]


class TimeModel:
    """Times of batches on profiles.

    Args:
        curves: ms by batch size, by the opt of the profile that it was measured on.

    Raises:
        ArtifactError: nothing was measured.
    """

    def __init__(self, curves: Mapping[int, Mapping[int, float]]) -> None:
        kept = {opt: dict(sorted(curve.items())) for opt, curve in sorted(curves.items()) if curve}
        if not kept:
            raise ArtifactError("the engine's sidecar has no measured times", "leave out --from-table")
        seen = [batch for curve in kept.values() for batch in curve]
        self.by_batch_alone = len(seen) == len(set(seen))
        """No batch was measured on two profiles: nothing is known of what profiles do, and t(b, o) is t(b)."""
        self.largest = max(seen)
        """The largest batch that was measured."""
        if self.by_batch_alone:
            kept = {self.largest: dict(sorted(pair for curve in kept.values() for pair in curve.items()))}
        self._opts = list(kept)
        self._curves = {
            opt: (np.array(list(curve), np.float64), np.array(list(curve.values()), np.float64))
            for opt, curve in kept.items()
        }

    @classmethod
    def of(cls, profiles: Sequence[Profile], table: Sequence[Measured]) -> TimeModel:
        """The model of an engine's table; of profiles with the same opt each batch has the faster one's time.

        Raises:
            ArtifactError: the table is empty.
        """
        curves: dict[int, dict[int, float]] = {}
        for row in table:
            for index, ms in (row.times or {str(row.profile): row.ms}).items():
                if int(index) < len(profiles):
                    curve = curves.setdefault(profiles[int(index)].opt, {})
                    curve[row.batch] = min(ms, curve.get(row.batch, ms))
        return cls(curves)

    @property
    def sizes(self) -> list[int]:
        """Batch sizes and opts that were measured."""
        return sorted({*self._opts, *(int(batch) for batches, _ in self._curves.values() for batch in batches)})

    def times(self, batches: Sequence[int], opt: int) -> Array:
        """ms of each batch on ``min:opt:opt``; a batch larger than `opt` has infinite time."""
        sizes = np.asarray(batches, np.float64)
        found = self._along(self._opts[0], sizes) if self.by_batch_alone else self._at(sizes, opt)
        return np.where(sizes <= opt, found, np.inf)

    def _at(self, sizes: Array, opt: int) -> Array:
        """The times of a profile, for batches that it holds."""
        place = bisect_right(self._opts, opt)
        if place == 0:
            return self._along(self._opts[0], sizes)
        lower = self._opts[place - 1]
        below = self._along(lower, sizes * lower / opt)
        if place == len(self._opts):
            return below * opt / lower
        upper = self._opts[place]
        share = (opt - lower) / (upper - lower)
        return (1 - share) * below + share * self._along(upper, sizes * upper / opt)

    def _along(self, opt: int, sizes: Array) -> Array:
        """Times on one measured profile: proportional beyond its largest measured batch."""
        known, ms = self._curves[opt]
        found = np.asarray(np.interp(sizes, known, ms), np.float64)
        return np.where(sizes > known[-1], ms[-1] * sizes / known[-1], found)
