"""Photographs as pixels, decoded by threads a bounded way ahead, in memory that is used again.

A photograph of 500×375 has 562 KB: fresh memory for each would cost as much as decoding it, in page faults, and can't
be copied to a GPU beside other work unless it is page-locked, which takes milliseconds. So the pixels lie in an
:class:`trtbatch.photographs.arena.Arena`, and go back to it when they are through.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from trtbatch.errors import InputError
from trtbatch.photographs.arena import Arena, aligned, rounded
from trtbatch.photographs.decoding import decode, read_bytes
from trtbatch.photographs.images import Skipped
from trtbatch.trace import NO_TRACE, Recorder

__all__ = ["MOST_BYTES", "Budget", "Photograph", "Reader", "read_ahead", "release_all"]

Bytes = NDArray[np.uint8]
T = TypeVar("T")

CHUNK = 4
"""Files that a thread takes at once: what passing on costs is shared by them."""

MOST_BYTES = 1 << 30
"""Of decoded photographs that wait; beyond, only the one that is waited for is decoded."""


@dataclass
class Photograph(Generic[T]):
    """A decoded photograph, as it was prepared; `release` gives its memory back, to be called once."""

    name: str
    prepared: T
    release: Callable[[], None]


class _StoppedError(Exception):
    """Nobody wants the photographs any more."""


class Budget:
    """Holds those back who would decode too much; he whose turn it is goes through."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._used = 0
        self._turn = 0
        self._stopped = False
        self._changed = threading.Condition()

    def take(self, count: int, turn: int) -> None:
        def may() -> bool:
            return self._stopped or turn <= self._turn or self._used + count <= self._most

        with self._changed:
            self._changed.wait_for(may)
            if self._stopped:
                raise _StoppedError
            self._used += count

    def give(self, count: int) -> None:
        with self._changed:
            self._used -= count
            self._changed.notify_all()

    def waits_for(self, turn: int) -> None:
        with self._changed:
            self._turn = turn
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class _Room:
    """Memory for one photograph, as :func:`trtbatch.photographs.decoding.decode` asks for it."""

    def __init__(self, arena: Arena, budget: Budget, turn: int, beside: int) -> None:
        self._arena = arena
        self._budget = budget
        self._turn = turn
        self._beside = beside
        self._end = 0
        self._block: Bytes | None = None

    def __call__(self, count: int) -> Bytes:
        self._end = aligned(count)
        wanted = self._end + self._beside
        if self._block is not None and self._block.size < wanted:
            self.release()
        if self._block is None:
            size = rounded(wanted)
            self._budget.take(size, self._turn)
            try:
                self._block = self._arena.take(wanted)
            except BaseException:
                self._budget.give(size)
                raise
        return self._block

    def beside(self) -> Bytes:
        """The bytes behind the pixels."""
        if self._block is None:
            self(0)
        assert self._block is not None, "just taken"
        return self._block[self._end :][: self._beside]

    def release(self) -> None:
        block, self._block = self._block, None
        if block is not None:
            self._arena.give(block)
            self._budget.give(block.size)


def read_ahead(
    files: Sequence[Path],
    names: Sequence[str],
    prepare: Callable[[Bytes, Bytes], T],
    beside: int,
    arena: Arena,
    workers: int,
    trace: Recorder = NO_TRACE,
    most: int = MOST_BYTES,
) -> Generator[Photograph[T] | Skipped, None, None]:
    """The photographs in order; whoever takes one releases it. Closing the generator ends its threads.

    Args:
        prepare: makes of pixels ``(H, W, 3)`` uint8 what is to be had of them, and may use memory beside them.
        beside: bytes of that memory, which lives as long as the pixels and is aligned as they are.
        workers: threads that read and decode.
        trace: takes the spans ``read`` and ``decode`` of each file.
        most: bytes of photographs that were decoded and not released.
    """
    chunk = max(1, min(CHUNK, len(files) // (2 * workers)))
    turns = range(0, len(files), chunk)
    budget = Budget(most)
    reader = Reader(prepare, beside, arena, budget, trace)
    waiting: deque[Future[list[Photograph[T] | Skipped]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="trtbatch-read")
    try:
        for first in turns:
            end = first + chunk
            waiting.append(pool.submit(reader, first, files[first:end], names[first:end]))
            if len(waiting) > 2 * workers:
                yield from _taken(waiting, budget, first - (len(waiting) - 1) * chunk)
        first = len(turns) * chunk
        while waiting:
            yield from _taken(waiting, budget, first - len(waiting) * chunk)
    finally:
        budget.stop()
        pool.shutdown(wait=True, cancel_futures=True)  # each thread ends its photograph, and no more
        for future in waiting:
            if not future.cancelled() and future.exception() is None:
                release_all(future.result())


def _taken(
    waiting: deque[Future[list[Photograph[T] | Skipped]]], budget: Budget, turn: int
) -> Iterator[Photograph[T] | Skipped]:
    budget.waits_for(turn)
    items = waiting.popleft().result()
    taken = 0
    try:
        for item in items:
            taken += 1
            yield item
    finally:
        release_all(items[taken:])


def release_all(items: Iterable[Any]) -> None:
    """Release the photographs among these, and those that futures have made or will; other futures are cancelled."""
    for item in items:
        if isinstance(item, Future):
            if item.cancel() or item.exception() is not None:
                continue
            item = item.result()
        if isinstance(item, Photograph):
            item.release()


class Reader(Generic[T]):
    """Reads and decodes the files of one turn; for any thread."""

    def __init__(
        self, prepare: Callable[[Bytes, Bytes], T], beside: int, arena: Arena, budget: Budget, trace: Recorder
    ) -> None:
        self._prepare = prepare
        self._beside = beside
        self._arena = arena
        self._budget = budget
        self._trace = trace

    def __call__(self, turn: int, files: Sequence[Path], names: Sequence[str]) -> list[Photograph[T] | Skipped]:
        done: list[Photograph[T] | Skipped] = []
        try:
            done.extend(self._one(turn, file, name) for file, name in zip(files, names))
        except BaseException:
            release_all(done)
            raise
        return done

    def _one(self, turn: int, file: Path, name: str) -> Photograph[T] | Skipped:
        try:
            with self._trace.span("read", file=name):
                data = read_bytes(file)
        except InputError as error:
            return Skipped(name, error.problem)
        return self.decoded(turn, name, data)

    def decoded(self, turn: int, name: str, data: bytes) -> Photograph[T] | Skipped:
        """The photograph of a file's bytes."""
        room = _Room(self._arena, self._budget, turn, self._beside)
        try:
            with self._trace.span("decode", file=name):
                pixels = decode(data, room)
                prepared = self._prepare(pixels, room.beside())
        except InputError as error:
            room.release()
            return Skipped(name, error.problem)
        except BaseException:
            room.release()
            raise
        return Photograph(name, prepared, room.release)
