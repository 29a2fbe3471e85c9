"""Photographs to rows of a model's input batch on the GPU, by a preprocessor engine: no copy between, no round trip.

Several lanes, each a stream with an execution context and room for one photograph, take turns, so that the upload of
one photograph runs beside the resizing of another and small kernels share the GPU. The coefficients of a side are
uploaded once, and stay.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch import optional
from trtbatch.backends.tensorrt import compat
from trtbatch.backends.tensorrt.buffers import CudaEvent, DeviceMemory
from trtbatch.backends.tensorrt.engine import TensorRTEngine
from trtbatch.errors import ExecutionError
from trtbatch.pixels import Arena
from trtbatch.preprocessing import Preprocessing
from trtbatch.preprocessor import OUTPUT, Operands, operands

__all__ = ["TensorRTPreprocessor"]

Array = NDArray[Any]

LANES = 4
"""At the most; fewer where their activations would take more than `LANES_BYTES`."""

LANES_BYTES = 1 << 30

COEFFICIENT_BYTES = 256 << 20
"""Of the coefficients that stay on the GPU."""

ALIGNMENT = 256
"""Bytes, of an address that TensorRT takes (``IExecutionContext::setTensorAddress``)."""


class TensorRTPreprocessor:
    """Fills rows of an input batch; opened, used and closed in one thread, whatever thread made it.

    Args:
        engine: of the preprocessor.
        recipe: that it follows.
        max_size: rows and columns of the largest photograph that it was built for.
    """

    def __init__(self, engine: TensorRTEngine, recipe: Preprocessing, max_size: int) -> None:
        self._engine = engine
        self._recipe = recipe
        self._max_size = max_size
        self._lanes: list[_Lane] = []
        self._next = 0
        self._coefficients: _Coefficients | None = None
        self.arena = Arena(engine.device.page_locked, engine.device.free_page_locked)
        """Memory for photographs, page-locked."""

    def open(self) -> None:
        """Make what runs it, in the thread that uses it.

        Raises:
            ExecutionError: out of GPU memory.
        """
        device = self._engine.device
        device.enter_thread()
        try:
            count = max(1, min(LANES, LANES_BYTES // max(1, self._engine.activation_bytes)))
            self._coefficients = _Coefficients(self._engine, self.arena, self._settle)
            for _ in range(count):
                self._lanes.append(_Lane(self._engine))
        except BaseException:
            self.close()
            raise

    def prepare(self, pixels: NDArray[np.uint8]) -> Operands:
        """What it takes of a photograph ``(H, W, 3)`` uint8; for any thread.

        Raises:
            InputError: not the pixels of a photograph.
        """
        return operands(self._recipe, pixels, self._max_size)

    def __call__(self, given: Operands, address: int, release: Callable[[], None] = lambda: None) -> None:
        """Put the sample of a photograph at an address of the GPU, when :meth:`done` says so.

        Args:
            release: called when the photograph's memory isn't needed any more.

        Raises:
            ExecutionError: TensorRT failed.
        """
        assert self._coefficients is not None, "opened"
        lane = self._lanes[self._next]
        self._next = (self._next + 1) % len(self._lanes)
        lane.settle()
        lane.hold(release)
        lane.upload(given.image)
        rows, columns = (self._coefficients.at(matrix, lane) for matrix in (given.rows, given.columns))
        lane.run(rows, columns, address)

    def sample(self, pixels: NDArray[np.uint8]) -> Array:
        """The sample of a photograph ``(H, W, 3)`` uint8, on the host; waits for it.

        Raises:
            InputError, ExecutionError: as :meth:`prepare`, and where TensorRT fails.
        """
        spec = self._engine.sidecar.outputs[0]
        found = np.empty([int(size) for size in spec.shape], spec.dtype)
        device = self._engine.device
        memory = device.memory(found.nbytes)
        try:
            self(self.prepare(pixels), memory.address)
            self._settle()
            lane = self._lanes[0]
            device.copies([(found, memory.address)]).down(lane.stream)
            lane.stream.synchronize()
        finally:
            memory.free()
        return found

    def events(self) -> list[CudaEvent]:
        """Marks for :meth:`done`, one for each lane."""
        return [lane.stream.event(timed=False) for lane in self._lanes]

    def done(self, events: Sequence[CudaEvent]) -> None:
        """Let the marks come when all that was asked for until now is done."""
        for event in events:
            event.record()

    def _settle(self) -> None:
        for lane in self._lanes:
            lane.stream.synchronize()

    def close(self) -> None:
        """Wait for what runs, and free what :meth:`open` made; photographs' memory goes back to the arena."""
        try:
            for lane in self._lanes:
                lane.close()
            if self._coefficients is not None:
                self._coefficients.close()
        finally:
            self._lanes, self._coefficients = [], None
            self._engine.device.leave_thread()

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
class _Kept:
    """A matrix, where it is on the GPU, and the lane that uploaded it, with a mark of when."""

    matrix: Array
    memory: DeviceMemory
    lane: _Lane
    uploaded: CudaEvent


