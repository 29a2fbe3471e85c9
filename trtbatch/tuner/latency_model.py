"""Predict how long a batch takes on a profile that doesn't exist yet, from measured profiles.

A profile here is ``min:o:o``, tuned for its largest batch *o*, as ``build --profiles auto`` makes them. *t(b, o)* is
the time of batch *b* on it.

* On a measured profile, *t* is piecewise linear in *b* between measured batches, and constant below the smallest.
* Between two measured opts, *t* is interpolated linearly in *o*, at the same *fullness* b / o on both: a full profile
  lies between two full ones, a half-full one between two half-full ones. (At the same *b* there would be nothing to
  interpolate for a batch above the smaller opt.)
* Below the smallest measured opt, *t* is the time on that profile, since the gain of a smaller one is unknown.
* Above the largest measured opt, *t* grows in proportion to *o*, at the same fullness.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trtbatch.core.batches import Profile
from trtbatch.core.profiles import Measured
from trtbatch.errors import ArtifactError

__all__ = ["LatencyModel"]

Array = NDArray[np.float64]


class LatencyModel:
    """Latency model of batches on profiles.

    Args:
        curves: ms by batch size, by the opt of the profile that the batch was measured on.

    Raises:
        ArtifactError: nothing was measured.
    """

    def __init__(self, curves: Mapping[int, Mapping[int, float]]) -> None:
        kept = {opt: dict(sorted(curve.items())) for opt, curve in sorted(curves.items()) if curve}
        if not kept:
            raise ArtifactError("the engine's sidecar has no measured times", "leave out `from_table`")
        seen = [batch for curve in kept.values() for batch in curve]
        self.by_batch_alone = len(seen) == len(set(seen))
        """Whether no batch was measured on two profiles; then profiles have no known effect, and t(b, o) is t(b)."""
        self.largest = max(seen)
        """Largest measured batch size."""
        if self.by_batch_alone:
            kept = {self.largest: dict(sorted(pair for curve in kept.values() for pair in curve.items()))}
        self._opts = list(kept)
        self._curves = {
            opt: (np.array(list(curve), np.float64), np.array(list(curve.values()), np.float64))
            for opt, curve in kept.items()
        }

    @classmethod
    def of(cls, profiles: Sequence[Profile], table: Sequence[Measured]) -> LatencyModel:
        """Return the model of an engine's table; profiles with the same opt share the smaller time of each batch.

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
        """Return the measured batch sizes and opts, ascending."""
        return sorted({*self._opts, *(int(batch) for batches, _ in self._curves.values() for batch in batches)})

    def times(self, batches: Sequence[int], opt: int) -> Array:
        """Return the ms of each batch on ``min:opt:opt``; infinite for batches above `opt`."""
        sizes = np.asarray(batches, np.float64)
        found = self._along(self._opts[0], sizes) if self.by_batch_alone else self._at(sizes, opt)
        return np.where(sizes <= opt, found, np.inf)

    def _at(self, sizes: Array, opt: int) -> Array:
        """Return the times on a profile, for batches that it holds."""
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
        """Return the times on one measured profile, in proportion to the batch above its largest measured one."""
        known, ms = self._curves[opt]
        found = np.asarray(np.interp(sizes, known, ms), np.float64)
        return np.where(sizes > known[-1], ms[-1] * sizes / known[-1], found)
