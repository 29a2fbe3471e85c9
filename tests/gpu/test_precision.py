"""Precisions and engine options on TensorRT: realized, right row by row against float32, or refused by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from tests.support import models
from tests.support.processes import run_process
from trtbatch.backends import open_engine
from trtbatch.builder.validation import ValidationRequest, validate
from trtbatch.core.rows import random_inputs, row_errors
from trtbatch.core.sidecar import Sidecar
from trtbatch.core.store import load
from trtbatch.errors import PrecisionError
from trtbatch.onnx_graph.run import OnnxReference
from trtbatch.quantization.converter import MODELOPT_PYTHON
from trtbatch.util import optional

needs_modelopt = pytest.mark.skipif(
    not optional.is_installed("modelopt") and MODELOPT_PYTHON not in os.environ, reason="needs nvidia-modelopt"
)
"""The conversion's own skip; what TensorRT itself does with types is tested without it."""


def build(folder: Path, *options: object, onnx: str = "m.onnx") -> Any:
    line = ("build", onnx, "--max", 8, "--opt", 4, "--output", "m.engine", *options)
    done = run_process(*line, cwd=folder)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def built(folder: Path, *options: object, onnx: str = "m.onnx") -> Sidecar:
    done = build(folder, *options, onnx=onnx)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return load(folder / "m.engine", "engine").sidecar


def worst(folder: Path, onnx: str = "m.onnx", batches: tuple[int, ...] = (1, 3, 8)) -> float:
    """Largest relative error of a row against ONNX Runtime on the float32 file."""
    artifact = load(folder / "m.engine", "engine")
    found = 0.0
    with open_engine(artifact) as engine, engine.session() as session:
        for batch in batches:
            inputs = random_inputs(artifact.sidecar.inputs, batch, seed=batch + 20)
            session.bind(inputs)
            session.poison(0xFF)
            session.run()
            rows = session.fetch()["output"].reshape(batch, -1).astype(np.float32)
            wide = {name: array.astype(np.float32) for name, array in inputs.items()}
            wanted = OnnxReference(folder / onnx)(wide)["output"].reshape(batch, -1)
            found = max(found, float(row_errors(rows, wanted).max()))
    print(f"largest error of a row: {found:.2e}")
    return found


def layers_of(folder: Path) -> dict[str, str]:
    with open_engine(load(folder / "m.engine", "engine")) as engine:
        told = {name: precision for name, _, precision, _ in engine.describe().layers}
    print(told)
    return told


def in_layers(folder: Path, node: str) -> set[str]:
    return {precision for name, precision in layers_of(folder).items() if node in name.split(" + ")}


def test_fp32_is_without_tf32_and_tf32_is_near(tmp_path: Path) -> None:
    models.wide(tmp_path / "m.onnx")
    sidecar = built(tmp_path, "--precision", "fp32")
    assert sidecar.precision.realized == "fp32"
    assert "tf32" not in sidecar.precision.layers
    assert in_layers(tmp_path, "/second") == {"fp32"}
    assert worst(tmp_path) < 1e-5
    assert built(tmp_path, "--precision", "tf32").precision.realized == "tf32"
    assert in_layers(tmp_path, "/second") <= {"fp32", "tf32"}
    assert worst(tmp_path) < 2e-3


@needs_modelopt
def test_fp16_is_realised_and_near(tmp_path: Path) -> None:
    models.wide(tmp_path / "m.onnx")
    sidecar = built(tmp_path, "--precision", "fp16")
    assert in_layers(tmp_path, "/second") == {"fp16"}
    assert sidecar.precision.layers["fp16"] > 0.5
    assert sidecar.precision.accuracy is not None
    assert 1e-5 < sidecar.precision.accuracy.l2_rel < 1e-2
    assert 1e-5 < worst(tmp_path) < 1e-2


@needs_modelopt
def test_fp16_inputs_and_outputs(tmp_path: Path) -> None:
    models.wide(tmp_path / "m.onnx")
    sidecar = built(tmp_path, "--precision", "fp16", "--io-precision", "fp16")
    assert [spec.dtype for spec in (*sidecar.inputs, *sidecar.outputs)] == ["float16", "float16"]
    assert worst(tmp_path) < 1e-2


