"""What types an ONNX graph computes in: which it holds, each product's own, its opset, and where it overflows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.errors import PrecisionError, TrtbatchError
from trtbatch.onnx_graph.read import load_onnx, opset_of
from trtbatch.onnx_graph.run import OnnxReference
from trtbatch.util import optional

__all__ = [
    "PRODUCTS",
    "Overflow",
    "OverflowSearch",
    "first_overflow",
    "float_types",
    "half_inputs_and_outputs",
    "kinds",
    "lower_opset",
    "products",
    "raise_scales",
    "scales",
    "tell_kernels",
]

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that multiply matrices: where the time goes, and what a precision is asked for."""

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")

_FP8 = ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ")


def _kind_of(elem_type: int) -> str | None:
    """Our word for a type that computes; None for integers that only count."""
    if not elem_type:
        return None
    onnx = optional.require("onnx", "read ONNX files")
    name = str(onnx.TensorProto.DataType.Name(elem_type))
    return {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "INT8": "int8"}.get(
        name, "fp8" if name in _FP8 else None
    )


def _elem_types(model: Any) -> dict[str, int]:
    """Element type of every tensor that is declared or can be inferred."""
    onnx = optional.require("onnx", "read ONNX files")
    with contextlib.suppress(Exception):  # what stops the inference leaves some tensors untold
        model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for info in (*graph.input, *graph.value_info, *graph.output):
        types[info.name] = info.type.tensor_type.elem_type
    return types


def kinds(model: Any) -> set[str]:
    """Return the reduced types that the graph holds: of ``fp16``, ``bf16``, ``int8`` (quantized) and ``fp8``."""
    types = _elem_types(model)
    found = {_kind_of(each) for each in types.values() if each}
    has_quantizers = any(node.op_type in _QUANTIZERS for node in model.graph.node)
    return {kind for kind in found if kind in ("fp16", "bf16") or (kind in ("int8", "fp8") and has_quantizers)}


def products(model: Any) -> dict[str, str]:
    """Return what each convolution and matrix product computes in, by the node's name: its first input's type.

    A product of two dequantized tensors computes in their 8 bits.
    """
    types = _elem_types(model)
    makers = {output: node for node in model.graph.node for output in node.output}
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in PRODUCTS and node.name:
            quantized = [_quantized_kind(name, makers, types) for name in node.input[:2]]
            own = _kind_of(types.get(node.input[0], 0))
            if None not in quantized:
                own = quantized[0]
            if own is not None:
                found[node.name] = own
    return found


_TYPELESS = ("Cast", "Constant", "ConstantOfShape", "Shape", "Identity", *_QUANTIZERS)
"""Operators that compute nothing in a float type of their own."""


def float_types(model: Any) -> dict[str, str]:
    """``fp32`` or ``fp16``, by the name of each node that gives tensors of one of the two."""
    types = _elem_types(model)
    found: dict[str, str] = {}
    for node in model.graph.node:
        given = {_kind_of(types.get(name, 0)) for name in node.output if name} if node.name else set()
        if len(given) == 1 and given <= {"fp32", "fp16"} and node.op_type not in _TYPELESS:
            found[node.name] = str(given.pop())
    return found


_PASSING = ("Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Cast")


def _quantized_kind(name: str, makers: Mapping[str, Any], types: Mapping[str, int]) -> str | None:
    """Return the 8-bit type behind a tensor that comes out of a DequantizeLinear; None for any other tensor."""
    node = makers.get(name)
    while node is not None and node.op_type in _PASSING:
        node = makers.get(node.input[0])
    if node is None or node.op_type != "DequantizeLinear":
        return None
    zero = node.input[2] if len(node.input) > 2 else ""
    return _kind_of(types.get(zero, 0) or types.get(node.input[0], 0)) or "int8"


def scales(model: Any) -> Iterator[Any]:
    """Return the initializers that are scales of QuantizeLinear and DequantizeLinear."""
    names = {node.input[1] for node in model.graph.node if node.op_type in _QUANTIZERS}
    return (tensor for tensor in model.graph.initializer if tensor.name in names)


