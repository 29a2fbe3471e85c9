"""Run a TensorRT engine through sessions, and describe it as TensorRT reports it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from trtbatch.backends.base import Description
from trtbatch.backends.tensorrt import compat
from trtbatch.backends.tensorrt.buffers import entering
from trtbatch.backends.tensorrt.deserialized import DeserializedEngine
from trtbatch.backends.tensorrt.protocols import CudaEngine
from trtbatch.backends.tensorrt.rows import GpuRows
from trtbatch.backends.tensorrt.session import TensorRTSession
from trtbatch.util import optional

__all__ = ["TensorRTEngine"]


class TensorRTEngine(DeserializedEngine):
    """A deserialised engine that opens sessions. Close its sessions before the engine."""

    def row_writer(self) -> GpuRows:
        """Return a writer of input rows on this GPU, for another thread."""
        return GpuRows(self.device)

    def entered(self) -> AbstractContextManager[object]:
        """Return the context in which the GPU's context is current in this thread."""
        return self.device.entered()

    def session(self, cuda_graphs: bool = True) -> TensorRTSession:
        """Return a session; see :class:`trtbatch.backends.base.Engine`."""
        return TensorRTSession(self, cuda_graphs)

    @entering
    def describe(self) -> Description:
        """Return tensors, profiles and layers; see :class:`trtbatch.backends.base.Engine`."""
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
        """Return an output's shape with its batch open, where TensorRT reports the size of a first profile N:N:N."""
        spec = next((spec for spec in self.sidecar.outputs if spec.name == name), None)
        axis = None if spec is None else spec.batch_axis
        first = self.sidecar.engine.profiles[0]
        alone = spec is not None and spec.fixed_batch is None and first.min == first.max
        if axis is not None and alone and axis < len(shape) and shape[axis] == first.max:
            return [-1 if index == axis else size for index, size in enumerate(shape)]
        return shape

    def __enter__(self) -> TensorRTEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _profile(engine: CudaEngine, name: str, axis: int, profile: int) -> str:
    """Return ``min:opt:max`` of an input's batch axis, as the engine reports it."""
    return ":".join(str(int(shape[axis])) for shape in engine.get_tensor_profile_shape(name, profile))
