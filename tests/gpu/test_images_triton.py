"""The ensemble of a TensorRT engine: ``model.dali`` is loaded as Triton's backend loads it, and run on the GPU."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.photos import copy_photos
from tests.support import models
from tests.support.processes import run_process
from trtbatch.core import store
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.sidecar import BuildRecord, ModelRecord, Sidecar
from trtbatch.core.tensors import TensorSpec

pytest.importorskip("tritonclient.grpc", reason="Triton's protobuf definitions (tritonclient[grpc]) aren't installed")
dali = pytest.importorskip("nvidia.dali", reason="DALI isn't installed")

RECIPE = Preprocessing(resize=232, crop=(224, 224))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``deploy triton --from-images`` writes of an engine of profile 1:8:16."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "made").mkdir()
    made = models.classifier(folder / "made" / "net.onnx", size=224)
    sidecar = Sidecar(
        kind="onnx",
        artifact=store.record_file(made),
        inputs=(TensorSpec("input", "float32", ("batch_size", 3, 224, 224)),),
        outputs=(TensorSpec("output", "float32", ("batch_size", 5)),),
        model=ModelRecord("net", "of the test"),
        preprocessing=RECIPE,
        build=BuildRecord(created=store.now()),
    )
    store.publish(made, folder / "net.onnx", sidecar)
    for line in (
        ("build", "net.onnx", "--opt", 8, "--max", 16, "--opt-level", 2, "--output", "net.engine"),
        ("deploy", "triton", "net.engine", "--repository", "models", "--from-images"),
    ):
        done = run_process(*line, cwd=folder)
        print(done.stdout, done.stderr)
        assert done.returncode == 0, done.stderr
    return folder / "models"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The ten photographs as JPEG files: two are grey, all are of other sizes than the model's input."""
    folder = tmp_path_factory.mktemp("photographs")
    copy_photos(folder)
    return [jpeg(path) for path in sorted(folder.iterdir())]


def jpeg(path: Path) -> bytes:
    if path.suffix == ".jpg":
        return path.read_bytes()
    with Image.open(path) as image:
        file = io.BytesIO()
        (image if image.mode in ("L", "RGB") else image.convert("RGB")).save(file, "JPEG", quality=95)
    return file.getvalue()


def config_of(repository: Path, name: str) -> Any:
    from tritonclient.grpc import model_config_pb2

    text_format = importlib.import_module("google.protobuf.text_format")
    text = (repository / name / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_the_pipeline_runs_where_the_engine_does(repository: Path) -> None:
    engine, preprocessing, ensemble = (
        config_of(repository, f"net{part}") for part in ("", "_preprocessing", "_images")
    )
    (group,) = preprocessing.instance_group
    assert (group.count, group.kind) == (1, group.KIND_GPU)
    assert preprocessing.max_batch_size == ensemble.max_batch_size == engine.max_batch_size == 16
    assert preprocessing.parameters["dali_release"].string_value == dali.__version__
    assert list(preprocessing.output[0].dims) == list(engine.input[0].dims) == [3, 224, 224]


@pytest.mark.parametrize(("count", "padded"), [(10, False), (10, True), (1, False), (3, False)])
def test_its_samples_are_those_of_the_host_reader_within_a_level(
    repository: Path, photographs: list[bytes], count: int, padded: bool
) -> None:
    """At most 1 of 255 apart in the mean of each photograph: JPEG decoders and filters round differently."""
    images = photographs[:count]
    longest = max(map(len, images)) if padded else 0
    file = repository / "net_preprocessing" / "1" / "model.dali"
    made = dali.Pipeline.deserialize(filename=str(file), prefetch_queue_depth=1)
    (samples,) = made.run(encoded=[np.frombuffer(image.ljust(longest, b"\0"), np.uint8) for image in images])
    found = np.array(samples.as_cpu().as_tensor())
    host = np.stack([RECIPE(Image.open(io.BytesIO(image))) for image in images])
    assert (found.shape, found.dtype) == (host.shape, host.dtype)
    levels = np.abs(found - host) * np.array(RECIPE.std, np.float32)[:, None, None] * 255
    means = levels.mean(axis=(1, 2, 3))
    print(f"mean difference of each photograph, of 255: {means.round(3)}; largest {levels.max():.1f}")
    assert means.max() <= 1
