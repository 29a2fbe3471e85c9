"""What a graph computes in, on graphs made by hand; ONNX Runtime says what they really give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support import models
from trtbatch.errors import PrecisionError
from trtbatch.onnx_graph.dtypes import (
    first_overflow,
    float_types,
    kinds,
    lower_opset,
    products,
    raise_scales,
    scales,
)
from trtbatch.onnx_graph.run import OnnxReference


def quantized(path: Path, opset: int = 19, scale: float = 0.05, dtype: Any = np.float32) -> Any:
    """A matrix product of two quantized tensors, then one of floats."""
    elem = TensorProto.FLOAT16 if dtype == np.float16 else TensorProto.FLOAT
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d"),
        helper.make_node("QuantizeLinear", ["w", "sw", "z"], ["qw"], name="qw"),
        helper.make_node("DequantizeLinear", ["qw", "sw", "z"], ["dw"], name="dw"),
        helper.make_node("Transpose", ["dw"], ["tw"], name="t"),
        helper.make_node("MatMul", ["d", "tw"], ["mid"], name="/eight"),
        helper.make_node("MatMul", ["mid", "w"], ["output"], name="/floats"),
    ]
    weights = (np.random.default_rng(1).standard_normal((4, 4)) * 0.3).astype(dtype)
    constants = {
        "s": np.array(scale, dtype),
        "sw": np.array(0.01, dtype),
        "z": np.array(0, np.int8),
        "w": weights,
    }
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("input", elem, ["batch_size", 4])],
        [helper.make_tensor_value_info("output", elem, ["batch_size", 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, str(path))
    return model


def test_kinds_and_products_of_a_quantized_graph(tmp_path: Path) -> None:
    model = quantized(tmp_path / "m.onnx")
    assert kinds(model) == {"int8"}
    assert products(model) == {"/eight": "int8", "/floats": "fp32"}


def test_kinds_and_products_of_a_half_graph(tmp_path: Path) -> None:
    model = onnx.load(str(models.overflowing(tmp_path / "m.onnx", TensorProto.FLOAT16)))
    assert kinds(model) == {"fp16"}
    assert products(model) == {"/head/MatMul": "fp16"}
    assert float_types(model) == dict.fromkeys(
        ["/scale/Mul", "/square/Mul", "/mean/ReduceMean", "/norm/Div", "/head/MatMul"], "fp16"
    )


def test_a_plain_graph_has_no_reduced_kinds_and_int8_inputs_alone_quantize_nothing(tmp_path: Path) -> None:
    assert kinds(onnx.load(str(models.classifier(tmp_path / "m.onnx")))) == set()
    assert kinds(onnx.load(str(models.negated(tmp_path / "n.onnx", TensorProto.INT8)))) == set()


def test_an_opset_is_lowered_where_every_node_means_the_same(tmp_path: Path) -> None:
    model = quantized(tmp_path / "m.onnx", 19)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    before = OnnxReference(tmp_path / "m.onnx")({"input": x})["output"]
    model.graph.node[0].attribute.append(helper.make_attribute("saturate", 1))
    assert lower_opset(model, 17) is None
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(tmp_path / "low.onnx"))
    assert model.opset_import[0].version == 17
    assert np.array_equal(OnnxReference(tmp_path / "low.onnx")({"input": x})["output"], before)


def test_an_opset_stays_where_a_scale_or_an_operator_needs_it(tmp_path: Path) -> None:
    half = quantized(tmp_path / "h.onnx", 19, dtype=np.float16)
    assert lower_opset(half, 17) == "its quantization scales are float16"
    assert half.opset_import[0].version == 19
    graph = helper.make_graph(
        [helper.make_node("Gelu", ["x"], ["y"], name="g")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    newer = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    assert lower_opset(newer, 17) == "node g (Gelu) is of a newer opset"
    assert newer.opset_import[0].version == 20
    assert lower_opset(quantized(tmp_path / "q.onnx"), 11) == "opset 11 is older than 13"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_scales_that_are_zero_in_their_type_are_raised(tmp_path: Path, dtype: Any) -> None:
    model = quantized(tmp_path / "m.onnx", scale=0.0, dtype=dtype)
    assert raise_scales(model) == 1
    values = [numpy_helper.to_array(tensor) for tensor in scales(model)]
    assert all(value.dtype == dtype and (value > 0).all() for value in values)
    assert raise_scales(model) == 0


def test_the_first_overflow_is_named_with_what_reaches_it(tmp_path: Path) -> None:
    path = models.overflowing(tmp_path / "m.onnx", TensorProto.FLOAT16)
    x = np.full((2, 8), 0.5, np.float16)
    found = first_overflow(path, {"input": x})
    assert found is not None
    assert found.node == "/square/Mul"
    assert found.words == "node /square/Mul (Mul), whose inputs reach 5e+03"
    assert first_overflow(path, {"input": x * np.float16(1e-3)}) is None
    assert first_overflow(models.overflowing(tmp_path / "f.onnx"), {"input": x.astype(np.float32)}) is None


def test_axes_of_reductions_go_back_to_where_they_were(tmp_path: Path) -> None:
    axes = numpy_helper.from_array(np.array([2, 3], np.int64), "axes")
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean", keepdims=0)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [axes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    assert lower_opset(model, 17) is None
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(tmp_path / "m.onnx"))
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    found = OnnxReference(tmp_path / "m.onnx")({"x": x})["y"]
    assert np.allclose(found, x.mean((2, 3)), atol=1e-6)


def test_an_overflow_in_a_conversion_is_told_of_the_node_that_it_belongs_to(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["input"], ["low"], name="input_cast", to=TensorProto.FLOAT16),
        helper.make_node("Relu", ["low"], ["output"], name="first node/é"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT16, ["n", 4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(tmp_path / "m"))
    found = first_overflow(tmp_path / "m", {"input": np.full((1, 4), 1e5, np.float32)})
    assert found is not None
    assert found.node == "first node/é"
    assert found.words.endswith("whose inputs reach 1e+05")
    assert first_overflow(tmp_path / "m", {"input": np.full((1, 4), -1e9, np.float32)}) is None  # as masks are


def test_scales_that_are_no_scales_are_refused(tmp_path: Path) -> None:
    for value in (np.nan, -1.0, np.inf):
        with pytest.raises(PrecisionError, match="the quantization scale 's' is"):
            raise_scales(quantized(tmp_path / "m.onnx", scale=value))
