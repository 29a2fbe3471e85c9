"""The ensemble that takes encoded images: what Triton would do with the folders is done here, by what they say."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.support import models
from tests.support.sidecars import change_sidecar
from trtbatch.core.batches import Profile
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.sidecar import Artifact, EngineRecord, FileRecord, ModelRecord, Sidecar
from trtbatch.core.tensors import TensorSpec
from trtbatch.deployment.triton import TritonRequest, model_config
from trtbatch.deployment.tritonimages import image_models, release_for
from trtbatch.images.dali import THREADS
from trtbatch.onnx_graph.run import OnnxReference
from trtbatch.util.serialization import encode

pytest.importorskip("tritonclient.grpc", reason="Triton's protobuf definitions (tritonclient[grpc]) aren't installed")
dali = pytest.importorskip("nvidia.dali", reason="DALI isn't installed")

Cli = Callable[..., Any]
Array = NDArray[Any]

SIZES = ((120, 90), (64, 200), (33, 41), (500, 300), (8, 8))
"""Widths and heights of the photographs."""

DEPLOY = ("deploy", "triton", "--repository", "models", "--from-images")


@pytest.fixture
def shots(folder: Path) -> Path:
    """A folder of JPEG files of different sizes and lengths."""
    target = folder / "shots"
    target.mkdir()
    for index, (width, height) in enumerate(SIZES):
        (target / f"{index}.jpg").write_bytes(jpeg(width, height, index))
    return target


def jpeg(width: int, height: int, seed: int) -> bytes:
    """A JPEG file of soft colours, of which all decoders make nearly the same."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return file.getvalue()


def read(path: Path) -> Any:
    from tritonclient.grpc import model_config_pb2

    text_format = importlib.import_module("google.protobuf.text_format")
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def configs(repository: Path, name: str = "small") -> tuple[Any, Any, Any]:
    """Those of the engine, of the preprocessing and of the ensemble."""
    engine, preprocessing, ensemble = (
        read(repository / each / "config.pbtxt") for each in (name, f"{name}_preprocessing", f"{name}_images")
    )
    return engine, preprocessing, ensemble


def tensors(specs: Any) -> list[tuple[str, str, list[int]]]:
    from tritonclient.grpc import model_config_pb2

    return [(spec.name, model_config_pb2.DataType.Name(spec.data_type), list(spec.dims)) for spec in specs]


def answer(repository: Path, ensemble: str, images: Sequence[bytes]) -> dict[str, Array]:
    """What the ensemble answers: its steps' files are run, and tensors handed on as its maps say."""
    config = read(repository / ensemble / "config.pbtxt")
    (given,) = config.input
    known: dict[str, Any] = {given.name: [np.frombuffer(image, np.uint8) for image in images]}
    for step in config.ensemble_scheduling.step:
        inner = repository / step.model_name / str(step.model_version)
        inputs = {own: known[tensor] for own, tensor in step.input_map.items()}
        run = run_dali if (inner / "model.dali").is_file() else run_onnx
        outputs = run(inner, inputs, [each.name for each in read(inner.parent / "config.pbtxt").output])
        known |= {tensor: outputs[own] for own, tensor in step.output_map.items()}
    return {output.name: known[output.name] for output in config.output}


def run_dali(inner: Path, inputs: dict[str, Any], names: list[str]) -> dict[str, Array]:
    """As Triton's backend does: inputs by their names, outputs by their order, one batch at a time."""
    made = dali.Pipeline.deserialize(filename=str(inner / "model.dali"), prefetch_queue_depth=1)
    return {name: np.array(samples.as_tensor()) for name, samples in zip(names, made.run(**inputs))}


def run_onnx(inner: Path, inputs: dict[str, Any], names: list[str]) -> dict[str, Array]:
    made = OnnxReference(inner / "model.onnx")(inputs)
    return {name: made[name] for name in names}


