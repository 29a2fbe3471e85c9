"""A TensorRT engine: deserialised once, run through sessions with one execution context per profile."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch import optional
from trtbatch.artifacts import Artifact, TensorSpec, record_file
from trtbatch.backends.base import Description, Event, Mode, batch_of, conform
from trtbatch.backends.tensorrt import compat
from trtbatch.backends.tensorrt.buffers import BindingBuffer, Device
from trtbatch.backends.tensorrt.graphs import CudaGraph
from trtbatch.batches import pick_profile, refuse_outside
from trtbatch.errors import ArtifactError, ExecutionError

__all__ = ["TensorRTEngine", "TensorRTSession"]

Array = NDArray[Any]


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
            raise ArtifactError(f"TensorRT can't load {artifact.path}: {reason}", "build it again: trtbatch build")
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

    @property
    def activation_bytes(self) -> int:
        """Device memory of one execution context."""
        return compat.device_memory(self.cuda_engine)

    def session(self) -> TensorRTSession:
        return TensorRTSession(self)

    def describe(self) -> Description:
        trt, engine = optional.require("tensorrt", "run engines"), self.cuda_engine
        facts: dict[str, str] = {}
        profiles: list[str] = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            shape = [int(size) for size in engine.get_tensor_shape(name)]
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


def _profile(engine: Any, name: str, axis: int, profile: int) -> str:
    """``min:opt:max`` of an input's batch axis, as the engine has it."""
    return ":".join(str(int(shape[axis])) for shape in engine.get_tensor_profile_shape(name, profile))


