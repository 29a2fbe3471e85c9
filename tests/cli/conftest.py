"""Artifacts and results that the black-box tests share: each is made once in a session, by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import models
from tests.support.command_line import CommandLine
from tests.support.golden import Golden

GOLDEN = Path(__file__).parent / "golden"

PREPROCESSING = {
    "resize": 10,
    "crop": [8, 8],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bilinear",
}


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> Golden:
    """The golden file of the test's module: ``options.json`` of ``test_options.py``."""
    name = Path(str(request.path)).stem.removeprefix("test_")
    return Golden(GOLDEN / f"{name}.json", bool(request.config.getoption("--rewrite-golden")))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """A folder with ``engines/small.ort.onnx``: profiles 1:1:1, 1:2:2 and 1:4:4, a preprocessing and classes."""
    trtbatch = CommandLine(tmp_path_factory.mktemp("built"))
    models.classifier(trtbatch.folder / "small.onnx")
    (trtbatch.folder / "engines").mkdir()
    trtbatch.succeed("build", "small.onnx", "--profiles", "auto", "--max", 4, "--backend", "onnxruntime")
    add_to_sidecar(trtbatch, preprocessing=PREPROCESSING, classes=["ant", "bee", "cat", "dog", "elk"])
    return trtbatch


def add_to_sidecar(trtbatch: CommandLine, **fields: Any) -> None:
    """Add fields to the engine's sidecar, as an export of a model with a preprocessing has them."""
    name = "engines/small.ort.onnx.json"
    (trtbatch.folder / name).write_text(json.dumps(trtbatch.read(name) | fields))
