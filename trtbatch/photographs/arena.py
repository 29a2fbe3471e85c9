"""Memory that is used again: blocks of bytes for photographs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALIGNMENT", "Arena", "aligned", "rounded"]

Bytes = NDArray[np.uint8]

ALIGNMENT = 256
"""Bytes, of an address that TensorRT takes (``IExecutionContext::setTensorAddress``)."""


def aligned(count: int) -> int:
    """The next multiple of :data:`ALIGNMENT`."""
    return -(-count // ALIGNMENT) * ALIGNMENT


class Arena:
    """Flat blocks of bytes, kept for the next who needs as many; for any thread.

    Args:
        allocate: makes a block of so many bytes.
        free: gives one up.
        most: bytes from which on blocks of other sizes are given up before one is made.
    """

    def __init__(
        self, allocate: Callable[[int], Bytes], free: Callable[[Bytes], None] = lambda block: None, most: int = 1 << 30
    ) -> None:
        self._allocate = allocate
        self._free = free
        self._most = most
        self._lock = threading.Lock()
        self._idle: dict[int, list[Bytes]] = {}
        self.bytes = 0
        """Of all blocks, those in use included."""

    def take(self, count: int) -> Bytes:
        """A block of at least so many bytes, its content whatever it was."""
        size = rounded(count)
        with self._lock:
            idle = self._idle.get(size)
            if idle:
                return idle.pop()
            if self.bytes + size > self._most:
                self._give_up()
            self.bytes += size
            try:
                return self._allocate(size)
            except BaseException:
                self.bytes -= size
                raise

    def give(self, block: Bytes) -> None:
        """Give a block back."""
        with self._lock:
            self._idle.setdefault(block.size, []).append(block)

    def close(self) -> None:
        """Give up the blocks that nobody uses."""
        with self._lock:
            self._give_up()

    def _give_up(self) -> None:
        for blocks in self._idle.values():
            for block in blocks:
                self.bytes -= block.size
                self._free(block)
        self._idle.clear()


def rounded(count: int) -> int:
    """Bytes of the block for so many: the next of eight steps to each power of two, at most an eighth more."""
    step = max(1 << 12, 1 << max(0, (max(1, count) - 1).bit_length() - 4))
    return -(-max(1, count) // step) * step
