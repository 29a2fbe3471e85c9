"""uint8 inputs: the fused model agrees with the unfused one, on every way through the program."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.support.processes import needs_export
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.rows import row_errors
from trtbatch.core.store import load
from trtbatch.core.tensors import TensorSpec
from trtbatch.onnx_graph.fusing import PREFIX, fuse, fuse_graph, halve_prefix
from trtbatch.onnx_graph.read import load_onnx
from trtbatch.onnx_graph.run import OnnxReference

Cli = Callable[..., Any]


@pytest.fixture
def exported(cli: Cli, folder: Path) -> Path:
    needs_export()
    done = cli("export", "tests.support.zoo:photos", "--dynamic")
    assert done.exit_code == 0, done.stderr
    return folder / "engines" / "photos_dynamic.onnx"


def bytes_for(path: Path, count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Random images as the model takes them."""
    spec = load(path, "onnx").sidecar.inputs[0]
    shape = [count, *(int(size) for size in spec.shape[1:])]
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_the_fused_file_agrees_with_the_one_that_it_was_made_from(
    exported: Path, tmp_path: Path, layout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load(exported, "onnx")
    fused = fuse(source, layout, tmp_path)
    spec, recipe = fused.sidecar.inputs[0], fused.sidecar.preprocessing
    assert recipe is not None
    assert recipe.fused == layout
    assert spec.dtype == "uint8"
    rows, columns = recipe.crop
    assert spec.shape[1:] == ((rows, columns, 3) if layout == "NHWC" else (3, rows, columns))
    images = bytes_for(fused.path, 6)
    pixels = images if layout == "NHWC" else images.transpose(0, 2, 3, 1)
    floats = np.stack([recipe.normalise(each) for each in pixels])
    name = source.sidecar.inputs[0].name
    wanted = next(iter(OnnxReference(exported)({name: floats}).values()))
    found = next(iter(OnnxReference(fused.path)({name: images}).values()))
    assert row_errors(found.reshape(6, -1), wanted.reshape(6, -1)).max() < 1e-5
    assert np.array_equal(recipe.normalise_batch(images), floats)
    again = fuse(source, layout, tmp_path)
    assert again.sidecar.build.created == fused.sidecar.build.created  # found, not made
    monkeypatch.setattr("trtbatch.onnx_graph.fusing.is_looked_up", lambda path: False)  # as an earlier release wrote it
    assert fuse(source, layout, tmp_path).sidecar.build.created != fused.sidecar.build.created


def test_a_prefix_in_half_precision_stays_near(exported: Path, tmp_path: Path) -> None:
    fused = fuse(load(exported, "onnx"), "NHWC", tmp_path)
    model = load_onnx(fused.path, weights=True)
    graph, half = model.graph, onnx.TensorProto.FLOAT16
    reader = next(node for node in graph.node if f"{PREFIX}/output" in node.input)
    # As a conversion leaves it: the first product in half precision, between casts.
    weights = next(tensor for tensor in graph.initializer if tensor.name == reader.input[1])
    weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights).astype(np.float16), weights.name))
    bias = next((tensor for tensor in graph.initializer if tensor.name in reader.input[2:]), None)
    if bias is not None:
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias).astype(np.float16), bias.name))
    place = list(graph.node).index(reader)
    graph.node.insert(place, onnx.helper.make_node("Cast", [reader.input[0]], ["half"], "down", to=half))
    result = reader.output[0]
    reader.input[0], reader.output[0] = "half", "product"
    graph.node.insert(place + 2, onnx.helper.make_node("Cast", ["product"], [result], "up", to=onnx.TensorProto.FLOAT))
    recipe = fused.sidecar.preprocessing
    assert recipe is not None
    assert halve_prefix(model, recipe)
    onnx.checker.check_model(model)
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer if tensor.name.startswith(PREFIX)}
    assert set(kinds.values()) == {half}
    assert not [node for node in graph.node if node.name == "down"]
    onnx.save(model, str(tmp_path / "half.onnx"))
    images = {fused.sidecar.inputs[0].name: bytes_for(fused.path, 5)}
    wanted, found = (next(iter(OnnxReference(path)(images).values())) for path in (fused.path, tmp_path / "half.onnx"))
    assert 0 < row_errors(found.reshape(5, -1), wanted.reshape(5, -1)).max() < 1e-2


def test_a_prefix_that_something_else_reads_stays_as_it_is(exported: Path) -> None:
    source = load(exported, "onnx")
    model = load_onnx(exported, weights=True)
    recipe = source.sidecar.preprocessing
    assert recipe is not None
    fused = Preprocessing(recipe.resize, recipe.crop, recipe.mean, recipe.std, recipe.interpolation, "NHWC")
    fuse_graph(model, source.sidecar.inputs[0], fused)
    assert not halve_prefix(model, fused)


