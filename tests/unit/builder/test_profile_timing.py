"""The table of a build: which batches are timed, what stands in the sidecar, what the runtime makes of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import models
from trtbatch.builder.build import BuildRequest, build
from trtbatch.builder.build_estimate import estimate_build
from trtbatch.core.batches import Profile
from trtbatch.core.store import load


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    return models.classifier(tmp_path / "m.onnx")


def test_auto_profiles_are_timed_and_stand_in_the_sidecar(
    cli: Callable[..., Any], onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(onnx.parent)
    done = cli("build", onnx, "--profiles", "auto", "--max", 8)
    assert done.exit_code == 0, done.stderr
    assert "1:1:1, 1:2:2, 1:4:4, 1:8:8" in done.stderr
    assert "times" in done.stdout
    sidecar = load(Path("engines/m.ort.onnx"), "engine").sidecar
    assert sidecar.engine.profiles == (Profile(1, 1, 1), Profile(1, 2, 2), Profile(1, 4, 4), Profile(1, 8, 8))
    assert [row.batch for row in sidecar.engine.table] == [1, 2, 4, 8]
    assert all(row.ms > 0 for row in sidecar.engine.table)
    assert sidecar.engine.times == {row.batch: row.ms for row in sidecar.engine.table}
    assert sidecar.engine.best_batch in sidecar.engine.times
    shown = cli("inspect", "engines/m.ort.onnx")
    assert shown.exit_code == 0, shown.stdout
    assert re.search(r"8\s+│\s+1:8:8", shown.stdout), shown.stdout


def test_named_batches_are_timed_even_with_one_profile(onnx: Path) -> None:
    made = build(
        BuildRequest(onnx=onnx, profiles=(Profile(1, 4, 8),), batches=(3, 5), output=onnx.with_suffix(".ort.onnx"))
    )
    assert [(row.batch, row.profile, row.loss) for row in made.sidecar.engine.table] == [(3, 0, None), (5, 0, None)]


def test_one_profile_on_the_cpu_is_not_timed(onnx: Path) -> None:
    made = build(BuildRequest(onnx=onnx, profiles=(Profile(1, 4, 8),), output=onnx.with_suffix(".ort.onnx")))
    assert made.sidecar.engine.table == ()
    assert made.sidecar.engine.best_batch == 4


def test_a_named_batch_in_a_gap_is_an_error_before_anything_is_built(
    cli: Callable[..., Any], onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(onnx.parent)
    done = cli("build", onnx, "--profile", "1:1:4", "--profile", "8:8:16", "--batch", "6")
    assert done.exit_code != 0
    assert "batches 5 to 7 are in no profile" in done.stderr
    assert "batch 6 is outside every profile" in done.stderr
    assert not Path("engines/m.ort.onnx").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--profiles", "auto", "--opt", 3), "--opt"),
        (("--profiles", "auto", "--static", 3), "--static"),
        (("--profiles", "auto", "--profile", "1:2:3"), "--profile"),
        (("--max-profiles", 2), "--profiles auto"),
        (("--profiles", "auto", "--batch", 64, "--max", 32), "--batch 64"),
        (("--timing-cache", "t", "--no-timing-cache"), "contradict"),
        (("--profiles", "some"), "--profiles"),
    ],
)
def test_options_that_contradict_each_other(
    cli: Callable[..., Any], onnx: Path, options: tuple[object, ...], words: str
) -> None:
    done = cli("build", onnx, *options)
    assert done.exit_code != 0, done.stderr
    assert words in done.stderr, done.stderr


def test_a_forecast_says_what_is_certain_and_learns_from_earlier_engines(onnx: Path) -> None:
    made = build(BuildRequest(onnx=onnx, profiles=(Profile(1, 4, 8),), output=onnx.with_suffix(".ort.onnx")))
    profiles = (Profile(1, 1, 1), Profile(1, 8, 8))
    assert "about 2 times the build time of one" in estimate_build(made, None, profiles, onnx.parent / "nowhere")
    # An engine of ONNX Runtime tells nothing.
    assert "about 2 times" in estimate_build(made, None, profiles, onnx.parent)
