"""Feeds write samples into the slots of a pipeline: rows from the host, or images that are prepared on the GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import RowWriter, Slot, conform
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import InputError
from trtbatch.images.dali import DaliReader, ImageBatch, Item
from trtbatch.images.host import Loaded, Skipped, cropped
from trtbatch.runtime.sources import BlockSource, ImageSource, Source
from trtbatch.util.trace import NO_TRACE, Recorder

__all__ = [
    "BlockFeed",
    "DaliFeed",
    "Feed",
    "FillableSlot",
    "Filled",
    "GpuWriter",
    "ImageFeed",
    "PreprocessorFeed",
    "Room",
    "RowFeed",
    "RowWriting",
    "write_rows",
]

Array = NDArray[Any]

TOGETHER = 16
"""Images that become samples together, where Pillow reads them."""


class FillableSlot(Slot, Protocol):
    """A slot whose input rows can be written on the GPU."""

    def row_address(self, name: str, index: int) -> int:
        """Return where a row of an input, whose first axis is the batch, lies on the GPU at every batch size."""

    def submit_after(self, events: Sequence[Any]) -> None:
        """Do as :meth:`submit` without an upload, once these events have come."""


class GpuWriter(RowWriter, Protocol):
    """Writes rows on the GPU, from `open` to `close` in one thread."""

    def open(self) -> None:
        """Prepare to write, in the thread that calls it."""

    def event(self) -> Any:
        """Return an event of the stream."""

    def close(self) -> None:
        """Free what it holds, in the same thread."""


@runtime_checkable
class RowWriting(Protocol):
    """An engine whose input rows can be written on its GPU."""

    def row_writer(self) -> GpuWriter:
        """Return what writes rows on the GPU."""


class Preprocessor(Protocol):
    """Makes samples of images on the GPU, from `open` to `close` in one thread."""

    def open(self) -> None:
        """Prepare to write, in the thread that calls it."""

    def __call__(self, pixels: NDArray[np.uint8], address: int) -> None:
        """Put the sample of an image ``(H, W, 3)`` at an address of the GPU, ordered on the preprocessor's stream."""

    def events(self) -> list[Any]:
        """Return events for :meth:`done`."""

    def done(self, events: Sequence[Any]) -> None:
        """Record the events behind all that was asked for until now."""

    def close(self) -> None:
        """Free what it holds, in the same thread."""


@dataclass
class Room:
    """A slot, and those of its inputs that have a batch axis: at the largest size, that axis first.

    Args:
        events: that come when the rows are filled, where that happens on the GPU.
    """

    slot: Slot
    rows: dict[str, Array]
    events: list[Any] = field(default_factory=list)


class Filled(NamedTuple):
    """The names of the samples in a slot, and whether the source has ended."""

    names: list[str]
    is_last: bool


class Feed(Protocol):
    """Writes samples into slots; opened, used and closed in one thread."""

    def open(self) -> None:
        """Prepare to fill slots, in the thread that calls it."""

    def fill(self, room: Room, size: int) -> Filled:
        """Write up to `size` samples into the first rows."""

    def pad(self, room: Room, count: int, executed: int) -> None:
        """Repeat the last of `count` rows up to `executed`."""

    def close(self) -> None:
        """Free what it holds, in the same thread."""


class _HostFeed:
    """Pads in the host's memory."""

    def open(self) -> None:
        """Prepare to fill slots; see :class:`Feed`."""
        return

    def pad(self, room: Room, count: int, executed: int) -> None:
        """Repeat the last row; see :class:`Feed`."""
        for array in room.rows.values():
            array[count:executed] = array[count - 1 : count]

    def close(self) -> None:
        """Free what it holds; see :class:`Feed`."""
        return


class BlockFeed(_HostFeed):
    """Copies whole batches of a source whose samples lie together."""

    def __init__(self, source: BlockSource, specs: Sequence[TensorSpec]) -> None:
        self._source = source
        self._specs = specs
        self._next = 0

    def fill(self, room: Room, size: int) -> Filled:
        """Write samples into the first rows; see :class:`Feed`."""
        block = self._source.block(self._next, size)
        count = len(block.names)
        for spec in self._specs:
            write_rows(room.rows[spec.name][:count], block.rows[spec.name], spec, self._source.name)
        self._next += count
        return Filled(block.names, count < size)