def raise_scales(model: Any) -> int:
    """Make every scale positive in the type that it is stored in; returns how many were raised.

    A scale that became zero there (of weights that are all tiny) gets the type's smallest normal number: the values
    that it stands for quantize to zero either way, and TensorRT refuses a file with a scale of zero.

    Raises:
        PrecisionError: a scale that is negative, infinite or NaN.
    """
    onnx = optional.require("onnx", "write ONNX files")
    raised = 0
    for tensor in scales(model):
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.kind != "f":
            continue
        if not (np.isfinite(values) & (values >= 0)).all():
            worst = values[~(np.isfinite(values) & (values >= 0))].flat[0]
            raise PrecisionError(f"the quantization scale {tensor.name!r} is {worst}", "calibrate on other samples")
        if not values.all():
            mended = np.where(values == 0, np.finfo(values.dtype).tiny, values).astype(values.dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(mended, tensor.name))
            raised += int((values == 0).sum())
    return raised


_ALWAYS_SO = {("Cast", "saturate"), ("QuantizeLinear", "saturate")}
"""Attributes that opset 19 added, for the 8-bit floats alone; elsewhere they mean nothing."""

_AXES_ATTRIBUTE = ("Max", "Mean", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
"""Reductions whose axes became an input in opset 18 (ReduceSum's did in 13)."""

OLDEST = 13
"""Below it Softmax and others mean something else under the same name."""


def lower_opset(model: Any, opset: int) -> str | None:
    """Relabel the model with an older opset, where every node means the same there; what stands against it, or None.

    Tools raise the opset of a whole file for a type that it may not use. From opset 13 on operators were given types,
    attributes and optional inputs, and a node that uses none of the new ones means what it meant. Axes of reductions
    go back to where they were. Quantization scales must be float32, which all opsets take, and 8-bit floats and
    bfloat16 are newer than most.
    """
    onnx = optional.require("onnx", "write ONNX files")
    if opset_of(model) <= opset:
        return None
    newer = kinds(model) & {"bf16", "fp8"}
    if newer or opset < OLDEST:
        return f"it holds {newer.pop()}" if newer else f"opset {opset} is older than {OLDEST}"
    if any(tensor.data_type != onnx.TensorProto.FLOAT for tensor in scales(model)):
        return "its quantization scales are float16"
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in lowered.graph.initializer}
    for node in lowered.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        for attribute in [each for each in node.attribute if (node.op_type, each.name) in _ALWAYS_SO]:
            node.attribute.remove(attribute)
        _lower_axes(onnx, node, constants, opset)
        if not _same_in(onnx, node, opset):
            return f"node {node.name} ({node.op_type}) is of a newer opset"
    for entry in lowered.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    model.CopyFrom(lowered)
    return None


def _lower_axes(onnx: Any, node: Any, constants: Mapping[str, Any], opset: int) -> None:
    """Constant axes of a reduction as the attribute that they were before opset 18."""
    is_reduction = node.op_type.removeprefix("Reduce") in _AXES_ATTRIBUTE and node.op_type.startswith("Reduce")
    if is_reduction and opset < 18 and len(node.input) == 2 and node.input[1] in constants:
        axes = onnx.numpy_helper.to_array(constants[node.input[1]]).tolist()
        del node.input[1]
        if axes:
            node.attribute.append(onnx.helper.make_attribute("axes", axes))


