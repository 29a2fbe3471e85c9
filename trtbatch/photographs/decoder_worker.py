"""Reads, decodes and prepares photographs in a process of its own; :mod:`trtbatch.photographs.decoders` starts it.

    python -m trtbatch.photographs.decoder_worker ORDER RING

ORDER is an :class:`Order` as JSON, RING the file descriptor of memory that both processes share. It imports what
decoding needs, and nothing else: it starts in tenths of a second.

**Tasks** come on standard input: a length of 4 bytes, and so many bytes of file names with a zero byte between. When
standard input closes, the parent is gone, and so is this process.

**Answers** go to standard output: the number of items and the bytes of words (:data:`ANSWER`), the items
(:data:`ITEM`), the words. Each file is an item, in the order of the tasks. The first answer is empty: it has started.

**The ring** is a page of two counters and then the bytes of photographs, one after the other at multiples of 256; one
that doesn't fit before the end begins at the start. Positions count on and on. The parent writes how far it has
released (:data:`RELEASED`), and how many photographs, from the first on, are not worth waiting for (:data:`PRESSED`):
those that find no room are left to the parent.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import select
import signal
import struct
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from trtbatch.errors import InputError
from trtbatch.photographs.arena import aligned
from trtbatch.photographs.codec import plain_jpeg
from trtbatch.photographs.decoding import (
    Header,
    decode,
    decode_by_pillow,
    decode_into,
    header,
    read_bytes,
    read_sample,
)
from trtbatch.photographs.operands import (
    MAX_SIZE,
    Lines,
    Packing,
    Plan,
    band,
    is_computed,
    make_sides,
    operands,
    plan,
    square,
)
from trtbatch.photographs.parts import Region, around, is_one_scan, part_decoder
from trtbatch.preprocessing import Preprocessing
from trtbatch.records import decode as decode_record

__all__ = [
    "ANSWER",
    "HEADER",
    "ITEM",
    "LAID",
    "LEFT",
    "PRESSED",
    "RELEASED",
    "SKIPPED",
    "TASK",
    "Order",
    "main",
    "sample_shape",
    "sample_type",
]

Array = NDArray[Any]
Bytes = NDArray[np.uint8]

HEADER = mmap.PAGESIZE
"""Bytes before the photographs."""

RELEASED, PRESSED = 0, 1
"""Counters, 8 bytes each."""

TASK = struct.Struct("<I")

ANSWER = struct.Struct("<II")

ITEM = struct.Struct("<BxxxIIIIIQQqqqq")
"""What became of a file; five numbers; where its bytes begin in the ring, and the position behind them; when reading
began and ended, and when decoding did (the same twice: it is part of reading), by ``time.perf_counter_ns``."""

LAID, SKIPPED, LEFT = range(3)
"""It lies in the ring (its numbers are those of a :class:`Place`, where it has one); it can't be used (the first is the
bytes of the words that say why); it is left to the parent."""

NICE = 5
"""How far these processes stand back (``os.nice``). They keep every core busy, and the parent, which passes on what all
make, would wait milliseconds for a core each time that it has waited for something else."""

_PAUSE = 1
"""Milliseconds between two looks at how far the parent has released."""

_LARGE_FILE = 1 << 20
"""Bytes of a file from which on its size in pixels is looked up first, to leave it to the parent undecoded."""

_KEPT = 64 << 20
"""Bytes of the largest memory that is kept for the next photograph."""

_SIZES = 1 << 10
"""Of photographs, of which what is known is kept."""

_AT_ONCE = 4 << 20
"""Bytes of files, at most, that are read before the first of them is decoded."""


@dataclass(frozen=True)
class Order:
    """What is made of every photograph.

    Args:
        kind: ``packed``: the small inputs that :class:`~trtbatch.photographs.operands.Packing` describes, and behind
            them the photograph, or no more than the part that is needed; ``sample``: what the recipe makes.
        ring: bytes of photographs in the ring, a multiple of 256.
        largest: bytes of the largest one that is put there; an eighth of the ring always finds room in time.
        whole: bytes of the largest photograph that is decoded there as a whole; of a larger one the part that is needed
            is decoded there alone, or copied.
        max_size: of the preprocessor, for ``packed``.
        dtype: of the model's input, for ``sample``.
        max_pixels, truncated: Pillow's ``MAX_IMAGE_PIXELS`` and ``LOAD_TRUNCATED_IMAGES``.
    """

    kind: Literal["packed", "sample"]
    recipe: Preprocessing
    ring: int
    largest: int
    whole: int = 0
    max_size: int = MAX_SIZE
    dtype: str = "float32"
    max_pixels: int | None = None
    truncated: bool = False


def sample_shape(recipe: Preprocessing) -> tuple[int, ...]:
    """Shape of what a recipe makes: ``(3, H, W)``, or ``(H, W, 3)``."""
    return (*recipe.crop, 3) if recipe.fused == "NHWC" else (3, *recipe.crop)


def sample_type(recipe: Preprocessing, dtype: str) -> np.dtype[Any]:
    """Type of a sample for an input of type `dtype`: floats are cast to the input's, bytes stay."""
    if recipe.fused is not None:
        return np.dtype(np.uint8)
    return np.dtype(dtype if dtype.startswith("float") else np.float32)


