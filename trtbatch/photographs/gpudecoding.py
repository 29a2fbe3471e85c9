"""Photographs decoded in groups on a GPU, a bounded way ahead, for a preprocessor on the same GPU.

A few threads read files; one thread has a group decoded while the last one is resized. What nvImageCodec isn't given,
or doesn't decode, is decoded on the host, as everything is without it: such files are told in the same words.

All of these share Python's lock with the thread that resizes, and passing the lock on costs more than the work for a
photograph does. So what isn't done for each photograph counts: files are read several at a time, and what is packed for
a size is packed once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Union

import numpy as np
from numpy.typing import NDArray

from trtbatch.errors import InputError
from trtbatch.notes import note
from trtbatch.photographs.arena import Arena
from trtbatch.photographs.codec import Coded, JpegDecoder, Plane
from trtbatch.photographs.decoding import read_bytes
from trtbatch.photographs.images import Skipped
from trtbatch.photographs.operands import make_sides
from trtbatch.photographs.packs import Packs
from trtbatch.photographs.pixels import MOST_BYTES, Budget, Photograph, Reader, release_all
from trtbatch.preprocessing import Preprocessing
from trtbatch.trace import NO_TRACE, Recorder

__all__ = ["PlaneReader", "decoded_ahead"]

Bytes = NDArray[np.uint8]

GROUP = 64
"""Files that are decoded at once."""

GROUP_BYTES = 512 << 20
"""Bytes of pixels from which on a group takes no further file."""

GROUPS = 2
"""That are decoded, or being decoded, while one is taken."""

READ = 3 * GROUP
"""Files that are read, or being read, at most."""

READERS = 4
"""Threads that read, at most: more wait for Python's lock, not for files."""

CHUNK = 16
"""Files that such a thread reads at once."""


class PlaneReader(Protocol):
    """A preprocessor, as far as it takes photographs from the GPU, and from the host."""

    arena: Arena
    beside: int
    """Bytes that `prepare` uses."""

    @property
    def recipe(self) -> Preprocessing: ...

    @property
    def max_size(self) -> int: ...

    def prepare(self, pixels: Bytes, beside: Bytes) -> Any:
        """What it takes of a photograph ``(H, W, 3)`` uint8 on the host; for any thread."""

    def prepare_plane(self, plane: Plane, packed: Bytes) -> Any:
        """The same of one that is on the GPU, as far as the crop needs it; for any thread.

        Args:
            packed: how it is resized; the same array, which stays as it is, for all photographs of a size.
        """


class _Read(NamedTuple):
    """A file that was read; nothing is coded where the host is to decode it."""

    number: int
    data: bytes
    coded: Coded | None

    @property
    def bytes(self) -> int:
        return 0 if self.coded is None else self.coded.bytes


_Item = Union[Photograph[Any], Skipped, Future[Union[Photograph[Any], Skipped]]]


def decoded_ahead(
    files: Sequence[Path],
    names: Sequence[str],
    preprocessor: PlaneReader,
    decoder: JpegDecoder,
    workers: int,
    trace: Recorder = NO_TRACE,
) -> Generator[Photograph[Any] | Skipped, None, None]:
    """Photographs as a preprocessor takes them, in order; whoever takes one releases it.

    Closing the generator ends its threads.

    Args:
        workers: threads that decode what is left to the host; not more than these read, nor than :data:`READERS`.
        trace: takes the spans ``read`` of each file and ``decode`` of each group.
    """
    run = _Run(files, names, preprocessor, decoder, workers, trace)
    try:
        yield from run.items()
    finally:
        run.close()


