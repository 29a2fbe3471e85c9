"""Photographs to rows of a model's input batch on the GPU, by a preprocessor engine: no round trip to the host.

Several lanes, each a stream with room for a group of photographs, take turns, so that the upload of one runs beside the
resizing of another. What a photograph costs the host is what limits the rate: the engine's kernels launched one by one
take longer there than on the GPU. So each lane keeps CUDA graphs for each size, and sizes are few: a photograph lies in
the corner of the next of a few dozen, and nothing counts what is beside it. Small photographs go in groups of
:data:`GROUP`, all in the size that the largest needs: one graph runs the engine on each of them.
A graph writes where it was captured; its samples are then copied to the rows, on the GPU, which takes microseconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
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
from trtbatch.photographs.arena import Arena, aligned
from trtbatch.photographs.codec import Plane
from trtbatch.photographs.operands import Packing, operands
from trtbatch.photographs.record import OUTPUT, PreprocessorRecord
from trtbatch.preprocessing import Preprocessing

__all__ = ["TensorRTPreprocessor", "bucket"]

Array = NDArray[Any]
Size = tuple[int, int]

LANES = 2
"""At the most; fewer where their activations would take more than `LANES_SHARE`."""

LANES_SHARE = 16
"""Part of the free memory of the GPU that lanes' activations may take: one in so many."""

MOST_CONTEXTS = 32
"""Sizes that a lane keeps a context and graphs for."""

GROUP = 8
"""Photographs of one launch."""

GROUP_SIDE = 512
"""Rows and columns of the largest photographs that go in groups. A larger one keeps the host busy with decoding for
longer than its launch takes, and the GPU with what is beside the others."""

LEAST = 64
"""Rows and columns of the smallest size."""