def deployed(cli: Cli, *options: object) -> Any:
    result = cli(*DEPLOY, *options)
    assert result.exit_code == 0, result.output
    return result


def files(repository: Path) -> list[str]:
    return sorted(path.relative_to(repository).as_posix() for path in repository.rglob("*"))


def test_three_models_are_written_and_said(cli: Cli, photo_engine: Path, folder: Path) -> None:
    told = deployed(cli).output
    assert "models/small_images takes encoded images, models/small_preprocessing reads them" in told
    made = folder / "models"
    assert files(made) == [
        "small", "small/1", "small/1/model.onnx", "small/config.pbtxt", "small/labels.txt",
        "small_images", "small_images/1", "small_images/config.pbtxt", "small_images/labels.txt",
        "small_preprocessing", "small_preprocessing/1", "small_preprocessing/1/model.dali",
        "small_preprocessing/config.pbtxt",
    ]  # fmt: skip
    modes = {os.stat(path).st_mode & 0o055 for path in made.rglob("*") if path.is_dir()}
    assert modes == {0o055}, "others may read them"


def test_their_configurations_fit_together(cli: Cli, photo_engine: Path, folder: Path) -> None:
    deployed(cli)
    engine, preprocessing, ensemble = configs(folder / "models")
    assert [each.name for each in (engine, preprocessing, ensemble)] == ["small", "small_preprocessing", "small_images"]
    assert {each.max_batch_size for each in (engine, preprocessing, ensemble)} == {8}
    assert all(list(each.version_policy.specific.versions) == [1] for each in (engine, preprocessing, ensemble))

    assert preprocessing.backend == "dali"
    assert preprocessing.HasField("dynamic_batching")
    assert preprocessing.dynamic_batching.max_queue_delay_microseconds == 0, "the engine's batcher waits"
    assert tensors(preprocessing.input) == [("encoded", "TYPE_UINT8", [-1])]
    assert preprocessing.input[0].allow_ragged_batch
    assert tensors(preprocessing.output) == tensors(engine.input) == [("input", "TYPE_FP32", [3, 8, 8])]
    (group,) = preprocessing.instance_group
    assert (group.count, group.kind) == (1, group.KIND_CPU)

    assert (ensemble.platform, ensemble.backend) == ("ensemble", "")
    assert tensors(ensemble.input) == [("encoded", "TYPE_UINT8", [-1])]
    assert not ensemble.instance_group
    assert tensors(ensemble.output) == tensors(engine.output) == [("output", "TYPE_FP32", [5])]
    assert ensemble.output[0].label_filename == "labels.txt"
    steps = [
        (step.model_name, step.model_version, dict(step.input_map), dict(step.output_map))
        for step in ensemble.ensemble_scheduling.step
    ]
    assert steps == [
        ("small_preprocessing", 1, {"encoded": "encoded"}, {"input": "samples"}),
        ("small", 1, {"input": "samples"}, {"output": "output"}),
    ]


