"""The preprocessor in ONNX Runtime against Pillow and torchvision, its commands, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.support import models
from trtbatch.backends import tensorrt
from trtbatch.backends.base import Range
from trtbatch.builder.preprocessor_engine import size_ranges
from trtbatch.core import store
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.sidecar import BuildRecord, EngineRecord, FileRecord, ModelRecord, Sidecar, SourceRecord
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import ArtifactError, ExportError, InputError, UsageError
from trtbatch.images.preprocessor import (
    OnnxPreprocessor,
    PreprocessorRecord,
    build_graph,
    describe,
    export_preprocessor,
    pixels_of,
)
from trtbatch.images.resample import rows_first
from trtbatch.util.files import sidecar_path

Cli = Callable[..., Any]
Pixels = NDArray[np.uint8]

SMALL = Preprocessing(resize=20, crop=(16, 18))
FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
SIZES = (
    *((1, 1), (1, 40), (40, 1), (2, 3), (16, 18), (20, 20), (20, 33), (31, 57)),
    *((90, 60), (60, 90), (300, 40), (40, 300), (225, 224), (500, 375), (1000, 700)),
)
"""Heights and widths: enlarged, kept and scaled down, sides of one pixel, and extreme aspect ratios."""


def images(height: int, width: int) -> Iterator[Pixels]:
    """Yield noise, black and white pixels, on which filters overshoot most, and a gradient with hard edges."""
    generator = np.random.default_rng(height * 10_000 + width)
    yield generator.integers(0, 256, (height, width, 3), np.uint8)
    yield generator.integers(0, 2, (height, width, 3), np.uint8) * np.uint8(255)
    slope = np.linspace(0, 255, height * width * 3).reshape(height, width, 3).astype(np.uint8)
    slope[height // 3 : height // 2, width // 4 :] = (250, 3, 128)
    yield slope


def noise(height: int, width: int) -> Pixels:
    return next(images(height, width))


def pillow(recipe: Preprocessing, pixels: Pixels) -> Pixels:
    return recipe.pixels(Image.fromarray(pixels))


def sidecar(recipe: Preprocessing | None, *inputs: TensorSpec, dtype: str = "float32") -> Sidecar:
    sample: tuple[int | str, ...] = (3, 16, 18) if recipe is None else (3, *recipe.crop)
    if recipe is not None and recipe.fused is not None:
        dtype, sample = "uint8", sample if recipe.fused == "NCHW" else (*sample[1:], 3)
    given = inputs or (TensorSpec("input", dtype, ("batch_size", *sample)),)
    scores = (TensorSpec("output", "float32", ("batch_size", 5)),)
    return Sidecar(
        "onnx", FileRecord("x.onnx", "0", 1), given, scores, ModelRecord("x", "random"), preprocessing=recipe
    )


def preprocessor_of(
    folder: Path, recipe: Preprocessing, max_size: int = 4096, dtype: str = "float32"
) -> OnnxPreprocessor:
    path = folder / "x.pre.onnx"
    path.write_bytes(build_graph(describe(sidecar(recipe, dtype=dtype), max_size)))
    return OnnxPreprocessor(path, threads=1)


def refused(result: Any, code: int, *words: str) -> None:
    """Assert the exit code, and an error with a fix that hold these words."""
    lines = result.output.strip().splitlines()
    assert result.exit_code == code, result.output
    assert lines[-2].startswith("error: "), result.output
    assert lines[-1].startswith("fix: "), result.output
    assert not [each for each in words if each not in "\n".join(lines[-2:])], result.output


@pytest.mark.parametrize("crop", [(16, 18), (30, 24)])
@pytest.mark.parametrize("interpolation", FILTERS)
def test_no_pixel_is_more_than_one_level_from_pillow(tmp_path: Path, interpolation: Any, crop: tuple[int, int]) -> None:
    """The second crop is larger than many of the resized images, and is padded with black."""
    recipe = Preprocessing(20, crop, interpolation=interpolation)
    preprocess = preprocessor_of(tmp_path, recipe)
    for size in SIZES:
        for pixels in images(*size):
            found = pixels_of(preprocess.record, preprocess(pixels))
            assert np.abs(found - pillow(recipe, pixels)).max() < 1.001, size


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_samples_agree_with_torchvision(tmp_path: Path, interpolation: Any) -> None:
    presets = pytest.importorskip("torchvision.transforms._presets")
    from torchvision.transforms import InterpolationMode

    theirs = presets.ImageClassification(
        crop_size=224, resize_size=256, interpolation=InterpolationMode(interpolation), antialias=True
    )
    recipe = Preprocessing(256, (224, 224), interpolation=interpolation)
    level = 1.001 / 255 / min(recipe.std)
    preprocess = preprocessor_of(tmp_path, recipe)
    for size in ((1, 1), (90, 60), (375, 500), (500, 375), (256, 256), (900, 300)):
        pixels = noise(*size)
        np.testing.assert_allclose(preprocess(pixels), theirs(Image.fromarray(pixels)), rtol=0, atol=level)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_a_model_that_normalizes_itself_gets_bytes(tmp_path: Path, layout: Any) -> None:
    recipe, pixels = replace(SMALL, fused=layout), noise(60, 45)
    wanted = recipe(Image.fromarray(pixels))
    preprocess = preprocessor_of(tmp_path, recipe)
    found = preprocess(pixels)
    assert found.dtype == np.uint8
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= 1
    assert np.abs(pixels_of(preprocess.record, found) - pillow(recipe, pixels)).max() <= 1


def test_a_half_precision_input_gets_halves(tmp_path: Path) -> None:
    pixels = noise(60, 45)
    preprocess = preprocessor_of(tmp_path, SMALL, dtype="float16")
    found = preprocess(pixels)
    assert found.dtype == np.float16
    assert found.shape == (3, 16, 18)
    assert np.abs(pixels_of(preprocess.record, found) - pillow(SMALL, pixels)).max() < 1.1


@pytest.mark.parametrize("interpolation", ["bicubic", "lanczos"])
def test_pillow_resizes_what_it_resizes_in_another_order(tmp_path: Path, interpolation: Any) -> None:
    recipe = replace(SMALL, interpolation=interpolation)
    if not rows_first(recipe, 300, 40):
        pytest.skip("this Pillow resizes the columns of every image first")
    preprocess = preprocessor_of(tmp_path, recipe)
    for pixels in images(300, 40):
        found = pixels_of(preprocess.record, preprocess(pixels))
        np.testing.assert_allclose(found, pillow(recipe, pixels), rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [(61, 30), (30, 61), (90, 80)])
def test_pillow_resizes_images_over_the_largest_size(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = noise(*size)
    preprocess = preprocessor_of(tmp_path, SMALL, max_size=60)
    feeds = preprocess.record.feeds(pixels)
    assert max(feeds["image"].shape) <= 60
    np.testing.assert_allclose(
        pixels_of(preprocess.record, preprocess(pixels)), pillow(SMALL, pixels), rtol=0, atol=1e-3
    )


def test_pixels_may_lie_anyhow_and_calls_may_overlap(tmp_path: Path) -> None:
    views = [noise(50 + index, 40)[:, ::-1] for index in range(8)]
    preprocess = preprocessor_of(tmp_path, SMALL)
    with ThreadPoolExecutor(4) as pool:
        for pixels, found in zip(views * 4, pool.map(preprocess, views * 4)):
            np.testing.assert_array_equal(found, preprocess(np.ascontiguousarray(pixels)))


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    good = np.zeros((5, 6, 3), np.uint8)
    preprocess = preprocessor_of(tmp_path, SMALL)
    others: tuple[Any, ...] = (good[0], good[:, :, :2], good.astype(np.float32), good[:0])
    for strange in others:
        with pytest.raises(InputError, match="is not an image"):
            preprocess(strange)


@pytest.mark.parametrize("fused", [None, "NHWC", "NCHW"])
def test_the_file_is_what_tensorrt_8_6_reads(fused: Any) -> None:
    """Opset 17, IR 8, its operators, and uint8 nowhere but at the inputs and outputs, next to a Cast."""
    model = onnx.load_from_string(build_graph(describe(sidecar(replace(SMALL, fused=fused)))))
    assert model.ir_version == 8
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 17)]
    operators = {node.op_type for node in model.graph.node}
    assert operators <= {"Cast", "Transpose", "MatMul", "Clip", "Add", "Floor", "Unsqueeze", "Div", "Sub"}
    shapes = {
        info.name: [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in model.graph.input
    }
    assert shapes == {"image": ["height", "width", 3], "rows": [16, "height"], "columns": [18, "width"]}
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    assert not [info for info in inferred.value_info if info.type.tensor_type.elem_type == onnx.TensorProto.UINT8]
    ends = [node.op_type for node in model.graph.node if "image" in node.input or "sample" in node.output]
    assert ends == ["Cast", "Cast"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (sidecar(None), "x has no preprocessing recorded"),
        (
            sidecar(SMALL, *(TensorSpec(name, "float32", ("batch_size", 3, 16, 18)) for name in ("left", "right"))),
            r"x has 2 inputs \(left, right\)",
        ),
        (sidecar(SMALL, TensorSpec("input", "float32", ("batch_size", 3, 16, 16))), r"makes samples \(3, 16, 18\)"),
        (sidecar(SMALL, TensorSpec("input", "uint8", ("batch_size", 3, 16, 18))), "doesn't take the samples"),
        (sidecar(SMALL, TensorSpec("input", "float32", (3, 16, 18, "batch_size"), 3)), "doesn't take the samples"),
    ],
)
def test_a_model_that_takes_no_images_is_refused(model: Sidecar, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        describe(model)
    assert "arrays" not in caught.value.fix, "no array helps a preprocessor"


def test_a_size_below_the_crop_is_refused() -> None:
    with pytest.raises(UsageError, match="max size 17 is below the crop, 18×16; pass 18 or more"):
        describe(sidecar(SMALL), 17)


def test_wrong_pixels_leave_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder)

    def wrong(recipe: Preprocessing, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return np.full((16, height), 1 / height, np.float32), np.full((18, width), 1 / width, np.float32)

    monkeypatch.setattr("trtbatch.images.preprocessor.matrices", wrong)
    with pytest.raises(ExportError, match="an image of 7×2 differs from Pillow's by up to"):
        export_preprocessor(path)
    assert sorted(path.name for path in Path("engines").iterdir()) == ["x.onnx", "x.onnx.json"]


def write(folder: Path, recipe: Preprocessing = SMALL) -> Path:
    """Write ``engines/x.onnx``, a classifier that takes 16×18 images by its sidecar."""
    room = folder / "made"
    room.mkdir()
    (folder / "engines").mkdir(exist_ok=True)
    made = models.classifier(room / "x.onnx")
    known = replace(sidecar(recipe), artifact=store.record_file(made), build=BuildRecord(created=store.now()))
    store.publish(made, folder / "engines" / "x.onnx", known)
    room.rmdir()
    return folder / "engines" / "x.onnx"


def test_the_command_writes_one_file_that_describes_itself(folder: Path, cli: Cli) -> None:
    path = write(folder)
    done = cli("export-preprocessor", path, "--max-size", 500)
    assert done.exit_code == 0, done.output
    for words in ("engines/x.pre.onnx", "shorter side 20, bilinear, crop 18×16", "images of up to 500×500"):
        assert words in done.output
    record = OnnxPreprocessor(Path("engines/x.pre.onnx")).record
    assert (record.recipe, record.max_size, record.source) == (SMALL, 500, store.record_file(path))
    assert sorted(each.name for each in Path("engines").iterdir()) == ["x.onnx", "x.onnx.json", "x.pre.onnx"]
    warnings: list[str] = []
    assert [each.path.name for each in store.listed("onnx", Path("engines"), warnings.append)] == ["x.onnx"]
    assert not warnings


def test_without_a_name_it_is_for_the_newest_engine_that_takes_images(folder: Path, cli: Cli, engine: Path) -> None:
    done = cli("export-preprocessor")
    assert done.exit_code == 1
    assert "no engine for images in engines/" in done.output
    facts = sidecar_path(engine)
    data = json.loads(facts.read_text(encoding="utf-8"))
    data["preprocessing"] = {"resize": 20, "crop": data["inputs"][0]["shape"][2:]}
    facts.write_text(json.dumps(data), encoding="utf-8")
    done = cli("export-preprocessor")
    assert done.exit_code == 0, done.output
    assert "using the newest engine that takes images: engines/small.ort.onnx" in done.output
    assert (folder / "engines" / "small.pre.onnx").is_file()


@pytest.mark.parametrize("name", ["x.onnx", "y.onnx", "y.txt"])
def test_the_output_has_its_own_suffix(folder: Path, cli: Cli, name: str) -> None:
    path = write(folder)
    before = path.read_bytes()
    refused(cli("export-preprocessor", path, "--output", f"engines/{name}"), 2, "doesn't end in .pre.onnx")
    assert path.read_bytes() == before


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "y.pre.onnx"
    path.write_bytes(build_graph(describe(sidecar(SMALL))))
    return path


def test_other_files_are_refused(tmp_path: Path, written: Path) -> None:
    with pytest.raises(ArtifactError, match="doesn't exist"):
        OnnxPreprocessor(tmp_path / "nothing.pre.onnx")
    with pytest.raises(ArtifactError, match="is not a preprocessor"):
        OnnxPreprocessor(models.classifier(tmp_path / "model.onnx"))
    for change, words in (
        ({"format_version": 99}, "has format 99.*update trtbatch"),
        ({"format_version": 1}, "has format 1.*run: trtbatch export-preprocessor"),
        ({"recipe": {}}, "is damaged: recipe lacks 'resize'"),
    ):
        model = onnx.load(written)
        model.metadata_props[0].value = json.dumps(json.loads(model.metadata_props[0].value) | change)
        changed = tmp_path / "changed.pre.onnx"
        onnx.save(model, str(changed))
        with pytest.raises(ArtifactError, match=words):
            OnnxPreprocessor(changed)
    written.write_bytes(written.read_bytes()[:300])
    with pytest.raises(ArtifactError, match="can't load"):
        OnnxPreprocessor(written)


@pytest.mark.torch
def test_infer_predicts_the_same_with_it(cli: Cli, folder: Path, photos: Path) -> None:
    for line in (
        ("export", "tests.support.zoo:photos", "--dynamic"),
        ("build", "--max", 4, "--backend", "onnxruntime"),
        ("build", "engines/photos_dynamic.onnx", "--fuse-preprocess", "--max", 4, "--backend", "onnxruntime"),
        ("export-preprocessor", "engines/photos_dynamic.ort.onnx"),
        ("export-preprocessor", "engines/photos_dynamic.uint8.ort.onnx"),
    ):
        done = cli(*line)
        assert done.exit_code == 0, (line, done.stdout, done.stderr)
    for name in ("photos_dynamic", "photos_dynamic.uint8"):
        run = ("infer", f"engines/{name}.ort.onnx", "--input", photos, "--batch", 4)
        assert cli(*run, "--output", "pillow.npz").exit_code == 0
        done = cli(*run, "--output", "own.npz", "--preprocessor", f"engines/{name}.pre.onnx")
        assert done.exit_code == 0, done.stderr
        with np.load("pillow.npz") as pillow, np.load("own.npz") as own:
            assert list(own) == list(pillow)
            for key in own:
                if own[key].dtype.kind == "f":
                    assert own[key] == pytest.approx(pillow[key], abs=0.02)
                else:
                    assert (own[key] == pillow[key]).all()
    done = cli(*run, "--preprocessor", "engines/photos_dynamic.pre.onnx")
    assert done.exit_code == 2
    assert "was made for photos_dynamic.ort.onnx" in done.stderr
    done = cli("infer", "--input", "random", "--preprocessor", "engines/photos_dynamic.pre.onnx")
    assert done.exit_code == 2
    assert "holds none" in done.stderr
    done = cli(*run, "--preprocessor", "engines/photos_dynamic.onnx")
    assert done.exit_code == 1
    assert "is not a preprocessor" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--backend", "onnxruntime"), "only TensorRT builds engines/x.pre.onnx; ONNX Runtime runs the file itself"),
        (("--backend", "onnxruntime"), "trtbatch infer ENGINE --input IMAGES --preprocessor engines/x.pre.onnx"),
        (("--static", 4), "is a preprocessor, to which static doesn't apply"),
        (("--max", 4), "is a preprocessor, to which profiles doesn't apply"),
        (("--precision", "fp16"), "is a preprocessor, to which precision doesn't apply"),
    ],
)
def test_building_one_takes_tensorrt_and_no_options_of_models(
    folder: Path, cli: Cli, options: tuple[object, ...], words: str
) -> None:
    assert cli("export-preprocessor", write(folder)).exit_code == 0
    refused(cli("build", "engines/x.pre.onnx", *options), 2, words)
    assert sorted(path.name for path in Path("engines").iterdir()) == ["x.onnx", "x.onnx.json", "x.pre.onnx"]


def test_building_one_without_a_gpu_says_what_to_do(folder: Path, cli: Cli) -> None:
    if tensorrt.obstacle() is None:
        pytest.skip("TensorRT runs here")
    assert cli("export-preprocessor", write(folder)).exit_code == 0
    refused(cli("build", "engines/x.pre.onnx"), 2, "only TensorRT builds", "use it as it is: trtbatch infer")


def test_its_engine_takes_every_size_in_one_profile() -> None:
    ranges = size_ranges(describe(sidecar(SMALL), 2000))
    assert ranges == {
        "image": Range((1, 1, 3), (375, 500, 3), (2000, 2000, 3)),
        "rows": Range((16, 1), (16, 375), (16, 2000)),
        "columns": Range((18, 1), (18, 500), (18, 2000)),
    }
    assert size_ranges(describe(sidecar(SMALL), 400))["image"].opt == (375, 400, 3)


def engine_of(folder: Path, record: PreprocessorRecord, name: str = "x.pre.engine", **changes: Any) -> Path:
    """Write a preprocessor's engine as far as its sidecar goes."""
    room = folder / "room"
    room.mkdir()
    made = room / name
    made.write_bytes(b"an engine")
    known = Sidecar(
        "preprocessor",
        store.record_file(made),
        record.inputs,
        (record.output,),
        ModelRecord("x.engine", "none"),
        source=SourceRecord("x.pre.onnx", "0", 1),
        preprocessing=record.recipe,
        build=BuildRecord(created=store.now(), details={"max_size": record.max_size}),
        engine=EngineRecord("tensorrt"),
    )
    store.publish(made, folder / name, replace(known, **changes))
    room.rmdir()
    return folder / name


