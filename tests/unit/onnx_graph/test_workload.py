"""What a graph computes and moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support import models
from trtbatch.benchmark.bench import memory_ms
from trtbatch.core.store import load
from trtbatch.core.tensors import TensorSpec
from trtbatch.onnx_graph.read import load_onnx, read_specs
from trtbatch.onnx_graph.workload import ProductBytes, product_bytes
from trtbatch.util import environment

Cli = Callable[..., Any]


def moved(path: Path) -> ProductBytes | None:
    model = load_onnx(path)
    return product_bytes(model, read_specs(model, path.name)[0])


def test_products_move_their_inputs_weights_and_outputs(tmp_path: Path) -> None:
    """The classifier's convolution: 3·8·8 in, 16·8·8 out, 16·3·3·3 weights; its matrix product: 16 in, 5 out, 16·5."""
    found = moved(models.classifier(tmp_path / "m.onnx"))
    assert found == ProductBytes(4 * (16 * 27 + 16 * 5), 4 * (3 * 64 + 16 * 64 + 16 + 5))


def test_quantized_tensors_travel_in_their_8_bits(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"], name="/q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"], name="/dq"),
        helper.make_node("DequantizeLinear", ["w8", "scale", "zero"], ["w"], name="/dqw"),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="/product"),
        helper.make_node("QuantizeLinear", ["y", "scale", "zero"], ["yq"], name="/qy"),
        helper.make_node("DequantizeLinear", ["yq", "scale", "zero"], ["output"], name="/dqy"),
    ]
    constants: dict[str, np.ndarray[Any, Any]] = {
        "scale": np.array(0.1, np.float32),
        "zero": np.array(0, np.int8),
        "w8": np.ones((6, 4), np.int8),
    }
    path = models.save(
        tmp_path / "m.onnx", nodes, {"input": ["batch_size", 6]}, {"output": ["batch_size", 4]}, constants
    )
    assert moved(path) == ProductBytes(6 * 4, 6 + 4)


def test_half_precision_moves_half(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["input", "w"], ["output"], name="/product")]
    kinds = {"input": TensorProto.FLOAT16, "output": TensorProto.FLOAT16}
    path = models.save(
        tmp_path / "m.onnx",
        nodes,
        {"input": ["batch_size", 6]},
        {"output": ["batch_size", 4]},
        {"w": np.ones((6, 4), np.float16)},
        kinds,
    )
    assert moved(path) == ProductBytes(2 * 24, 2 * 10)


def test_without_products_or_shapes_nothing_is_known(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["input"], ["output"], name="/relu")]
    path = models.save(tmp_path / "m.onnx", nodes, {"input": ["batch_size", 6]}, {"output": ["batch_size", 6]})
    assert moved(path) is None
    model = onnx.load(str(models.classifier(tmp_path / "c.onnx")))
    assert product_bytes(model, [TensorSpec("input", "float32", ("batch_size", 3, "height", 8))]) is None


def test_an_engine_knows_what_its_products_move(engine: Path) -> None:
    sidecar = load(engine, "engine").sidecar
    known = sidecar.build.details["product_bytes"]
    assert known == {"weights": 4 * (16 * 27 + 16 * 5), "per_sample": 4 * (3 * 64 + 16 * 64 + 16 + 5)}
    assert memory_ms(sidecar, 8, 1e9) == pytest.approx(1e-6 * (known["weights"] + 8 * known["per_sample"]), rel=1e-4)
    assert memory_ms(sidecar, 8, None) is None


def test_without_nvml_there_is_no_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "open_nvml", lambda: None)
    assert environment.memory_bandwidth() is None
