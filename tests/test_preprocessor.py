"""The preprocessor in ONNX Runtime against torchvision's own transforms, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from PIL import Image

from scripts.preprocessor_table import photograph, sizes
from tests import models
from tests.test_build import refused
from trtbatch import artifacts
from trtbatch.artifacts import Artifact, FileRecord, ModelRecord, Sidecar, TensorSpec
from trtbatch.backends.base import Range
from trtbatch.errors import ArtifactError, ExportError, InputError, UsageError
from trtbatch.files import sidecar_path
from trtbatch.infer import beside
from trtbatch.notes import LOGGER
from trtbatch.photographs import resample
from trtbatch.photographs.build import ranges_of, specs_of
from trtbatch.photographs.operands import Packing, operands, plan, profile_of, square
from trtbatch.photographs.preprocessor import (
    OnnxPreprocessor,
    PreprocessorRequest,
    build_graph,
    describe,
    export_preprocessor,
    feeds,
    pixels_of,
    prove,
)
from trtbatch.photographs.resample import Side, Span
from trtbatch.preprocessing import Preprocessing

Cli = Callable[..., Any]

IMAGENET = Preprocessing(resize=256, crop=(224, 224))
SMALL = Preprocessing(resize=20, crop=(16, 18))


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
    return OnnxPreprocessor(path)


def run(preprocess: OnnxPreprocessor, pixels: NDArray[np.uint8]) -> NDArray[Any]:
    spec = preprocess.record.output
    out = np.full([int(size) for size in spec.shape], 77, spec.dtype)
    preprocess(pixels, out)
    return out


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_generated_photographs_agree_with_torchvision(tmp_path: Path, interpolation: str) -> None:
    """From 1×1 on, landscape and portrait, in the worst case 1 of 255; here, none differs at all."""
    presets = pytest.importorskip("torchvision.transforms._presets")
    from torchvision.transforms import InterpolationMode

    theirs = presets.ImageClassification(
        crop_size=224, resize_size=256, interpolation=InterpolationMode(interpolation), antialias=True
    )
    recipe = replace(IMAGENET, interpolation=interpolation)  # type: ignore[arg-type]
    generator = np.random.default_rng(5)
    with preprocessor_of(tmp_path, recipe) as preprocess:
        for height, width in sizes(generator, 120, 900):
            pixels = photograph(generator, height, width)
            wanted = theirs(Image.fromarray(pixels)).numpy()
            found = run(preprocess, pixels)
            levels = np.abs(pixels_of(preprocess.record, found) - pixels_of(preprocess.record, wanted))
            assert levels.max() <= 1, (height, width)
            np.testing.assert_array_equal(np.rint(levels), 0, err_msg=f"{height}, {width}")
            np.testing.assert_allclose(found[0], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("resize", "crop"), [(20, 16), (16, 20), (17, 20), (299, 299)])
def test_other_recipes_and_odd_sizes_agree_with_torchvision(tmp_path: Path, resize: int, crop: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    theirs = transforms.Compose(
        [transforms.Resize(resize, antialias=True), transforms.CenterCrop(crop), transforms.PILToTensor()]
    )
    generator = np.random.default_rng(resize)
    with preprocessor_of(tmp_path, Preprocessing(resize, (crop, crop))) as preprocess:
        for size in ((1, 1), (1, 90), (90, 1), (223, 225), (31, 57), (225, 224), (16, 16), (600, 250)):
            pixels = photograph(generator, *size)
            wanted = theirs(Image.fromarray(pixels)).numpy().transpose(1, 2, 0)
            found = pixels_of(preprocess.record, run(preprocess, pixels))
            assert np.abs(found - wanted).max() < 1e-3, size


@pytest.mark.parametrize("interpolation", ["nearest", "lanczos"])
def test_the_other_filters_agree_with_pillow(tmp_path: Path, interpolation: str) -> None:
    recipe = replace(SMALL, interpolation=interpolation)  # type: ignore[arg-type]
    generator = np.random.default_rng(1)
    with preprocessor_of(tmp_path, recipe) as preprocess:
        for size in sizes(generator, 40, 300):
            pixels = photograph(generator, *size)
            np.testing.assert_allclose(run(preprocess, pixels)[0], recipe(Image.fromarray(pixels)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_a_model_that_normalises_itself_gets_bytes(tmp_path: Path, layout: str) -> None:
    recipe = replace(SMALL, fused=layout)  # type: ignore[arg-type]
    pixels = photograph(np.random.default_rng(2), 60, 45)
    with preprocessor_of(tmp_path, recipe) as preprocess:
        found = run(preprocess, pixels)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found[0], recipe(Image.fromarray(pixels)))
        np.testing.assert_array_equal(pixels_of(preprocess.record, found), recipe.pixels(Image.fromarray(pixels)))


def test_a_half_precision_input_gets_halves(tmp_path: Path) -> None:
    pixels = photograph(np.random.default_rng(2), 60, 45)
    with preprocessor_of(tmp_path, SMALL, dtype="float16") as preprocess:
        found = run(preprocess, pixels)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found[0], SMALL(Image.fromarray(pixels)).astype(np.float16))


class MatMul(OpRun):  # type: ignore[misc]
    """A product of TF32: what goes in keeps 11 significant bits, and the sum is float32."""

    op_domain = ""

    def _run(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> tuple[NDArray[np.float32]]:
        return (np.matmul(cut(a), cut(b)),)


class GatherElements(OpRun):  # type: ignore[misc]
    """onnx's own takes one element of each line where the lines are as many (onnx 1.21)."""

    op_domain = ""

    def _run(self, data: NDArray[Any], indices: NDArray[Any], axis: int = 0) -> tuple[NDArray[Any]]:
        return (np.take_along_axis(data, indices, axis),)