class TensorRTSession:
    """Bindings of one engine: buffers per binding shape, a stream, one execution context per profile.

    It is made, used and closed in one thread; other threads have sessions of their own.
    """

    def __init__(self, engine: TensorRTEngine) -> None:
        self._engine = engine
        self._is_open = True
        engine.device.enter_thread()
        self._inputs = engine.sidecar.inputs
        self._outputs = engine.sidecar.outputs
        self._stream = engine.device.stream()
        self._buffers = {spec.name: BindingBuffer(self._stream) for spec in (*self._inputs, *self._outputs)}
        self._contexts: dict[int, Any] = {}
        self._active: Any = None
        self._bindings: list[int] = []
        self._allocators: dict[tuple[Any, str], Any] = {}
        self._graph: CudaGraph | None = None
        self._shapes: dict[str, tuple[int, ...] | None] = {}
        """Of the outputs whose shape depends on the data: None until a run has told it."""

    def bind(self, inputs: Mapping[str, Array]) -> None:
        self._drop_graph()
        batch = batch_of(inputs, self._inputs)
        arrays = {spec.name: conform(inputs[spec.name], spec) for spec in self._inputs}
        profile = pick_profile(self._engine.sidecar.profiles, batch)
        if profile is None:
            refuse_outside(self._engine.sidecar.profiles, [batch], self._engine.path.name)
            raise AssertionError("refuse_outside raises where no profile fits")
        context = self._context(profile)
        for name, array in arrays.items():
            if not context.set_input_shape(name, array.shape):
                raise ExecutionError(
                    f"TensorRT refuses shape {array.shape} for {name}: {self._engine.complaint()}", "check the inputs"
                )
        self._shapes = {}
        for spec in (*self._inputs, *self._outputs):
            shape = tuple(int(size) for size in context.get_tensor_shape(spec.name))
            if min(shape, default=0) < 0:
                self._allocate_later(context, spec)
                continue
            self._buffers[spec.name].fit(shape, spec.dtype)
            context.set_tensor_address(spec.name, self._buffers[spec.name].address)
        names = list(self._buffers)
        addresses = [self._buffers[name].address for name in names]
        self._bindings = compat.bindings(self._engine.cuda_engine, names, addresses, profile)
        self._active = context
        for name, array in arrays.items():
            np.copyto(self._buffers[name].array, array)
            self._buffers[name].upload()
        self._stream.synchronize()

    def _allocate_later(self, context: Any, spec: TensorSpec) -> None:
        """An output whose shape depends on the data: TensorRT asks for its memory, and tells its shape, as it runs."""
        buffer = self._buffers[spec.name]
        self._shapes[spec.name] = None
        buffer.reserve(int(context.get_max_output_size(spec.name)))

        def notify(shape: tuple[int, ...]) -> None:
            self._shapes[spec.name] = shape

        allocator = compat.make_output_allocator(optional.require("tensorrt", "run engines"), buffer.reserve, notify)
        self._allocators[context, spec.name] = allocator  # TensorRT keeps no reference
        context.set_output_allocator(spec.name, allocator)
        context.set_tensor_address(spec.name, buffer.address)

    def _context(self, profile: int) -> Any:
        """The execution context of a profile, made when first needed: switching a context costs milliseconds."""
        if profile not in self._contexts:
            with self._engine.lock:  # two threads that make contexts at once get each other's errors
                context = self._engine.cuda_engine.create_execution_context()
            if context is None:
                raise ExecutionError(
                    f"TensorRT makes no execution context: {self._engine.complaint()}",
                    "free GPU memory (nvidia-smi shows who holds it), or build with a smaller --max",
                )
            if not context.set_optimization_profile_async(profile, self._stream.handle):
                raise ExecutionError(f"profile {profile} can't be selected: {self._engine.complaint()}", "build again")
            self._stream.synchronize()
            self._contexts[profile] = context
        return self._contexts[profile]

    def run(self) -> None:
        self._enqueue()
        self._stream.synchronize()

    def _enqueue(self) -> None:
        if not self._active.execute_async_v3(self._stream.handle):
            raise ExecutionError(f"execute_async_v3 failed: {self._engine.complaint()}", "build the engine again")

    def _execute(self) -> None:
        if not self._active.execute_v2(self._bindings):
            raise ExecutionError(f"execute_v2 failed: {self._engine.complaint()}", "build the engine again")

    def _launch_graph(self) -> None:
        if self._graph is None:
            self._enqueue()  # what only the first enqueue of a shape does can't be captured
            self._stream.synchronize()
            self._graph = CudaGraph(self._stream, self._enqueue)
        self._graph.launch()

    def _drop_graph(self) -> None:
        """Forget the graph of what was bound: its addresses and shapes are in it."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def fetch(self) -> dict[str, Array]:
        for spec in self._outputs:
            shape = self._shapes.get(spec.name)
            if shape is not None:
                self._buffers[spec.name].fit(shape, spec.dtype)
            self._buffers[spec.name].download()
        self._stream.synchronize()
        return {spec.name: self._buffers[spec.name].array.copy() for spec in self._outputs}

    def bound(self) -> dict[str, Array]:
        return {spec.name: self._buffers[spec.name].array for spec in self._inputs}

    def poison(self, pattern: int) -> None:
        for spec in self._outputs:
            self._buffers[spec.name].fill(pattern)
        self._stream.synchronize()

    def modes(self) -> dict[str, Mode]:
        event: Any = self._stream.event
        new_event: type[Event] = event
        timed = "one execute_async_v3 between two CUDA events on a busy stream, inputs on the GPU"
        modes = {"async": Mode("async", timed, self._enqueue, new_event)}
        if self._shapes:  # execute_v2 has no way to ask for memory
            return modes
        timed = "one launch of a CUDA graph between two CUDA events on a busy stream, inputs on the GPU"
        modes["graph"] = Mode("graph", timed, self._launch_graph, new_event)
        timed = "one synchronous execute_v2, wall time per call, inputs on the GPU"
        return {"execute_v2": Mode("execute_v2", timed, self._execute), **modes}

    def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._drop_graph()
        self._active = None
        self._contexts.clear()
        self._allocators.clear()
        for buffer in self._buffers.values():
            buffer.free()
        self._stream.close()
        self._engine.device.leave_thread()

    def __enter__(self) -> TensorRTSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
