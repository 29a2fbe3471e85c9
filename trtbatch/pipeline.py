"""Reading, computing and writing at the same time, on a ring of slots.

::

    source ─▶ filler thread ──filled──▶ runner thread ──done──▶ caller's thread ─▶ sink
                   ▲                                                  │
                   └─────────────────────── free ─────────────────────┘

Every batch holds a slot from its first row until the caller is through with its outputs, so the ring bounds memory
whichever stage is slow. The runner alone uses the session, which TensorRT ties to one thread. What any stage raises
ends all of them, and is raised in the caller's thread as it was.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from trtbatch.artifacts import TensorSpec
from trtbatch.backends.base import Session, Slot, conform
from trtbatch.batches import Profile, pick_profile
from trtbatch.errors import InputError
from trtbatch.photographs.codec import DecodingDevice, JpegDecoder
from trtbatch.photographs.decoders import PackedReader, are_wanted, packed_ahead
from trtbatch.photographs.gpudecoding import PlaneReader, decoded_ahead
from trtbatch.photographs.pixels import Photograph, read_ahead
from trtbatch.sources import BlockSource, ImageSource, Skipped, Source
from trtbatch.trace import NO_TRACE, Recorder

__all__ = ["Batch", "Busy", "Pipeline", "Stopwatch", "executed_size", "foreseen"]

Array = NDArray[Any]
T = TypeVar("T")

SWITCH = 1e-3
"""Seconds after which a thread that computes in Python lets another go on (``sys.setswitchinterval``), while a pipeline
runs: with Python's own 5 ms, whoever waits a moment for a file or the GPU waits that long for its turn."""

SPARE = 2
"""Slots beyond those in flight: one is being filled while the sink holds another."""


class Stopwatch:
    """Adds up the seconds spent in its blocks; for one thread."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._begun = 0.0

    def __enter__(self) -> Stopwatch:
        self._begun = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += time.perf_counter() - self._begun


class _Turns:
    """Lets threads take turns every :data:`SWITCH` seconds while any of these has begun and not ended."""

    _lock = threading.Lock()
    _running: ClassVar[set[_Turns]] = set()
    _before = 0.0

    def begin(self) -> None:
        with self._lock:
            if not self._running:
                _Turns._before = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before, SWITCH))
            self._running.add(self)

    def end(self) -> None:
        """Once or more often, and where it hasn't begun."""
        with self._lock:
            if self in self._running:
                self._running.remove(self)
                if not self._running:
                    sys.setswitchinterval(self._before)


@dataclass
class Busy:
    """How long each stage worked, rather than waited for another one."""

    reading: Stopwatch = field(default_factory=Stopwatch)
    computing: Stopwatch = field(default_factory=Stopwatch)
    writing: Stopwatch = field(default_factory=Stopwatch)


class FillableSlot(Slot, Protocol):
    """A slot on a GPU, whose input is filled there."""

    def row_address(self, name: str, index: int) -> int:
        """Where a sample of an input whose first axis is the batch lies on the GPU, at every batch size."""

    def submit_after(self, events: Sequence[Any]) -> None:
        """As :meth:`submit`, the inputs being on the GPU when these events have come."""


class Preprocessor(PackedReader, PlaneReader, Protocol):
    """Fills rows of a slot's input on the GPU; between `open` and `close` it is used in one thread."""

    @property
    def device(self) -> DecodingDevice: ...

    def open(self) -> None: ...

    def warm(self) -> None:
        """Make what the usual photographs take, before the first waits for it."""

    def __call__(self, given: Any, address: int, release: Callable[[], None] = ...) -> None:
        """Put the sample of a photograph at an address; `release` is called when its memory isn't needed any more."""

    def events(self) -> list[Any]:
        """Marks for :meth:`done`."""

    def done(self, events: Sequence[Any]) -> None:
        """Let the marks come when all that was asked for until now is done."""

    def close(self) -> None: ...