@pytest.mark.parametrize(
    "command", ["infer --input random", "bench", "verify", "tune --latency 5ms", "plan --traffic t.csv"]
)
def test_one_in_an_engines_place_is_named_with_the_option_that_takes_it(
    folder: Path, cli: Cli, written: Path, command: str
) -> None:
    (folder / "t.csv").write_text("batch,count\n1,1\n")
    name, *options = command.split()
    for path in (engine_of(folder, describe(sidecar(SMALL))), written):
        fix = f"trtbatch infer ENGINE --input IMAGES --preprocessor {path}"
        refused(cli(name, path, *options), 1, f"{path} is a preprocessor, not an engine", fix)


def test_one_in_a_models_place_is_named(cli: Cli, engine: Path, written: Path) -> None:
    refused(cli("export-preprocessor", written), 1, "is a preprocessor, not an ONNX file")
    refused(cli("verify", engine, "--against", written), 1, "is a preprocessor, not an ONNX file")


def test_inspect_describes_the_onnx_file(folder: Path, cli: Cli) -> None:
    assert cli("export-preprocessor", write(folder)).exit_code == 0
    shown = cli("inspect", "engines/x.pre.onnx")
    assert shown.exit_code == 0, shown.output
    for words in (
        "is        a preprocessor",
        "for       x.onnx",
        "recipe    shorter side 20, bilinear, crop 18×16",
        "input     image (height, width, 3) uint8",
        "input     rows (16, height) float32",
        "sizes     1×1 to 4096×4096",
        "output    sample (1, 3, 16, 18) float32",
        "--preprocessor engines/x.pre.onnx",
    ):
        assert words in shown.output, shown.output
    found = json.loads(cli("inspect", "engines/x.pre.onnx", "--json").stdout)
    assert found["recipe"]["crop"] == [16, 18]
    assert found["max_size"] == 4096
    renamed = Path("engines/x.pre.onnx").rename("other.onnx")
    assert "a preprocessor" in cli("inspect", renamed).output


def test_inspect_describes_the_engine_by_its_sidecar(folder: Path, cli: Cli) -> None:
    record = describe(sidecar(SMALL), 50)
    built = engine_of(folder, record)
    shown = cli("inspect", built)
    assert shown.exit_code == 0, shown.output
    assert "for       x.engine" in shown.output
    assert "to 50×50" in shown.output
    assert "tensorrt" in shown.output
    built.write_bytes(b"another")
    refused(cli("inspect", built), 1, "x.pre.engine is truncated", "trtbatch build x.pre.onnx")
    lacking = engine_of(folder, record, "a.pre.engine", build=BuildRecord())
    refused(cli("inspect", lacking), 1, "its sidecar lacks the recipe or the size")
    old = engine_of(folder, record, "b.pre.engine", inputs=record.inputs[:1])
    refused(cli("inspect", old), 1, "has other inputs", "trtbatch export-preprocessor, then trtbatch build")
