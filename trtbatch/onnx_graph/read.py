"""What an ONNX file says of itself: inputs, outputs, which axis is the batch, and where a batch got fixed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trtbatch.core.hints import EXPORT
from trtbatch.core.tensors import BATCH_AXIS, TensorSpec
from trtbatch.errors import ArtifactError, UsageError
from trtbatch.onnx_graph.run import fold
from trtbatch.util import optional

__all__ = [
    "FixedBatch",
    "external_files",
    "fixed_batch_nodes",
    "load_onnx",
    "node_in_error",
    "read_specs",
    "what_fixes_the_batch",
]

_SHAPE_INPUT = {"Reshape": 1, "Expand": 1, "Tile": 1, "ConstantOfShape": 0, "Resize": 3}
"""Operators that take a shape, and which of their inputs it is (ONNX operator specification)."""

_BATCH_NAMES = frozenset({BATCH_AXIS, "batch", "n", "N", "batchsize", "bs", "B", "b"})


@dataclass(frozen=True)
class FixedBatch:
    """A node that fixes the batch, and the constant by which it does."""

    node: str
    operator: str
    constant: str
    value: str

    def __str__(self) -> str:
        return f"node {self.node} ({self.operator}) has the constant {self.value} ({self.constant})"


def load_onnx(path: Path, weights: bool = False) -> Any:
    """Return the ONNX model of a file, external weights left out unless asked for.

    Raises:
        ArtifactError: not an ONNX file, or a damaged one.
    """
    onnx = optional.require("onnx", "read ONNX files")
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "doesn't exist"
        raise ArtifactError(f"{path} {state}", f"run: {EXPORT}, or name another file")
    again = "export it again" if path.suffix == ".onnx" else "name an ONNX file"
    try:
        model = onnx.load(str(path), load_external_data=weights)
    except OSError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtifactError(f"{path} is not a readable ONNX file: {reason}", again) from error
    _refuse_no_text(model, path)
    _refuse_outside(model, path)
    if not model.graph.input or not model.graph.output:
        raise ArtifactError(f"{path} is not an ONNX model: it has no inputs or no outputs", again)
    return model


def _refuse_no_text(model: Any, path: Path) -> None:
    """Raise where a name is no UTF-8: protobuf then hands out bytes for it.

    Raises:
        ArtifactError: showing the name.
    """
    graph = model.graph
    words = (word for node in graph.node for word in (node.name, node.op_type, *node.input, *node.output))
    others = (each.name for each in (*graph.initializer, *graph.input, *graph.output, *graph.value_info))
    broken = next((word for word in (*words, *others) if isinstance(word, bytes)), None)
    if broken is not None:
        raise ArtifactError(f"{path} is damaged: the name {broken!r} is no text", "export it again")


def _refuse_outside(model: Any, path: Path) -> None:
    """Raise where external weights lie outside the model's folder: an untrusted file may not read others.

    onnx refuses that when it loads the weights; ONNX Runtime before 1.24 and TensorRT's parser don't.

    Raises:
        ArtifactError: naming the tensor and the place.
    """
    onnx = optional.require("onnx", "read ONNX files")
    folder = path.resolve().parent
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if Path(location).is_absolute() or not (folder / location).resolve().is_relative_to(folder):
            raise ArtifactError(
                f"{path}: the weights {tensor.name!r} are to be read from {location!r}, outside the model's folder",
                "put them next to the model, and save it with that relative name",
            )


def external_files(model: Any) -> list[str]:
    """Return the files next to the model that hold its weights, each once."""
    names = (
        entry.value for tensor in _tensors(model.graph) for entry in tensor.external_data if entry.key == "location"
    )
    return list(dict.fromkeys(names))


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor of a graph: initializers, attributes, and those of the graphs inside."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                yield from _tensors(inner)


def opset_of(model: Any) -> int:
    """Return the version of the default operator set."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def read_specs(model: Any, where: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs of a model that has no sidecar.

    An input's batch axis is the first axis where that is open; else the open axis with a batch's name, or the
    only open one; of a model that is fixed throughout, the first axis. In a model with an open batch, inputs
    that are fixed have none. An output's batch axis is the one of the inputs' name; what an axis of another
    name is, only running the model tells (see :func:`trtbatch.builder.outputs.observed`). Initializers that are listed
    as inputs are not inputs.

    Raises:
        UsageError: a tensor without a number of axes, an unclear batch axis, or inputs whose batch axes have
            different names.
    """
    initializers = {tensor.name for tensor in model.graph.initializer}
    infos = [info for info in model.graph.input if info.name not in initializers]
    inputs = [_spec(info, where) for info in infos]
    names = {spec.name: spec.shape[spec.batch_axis] for spec in inputs if spec.batch_axis is not None}
    open_names = {name: size for name, size in names.items() if isinstance(size, str)}
    if len(set(open_names.values())) > 1:
        first, a = next(iter(open_names.items()))
        second, b = next((name, size) for name, size in open_names.items() if size != a)
        raise UsageError(
            f"{where}: inputs {first!r} ({a}) and {second!r} ({b}) have batch axes of different names",
            "one batch size must serve all inputs: export them with one name for the axis",
        )
    fixed = next((size for size in names.values() if isinstance(size, int)), None)
    batch = next(iter(open_names.values()), fixed)
    if open_names:
        inputs = [_open_batch(spec) for spec in inputs]
    outputs = [_output_spec(info, where, batch) for info in model.graph.output]
    return tuple(inputs), tuple(outputs)


def _output_spec(info: Any, where: str, batch: int | str | None) -> TensorSpec:
    """Return an output with its batch axis: the one of this name, or in a fixed model the first of this size."""
    dtype, sizes = _type_of(info, where)
    known = [axis for axis, size in enumerate(sizes) if size == batch and (axis == 0 or isinstance(size, str))]
    spec = TensorSpec(info.name, dtype, tuple(sizes), known[0] if known else None)
    return replace(spec, shape=spec.at_name(BATCH_AXIS)) if known and isinstance(batch, str) else spec


def _open_batch(spec: TensorSpec) -> TensorSpec:
    """Return the spec in a model whose batch is open: the axis under our name, or none where it is fixed."""
    if spec.batch_axis is None or spec.fixed_batch is not None:
        return replace(spec, batch_axis=None)
    return replace(spec, shape=spec.at_name(BATCH_AXIS))


def _spec(info: Any, where: str) -> TensorSpec:
    dtype, sizes = _type_of(info, where)
    if sizes and isinstance(sizes[0], str) and sizes[0] == f"{info.name}_0":
        sizes[0] = BATCH_AXIS  # an unnamed first axis of an input is the batch, as tools write it
    return TensorSpec(info.name, dtype, tuple(sizes), _batch_axis(sizes, info.name, where))


def _type_of(info: Any, where: str) -> tuple[str, list[int | str]]:
    """Return numpy's dtype name and the sizes of a tensor; open axes without a name are called ``NAME_AXIS``."""
    onnx = optional.require("onnx", "read ONNX files")
    tensor_type = info.type.tensor_type
    if not info.type.HasField("tensor_type") or not tensor_type.HasField("shape"):
        raise UsageError(f"{where}: {info.name!r} is not a tensor with a known number of axes", "export it with shapes")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type).name
    sizes: list[int | str] = [
        dim.dim_value if _is_size(dim, axis) else dim.dim_param or f"{info.name}_{axis}"
        for axis, dim in enumerate(tensor_type.shape.dim)
    ]
    return dtype, sizes


