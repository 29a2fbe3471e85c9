"""Photographs to rows of a model's input batch on the GPU, by a preprocessor engine: no round trip to the host.

Several lanes, each a stream with room for one photograph, take turns, so that the upload of one runs beside the
resizing of another and small kernels share the GPU. What a photograph costs the host is what limits the rate: the
engine's kernels launched one by one take longer there than on the GPU. So each lane keeps a CUDA graph for each size,
and sizes are few: a photograph lies in the corner of the next of a few dozen, and nothing counts what is beside it.
A graph writes where it was captured; its sample is then copied to the row, on the GPU, which takes a microsecond.
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
from trtbatch.photographs.arena import ALIGNMENT, Arena
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
"""Sizes that a lane keeps a context and a graph for."""

LEAST = 64
"""Rows and columns of the smallest size."""


def bucket(length: int, most: int) -> int:
    """The size in which a photograph with so many rows (or columns) lies: two steps to each power of two.

    A graph for a size takes a hundredth of a second in each lane, and computing on what is beside a photograph nothing
    that would show: few sizes are better than close ones.
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
            device.copies([(line, self._positions.address)]).up(stream)
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
        lane = self._lanes[self._next]
        self._next = (self._next + 1) % len(self._lanes)
        lane.settle()
        lane.release = release
        lane.run(given, address)

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
        for lane in self._lanes:
            lane.stream.synchronize()
            lane.settle()

    def events(self) -> list[CudaEvent]:
        """Marks for :meth:`done`, one for each lane."""
        return [lane.stream.event(timed=False) for lane in self._lanes]

    def done(self, events: Sequence[CudaEvent]) -> None:
        """Let the marks come when all that was asked for until now is done."""
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
    """A context that has one size, and, from the second photograph of it on, a graph of its launch."""

    context: Any
    graph: CudaGraph | None = None


class _Lane:
    """One photograph on its way: a stream, room for the pixels, activations, and a context for each size."""

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
        self._most = record.max_size
        self._bytes = bytes_of(record.output, tuple(map(int, record.output.shape)))
        self._cuda_graphs = cuda_graphs
        self.stream = self._device.stream()
        self._handle = self.stream.handle
        self._copy = self._device.plane_copy()
        self._uploaded = self.stream.event(timed=False)
        self._given: Prepared | None = None
        self._shared: NDArray[np.uint8] | None = None
        """What is on the GPU already, where the next photograph may have the same."""
        self.release: Callable[[], None] | None = None
        """Gives the memory of the photograph that was uploaded last back."""
        self._ready: OrderedDict[Size, _Ready] = OrderedDict()
        self._image: DeviceMemory | None = None
        self._sample = self._device.memory(self._bytes)
        self._packed = self._device.memory(packing.bytes)
        self._sample_at, self._packed_at = self._sample.address, self._packed.address
        self._activations = self._device.memory(engine.activation_bytes)

    def settle(self) -> None:
        """Wait until the last photograph is uploaded, and give its memory back."""
        release, self.release = self.release, None
        if release is not None:
            self._uploaded.synchronize()
            release()
        self._given = None

    def run(self, given: Prepared, target: int) -> None:
        """Upload a photograph and put its sample at an address.

        Raises:
            ExecutionError: TensorRT failed.
        """
        rows, columns = given.image.shape[:2]
        size = bucket(rows, self._most), bucket(columns, self._most)
        image = self._room(size)
        self._given = given  # alive until it is there
        if isinstance(given.image, Plane):
            self._copy.across(given.image, image, 3 * size[1], self.stream)
        else:
            self._copy.up(given.image, image, 3 * size[1], self.stream)
        if not given.is_shared or given.packed is not self._shared:
            self._shared = None
            self._device.upload(self._packed_at, given.packed, self.stream)
            self._shared = given.packed if given.is_shared else None
        self._uploaded.record()
        ready = self._ready.get(size)
        if ready is None:
            self._enqueue(self._made(size), target)
            return
        self._ready.move_to_end(size)
        if ready.graph is None and self._cuda_graphs:
            ready.graph = self._captured(ready)
        if ready.graph is None:
            self._enqueue(ready, target)
        else:
            ready.graph.launch()
            self._device.copy(target, self._sample_at, self._bytes, self.stream)

    def _captured(self, ready: _Ready) -> CudaGraph | None:
        """The graph of a launch that leaves the sample in the lane; None, said once, where there is none."""
        self._set(ready, self._sample.address)
        try:
            return CudaGraph(self.stream, lambda: self._execute(ready))
        except ExecutionError as error:
            self._cuda_graphs = False
            note(f"{self._engine.path.name} runs without CUDA graphs: {error.problem}")
            return None

    def _enqueue(self, ready: _Ready, target: int) -> None:
        aligned = target % ALIGNMENT == 0
        self._set(ready, target if aligned else self._sample.address)
        self._execute(ready)
        if not aligned:
            self._device.copy(target, self._sample.address, self._bytes, self.stream)

    def _set(self, ready: _Ready, sample: int) -> None:
        assert self._image is not None, "there is a photograph"
        packed = {name: self._packed.address + offset for name, offset in self._packing.offsets.items()}
        addresses = {"image": self._image.address, "down": self._positions, "across": self._positions, OUTPUT: sample}
        self._engine.set_addresses(ready.context, {**packed, **addresses})

    def _execute(self, ready: _Ready) -> None:
        if not ready.context.execute_async_v3(self._handle):
            raise ExecutionError(f"the preprocessor failed: {self._engine.complaint()}", "build it again")

    def _made(self, size: Size) -> _Ready:
        """A context for a size; the one that wasn't used for longest gives way."""
        if len(self._ready) >= MOST_CONTEXTS:
            self.stream.synchronize()
            self._drop(self._ready.popitem(last=False)[1])
        context = self._engine.context(0, self.stream, self._activations)
        shapes = {"image": (*size, 3), "down": (1, size[0]), "across": (1, size[1]), **self._packing.shapes}
        self._engine.set_shapes(context, shapes)
        self._ready[size] = _Ready(context)
        return self._ready[size]

    def _room(self, size: Size) -> int:
        """Where the pixels go; graphs hold the address, and go when it changes."""
        count = 3 * size[0] * size[1]
        if self._image is None or self._image.bytes < count:
            self.stream.synchronize()
            if self._image is not None:
                self._image.free()
            for ready in self._ready.values():
                self._forget(ready)
            self._image = self._device.memory(count)
        return self._image.address

    def _forget(self, ready: _Ready) -> None:
        if ready.graph is not None:
            ready.graph.close()
            ready.graph = None

    def _drop(self, ready: _Ready) -> None:
        self._forget(ready)
        ready.context = None

    def close(self) -> None:
        """Wait, and free what there is on the GPU."""
        self.stream.synchronize()
        self.settle()
        while self._ready:
            self._drop(self._ready.popitem()[1])
        for memory in (self._image, self._sample, self._packed, self._activations):
            if memory is not None:
                memory.free()
        self.stream.close()