def test_the_release_of_dali_stands_beside_the_pipeline_and_is_said(
    cli: Cli, photo_engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvidia.dali.__version__", "2.0.0")
    told = "model.dali is of DALI 2.0.0, and needs a Triton with that DALI or a newer one: 26.03 or newer"
    assert told in " ".join(deployed(cli).output.split())
    _, preprocessing, _ = configs(folder / "models")
    values = {key: value.string_value for key, value in preprocessing.parameters.items()}
    assert values == {"dali_release": "2.0.0", "triton_release": "26.03 or newer", "num_threads": str(THREADS)}


@pytest.mark.parametrize(("backend", "device"), [("tensorrt", 0), ("onnxruntime", None)])
def test_the_pipeline_is_made_for_where_the_engine_runs(
    monkeypatch: pytest.MonkeyPatch, backend: Any, device: int | None
) -> None:
    made = Sidecar(
        kind="engine",
        artifact=FileRecord("net.engine", "0", 1),
        inputs=(TensorSpec("input", "float32", ("batch_size", 3, 8, 8)),),
        outputs=(TensorSpec("best", "int64", ("batch_size",)),),
        model=ModelRecord("net", "random"),
        engine=EngineRecord(backend, (Profile(1, 8, 32),)),
        preprocessing=Preprocessing(10, (8, 8)),
    )
    asked: list[Any] = []

    def serialize(*args: Any) -> bytes:
        asked.append(args[1:])
        return b""

    monkeypatch.setattr("trtbatch.images.dali.serialize", serialize)
    engine = model_config(made, "net", TritonRequest(None, Path("models")))
    images = image_models(Artifact(Path("net.engine"), made), engine, 7)
    assert asked == [(made.inputs[0], 32, device)]
    (group,) = images.preprocessing.instance_group
    assert group.kind == (group.KIND_CPU if device is None else group.KIND_GPU)
    assert [step.model_version for step in images.ensemble.ensemble_scheduling.step] == [7, 7]
    assert tensors(images.ensemble.output) == tensors(engine.output) == [("best", "TYPE_INT64", [1])]
    assert engine.output[0].HasField("reshape")
    assert not images.ensemble.output[0].HasField("reshape")


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        ("1.48.0", "25.05 or newer"),
        ("1.49.0", "25.05 or newer"),
        ("1.50.0", "25.08 or newer"),
        ("1.53", "26.02 or newer"),
        ("2.1.0", "26.05 or newer"),
        ("2.1.1.dev20260601", "26.06 or newer"),
        ("2.1.2", "newer than 26.06, which has DALI 2.1.1; see the release notes of Triton"),
        ("2.10.0", "newer than 26.06, which has DALI 2.1.1; see the release notes of Triton"),
    ],
)
def test_the_release_of_triton_that_has_a_dali(installed: str, told: str) -> None:
    assert release_for(installed) == told


def test_images_are_answered_as_infer_answers_them(cli: Cli, photo_engine: Path, folder: Path, shots: Path) -> None:
    deployed(cli)
    images = [path.read_bytes() for path in sorted(shots.iterdir())]
    assert len({len(image) for image in images}) == len(images), "a ragged batch"
    found = answer(folder / "models", "small_images", images)
    for reader, tolerance in (("dali", 1e-5), ("host", 0.02)):
        result = cli("infer", "--input", "shots", "--reader", reader, "--output", f"{reader}.npz")
        assert result.exit_code == 0, result.output
        with np.load(folder / f"{reader}.npz") as rows:
            assert found["output"].shape == rows["output"].shape == (5, 5)
            np.testing.assert_allclose(found["output"], rows["output"], rtol=tolerance, atol=tolerance)


def test_images_padded_to_one_length_give_the_same_rows(
    cli: Cli, photo_engine: Path, folder: Path, shots: Path
) -> None:
    """As a client sends several in one request, whose rows are of one length."""
    deployed(cli)
    images = [path.read_bytes() for path in sorted(shots.iterdir())]
    longest = max(map(len, images))
    padded = answer(folder / "models", "small_images", [image.ljust(longest, b"\0") for image in images])
    np.testing.assert_array_equal(padded["output"], answer(folder / "models", "small_images", images)["output"])


def refused(result: Any, code: int, *told: str) -> None:
    """Assert one line of problem, one of fix, these words in them, and the exit code."""
    assert result.exit_code == code, result.output
    lines = result.output.strip().splitlines()[-2:]
    assert lines[0].startswith("error: "), result.output
    assert lines[1].startswith("fix: "), result.output
    assert all(words in "\n".join(lines) for words in told), result.output
    assert "Traceback" not in result.output


