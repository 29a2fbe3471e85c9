"""Models that break tools, on TensorRT: every one comes out right, row by row, or is refused in two lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from tests.support import models
from tests.support.arrays import read_npz
from tests.support.processes import run_process
from trtbatch.core.store import load

Make = Callable[[Path], Path]

RIGHT: dict[str, Make] = {
    "shuffled names": models.shuffled,
    "fixed companion": lambda path: models.two_inputs(path, "batch_size", 1),
    "wide ids": models.wide_ids,
    "float16": lambda path: models.negated(path, TensorProto.FLOAT16),
    "one dimension": lambda path: models.negated(path, shape=("batch_size",)),
    "scalar, mean and constant": models.summarised,
    "padded detections": models.detector,
    "input passed through": models.passed_through,
    "external weights": models.external,
    "odd names": models.oddly_named,
    "batch axis second": models.batch_last,
}

RIGHT_OR_REFUSED: dict[str, Make] = {
    "nonzero twice": models.nonzero_twice,
    "suppression": models.suppressed,
    "float64": lambda path: models.negated(path, TensorProto.DOUBLE),
    "no elements": lambda path: models.negated(path, shape=("batch_size", 0)),
}
"""What a release of TensorRT may not be able to do; a wrong answer is never among it."""

REFUSED: dict[str, tuple[Make, int, str]] = {
    "constant 1": (lambda path: models.reshaped_to(path, 1), 1, "m.onnx"),
    "constant 8": (lambda path: models.reshaped_to(path, 8), 1, "m.onnx"),
    "folded": (models.folded, 1, "wrong rows"),
    "n and 2n": (lambda path: models.two_inputs(path, "batch_size", "2*batch_size"), 2, "'right' (2*batch_size)"),
    "n and m": (lambda path: models.two_inputs(path, "batch_size", "m"), 2, "'right' (m)"),
}


def build(folder: Path, make: Make) -> tuple[int, str]:
    done = run_process("build", make(folder / "m.onnx"), "--max", 8, "--opt", 4, "--output", "m.engine", cwd=folder)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def refused_whole(folder: Path, stderr: str) -> None:
    lines = stderr.strip().splitlines()
    assert lines[-2].startswith("error: "), stderr
    assert lines[-1].startswith("fix: "), stderr
    assert not list(folder.glob("m.engine*"))
    assert not list(folder.glob(".trtbatch*"))


def verified(folder: Path) -> None:
    done = run_process("verify", "m.engine", "--batch", "1,3,8", "--against", "m.onnx", cwd=folder)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", RIGHT)
def test_every_row_is_right(tmp_path: Path, name: str) -> None:
    code, stderr = build(tmp_path, RIGHT[name])
    assert code == 0, stderr
    verified(tmp_path)


@pytest.mark.parametrize("name", RIGHT_OR_REFUSED)
def test_right_or_refused(tmp_path: Path, name: str) -> None:
    code, stderr = build(tmp_path, RIGHT_OR_REFUSED[name])
    print(f"{name}: {'built' if code == 0 else stderr.strip().splitlines()[-2]}")
    if code == 0:
        verified(tmp_path)
    else:
        assert code == 1
        refused_whole(tmp_path, stderr)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    make, expected, told = REFUSED[name]
    code, stderr = build(tmp_path, make)
    print(stderr)
    assert code == expected
    assert told in stderr
    refused_whole(tmp_path, stderr)


def test_ids_above_the_range_of_the_binding_are_exact_or_refused(tmp_path: Path) -> None:
    code, stderr = build(tmp_path, models.wide_ids)
    assert code == 0, stderr
    ids = np.array([[1, 2**31, 2**40 + 1]] * 3, np.int64)
    np.savez(tmp_path / "x.npz", ids=ids, mask=np.ones_like(ids))
    done = run_process("infer", "m.engine", "--input", "x.npz", "--output", "y.npz", cwd=tmp_path)
    if load(tmp_path / "m.engine", "engine").sidecar.inputs[0].dtype == "int64":
        assert np.array_equal(read_npz(tmp_path / "y.npz")["output"], ids)
    else:  # before TensorRT 10
        assert done.returncode == 1, done.stderr
        assert "the cast would change values" in done.stderr, done.stderr
        assert not (tmp_path / "y.npz").exists()


def test_an_engine_without_checks_is_found_wrong_by_verify(tmp_path: Path) -> None:
    models.leaking(tmp_path / "m.onnx")
    done = run_process("build", "m.onnx", "--max", 8, "--no-verify", "--output", "m.engine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run_process("verify", "m.engine", "--batch", "1,8", cwd=tmp_path)
    print(done.stdout)
    assert done.returncode == 1
    assert "rows 0–7 differ from the same samples run alone" in done.stdout