class RowFeed(_HostFeed):
    """Copies samples one by one, as they come; those that can't be used are left out.

    Args:
        skip: called with each sample that can't be used; may raise.
        check: called between samples; raises where the pipeline has stopped.
    """

    def __init__(
        self,
        source: Source,
        specs: Sequence[TensorSpec],
        skip: Callable[[Skipped], None],
        check: Callable[[], None],
        trace: Recorder = NO_TRACE,
    ) -> None:
        self._items = iter(source)
        self._specs = specs
        self._skip = skip
        self._check = check
        self._trace = trace

    def fill(self, room: Room, size: int) -> Filled:
        """Write samples into the first rows; see :class:`Feed`."""
        names: list[str] = []
        rows = room.rows
        while (
            len(names) < size and (item := _next_usable(self._items, self._skip, self._check, self._trace)) is not None
        ):
            for spec in self._specs:
                # A part of the array, not a row of it: a row of a scalar per sample would be a copy.
                write_rows(rows[spec.name][len(names) : len(names) + 1], item.rows[spec.name][None], spec, item.name)
            names.append(item.name)
        return Filled(names, len(names) < size)

    def close(self) -> None:
        """Free what it holds; see :class:`Feed`."""
        _close(self._items)


class ImageFeed(_HostFeed):
    """Makes samples of the pixels that a pool of threads reads, straight in the rows of the slots.

    Pillow's threads compete for Python's lock, and each further taking of it slows them. So the arithmetic is done for
    :data:`TOGETHER` images at a time, by threads of its own.
    """

    def __init__(
        self,
        source: ImageSource,
        skip: Callable[[Skipped], None],
        check: Callable[[], None],
        trace: Recorder = NO_TRACE,
    ) -> None:
        self._source = source
        self._skip = skip
        self._check = check
        self._trace = trace
        self._images: Iterator[Loaded[NDArray[np.uint8]] | Skipped] = iter(())
        self._arithmetic = ThreadPoolExecutor(2, thread_name_prefix="trtbatch-normalise")
        self._pixels = np.empty((0, *source.preprocessing.crop, 3), np.uint8)
        """Of a batch, before the arithmetic."""

    def open(self) -> None:
        """Prepare to fill slots; see :class:`Feed`."""
        recipe = self._source.preprocessing
        self._images = self._source.loaded(lambda content: cropped(content, recipe), TOGETHER)

    def fill(self, room: Room, size: int) -> Filled:
        """Write samples into the first rows; see :class:`Feed`."""
        rows, names, tasks = room.rows[self._source.spec.name], list[str](), list[Future[Array]]()
        if len(self._pixels) < size:
            self._pixels = np.empty((size, *self._pixels.shape[1:]), np.uint8)
        while len(names) < size and (image := self._next()) is not None:
            # Python's lock is kept: to give it up and take it again takes longer than such a copy.
            memoryview(self._pixels[len(names)]).cast("B")[:] = memoryview(image.value).cast("B")
            names.append(image.name)
            if len(names) % TOGETHER == 0:
                tasks.append(self._start(rows, len(names) - TOGETHER, len(names)))
        if rest := len(names) % TOGETHER:
            tasks.append(self._start(rows, len(names) - rest, len(names)))
        for task in tasks:
            task.result()
        return Filled(names, len(names) < size)

    def _next(self) -> Any:
        return _next_usable(self._images, self._skip, self._check, self._trace)

    def _start(self, rows: Array, first: int, last: int) -> Future[Array]:
        recipe = self._source.preprocessing
        return self._arithmetic.submit(recipe.from_pixels, self._pixels[first:last], rows[first:last])

    def close(self) -> None:
        """Free what it holds; see :class:`Feed`."""
        _close(self._images)
        self._arithmetic.shutdown()