def built(cli: Cli, make: Callable[..., Path], folder: Path, *options: object, **shape: Any) -> Path:
    """An engine of a model of the tests, with preprocessing in its sidecar."""
    make(folder / "m.onnx", **shape)
    assert cli("build", "m.onnx", "--backend", "onnxruntime", *options).exit_code == 0
    (engine,) = (folder / "engines").glob("*.ort.onnx")
    change_sidecar(engine, preprocessing=encode(Preprocessing(10, (8, 8))))
    return engine


def test_names_of_tensors_that_are_taken_are_left(cli: Cli, folder: Path, shots: Path) -> None:
    """The engine's output has the name that the ensemble's input would have."""
    from onnx import helper

    path = folder / "auto.onnx"
    nodes = [helper.make_node("Neg", ["samples"], ["encoded"], name="/neg")]
    models.save(path, nodes, {"samples": ["batch_size", 3, 8, 8]}, {"encoded": ["batch_size", 3, 8, 8]})
    assert cli("build", "auto.onnx", "--max", 8, "--backend", "onnxruntime").exit_code == 0
    change_sidecar(folder / "engines" / "auto.ort.onnx", preprocessing=encode(Preprocessing(10, (8, 8))))
    deployed(cli)
    _, _, ensemble = configs(folder / "models", "auto")
    assert [each.name for each in ensemble.input] == ["encoded_"]
    found = answer(folder / "models", "auto_images", [(shots / "0.jpg").read_bytes()])
    assert found["encoded"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("dtype", "fused", "shape"),
    [("float16", None, (3, 8, 8)), ("uint8", "NHWC", (8, 8, 3)), ("uint8", "NCHW", (3, 8, 8))],
)
def test_samples_have_the_type_and_layout_of_the_input(
    cli: Cli, folder: Path, shots: Path, dtype: str, fused: Any, shape: tuple[int, ...]
) -> None:
    from onnx import TensorProto, helper

    kind = {"float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}[dtype]
    nodes = [helper.make_node("Identity", ["input"], ["output"], name="/identity")]
    axes: models.Shape = ["batch_size", *shape]
    models.save(
        folder / "m.onnx", nodes, {"input": axes}, {"output": axes}, dtypes=dict.fromkeys(("input", "output"), kind)
    )
    assert cli("build", "m.onnx", "--max", 8, "--backend", "onnxruntime", "--no-verify").exit_code == 0
    recipe = Preprocessing(10, (8, 8), fused=fused)
    change_sidecar(folder / "engines" / "m.ort.onnx", preprocessing=encode(recipe))
    deployed(cli)
    images = [path.read_bytes() for path in sorted(shots.iterdir())]
    found = answer(folder / "models", "m_images", images)["output"]
    assert (found.dtype, found.shape) == (np.dtype(dtype), (5, *shape))
    host = np.stack([recipe(Image.open(io.BytesIO(image))) for image in images])
    level = 1 / 255 / min(recipe.std) if fused is None else 1
    assert np.abs(found.astype(np.float32) - host.astype(np.float32)).mean() < level


def test_what_cannot_be_served_from_images_is_refused(cli: Cli, engine: Path, folder: Path) -> None:
    why = "Triton can't serve small.ort.onnx from images: "
    refused(cli(*DEPLOY), 1, f"{why}small has no preprocessing recorded", "leave out --from-images")
    change_sidecar(engine, preprocessing=encode(Preprocessing(10, (6, 6))))
    told = f"{why}the preprocessing of small makes samples (3, 6, 6), which its input input (batch_size, 3, 8, 8)"
    refused(cli(*DEPLOY), 1, told)
    assert not (folder / "models").exists()


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        (models.two_inputs, (), "from images: m has 2 inputs (left, right)"),
        (models.batch_last, (), "Triton can't serve m.ort.onnx: the batch is axis 1 of input 'input', not 0"),
        (models.classifier, ("--static", 4), "from images: it holds batch 4 alone"),
    ],
)
def test_models_that_take_no_images_one_by_one_are_refused(
    cli: Cli, folder: Path, make: Callable[..., Path], options: tuple[object, ...], reason: str
) -> None:
    built(cli, make, folder, *options)
    refused(cli(*DEPLOY), 1, reason)
    assert not (folder / "models").exists()


