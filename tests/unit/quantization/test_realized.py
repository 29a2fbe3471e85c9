"""The layers of an engine next to the graph's products, as TensorRT's inspector tells them."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.support.processes import ROOT
from trtbatch.backends.tensorrt import compat
from trtbatch.quantization.realized import realized_precision

TOLD = (ROOT / "tests" / "support" / "data" / "inspector_8.6.0.json").read_text(encoding="utf-8")
"""Four layers of resnet18 in fp16 and int8, as the inspector of TensorRT 8.6.0 printed them on an NVIDIA H100."""


class Inspector:
    """The two calls of ``EngineInspector`` that are used, over text that a real one printed."""

    def get_engine_information(self, kind: object) -> str:
        return TOLD


class Told:
    """An engine that gives this inspector."""

    def create_engine_inspector(self) -> Inspector:
        return Inspector()


class Names:
    EngineInspector = object

    class LayerInformationFormat:
        JSON, ONELINE = "json", "oneline"


def test_a_layer_computes_in_the_type_of_its_weights() -> None:
    found = compat.layers(cast(Any, Names), cast(Any, Told()))
    assert [(name.split(" + ")[-2 if "relu" in name else -1], precision) for name, _, precision, _ in found] == [
        ("/conv1/Conv", "fp16"),
        ("/maxpool/MaxPool", ""),  # which 8.6 doesn't tell where shapes are open
        ("/layer1/layer1.1/conv1/Conv", "int8"),
        ("/fc/Gemm", "tf32"),  # float weights, and a tactic that rounds them
    ]
    computes = {"/conv1/Conv": "fp16", "/layer1/layer1.1/conv1/Conv": "int8", "/fc/Gemm": "fp32"}
    seen = realized_precision(computes, found)
    assert (seen.resolved, seen.unmet, seen.narrow) == (3, (), ())


def layer(name: str, precision: str) -> tuple[str, str, str, str]:
    return (name, "CaskConvolution", precision, "")


@pytest.mark.parametrize(
    ("products", "layers", "unmet", "narrow"),
    [
        ({"/a": "fp16"}, [layer("w + /a + /relu", "fp16")], (), ()),
        ({"/a": "fp16"}, [layer("/a + /relu", "tf32")], ("/a (tf32, not fp16)",), ()),
        ({"/a": "int8"}, [layer("w + w_QuantizeLinear + /a", "fp16")], ("/a (fp16, not int8)",), ()),
        ({"/a": "fp32"}, [layer("/a", "tf32")], (), ()),
        ({"/a": "fp32"}, [layer("/a", "fp16")], (), ("/a (fp16, not fp32)",)),
        ({"/a": "fp16"}, [layer("/a", "int8")], (), ("/a (int8, not fp16)",)),
        ({"/a": "fp16"}, [layer("/ab", "fp32")], (), ()),
        ({"/a": "fp16"}, [layer("{ForeignNode[/a + /b...x]}", "fp32")], (), ()),
        ({"/a": "fp16"}, [layer("/a", "")], (), ()),
    ],
)
def test_products_that_compute_in_something_else_are_named(
    products: dict[str, str], layers: list[Any], unmet: tuple[str, ...], narrow: tuple[str, ...]
) -> None:
    found = realized_precision(products, layers)
    assert (found.unmet, found.narrow) == (unmet, narrow)


def test_what_is_allowed_may_be_narrow_but_for_what_is_kept() -> None:
    products = {"/a": "fp32", "/b": "fp32", "/c": "int8"}
    layers = [layer("/a", "fp16"), layer("/b", "fp16"), layer("/c", "int8")]
    assert realized_precision(products, layers, ("fp16",)).narrow == ()
    assert realized_precision(products, layers, ("fp16",), {"/b"}).narrow == ("/b (fp16, not fp32)",)


def test_shares_count_the_layers_that_tell() -> None:
    found = realized_precision(
        {"/a": "fp16"}, [layer("/a", "fp16"), layer("/b", "fp16"), layer("/c", "fp32"), layer("/d", "")]
    )
    assert found.shares == {"fp16": 0.6667, "fp32": 0.3333}
    assert found.resolved == 1