def _is_size(dim: Any, axis: int) -> bool:
    """Whether a dimension is fixed. Some exporters write an open batch as 0 or −1; elsewhere 0 is a size."""
    return dim.HasField("dim_value") and (dim.dim_value > 0 or (dim.dim_value == 0 and axis > 0))


def _batch_axis(sizes: list[int | str], name: str, where: str) -> int | None:
    if not sizes:
        return None
    open_axes = [axis for axis, size in enumerate(sizes) if isinstance(size, str)]
    if not open_axes or open_axes[0] == 0:
        return 0
    named = [axis for axis in open_axes if sizes[axis] in _BATCH_NAMES]
    candidates = named or open_axes
    if len(candidates) > 1:
        raise UsageError(
            f"{where}: the batch axis of {name!r} is unclear, {tuple(sizes)}", f"name it {BATCH_AXIS} when exporting"
        )
    return candidates[0]


def what_fixes_the_batch(path: Path, message: str = "") -> FixedBatch | None:
    """Return the node and constant that fix the batch of a file.

    They are those at which ONNX Runtime failed, else the likeliest.

    Args:
        path: the ONNX file.
        message: ONNX Runtime's, where it failed.
    """
    with tempfile.TemporaryDirectory(prefix="trtbatch-") as folder:
        model = load_onnx(fold(path, Path(folder)))
    return node_in_error(model, message) or next(iter(fixed_batch_nodes(model)), None)


