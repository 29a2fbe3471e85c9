"""Photographs to rows of a model's input batch on the GPU, by a preprocessor engine: no round trip to the host.

Several lanes, each a stream with room for a group of photographs, take turns, so that the upload of one runs beside the
resizing of another. What a photograph costs the host is what limits the rate: the engine's kernels launched one by one
take longer there than on the GPU. So each lane keeps CUDA graphs for each size, and sizes are few: a photograph lies in
the corner of one of a few squares (:func:`trtbatch.photographs.operands.square`), and nothing counts what is beside it.
Small photographs go in groups, one launch for each. Their pixels go up one by one, from where they were decoded, and
what is small of them in one copy.
A graph writes where it was captured; its samples are then copied to the rows, on the GPU, which takes microseconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.tensorrt.buffers import CudaEvent, Device, DeviceMemory
from trtbatch.backends.tensorrt.engine import TensorRTEngine
from trtbatch.backends.tensorrt.graphs import CudaGraph
from trtbatch.backends.tensorrt.slots import bytes_of
from trtbatch.errors import ExecutionError
from trtbatch.notes import note
from trtbatch.photographs.arena import Arena
from trtbatch.photographs.codec import Plane
from trtbatch.photographs.operands import GROUP, GROUP_SIDE, Packing, operands, profile_of, square
from trtbatch.photographs.record import OUTPUT, PreprocessorRecord
from trtbatch.preprocessing import Preprocessing

__all__ = ["Laid", "Prepared", "TensorRTPreprocessor"]

Array = NDArray[Any]

LANES = 2
"""At the most; fewer where their activations would take more than `LANES_SHARE`."""

LANES_SHARE = 16
"""Part of the free memory of the GPU that lanes' activations may take: one in so many."""

SMALL = 4096
"""Bytes that are gathered on the host, rather than uploaded by themselves: that takes as long as to copy some more."""

COUNTS = (1, 4, GROUP)
"""Photographs that one launch is made for: each number of them takes a context and a graph, tenths of a second."""

USUAL = (1.5, 2.0)
"""Rows and columns that are made ready before photographs come, as multiples of the crop: for what the crop needs of
500×375 pixels, and for somewhat more."""

MOST_CONTEXTS = 32
"""Sizes that a lane keeps contexts and graphs for."""


class Prepared(NamedTuple):
    """A photograph, or the part of it that is needed, and how it is resized, packed."""

    image: NDArray[np.uint8] | Plane
    packed: NDArray[np.uint8]


class Laid(NamedTuple):
    """A photograph as a process lays it (:class:`trtbatch.photographs.decoder_worker.Place`).

    Args:
        memory: where it lies, and others; page-locked where it could be.
        at: bytes before it.
    """

    memory: NDArray[np.uint8]
    at: int
    side: int
    height: int
    width: int
    pitch: int
    offset: int


class _Given(NamedTuple):
    """A photograph, the address on the GPU that its sample is for, and what gives its memory back."""

    photograph: Prepared | Laid
    target: int
    release: Callable[[], None]


