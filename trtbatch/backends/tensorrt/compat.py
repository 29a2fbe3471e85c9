"""Handle the differences between TensorRT releases, which only this file knows.

The functions check what an object has, not the version. Where only a version number can decide (the opset that the ONNX
parser reads), the source is named.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from trtbatch.backends.tensorrt.protocols import (
    BuilderConfig,
    CudaEngine,
    ExecutionContext,
    Named,
    NetworkBuilder,
    NetworkDefinition,
    OutputAllocator,
    ParserError,
)
from trtbatch.util.signals import called_back

__all__ = [
    "allow_types",
    "bindings",
    "create_context",
    "create_network",
    "device_memory",
    "dtype_name",
    "give_memory",
    "has_type",
    "honour_types",
    "is_linear",
    "keep_details",
    "layers",
    "leave_out_libraries",
    "make_logger",
    "make_output_allocator",
    "max_opset",
    "missing_option",
    "parser_error",
    "refit",
    "set_options",
    "share_profiles",
    "stream_weights",
    "strongly_typed",
    "watch_progress",
]

_OPSETS = {(8, 4): 17, (9, 0): 19, (10, 0): 20}
"""Newest ONNX opset by first release, from docs/operators.md of onnx/onnx-tensorrt at its release branches.

Later releases read more (11.5: 25, by its release notes), but no table says from which release on. From 10.1 on the
parser itself therefore decides.
"""

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


_PRECISIONS = {
    "fp16": "fp16",
    "half": "fp16",
    "bf16": "bf16",
    "bfloat": "bf16",
    "fp8": "fp8",
    "int8": "int8",
    "int64": "int64",
    "int32": "int32",
    "bool": "bool",
    "fp32": "fp32",
    "float": "fp32",
}
"""Precision by a word in the inspector's data types, more specific words first."""


def max_opset(version: str) -> int | None:
    """Return the newest ONNX opset that this TensorRT's parser reads, or None where unknown."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if len(numbers) < 2 or numbers > (10, 0):
        return None
    return max((opset for since, opset in _OPSETS.items() if since <= numbers), default=13)


def strongly_typed(trt: ModuleType) -> bool:
    """Return whether a network's types can decide alone (a flag from 9 on; always so in 11)."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def create_network(trt: ModuleType, builder: NetworkBuilder, typed: bool = False) -> NetworkDefinition:
    """Return a new network with an explicit batch: a flag up to 9, the only kind from 10 on (11 has no such flag).

    Args:
        trt: the tensorrt module.
        builder: makes the network.
        typed: whether the network's types decide each layer's precision, where the release supports that.
    """
    names = ("EXPLICIT_BATCH", *(("STRONGLY_TYPED",) if typed else ()))
    flags = [getattr(trt.NetworkDefinitionCreationFlag, name, None) for name in names]
    return builder.create_network(sum(1 << int(flag) for flag in flags if flag is not None))


_TYPES = {"fp16": "HALF", "bf16": "BF16", "int8": "INT8", "fp8": "FP8"}

_TYPE_FLAGS = {"fp16": "FP16", "bf16": "BF16", "int8": "INT8", "fp8": "FP8"}
"""Builder flags that let layers use a type; removed in 11, and not to be set for strongly typed networks."""


def has_type(trt: ModuleType, precision: str) -> bool:
    """Return whether this release has the type of a precision at all."""
    return precision not in _TYPES or hasattr(trt.DataType, _TYPES[precision])


def allow_types(trt: ModuleType, config: BuilderConfig, tf32: bool, kinds: Sequence[str]) -> None:
    """Allow or forbid TF32 for float32 products, and allow the types `kinds` where the release has flags for them."""
    if tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    for kind in kinds:
        flag = getattr(trt.BuilderFlag, _TYPE_FLAGS[kind], None)
        if flag is not None:
            config.set_flag(flag)


def honour_types(
    trt: ModuleType, config: BuilderConfig, network: NetworkDefinition, node_types: Mapping[str, str]
) -> None:
    """Hold each layer to the float type of its ONNX node, where flags alone would leave the type to the builder.

    This is only for releases without strongly typed networks. There, FP16 allows half precision for every layer, even
    for those that the file keeps in float32. The parser names layers after their nodes.
    """
    constraints = getattr(trt.BuilderFlag, "PREFER_PRECISION_CONSTRAINTS", None)
    if constraints is None or not node_types:
        return
    config.set_flag(constraints)
    types = {"fp32": trt.DataType.FLOAT, "fp16": trt.DataType.HALF}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = types.get(node_types.get(layer.name, ""))
        if kind is not None and hasattr(layer, "precision") and hasattr(layer, "set_output_type"):
            layer.precision = kind
            for output in range(layer.num_outputs):
                layer.set_output_type(output, kind)


_OPTION_FLAGS = {
    "version_compatible": "VERSION_COMPATIBLE",
    "sparsity": "SPARSE_WEIGHTS",
    "refit": "REFIT",
    "strip_weights": "STRIP_PLAN",
    "weight_streaming": "WEIGHT_STREAMING",
}
"""Options of an engine that are builder flags."""


