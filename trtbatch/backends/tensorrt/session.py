"""A session: batches on a TensorRT engine, one after the other or several in flight, from one thread."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import Event, Mode, batch_of, conform
from trtbatch.backends.tensorrt.buffers import DeviceMemory
from trtbatch.backends.tensorrt.contexts import Contexts
from trtbatch.backends.tensorrt.deserialized import DeserializedEngine
from trtbatch.backends.tensorrt.slots import TensorRTSlot, bytes_of
from trtbatch.core.batches import refuse_no_profile
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import ExecutionError

__all__ = ["TensorRTSession"]

Array = NDArray[Any]

ALIGNMENT = 256
"""Bytes, of an address that TensorRT takes (``IExecutionContext::setTensorAddress``)."""

IN_FLIGHT = 3
"""Batches that keep the GPU busy: one goes up, one is computed, one comes down."""


class TensorRTSession:
    """Run batches in slots over the execution contexts of an engine.

    A session is made, used and closed in one thread; other threads have sessions of their own.
    """

    in_flight = IN_FLIGHT

    def __init__(self, engine: DeserializedEngine, cuda_graphs: bool = True) -> None:
        self._engine = engine
        self._is_open = True
        self.contexts = Contexts(engine, cuda_graphs)
        self.inputs = engine.sidecar.inputs
        self.outputs = engine.sidecar.outputs
        self._flushed: DeviceMemory | None = None
        self._slots: list[TensorRTSlot] = []
        try:
            self._own = self.slot()
        except BaseException:
            self.close()
            raise

    def slot(self, spins: bool = True) -> TensorRTSlot:
        made = TensorRTSlot(self.contexts, spins)
        self._slots.append(made)
        return made

    def use_profile(self, profile: int | None) -> None:
        refuse_no_profile(self._engine.sidecar.profiles, profile, self._engine.path.name)
        self.contexts.forced = profile

    @property
    def gpu(self) -> int:
        """Number of the GPU."""
        return self.contexts.device.index

    @property
    def stream(self) -> int:
        """Handle of the stream that computes."""
        return self.contexts.computing.handle

    def device_memory(self, count: int) -> DeviceMemory:
        """So many bytes on the GPU, freed when they are collected."""
        return self.contexts.device.memory(count)

    def run_at(self, addresses: Mapping[str, int], batch: int) -> None:
        """Run a batch on bindings that lie at these addresses of the GPU, inputs and outputs, and wait for the end.

        What doesn't lie where TensorRT takes it (at multiples of `ALIGNMENT`) is copied, on the GPU.

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
        rooms = {name: contexts.device.memory(size) for name, size in sizes.items()}
        try:
            for spec in self.inputs:
                if spec.name in rooms:
                    place = rooms[spec.name].address
                    contexts.device.copy(place, addresses[spec.name], sizes[spec.name], contexts.computing)
            contexts.set_addresses(context, {**addresses, **{name: room.address for name, room in rooms.items()}})
            contexts.enqueue(context)
            for spec in self.outputs:
                if spec.name in rooms:
                    place = rooms[spec.name].address
                    contexts.device.copy(addresses[spec.name], place, sizes[spec.name], contexts.computing)
            contexts.computing.synchronize()
        finally:
            for room in rooms.values():
                room.free()

    def bind(self, inputs: Mapping[str, Array]) -> None:
        batch = batch_of(inputs, self.inputs)
        arrays = {spec.name: conform(inputs[spec.name], spec) for spec in self.inputs}
        room = self._own.prepare(batch)
        for name, array in arrays.items():
            np.copyto(room[name], array)
        self._own.activate(self._own.now)
        self._own.upload()

    def run(self) -> None:
        self._own.enqueue()
        self.contexts.computing.synchronize()

    def _execute(self) -> None:
        prepared = self._own.now
        if not self.contexts.is_active(prepared.profile, prepared):
            self._own.activate(prepared)
        if not prepared.context.execute_v2(prepared.pointers):
            raise ExecutionError(f"execute_v2 failed: {self._engine.complaint()}", "build the engine again")

    def _launch_graph(self) -> None:
        self._own.launch()
        if not self.contexts.uses_graphs:
            raise ExecutionError(
                f"{self._engine.path.name} can't run as a CUDA graph", "use `modes=['async']`, or execute_v2"
            )

    def fetch(self) -> dict[str, Array]:
        return {name: array.copy() for name, array in self._own.download().items()}

    def bound(self) -> dict[str, Array]:
        return dict(self._own.now.inputs)

    def poison(self, pattern: int) -> None:
        self._own.poison(pattern)

    def modes(self) -> dict[str, Mode]:
        event: Any = self.contexts.computing.event
        new_event: type[Event] = event
        timed = "one execute_async_v3 between two CUDA events on a busy stream, inputs on the GPU"
        modes = {"async": Mode("async", timed, self._own.enqueue, new_event)}
        if self._own.now.later:  # execute_v2 has no way to ask for memory
            return modes
        if self.contexts.uses_graphs:
            timed = "one launch of a CUDA graph between two CUDA events on a busy stream, inputs on the GPU"
            modes["graph"] = Mode("graph", timed, self._launch_graph, new_event)
        timed = "one synchronous execute_v2, wall time per call, inputs on the GPU"
        return {"execute_v2": Mode("execute_v2", timed, self._execute), **modes}

    def flush(self) -> None:
        """Write over as much memory as the L2 cache holds twice, on the computing stream."""
        if self._flushed is None:
            self._flushed = self.contexts.device.memory(2 * self.contexts.device.cache_bytes)
        self._flushed.fill(0, self.contexts.computing)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._free()

    def _free(self) -> None:
        """Free what the session has on the GPU; a fault that shows meanwhile is raised at the end."""
        with ExitStack() as steps:  # runs all of them, from the last one up
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
    """Whether an axis beside the batch is open: all those of inputs are fixed, so only the data can decide it."""
    return any(isinstance(size, str) for axis, size in enumerate(spec.shape) if axis != spec.batch_axis)
