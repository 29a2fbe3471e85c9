"""Shared fixtures: a command line in a folder of its own, photographs, a built engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests import models
from trtbatch.cli import app

ROOT = Path(__file__).resolve().parent.parent

PHOTOS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
"""Ten photographs of scikit-image's wheel, in the order of their names; camera and coins are grey."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli(folder: Path) -> Callable[..., Any]:
    """Run ``trtbatch ARGS`` in this process, in `folder`."""
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ten real photographs."""
    skimage = pytest.importorskip("skimage", reason="scikit-image brings the photographs")
    source = Path(skimage.__file__).parent / "data"
    target = tmp_path_factory.mktemp("photos")
    for name in PHOTOS:
        shutil.copy(source / name, target / name)
    return target


@pytest.fixture
def engine(folder: Path, cli: Callable[..., Any]) -> Path:
    """``engines/small.ort.onnx``: the small classifier, profile 1:4:8, ONNX Runtime."""
    (folder / "engines").mkdir()
    models.classifier(folder / "small.onnx")
    result = cli("build", "small.onnx", "--min", 1, "--opt", 4, "--max", 8, "--backend", "onnxruntime")
    assert result.exit_code == 0, result.output
    return folder / "engines" / "small.ort.onnx"


def run_process(*args: object, cwd: Path, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
    """``trtbatch ARGS`` as its own process."""
    return subprocess.run(
        [sys.executable, "-m", "trtbatch", *map(str, args)],
        cwd=cwd,
        timeout=timeout,
        capture_output=True,
        text=True,
        env=child_environment() | env,
    )


def child_environment() -> dict[str, str]:
    """This process's environment, with the package in reach."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
