"""The layers of an engine beside the graph's products: as TensorRT 8.6.0's inspector told them on a GPU."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trtbatch.backends.tensorrt import compat
from trtbatch.realised import realised

# Cut from what the inspector of TensorRT 8.6.0 printed of resnet18 on an NVIDIA H100.
HALF = """{"Layers": [
{"Name": "/conv1/Conv + /relu/Relu", "LayerType": "CaskConvolution",
 "Inputs": [{"Name": "input_cast_to_fp16", "Format/Datatype": "N/A due to dynamic shapes"}],
 "Outputs": [{"Name": "x", "Format/Datatype": "N/A due to dynamic shapes"}], "ParameterType": "Convolution",
 "Weights": {"Type": "Half", "Count": 9408}, "Bias": {"Type": "Half", "Count": 64},
 "TacticName": "sm90_xmma_fprop_image_first_layer_f16f16_f32_f16_nhwckrsc_nhwc_hmma_k64c4r7s7"},
{"Name": "/maxpool/MaxPool", "LayerType": "CaskPooling",
 "Inputs": [{"Name": "x", "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
 "Outputs": [{"Name": "y", "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
 "TacticName": "sm50_xmma_pooling_coalescedC_NHWC_kMAX_3_False"},
{"Name": "/fc/Gemm", "LayerType": "CaskGemmConvolution",
 "Inputs": [{"Name": "z", "Format/Datatype": "Row major linear FP32"}],
 "Outputs": [{"Name": "o", "Format/Datatype": "Row major linear FP32"}], "ParameterType": "Convolution",
 "Weights": {"Type": "Float", "Count": 512000},
 "TacticName": "sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize32x32x64_stage3_warpsize2x2x1_tensor16x8x8"}
]}"""


class Inspector:
    """The two calls of ``EngineInspector`` that are used, over text that a real one printed."""

    execution_context = None

    def get_engine_information(self, kind: object) -> str:
        return HALF


class Told:
    """An engine that gives this inspector."""

    def create_engine_inspector(self) -> Inspector:
        return Inspector()


class Names:
    class LayerInformationFormat:
        JSON, ONELINE = "json", "oneline"


def test_a_layer_computes_in_the_type_of_its_weights_else_of_its_input() -> None:
    json.loads(HALF)
    found = compat.layers(Names, Told())
    assert [(name, precision) for name, _, precision, _ in found] == [
        ("/conv1/Conv + /relu/Relu", "fp16"),
        ("/maxpool/MaxPool", "fp16"),
        ("/fc/Gemm", "tf32"),
    ]


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
    found = realised(products, layers)
    assert (found.unmet, found.narrow) == (unmet, narrow)


def test_shares_count_the_layers_that_tell() -> None:
    found = realised({"/a": "fp16"}, [layer("/a", "fp16"), layer("/b", "fp16"), layer("/c", "fp32"), layer("/d", "")])
    assert found.shares == {"fp16": 0.6667, "fp32": 0.3333}
    assert found.resolved == 1