def main(order_text: str, ring_file: str) -> int:
    """Serve until standard input ends; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    os.nice(NICE)
    channel = os.dup(1)
    os.dup2(2, 1)  # what a decoder prints must not get among the answers
    order = decode_record(Order, json.loads(order_text), "order")
    _set_pillow(order)
    file = int(ring_file)
    ring = np.frombuffer(mmap.mmap(file, HEADER + order.ring), np.uint8)
    os.close(file)
    ring[HEADER :: mmap.PAGESIZE] = 0  # its pages are there then; the parent would wait for them to lock it
    maker: _Maker = _PackedMaker(order) if order.kind == "packed" else _SampleMaker(order)
    with contextlib.suppress(Exception):  # then the first file shows what is wrong
        maker.warm(plain_jpeg())
    try:
        _Server(order, maker, ring, _Inbox(0), channel).serve()
    except (_EndedError, BrokenPipeError):
        os._exit(0)  # at once: there is nobody to tidy up for
    return 0


def _set_pillow(order: Order) -> None:
    from PIL import Image, ImageFile

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    Image.MAX_IMAGE_PIXELS = order.max_pixels
    ImageFile.LOAD_TRUNCATED_IMAGES = order.truncated


class _EndedError(Exception):
    """The parent is gone."""


class _LeftError(Exception):
    """The photograph is too large for the ring, or there is no room for it and it is waited for."""


class _Inbox:
    """Tasks from a file descriptor; read while waiting, too, so that the parent never waits to write one."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._bytes = b""
        self._poll = select.poll()
        self._poll.register(file, select.POLLIN)

    def task(self) -> list[Path]:
        """The files of the next task; waits for it."""
        while (end := self._end()) is None:
            self._read()
        names, self._bytes = self._bytes[TASK.size : end], self._bytes[end:]
        return [Path(os.fsdecode(name)) for name in names.split(b"\0")]

    def pause(self) -> None:
        """Wait a little, or until there is something to read."""
        if self._poll.poll(_PAUSE):
            self._read()

    def _end(self) -> int | None:
        if len(self._bytes) < TASK.size:
            return None
        end = TASK.size + int(TASK.unpack_from(self._bytes)[0])
        return end if len(self._bytes) >= end else None

    def _read(self) -> None:
        found = os.read(self._file, 1 << 16)
        if not found:
            raise _EndedError
        self._bytes += found


