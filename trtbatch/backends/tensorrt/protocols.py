"""Describe what is used of the objects of TensorRT and pycuda, which come without types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

__all__ = [
    "BuilderConfig",
    "CudaEngine",
    "DeviceAllocation",
    "EngineInspector",
    "ExecutionContext",
    "Named",
    "NetworkBuilder",
    "NetworkDefinition",
    "NetworkLayer",
    "NetworkTensor",
    "OptimizationProfile",
    "OutputAllocator",
    "ParserError",
    "PrimaryContext",
    "PycudaEvent",
    "PycudaStream",
    "Runtime",
    "Serialized",
    "TimingCache",
]


class Named(Protocol):
    """A member of one of TensorRT's enumerations."""

    @property
    def name(self) -> str: ...


class EngineInspector(Protocol):
    """``IEngineInspector``."""

    def get_engine_information(self, layer_format: Any, /) -> str: ...


class OutputAllocator(Protocol):
    """``IOutputAllocator``, made by :func:`trtbatch.backends.tensorrt.compat.make_output_allocator`."""

    def notify_shape(self, tensor_name: str, shape: Sequence[int]) -> None: ...


class ExecutionContext(Protocol):
    """``IExecutionContext``."""

    def set_optimization_profile_async(self, profile: int, stream: int, /) -> bool: ...
    def set_input_shape(self, name: str, shape: tuple[int, ...], /) -> bool: ...
    def set_tensor_address(self, name: str, address: int, /) -> bool: ...
    def set_output_allocator(self, name: str, allocator: OutputAllocator, /) -> bool: ...
    def get_tensor_shape(self, name: str, /) -> Sequence[int]: ...
    def get_max_output_size(self, name: str, /) -> int: ...
    def execute_v2(self, bindings: Sequence[int], /) -> bool: ...
    def execute_async_v3(self, stream: int, /) -> bool: ...

    # Of some releases only, which compat.py asks for.
    device_memory: int

    def set_device_memory(self, memory: int, size: int, /) -> None: ...


class CudaEngine(Protocol):
    """``ICudaEngine``."""

    @property
    def num_io_tensors(self) -> int: ...
    @property
    def num_optimization_profiles(self) -> int: ...
    def get_tensor_name(self, index: int, /) -> str: ...
    def get_tensor_mode(self, name: str, /) -> Named: ...
    def get_tensor_dtype(self, name: str, /) -> Named: ...
    def get_tensor_shape(self, name: str, /) -> Sequence[int]: ...
    def get_tensor_location(self, name: str, /) -> Named: ...
    def get_tensor_format(self, name: str, /) -> Named: ...
    def get_tensor_format_desc(self, name: str, /) -> str: ...
    def get_tensor_profile_shape(self, name: str, profile: int, /) -> Sequence[Sequence[int]]: ...
    def create_execution_context(self, *strategy: Any) -> ExecutionContext | None: ...
    def create_engine_inspector(self) -> EngineInspector: ...

    # Of some releases only, which compat.py asks for.
    num_bindings: int
    device_memory_size: int
    device_memory_size_v2: int
    streamable_weights_size: int
    weight_streaming_budget_v2: int

    def create_execution_context_without_device_memory(self) -> ExecutionContext | None: ...
    def get_weight_streaming_automatic_budget(self) -> int: ...


class Runtime(Protocol):
    """``IRuntime``."""

    engine_host_code_allowed: bool

    def deserialize_cuda_engine(self, serialized: bytes, /) -> CudaEngine | None: ...


class Serialized(Protocol):
    """``IHostMemory``."""

    def __buffer__(self, flags: int, /) -> memoryview: ...


class TimingCache(Protocol):
    """``ITimingCache``."""

    def serialize(self) -> Serialized: ...


class OptimizationProfile(Protocol):
    """``IOptimizationProfile``."""

    def set_shape(
        self, name: str, min: Sequence[int | str], opt: Sequence[int | str], max: Sequence[int | str], /
    ) -> None: ...


class NetworkTensor(Protocol):
    """``ITensor``."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> Named: ...


class NetworkLayer(Protocol):
    """``ILayer``."""

    @property
    def name(self) -> str: ...
    @property
    def num_outputs(self) -> int: ...

    # Of most layers, which compat.py asks for.
    precision: Any

    def set_output_type(self, index: int, dtype: Any, /) -> None: ...


class NetworkDefinition(Protocol):
    """``INetworkDefinition``."""

    @property
    def num_layers(self) -> int: ...
    @property
    def num_inputs(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...
    def get_layer(self, index: int, /) -> NetworkLayer: ...
    def get_input(self, index: int, /) -> NetworkTensor: ...
    def get_output(self, index: int, /) -> NetworkTensor: ...


class BuilderConfig(Protocol):
    """``IBuilderConfig``."""

    builder_optimization_level: int
    avg_timing_iterations: int
    profiling_verbosity: Any

    def set_flag(self, flag: Any, /) -> None: ...
    def clear_flag(self, flag: Any, /) -> None: ...
    def set_memory_pool_limit(self, pool: Any, size: int, /) -> None: ...
    def get_tactic_sources(self) -> int: ...
    def set_tactic_sources(self, sources: int, /) -> bool: ...
    def add_optimization_profile(self, profile: OptimizationProfile, /) -> int: ...
    def create_timing_cache(self, serialized: bytes, /) -> TimingCache: ...
    def set_timing_cache(self, cache: TimingCache | None, ignore_mismatch: bool) -> bool: ...
    def get_timing_cache(self) -> TimingCache: ...

    # Of some releases only, which compat.py asks for.
    hardware_compatibility_level: Any
    max_aux_streams: int
    progress_monitor: Any

    def set_preview_feature(self, feature: Any, enable: bool, /) -> None: ...


class NetworkBuilder(Protocol):
    """TensorRT's ``IBuilder``."""

    def create_network(self, flags: int, /) -> NetworkDefinition: ...
    def create_builder_config(self) -> BuilderConfig: ...
    def create_optimization_profile(self) -> OptimizationProfile: ...
    def build_serialized_network(self, network: NetworkDefinition, config: BuilderConfig, /) -> Serialized | None: ...


class ParserError(Protocol):
    """``IParserError``."""

    def node(self) -> int: ...
    def desc(self) -> str: ...


class PrimaryContext(Protocol):
    """``pycuda.driver.Context`` of a primary context."""

    @property
    def handle(self) -> int: ...
    def push(self) -> None: ...
    def pop(self) -> None: ...


class PycudaStream(Protocol):
    """``pycuda.driver.Stream``."""

    @property
    def handle(self) -> int: ...
    def synchronize(self) -> None: ...
    def wait_for_event(self, event: PycudaEvent, /) -> None: ...


class PycudaEvent(Protocol):
    """``pycuda.driver.Event``."""

    def record(self, stream: PycudaStream, /) -> object: ...
    def synchronize(self) -> object: ...
    def time_since(self, earlier: PycudaEvent, /) -> float: ...


class DeviceAllocation(Protocol):
    """``pycuda.driver.DeviceAllocation``."""

    def __int__(self) -> int: ...
    def free(self) -> None: ...