@dataclass
class _Room:
    """A slot, and those of its inputs that have a batch axis: at the largest size, that axis first.

    Args:
        events: that come when the rows are filled, where that happens on the GPU.
    """

    slot: Slot
    rows: dict[str, Array]
    events: list[Any] = field(default_factory=list)


@dataclass
class Batch:
    """A batch on its way.

    Args:
        number: 0, 1, … in order.
        names: of its samples.
        executed: the size that it runs at; rows beyond the samples are padding.
        outputs: as the engine gives them, padding included; valid until the next batch is asked for.
    """

    number: int
    names: list[str]
    executed: int
    room: _Room
    outputs: dict[str, Array] = field(default_factory=dict)


class _StoppedError(Exception):
    """The pipeline ends; the stage that was waiting is to leave."""


class _Line:
    """What the stages share: one lock for all queues, and whether everything is to end."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.stopped = False
        self.error: BaseException | None = None
        self.free: _Queue[_Room] = _Queue(self)
        self.filled: _Queue[Batch] = _Queue(self)
        self.done: _Queue[Batch] = _Queue(self)

    def stop(self, error: BaseException | None = None) -> None:
        """Wake everybody who waits; the first error is kept."""
        with self.changed:
            self.error = error if self.error is None else self.error
            self.stopped = True
            self.changed.notify_all()

    def leave_if_stopped(self) -> None:
        if self.stopped:
            raise _StoppedError

    @contextmanager
    def guard(self) -> Iterator[None]:
        """What is raised in the block stops the line."""
        try:
            yield
        except _StoppedError:
            return
        except BaseException as error:
            self.stop(error)


class _Queue(Generic[T]):
    """A queue between two stages. It needs no bound of its own: there are only so many slots."""

    def __init__(self, line: _Line) -> None:
        self._line = line
        self._items: deque[T] = deque()
        self._ended = False

    def put(self, item: T) -> None:
        with self._line.changed:
            self._items.append(item)
            self._line.changed.notify_all()

    def end(self) -> None:
        """Nothing more will come."""
        with self._line.changed:
            self._ended = True
            self._line.changed.notify_all()

    def get(self, wait: bool = True) -> T | None:
        """The next item; None when there will be none, or, without waiting, where there is none now."""
        line = self._line
        with line.changed:
            line.changed.wait_for(lambda: self._items or self._ended or line.stopped or not wait)
            line.leave_if_stopped()
            return self._items.popleft() if self._items else None


class _Opener(Protocol):
    def session(self, cuda_graphs: bool = True) -> Session: ...


class Pipeline:
    """Runs a source through an engine; to be entered, and iterated over once, for the batches in order.

    Asking for the next batch gives the slot of the last one back. Leaving the block, whether all is done or not, ends
    the threads.

    Args:
        engine: opens the session, in the runner's thread.
        inputs: of the engine, as its sidecar has them.
        profiles: that decide what a short batch is padded to.
        sizes: of the batches, taken in turn again and again; each fits a profile once padded.
        skip: is told each unusable input, in the filler's thread; may raise.
        preprocessor: of the photographs of an :class:`ImageSource`, on the GPU, for a model of that one input.

    Raises:
        InputError: a sample of another shape, or one that a cast to the engine's type would change.
        ExecutionError: the engine failed, or its slots need more memory than there is.
    """

    def __init__(
        self,
        engine: _Opener,
        inputs: Sequence[TensorSpec],
        profiles: Sequence[Profile],
        source: Source,
        sizes: Sequence[int],
        skip: Callable[[Skipped], None],
        cuda_graphs: bool = True,
        trace: Recorder = NO_TRACE,
        preprocessor: Preprocessor | None = None,
    ) -> None:
        self.busy = Busy()
        self._turns = _Turns()
        self.begun = 0.0
        """When reading began, by ``time.perf_counter``: the session, its slots and the readers' memory were ready."""
        self._engine = engine
        self._inputs = inputs
        self._profiles = profiles
        self._source = source
        self._sizes = sizes
        self._skip = skip
        self._cuda_graphs = cuda_graphs
        self._trace = trace
        self._preprocessor = preprocessor
        self._largest = max(executed_size(size, profiles) for size in sizes)
        self._line = _Line()
        self._left = threading.Event()
        self._runner = threading.Thread(target=self._compute, name="trtbatch-run")

    def __enter__(self) -> Pipeline:
        self._turns.begin()
        try:
            self._runner.start()
        except BaseException:  # an interrupt, too, must not leave a thread behind
            self._end()
            raise
        return self

    def __iter__(self) -> Iterator[Batch]:
        try:
            while (batch := self._line.done.get()) is not None:
                yield batch
                self._line.free.put(batch.room)
        except _StoppedError:
            return  # the error is raised when the block is left

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        if kind is None and self._line.error is not None:
            raise self._line.error

    def _end(self) -> None:
        try:
            self._let_go()
        finally:
            self._let_go()  # again: an interrupt between the two would leave threads that wait for ever
            self._turns.end()
            if self._runner.ident is not None:
                self._runner.join()

    def _let_go(self) -> None:
        self._line.stop()
        self._left.set()

    # The runner's thread.

    def _compute(self) -> None:
        line = self._line
        filler = threading.Thread(target=self._fill, name="trtbatch-fill")
        with line.guard(), self._engine.session(cuda_graphs=self._cuda_graphs) as session:
            with line.guard():
                self._make_rooms(session)
                filler.start()
                self._run_all(session)
            # The slots' memory goes with the session: first everybody must be through with it.
            self._left.wait()
            if filler.ident is not None:
                filler.join()

    def _make_rooms(self, session: Session) -> None:
        needed = -(-self._source.total // min(self._sizes))
        rooms: list[_Room] = []
        for _ in range(max(1, min(session.in_flight + SPARE, needed))):
            slot = session.slot(spins=not isinstance(self._source, ImageSource))  # decoding has use for every core
            inputs = slot.prepare(self._largest)
            rows: dict[str, Array] = {}
            for spec in self._inputs:
                if spec.batch_axis is None:
                    _write(inputs[spec.name], self._source.constants[spec.name], spec, "the input")
                else:
                    rows[spec.name] = np.moveaxis(inputs[spec.name], spec.batch_axis, 0)
            rooms.append(_Room(slot, rows))
        # After the largest, whose memory all others have: what was made for memory that grows is forgotten.
        for number, samples in foreseen(self._source.total, self._sizes, len(rooms)):
            rooms[number % len(rooms)].slot.warm(executed_size(samples, self._profiles))
        for room in rooms:
            room.slot.prepare(self._largest)
            self._line.free.put(room)

    def _run_all(self, session: Session) -> None:
        """Keep as many batches in flight as keep the device busy; results aren't held back for a slow reader."""
        filled, done = self._line.filled, self._line.done
        submit = "compute" if session.in_flight == 1 else "submit"  # with one in flight it runs to the end
        flying: deque[Batch] = deque()
        while True:
            batch = filled.get(wait=not flying)
            if batch is not None:
                with self.busy.computing, self._span(submit, batch):
                    self._submit(batch)
                flying.append(batch)
            elif not flying:
                break
            if batch is None or len(flying) >= session.in_flight:
                oldest = flying.popleft()
                with self.busy.computing, self._span("wait", oldest):
                    oldest.outputs = oldest.room.slot.wait()
                done.put(oldest)
        done.end()

    def _submit(self, batch: Batch) -> None:
        room = batch.room
        inputs = room.slot.prepare(batch.executed)
        if batch.executed < self._largest:
            self._pack(room, inputs, batch.executed)
        if room.events:
            cast(FillableSlot, room.slot).submit_after(room.events)
        else:
            room.slot.submit()

    def _pack(self, room: _Room, inputs: dict[str, Array], size: int) -> None:
        """Bring rows to where a smaller batch has them; with the batch axis first they are there."""
        for spec in self._inputs:
            if spec.batch_axis:
                rows = room.rows[spec.name][:size].copy()  # it lies in the memory that is written to
                np.moveaxis(inputs[spec.name], spec.batch_axis, 0)[...] = rows

    def _span(self, name: str, batch: Batch) -> Any:
        return self._trace.span(name, batch=batch.number, samples=len(batch.names))

    # The filler's thread.

    def _fill(self) -> None:
        line = self._line
        with line.guard(), closing(self._feed()) as feed:
            self.begun = time.perf_counter()
            for number, size in enumerate(itertools.cycle(self._sizes)):
                room = line.free.get()
                assert room is not None, "slots go round until the end"
                with self.busy.reading, self._trace.span("fill", batch=number) as span:
                    names = feed.fill(room, size)
                    executed = executed_size(len(names), self._profiles) if names else 0
                    feed.pad(room, len(names), executed)
                    span.add(samples=len(names))
                if names:
                    line.filled.put(Batch(number, names, executed, room))
                if len(names) < size:
                    break
            line.filled.end()

    def _feed(self) -> _Feed:
        source, trace = self._source, self._trace
        if self._preprocessor is not None and isinstance(source, ImageSource):
            return _DeviceFeed(source, self._preprocessor, self._skip, self._line, trace)
        specs = [spec for spec in self._inputs if spec.batch_axis is not None]
        if isinstance(source, BlockSource):
            return _BlockFeed(source, specs)
        return _RowFeed(source, specs, self._skip, self._line, trace)


def foreseen(total: int, sizes: Sequence[int], first: int) -> list[tuple[int, int]]:
    """Number and samples of the first batches, and of the last one, where all of `total` inputs can be used.

    Args:
        sizes: that batches have in turn.
        first: how many.
    """
    found, left = list[tuple[int, int]](), total
    for number, size in zip(range(first), itertools.cycle(sizes)):
        if left > 0:
            found.append((number, min(left, size)))
        left -= size
    if left > 0:
        turns = (total - 1) // sum(sizes)
        number, left = turns * len(sizes), total - turns * sum(sizes)
        for size in sizes:
            if left <= size:
                return [*found, (number, left)]
            number, left = number + 1, left - size
    return found


def executed_size(count: int, profiles: Sequence[Profile]) -> int:
    """The batch size that `count` samples run at: their number, or the next larger size that a profile holds."""
    if pick_profile(profiles, count) is not None:
        return count
    return min(profile.min for profile in profiles if profile.min > count)


class _Feed(Protocol):
    """Writes samples into a slot."""

    def fill(self, room: _Room, size: int) -> list[str]:
        """Write up to `size` samples into the first rows; their names, fewer only at the source's end."""

    def pad(self, room: _Room, count: int, executed: int) -> None:
        """Repeat the last of `count` rows up to `executed`."""

    def close(self) -> None: ...


class _HostFeed:
    """Pads in the host's memory."""

    def pad(self, room: _Room, count: int, executed: int) -> None:
        for array in room.rows.values():
            array[count:executed] = array[count - 1 : count]


class _BlockFeed(_HostFeed):
    """Batches copied in one go."""

    def __init__(self, source: BlockSource, specs: Sequence[TensorSpec]) -> None:
        self._source = source
        self._specs = specs
        self._next = 0

    def fill(self, room: _Room, size: int) -> list[str]:
        block = self._source.block(self._next, size)
        count = len(block.names)
        for spec in self._specs:
            _write(room.rows[spec.name][:count], block.rows[spec.name], spec, self._source.name)
        self._next += count
        return block.names

    def close(self) -> None:
        return


class _Usable(Generic[T]):
    """Items as they come, but for those that can't be used: of these somebody is told.

    Args:
        total: of the items, where it is known: the readers' end, which takes them a while, isn't waited for then.
    """

    def __init__(
        self,
        items: Iterator[T | Skipped],
        skip: Callable[[Skipped], None],
        line: _Line,
        trace: Recorder,
        total: int | None = None,
    ) -> None:
        self._items = items
        self._left = total
        self._skip = skip
        self._line = line
        self._trace = trace

    def next(self) -> T | None:
        """The next one; None at the end."""
        while True:
            self._line.leave_if_stopped()
            if self._left == 0:
                return None
            with self._trace.span("next"):  # where it is long, the filler waits for the readers
                item = next(self._items, None)
            if self._left is not None:
                self._left -= 1
            if not isinstance(item, Skipped):
                return item
            self._skip(item)

    def close(self) -> None:
        """Let the readers end: here, not whenever they are collected."""
        if isinstance(self._items, Generator):
            self._items.close()


class _RowFeed(_HostFeed):
    """Samples copied one by one, as they come; those that can't be used are left out."""

    def __init__(
        self,
        source: Source,
        specs: Sequence[TensorSpec],
        skip: Callable[[Skipped], None],
        line: _Line,
        trace: Recorder,
    ) -> None:
        if isinstance(source, ImageSource):
            self._items = _Usable(source.lent(), skip, line, trace, source.total)
        else:
            self._items = _Usable(iter(source), skip, line, trace)
        self._specs = specs

    def fill(self, room: _Room, size: int) -> list[str]:
        names: list[str] = []
        rows = room.rows
        while len(names) < size and (item := self._items.next()) is not None:
            for spec in self._specs:
                # A part of the array, not a row of it: a row of a scalar per sample would be a copy.
                _write(rows[spec.name][len(names) : len(names) + 1], item.rows[spec.name][None], spec, item.name)
            item.release()
            names.append(item.name)
        return names

    def close(self) -> None:
        self._items.close()


class _DeviceFeed:
    """Photographs that are decoded here and become rows of the input on the GPU."""

    def __init__(
        self,
        source: ImageSource,
        preprocessor: Preprocessor,
        skip: Callable[[Skipped], None],
        line: _Line,
        trace: Recorder,
    ) -> None:
        self._input = source.spec.name
        self._preprocessor = preprocessor
        self._trace = trace
        preprocessor.open()
        try:
            self._items = _Usable(self._read(source, trace), skip, line, trace, len(source.files))
        except BaseException:
            preprocessor.close()
            raise

    def _read(self, source: ImageSource, trace: Recorder) -> Iterator[Photograph[Any] | Skipped]:
        preprocessor = self._preprocessor
        if source.gpu_decode:
            decoder = JpegDecoder(preprocessor.device, source.decoder)
            return decoded_ahead(source.files, source.names, preprocessor, decoder, source.workers, trace)
        if are_wanted(len(source.files), source.processes):
            preprocessor.warm()  # while the processes load what they need
            if source.team is not None:
                source.team.page_lock(preprocessor.lock)
            return packed_ahead(source.files, source.names, preprocessor, source.workers, trace, team=source.team)
        prepare, beside, arena = preprocessor.prepare, preprocessor.beside, preprocessor.arena
        return read_ahead(source.files, source.names, prepare, beside, arena, source.workers, trace)

    def fill(self, room: _Room, size: int) -> list[str]:
        slot = cast(FillableSlot, room.slot)
        if not room.events:
            room.events = self._preprocessor.events()
        address, second = (slot.row_address(self._input, index) for index in (0, 1))
        row, names = second - address, list[str]()
        while len(names) < size and (item := self._items.next()) is not None:
            with self._trace.span("preprocess", file=item.name):
                self._preprocessor(item.prepared, address, item.release)
            address += row
            names.append(item.name)
        self._preprocessor.done(room.events)
        return names

    def pad(self, room: _Room, count: int, executed: int) -> None:
        """Rows beyond the samples keep what an earlier batch has left there: they are rows of no sample."""

    def close(self) -> None:
        try:
            self._items.close()
        finally:
            self._preprocessor.close()


def _write(target: Array, array: Array, spec: TensorSpec, where: str) -> None:
    """Copy into a slot what is from `where`; a cast must keep every value.

    Raises:
        InputError: another shape, or values that the input's type doesn't hold.
    """
    if array.shape != target.shape:
        raise InputError(f"{where}: {spec.name} has shape {array.shape}, wanted {target.shape}", "reshape it")
    np.copyto(target, array if array.dtype == target.dtype else conform(array, spec, where))