class _Server:
    """Does task after task."""

    def __init__(self, order: Order, maker: _Maker, ring: Bytes, inbox: _Inbox, channel: int) -> None:
        self._order = order
        self._counters = ring.data[:16].cast("Q")
        self._data = ring[HEADER:]
        self._inbox = inbox
        self._channel = channel
        self._maker = maker
        self._items: list[bytes] = []
        self._words = b""
        self._start = self._position = 0
        """Where the photograph at hand began to look for room, and where the next does."""
        self._waited = 0
        """Nanoseconds that the photograph at hand has waited for room."""
        self._number = 0
        """Of the photograph at hand, from 0."""

    def serve(self) -> None:
        self._tell()
        while True:
            files = self._inbox.task()
            while files:
                read = deque(self._maker.read(files))
                files = files[len(read) :]
                while read:  # each goes when it is done
                    item = self._one(read.popleft())  # which may tell the items before it
                    self._items.append(item)
                    self._number += 1
            self._tell()

    def _tell(self) -> None:
        answer = ANSWER.pack(len(self._items), len(self._words)) + b"".join(self._items) + self._words
        while answer:
            answer = answer[os.write(self._channel, answer) :]
        self._items, self._words = [], b""

    def _one(self, file: _Read) -> bytes:
        begun, self._start, self._waited = time.perf_counter_ns(), self._position, 0
        kind, numbers, at = LAID, _NOWHERE, 0
        try:
            at, numbers = self._maker.lay(file, self._place)
        except InputError as error:
            words = error.problem.encode("utf-8", "surrogatepass")
            kind, numbers, self._position = SKIPPED, Place(len(words)), self._start
            self._words += words
        except _LeftError:
            kind, self._position = LEFT, self._start
        ended, opened, read = time.perf_counter_ns() - self._waited, file.begun, file.ended
        if opened == read:  # it was read just now
            opened, read = begun, ended
        if read > begun or isinstance(file.data, InputError):
            begun = ended  # and not decoded by itself
        return ITEM.pack(kind, *numbers, at, self._position, opened, read, begun, ended)

    def _place(self, count: int) -> tuple[int, Bytes]:
        """Where so many bytes have room, and the memory; waits for it. What was placed for this file before isn't
        needed."""
        if count > self._order.largest:
            raise _LeftError
        size, begin = self._order.ring, self._start
        at = begin % size
        if at + count > size:
            begin, at = begin + size - at, 0
        self._position = end = begin + aligned(count)
        if end - self._counters[RELEASED] > size:
            self._wait(end - size)
        return at, self._data[at : at + count]

    def _wait(self, released: int) -> None:
        """Wait until the parent has released that much."""
        waiting = time.perf_counter_ns()
        self._tell()  # what is done: the parent may need it before it can release anything
        while self._counters[RELEASED] < released:
            if self._number < self._counters[PRESSED]:
                raise _LeftError
            self._inbox.pause()
        self._waited += time.perf_counter_ns() - waiting


class Place(NamedTuple):
    """Where in a block of the ring the part of a photograph lies that is needed.

    Args:
        side: of its square, rows and columns.
        height, width: of the part, in pixels.
        pitch: bytes from row to row.
        offset: bytes before the first row, the small inputs not counted.
    """

    side: int
    height: int = 0
    width: int = 0
    pitch: int = 0
    offset: int = 0


_NOWHERE = Place(0)


def _place_in(laid: Region, side: int, rows: Lines, columns: Lines) -> Place:
    """Of the part of a photograph that these lines need, where such a region of it is laid."""
    pitch = 3 * laid.width
    offset = (rows.first - laid.top) * pitch + 3 * (columns.first - laid.left)
    return Place(side, rows.end - rows.first, columns.end - columns.first, pitch, offset)


_Placer = Callable[[int], "tuple[int, Bytes]"]
"""Gives so many bytes room in the ring, and nothing else of the file: where that is, and the memory."""