def test_integers_that_dali_does_not_fill_are_refused(cli: Cli, folder: Path) -> None:
    from onnx import TensorProto

    built(cli, models.negated, folder, dtype=TensorProto.INT32, shape=("batch_size", 3, 8, 8))
    refused(cli(*DEPLOY), 1, "from images: DALI doesn't fill the input input (batch_size, 3, 8, 8) int32 of m")


class Absent:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "nvidia.dali" or name.startswith("nvidia.dali."):
            raise ModuleNotFoundError(f"No module named {name!r}", name="nvidia.dali")


def test_without_dali_the_extra_is_named(cli: Cli, photo_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if f"{name}.".startswith("nvidia.dali.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    refused(cli(*DEPLOY), 1, "nvidia.dali is needed to read images with DALI, and isn't installed", "trtbatch[dali]")
    assert cli("deploy", "triton", "--repository", "models").exit_code == 0


def test_what_dali_says_of_a_gpu_that_is_not_there_is_told(
    cli: Cli, photo_engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> bytes:
        raise RuntimeError("You are trying to create a GPU DALI pipeline\n  while CUDA is not available.")

    monkeypatch.setattr("trtbatch.images.dali.serialize", fail)
    told = "DALI can't serialize the pipeline here: You are trying to create a GPU DALI pipeline while CUDA is not"
    refused(cli(*DEPLOY), 1, told, "leave out --from-images")
    assert not (folder / "models").exists()


def test_versions_of_all_three_go_together(cli: Cli, photo_engine: Path, folder: Path) -> None:
    deployed(cli)
    refused(cli(*DEPLOY), 2, "models/small/1 is there already")
    assert "version 1 of models/small_images stays where it is" in deployed(cli, "--version", 2).output
    for config in configs(folder / "models"):
        assert list(config.version_policy.specific.versions) == [2]
    assert [step.model_version for step in configs(folder / "models")[2].ensemble_scheduling.step] == [2, 2]
    (folder / "models/small_preprocessing/2/model.dali").write_bytes(b"old")
    deployed(cli, "--version", 2, "--force")
    assert (folder / "models/small_preprocessing/2/model.dali").stat().st_size > 1000
    (folder / "models/net_images").mkdir()
    refused(cli(*DEPLOY, "--name", "net"), 2, "models/net_images is there, and isn't a model of Triton's")
    assert not (folder / "models/net").exists()


def test_an_ensemble_that_is_left_behind_is_told_of(cli: Cli, photo_engine: Path, folder: Path) -> None:
    deployed(cli)
    before = (folder / "models/small_images/config.pbtxt").read_text()
    told = cli("deploy", "triton", "--repository", "models", "--version", 2).output
    assert "models/small_images was written for version 1 of small, and stays as it is" in " ".join(told.split())
    assert (folder / "models/small_images/config.pbtxt").read_text() == before


@pytest.mark.parametrize("replaced", [False, True])
def test_a_failure_at_the_last_folder_takes_the_others_back(
    cli: Cli, photo_engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    made = folder / "models"
    if replaced:
        deployed(cli)
        (made / "small/1/model.onnx").write_bytes(b"old")
        (made / "small/labels.txt").unlink()
    before = {name: (made / name).read_bytes() for name in files(made) if (made / name).is_file()}
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if Path(target).resolve().is_relative_to(made.resolve() / "small_images"):
            raise OSError(28, "No space left on device", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    refused(cli(*DEPLOY, "--force"), 1, "No space left on device")
    assert {name: (made / name).read_bytes() for name in files(made) if (made / name).is_file()} == before
    assert not list(made.rglob(".trtbatch-*")), "no scratch folder is left"
