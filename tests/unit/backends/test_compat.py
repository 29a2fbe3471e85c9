"""The pure parts of the TensorRT backend; the rest is tested on a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trtbatch.backends.tensorrt import compat


@pytest.mark.parametrize(
    ("version", "opset"),
    [("8.2.5", 13), ("8.4.1", 17), ("8.6.0", 17), ("8.6.1.6", 17), ("9.3.0", 19), ("10.0.1", 20), ("10.1.0", None)],
)
def test_the_newest_opset_of_each_release(version: str, opset: int | None) -> None:
    assert compat.max_opset(version) == opset


def test_an_unknown_version_is_left_to_the_parser() -> None:
    assert compat.max_opset("11.5.0") is None
    assert compat.max_opset("next") is None


def test_the_bindings_list_is_in_the_engines_order_and_one_profile_after_the_other_up_to_9() -> None:
    addresses = {"input": 7, "scores": 8, "boxes": 9}
    order: Any = {"num_io_tensors": 3, "get_tensor_name": ["boxes", "input", "scores"].__getitem__}
    old: Any = SimpleNamespace(num_bindings=9, **order)
    assert compat.bindings(old, addresses, 0) == [9, 7, 8, 0, 0, 0, 0, 0, 0]
    assert compat.bindings(old, addresses, 2) == [0, 0, 0, 0, 0, 0, 9, 7, 8]
    new: Any = SimpleNamespace(**order)
    assert compat.bindings(new, addresses, 2) == [9, 7, 8]


def test_a_format_is_linear_by_its_name_or_by_its_description() -> None:
    formats = SimpleNamespace(LINEAR="linear", CHW32="chw32")
    engine: Any = SimpleNamespace(
        get_tensor_format={"a": "linear", "b": "chw32"}.__getitem__,
        get_tensor_format_desc={
            "a": "Row major linear FP32 format",
            "b": "Thirty-two wide channel vectorized",
        }.__getitem__,
    )
    whole: Any = SimpleNamespace(TensorFormat=formats)
    lean: Any = SimpleNamespace()
    for trt in (whole, lean):
        assert [compat.is_linear(trt, engine, name) for name in ("a", "b")] == [True, False]
    assert compat.layers(lean, engine) == ()


@pytest.mark.parametrize(("name", "dtype"), [("FLOAT", "float32"), ("HALF", "float16"), ("INT64", "int64")])
def test_data_types_have_numpys_names(name: str, dtype: str) -> None:
    assert compat.dtype_name(SimpleNamespace(name=name)) == dtype


@pytest.mark.parametrize(
    ("tensor", "tactic", "precision"),
    [
        ({"Format/Datatype": "Row major linear FP32"}, "sm80_xmma_fprop_tf32f32_tf32f32_f32_nhwc", "tf32"),
        ({"Format/Datatype": "Row major linear FP32"}, "", "fp32"),
        ({"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}, "", "fp16"),
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}, "", "int8"),
        ({"Format": "Row major linear", "Datatype": "BF16"}, "", "bf16"),
        ({"Format": "Row major linear", "Datatype": "FP8"}, "", "fp8"),
    ],
)
def test_layers_are_read_from_the_inspectors_json(tensor: dict[str, str], tactic: str, precision: str) -> None:
    """As the inspector writes it: 8.6 with bare control characters, 11 with the type apart from the format."""
    import json

    layer = {"Name": "conv", "LayerType": "CaskConvolution", "Outputs": [tensor], "TacticName": tactic}
    text = json.dumps({"Layers": [layer, "bare name"], "Metadata": "a|b"}).replace("a|b", "a\x1eb")
    inspector = SimpleNamespace(get_engine_information=lambda form: text)
    trt: Any = SimpleNamespace(EngineInspector=object, LayerInformationFormat=SimpleNamespace(JSON=0, ONELINE=1))
    engine: Any = SimpleNamespace(create_engine_inspector=lambda: inspector)
    found = compat.layers(trt, engine)
    assert found == (("conv", "CaskConvolution", precision, tactic), ("bare name", "", "", ""))