class _Coefficients:
    """Matrices on the GPU, those used last kept; a matrix is known by its memory, which is kept with it."""

    def __init__(self, engine: TensorRTEngine, arena: Arena, settle: Callable[[], None]) -> None:
        self._device = engine.device
        self._arena = arena
        self._settle = settle
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._bytes = 0

    def at(self, matrix: Array, lane: _Lane) -> int:
        """The address of a matrix, there before what the lane does next; uploaded by the lane where it isn't."""
        key = id(matrix)
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = self._uploaded(matrix, lane)
        else:
            self._kept.move_to_end(key)
            if kept.lane is not lane:
                lane.stream.wait_for(kept.uploaded)
        return kept.memory.address

    def _uploaded(self, matrix: Array, lane: _Lane) -> _Kept:
        if self._bytes + matrix.nbytes > COEFFICIENT_BYTES:
            self._settle()  # they may be read just now
            while self._kept and self._bytes + matrix.nbytes > COEFFICIENT_BYTES // 2:  # not soon again
                _, old = self._kept.popitem(last=False)
                self._bytes -= old.matrix.nbytes
                old.memory.free()
        memory = self._device.memory(matrix.nbytes)
        self._bytes += matrix.nbytes
        block = self._arena.take(matrix.nbytes)
        there = block[: matrix.nbytes].view(matrix.dtype).reshape(matrix.shape)
        there[...] = matrix
        self._device.copies([(there, memory.address)]).up(lane.stream)
        lane.hold(lambda: self._arena.give(block))
        event = lane.stream.event(timed=False)
        event.record()
        return _Kept(matrix, memory, lane, event)

    def close(self) -> None:
        for kept in self._kept.values():
            kept.memory.free()
        self._kept.clear()


class _Lane:
    """One photograph on its way: a stream, a context with activations of its own, and room for the pixels."""

    def __init__(self, engine: TensorRTEngine) -> None:
        self._engine = engine
        self._device = engine.device
        self._spec = engine.sidecar.outputs[0]
        self._bytes = int(np.prod([int(size) for size in self._spec.shape])) * np.dtype(self._spec.dtype).itemsize
        self.stream = self._device.stream()
        self._handle = self.stream.handle
        self._copy = self._device.plane_copy()
        self._pixels: Array | None = None
        self._uploaded = self.stream.event(timed=False)
        self._image: DeviceMemory | None = None
        self._sample: DeviceMemory | None = None
        self._activations = self._device.memory(engine.activation_bytes)
        trt = optional.require("tensorrt", "run engines")
        with engine.lock:
            self._context = compat.create_context(trt, engine.cuda_engine, own_memory=False)
        if self._context is None:
            raise ExecutionError(f"TensorRT makes no execution context: {engine.complaint()}", "free GPU memory")
        compat.give_memory(self._context, self._activations.address, self._activations.bytes)
        self._context.set_optimization_profile_async(0, self._handle)
        self.stream.synchronize()
        self._shape: tuple[int, ...] = ()
        self._held: list[Callable[[], None]] = []

    def hold(self, release: Callable[[], None]) -> None:
        """Call it when what is uploaded until :meth:`run` is there."""
        self._held.append(release)

    def settle(self) -> None:
        """Wait until what was uploaded last is there, and give its memory back."""
        held, self._held = self._held, []
        if held:
            self._uploaded.synchronize()
        for release in held:
            release()

    def upload(self, image: NDArray[np.uint8]) -> None:
        """Begin to upload a photograph, or the part of it that is needed."""
        memory = self._room(image.nbytes)
        self._pixels = image  # alive until it is there
        self._copy.up(image, memory.address, self.stream)
        if image.shape != self._shape:
            self._set_shapes(image.shape)

    def run(self, rows: int, columns: int, target: int) -> None:
        """Put the sample of what was uploaded at an address, by the coefficients at two others."""
        self._uploaded.record()
        assert self._image is not None, "uploaded"
        aligned = target % ALIGNMENT == 0
        sample = target if aligned else self._sample_room().address
        addresses = {"image": self._image.address, "rows": rows, "columns": columns, OUTPUT: sample}
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise ExecutionError(
                    f"TensorRT refuses an address for {name}: {self._engine.complaint()}", "build again"
                )
        if not self._context.execute_async_v3(self._handle):
            raise ExecutionError(f"the preprocessor failed: {self._engine.complaint()}", "build it again")
        if not aligned:
            self._device.copy(target, sample, self._bytes, self.stream)

    def _room(self, count: int) -> DeviceMemory:
        if self._image is None or self._image.bytes < count:
            self.stream.synchronize()
            if self._image is not None:
                self._image.free()
            self._image = self._device.memory(count)
        return self._image

    def _sample_room(self) -> DeviceMemory:
        if self._sample is None:
            self._sample = self._device.memory(self._bytes)
        return self._sample

    def _set_shapes(self, shape: tuple[int, ...]) -> None:
        crop = {spec.name: int(spec.shape[0]) for spec in self._engine.sidecar.inputs if spec.name != "image"}
        shapes = {"image": shape, "rows": (crop["rows"], shape[0]), "columns": (crop["columns"], shape[1])}
        for name, wanted in shapes.items():
            if not self._context.set_input_shape(name, wanted):
                raise ExecutionError(
                    f"TensorRT refuses shape {wanted} for {name}: {self._engine.complaint()}", "build it again"
                )
        self._shape = shape

    def close(self) -> None:
        self.stream.synchronize()
        self.settle()
        self._context = None
        for memory in (self._image, self._sample, self._activations):
            if memory is not None:
                memory.free()
        self.stream.close()