def _same_in(onnx: Any, node: Any, opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(node.op_type, max_inclusive_version=opset)
    except onnx.defs.SchemaError:
        return False
    own = {each.name for each in node.attribute}
    return own <= set(schema.attributes) and len(node.input) <= schema.max_input


def tell_kernels(model: Any, before: Any) -> None:
    """Write down the kernel's shape of every convolution whose node leaves it to its weights.

    Quantized weights are no constants any more, and TensorRT 8.6's parser then takes the shape that isn't there for
    one of ones.

    Args:
        model: the model with quantized weights; it is changed in place.
        before: the model in which the weights are still constants.
    """
    onnx = optional.require("onnx", "write ONNX files")
    sizes = {tensor.name: list(tensor.dims) for tensor in before.graph.initializer}
    kernels = {
        node.output[0]: sizes[node.input[1]][2:]
        for node in before.graph.node
        if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in sizes
    }
    for node in model.graph.node:
        told = any(attribute.name == "kernel_shape" for attribute in node.attribute)
        if node.op_type in ("Conv", "ConvTranspose") and node.output[0] in kernels and not told:
            node.attribute.append(onnx.helper.make_attribute("kernel_shape", kernels[node.output[0]]))


def half_inputs_and_outputs(model: Any) -> None:
    """Make the float32 inputs and outputs of a graph float16, with a Cast behind and before each."""
    onnx = optional.require("onnx", "write ONNX files")
    single, half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    initializers = {tensor.name for tensor in model.graph.initializer}
    casts = []
    for info in model.graph.input:
        if info.type.tensor_type.elem_type == single and info.name not in initializers:
            wide = f"{info.name}_fp32"
            for node in model.graph.node:
                node.input[:] = [wide if name == info.name else name for name in node.input]
            casts.append(onnx.helper.make_node("Cast", [info.name], [wide], name=f"{info.name}_from_fp16", to=single))
            info.type.tensor_type.elem_type = half
    first = len(casts)
    for info in model.graph.output:
        if info.type.tensor_type.elem_type == single:
            wide = f"{info.name}_fp32_out"
            for node in model.graph.node:
                node.input[:] = [wide if name == info.name else name for name in node.input]
                node.output[:] = [wide if name == info.name else name for name in node.output]
            casts.append(onnx.helper.make_node("Cast", [wide], [info.name], name=f"{info.name}_to_fp16", to=half))
            info.type.tensor_type.elem_type = half
    nodes = [*casts[:first], *model.graph.node, *casts[first:]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@dataclass(frozen=True)
class Overflow:
    """Where half precision first doesn't hold a value.

    Args:
        node: that makes it, or that takes it where a conversion stands between.
        words: node, operator, and what reaches it.
    """

    node: str
    words: str


class OverflowSearch:
    """Looks for the first node, in the graph's order, that makes infinity or NaN of finite inputs, in half precision.

    ONNX Runtime runs the graph with every float tensor as an output, so that each half-precision one is rounded to
    its type once. (It doesn't round between layers, so nothing that follows can be told.) Minus infinity alone is
    no overflow: masks are made so.

    Args:
        onnx_file: the graph; one over 2 GB, or one that the CPU can't run, tells nothing.
    """

    def __init__(self, onnx_file: Path) -> None:
        onnx = optional.require("onnx", "read ONNX files")
        model = load_onnx(onnx_file, weights=True)
        types = _elem_types(model)
        half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
        self._nodes = list(model.graph.node)
        self._halves = {name for name, kind in types.items() if kind == half}
        self._run: OnnxReference | None = None
        if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
            return
        declared = {info.name for info in model.graph.output}
        for name in (name for node in self._nodes for name in node.output if types.get(name) in (half, single)):
            if name not in declared:
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, types[name], None))
        with contextlib.suppress(TrtbatchError):
            self._run = OnnxReference.unoptimised(model.SerializeToString())

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Overflow | None:
        """Return the overflow on these inputs; None where nothing overflows, or where that can't be found out."""
        if self._run is None:
            return None
        try:
            found = dict(inputs) | self._run(inputs)
        except TrtbatchError:
            return None
        for node in self._nodes:
            for name in node.output:
                if name not in self._halves or name not in found or not _overflows(found[name]):
                    continue
                before = [found[each] for each in node.input if each in found and found[each].dtype.kind == "f"]
                if before and all(np.isfinite(each).all() for each in before):
                    largest = max(float(np.abs(each).max(initial=0)) for each in before)
                    named = _meant(node, self._nodes)
                    words = f"node {named.name} ({named.op_type}), whose inputs reach {largest:.3g}"
                    return Overflow(named.name, words)
        return None


def first_overflow(onnx_file: Path, inputs: Mapping[str, NDArray[Any]]) -> Overflow | None:
    """Return what one :class:`OverflowSearch` of a file finds on these inputs."""
    return OverflowSearch(onnx_file)(inputs)


def _overflows(array: NDArray[Any]) -> bool:
    return bool((np.isnan(array) | (array == np.inf)).any())


def _meant(node: Any, nodes: Sequence[Any]) -> Any:
    """Return the node that a conversion belongs to: the one before it, else the one after it."""
    while node.op_type == "Cast":
        maker = next((each for each in nodes if node.input[0] in each.output), None)
        taker = next((each for each in nodes if node.output[0] in each.input), None)
        other = maker or taker
        if other is None or (other.op_type == "Cast" and other is maker):
            return other or node
        node = other
    return node
