"""Run batches on a TensorRT engine, one after the other or several in flight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import Event, Mode, batch_of, conform
from trtbatch.backends.tensorrt.buffers import Device, DeviceMemory, entering
from trtbatch.backends.tensorrt.contexts import Contexts
from trtbatch.backends.tensorrt.deserialized import DeserializedEngine
from trtbatch.backends.tensorrt.slots import TensorRTSlot, bytes_of
from trtbatch.core.batches import refuse_no_profile
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import ExecutionError

__all__ = ["TensorRTSession"]

Array = NDArray[Any]

ALIGNMENT = 256
"""Alignment in bytes that TensorRT requires of an address (``IExecutionContext::setTensorAddress``)."""

IN_FLIGHT = 3
"""Batches that keep the GPU busy: one uploads, one computes, one downloads."""


class TensorRTSession:
    """Run batches in slots over the execution contexts of an engine.

    Any thread may use it, and two threads must not use it at once. Each call makes the GPU's context current, and
    leaves the thread's context as it was.
    """

    in_flight = IN_FLIGHT

    def __init__(self, engine: DeserializedEngine, cuda_graphs: bool = True) -> None:
        self._engine = engine
        self._is_open = True
        self.device: Device = engine.device
        self.inputs = engine.sidecar.inputs
        self.outputs = engine.sidecar.outputs
        self._flushed: DeviceMemory | None = None
        self._slots: list[TensorRTSlot] = []
        self.contexts = Contexts(engine, cuda_graphs)
        try:
            self._own = self.slot()
        except BaseException:
            self.close()
            raise

    def slot(self, spins: bool = True) -> TensorRTSlot:
        """Return a slot; see :class:`trtbatch.backends.base.Session`."""
        made = TensorRTSlot(self.contexts, spins)
        self._slots.append(made)
        return made

    def use_profile(self, profile: int | None) -> None:
        """Set the profile; see :class:`trtbatch.backends.base.Session`."""
        refuse_no_profile(self._engine.sidecar.engine.profiles, profile, self._engine.path.name)
        self.contexts.forced = profile

    @property
    def gpu(self) -> int:
        """Return the index of the GPU."""
        return self.device.index

    @property
    def stream(self) -> int:
        """Return the handle of the computing stream."""
        return self.contexts.computing.handle

    def device_memory(self, count: int) -> DeviceMemory:
        """Return GPU memory of `count` bytes, freed with its last reference, in whichever thread drops that."""
        return self.device.memory(count)

    @entering
    def run_at(self, addresses: Mapping[str, int], batch: int) -> None:
        """Run a batch on inputs and outputs at these GPU addresses, and wait for the end.

        A binding whose address isn't a multiple of :data:`ALIGNMENT` is copied on the GPU.

        Raises:
            ProfileError: no profile holds the batch.
            ExecutionError: an output's shape depends on the data, or the run failed.
        """
        if any(_depends_on_data(spec) for spec in self.outputs):
            raise ExecutionError(
                f"{self._engine.path.name} has outputs whose shape depends on the data", "give it numpy arrays"
            )
        contexts = self.contexts
        context = contexts.context(contexts.pick(batch))
        contexts.set_shapes(context, {spec.name: tuple(int(size) for size in spec.at(batch)) for spec in self.inputs})
        astray = [spec for spec in (*self.inputs, *self.outputs) if addresses[spec.name] % ALIGNMENT]
        sizes = {spec.name: bytes_of(spec, tuple(map(int, spec.at(batch)))) for spec in astray}
        rooms = {name: self.device.memory(size) for name, size in sizes.items()}
        try:
            for spec in self.inputs:
                if spec.name in rooms:
                    place = rooms[spec.name].address
                    self.device.copy(place, addresses[spec.name], sizes[spec.name], contexts.computing)
            contexts.set_addresses(context, {**addresses, **{name: room.address for name, room in rooms.items()}})
            contexts.enqueue(context)
            for spec in self.outputs:
                if spec.name in rooms:
                    place = rooms[spec.name].address
                    self.device.copy(addresses[spec.name], place, sizes[spec.name], contexts.computing)
            contexts.computing.synchronize()
        finally:
            for room in rooms.values():
                room.free()

    @entering
    def bind(self, inputs: Mapping[str, Array]) -> None:
        """Bind the inputs; see :class:`trtbatch.backends.base.Session`."""
        batch = batch_of(inputs, self.inputs)
        arrays = {spec.name: conform(inputs[spec.name], spec) for spec in self.inputs}
        room = self._own.prepare(batch)
        for name, array in arrays.items():
            np.copyto(room[name], array)
        self._own.activate(self._own.now)
        self._own.upload()

    @entering
    def run(self) -> None:
        """Run what is bound; see :class:`trtbatch.backends.base.Session`."""
        self._own.enqueue()
        self.contexts.computing.synchronize()

    @entering
    def _execute(self) -> None:
        prepared = self._own.now
        if not self.contexts.is_active(prepared.profile, prepared):
            self._own.activate(prepared)
        self._engine.forget_complaints()
        if not prepared.context.execute_v2(prepared.pointers):
            raise ExecutionError(f"execute_v2 failed: {self._engine.complaint()}", "build the engine again")

    def _launch_graph(self) -> None:
        if not self._own.launch(capture=True):
            raise ExecutionError(
                f"{self._engine.path.name} can't run as a CUDA graph", "use `modes=['async']`, or execute_v2"
            )

    @entering
    def fetch(self) -> dict[str, Array]:
        """Return copies of the outputs; see :class:`trtbatch.backends.base.Session`."""
        return {name: array.copy() for name, array in self._own.download().items()}

    def bound(self) -> dict[str, Array]:
        """Return copies of the bound inputs; see :class:`trtbatch.backends.base.Session`."""
        return {name: array.copy() for name, array in self._own.now.inputs.items()}

    def poison(self, pattern: int) -> None:
        """Fill the output buffers; see :class:`trtbatch.backends.base.Session`."""
        self._own.poison(pattern)

    def modes(self) -> dict[str, Mode]:
        """Return ``execute_v2``, ``async``, ``graph`` where possible; see :class:`trtbatch.backends.base.Session`."""
        new_event: Callable[[], Event] = self.contexts.computing.event
        timed = "one execute_async_v3 between two CUDA events on a busy stream, inputs on the GPU"
        modes = {"async": Mode("async", timed, self._own.enqueue, new_event)}
        if self._own.now.later:  # execute_v2 has no way to ask for memory
            return modes
        if self._own.may_be_graph:
            timed = "one launch of a CUDA graph between two CUDA events on a busy stream, inputs on the GPU"
            modes["graph"] = Mode("graph", timed, self._launch_graph, new_event)
        timed = "one synchronous execute_v2, wall time per call, inputs on the GPU"
        return {"execute_v2": Mode("execute_v2", timed, self._execute), **modes}

    @entering
    def flush(self) -> None:
        """Overwrite memory of twice the L2 cache's size on the computing stream."""
        if self._flushed is None:
            self._flushed = self.device.memory(2 * self.device.cache_bytes)
        self._flushed.fill(0, self.contexts.computing)

    def close(self) -> None:
        """Free the session's memory; see :class:`trtbatch.backends.base.Session`."""
        if self._is_open:
            self._is_open = False
            self._free()

    @entering
    def _free(self) -> None:
        """Free what the session has on the GPU, all of it; a GPU fault on the way is raised at the end."""
        with ExitStack() as steps:  # runs every step, in reverse order
            steps.callback(self.contexts.close)
            if self._flushed is not None:
                steps.callback(self._flushed.free)
            for slot in self._slots:
                steps.callback(slot.free)
            steps.callback(self.contexts.clear)

    def __enter__(self) -> TensorRTSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _depends_on_data(spec: TensorSpec) -> bool:
    """Return whether an axis besides the batch is open: the inputs' are fixed, so only the data can decide its size."""
    return any(isinstance(size, str) for axis, size in enumerate(spec.shape) if axis != spec.batch_axis)