def missing_option(trt: ModuleType, name: str) -> bool:
    """Return whether this release lacks an option of :class:`trtbatch.backends.base.BuilderOptions`."""
    if name == "hardware_compatible":
        return not hasattr(trt, "HardwareCompatibilityLevel")
    if name == "aux_streams":
        return not hasattr(trt.IBuilderConfig, "max_aux_streams")
    return not hasattr(trt.BuilderFlag, _OPTION_FLAGS[name])


def set_options(trt: ModuleType, config: BuilderConfig, options: Mapping[str, Any]) -> None:
    """Set options by name; the release must have all of them (:func:`missing_option`)."""
    for name, value in options.items():
        if name == "hardware_compatible" and hasattr(trt, "HardwareCompatibilityLevel"):
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        elif name == "aux_streams" and hasattr(trt.IBuilderConfig, "max_aux_streams"):
            config.max_aux_streams = value
        elif name in _OPTION_FLAGS:
            config.set_flag(getattr(trt.BuilderFlag, _OPTION_FLAGS[name]))


def refit(trt: ModuleType, engine: CudaEngine, logger: object, onnx: str) -> str | None:
    """Give a stripped engine the weights of an ONNX file (10 and later); return what failed, or None."""
    if not hasattr(trt, "OnnxParserRefitter"):
        return "this TensorRT can't refit from an ONNX file"
    refitter = trt.Refitter(engine, logger)
    parser_refitter = trt.OnnxParserRefitter(refitter, logger)
    if not parser_refitter.refit_from_file(onnx):
        return "its parser refuses the ONNX file"
    return None if refitter.refit_cuda_engine() else "some weights are missing"


def stream_weights(engine: CudaEngine) -> int | None:
    """Keep the weights that fit on the GPU, and stream the others; return the bytes kept, or None without streaming."""
    asked = ("weight_streaming_budget_v2", "get_weight_streaming_automatic_budget", "streamable_weights_size")
    if not all(hasattr(engine, name) for name in asked) or engine.streamable_weights_size == 0:
        return None
    engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
    return int(engine.weight_streaming_budget_v2)


def dtype_name(dtype: Named) -> str:
    """Return numpy's name of a TensorRT data type.

    ``tensorrt.nptype`` of 8.6 fails with numpy 1.24 to 1.26.
    """
    return _DTYPES.get(dtype.name, str(dtype.name).lower())


def is_linear(trt: ModuleType, engine: CudaEngine, name: str) -> bool:
    """Return whether the elements of a binding lie in memory in the order of its axes.

    The lean runtime's bindings have no formats, but their description: ``Row major linear FP32 format``.
    """
    if hasattr(trt, "TensorFormat"):
        return bool(engine.get_tensor_format(name) == trt.TensorFormat.LINEAR)
    return "linear" in engine.get_tensor_format_desc(name).lower()


def device_memory(engine: CudaEngine) -> int:
    """Return the bytes of activation memory of one execution context; from 10 on by the v2 name, the only one in 11."""
    if hasattr(engine, "device_memory_size_v2"):
        return int(engine.device_memory_size_v2)
    return int(engine.device_memory_size) if hasattr(engine, "device_memory_size") else 0


def create_context(trt: ModuleType, engine: CudaEngine) -> ExecutionContext | None:
    """Return an execution context without activation memory (see :func:`give_memory`), or None where TensorRT fails.

    8.6 and 10 have a method for it; from 10 on there also is an allocation strategy.
    """
    strategies = getattr(trt, "ExecutionContextAllocationStrategy", None)
    if strategies is not None:
        return engine.create_execution_context(strategies.USER_MANAGED)
    if hasattr(engine, "create_execution_context_without_device_memory"):
        return engine.create_execution_context_without_device_memory()
    return engine.create_execution_context()


def give_memory(context: ExecutionContext, address: int, size: int) -> None:
    """Set the memory of a context's activations: at least :func:`device_memory` bytes, aligned to 256."""
    if hasattr(context, "set_device_memory"):
        context.set_device_memory(address, size)
    else:
        context.device_memory = address


def bindings(engine: CudaEngine, addresses: Mapping[str, int], profile: int) -> list[int]:
    """Return the pointer list of ``execute_v2``, in the engine's own order of bindings, which may be any.

    Up to 9 it has ``num_bindings`` entries, profile after profile; from 10 on ``num_io_tensors``.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    before = profile * len(names) if hasattr(engine, "num_bindings") else 0
    pointers = [0] * int(getattr(engine, "num_bindings", len(names)))
    for index, name in enumerate(names):
        pointers[before + index] = addresses[name]
    return pointers


def parser_error(error: ParserError, nodes: Sequence[tuple[str, str]]) -> str:
    """Return a parser error in words, with node and operator; before 10 the error holds only the node's index."""
    index = error.node()
    name, operator = nodes[index] if 0 <= index < len(nodes) else ("", "")
    if hasattr(error, "node_name") and hasattr(error, "node_operator"):
        name, operator = error.node_name() or name, error.node_operator() or operator
    description = " ".join(error.desc().split())
    return f"node {name or index} ({operator}): {description}" if name or operator else description


