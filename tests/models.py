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
    """The bug that began it all: the first sample comes out right, the rest are zeros."""
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


def two_inputs(path: Path, first: str = "batch_size", second: str = "batch_size") -> Path:
    """``left (N, 4)`` and ``right (N, 4)`` → their difference, which tells them apart."""
    nodes = [helper.make_node("Sub", ["left", "right"], ["output"], name="/sub")]
    return save(path, nodes, {"left": [first, 4], "right": [second, 4]}, {"output": [first, 4]})


def batch_last(path: Path) -> Path:
    """A batch axis that is not the first: ``(4, N)`` → ``(4, N)``."""
    nodes = [helper.make_node("Neg", ["input"], ["output"], name="/neg")]
    return save(path, nodes, {"input": [4, "batch"]}, {"output": [4, "batch"]})