def cut(values: NDArray[np.float32]) -> NDArray[np.float32]:
    kept: NDArray[np.float32] = (np.ascontiguousarray(values).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    return kept


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_tf32_changes_no_pixel(interpolation: str) -> None:
    recipe = replace(SMALL, interpolation=interpolation, fused="NHWC")  # type: ignore[arg-type]
    record = describe(sidecar(recipe))
    model = ReferenceEvaluator(onnx.load_from_string(build_graph(record)), new_ops=[MatMul, GatherElements])
    generator = np.random.default_rng(3)
    assert cut(np.array([1 / 3], np.float32)) != np.float32(1 / 3)
    for size in ((40, 30), (7, 5), (300, 200), (90, 120), (33, 61)):
        pixels = generator.integers(0, 256, (*size, 3), np.uint8)
        found = model.run(None, feeds(record, operands(recipe, pixels)))[0][0]
        np.testing.assert_array_equal(found, recipe(Image.fromarray(pixels)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_file_is_what_tensorrt_8_6_reads(interpolation: Any) -> None:
    recipe = replace(SMALL, interpolation=interpolation, fused="NCHW")
    model = onnx.load_from_string(build_graph(describe(sidecar(recipe))))
    assert model.ir_version == 8 and [(each.domain, each.version) for each in model.opset_import] == [("", 17)]
    operators = {node.op_type for node in model.graph.node}
    known = {
        "Cast",
        "MatMul",
        "Transpose",
        "Split",
        "Concat",
        "Add",
        "Sub",
        "Mul",
        "Clip",
        "Floor",
        "Min",
        "Max",
        "Slice",
    }
    assert operators == known | ({"Div", "ReduceSum"} if interpolation == "bilinear" else {"GatherElements"})
    uint8 = onnx.TensorProto.UINT8
    shapes = {
        info.name: [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in model.graph.input
    }
    taps = 2 * int(np.ceil(2 * 4096 / 20 * 21 / 20)) + 3
    small = {"starts": ["count", 2, 36, 1], "taps": ["count", 2, 36, taps]}
    assert shapes == {
        "image": ["count", "side", "side", 3],
        "positions": [1, 1, 1, "side"],
        **({"sides": ["count", 2, 1, 6]} if interpolation == "bilinear" else small),
    }
    inferred = onnx.shape_inference.infer_shapes(model).graph
    assert not [info.name for info in inferred.value_info if info.type.tensor_type.elem_type == uint8]
    assert [node.op_type for node in model.graph.node if "image" in node.input or "sample" in node.output] == [
        "Cast"
    ] * 2


def test_only_the_part_that_the_crop_needs_goes_up() -> None:
    pixels = np.zeros((1000, 600, 3), np.uint8)
    image, rows, columns = operands(IMAGENET, pixels)
    assert image.base is pixels
    assert image.shape == (rows.end - rows.first, columns.end - columns.first, 3) == (528, 528, 3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_what_lies_beside_the_photograph_counts_nothing(tmp_path: Path, interpolation: Any) -> None:
    """As on the GPU, where a photograph lies in the corner of a larger room."""
    pixels, recipe = photograph(np.random.default_rng(4), 50, 40), replace(SMALL, interpolation=interpolation)
    with preprocessor_of(tmp_path, recipe) as preprocess:
        own = operands(recipe, pixels)
        given = feeds(preprocess.record, own)
        height, width = own.image.shape[:2]
        side = given["image"].shape[1] + 14
        room = np.random.default_rng(5).integers(0, 256, (1, side, side, 3), np.uint8)
        room[0, :height, :width] = own.image
        given |= {"image": room, "positions": np.arange(side, dtype=np.int32)[None, None, None]}
        model = ReferenceEvaluator(onnx.load_from_string(build_graph(preprocess.record)), new_ops=[GatherElements])
        wanted = run(preprocess, pixels)
        np.testing.assert_array_equal(model.run(None, given)[0], wanted)


def test_photographs_in_a_group_are_those_alone() -> None:
    """One that is enlarged, one padded with black, and one that is cut."""
    for recipe in (SMALL, IMAGENET, replace(SMALL, interpolation="bicubic"), replace(SMALL, crop=(40, 24))):
        record = describe(sidecar(recipe))
        session = ort.InferenceSession(build_graph(record), providers=["CPUExecutionProvider"])
        shots = [photograph(np.random.default_rng(9), *size) for size in ((50, 40), (9, 7), (31, 55))]
        alone = [feeds(record, operands(recipe, pixels)) for pixels in shots]
        assert {given["image"].shape for given in alone} == {(1, 64, 64, 3)}
        together = {name: np.concatenate([given[name] for given in alone]) for name in alone[0]}
        rows = session.run(None, together | {"positions": alone[0]["positions"]})[0]
        for row, pixels in zip(rows, shots):
            np.testing.assert_allclose(row, recipe(Image.fromarray(pixels)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_photograph_and_its_small_inputs_lie_in_one_block(interpolation: Any) -> None:
    recipe = replace(SMALL, interpolation=interpolation)
    packing = Packing(describe(sidecar(recipe)))
    assert all(offset % 256 == 0 for offset in packing.offsets.values()) and packing.bytes % 256 == 0
    given = operands(recipe, photograph(np.random.default_rng(4), 50, 40))
    height, width = given.image.shape[:2]
    room = np.full(packing.room(96) + 5, 255, np.uint8)
    packing.lay(room, 96, given)
    laid = room[: 3 * 96 * 96].reshape(96, 96, 3)
    np.testing.assert_array_equal(laid[:height, :width], given.image)
    assert (laid[height:] == 255).all() and (laid[:, width:] == 255).all() and (room[-5:] == 255).all()
    found = packing.views(room[packing.room(96) - packing.bytes :])
    assert {name: array.shape for name, array in found.items()} == packing.shapes(1)
    if isinstance(given.rows, Span):
        assert found["sides"][0, 0, 0].tolist() == list(given.rows.integers)
        return
    starts, taps = found["starts"][0], found["taps"][0]
    assert isinstance(given.columns, Side)
    for index, (count, made) in enumerate(zip((16, 18), (given.rows, given.columns))):
        length = made.taps.shape[1]
        for half in range(2):
            lines, own = slice(18 * half, 18 * half + count), slice(count * half, count * (half + 1))
            np.testing.assert_array_equal(starts[index, lines], made.starts[own])
            np.testing.assert_array_equal(taps[index, lines, 1 : 1 + length], made.taps[own])
    assert not taps[:, :, 0].any() and not taps[:, :, -1].any() and not taps[0, 16:18].any()


def test_a_part_that_is_too_large_is_resized_before(tmp_path: Path) -> None:
    pixels = photograph(np.random.default_rng(4), 90, 80)
    image, rows, columns = operands(SMALL, pixels, max_size=60)
    assert image.shape == (16, 18, 3)
    assert isinstance(rows, Span) and (*rows.integers[:2], columns.end) == (16, 16, 18)
    _, taps, _ = operands(replace(SMALL, interpolation="bicubic"), pixels, max_size=60)
    assert isinstance(taps, Side) and taps.taps.shape == (32, 1)
    np.testing.assert_array_equal(taps.starts[:16, 0], np.arange(16))
    with preprocessor_of(tmp_path, SMALL, max_size=60) as preprocess:
        np.testing.assert_allclose(run(preprocess, pixels)[0], SMALL(Image.fromarray(pixels)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_squares_are_few_and_hold_what_they_are_for(interpolation: Any) -> None:
    lengths = (1, 64, 65, 96, 97, 128, 129, 384, 385, 513, 1025)
    assert [square(1, each, 4096) for each in lengths] == [64, 64, 96, 96, 128, 128, 192, 384, 512, 768, 1536]
    assert square(50, 40, 60) == 60 and square(4000, 1, 4096) == 4096 and square(2049, 2049, 3000) == 3000
    recipe = replace(IMAGENET, interpolation=interpolation)
    for height, width in ((375, 500), (500, 375), (3000, 4000), (1, 1), (9000, 9000)):
        part = operands(recipe, np.zeros((height, width, 3), np.uint8)).image
        side, known = square(part.shape[0], part.shape[1], 4096), plan(recipe, height, width)
        assert profile_of(side) == (side > 512)
        assert (known is None) == (height == 9000) and (known is None or known.side == side)


def test_what_pillow_turns_round_is_resized_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "_turns_round", lambda: True)
    assert operands(SMALL, np.zeros((210, 100, 3), np.uint8))[0].shape == (16, 18, 3)
    monkeypatch.setattr(resample, "_turns_round", lambda: False)
    assert operands(SMALL, np.zeros((210, 100, 3), np.uint8))[0].shape[0] > 80


def test_it_writes_into_a_row_of_the_batch_and_nowhere_else(tmp_path: Path) -> None:
    batch = np.full((3, 3, 16, 18), 7, np.float32)
    pixels = photograph(np.random.default_rng(4), 50, 40)
    with preprocessor_of(tmp_path, SMALL) as preprocess:
        preprocess(pixels[:, ::-1], batch[1])
        np.testing.assert_allclose(batch[1], SMALL(Image.fromarray(pixels[:, ::-1].copy())), rtol=0, atol=1e-6)
        preprocess(pixels, batch[2:])
        np.testing.assert_allclose(batch[2], SMALL(Image.fromarray(pixels)), rtol=0, atol=1e-6)
    assert (batch[0] == 7).all()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    good, out = np.zeros((5, 6, 3), np.uint8), np.zeros((3, 16, 18), np.float32)
    with preprocessor_of(tmp_path, SMALL) as preprocess:
        strange: tuple[Any, ...] = (good[0], good[:, :, :2], good.astype(np.float32), good[:0])
        for pixels in strange:
            with pytest.raises(InputError, match="is no photograph"):
                preprocess(pixels, out)
        for wrong in (out[:, :, :16], out.astype(np.float64), np.zeros((3, 16, 36), np.float32)[:, :, ::2]):
            with pytest.raises(InputError, match="the sample is sample"):
                preprocess(good, wrong)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (sidecar(None), "x has no preprocessing recorded"),
        (
            sidecar(SMALL, *(TensorSpec(name, "float32", ("batch_size", 3, 16, 18)) for name in ("left", "right"))),
            r"x has 2 inputs \(left, right\)",
        ),
        (sidecar(SMALL, TensorSpec("input", "float32", ("batch_size", 3, 16, 16))), r"\(batch, 3, 16, 18\) float32"),
        (sidecar(SMALL, TensorSpec("input", "uint8", ("batch_size", 3, 16, 18))), "doesn't take the samples"),
        (sidecar(SMALL, TensorSpec("input", "float32", (3, 16, 18, "batch_size"), 3)), "doesn't take the samples"),
    ],
)
def test_a_model_that_takes_no_photographs_is_refused(model: Sidecar, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        describe(model)


def test_a_size_below_the_crop_is_refused() -> None:
    with pytest.raises(UsageError, match="--max-size 17 is below the crop, 18×16; pass --max-size 18 or more"):
        describe(sidecar(SMALL), 17)


def test_wrong_pixels_leave_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, recipe=replace(SMALL, interpolation="bicubic"))
    honest = resample._bicubic
    monkeypatch.setitem(resample._FILTERS, "bicubic", (lambda x: honest(x) ** 2, 2.0))
    resample.forget()
    try:
        with pytest.raises(ExportError, match="of 255 from Pillow's"):
            export_preprocessor(PreprocessorRequest(Path("engines/x.onnx")))
    finally:
        resample.forget()
    assert sorted(path.name for path in Path("engines").iterdir()) == ["x.onnx", "x.onnx.json"]


def write(folder: Path, kind: str = "onnx", recipe: Preprocessing | None = SMALL) -> Path:
    """``engines/x.onnx``, a classifier of 16×18 images in name, with its sidecar."""
    room = folder / "made"
    room.mkdir()
    (folder / "engines").mkdir(exist_ok=True)
    made = models.classifier(room / "x.onnx")
    known = replace(sidecar(recipe), artifact=artifacts.record_file(made), created=artifacts.now())
    artifacts.publish(made, folder / "engines" / "x.onnx", known)
    room.rmdir()
    return folder / "engines" / "x.onnx"


def test_the_command_writes_a_file_that_says_what_it_is(folder: Path, cli: Cli) -> None:
    path = write(folder)
    done = cli("export-preprocessor", path, "--max-size", 500)
    assert done.exit_code == 0, done.output
    assert "engines/x.pre.onnx" in done.output and "shorter side 20, bilinear, crop 18×16" in done.output
    with OnnxPreprocessor(Path("engines/x.pre.onnx")) as preprocess:
        record = preprocess.record
        prove(preprocess)
    assert (record.recipe, record.max_size, record.source) == (SMALL, 500, artifacts.record_file(path))
    beside = json.loads(Path("engines/x.pre.json").read_text(encoding="utf-8"))
    assert beside["artifact"]["sha256"] == artifacts.record_file(Path("engines/x.pre.onnx")).sha256
    assert beside["source"]["sha256"] == record.source.sha256 and beside["max_size"] == 500


def test_no_stage_takes_it_for_a_model(folder: Path, cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(folder)
    assert cli("export-preprocessor", path).exit_code == 0
    told: list[str] = []
    assert [each.path.name for each in artifacts.listed("onnx", Path("engines"), told.append)] == ["x.onnx"]
    assert not told


def test_without_a_name_it_is_for_the_newest_engine_for_photographs(folder: Path, cli: Cli, engine: Path) -> None:
    done = cli("export-preprocessor")
    assert done.exit_code == 1 and "no engine for photographs in engines/" in done.output
    data = json.loads((folder / "engines" / "small.ort.onnx.json").read_text(encoding="utf-8"))
    size = data["inputs"][0]["shape"][2:]
    data["preprocessing"] = {"resize": 20, "crop": size}
    (folder / "engines" / "small.ort.onnx.json").write_text(json.dumps(data), encoding="utf-8")
    done = cli("export-preprocessor")
    assert done.exit_code == 0, done.output
    assert "for the newest engine that takes photographs: engines/small.ort.onnx" in done.output
    assert (folder / "engines" / "small.pre.onnx").is_file()


@pytest.mark.parametrize("name", ["x.onnx", "y.onnx", "y.txt"])
def test_the_output_may_not_be_anything(folder: Path, cli: Cli, name: str) -> None:
    path = write(folder)
    before = path.read_bytes()
    done = cli("export-preprocessor", path, "--output", f"engines/{name}")
    assert done.exit_code == 2 and "doesn't end in .pre.onnx" in done.output
    assert path.read_bytes() == before


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "x.pre.onnx"
    path.write_bytes(build_graph(describe(sidecar(SMALL))))
    yield path


def test_other_files_are_refused(tmp_path: Path, written: Path) -> None:
    with pytest.raises(ArtifactError, match="doesn't exist"):
        OnnxPreprocessor(tmp_path / "nothing.pre.onnx")
    with pytest.raises(ArtifactError, match="is not a preprocessor"):
        OnnxPreprocessor(models.classifier(tmp_path / "model.onnx"))
    for change, told in (
        ({"format_version": 99}, "has format 99.*update trtbatch"),
        ({"format_version": 1}, "has format 1.*run: trtbatch export-preprocessor"),
        ({"recipe": {}}, "is damaged: recipe lacks 'resize'"),
    ):
        model = onnx.load(written)
        data = json.loads(model.metadata_props[0].value) | change
        model.metadata_props[0].value = json.dumps(data)
        changed = tmp_path / "changed" / written.name
        changed.parent.mkdir(exist_ok=True)
        onnx.save(model, str(changed))
        with pytest.raises(ArtifactError, match=told):
            OnnxPreprocessor(changed)
    written.write_bytes(written.read_bytes()[:300])
    with pytest.raises(ArtifactError, match="can't load"):
        OnnxPreprocessor(written)


def test_the_table_counts_what_it_saw(tmp_path: Path, written: Path) -> None:
    from scripts.preprocessor_table import table

    with OnnxPreprocessor(written) as preprocess:
        found = table(preprocess, None, count=6, largest=60, seed=0, timed=((40, 30),))
    assert found["photographs"] == 6 and found["max_difference"] <= 1 and found["exact_share"] == 1
    assert [row["height"] for row in found["times"]] == [40] and found["top1_agreement"] is None


def test_infer_gives_the_same_predictions_with_it(cli: Callable[..., Any], folder: Path, photos: Path) -> None:
    for line in (
        ("export", "tests.zoo:photos", "--dynamic"),
        ("build", "--max", 4, "--backend", "onnxruntime"),
        ("build", "engines/photos_dynamic.onnx", "--fuse-preprocess", "--max", 4, "--backend", "onnxruntime"),
        ("export-preprocessor", "engines/photos_dynamic.ort.onnx"),
        ("export-preprocessor", "engines/photos_dynamic.uint8.ort.onnx"),
    ):
        done = cli(*line)
        assert done.exit_code == 0, (line, done.stdout, done.stderr)
    for name in ("photos_dynamic", "photos_dynamic.uint8"):
        run = ("infer", f"engines/{name}.ort.onnx", "--input", photos, "--batch", 4)
        assert cli(*run, "--output", "pillow.csv").exit_code == 0
        done = cli(*run, "--output", "own.csv", "--preprocessor", f"engines/{name}.pre.onnx")
        assert done.exit_code == 0, done.stderr
        assert (folder / "pillow.csv").read_text() == (folder / "own.csv").read_text()
    done = cli(*run, "--preprocessor", "engines/photos_dynamic.pre.onnx")
    assert done.exit_code == 2 and "was made for photos_dynamic.ort.onnx" in done.stderr
    done = cli("infer", "--input", "random", "--preprocessor", "engines/photos_dynamic.pre.onnx")
    assert done.exit_code == 2 and "holds none" in done.stderr
    done = cli(*run, "--preprocessor", "engines/photos_dynamic.onnx")
    assert done.exit_code == 1 and "is not a preprocessor" in done.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--backend", "onnxruntime"), "on the CPU ONNX Runtime uses the ONNX file itself"),
        (("--backend", "onnxruntime"), "trtbatch infer --input PHOTOS/ --preprocessor engines/x.pre.onnx"),
        (("--static", 4), "is a preprocessor, which --static means nothing to"),
        (("--max", 4), "is a preprocessor, which a profile means nothing to"),
        (("--precision", "fp16"), "is a preprocessor, which --precision means nothing to"),
    ],
)
def test_building_one_takes_tensorrt_and_no_options_of_models(
    folder: Path, cli: Cli, options: tuple[object, ...], told: str
) -> None:
    assert cli("export-preprocessor", write(folder)).exit_code == 0
    done = cli("build", "engines/x.pre.onnx", *options)
    assert done.exit_code == 2 and told in done.stderr.replace("\n", " ")
    assert sorted(path.suffix for path in Path("engines").iterdir()) == [".json", ".json", ".onnx", ".onnx"]


def test_its_engine_takes_every_size() -> None:
    small, large = ranges_of(describe(sidecar(IMAGENET), 2000))
    assert small["image"] == Range((1, 1, 1, 3), (16, 384, 384, 3), (16, 512, 512, 3))
    assert large["image"] == Range((1, 1, 1, 3), (1, 1024, 1024, 3), (1, 2000, 2000, 3))
    assert small["sides"].max == (16, 2, 1, 6) and large["positions"].opt == (1, 1, 1, 1024)
    (only,) = ranges_of(describe(sidecar(SMALL), 20))
    assert only["image"].opt == only["image"].max == (16, 20, 20, 3)


def engine_of(folder: Path, recipe: Preprocessing, name: str) -> Path:
    """A preprocessor's engine as far as its sidecar goes."""
    room = folder / "room"
    room.mkdir()
    made = room / name
    made.write_bytes(b"an engine")
    inputs, output = specs_of(describe(sidecar(recipe)))
    known = Sidecar(
        "preprocessor",
        artifacts.record_file(made),
        inputs,
        (output,),
        ModelRecord("x.engine", "none"),
        backend="tensorrt",
        preprocessing=recipe,
        created=artifacts.now(),
    )
    artifacts.publish(made, folder / name, known)
    room.rmdir()
    return folder / name


def test_infer_finds_the_newest_that_fits(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger=LOGGER.name)
    for name, recipe in (("a", SMALL), ("b", SMALL), ("c", IMAGENET)):
        engine_of(folder, recipe, f"{name}.pre.engine")
    model = Artifact(folder / "x.engine", replace(sidecar(SMALL), backend="tensorrt"))
    found = beside(model)
    assert found is not None and found.path.name == "b.pre.engine"
    assert "preprocessor:" in caplog.text and "b.pre.engine" in caplog.text
    assert beside(Artifact(folder / "x.engine", sidecar(replace(SMALL, resize=21)))) is None
    half = Artifact(folder / "x.engine", sidecar(SMALL, dtype="float16"))
    assert beside(half) is None


def test_an_engine_of_one_is_for_a_gpu(folder: Path, cli: Cli, photos: Path, engine: Path) -> None:
    built = engine_of(folder, SMALL, "x.pre.engine")
    done = cli("infer", engine, "--input", photos, "--preprocessor", built)
    assert done.exit_code == 2 and "has no preprocessing recorded" in done.stderr
    done = cli("infer", engine, "--input", "random", "--preprocessor", built, "--no-preprocessor")
    assert done.exit_code == 2 and "contradict each other" in done.stderr


@pytest.mark.parametrize(
    "command", ["infer --input random", "bench", "verify", "tune --latency 5ms", "plan --traffic t.csv"]
)
def test_one_in_an_engines_place_is_named_with_the_option_that_takes_it(folder: Path, cli: Cli, command: str) -> None:
    built = engine_of(folder, SMALL, "x.pre.engine")
    written = folder / "y.pre.onnx"
    written.write_bytes(build_graph(describe(sidecar(SMALL))))
    (folder / "t.csv").write_text("batch,count\n1,1\n")
    name, *options = command.split()
    for path in (built, written):
        fix = f"trtbatch infer ENGINE --preprocessor {path}"
        refused(cli(name, path, *options), 1, f"{path} is a preprocessor, not an engine", fix)


def test_one_in_a_models_place_is_named(folder: Path, cli: Cli, engine: Path) -> None:
    written = folder / "y.pre.onnx"
    written.write_bytes(build_graph(describe(sidecar(SMALL))))
    refused(cli("export-preprocessor", written), 1, "is a preprocessor, not an ONNX file")
    refused(cli("verify", engine, "--against", written), 1, "is a preprocessor, not an ONNX file")


def test_a_model_in_a_preprocessors_place_is_named(folder: Path, cli: Cli, photos: Path, photo_engine: Path) -> None:
    run = ("infer", photo_engine, "--input", photos, "--preprocessor")
    refused(cli(*run, sidecar_path(photo_engine)), 1, "is the sidecar of small.ort.onnx, not a preprocessor")
    assert cli("export-preprocessor", photo_engine).exit_code == 0
    made = folder / "engines" / "small.pre.onnx"
    refused(cli(*run, made.with_suffix(".json")), 1, "is the sidecar of small.pre.onnx", f"beside it: {made}")


def test_inspect_tells_what_it_makes_of_which_photographs(folder: Path, cli: Cli) -> None:
    assert cli("export-preprocessor", write(folder)).exit_code == 0
    shown = cli("inspect", "engines/x.pre.onnx")
    assert shown.exit_code == 0, shown.output
    for words in (
        "is        a preprocessor",
        "for       x.onnx",
        "recipe    shorter side 20, bilinear, crop 18×16",
        "input     image (count, side, side, 3) uint8",
        "profile 0 image 1×1×1×3 to 16×512×512×3, kernels for 16×64×64×3",
        "profile 1 image 1×1×1×3 to 1×4096×4096×3, kernels for 1×1024×1024×3",
        "output    sample (count, 3, 16, 18) float32",
        "--preprocessor engines/x.pre.onnx",
    ):
        assert words in shown.output, shown.output
    found = json.loads(cli("inspect", "engines/x.pre.onnx", "--json").stdout)
    assert found["recipe"]["crop"] == [16, 18] and found["ranges"][1]["image"]["max"] == [1, 4096, 4096, 3]
    renamed = Path("engines/x.pre.onnx").rename("other.onnx")
    assert "a preprocessor" in cli("inspect", renamed).output


def test_inspect_finds_a_preprocessor_that_is_not_the_one_recorded(folder: Path, cli: Cli) -> None:
    assert cli("export-preprocessor", write(folder)).exit_code == 0
    path = Path("engines/x.pre.onnx")
    path.write_bytes(build_graph(describe(sidecar(SMALL), 99)))
    result = cli("inspect", path)
    refused(result, 1, "is not the file that x.pre.json describes", "trtbatch export-preprocessor")
    assert "to 16×99×99×3" in result.output


def test_inspect_tells_of_its_engine_what_the_sidecar_says(folder: Path, cli: Cli) -> None:
    built = engine_of(folder, SMALL, "x.pre.engine")
    refused(cli("inspect", built), 1, "its sidecar lacks the recipe or the size")
    beside_it = sidecar_path(built)
    more = {"build": {"max_size": 50}, "source": {"file": "x.pre.onnx", "sha256": "0", "bytes": 1}}
    beside_it.write_text(json.dumps(json.loads(beside_it.read_text()) | more))
    shown = cli("inspect", built)
    assert shown.exit_code == 0, shown.output
    old = json.loads(beside_it.read_text())
    beside_it.write_text(json.dumps(old | {"inputs": old["inputs"][:1]}))
    refused(cli("inspect", built), 1, "is of an earlier trtbatch", "trtbatch export-preprocessor, then trtbatch build")
    beside_it.write_text(json.dumps(old))
    assert "for       x.engine" in shown.output and "to 16×50×50×3" in shown.output and "tensorrt" in shown.output
    built.write_bytes(b"another")
    refused(cli("inspect", built), 1, "x.pre.engine is truncated", "trtbatch build x.pre.onnx")
