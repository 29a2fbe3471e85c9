"""``inspect`` on ONNX files and engines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto

from tests.support import models
from tests.support.messages import refused
from tests.support.sidecars import change_sidecar
from trtbatch.diagnostics.inspection import inspect_onnx
from trtbatch.util.files import sidecar_path

Cli = Callable[..., Any]


def test_work_is_counted_by_the_operators_definitions(tmp_path: Path) -> None:
    report = inspect_onnx(models.classifier(tmp_path / "m.onnx"))
    assert report.parameters == 16 * 3 * 9 + 16 * 5
    assert report.macs == 8 * 8 * 16 * 27 + 16 * 5
    features, single = 16 * 8 * 8 * 4, 3 * 8 * 8 * 4
    conv, relu = single + 16 * 27 * 4 + features, 2 * features
    pool_and_head = (features + 64) + 2 * 64 + (64 + 16 * 5 * 4 + 5 * 4)
    assert report.bytes_moved == conv + relu + pool_and_head
    assert report.operators == {"Conv": 1, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    assert report.dynamic
    assert report.opset == 17


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_multiply_accumulates_agree_with_torchs_own_counter(cli: Cli, folder: Path, name: str) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from torchvision import models as torchvision_models

    assert cli("export", name, "--dynamic", "--weights", "random").exit_code == 0
    module = torchvision_models.get_model(name).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.randn(1, 3, 224, 224))
    report = inspect_onnx(folder / f"engines/{name}_dynamic.onnx")
    assert report.macs == pytest.approx(counter.get_total_flops() / 2, rel=0.001)


def test_a_batch_that_is_open_by_name_only(cli: Cli, folder: Path) -> None:
    models.reshaped_to(folder / "m.onnx", 1)
    result = cli("inspect", "m.onnx")
    assert result.exit_code == 0
    assert "open by name only" in result.output
    assert "probably fixed by node /flatten/Reshape (Reshape) has the constant [1, 12]" in result.output
    models.classifier(folder / "f.onnx", batch=4)
    assert "batch     fixed" in cli("inspect", "f.onnx").output


def test_an_engine_beside_its_sidecar(cli: Cli, engine: Path) -> None:
    result = cli("inspect", engine, "--layers")
    assert result.exit_code == 0, result.output
    assert "input input" in result.output
    assert "(?, 3, 8, 8) float32" in result.output
    assert "/conv" in result.output
    data = json.loads(sidecar_path(engine).read_text())
    data["inputs"][0]["shape"][2] = 9
    sidecar_path(engine).write_text(json.dumps(data))
    result = cli("inspect", engine)
    assert result.exit_code == 1
    assert "(?, 3, 9, 8) float32" in result.output
    assert (
        f"differ; build it again: trtbatch build {engine.parent.parent / 'small.onnx'} --profile 1:4:8" in result.output
    )


def test_a_damaged_engine_shows_its_sidecar_and_fails(cli: Cli, engine: Path) -> None:
    whole = engine.read_bytes()
    for damage, told in ((whole[:-1] + b"?", "SHA-256 differs"), (b"short", "truncated")):
        engine.write_bytes(damage)
        result = cli("inspect", engine)
        refused(result, 1, told, "build it again")
        source = engine.parent.parent / "small.onnx"
        line = f"trtbatch build {source} --profile 1:4:8 --backend onnxruntime --output {engine}"
        assert result.output.endswith(f"fix: build it again: {line}\n")
        assert "not opened" in result.output
        assert "input (batch_size, 3, 8, 8) float32" in result.output
    assert "5 B, onnxruntime" in result.output
    assert cli(*shlex.split(line)[1:]).exit_code == 0
    assert engine.read_bytes() == whole
    assert cli("inspect", engine).exit_code == 0


def test_an_engine_of_another_machine_shows_its_sidecar_and_is_no_failure(cli: Cli, engine: Path) -> None:
    change_sidecar(engine, engine={"backend": "tensorrt"})
    result = cli("inspect", engine)
    assert result.exit_code == 0, result.output
    assert "not opened" in result.output, result.output


def test_the_traffic_of_a_half_precision_file_is_counted_in_its_own_bytes(cli: Cli, folder: Path) -> None:
    wide, half = (
        json.loads(cli("inspect", models.overflowing(folder / name, kind), "--json").stdout)["bytes_moved"]
        for name, kind in (("wide.onnx", TensorProto.FLOAT), ("half.onnx", TensorProto.FLOAT16))
    )
    assert half * 2 == wide


def test_json_holds_everything(cli: Cli, engine: Path, folder: Path) -> None:
    report = json.loads(cli("inspect", "small.onnx", "--json").stdout)
    assert report["macs"] > 0
    assert report["dynamic"] is True
    report = json.loads(cli("inspect", engine, "--json").stdout)
    assert report["sidecar"]["kind"] == "engine"
    assert report["layers"]


def test_wrong_files(cli: Cli, engine: Path, folder: Path) -> None:
    refused(cli("inspect", "nothing.onnx"), 1, "nothing.onnx doesn't exist")
    (folder / "x.jpg").write_bytes(b"no")
    (folder / "x.csv").write_text("file,class\n")
    (folder / "x.bin").write_bytes(b"no")
    refused(cli("inspect", "x.jpg"), 1, "x.jpg is an image, not an ONNX file or an engine", "name an ONNX file or an")
    refused(cli("build", "x.jpg"), 1, "x.jpg is an image, not an ONNX file", "name an ONNX file")
    refused(cli("inspect", "x.csv"), 1, "x.csv is a table, not an ONNX file or an engine", "name an ONNX file or an")
    refused(cli("bench", "x.csv"), 1, "x.csv is a table, not an engine", "name an engine")
    refused(cli("inspect", "x.bin"), 1, "x.bin is not a readable ONNX file", "name an ONNX file")
    refused(cli("inspect", "engines"), 1, "engines is a folder", f"name a file in it: {engine.relative_to(folder)}")
    (folder / "x.onnx").write_bytes(b"no")
    refused(cli("inspect", "x.onnx"), 1, "not a readable ONNX file")
    refused(cli("inspect", engine, "--open"), 2, "--open shows ONNX graphs")
    beside = sidecar_path(engine)
    refused(cli("inspect", beside), 1, "is the sidecar of small.ort.onnx", f"name the file next to it: {engine}")
    (folder / "r.json").write_text("{}")
    refused(cli("inspect", "r.json"), 1, "r.json is a JSON file, not an ONNX file or an engine")
    refused(cli("build", beside), 1, "is the sidecar of small.ort.onnx, not an ONNX file", "small.onnx")


def test_netron_is_named_with_its_extra_where_it_is_missing(cli: Cli, engine: Path) -> None:
    from trtbatch.util import optional

    if optional.is_installed("netron"):
        pytest.skip("netron is installed")
    refused(cli("inspect", "small.onnx", "--open"), 1, "netron is needed to show a graph", "trtbatch[view]")