@pytest.mark.slow
def test_photographs_get_the_same_predictions_as_bytes(cli: Cli, folder: Path, exported: Path, photos: Path) -> None:
    build = ("build", exported, "--max", 4, "--backend", "onnxruntime")
    for line in ((*build, "--output", "f.ort.onnx"), (*build, "--fuse-preprocess", "--output", "u.ort.onnx")):
        done = cli(*line)
        assert done.exit_code == 0, done.stderr
    tables = []
    for name in ("f", "u"):
        done = cli("infer", f"{name}.ort.onnx", "--input", photos, "--batch", 4, "--output", f"{name}.csv")
        assert done.exit_code == 0, done.stderr
        with (folder / f"{name}.csv").open() as stream:
            tables.append([(row["file"], row["index_1"], float(row["score_1"])) for row in csv.DictReader(stream)])
    assert [row[:2] for row in tables[0]] == [row[:2] for row in tables[1]]
    assert np.allclose([row[2] for row in tables[0]], [row[2] for row in tables[1]], atol=1e-4)
    lines: tuple[tuple[object, ...], ...] = (
        ("verify", "u.ort.onnx", "--batch", "1,3"),
        ("verify", "u.ort.onnx", "--batch", "1,3", "--against", "torch"),
        ("verify", "u.ort.onnx", "--batch", "4", "--input", photos),
        ("bench", "u.ort.onnx", "--batch", "1,4", "--iterations", 3, "--mode", "run,latency,throughput"),
        ("infer", "u.ort.onnx", "--input", "random", "--count", 3),
    )
    for more in lines:
        done = cli(*more)
        assert done.exit_code == 0, (more, done.stdout, done.stderr)


def test_export_writes_a_model_that_takes_bytes(cli: Cli, folder: Path) -> None:
    needs_export()
    done = cli("export", "tests.support.zoo:photos", "--dynamic", "--input-dtype", "uint8", "--layout", "NCHW")
    assert done.exit_code == 0, done.stderr
    sidecar = load(folder / "engines/photos_dynamic.uint8.nchw.onnx", "onnx").sidecar
    assert sidecar.inputs[0].dtype == "uint8"
    assert sidecar.inputs[0].shape[1] == 3
    assert [path.name for path in (folder / "engines").iterdir() if path.suffix == ".onnx"] == [
        "photos_dynamic.uint8.nchw.onnx"
    ]
    assert cli("build", "--max", 2, "--backend", "onnxruntime").exit_code == 0
    # What was exported so is not written over by a build that fuses.
    assert cli("export", "tests.support.zoo:photos", "--dynamic").exit_code == 0
    fuse_again = ("build", "engines/photos_dynamic.onnx", "--fuse-preprocess", "--backend", "onnxruntime")
    done = cli(*fuse_again, "--layout", "NCHW")
    assert done.exit_code == 2
    assert "it was exported so" in done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("export", "tests.support.zoo:small", "--input-dtype", "uint8"), "no preprocessing recorded"),
        (("export", "tests.support.zoo:photos", "--layout", "NHWC"), "--input-dtype uint8"),
        (("build", "x.onnx", "--layout", "NHWC"), "--fuse-preprocess"),
    ],
)
def test_what_can_not_be_fused_is_refused(cli: Cli, folder: Path, line: tuple[str, ...], words: str) -> None:
    if line[0] == "export":
        needs_export()
    done = cli(*line)
    assert done.exit_code == 2, done.stderr
    assert words in done.stderr, done.stderr
    assert not list(folder.glob("engines/*"))


def test_a_fused_file_is_not_fused_again(cli: Cli, folder: Path, exported: Path) -> None:
    fused = fuse(load(exported, "onnx"), "NHWC", folder / "engines")
    done = cli("build", fused.path, "--fuse-preprocess", "--backend", "onnxruntime")
    assert done.exit_code == 2
    assert "takes uint8 already (NHWC)" in done.stderr
    damaged = json.loads(fused.path.with_name(f"{fused.path.name}.json").read_text())
    assert damaged["preprocessing"]["fused"] == "NHWC"


def test_a_photograph_that_was_held_upright_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° clockwise to see it upright
    image.save(tmp_path / "turned.png", exif=exif)
    recipe = Preprocessing(20, (20, 20))
    with Image.open(tmp_path / "turned.png") as opened:
        turned = recipe.pixels(opened)
    assert np.array_equal(turned, recipe.pixels(Image.fromarray(np.rot90(pixels, -1))))


def test_the_body_of_an_if_reads_the_fused_input_too() -> None:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    out = helper.make_tensor_value_info("branch", kind, None)
    body = helper.make_graph([helper.make_node("Relu", ["input"], ["branch"])], "then", [], [out])
    other = helper.make_graph([helper.make_node("Neg", ["input"], ["branch"])], "else", [], [out])
    node = helper.make_node("If", ["flag"], ["output"], then_branch=body, else_branch=other)
    flag = onnx.numpy_helper.from_array(np.array(True), "flag")
    shape = ["batch_size", 3, 4, 4]
    image = helper.make_tensor_value_info("input", kind, shape)
    graph = helper.make_graph([node], "g", [image], [helper.make_tensor_value_info("output", kind, shape)], [flag])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    recipe = Preprocessing(4, (4, 4), fused="NCHW")
    fuse_graph(model, TensorSpec("input", "float32", ("batch_size", 3, 4, 4)), recipe)
    onnx.checker.check_model(model)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4), dtype=np.uint8)
    found = next(iter(OnnxReference.unoptimised(model.SerializeToString())({"input": images}).values()))
    assert np.allclose(found, np.maximum(recipe.normalise_batch(images), 0), atol=1e-5)
