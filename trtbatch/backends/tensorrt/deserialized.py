"""Deserialise a TensorRT engine, compare its bindings with the sidecar, and make its execution contexts."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from trtbatch.backends.tensorrt import compat
from trtbatch.backends.tensorrt.buffers import Device, DeviceMemory, Stream
from trtbatch.backends.tensorrt.protocols import CudaEngine, ExecutionContext, Runtime
from trtbatch.core.hints import build_line
from trtbatch.core.sidecar import Artifact, Sidecar
from trtbatch.core.store import record_file
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import ArtifactError, ExecutionError
from trtbatch.util import optional

__all__ = ["Binding", "DeserializedEngine", "differences"]


@dataclass(frozen=True)
class Binding:
    """One input or output as the engine itself reports it.

    Args:
        dtype: numpy's name for it.
        shape: −1 where a size is open.
        on_host: whether TensorRT reads or writes it in the host's memory, as it does with tensors that hold shapes.
        is_linear: whether the elements lie in memory in the order of the axes.
    """

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]
    on_host: bool = False
    is_linear: bool = True


class _Complaints(threading.local):
    """TensorRT's errors in this thread."""

    def __init__(self) -> None:
        self.lines: list[str] = []


class DeserializedEngine:
    """A deserialised engine in the GPU's primary context, which makes execution contexts.

    Raises:
        ArtifactError: TensorRT can't load the engine, or it doesn't fit its sidecar.
        ExecutionError: the GPU reports a fault.
    """

    def __init__(self, artifact: Artifact, device: int = 0, weights: Path | None = None) -> None:
        trt = optional.require("tensorrt", "run engines")
        self.sidecar = artifact.sidecar
        self.path = artifact.path
        self.lock = threading.Lock()
        self.device = Device(device)
        self._complaints = _Complaints()
        self._logger = compat.make_logger(trt, self._log)
        self._runtime: Runtime | None = None
        self._deserialized: CudaEngine | None = None
        with self.device.entered():
            try:
                self._load(trt, artifact, weights)
            except BaseException:
                self.close()
                raise

    def _load(self, trt: ModuleType, artifact: Artifact, weights: Path | None) -> None:
        runtime: Runtime = trt.Runtime(self._logger)
        self._runtime = runtime
        options = self.sidecar.build.options
        if options.get("version_compatible"):
            runtime.engine_host_code_allowed = True  # such a plan contains its own runtime
        self._deserialized = runtime.deserialize_cuda_engine(artifact.path.read_bytes())
        if self._deserialized is None:
            raise ArtifactError(
                f"TensorRT can't load {artifact.path}: {self.complaint()}", f"build it again: {build_line(artifact)}"
            )
        bindings = list(_bindings(trt, self._deserialized))
        found = differences(bindings, self.sidecar)
        if found:
            raise ArtifactError(
                f"{self.path} doesn't fit its sidecar: {'; '.join(found[:3])}",
                f"build it again: {build_line(artifact)}",
            )
        self.on_host = frozenset(binding.name for binding in bindings if binding.on_host)
        """Names of the bindings that TensorRT reads or writes in the host's memory."""
        if options.get("strip_weights"):
            self._refit(trt, weights or _onnx_of(artifact))
        if options.get("weight_streaming"):
            compat.stream_weights(self._deserialized)

    def _refit(self, trt: ModuleType, onnx: Path) -> None:
        """Give a stripped engine its weights.

        Raises:
            ArtifactError: TensorRT can't take them from the ONNX file.
        """
        failed = compat.refit(trt, self.cuda_engine, self._logger, str(onnx.resolve()))
        if failed is not None:
            raise ArtifactError(
                f"{self.path} holds no weights, and can't be given those of {onnx}: {failed} ({self.complaint()})",
                "build it again",
            )

    @property
    def cuda_engine(self) -> CudaEngine:
        """Return TensorRT's engine object.

        Raises:
            ExecutionError: the engine is closed.
        """
        if self._deserialized is None:
            raise ExecutionError(f"{self.path.name} is closed", "open it again")
        return self._deserialized

    def _log(self, severity: str, message: str) -> None:
        if severity in ("INTERNAL_ERROR", "ERROR"):
            self._complaints.lines.append(" ".join(message.split()))

    def forget_complaints(self) -> None:
        """Forget TensorRT's errors in this thread, so that :meth:`complaint` is of the next call."""
        self._complaints.lines.clear()

    def complaint(self) -> str:
        """Return TensorRT's last error in this thread, in its own words."""
        lines = self._complaints.lines
        return lines[-1] if lines else "it gave no reason"

    @property
    def activation_bytes(self) -> int:
        """Return the bytes of device memory that one execution context needs."""
        return compat.device_memory(self.cuda_engine)

    def context(self, profile: int, stream: Stream, activations: DeviceMemory) -> ExecutionContext:
        """Return an execution context of a profile, selected on `stream`, with `activations` as its memory.

        Raises:
            ExecutionError: out of memory, or TensorRT refuses.
        """
        trt = optional.require("tensorrt", "run engines")
        self.forget_complaints()
        with self.lock:
            context = compat.create_context(trt, self.cuda_engine)
        if context is None:
            raise ExecutionError(
                f"TensorRT makes no execution context: {self.complaint()}",
                "free GPU memory (nvidia-smi shows who holds it), or build with a smaller `max`",
            )
        compat.give_memory(context, activations.address, activations.bytes)
        if not context.set_optimization_profile_async(profile, stream.handle):
            raise ExecutionError(f"profile {profile} can't be selected: {self.complaint()}", "build again")
        stream.synchronize()
        return context

    def set_shapes(self, context: ExecutionContext, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Give a context its input shapes.

        Raises:
            ExecutionError: TensorRT refuses a shape.
        """
        self.forget_complaints()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise ExecutionError(
                    f"TensorRT refuses shape {shape} for {name}: {self.complaint()}", "check the inputs"
                )

    def set_addresses(self, context: ExecutionContext, addresses: Mapping[str, int]) -> None:
        """Give a context the addresses of its bindings.

        Raises:
            ExecutionError: TensorRT refuses an address.
        """
        self.forget_complaints()
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise ExecutionError(
                    f"TensorRT refuses the address {address:#x} for {name}: {self.complaint()}",
                    "give it memory of the engine's own GPU",
                )

    def close(self) -> None:
        """Free the engine and the runtime, in any thread."""
        with self.device.entered():
            self._deserialized = None
            self._runtime = None


def _bindings(trt: ModuleType, engine: CudaEngine) -> Iterator[Binding]:
    """Yield what an engine reports of its inputs and outputs, in its own order."""
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        yield Binding(
            name,
            is_input=engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            dtype=compat.dtype_name(engine.get_tensor_dtype(name)),
            shape=tuple(int(size) for size in engine.get_tensor_shape(name)),
            on_host=engine.get_tensor_location(name) == trt.TensorLocation.HOST,
            is_linear=compat.is_linear(trt, engine, name),
        )


def differences(bindings: Sequence[Binding], sidecar: Sidecar) -> list[str]:
    """Return, in words, where an engine's own bindings differ from its sidecar's: what would be read out of bounds."""
    found = []
    by_name = {binding.name: binding for binding in bindings}
    for specs, kind in ((sidecar.inputs, "input"), (sidecar.outputs, "output")):
        engines = {binding.name for binding in bindings if binding.is_input == (kind == "input")}
        names = {spec.name for spec in specs}
        if engines != names:
            found.append(f"the engine has the {kind}s {_listed(engines)}, the sidecar {_listed(names)}")
            continue
        for spec in specs:
            found += [f"{kind} {spec.name} {words}" for words in _unlike(by_name[spec.name], spec)]
    return found


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _unlike(binding: Binding, spec: TensorSpec) -> Iterator[str]:
    """Yield, in words, what an engine reports of a binding that its spec doesn't say."""
    if binding.dtype != spec.dtype:
        yield f"is {binding.dtype}, in the sidecar {spec.dtype}"
    both = zip(binding.shape, spec.shape)
    sizes_differ = any(isinstance(there, int) and -1 != here != there for here, there in both)
    if len(binding.shape) != len(spec.shape) or sizes_differ:
        yield f"has shape {binding.shape}, in the sidecar {spec.shape}"
    if not binding.is_linear:
        yield "isn't laid out axis by axis"


def _onnx_of(artifact: Artifact) -> Path:
    """Return the ONNX file that holds a stripped engine's weights, after a check of its hash.

    Raises:
        ArtifactError: the file is missing or has changed.
    """
    source = artifact.sidecar.source
    if source is None:
        raise ArtifactError(f"{artifact.path} holds no weights, and doesn't say whose", "build it again")
    record = source.built
    places = [artifact.path.with_name(record.file), artifact.path.parent / (source.path or record.file)]
    for place in places:
        if place.is_file() and record_file(place).sha256 == record.sha256:
            return place
    raise ArtifactError(
        f"{artifact.path} holds no weights; they are in {record.file}, which isn't in {artifact.path.parent}",
        "put that file there, or build without `strip_weights`",
    )
