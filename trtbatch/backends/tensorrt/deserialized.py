"""Deserialise a TensorRT engine, compare its bindings with the sidecar, and make its execution contexts."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtbatch.backends.tensorrt import compat
from trtbatch.backends.tensorrt.buffers import Device, DeviceMemory, Stream
from trtbatch.core.hints import build_line
from trtbatch.core.sidecar import Artifact
from trtbatch.core.store import record_file
from trtbatch.errors import ArtifactError, ExecutionError
from trtbatch.util import optional

__all__ = ["DeserializedEngine"]


class DeserializedEngine:
    """A deserialised engine on the GPU's primary context, which makes execution contexts."""

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
            self._runtime.engine_host_code_allowed = True  # such a plan contains its own runtime
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
        """Return TensorRT's last error in its own words."""
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
        """Return the bytes of device memory that one execution context needs."""
        return compat.device_memory(self.cuda_engine)

    def context(self, profile: int, stream: Stream, activations: DeviceMemory) -> Any:
        """Return an execution context of a profile, selected on `stream`, with `activations` as its memory.

        Raises:
            ExecutionError: out of memory, or TensorRT refuses.
        """
        trt = optional.require("tensorrt", "run engines")
        with self.lock:  # threads that make contexts at the same time would get each other's errors
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

    def set_shapes(self, context: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Give a context its input shapes.

        Raises:
            ExecutionError: TensorRT refuses a shape.
        """
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise ExecutionError(
                    f"TensorRT refuses shape {shape} for {name}: {self.complaint()}", "check the inputs"
                )

    def set_addresses(self, context: Any, addresses: Mapping[str, int]) -> None:
        """Give a context the GPU addresses of its bindings.

        Raises:
            ExecutionError: TensorRT refuses an address.
        """
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise ExecutionError(
                    f"TensorRT refuses the address {address:#x} for {name}: {self.complaint()}",
                    "give it memory of the engine's own GPU",
                )

    def close(self) -> None:
        """Free the engine and the runtime, and leave the GPU's context."""
        self.cuda_engine = None
        self._runtime = None
        self.device.close()


def _onnx_of(artifact: Artifact) -> Path:
    """Return the ONNX file that holds a stripped engine's weights, after a check of its hash.

    Raises:
        ArtifactError: the file is missing or has changed.
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
        "put that file there, or build without `strip_weights`",
    )
