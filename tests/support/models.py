"""Small ONNX models made with ``onnx.helper``: seconds to build, and an oracle in ONNX Runtime."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str | None]


def save(
    path: Path,
    nodes: Sequence[Any],
    inputs: dict[str, Shape],
    outputs: dict[str, Shape],
    constants: dict[str, np.ndarray[Any, Any]] | None = None,
    dtypes: dict[str, int] | None = None,
) -> Path:
    """Write a checked model of opset 17 and IR version 8, which every supported runtime reads."""
    kinds = dtypes or {}

    def infos(shapes: dict[str, Shape]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), list(shape))
            for name, shape in shapes.items()
        ]

    initializers = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "test", infos(inputs), infos(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def _weights(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32) * 0.3


def classifier(path: Path, batch: int | str = "batch_size", size: int | str = 8) -> Path:
    """Convolution, pooling and a linear layer: ``(N, 3, size, size)`` → ``(N, 5)``."""
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["features"], name="/conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["features"], ["active"], name="/relu"),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"], name="/pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="/flatten"),
        helper.make_node("Gemm", ["flat", "matrix"], ["output"], name="/head"),
    ]
    constants = {"kernel": _weights(16, 3, 3, 3), "matrix": _weights(16, 5)}
    return save(path, nodes, {"input": [batch, 3, size, size]}, {"output": [batch, 5]}, constants)


def deep(path: Path) -> Path:
    """Forty different convolutions: a TensorRT build of about half a minute."""
    nodes = []
    constants = {}
    channels = [3, *(32 + 8 * (i % 7) for i in range(40))]
    for i, (before, after) in enumerate(itertools.pairwise(channels)):
        constants[f"k{i}"] = _weights(after, before, 3, 3)
        source, target = f"x{i}" if i else "input", f"x{i + 1}" if i < 39 else "output"
        nodes.append(helper.make_node("Conv", [source, f"k{i}"], [f"c{i}"], name=f"/conv{i}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [target], name=f"/relu{i}"))
    return save(
        path, nodes, {"input": ["batch_size", 3, 56, 56]}, {"output": ["batch_size", channels[-1], 56, 56]}, constants
    )


def reshaped_to(path: Path, rows: int) -> Path:
    """A batch axis that says dynamic, and a Reshape with the constant `rows`."""
    nodes = [
        helper.make_node("Relu", ["input"], ["active"], name="/relu"),
        helper.make_node("Reshape", ["active", "shape"], ["output"], name="/flatten/Reshape"),
    ]
    constants = {"shape": np.array([rows, 12], np.int64)}
    return save(path, nodes, {"input": ["batch_size", 3, 4]}, {"output": ["batch_size", 12]}, constants)


def leaking(path: Path) -> Path:
    """Right shapes, wrong rows: each has the mean over the batch taken off."""
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], name="/mean", axes=[0], keepdims=1),
        helper.make_node("Sub", ["input", "mean"], ["output"], name="/sub"),
    ]
    return save(path, nodes, {"input": ["batch_size", 6]}, {"output": ["batch_size", 6]})


def first_row_only(path: Path) -> Path:
    """The bug that began it all: row 0 comes out right, the rest are zeros."""
    nodes = [
        helper.make_node("Shape", ["input"], ["shape"], name="/shape", end=1),
        helper.make_node("Squeeze", ["shape"], ["count"], name="/count"),
        helper.make_node("Range", ["zero", "count", "one"], ["index"], name="/range"),
        helper.make_node("Equal", ["index", "zero"], ["is_first"], name="/is_first"),
        helper.make_node("Cast", ["is_first"], ["flag"], name="/cast", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["flag", "axis"], ["mask"], name="/mask"),
        helper.make_node("Mul", ["input", "mask"], ["output"], name="/mul"),
    ]
    constants = {"zero": np.array(0, np.int64), "one": np.array(1, np.int64), "axis": np.array([1], np.int64)}
    return save(path, nodes, {"input": ["batch_size", 6]}, {"output": ["batch_size", 6]}, constants)


def two_inputs(path: Path, first: int | str = "batch_size", second: int | str = "batch_size") -> Path:
    """``left (N, 4)`` and ``right (N, 4)`` → their difference, which tells them apart."""
    nodes = [helper.make_node("Sub", ["left", "right"], ["output"], name="/sub")]
    return save(path, nodes, {"left": [first, 4], "right": [second, 4]}, {"output": [first, 4]})


def batch_last(path: Path) -> Path:
    """A batch axis that is not the first: ``(4, N)`` → ``(4, N)``."""
    nodes = [helper.make_node("Neg", ["input"], ["output"], name="/neg")]
    return save(path, nodes, {"input": [4, "batch"]}, {"output": [4, "batch"]})


def folded(path: Path) -> Path:
    """The batch folded into another axis and out again: right shapes, each row normalised by all of them."""
    nodes = [
        helper.make_node("Reshape", ["input", "one_row"], ["together"], name="/fold"),
        helper.make_node("Softmax", ["together"], ["shares"], name="/softmax", axis=1),
        helper.make_node("Reshape", ["shares", "rows"], ["output"], name="/unfold"),
    ]
    constants = {"one_row": np.array([1, -1], np.int64), "rows": np.array([-1, 4], np.int64)}
    return save(path, nodes, {"input": ["batch_size", 4]}, {"output": ["batch_size", 4]}, constants)


def shuffled(path: Path) -> Path:
    """Inputs and outputs declared in another order than they are used: ``difference = a − b``, ``doubled = 2·b``."""
    nodes = [
        helper.make_node("Sub", ["a", "b"], ["difference"], name="/sub"),
        helper.make_node("Add", ["b", "b"], ["doubled"], name="/add"),
    ]
    shape: Shape = ["batch_size", 4]
    return save(path, nodes, {"b": shape, "a": shape}, {"doubled": shape, "difference": shape})


def wide_ids(path: Path) -> Path:
    """int64 ids (N, 3) and mask (N, 3) → ``ids · mask``, exact above 2³¹."""
    nodes = [helper.make_node("Mul", ["ids", "mask"], ["output"], name="/mul")]
    shape: Shape = ["batch_size", 3]
    kinds = dict.fromkeys(("ids", "mask", "output"), TensorProto.INT64)
    return save(path, nodes, {"ids": shape, "mask": shape}, {"output": shape}, dtypes=kinds)


def negated(path: Path, dtype: int = TensorProto.FLOAT, shape: Shape = ("batch_size", 4)) -> Path:
    """``output = −input`` in any dtype and shape."""
    nodes = [helper.make_node("Neg", ["input"], ["output"], name="/neg")]
    return save(path, nodes, {"input": shape}, {"output": shape}, dtypes=dict.fromkeys(("input", "output"), dtype))


def whole_and_rows(path: Path) -> Path:
    """Images ``(N, 3, 8, 8)`` as they are, and their sum, a scalar for the whole batch."""
    nodes = [
        helper.make_node("Relu", ["input"], ["rows"], name="/relu"),
        helper.make_node("ReduceSum", ["input"], ["total"], name="/total", keepdims=0),
    ]
    outputs: dict[str, Shape] = {"rows": ["batch_size", 3, 8, 8], "total": []}
    return save(path, nodes, {"input": ["batch_size", 3, 8, 8]}, outputs)


def summarised(path: Path) -> Path:
    """Rows, their mean over the batch ``(1, 4)``, their sum (a scalar), and a constant: one output is per sample."""
    nodes = [
        helper.make_node("Relu", ["input"], ["rows"], name="/relu"),
        helper.make_node("ReduceMean", ["input"], ["mean"], name="/mean", axes=[0], keepdims=1),
        helper.make_node("ReduceSum", ["input"], ["total"], name="/total", keepdims=0),
        helper.make_node("Identity", ["anchors"], ["constant"], name="/constant"),
    ]
    outputs: dict[str, Shape] = {"rows": ["batch_size", 4], "mean": [1, 4], "total": [], "constant": [2, 4]}
    return save(path, nodes, {"input": ["batch_size", 4]}, outputs, {"anchors": _weights(2, 4)})


def nonzero_twice(path: Path) -> Path:
    """Rows, and where the input is positive and where it is above 2: two lists whose length the data decides."""
    nodes = [
        helper.make_node("Relu", ["input"], ["rows"], name="/relu"),
        helper.make_node("Greater", ["input", "zero"], ["positive"], name="/positive"),
        helper.make_node("NonZero", ["positive"], ["where_positive"], name="/nonzero_1"),
        helper.make_node("Greater", ["input", "two"], ["large"], name="/large"),
        helper.make_node("NonZero", ["large"], ["where_large"], name="/nonzero_2"),
    ]
    outputs: dict[str, Shape] = {"rows": ["batch_size", 4], "where_positive": [2, "found"], "where_large": [2, "many"]}
    kinds = dict.fromkeys(("where_positive", "where_large"), TensorProto.INT64)
    constants = {"zero": np.array(0, np.float32), "two": np.array(2, np.float32)}
    return save(path, nodes, {"input": ["batch_size", 4]}, outputs, constants, kinds)


def detector(path: Path) -> Path:
    """``num_detections (N, 1)`` and ``boxes (N, 5, 4)``, of which only so many are valid: the rest is whatever.

    The padding here is the mean over the batch, as if another sample's boxes had been left in the buffer.
    """
    nodes = [
        helper.make_node("ReduceMax", ["input"], ["scores"], name="/scores", axes=[2], keepdims=0),
        helper.make_node("TopK", ["scores", "five"], ["sorted", "order"], name="/topk", axis=1),
        helper.make_node("Greater", ["sorted", "limit"], ["valid"], name="/valid"),
        helper.make_node("Cast", ["valid"], ["ones"], name="/ones", to=TensorProto.INT32),
        helper.make_node("ReduceSum", ["ones", "axis"], ["num_detections"], name="/count", keepdims=1),
        helper.make_node("Unsqueeze", ["valid", "last"], ["valid_boxes"], name="/valid_boxes"),
        helper.make_node("Unsqueeze", ["sorted", "last"], ["tall"], name="/tall"),
        helper.make_node("Mul", ["tall", "corners"], ["all_boxes"], name="/boxes"),
        helper.make_node("ReduceMean", ["all_boxes"], ["left_over"], name="/left_over", axes=[0], keepdims=1),
        helper.make_node("Where", ["valid_boxes", "all_boxes", "left_over"], ["boxes"], name="/where"),
    ]
    constants: dict[str, np.ndarray[Any, Any]] = {
        "five": np.array([5], np.int64),
        "limit": np.array(1.0, np.float32),
        "axis": np.array([1], np.int64),
        "last": np.array([2], np.int64),
        "corners": np.array([1, 2, 3, 4], np.float32),
    }
    outputs: dict[str, Shape] = {"num_detections": ["batch_size", 1], "boxes": ["batch_size", 5, 4]}
    kinds = {"num_detections": TensorProto.INT32}
    return save(path, nodes, {"input": ["batch_size", 9, 3]}, outputs, constants, kinds)


def suppressed(path: Path) -> Path:
    """ONNX's own NonMaxSuppression over a batch: ``selected (found, 3)``, and the scores passed on as rows."""
    nodes = [
        helper.make_node("Mul", ["boxes", "first_half"], ["centres"], name="/centres"),
        helper.make_node("Abs", ["boxes"], ["positive"], name="/positive"),
        helper.make_node("Mul", ["positive", "second_half"], ["sizes"], name="/sizes"),
        helper.make_node("Add", ["centres", "sizes"], ["valid"], name="/valid"),
        helper.make_node(
            "NonMaxSuppression",
            ["valid", "scores", "most", "iou", "least"],
            ["selected"],
            name="/nms",
            center_point_box=1,
        ),
        helper.make_node("ReduceMax", ["scores"], ["best"], name="/best", axes=[1, 2], keepdims=0),
    ]
    constants: dict[str, np.ndarray[Any, Any]] = {
        "first_half": np.array([1, 1, 0, 0], np.float32),
        "second_half": np.array([0, 0, 1, 1], np.float32),
        "most": np.array([3], np.int64),
        "iou": np.array([0.5], np.float32),
        "least": np.array([0.2], np.float32),
    }
    inputs: dict[str, Shape] = {"boxes": ["batch_size", 6, 4], "scores": ["batch_size", 2, 6]}
    outputs: dict[str, Shape] = {"selected": ["found", 3], "best": ["batch_size"]}
    return save(path, nodes, inputs, outputs, constants, {"selected": TensorProto.INT64})


