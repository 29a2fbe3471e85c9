"""What types an ONNX graph computes in: which it holds, each product's own, its opset, and where it overflows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch import optional
from trtbatch.backends.onnxruntime import OnnxReference
from trtbatch.errors import ExecutionError, TrtbatchError
from trtbatch.onnxfile import load_onnx, opset_of

__all__ = ["PRODUCTS", "first_overflow", "float_types", "kinds", "lower_opset", "products", "raise_scales", "scales"]

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
    """The reduced types that the graph holds: of ``fp16``, ``bf16``, ``int8`` (quantized) and ``fp8``."""
    types = _elem_types(model)
    found = {_kind_of(each) for each in types.values() if each}
    has_quantizers = any(node.op_type in _QUANTIZERS for node in model.graph.node)
    return {kind for kind in found if kind in ("fp16", "bf16") or (kind in ("int8", "fp8") and has_quantizers)}


def products(model: Any) -> dict[str, str]:
    """What each convolution and matrix product computes in, by the node's name: its first input's type.

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
    """The 8-bit type behind a tensor that comes out of a DequantizeLinear; None for any other tensor."""
    node = makers.get(name)
    while node is not None and node.op_type in _PASSING:
        node = makers.get(node.input[0])
    if node is None or node.op_type != "DequantizeLinear":
        return None
    zero = node.input[2] if len(node.input) > 2 else ""
    return _kind_of(types.get(zero, 0) or types.get(node.input[0], 0)) or "int8"


def scales(model: Any) -> Iterator[Any]:
    """The initializers that are scales of QuantizeLinear and DequantizeLinear."""
    names = {node.input[1] for node in model.graph.node if node.op_type in _QUANTIZERS}
    return (tensor for tensor in model.graph.initializer if tensor.name in names)


def raise_scales(model: Any) -> int:
    """Make every scale positive in the type that it is stored in; returns how many were raised.

    A scale that became zero there (of weights that are all tiny) gets the type's smallest normal number: the values
    that it stands for quantize to zero either way, and TensorRT refuses a file with a scale of zero.
    """
    onnx = optional.require("onnx", "write ONNX files")
    raised = 0
    for tensor in scales(model):
        values = onnx.numpy_helper.to_array(tensor)
        bad = ~(values > 0)
        if bad.any() and values.dtype.kind == "f":
            mended = np.where(bad, np.finfo(values.dtype).tiny, values).astype(values.dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(mended, tensor.name))
            raised += int(bad.sum())
    return raised


_ALWAYS_SO = {("Cast", "saturate"), ("QuantizeLinear", "saturate")}
"""Attributes that opset 19 added, for the 8-bit floats alone; elsewhere they mean nothing."""


def lower_opset(model: Any, opset: int) -> bool:
    """Relabel the model with an older opset, where every node means the same there; whether it could be done.

    Tools raise the opset of a whole file for a type that it may not use. Each node must have, in the older opset,
    as many inputs and the same attributes, and quantization scales must be float32, which all opsets take.
    """
    onnx = optional.require("onnx", "write ONNX files")
    if opset_of(model) <= opset:
        return True
    if any(tensor.data_type != onnx.TensorProto.FLOAT for tensor in scales(model)) or "fp8" in kinds(model):
        return False
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx") and not _same_in(onnx, node, opset):
            return False
    for node in model.graph.node:
        for attribute in [each for each in node.attribute if (node.op_type, each.name) in _ALWAYS_SO]:
            node.attribute.remove(attribute)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    return True


def _same_in(onnx: Any, node: Any, opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(node.op_type, max_inclusive_version=opset)
    except onnx.defs.SchemaError:
        return False
    own = {each.name for each in node.attribute if (node.op_type, each.name) not in _ALWAYS_SO}
    return own <= set(schema.attributes) and len(node.input) <= schema.max_input


def first_overflow(onnx_file: Path, inputs: Mapping[str, NDArray[Any]]) -> str | None:
    """The first node, in the graph's order, that makes an infinity or NaN of finite half-precision inputs.

    ONNX Runtime runs the graph with every half-precision tensor as an output, so that each is rounded to its type.

    Returns:
        In words, with the node's name and operator; None where nothing overflows, or it can't be told.
    """
    onnx = optional.require("onnx", "read ONNX files")
    model = load_onnx(onnx_file, weights=True)
    if opset_of(model) == 0 or model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        return None
    types = _elem_types(model)
    half = onnx.TensorProto.FLOAT16
    declared = {info.name for info in model.graph.output}
    made = [name for node in model.graph.node for name in node.output if types.get(name) == half]
    for name in made:
        if name not in declared:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, half, None))
    try:
        found = OnnxReference.of_bytes(model.SerializeToString())(inputs)
    except (ExecutionError, TrtbatchError):
        return None
    for node in model.graph.node:
        for name in node.output:
            if name not in made or np.isfinite(found[name]).all():
                continue
            before = [found[each] for each in node.input if each in found]
            if all(np.isfinite(each).all() for each in before):
                largest = max((float(np.abs(each).max(initial=0)) for each in before), default=math.nan)
                return f"node {node.name or name} ({node.op_type}), whose inputs reach {largest:.3g}"
    return None