def fixed_batch_nodes(model: Any) -> list[FixedBatch]:
    """Nodes that give a fixed size to what carries the batch, surest first.

    Found by ONNX shape inference from inputs whose batch axis is named: a Reshape, Expand, Tile, Resize or
    ConstantOfShape with a constant shape whose first entry is a size.
    """
    onnx = optional.require("onnx", "read ONNX files")
    constants = _constants(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # a graph that can't be inferred: the constants alone must do
        inferred = model
    carries = {info.name for info in model.graph.input if _is_open(info)}
    carries |= {info.name for info in inferred.graph.value_info if _is_open(info)}
    found: list[tuple[int, FixedBatch]] = []
    for node in model.graph.node:
        index = _SHAPE_INPUT.get(node.op_type)
        if index is None or len(node.input) <= index or node.input[index] not in constants:
            continue
        values = constants[node.input[index]].flatten().tolist()
        tiled = node.op_type == "Tile" and values and values[0] == 1
        sizes_a_shape = node.op_type == "ConstantOfShape" and len(values) < 2  # its output is a shape, not data
        if not values or values[0] <= 0 or tiled or sizes_a_shape:
            continue
        fixed = FixedBatch(node.name or node.output[0], node.op_type, node.input[index], str(values))
        doubts = (node.input[0] not in carries) + (-1 in values or 0 in values)
        if node.op_type != "Expand" and node.input[0] not in carries and doubts == 2:
            continue
        found.append((doubts, fixed))
    return [fixed for _, fixed in sorted(found, key=lambda pair: pair[0])]


def _constants(model: Any) -> dict[str, Any]:
    """Small integer constants of the graph by name: initializers and Constant nodes."""
    onnx = optional.require("onnx", "read ONNX files")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors.update((node.output[0], each.t) for each in node.attribute if each.name == "value")
    integers = {onnx.TensorProto.INT64, onnx.TensorProto.INT32}
    return {
        name: onnx.numpy_helper.to_array(tensor)
        for name, tensor in tensors.items()
        if tensor.data_type in integers and tensor.data_location != onnx.TensorProto.EXTERNAL
    }


def _is_open(info: Any) -> bool:
    dims = info.type.tensor_type.shape.dim
    return len(dims) > 0 and any(not dim.HasField("dim_value") for dim in dims)


def node_in_error(model: Any, message: str) -> FixedBatch | None:
    """Return the node that ONNX Runtime names in an error, and the constant that it meets there."""
    match = re.search(r"running (\w+) node\. Name:'([^']*)'", message)
    if match is None:
        return None
    node = next((node for node in model.graph.node if node.name == match[2]), None)
    if node is None:
        return None
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    constants = _constants(model)
    given = [name for name in node.input if name in shapes]
    for name in given:
        if name in constants and constants[name].ndim == 1:
            return FixedBatch(match[2], match[1], name, str(constants[name].tolist()))
    for name in given:
        return FixedBatch(match[2], match[1], name, f"of shape {shapes[name]}")
    return None