class TensorRTPreprocessor:
    """Fills rows of an input batch; opened, used and closed in one thread, whatever thread made it.

    Args:
        engine: of the preprocessor.
        record: of what it was built from.
        cuda_graphs: whether it may run as CUDA graphs.
    """

    def __init__(self, engine: TensorRTEngine, record: PreprocessorRecord, cuda_graphs: bool = True) -> None:
        self._engine = engine
        self.record = record
        self._packing = Packing(record)
        self._cuda_graphs = cuda_graphs
        self._lanes: list[_Lane] = []
        self._next = 0
        self._waiting: list[_Given] = []
        """The next group, as far as it has come."""
        self._side = 0
        """Of the square that its largest photograph needs."""
        self._positions: DeviceMemory | None = None
        self.beside = self._packing.bytes
        """Bytes that :meth:`prepare` uses."""
        self.arena = Arena(engine.device.page_locked, engine.device.free_page_locked)
        """Memory for photographs, page-locked."""

    @property
    def recipe(self) -> Preprocessing:
        """What it does to a photograph."""
        return self.record.recipe

    @property
    def max_size(self) -> int:
        """Rows and columns of the largest part of a photograph that it takes."""
        return self.record.max_size

    @property
    def device(self) -> Device:
        """The GPU that it runs on."""
        return self._engine.device

    def open(self) -> None:
        """Make what runs it, in the thread that uses it.

        Raises:
            ExecutionError: out of GPU memory.
        """
        device = self._engine.device
        device.enter_thread()
        try:
            room = device.free_memory() // LANES_SHARE
            count = max(1, min(LANES, room // max(1, self._engine.activation_bytes)))
            stream = device.stream()
            line = np.arange(self.record.max_size, dtype=np.int32)
            self._positions = device.memory(line.nbytes)
            device.upload(self._positions.address, line, stream)
            stream.synchronize()
            for _ in range(count):
                self._lanes.append(
                    _Lane(self._engine, self._packing, self._positions.address, self.record, self._cuda_graphs)
                )
        except BaseException:
            self.close()
            raise

    def warm(self) -> None:
        """Make what the usual groups take, tenths of a second, before the first waits for it; once opened.

        Raises:
            ExecutionError: out of GPU memory, or TensorRT failed.
        """
        crop = max(self.recipe.crop)
        for side in sorted({square(round(share * crop), 1, self.max_size) for share in USUAL}):
            if side <= GROUP_SIDE:
                for lane in self._lanes:
                    lane.warm(side)

    def prepare(self, pixels: NDArray[np.uint8], beside: NDArray[np.uint8]) -> Prepared:
        """What it takes of a photograph ``(H, W, 3)`` uint8, and of `beside` bytes; for any thread.

        Raises:
            InputError: not the pixels of a photograph.
        """
        given = operands(self.record.recipe, pixels, self.record.max_size)
        self._packing.fill(beside, given.rows, given.columns)
        return Prepared(given.image, beside)

    def prepare_plane(self, plane: Plane, packed: NDArray[np.uint8]) -> Prepared:
        """The same of the part of a photograph that is on the GPU."""
        return Prepared(plane, packed)

    laid = Laid
    """The same of a photograph that lies in memory as a process lays it."""

    def lock(self, memory: NDArray[np.uint8]) -> Callable[[], None]:
        """Page-lock memory for photographs; what is returned undoes that, in any thread.

        Raises:
            ExecutionError: it can't be done.
        """
        return self._engine.device.page_lock(memory)

    def __call__(self, given: Prepared | Laid, address: int, release: Callable[[], None] = lambda: None) -> None:
        """Put the sample of a photograph at an address of the GPU, when :meth:`done` says so.

        Args:
            release: called when the photograph's memory isn't needed any more.

        Raises:
            ExecutionError: TensorRT failed.
        """
        if isinstance(given, Laid):
            side = given.side
        else:
            side = square(given.image.shape[0], given.image.shape[1], self.max_size)
        one = _Given(given, address, release)
        if side > GROUP_SIDE:
            self._run([one], side)
            return
        self._waiting.append(one)
        self._side = max(self._side, side)
        if len(self._waiting) == GROUP:
            self._run_waiting()

    def _run_waiting(self) -> None:
        group, side = self._waiting, self._side
        self._waiting, self._side = [], 0
        if group:
            self._run(group, side)

    def _run(self, group: list[_Given], side: int) -> None:
        lane = self._lanes[self._next]
        self._next = (self._next + 1) % len(self._lanes)
        lane.settle()
        lane.run(group, side)
        for other in self._lanes:
            if other is not lane and other.is_uploaded():
                other.settle()

    def sample(self, pixels: NDArray[np.uint8]) -> Array:
        """The sample of a photograph ``(H, W, 3)`` uint8, on the host; waits for it.

        Raises:
            InputError: not the pixels of a photograph.
            ExecutionError: TensorRT failed.
        """
        spec = self.record.output
        found = np.empty([int(size) for size in spec.shape], spec.dtype)
        device = self._engine.device
        memory = device.memory(found.nbytes)
        try:
            self(self.prepare(pixels, np.empty(self.beside, np.uint8)), memory.address)
            self.settle()
            lane = self._lanes[0]
            device.copies([(found, memory.address)]).down(lane.stream)
            lane.stream.synchronize()
        finally:
            memory.free()
        return found

    def settle(self) -> None:
        """Wait for all that was asked for."""
        self._run_waiting()
        for lane in self._lanes:
            lane.stream.synchronize()
            lane.settle()

    def events(self) -> list[CudaEvent]:
        """Marks for :meth:`done`, one for each lane."""
        return [lane.stream.event(timed=False) for lane in self._lanes]

    def done(self, events: Sequence[CudaEvent]) -> None:
        """Let the marks come when all that was asked for until now is done."""
        self._run_waiting()
        for event in events:
            event.record()

    def close(self) -> None:
        """Wait for what runs, and free what :meth:`open` made; photographs' memory goes back to the arena."""
        with ExitStack() as steps:
            steps.callback(self._engine.device.leave_thread)
            if self._positions is not None:
                steps.callback(self._positions.free)
            while self._lanes:  # none may outlive the block: what it has on the GPU goes with it
                steps.callback(self._lanes.pop().close)
            self._positions = None
            self._next = self._side = 0
            for given in self._waiting:
                steps.callback(given.release)
            self._waiting = []

    def free(self) -> None:
        """Free the photographs' memory and the engine: at the end, in the thread that made them."""
        self.arena.close()
        self._engine.close()

    def __enter__(self) -> TensorRTPreprocessor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free()


@dataclass
class _Ready:
    """A context that has the shapes of so many photographs in a square, and the graph of its launch."""

    context: Any
    graph: CudaGraph | None = None


class _Seen(NamedTuple):
    """Memory that many photographs lie in: asking numpy for its address takes longer than all else.

    Args:
        bytes: the same, of which a part is had sooner.
    """

    memory: NDArray[np.uint8]
    address: int
    bytes: memoryview


class _Lane:
    """A group of photographs on its way: a stream, room for what goes up, activations, and contexts for each square."""

    def __init__(
        self,
        engine: TensorRTEngine,
        packing: Packing,
        positions: int,
        record: PreprocessorRecord,
        cuda_graphs: bool,
    ) -> None:
        self._engine = engine
        self._device = engine.device
        self._packing = packing
        self._positions = positions
        self._bytes = bytes_of(record.output, tuple(map(int, record.output.shape)))
        self._cuda_graphs = cuda_graphs
        self.stream = self._device.stream()
        self._handle = self.stream.handle
        self._copy = self._device.plane_copy()
        self._copies = self._device.plane_copies(GROUP)
        self._uploaded = self.stream.event(timed=False, blocking=True)
        self._memories: dict[int, _Seen] = {}
        """By identity, which is a memory's own while it is here."""
        self._group: list[_Given] = []
        """Uploaded last: their memory is given back when it is there."""
        self._ready: OrderedDict[int, dict[int, _Ready]] = OrderedDict()
        """By square, and by the number of photographs."""
        self._image: DeviceMemory | None = None
        self._samples = self._device.memory(GROUP * self._bytes)
        self._packed = {name: self._device.memory(GROUP * size) for name, size in packing.sizes.items()}
        for memory in self._packed.values():
            memory.fill(0, self.stream)  # a launch runs on what no photograph has come for, too
        small = [name for name, size in packing.sizes.items() if size <= SMALL]
        self._blocks = [self._device.page_locked(GROUP * packing.sizes[name]) for name in small]
        self._staged = dict(zip(small, self._blocks))
        """Of a group what is small, on its way up."""
        self._activations = self._device.memory(engine.activation_bytes)

    def is_uploaded(self) -> bool:
        """Whether the last group's memory isn't needed any more."""
        return self._uploaded.has_come()

    def settle(self) -> None:
        """Wait until the last group is uploaded, and give its memory back."""
        group, self._group = self._group, []
        if group:
            self._uploaded.synchronize()
            for given in group:
                given.release()

    def run(self, group: list[_Given], side: int) -> None:
        """Upload photographs, each into the corner of a square, and put their samples at their addresses.

        Raises:
            ExecutionError: TensorRT failed.
        """
        self._group = group
        count = next(count for count in COUNTS if count >= len(group))
        image = self._room(3 * side * side * count)
        photographs = [given.photograph for given in group]
        if not self._upload_together(photographs, side, image):
            for index, photograph in enumerate(photographs):
                self._upload(photograph, image + index * 3 * side * side, 3 * side)
        for name, size in self._packing.sizes.items():
            self._upload_small(name, size, photographs)
        self._uploaded.record()
        self._start(side, count, image)
        self._deliver([given.target for given in group])

    def warm(self, side: int) -> None:
        """Run a group of whatever is there, twice: the second time as a graph.

        Raises:
            ExecutionError: TensorRT failed.
        """
        image = self._room(3 * GROUP * GROUP_SIDE * GROUP_SIDE)
        for _ in range(2):
            self._start(side, GROUP, image)
        self.stream.synchronize()

    def _start(self, side: int, count: int, image: int) -> None:
        ready = self._ready.get(side, {}).get(count)
        if ready is None:
            self._enqueue(self._made(side, count), image)
        else:
            self._ready.move_to_end(side)
            self._launch(ready, image)

    def _upload_together(self, photographs: Sequence[Prepared | Laid], side: int, image: int) -> bool:
        """Upload the pixels of a group, each to the corner of its square, in one call; whether that can be done."""
        if self._copies is None:
            return False
        try:
            planes = [self._plane(photograph) for photograph in photographs]
            self._copies(planes, image, 3 * side * side, 3 * side, self._handle)
        except ExecutionError:
            self._copies = None
        return self._copies is not None

    def _plane(self, given: Prepared | Laid) -> tuple[int, int, int, int]:
        """Where a photograph lies: the address, bytes from row to row, rows and columns."""
        if isinstance(given, Laid):
            start = self._seen(given.memory).address + self._packing.bytes
            return start + given.at + given.offset, given.pitch, given.height, given.width
        image = given.image
        if isinstance(image, Plane):
            return image.address, image.pitch, image.height, image.width
        return int(image.ctypes.data), image.strides[0], image.shape[0], image.shape[1]

    def _seen(self, memory: NDArray[np.uint8]) -> _Seen:
        found = self._memories.get(id(memory))
        if found is None:
            found = self._memories[id(memory)] = _Seen(memory, int(memory.ctypes.data), memory.data)
        return found

    def _upload(self, given: Prepared | Laid, address: int, pitch: int) -> None:
        """Upload a photograph's pixels to the corner of its square."""
        if isinstance(given, Laid):
            shape, start = (given.height, given.width, 3), given.at + self._packing.bytes + given.offset
            pixels: NDArray[np.uint8] = np.ndarray(shape, np.uint8, given.memory, start, (given.pitch, 3, 1))
            self._copy.up(pixels, address, pitch, self.stream)
        elif isinstance(given.image, Plane):
            self._copy.across(given.image, address, pitch, self.stream)
        else:
            self._copy.up(given.image, address, pitch, self.stream)

    def _upload_small(self, name: str, size: int, photographs: Sequence[Prepared | Laid]) -> None:
        """Upload one of the inputs that belong to photographs: in one copy where it is small."""
        address, offset = self._packed[name].address, self._packing.offsets[name]
        parts = [self._part(photograph, offset, size) for photograph in photographs]
        staged = self._staged.get(name)
        if staged is None:
            for index, part in enumerate(parts):
                self._device.upload(address + index * size, np.frombuffer(part, np.uint8), self.stream)
            return
        count = len(parts) * size
        staged.data[:count] = b"".join(parts)
        self._device.upload(address, staged[:count], self.stream)

    def _part(self, given: Prepared | Laid, offset: int, size: int) -> memoryview:
        """Bytes of what is packed beside a photograph."""
        if isinstance(given, Laid):
            at = given.at + offset
            return self._seen(given.memory).bytes[at : at + size]
        return given.packed.data[offset : offset + size]

    def _launch(self, ready: _Ready, image: int) -> None:
        """As :meth:`_enqueue`, as a graph where there can be one."""
        if ready.graph is None and self._cuda_graphs:
            try:
                ready.graph = CudaGraph(self.stream, lambda: self._enqueue(ready, image))
            except ExecutionError as error:
                self._cuda_graphs = False
                note(f"{self._engine.path.name} runs without CUDA graphs: {error.problem}")
        if ready.graph is None:
            self._enqueue(ready, image)
        else:
            ready.graph.launch()

    def _enqueue(self, ready: _Ready, image: int) -> None:
        """Run the engine; its samples stay in the lane."""
        addresses = {name: memory.address for name, memory in self._packed.items()}
        addresses |= {"image": image, "positions": self._positions, OUTPUT: self._samples.address}
        self._engine.set_addresses(ready.context, addresses)
        if not ready.context.execute_async_v3(self._handle):
            raise ExecutionError(f"the preprocessor failed: {self._engine.complaint()}", "build it again")

    def _deliver(self, targets: Sequence[int]) -> None:
        """Copy the samples to their addresses: rows that follow each other in one go."""
        count, source, first = self._bytes, self._samples.address, 0
        for index in range(1, len(targets) + 1):
            if index == len(targets) or targets[index] != targets[index - 1] + count:
                self._device.copy(targets[first], source + first * count, (index - first) * count, self.stream)
                first = index

    def _made(self, side: int, count: int) -> _Ready:
        """A context for so many photographs in a square; the square that wasn't used for longest gives way."""
        if side not in self._ready and len(self._ready) >= MOST_CONTEXTS:
            self.stream.synchronize()
            self._forget(self._ready.popitem(last=False)[1])
        context = self._engine.context(profile_of(side), self.stream, self._activations)
        shapes = {"image": (count, side, side, 3), "positions": (1, 1, 1, side), **self._packing.shapes(count)}
        self._engine.set_shapes(context, shapes)
        ready = self._ready.setdefault(side, {})[count] = _Ready(context)
        return ready

    def _room(self, count: int) -> int:
        """Where the pixels go, so many bytes; graphs hold the address, and go when it changes."""
        if self._image is None or self._image.bytes < count:
            self.stream.synchronize()
            if self._image is not None:
                self._image.free()
            for ready in self._ready.values():
                self._forget(ready)
            self._image = self._device.memory(count)
        return self._image.address

    def _forget(self, made: dict[int, _Ready]) -> None:
        for ready in made.values():
            if ready.graph is not None:
                ready.graph.close()
            ready.graph = None

    def close(self) -> None:
        """Wait, and free what there is on the GPU."""
        self.stream.synchronize()
        self.settle()
        while self._ready:
            self._forget(self._ready.popitem()[1])
        for memory in (self._image, self._samples, self._activations, *self._packed.values()):
            if memory is not None:
                memory.free()
        self._staged = {}
        self._memories = {}
        while self._blocks:
            self._device.free_page_locked(self._blocks.pop())
        self.stream.close()