class DaliFeed(_HostFeed):
    """Lets DALI prepare images, on the GPU straight into the rows of the slots.

    Args:
        reader: made when the feed is opened.
        sizes: of the batches, in turn.
        writer: of rows on the GPU; None for rows on the host.
    """

    def __init__(
        self,
        source: ImageSource,
        reader: Callable[[], DaliReader],
        sizes: Sequence[int],
        skip: Callable[[Skipped], None],
        check: Callable[[], None],
        writer: GpuWriter | None = None,
    ) -> None:
        self._source = source
        self._make_reader = reader
        self._sizes = sizes
        self._skip = skip
        self._check = check
        self._writer = writer
        self._reader: DaliReader | None = None
        self._images: Generator[Item, None, None] | None = None
        self._batches: Iterator[ImageBatch] = iter(())
        self._event: Any = None

    def open(self) -> None:
        """Prepare to fill slots; see :class:`Feed`."""
        if self._writer is not None:
            self._writer.open()
        self._reader = self._make_reader()
        self._reader.warm()
        self._images = self._reader.read_files(self._source.files, self._source.names, self._source.are_regular)
        self._batches = self._reader.batches(self._checked(self._images), itertools.cycle(self._sizes))

    def _checked(self, images: Iterator[Item]) -> Iterator[Item]:
        for image in images:
            self._check()
            yield image

    def fill(self, room: Room, size: int) -> Filled:
        """Write samples into the first rows; see :class:`Feed`."""
        if self._event is not None:
            self._event.synchronize()  # DALI's output is used again from now on
        batch = next(self._batches)
        for skipped in batch.skipped:
            self._skip(skipped)
        name = self._source.spec.name
        if self._writer is None:
            batch.write(room.rows[name])
        else:
            slot = cast(FillableSlot, room.slot)
            address, second = (slot.row_address(name, index) for index in (0, 1))
            batch.write_on_gpu(address, second - address, self._writer)
            if not room.events:
                room.events = [self._writer.event()]
            self._event = room.events[0]
            self._event.record()
        return Filled(batch.names, batch.last)

    def pad(self, room: Room, count: int, executed: int) -> None:
        """Repeat the last row; see :class:`Feed`."""
        if self._writer is None:  # on the GPU, rows beyond the samples keep what an earlier batch has left there
            super().pad(room, count, executed)

    def close(self) -> None:
        """Free what it holds; see :class:`Feed`."""
        if self._images is not None:
            self._images.close()
        if self._event is not None:
            self._event.synchronize()
        if self._reader is not None:
            self._reader.close()
        if self._writer is not None:
            self._event = None
            self._writer.close()


class PreprocessorFeed:
    """Decodes images on the host, and makes rows of them on the GPU with a preprocessor engine."""

    def __init__(
        self,
        source: ImageSource,
        preprocessor: Preprocessor,
        skip: Callable[[Skipped], None],
        check: Callable[[], None],
        trace: Recorder = NO_TRACE,
    ) -> None:
        self._source = source
        self._preprocessor = preprocessor
        self._skip = skip
        self._check = check
        self._trace = trace
        self._images: Iterator[Loaded[NDArray[np.uint8]] | Skipped] = iter(())

    def open(self) -> None:
        """Prepare to fill slots; see :class:`Feed`."""
        self._preprocessor.open()
        self._images = self._source.loaded(self._source.pixels)

    def fill(self, room: Room, size: int) -> Filled:
        """Write samples into the first rows; see :class:`Feed`."""
        slot = cast(FillableSlot, room.slot)
        if not room.events:
            room.events = self._preprocessor.events()
        name, names = self._source.spec.name, list[str]()
        while len(names) < size:
            image = _next_usable(self._images, self._skip, self._check, self._trace)
            if image is None:
                break
            with self._trace.span("preprocess", file=image.name):
                self._preprocessor(image.value, slot.row_address(name, len(names)))
            names.append(image.name)
        self._preprocessor.done(room.events)
        return Filled(names, len(names) < size)

    def pad(self, room: Room, count: int, executed: int) -> None:
        """Leave the rows beyond the samples as an earlier batch has left them: they are rows of no sample."""

    def close(self) -> None:
        """Free what it holds; see :class:`Feed`."""
        try:
            _close(self._images)
        finally:
            self._preprocessor.close()


def _next_usable(
    items: Iterator[Any], skip: Callable[[Skipped], None], check: Callable[[], None], trace: Recorder
) -> Any:
    """Return the next item that can be used; None at the end."""
    while True:
        check()
        with trace.span("next"):  # where it is long, the filler waits for the readers
            item = next(items, None)
        if not isinstance(item, Skipped):
            return item
        skip(item)


def _close(items: Iterator[Any]) -> None:
    """Let the readers end here, not whenever they are collected."""
    if isinstance(items, Generator):
        items.close()


def write_rows(target: Array, array: Array, spec: TensorSpec, where: str) -> None:
    """Copy into a slot what is from `where`; a cast must keep every value.

    Raises:
        InputError: another shape, or values that the input's type doesn't hold.
    """
    if array.shape != target.shape:
        raise InputError(f"{where}: {spec.name} has shape {array.shape}, wanted {target.shape}", "reshape it")
    np.copyto(target, array if array.dtype == target.dtype else conform(array, spec, where))
