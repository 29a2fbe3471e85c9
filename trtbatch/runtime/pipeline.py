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
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import Session
from trtbatch.core.batches import Profile, pick_profile
from trtbatch.core.tensors import TensorSpec
from trtbatch.images.host import Skipped
from trtbatch.runtime.feeds import BlockFeed, Feed, FillableSlot, ImageFeed, Room, RowFeed, write_rows
from trtbatch.runtime.sources import BlockSource, ImageSource, Source
from trtbatch.util.trace import NO_TRACE, Recorder

__all__ = ["Batch", "Busy", "Pipeline", "Stopwatch", "executed_size", "foreseen"]

Array = NDArray[Any]
T = TypeVar("T")

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


@dataclass
class Busy:
    """How long each stage worked, rather than waited for another one."""

    reading: Stopwatch = field(default_factory=Stopwatch)
    computing: Stopwatch = field(default_factory=Stopwatch)
    writing: Stopwatch = field(default_factory=Stopwatch)


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
    room: Room
    outputs: dict[str, Array] = field(default_factory=dict)


class _StoppedError(Exception):
    """The pipeline ends; the stage that was waiting is to leave."""


class _Line:
    """What the stages share: one lock for all queues, and whether everything is to end."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.stopped = False
        self.error: BaseException | None = None
        self.free: _Queue[Room] = _Queue(self)
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
        """Stop the line when the block raises."""
        try:
            yield
        except _StoppedError:
            return
        except BaseException as error:
            self.stop(error)


class _Queue(Generic[T]):
    """A queue between two stages. The number of slots bounds it."""

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
        """Return the next item; None when there will be none, or, without waiting, where there is none now."""
        line = self._line
        with line.changed:
            line.changed.wait_for(lambda: self._items or self._ended or line.stopped or not wait)
            line.leave_if_stopped()
            return self._items.popleft() if self._items else None


MakeFeed = Callable[[Callable[[Skipped], None], Callable[[], None]], Feed]
"""Makes a feed of what is called with each unusable sample, and of what raises where the pipeline has stopped."""


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
        feed: makes what writes the samples into the slots; None copies them from the host.

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
        feed: MakeFeed | None = None,
    ) -> None:
        self.busy = Busy()
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
        self._make_feed = feed or self._host_feed
        self._largest = max(executed_size(size, profiles) for size in sizes)
        self._warmed: set[int] = set()
        self._line = _Line()
        self._left = threading.Event()
        self._runner = threading.Thread(target=self._compute, name="trtbatch-run")

    def __enter__(self) -> Pipeline:
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
        rooms: list[Room] = []
        for _ in range(max(1, min(session.in_flight + SPARE, needed))):
            slot = session.slot(spins=not isinstance(self._source, ImageSource))  # decoding has use for every core
            inputs = slot.prepare(self._largest)
            rows: dict[str, Array] = {}
            for spec in self._inputs:
                if spec.batch_axis is None:
                    write_rows(inputs[spec.name], self._source.constants[spec.name], spec, "the input")
                else:
                    rows[spec.name] = np.moveaxis(inputs[spec.name], spec.batch_axis, 0)
            rooms.append(Room(slot, rows))
        # After the largest, whose memory all others have: what was made for memory that grows is forgotten.
        for number, samples in foreseen(self._source.total, self._sizes, len(rooms)):
            executed = executed_size(samples, self._profiles)
            rooms[number % len(rooms)].slot.warm(executed)
            self._warmed.add(executed)
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

    def _pack(self, room: Room, inputs: dict[str, Array], size: int) -> None:
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
        with line.guard(), closing(self._make_feed(self._skip, line.leave_if_stopped)) as feed:
            feed.open()
            self.begun = time.perf_counter()
            for number, size in enumerate(itertools.cycle(self._sizes)):
                room = line.free.get()
                assert room is not None, "slots go round until the end"
                with self.busy.reading, self._trace.span("fill", batch=number) as span:
                    names, is_last = feed.fill(room, size)
                    executed = self._executed(names, size, room)
                    feed.pad(room, len(names), executed)
                    span.add(samples=len(names))
                if names:
                    line.filled.put(Batch(number, names, executed, room))
                else:
                    line.free.put(room)
                if is_last:
                    break
            line.filled.end()
            # What the feed has on the GPU is freed last: that can stall, or spoil, what the runner does there.
            self._left.wait()

    def _executed(self, names: Sequence[str], size: int, room: Room) -> int:
        """Return the size that a batch runs at; on the GPU, none that would have to be captured now."""
        if not names:
            return 0
        executed = executed_size(len(names), self._profiles)
        return executed if not room.events or executed in self._warmed else executed_size(size, self._profiles)

    def _host_feed(self, skip: Callable[[Skipped], None], check: Callable[[], None]) -> Feed:
        specs = [spec for spec in self._inputs if spec.batch_axis is not None]
        if isinstance(self._source, BlockSource):
            return BlockFeed(self._source, specs)
        if isinstance(self._source, ImageSource) and self._source.preprocessor is None:
            own_types = ("uint8",) if self._source.preprocessing.fused else ("float32", "float16")
            if self._source.spec.dtype in own_types:  # other casts must keep every value, which the rows' feed checks
                return ImageFeed(self._source, skip, check, self._trace)
        return RowFeed(self._source, specs, skip, check, self._trace)


def foreseen(total: int, sizes: Sequence[int], first: int) -> list[tuple[int, int]]:
    """Return number and samples of the first batches, and of the last one, where all of `total` inputs can be used.

    Args:
        total: number of inputs.
        sizes: sizes of the batches, in turn.
        first: number of first batches.
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
    """Return the batch size that `count` samples run at: their number, or the next larger size that a profile holds."""
    if pick_profile(profiles, count) is not None:
        return count
    return min(profile.min for profile in profiles if profile.min > count)