@needs_modelopt
def test_a_node_that_is_kept_in_float32_is_so_in_the_engine(tmp_path: Path) -> None:
    models.wide(tmp_path / "m.onnx")
    built(tmp_path, "--precision", "fp16", "--keep-fp32", "/second")
    assert in_layers(tmp_path, "/first") == {"fp16"}
    assert in_layers(tmp_path, "/second") <= {"fp32", "tf32"}
    assert worst(tmp_path) < 1e-2


@needs_modelopt
def test_int8_is_realised_and_near(tmp_path: Path) -> None:
    models.wide(tmp_path / "m.onnx")
    samples = np.random.default_rng(9).standard_normal((40, 32, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", input=samples)
    sidecar = built(tmp_path, "--precision", "int8", "--calibration", "calib.npz")
    assert in_layers(tmp_path, "/second") == {"int8"}
    assert sidecar.precision.layers["int8"] > 0
    assert 1e-4 < worst(tmp_path) < 1e-1


@needs_modelopt
def test_best_tries_what_there_is_and_keeps_the_fastest(tmp_path: Path) -> None:
    models.wide(tmp_path / "m.onnx")
    sidecar = built(tmp_path, "--precision", "best")
    tried = {each["precision"]: each for each in sidecar.build.details["candidates"]}
    assert {name for name, each in tried.items() if "ms" in each} == {"fp32", "tf32", "fp16"}
    assert "8.6" not in sidecar.build.tools["tensorrt"] or "has no bf16" in tried["bf16"]["refused"]
    assert worst(tmp_path) < 1e-2


@needs_modelopt
def test_values_that_float16_cannot_hold_stay_in_float32(tmp_path: Path) -> None:
    models.overflowing(tmp_path / "m.onnx")
    built(tmp_path, "--precision", "fp16")
    assert worst(tmp_path) < 1e-2


def test_an_overflow_is_refused_with_the_first_node_that_overflows(tmp_path: Path) -> None:
    models.overflowing(tmp_path / "m.onnx", TensorProto.FLOAT16)
    done = build(tmp_path)
    print(done.stderr)
    assert done.returncode == 1
    assert "float16 overflows first at node /square/Mul (Mul)" in done.stderr
    assert "--keep-fp32" in done.stderr
    assert not (tmp_path / "m.engine").exists()


def test_a_precision_that_was_not_realised_is_an_error_with_the_layers(tmp_path: Path) -> None:
    models.wide(tmp_path / "m.onnx")
    built(tmp_path, "--precision", "tf32")
    artifact = load(tmp_path / "m.engine", "engine")
    asked = ValidationRequest("m.engine", tmp_path / "m.onnx", tmp_path / "m.onnx", {"/second": "fp16"}, "fp16")
    with pytest.raises(PrecisionError, match=r"fp16 was not realized.*/second \(t?f[p32]+, not fp16\)") as told:
        validate(artifact, asked)
    print(told.value)


def test_options_that_this_release_has(tmp_path: Path) -> None:
    models.wide(tmp_path / "m.onnx")
    options = ("--hardware-compatible", "--refit", "--sparsity", "--aux-streams", 1)
    sidecar = built(tmp_path, *options)
    assert sidecar.build.options == {"hardware_compatible": True, "refit": True, "sparsity": True, "aux_streams": 1}
    assert worst(tmp_path) < 2e-3


def test_a_version_compatible_engine_runs_or_its_missing_runtime_is_named(tmp_path: Path) -> None:
    models.wide(tmp_path / "m.onnx")
    done = build(tmp_path, "--version-compatible")
    print(done.stdout + done.stderr)
    if done.returncode == 0:
        assert worst(tmp_path) < 2e-3
    else:
        assert "libnvinfer_lean" in done.stderr
        assert "pip install tensorrt-lean" in done.stderr


@pytest.mark.parametrize("options", [("--precision", "bf16"), ("--precision", "fp8"), ("--strip-weights",)])
def test_what_this_release_has_not_is_refused_by_name(tmp_path: Path, options: tuple[str, ...]) -> None:
    models.wide(tmp_path / "m.onnx")
    done = build(tmp_path, *options)
    print(done.stderr)
    if done.returncode == 0:  # a later release
        assert worst(tmp_path) < 1e-1
    else:
        assert options[-1].removeprefix("--") in done.stderr.splitlines()[-2]
        assert "pip install tensorrt" in done.stderr.splitlines()[-1]