class _Known(NamedTuple):
    """What is known of a photograph before it is decoded: there all of it is at hand, and after that nothing.

    Args:
        size: bytes of the pixels that are laid.
        region: of them; None where they are the whole photograph.
        place: of the part that is needed, among them.
        small: its small inputs, packed; empty where they take more bytes than can wait in a processor's caches.
    """

    plan: Plan
    size: int
    region: Region | None
    place: Place
    small: bytes


class _Read(NamedTuple):
    """A file as far as it was read before others were decoded: when that began and ended, and what came of it.

    Args:
        known: of what :func:`~trtbatch.photographs.decoding.decode_into` makes of it.
    """

    path: Path
    begun: int = 0
    ended: int = 0
    data: bytes | InputError = b""
    known: _Known | None = None


class _Maker(Protocol):
    def warm(self, data: bytes) -> None:
        """Import and start what a photograph takes, a tenth of a second of it, before the first waits for that."""

    def read(self, files: Sequence[Path]) -> list[_Read]:
        """The first of the files, one or more, as far as they are read together."""

    def lay(self, file: _Read, place: _Placer) -> tuple[int, Place]:
        """Make it in the ring; where it lies."""


class _PackedMaker:
    def __init__(self, order: Order) -> None:
        self._order = order
        self._packing = Packing(order)
        self._scratch = np.empty(0, np.uint8)
        self._parts = part_decoder()
        self._known = lru_cache(_SIZES if is_computed(order.recipe) else 0)(self._made_known)
        """Of rows, columns, and whether a region may do: a folder's photographs have a few sizes, most often. Taps are
        kept elsewhere."""

    def warm(self, data: bytes) -> None:
        (read,) = self._planned([_Read(Path(), data=data)])
        self.lay(read, lambda count: (0, np.empty(count, np.uint8)))

    def read(self, files: Sequence[Path]) -> list[_Read]:
        """As many as :data:`_AT_ONCE` allows, planned in one go: between two photographs that would find nothing in the
        processor's caches."""
        found: list[_Read] = []
        count = 0
        for path in files:
            begun = time.perf_counter_ns()
            data = _content(path)
            found.append(_Read(path, begun, time.perf_counter_ns(), data))
            count += len(data) if isinstance(data, bytes) else 0
            if count > _AT_ONCE:
                break
        return self._planned(found)

    def _planned(self, files: Sequence[_Read]) -> list[_Read]:
        """With plans for those whose size can be seen undecoded, and that aren't refused for it."""
        recipe, most = self._order.recipe, self._order.max_size
        found = [None if isinstance(each.data, InputError) else header(each.data) for each in files]
        small = [each if each and 0 < min(each.size) <= most else None for each in found]
        make_sides(recipe, [each.size for each in small if each], most)
        return [each._replace(known=said and self._known_of(each.data, said)) for each, said in zip(files, small)]

    def _known_of(self, data: bytes | InputError, said: Header) -> _Known | None:
        assert isinstance(data, bytes), "that it has a header says so"
        return self._known(*said.size, self._parts is not None and is_one_scan(data, said.scan))

    def _made_known(self, height: int, width: int, may_be_part: bool) -> _Known | None:
        made = plan(self._order.recipe, height, width, self._order.max_size)
        if made is None:
            return None
        rows, columns = made.rows, made.columns
        region = around(rows, columns, height, width) if may_be_part else None
        laid = region or Region(0, 0, width, height)
        small = np.empty(self._packing.bytes if is_computed(self._order.recipe) else 0, np.uint8)
        if small.size:
            self._packing.fill(small, rows, columns)
        return _Known(made, laid.bytes, region, _place_in(laid, made.side, rows, columns), small.tobytes())

    def lay(self, file: _Read, place: _Placer) -> tuple[int, Place]:
        """A photograph that isn't large is decoded there: a copy costs a tenth of decoding."""
        data, known, begin = file.data, file.known, self._packing.bytes
        if isinstance(data, InputError):
            raise data
        if known is None:
            if len(data) > _LARGE_FILE:
                self._leave_large(data)
            return self._lay_slowly(data, place, None)
        if begin + known.size > (self._order.whole if known.region is None else self._order.largest):
            self._leave(known.plan.rows, known.plan.columns)
            return self._lay_slowly(data, place, known.plan)
        at, there = place(begin + known.size)
        if known.region is not None and self._parts is not None:
            if not self._parts(data, known.region, there[begin:]):
                return self._lay_slowly(data, place, known.plan)
        elif not decode_into(data, there[begin:]):
            return self._lay_slowly(data, place, known.plan, by_pillow=True)
        if known.small:
            there.data[:begin] = known.small
        else:
            self._packing.fill(there, known.plan.rows, known.plan.columns)
        return at, known.place

    def _lay_slowly(
        self, data: bytes, place: _Placer, known: Plan | None, by_pillow: bool = False
    ) -> tuple[int, Place]:
        """A large photograph, of which the part that is needed is copied, or one of which little is known."""
        begin, at, there = self._packing.bytes, 0, np.empty(0, np.uint8)

        def room(count: int) -> Bytes:
            nonlocal at, there
            if begin + count > self._order.whole:
                there = np.empty(0, np.uint8)
                return self._room(count)
            at, there = place(begin + count)
            return there[begin:]

        pixels = decode_by_pillow(data, room) if by_pillow else decode(data, room, known and known.size)
        if known is not None and known.size == pixels.shape[:2]:
            given, side = known.operands(pixels), known.side
        else:
            given = operands(self._order.recipe, pixels, self._order.max_size)
            side = square(given.image.shape[0], given.image.shape[1], self._order.max_size)
        height, width = given.image.shape[:2]
        if there.size and np.may_share_memory(given.image, pixels):
            found = _place_in(Region(0, 0, pixels.shape[1], pixels.shape[0]), side, given.rows, given.columns)
        else:
            image = given.image if not there.size else given.image.copy()  # it may lie where it is written to
            at, there = place(begin + image.size)
            there[begin:].reshape(image.shape)[...] = image
            found = Place(side, height, width, 3 * width)
        self._packing.fill(there, given.rows, given.columns)
        return at, found

    def _leave_large(self, data: bytes) -> None:
        from PIL import Image

        try:
            width, height = Image.open(io.BytesIO(data)).size
            found = band(self._order.recipe, height, width, self._order.max_size)
        except Exception:  # decoding says better what is wrong
            return
        if found is not None:
            self._leave(*found)

    def _leave(self, rows: Lines, columns: Lines) -> None:
        """Leave a photograph to the parent whose part is too large."""
        count = 3 * (rows.end - rows.first) * (columns.end - columns.first)
        if self._packing.bytes + count > self._order.largest:
            raise _LeftError

    def _room(self, count: int) -> Bytes:
        if count > self._scratch.size:
            made = np.empty(count, np.uint8)
            if count > _KEPT:
                return made
            self._scratch = made
        return self._scratch


def _content(path: Path) -> bytes | InputError:
    try:
        return read_bytes(path)
    except InputError as error:
        return error


class _SampleMaker:
    def __init__(self, order: Order) -> None:
        self._recipe: Callable[[Any], Array] = order.recipe
        self._type = sample_type(order.recipe, order.dtype)

    def warm(self, data: bytes) -> None:
        from PIL import Image

        self._recipe(Image.open(io.BytesIO(data)))

    def read(self, files: Sequence[Path]) -> list[_Read]:
        return [_Read(files[0])]

    def lay(self, file: _Read, place: _Placer) -> tuple[int, Place]:
        sample = read_sample(file.path, self._recipe)
        at, there = place(sample.size * self._type.itemsize)
        there.view(self._type).reshape(sample.shape)[...] = sample
        return at, _NOWHERE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