class _Run:
    def __init__(
        self,
        files: Sequence[Path],
        names: Sequence[str],
        preprocessor: PlaneReader,
        decoder: JpegDecoder,
        workers: int,
        trace: Recorder,
    ) -> None:
        self._files = files
        self._names = names
        self._preprocessor = preprocessor
        self._decoder = decoder
        self._trace = trace
        self._budget = Budget(MOST_BYTES)
        self._reader = Reader(preprocessor.prepare, preprocessor.beside, preprocessor.arena, self._budget, trace)
        self._packs = Packs(preprocessor)
        readers = min(workers, READERS)
        self._chunk = max(1, min(CHUNK, len(files) // (2 * readers)))
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="trtbatch-read")
        self._hosts = ThreadPoolExecutor(workers, thread_name_prefix="trtbatch-host")
        self._one = ThreadPoolExecutor(1, thread_name_prefix="trtbatch-gpu-decode")
        self._has_decoded = False
        self._next = 0
        self._grouped = 0
        """Files that groups were made of."""
        self._reading: deque[Future[list[_Read | Skipped]]] = deque()
        self._read: deque[_Read | Skipped] = deque()
        self._groups: deque[Future[list[_Item]]] = deque()
        self._given: deque[_Item] = deque()
        """Of the group that is taken, what hasn't been."""
        self._abandoned: list[_Item] = []
        """Of a group that couldn't be decoded to its end."""

    def items(self) -> Iterator[Photograph[Any] | Skipped]:
        number = 0
        while self._go_on():
            self._given.extend(self._groups.popleft().result())
            self._go_on()
            while self._given:
                item = self._given[0]
                if isinstance(item, Future):
                    self._budget.waits_for(number)
                    found = item.result()
                else:
                    found = item
                self._given.popleft()
                number += 1
                yield found

    def _go_on(self) -> bool:
        """Let files be read and groups be decoded; whether there is a group to take."""
        self._read_on()
        while self._grouped < len(self._files) and len(self._groups) < GROUPS:
            self._groups.append(self._one.submit(self._decode, self._group()))
            self._read_on()
        return bool(self._groups)

    def _read_on(self) -> None:
        while self._next < len(self._files) and self._next + self._chunk <= self._grouped + max(READ, self._chunk):
            self._reading.append(self._readers.submit(self._chunk_of, self._next))
            self._next += self._chunk

    def _group(self) -> list[_Read | Skipped]:
        group: list[_Read | Skipped] = []
        count = 0
        while len(group) < GROUP and count < GROUP_BYTES and (self._read or self._reading):
            if not self._read:
                self._read.extend(self._reading.popleft().result())
            read = self._read.popleft()
            group.append(read)
            count += read.bytes if isinstance(read, _Read) else 0
        self._grouped += len(group)
        return group

    def _chunk_of(self, first: int) -> list[_Read | Skipped]:
        found = [self._of_file(number) for number in range(first, min(first + self._chunk, len(self._files)))]
        sizes = [read.coded.size for read in found if isinstance(read, _Read) and read.coded is not None]
        # The thread that decodes would wait for each of them.
        make_sides(self._preprocessor.recipe, sizes, self._preprocessor.max_size)
        return found

    def _of_file(self, number: int) -> _Read | Skipped:
        name = self._names[number]
        try:
            with self._trace.span("read", file=name):
                data = read_bytes(self._files[number])
                return _Read(number, data, self._decoder.coded(data))
        except InputError as error:
            return Skipped(name, error.problem)

    def _decode(self, group: Sequence[_Read | Skipped]) -> list[_Item]:
        coded = [read.coded for read in group if isinstance(read, _Read) and read.coded is not None]
        with self._trace.span("decode", files=len(coded)):
            decoded = self._decoder(coded)
        if coded and not self._has_decoded and all(plane is None for plane in decoded):
            note(f"nvImageCodec has decoded none of {len(coded)} photographs: the host does it (is nvJPEG there?)")
        self._has_decoded = self._has_decoded or bool(coded)
        planes = iter(decoded)
        items: list[_Item] = []
        try:
            for read in group:
                if isinstance(read, Skipped):
                    items.append(read)
                    continue
                plane = None if read.coded is None else next(planes)
                photograph = None if plane is None else self._photograph(read.number, plane)
                items.append(self._on_the_host(read) if photograph is None else photograph)
        except BaseException:
            self._abandoned = items
            raise
        return items

    def _photograph(self, number: int, plane: Plane) -> Photograph[Any] | None:
        pack = self._packs.take(plane.height, plane.width)
        if pack is None:
            return None
        rows, columns = pack.rows, pack.columns
        try:
            part = plane.part(rows.first, rows.end, columns.first, columns.end)
            prepared = self._preprocessor.prepare_plane(part, pack.packed)
        except BaseException:
            self._packs.give(pack)
            raise
        return Photograph(self._names[number], prepared, partial(self._packs.give, pack))

    def _on_the_host(self, read: _Read) -> Future[Photograph[Any] | Skipped]:
        return self._hosts.submit(self._reader.decoded, read.number, self._names[read.number], read.data)

    def close(self) -> None:
        """Wait for what is at work, and release what nobody took."""
        self._budget.stop()
        self._one.shutdown(wait=True, cancel_futures=True)
        for pool in (self._readers, self._hosts):
            pool.shutdown(wait=True, cancel_futures=True)
        for group in self._groups:
            if not group.cancelled() and group.exception() is None:
                release_all(group.result())
        release_all([*self._given, *self._abandoned])
        self._packs.close()
        self._decoder.close()
