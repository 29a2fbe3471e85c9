"""How much a graph computes and moves: multiply-accumulates and bytes, where the shapes are known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trtbatch.core.tensors import TensorSpec
from trtbatch.util import optional

__all__ = ["ProductBytes", "bytes_moved", "macs_of", "product_bytes"]

Shapes = Mapping[str, tuple[int, ...]]

_PRODUCTS = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


@dataclass(frozen=True)
class ProductBytes:
    """Bytes that convolutions and matrix products read and write: what a fused graph has to move at least.

    Args:
        weights: of all products, once a batch.
        per_sample: their other inputs and their outputs.
    """

    weights: int
    per_sample: int

    def ms(self, batch: int, bandwidth: float) -> float:
        """Return the time that moving them takes at `bandwidth`, bytes a second."""
        return 1e3 * (self.weights + batch * self.per_sample) / bandwidth


def macs_of(model: Any) -> int | None:
    """Multiply-accumulates of convolutions and matrix products; None where a shape isn't known.

    Args:
        model: whose shapes have been inferred.
    """
    _, shapes = _tensors(model)
    return _sum([_macs(node, shapes) for node in model.graph.node])


def bytes_moved(model: Any) -> int | None:
    """Return the bytes of inputs, weights and outputs of every operator, each once; None where a shape isn't known."""
    types, shapes = _tensors(model)
    names = [name for node in model.graph.node for name in (*node.input, *node.output) if name]
    return _sum([_bytes(name, types, shapes) for name in names])


def product_bytes(model: Any, inputs: Iterable[TensorSpec]) -> ProductBytes | None:
    """Return what the products of a model move; None where it has none, or a shape isn't known.

    A tensor that is dequantized on its way in, or quantized on its way out, travels in its 8 bits.

    Args:
        model: as it is built; it is changed.
        inputs: its specs; of open axes the batch alone.
    """
    onnx = optional.require("onnx", "read ONNX files")
    specs = {spec.name: spec.at(1) for spec in inputs}
    for info in model.graph.input:
        for dim, size in zip(info.type.tensor_type.shape.dim, specs.get(info.name, ())):
            if isinstance(size, str):
                return None
            dim.dim_value = size
    del model.graph.value_info[:]
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # whatever stops the inference: the figures are then unknown
        return None
    types, shapes = _tensors(model)
    constant = {tensor.name for tensor in model.graph.initializer}
    constant |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    for node in model.graph.node:  # weights that are cast, transposed or dequantized on their way
        if node.input and all(name in constant or not name for name in node.input):
            constant.update(node.output)
    makers = {output: node for node in model.graph.node for output in node.output}
    takers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)

    def travelling(name: str) -> str:
        maker, users = makers.get(name), takers.get(name, [])
        if maker is not None and maker.op_type == "DequantizeLinear":
            return str(maker.input[0])
        if len(users) == 1 and users[0].op_type == "QuantizeLinear":
            return str(users[0].output[0])
        return name

    products = [node for node in model.graph.node if node.op_type in _PRODUCTS]
    weights = [name for node in products for name in node.input if name in constant]
    moved = [name for node in products for name in (*node.input, node.output[0]) if name and name not in constant]
    totals = [_sum([_bytes(travelling(name), types, shapes) for name in names]) for names in (weights, moved)]
    if not products or totals[0] is None or totals[1] is None:
        return None
    return ProductBytes(totals[0], totals[1])


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _tensors(model: Any) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Element types and shapes by name, where all sizes are known."""
    graph = model.graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for info in (*graph.input, *graph.value_info, *graph.output):
        tensor = info.type.tensor_type
        sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
        kinds[info.name] = tensor.elem_type
        if tensor.HasField("shape") and min(sizes, default=0) >= 0:
            shapes[info.name] = tuple(sizes)
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    kinds[node.output[0]] = attribute.t.data_type
                    shapes[node.output[0]] = tuple(attribute.t.dims)
    return kinds, shapes


def _macs(node: Any, shapes: Shapes) -> int | None:
    """Multiply-accumulates of one node, by the definition of its operator; 0 for all that multiply no matrices.

    Conv: an output element takes C/group · kernel of them. ConvTranspose: an input element, as many. Gemm and
    MatMul: an output element takes the length of the axis that is summed over.
    """
    if node.op_type not in _PRODUCTS:
        return 0
    first, second, out = (shapes.get(name) for name in (node.input[0], node.input[1], node.output[0]))
    if first is None or second is None or out is None:
        return None
    if "ConvTranspose" in node.op_type:
        return math.prod(first) * math.prod(second[1:])
    if "Conv" in node.op_type:
        return math.prod(out) * math.prod(second[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(out) * (first[0] if transposed else first[-1])


def _bytes(name: str, kinds: Mapping[str, int], shapes: Shapes) -> int | None:
    onnx = optional.require("onnx", "read ONNX files")
    if name not in shapes or not kinds.get(name):
        return None
    return math.prod(shapes[name]) * int(onnx.helper.tensor_dtype_to_np_dtype(kinds[name]).itemsize)
