"""Packed operands that photographs of one size share, in memory from which they are uploaded.

A folder's photographs have a few sizes, and packing takes longer than all else that Python does for a photograph that
is on the GPU already. So what was packed for a size is kept for the next photographs of it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trtbatch.photographs.arena import Arena
from trtbatch.photographs.operands import Lines, Packing, band
from trtbatch.preprocessing import Preprocessing

__all__ = ["Pack", "Packs"]

KEPT = 256
"""Sizes whose operands are kept: 136 KB each where they hold taps, of photographs of up to 4096 rows and columns."""


class _Described(Protocol):
    arena: Arena

    @property
    def recipe(self) -> Preprocessing: ...

    @property
    def max_size(self) -> int: ...


class Pack:
    """The operands of a size: the part that the crop needs, and `packed`, which stays as it is until all are through.

    Args:
        block: of the arena, where they lie.
    """

    __slots__ = ("block", "columns", "packed", "rows", "users")

    def __init__(self, rows: Lines, columns: Lines, block: NDArray[np.uint8], count: int) -> None:
        self.rows = rows
        self.columns = columns
        self.block = block
        self.packed = block[:count]
        self.users = 1


class Packs:
    """Packs by size, those used last kept; for any thread.

    Args:
        reader: whose recipe and arena they are of.
    """

    def __init__(self, reader: _Described) -> None:
        self._recipe, self._max_size, self._arena = reader.recipe, reader.max_size, reader.arena
        self._packing = Packing(reader)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], Pack] = OrderedDict()

    def take(self, height: int, width: int) -> Pack | None:
        """The pack of photographs ``(height, width, 3)``, to be given back; None where Pillow is to resize them."""
        size = height, width
        with self._lock:
            pack = self._kept.get(size)
            if pack is None:
                pack = self._made(height, width)
                if pack is None:
                    return None
                self._kept[size] = pack
                if len(self._kept) > KEPT:
                    self._leave(self._kept.popitem(last=False)[1])
            else:
                self._kept.move_to_end(size)
            pack.users += 1
            return pack

    def give(self, pack: Pack) -> None:
        with self._lock:
            self._leave(pack)

    def close(self) -> None:
        """Keep none any longer; those in use go when they are given back."""
        with self._lock:
            while self._kept:
                self._leave(self._kept.popitem()[1])

    def _made(self, height: int, width: int) -> Pack | None:
        found = band(self._recipe, height, width, self._max_size)
        if found is None:
            return None
        pack = Pack(*found, self._arena.take(self._packing.bytes), self._packing.bytes)
        self._packing.fill(pack.packed, *found)
        return pack

    def _leave(self, pack: Pack) -> None:
        pack.users -= 1
        if pack.users == 0:
            self._arena.give(pack.block)
