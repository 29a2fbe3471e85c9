"""How near a new engine comes to its file: on a real batch of samples, and on every profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import models
from tests.support.messages import nothing_left, refused
from trtbatch.backends import open_engine
from trtbatch.backends.onnxruntime import OnnxRuntimeSession
from trtbatch.builder.validation import validate_other_profiles
from trtbatch.core.batches import Profile
from trtbatch.core.rows import random_inputs
from trtbatch.core.store import load
from trtbatch.onnx_graph.run import OnnxReference

Cli = Callable[..., Any]


def accuracy_of(folder: Path, name: str = "m") -> str:
    sidecar = load(folder / f"engines/{name}.ort.onnx", "engine").sidecar
    assert sidecar.precision.accuracy is not None
    assert sidecar.precision.accuracy.l2_rel < 1e-5
    assert sidecar.precision.accuracy.top1 == 1.0
    return sidecar.precision.accuracy.samples


@pytest.mark.parametrize(
    ("line", "samples"),
    [
        (("--opt", 64), "32 random samples"),
        (("--profiles", "auto", "--batch", "1,64"), "32 random samples"),
        (("--max", 7), "7 random samples"),
        (("--profile", "1:1:1", "--profile", "4:20:48"), "32 random samples"),
        (("--profile", "1:1:1", "--profile", "48:64:64"), "32 random samples"),
        (("--profile", "48:48:64"), "32 random samples"),
        (("--static", 1), "1 random sample"),
        (("--static", 80), "32 random samples"),
    ],
)
def test_up_to_32_samples_are_compared_whatever_the_corners(
    cli: Cli, folder: Path, line: tuple[object, ...], samples: str
) -> None:
    models.classifier(folder / "m.onnx")
    result = cli("build", "m.onnx", *line, "--backend", "onnxruntime", "--output", "engines/m.ort.onnx")
    assert result.exit_code == 0, result.output
    assert accuracy_of(folder) == samples
    assert f"({samples}) against m.onnx" in result.output


def test_a_file_of_a_fixed_batch_is_compared_at_that(cli: Cli, folder: Path) -> None:
    models.classifier(folder / "m.onnx", batch=40)
    assert cli("build", "m.onnx", "--backend", "onnxruntime").exit_code == 0
    assert accuracy_of(folder) == "40 random samples"


def test_outputs_that_are_no_rows_are_compared_with_those_of_the_same_batch(cli: Cli, folder: Path) -> None:
    """A mean over 48 samples isn't that over 32: the reference runs as many as the engine."""
    models.summarised(folder / "m.onnx")
    result = cli("build", "m.onnx", "--profile", "48:48:64", "--backend", "onnxruntime")
    assert result.exit_code == 0, result.output
    accuracy = load(folder / "engines/m.ort.onnx", "engine").sidecar.precision.accuracy
    assert accuracy is not None
    assert accuracy.samples == "48 random samples"


def spoil(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[OnnxRuntimeSession, int], bool]) -> None:
    """Every row a tenth too large in the runs of which `wrong` says so, by session and batch."""
    real = OnnxRuntimeSession.fetch

    def fetch(session: OnnxRuntimeSession) -> dict[str, Any]:
        found = real(session)
        return {name: array * 1.1 if wrong(session, len(array)) else array for name, array in found.items()}

    monkeypatch.setattr(OnnxRuntimeSession, "fetch", fetch)


def test_an_engine_that_is_right_at_its_corners_alone_is_refused(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.classifier(folder / "m.onnx")
    spoil(monkeypatch, lambda session, batch: 1 < batch < 64)
    line = ("build", "m.onnx", "--opt", 64, "--backend", "onnxruntime")
    refused(cli(*line), 1, "differs from m.onnx: 32 of 32 rows of output")
    assert nothing_left(folder)


@pytest.mark.parametrize("spoilt", [0, 1, 2])
def test_each_profile_is_compared_also_one_that_begins_beyond_the_samples(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, spoilt: int
) -> None:
    models.classifier(folder / "m.onnx")
    profiles = (Profile(1, 1, 1), Profile(1, 8, 16), Profile(40, 48, 64))
    words = [item for profile in profiles for item in ("--profile", profile)]
    assert cli("build", "m.onnx", *words, "--backend", "onnxruntime").exit_code == 0
    artifact = load(folder / "engines/m.ort.onnx", "engine")
    sidecar = artifact.sidecar
    inputs = random_inputs(sidecar.inputs, 16, seed=1)
    wanted = OnnxReference(folder / "m.onnx")(inputs)
    used: list[int | None] = []
    use_profile = OnnxRuntimeSession.use_profile

    def use(session: OnnxRuntimeSession, profile: int | None) -> None:
        used.append(profile)
        use_profile(session, profile)

    monkeypatch.setattr(OnnxRuntimeSession, "use_profile", use)
    spoil(monkeypatch, lambda session, batch: used[-1] == spoilt)
    with open_engine(artifact) as engine, engine.session() as session:
        results = validate_other_profiles(
            session, replace(sidecar, engine=replace(sidecar.engine, backend="tensorrt")), inputs, wanted, 16, None
        )
    assert [(each.batch, each.passed) for each in results] == [
        (batch, index != spoilt) for index, batch in enumerate((1, 16, 40))
    ]