def layers(trt: ModuleType, engine: CudaEngine) -> tuple[tuple[str, str, str, str], ...]:
    """Return (name, kind, precision, tactic) of each layer from the engine inspector, or names where it has no more.

    The lean runtime has no inspector, and so no layers. The JSON of 8.6 has unescaped control characters
    (NVIDIA/TensorRT#2779). Up to 10 a tensor's type is the end of ``Format/Datatype``, in 11 it is ``Datatype``. Where
    shapes are open, 8.6 gives N/A there, and the weights' type decides.
    """
    if not hasattr(trt, "EngineInspector"):
        return ()
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        found = json.loads(text, strict=False).get("Layers", [])
    except ValueError:  # the inspector still has one line per layer
        text = inspector.get_engine_information(trt.LayerInformationFormat.ONELINE)
        found = [line.strip() for line in text.splitlines() if line.strip()]
    return tuple((str(layer), "", "", "") if isinstance(layer, str) else _layer(layer) for layer in found)


def _layer(layer: dict[str, Any]) -> tuple[str, str, str, str]:
    """Return one layer's name, kind, precision and tactic.

    The precision is the type of the layer's weights, else of its first input, because a quantized product may output
    floats. A tactic with tf32 in its name rounds its float32 factors.
    """
    tactic = str(layer.get("TacticName", ""))
    tensors = layer.get("Inputs") or layer.get("Outputs") or [{}]
    told = (layer.get("Weights"), tensors[0])
    kinds = [str(each.get("Type") or each.get("Datatype") or each.get("Format/Datatype", "")) for each in told if each]
    words = ((short, kind.lower()) for kind in kinds for word, short in _PRECISIONS.items() if word in kind.lower())
    precision = next((short for short, _ in words), "")
    if precision == "fp32" and "tf32" in tactic.lower():
        precision = "tf32"
    return str(layer.get("Name", "")), str(layer.get("LayerType", "")), precision, tactic


def keep_details(trt: ModuleType, config: BuilderConfig) -> None:
    """Make the engine keep its layers' precision and tactic, for the inspector."""
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def leave_out_libraries(trt: ModuleType, config: BuilderConfig) -> None:
    """Make the builder try only TensorRT's own tactics: cuDNN's and cuBLAS's are deprecated in 8.6, gone in 11."""
    tactics = config.get_tactic_sources()
    for name in ("CUDNN", "CUBLAS", "CUBLAS_LT"):
        source = getattr(trt.TacticSource, name, None)
        if source is not None:
            tactics &= ~(1 << int(source))
    config.set_tactic_sources(tactics)


def share_profiles(trt: ModuleType, config: BuilderConfig) -> None:
    """Let several execution contexts use one profile at once: a preview feature of 8.6, always so from 10 on."""
    feature = getattr(getattr(trt, "PreviewFeature", None), "PROFILE_SHARING_0806", None)
    if feature is not None:
        config.set_preview_feature(feature, True)


def make_logger(trt: ModuleType, sink: Callable[[str, str], None]) -> object:
    """Return a TensorRT logger that passes every message to `sink` as (severity name, text)."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        @called_back
        def log(self, severity: Named, message: str) -> None:
            sink(severity.name, message)

    return Logger()


def make_output_allocator(
    trt: ModuleType, reallocate: Callable[[int], int], notify: Callable[[tuple[int, ...]], None]
) -> OutputAllocator:
    """Return an output allocator for one tensor whose shape depends on the data.

    Args:
        trt: the tensorrt module.
        reallocate: takes a number of bytes, and returns the address of at least that many, or 0.
        notify: receives the shape.
    """

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        @called_back
        def reallocate_output(self, tensor_name: str, memory: Any, size: int, alignment: int) -> int:
            return reallocate(size)

        @called_back
        def reallocate_output_async(self, tensor_name: str, memory: Any, size: int, alignment: int, stream: Any) -> int:
            return reallocate(size)

        @called_back
        def notify_shape(self, tensor_name: str, shape: Sequence[int]) -> None:
            notify(tuple(int(size) for size in shape))

    return Allocator()


def watch_progress(trt: ModuleType, config: BuilderConfig, report: Callable[[str, float | None], None]) -> bool:
    """Make TensorRT report its progress (10 and later), and return whether it can."""
    if not hasattr(trt, "IProgressMonitor") or not hasattr(config, "progress_monitor"):
        return False

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        @called_back
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            report(phase_name, 0.0)

        @called_back
        def step_complete(self, phase_name: str, step: int) -> bool:
            report(phase_name, (step + 1) / max(1, self._steps.get(phase_name, 1)))
            return True

        @called_back
        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    config.progress_monitor = Monitor()
    return True
