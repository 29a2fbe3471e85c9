"""A TensorRT engine: deserialised once, run through sessions with one execution context per profile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import Description, Event, Mode, batch_of, conform
from trtbatch.backends.tensorrt import compat
from trtbatch.backends.tensorrt.buffers import Device, DeviceMemory, Stream
from trtbatch.backends.tensorrt.graphs import CudaGraph, GraphCache
from trtbatch.backends.tensorrt.rows import GpuRows
from trtbatch.backends.tensorrt.slots import Prepared, TensorRTSlot, bytes_of
from trtbatch.core.batches import refuse_no_profile, refuse_outside
from trtbatch.core.hints import build_line
from trtbatch.core.sidecar import Artifact
from trtbatch.core.store import record_file
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import ArtifactError, ExecutionError
from trtbatch.util import optional
from trtbatch.util.log import note

__all__ = ["TensorRTEngine", "TensorRTSession"]

Array = NDArray[Any]

MOST_GRAPH_CONTEXTS = 32
"""Contexts of one batch size each that graphs are captured from; each holds some megabytes on the GPU."""

ALIGNMENT = 256
"""Bytes, of an address that TensorRT takes (``IExecutionContext::setTensorAddress``)."""

IN_FLIGHT = 3
"""Batches that keep the GPU busy: one goes up, one is computed, one comes down."""


class TensorRTEngine:
    """A deserialised engine on the GPU's primary context. Close its sessions before it."""

    def __init__(self, artifact: Artifact, device: int = 0, weights: Path | None = None) -> None:
        trt = optional.require("tensorrt", "run engines")
        self.sidecar = artifact.sidecar
        self.path = artifact.path
        self.complaints: list[str] = []
        self.lock = threading.Lock()
        self.device = Device(device)
        self._logger = compat.make_logger(trt, self._log)
        self._runtime: Any = trt.Runtime(self._logger)
        if self.sidecar.options.get("version_compatible"):
            self._runtime.engine_host_code_allowed = True  # such a plan brings its own runtime
        self.cuda_engine: Any = self._runtime.deserialize_cuda_engine(artifact.path.read_bytes())
        if self.cuda_engine is None:
            reason = self.complaint()
            self.close()
            raise ArtifactError(
                f"TensorRT can't load {artifact.path}: {reason}", f"build it again: {build_line(artifact)}"
            )
        self._refuse_strange_bindings()
        if self.sidecar.options.get("strip_weights"):
            self._refit(trt, weights or _onnx_of(artifact))
        if self.sidecar.options.get("weight_streaming"):
            compat.stream_weights(self.cuda_engine)

    def _refit(self, trt: Any, onnx: Path) -> None:
        """Give a stripped engine its weights.

        Raises:
            ArtifactError: TensorRT can't take them from the ONNX file.
        """
        failed = compat.refit(trt, self.cuda_engine, self._logger, str(onnx.resolve()))
        if failed is not None:
            reason = f"{failed} ({self.complaint()})"
            self.close()
            raise ArtifactError(
                f"{self.path} holds no weights, and can't be given those of {onnx}: {reason}", "build it again"
            )

    def _log(self, severity: str, message: str) -> None:
        if severity in ("INTERNAL_ERROR", "ERROR"):
            self.complaints.append(" ".join(message.split()))

    def complaint(self) -> str:
        """TensorRT's last error, as it said it."""
        return self.complaints[-1] if self.complaints else "it gave no reason"

    def _refuse_strange_bindings(self) -> None:
        engine = self.cuda_engine
        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        known = {spec.name for spec in (*self.sidecar.inputs, *self.sidecar.outputs)}
        if names != known:
            self.close()
            raise ArtifactError(
                f"{self.path} has the bindings {sorted(names)}, its sidecar {sorted(known)}", "run: trtbatch build"
            )

    def row_writer(self) -> GpuRows:
        """Return what writes rows of input batches on this GPU from another thread."""
        return GpuRows(self.device)

    @property
    def activation_bytes(self) -> int:
        """Device memory of one execution context."""
        return compat.device_memory(self.cuda_engine)

    def context(self, profile: int, stream: Stream, activations: DeviceMemory) -> Any:
        """An execution context of a profile, selected on `stream`, that keeps its activations in this memory.

        Raises:
            ExecutionError: out of memory, or TensorRT refuses.
        """
        trt = optional.require("tensorrt", "run engines")
        with self.lock:  # two threads that make contexts at once get each other's errors
            context = compat.create_context(trt, self.cuda_engine)
        if context is None:
            raise ExecutionError(
                f"TensorRT makes no execution context: {self.complaint()}",
                "free GPU memory (nvidia-smi shows who holds it), or build with a smaller --max",
            )
        compat.give_memory(context, activations.address, activations.bytes)
        if not context.set_optimization_profile_async(profile, stream.handle):
            raise ExecutionError(f"profile {profile} can't be selected: {self.complaint()}", "build again")
        stream.synchronize()
        return context

    def set_shapes(self, context: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Give a context its input shapes.

        Raises:
            ExecutionError: TensorRT refuses one.
        """
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise ExecutionError(
                    f"TensorRT refuses shape {shape} for {name}: {self.complaint()}", "check the inputs"
                )

    def set_addresses(self, context: Any, addresses: Mapping[str, int]) -> None:
        """Tell a context where its bindings are on the GPU.

        Raises:
            ExecutionError: TensorRT refuses one.
        """
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise ExecutionError(
                    f"TensorRT refuses the address {address:#x} for {name}: {self.complaint()}",
                    "give it memory of the engine's own GPU",
                )

    def session(self, cuda_graphs: bool = True) -> TensorRTSession:
        return TensorRTSession(self, cuda_graphs)

    def describe(self) -> Description:
        trt, engine = optional.require("tensorrt", "run engines"), self.cuda_engine
        facts: dict[str, str] = {}
        profiles: list[str] = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            shape = [int(size) for size in engine.get_tensor_shape(name)]
            shape = self._opened(name, shape)
            sizes = ", ".join("?" if size < 0 else str(size) for size in shape)
            dtype = compat.dtype_name(engine.get_tensor_dtype(name))
            facts[f"{'input' if is_input else 'output'} {name}"] = f"({sizes}) {dtype}"
            if is_input and not profiles:
                spec = next((spec for spec in self.sidecar.inputs if spec.name == name), None)
                axis = spec.batch_axis if spec is not None else None
                if axis is not None and axis < len(shape):
                    profiles = [_profile(engine, name, axis, each) for each in range(engine.num_optimization_profiles)]
        if profiles:
            facts["profiles"] = ", ".join(profiles)
        facts["device memory"] = f"{self.activation_bytes:,} bytes of activations"
        return Description(facts, compat.layers(trt, engine))

    def _opened(self, name: str, shape: list[int]) -> list[int]:
        """An output's shape with its batch open: TensorRT tells that of the first profile, 1 where that is 1:1:1."""
        spec = next((spec for spec in self.sidecar.outputs if spec.name == name), None)
        axis = None if spec is None else spec.batch_axis
        first = self.sidecar.profiles[0]
        alone = spec is not None and spec.fixed_batch is None and first.min == first.max
        if axis is not None and alone and axis < len(shape) and shape[axis] == first.max:
            return [-1 if index == axis else size for index, size in enumerate(shape)]
        return shape

    def close(self) -> None:
        self.cuda_engine = None
        self._runtime = None
        self.device.close()

    def __enter__(self) -> TensorRTEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _onnx_of(artifact: Artifact) -> Path:
    """The ONNX file that holds a stripped engine's weights; its hash is checked.

    Raises:
        ArtifactError: it is gone, or has changed.
    """
    sidecar = artifact.sidecar
    record = sidecar.converted or sidecar.source
    if record is None:
        raise ArtifactError(f"{artifact.path} holds no weights, and doesn't say whose", "build it again")
    places = [artifact.path.with_name(record.file), artifact.path.parent / (sidecar.source_path or record.file)]
    for place in places:
        if place.is_file() and record_file(place).sha256 == record.sha256:
            return place
    raise ArtifactError(
        f"{artifact.path} holds no weights; they are in {record.file}, which isn't in {artifact.path.parent}",
        "put that file there, or build without --strip-weights",
    )


def _depends_on_data(spec: TensorSpec) -> bool:
    """Whether an axis beside the batch is open: all those of inputs are fixed, so only the data can decide it."""
    return any(isinstance(size, str) for axis, size in enumerate(spec.shape) if axis != spec.batch_axis)


def _profile(engine: Any, name: str, axis: int, profile: int) -> str:
    """``min:opt:max`` of an input's batch axis, as the engine has it."""
    return ":".join(str(int(shape[axis])) for shape in engine.get_tensor_profile_shape(name, profile))


class TensorRTSession:
    """One execution context per profile, sharing one block of activation memory; streams; slots; CUDA graphs.

    A context is made when its profile is first needed: switching the profile of one costs milliseconds. All of them
    compute on one stream, one after the other, so that one block of memory, of the largest profile's size, serves
    them all. A session is made, used and closed in one thread; other threads have sessions of their own.
    """

    in_flight = IN_FLIGHT

    def __init__(self, engine: TensorRTEngine, cuda_graphs: bool = True) -> None:
        self._engine = engine
        self._is_open = True
        self._exit = ExitStack()  # undone from the end, whatever fails on the way
        engine.device.enter_thread()
        self._exit.callback(engine.device.leave_thread)
        self.device = engine.device
        self.inputs = engine.sidecar.inputs
        self.outputs = engine.sidecar.outputs
        self.forced: int | None = None
        self.uses_graphs = cuda_graphs
        self.graphs = GraphCache()
        self.open_outputs: set[str] = set()
        """Names of the outputs whose shape depends on the data, as TensorRT told them before the first run."""
        self.failure: ExecutionError | None = None
        """What went wrong in a call from TensorRT, which must not see it."""
        self._contexts: dict[int, Any] = {}
        self._graph_contexts: dict[tuple[int, tuple[tuple[str, tuple[int, ...]], ...]], Any] = {}
        self._active: dict[int, Prepared | None] = {}
        self._allocators: dict[tuple[int, str], Any] = {}
        self._activations: DeviceMemory | None = None
        self._flushed: DeviceMemory | None = None
        self._slots: list[TensorRTSlot] = []
        try:
            self.computing, self.uploading, self.downloading = (self._stream() for _ in range(3))
            self._exit.callback(self._free)
            self._handle = self.computing.handle
            self._own = self.slot()
        except BaseException:
            self.close()
            raise

    def _stream(self) -> Stream:
        made = self.device.stream()
        self._exit.callback(made.close)
        return made

    @property
    def cuda_engine(self) -> Any:
        """The engine as TensorRT has it."""
        return self._engine.cuda_engine

    def slot(self, spins: bool = True) -> TensorRTSlot:
        made = TensorRTSlot(self, spins)
        self._slots.append(made)
        return made

    def use_profile(self, profile: int | None) -> None:
        refuse_no_profile(self._engine.sidecar.profiles, profile, self._engine.path.name)
        self.forced = profile

    def pick(self, batch: int) -> int:
        """The profile that runs a batch now.

        Raises:
            ProfileError: none does.
        """
        sidecar, forced = self._engine.sidecar, self.forced
        allowed = sidecar.profiles if forced is None else (sidecar.profiles[forced],)
        refuse_outside(allowed, [batch], self._engine.path.name)
        found = sidecar.profile_for(batch) if forced is None else forced
        assert found is not None, "refuse_outside raises where no profile fits"
        return found

    def context(self, profile: int) -> Any:
        """The execution context of a profile.

        Raises:
            ExecutionError: out of memory, or TensorRT makes none.
        """
        if profile not in self._contexts:
            self._contexts[profile] = self._made(profile)
        return self._contexts[profile]

    def graph_context(self, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """A context of a profile for these shapes alone, for graphs to be captured from.

        Raises:
            ExecutionError: out of memory, or TensorRT refuses.
        """
        key = (profile, tuple(shapes.items()))
        if key not in self._graph_contexts:
            if len(self._graph_contexts) >= MOST_GRAPH_CONTEXTS:
                self.computing.synchronize()
                self.graphs.close()
                self._graph_contexts.clear()
            context = self._made(profile)
            self.set_shapes(context, shapes)
            self._graph_contexts[key] = context
        return self._graph_contexts[key]

    def _made(self, profile: int) -> Any:
        if self._activations is None:
            self._activations = self.device.memory(self._engine.activation_bytes)
        return self._engine.context(profile, self.computing, self._activations)

    def set_shapes(self, context: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Give a context its input shapes.

        Raises:
            ExecutionError: TensorRT refuses one.
        """
        self._engine.set_shapes(context, shapes)
        for profile, known in self._contexts.items():
            if known is context:
                self._active[profile] = None  # until its addresses are set too

    def set_addresses(self, context: Any, addresses: Mapping[str, int]) -> None:
        """Tell a context where its bindings are on the GPU.

        Raises:
            ExecutionError: TensorRT refuses one.
        """
        self._engine.set_addresses(context, addresses)

    def is_active(self, prepared: Prepared) -> bool:
        """Whether its context has its shapes and addresses now."""
        return self._active.get(prepared.profile) is prepared

    def set_active(self, prepared: Prepared) -> None:
        self._active[prepared.profile] = prepared

    def deactivate(self, prepared: Prepared) -> None:
        if self.is_active(prepared):
            self._active[prepared.profile] = None

    def keep(self, context: Any, name: str, allocator: Any) -> None:
        """Hold an output allocator as long as its context."""
        self._allocators[id(context), name] = allocator

    def enqueue(self, context: Any) -> None:
        """Put a context's work on the computing stream.

        Raises:
            ExecutionError: TensorRT refuses.
        """
        done = context.execute_async_v3(self._handle)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if not done:
            raise ExecutionError(f"execute_async_v3 failed: {self._engine.complaint()}", "build the engine again")

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph:
        """A graph of what is put on the computing stream.

        Raises:
            ExecutionError: it can't be captured.
        """
        return CudaGraph(self.computing, enqueue)

    def run_without_graphs(self, why: str) -> None:
        """From now on launch kernel by kernel; said once."""
        if self.uses_graphs:
            self.uses_graphs = False
            note(f"{self._engine.path.name} runs without CUDA graphs: {why}")

    @property
    def gpu(self) -> int:
        """Number of the GPU."""
        return self.device.index

    @property
    def stream(self) -> int:
        """Handle of the stream that computes."""
        return self._handle

    def device_memory(self, count: int) -> DeviceMemory:
        """So many bytes on the GPU, freed when they are collected."""
        return self.device.memory(count)

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
        context = self.context(self.pick(batch))
        self.set_shapes(context, {spec.name: tuple(int(size) for size in spec.at(batch)) for spec in self.inputs})
        astray = [spec for spec in (*self.inputs, *self.outputs) if addresses[spec.name] % ALIGNMENT]
        sizes = {spec.name: bytes_of(spec, tuple(map(int, spec.at(batch)))) for spec in astray}
        rooms = {name: self.device.memory(size) for name, size in sizes.items()}
        try:
            for spec in self.inputs:
                if spec.name in rooms:
                    place = rooms[spec.name].address
                    self.device.copy(place, addresses[spec.name], sizes[spec.name], self.computing)
            self.set_addresses(context, {**addresses, **{name: room.address for name, room in rooms.items()}})
            self.enqueue(context)
            for spec in self.outputs:
                if spec.name in rooms:
                    place = rooms[spec.name].address
                    self.device.copy(addresses[spec.name], place, sizes[spec.name], self.computing)
            self.computing.synchronize()
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
        self.computing.synchronize()

    def _execute(self) -> None:
        prepared = self._own.now
        if not self.is_active(prepared):
            self._own.activate(prepared)
        if not prepared.context.execute_v2(prepared.pointers):
            raise ExecutionError(f"execute_v2 failed: {self._engine.complaint()}", "build the engine again")

    def _launch_graph(self) -> None:
        self._own.launch()
        if not self.uses_graphs:
            raise ExecutionError(
                f"{self._engine.path.name} can't run as a CUDA graph", "use --mode async, or execute_v2"
            )

    def fetch(self) -> dict[str, Array]:
        return {name: array.copy() for name, array in self._own.download().items()}

    def bound(self) -> dict[str, Array]:
        return dict(self._own.now.inputs)

    def poison(self, pattern: int) -> None:
        self._own.poison(pattern)

    def modes(self) -> dict[str, Mode]:
        event: Any = self.computing.event
        new_event: type[Event] = event
        timed = "one execute_async_v3 between two CUDA events on a busy stream, inputs on the GPU"
        modes = {"async": Mode("async", timed, self._own.enqueue, new_event)}
        if self._own.now.later:  # execute_v2 has no way to ask for memory
            return modes
        if self.uses_graphs:
            timed = "one launch of a CUDA graph between two CUDA events on a busy stream, inputs on the GPU"
            modes["graph"] = Mode("graph", timed, self._launch_graph, new_event)
        timed = "one synchronous execute_v2, wall time per call, inputs on the GPU"
        return {"execute_v2": Mode("execute_v2", timed, self._execute), **modes}

    def flush(self) -> None:
        """Write over as much memory as the L2 cache holds twice, on the computing stream."""
        if self._flushed is None:
            self._flushed = self.device.memory(2 * self.device.cache_bytes)
        self._flushed.fill(0, self.computing)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._exit.close()

    def _free(self) -> None:
        """Free what the session has on the GPU; a fault that shows meanwhile is raised at the end."""
        with ExitStack() as steps:  # runs all of them, from the last one up
            for memory in (self._activations, self._flushed):
                if memory is not None:
                    steps.callback(memory.free)
            for slot in self._slots:
                steps.callback(slot.free)
            for kept in (self._active, self._contexts, self._graph_contexts, self._allocators):
                steps.callback(kept.clear)
            steps.callback(self.graphs.close)
            for stream in (self.uploading, self.computing, self.downloading):
                steps.callback(stream.synchronize)

    def __enter__(self) -> TensorRTSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