def bucket(length: int, most: int) -> int:
    """The size in which a photograph with so many rows (or columns) lies: two steps to each power of two.

    Each lane makes a context and a graph for a size, which takes it as long as many photographs; to compute on what is
    beside one takes nothing that would show. So few sizes are better than close ones.
    """
    if length <= LEAST:
        return min(LEAST, most)
    step = 1 << max(0, (length - 1).bit_length() - 2)
    return min(most, -(-length // step) * step)


class Prepared(NamedTuple):
    """A photograph, or the part of it that is needed, and how it is resized, packed.

    Args:
        is_shared: other photographs have the same `packed`, which stays as it is.
    """

    image: NDArray[np.uint8] | Plane
    packed: NDArray[np.uint8]
    is_shared: bool = False


class _Given(NamedTuple):
    """A photograph, the address on the GPU that its sample is for, and what gives its memory back."""

    photograph: Prepared
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
        self._size: Size = (0, 0)
        """That its photographs need."""
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
            line = np.arange(self.record.max_size, dtype=np.float32)
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

    def prepare(self, pixels: NDArray[np.uint8], beside: NDArray[np.uint8]) -> Prepared:
        """What it takes of a photograph ``(H, W, 3)`` uint8, and of `beside` bytes; for any thread.

        Raises:
            InputError: not the pixels of a photograph.
        """
        given = operands(self.record.recipe, pixels, self.record.max_size)
        self._packing.fill(beside, given.rows, given.columns)
        return Prepared(given.image, beside)

    def prepare_plane(self, plane: Plane, packed: NDArray[np.uint8]) -> Prepared:
        """The same of the part of a photograph that is on the GPU, and what photographs of its size share."""
        return Prepared(plane, packed, is_shared=True)

    def prepared(self, image: NDArray[np.uint8], packed: NDArray[np.uint8]) -> Prepared:
        """The same of operands that are made and packed already."""
        return Prepared(image, packed)

    def lock(self, memory: NDArray[np.uint8]) -> Callable[[], None]:
        """Page-lock memory for photographs; what is returned undoes that, in any thread.

        Raises:
            ExecutionError: it can't be done.
        """
        return self._engine.device.page_lock(memory)

    def __call__(self, given: Prepared, address: int, release: Callable[[], None] = lambda: None) -> None:
        """Put the sample of a photograph at an address of the GPU, when :meth:`done` says so.

        Args:
            release: called when the photograph's memory isn't needed any more.

        Raises:
            ExecutionError: TensorRT failed.
        """
        rows, columns = given.image.shape[:2]
        size, one = (bucket(rows, self.max_size), bucket(columns, self.max_size)), _Given(given, address, release)
        if max(size) > GROUP_SIDE:
            self._run([one], size)
            return
        self._waiting.append(one)
        self._size = max(self._size[0], size[0]), max(self._size[1], size[1])
        if len(self._waiting) == GROUP:
            self._run_waiting()

    def _run_waiting(self) -> None:
        waiting, size = self._waiting, self._size
        self._waiting, self._size = [], (0, 0)
        if waiting:
            self._run(waiting, size)

    def _run(self, group: list[_Given], size: Size) -> None:
        lane = self._lanes[self._next]
        self._next = (self._next + 1) % len(self._lanes)
        lane.settle()
        lane.run(group, size)

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
    """A context that has one size, and graphs of its launches, by the number of photographs."""

    context: Any
    graphs: dict[int, CudaGraph] = field(default_factory=dict)


class _Lane:
    """A group of photographs on its way: a stream, room for the pixels, activations, and a context for each size."""

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
        self._step = aligned(self._bytes)
        """From sample to sample."""
        self._cuda_graphs = cuda_graphs
        self.stream = self._device.stream()
        self._handle = self.stream.handle
        self._copy = self._device.plane_copy()
        self._uploaded = self.stream.event(timed=False)
        self._group: list[_Given] = []
        """Uploaded last: their memory is given back when it is there."""
        self._shared: list[NDArray[np.uint8] | None] = [None] * GROUP
        """What is on the GPU already, where the next photograph may have the same."""
        self._ready: OrderedDict[Size, _Ready] = OrderedDict()
        self._image: DeviceMemory | None = None
        self._samples = self._device.memory(GROUP * self._step)
        self._packed = self._device.memory(GROUP * packing.bytes)
        self._packed.fill(0, self.stream)  # a graph runs on what no photograph has come for, too
        self._samples_at, self._packed_at = self._samples.address, self._packed.address
        self._activations = self._device.memory(engine.activation_bytes)

    def settle(self) -> None:
        """Wait until the last group is uploaded, and give its memory back."""
        group, self._group = self._group, []
        if group:
            self._uploaded.synchronize()
            for given in group:
                given.release()

    def run(self, group: list[_Given], size: Size) -> None:
        """Upload photographs, each into the corner of a size, and put their samples at their addresses.

        Raises:
            ExecutionError: TensorRT failed.
        """
        self._group = group
        step = aligned(3 * size[0] * size[1])
        count = 1 if len(group) == 1 else GROUP
        image = self._room(count * step)
        for index, given in enumerate(group):
            self._upload(index, given.photograph, image + index * step, 3 * size[1])
        self._uploaded.record()
        ready = self._ready.get(size)
        if ready is None:
            self._enqueue(self._made(size), image, step, len(group))
        else:
            self._ready.move_to_end(size)
            self._launch(ready, image, step, len(group), count)
        self._deliver([given.target for given in group])

    def _upload(self, index: int, given: Prepared, address: int, pitch: int) -> None:
        if isinstance(given.image, Plane):
            self._copy.across(given.image, address, pitch, self.stream)
        else:
            self._copy.up(given.image, address, pitch, self.stream)
        if given.is_shared and given.packed is self._shared[index]:
            return
        self._device.upload(self._packed_at + index * self._packing.bytes, given.packed, self.stream)
        self._shared[index] = given.packed if given.is_shared else None

    def _launch(self, ready: _Ready, image: int, step: int, photographs: int, count: int) -> None:
        """As :meth:`_enqueue`, as a graph of `count` where there can be one."""
        graph = ready.graphs.get(count)
        if graph is None and self._cuda_graphs:
            graph = self._captured(ready, image, step, count)
        if graph is None:
            self._enqueue(ready, image, step, photographs)
        else:
            graph.launch()

    def _captured(self, ready: _Ready, image: int, step: int, count: int) -> CudaGraph | None:
        """The graph of a launch; None, said once, where there is none."""
        try:
            graph = CudaGraph(self.stream, lambda: self._enqueue(ready, image, step, count))
        except ExecutionError as error:
            self._cuda_graphs = False
            note(f"{self._engine.path.name} runs without CUDA graphs: {error.problem}")
            return None
        ready.graphs[count] = graph
        return graph

    def _enqueue(self, ready: _Ready, image: int, step: int, count: int) -> None:
        """Run the engine on so many photographs, one after the other; their samples stay in the lane."""
        for index in range(count):
            packed = self._packed_at + index * self._packing.bytes
            addresses = {name: packed + offset for name, offset in self._packing.offsets.items()}
            addresses |= {"image": image + index * step, "down": self._positions, "across": self._positions}
            addresses[OUTPUT] = self._samples_at + index * self._step
            self._engine.set_addresses(ready.context, addresses)
            if not ready.context.execute_async_v3(self._handle):
                raise ExecutionError(f"the preprocessor failed: {self._engine.complaint()}", "build it again")

    def _deliver(self, targets: Sequence[int]) -> None:
        """Copy the samples to their addresses: rows that follow each other in one go."""
        first, count = targets[0], self._bytes
        if self._step == count and all(target == first + index * count for index, target in enumerate(targets)):
            self._device.copy(first, self._samples_at, len(targets) * count, self.stream)
            return
        for index, target in enumerate(targets):
            self._device.copy(target, self._samples_at + index * self._step, count, self.stream)

    def _made(self, size: Size) -> _Ready:
        """A context for a size; the one that wasn't used for longest gives way."""
        if len(self._ready) >= MOST_CONTEXTS:
            self.stream.synchronize()
            self._forget(self._ready.popitem(last=False)[1])
        context = self._engine.context(0, self.stream, self._activations)
        shapes = {"image": (*size, 3), "down": (1, size[0]), "across": (1, size[1]), **self._packing.shapes}
        self._engine.set_shapes(context, shapes)
        self._ready[size] = _Ready(context)
        return self._ready[size]

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

    def _forget(self, ready: _Ready) -> None:
        for graph in ready.graphs.values():
            graph.close()
        ready.graphs.clear()

    def close(self) -> None:
        """Wait, and free what there is on the GPU."""
        self.stream.synchronize()
        self.settle()
        while self._ready:
            self._forget(self._ready.popitem()[1])
        for memory in (self._image, self._samples, self._packed, self._activations):
            if memory is not None:
                memory.free()
        self.stream.close()