def passed_through(path: Path) -> Path:
    """An output that is the input, next to one that is computed."""
    nodes = [
        helper.make_node("Identity", ["input"], ["same"], name="/same"),
        helper.make_node("Neg", ["input"], ["negated"], name="/neg"),
    ]
    shape: Shape = ["batch_size", 4]
    return save(path, nodes, {"input": shape}, {"same": shape, "negated": shape})


def external(path: Path) -> Path:
    """:func:`classifier`, its weights in a file next to it."""
    model = onnx.load(classifier(path))
    onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    return path


def oddly_named(path: Path) -> Path:
    """Names with slashes, colons and letters beyond ASCII."""
    nodes = [helper.make_node("Neg", ["bild/größe:0"], ["出力/scores:0"], name="/нет")]
    shape: Shape = ["batch_size", 4]
    return save(path, nodes, {"bild/größe:0": shape}, {"出力/scores:0": shape})


def overflowing(path: Path, dtype: int = TensorProto.FLOAT, reach: float = 1e4) -> Path:
    """``(N, 8)`` → ``(N, 5)``: x·1e4 squared, which no float16 holds, then normalised, then a matrix product."""
    kind = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    nodes = [
        helper.make_node("Mul", ["input", "reach"], ["far"], name="/scale/Mul"),
        helper.make_node("Mul", ["far", "far"], ["square"], name="/square/Mul"),
        helper.make_node("ReduceMean", ["square"], ["mean"], name="/mean/ReduceMean", axes=[1], keepdims=1),
        helper.make_node("Div", ["square", "mean"], ["normal"], name="/norm/Div"),
        helper.make_node("MatMul", ["normal", "matrix"], ["output"], name="/head/MatMul"),
    ]
    constants = {"reach": np.array(reach, kind), "matrix": _weights(8, 5).astype(kind)}
    return save(
        path,
        nodes,
        {"input": ["batch_size", 8]},
        {"output": ["batch_size", 5]},
        constants,
        {"input": dtype, "output": dtype},
    )


def wide(path: Path) -> Path:
    """``(N, 32, 8, 8)`` → ``(N, 16)``: channels enough for ModelOpt to quantize to fp8 too."""
    nodes = [
        helper.make_node("Conv", ["input", "first"], ["a"], name="/first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="/relu"),
        helper.make_node("Conv", ["b", "second"], ["c"], name="/second", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["pooled"], name="/pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="/flatten"),
        helper.make_node("Gemm", ["flat", "matrix"], ["output"], name="/head"),
    ]
    constants = {"first": _weights(32, 32, 3, 3), "second": _weights(64, 32, 3, 3), "matrix": _weights(64, 16)}
    return save(path, nodes, {"input": ["batch_size", 32, 8, 8]}, {"output": ["batch_size", 16]}, constants)
