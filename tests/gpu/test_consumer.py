"""The C++ program of docs/recipes.md against an engine, where there is what it is compiled and linked with."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.support import models
from tests.support.processes import ROOT, run_process
from trtbatch.onnx_graph.run import OnnxReference


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``m.onnx``, ``m.engine`` with two profiles, and the program; headers and libraries by CPATH and LIBRARY_PATH."""
    made = tmp_path_factory.mktemp("consumer")
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    line = ["g++", "-std=c++17", "-O1", "-Wno-deprecated-declarations", str(ROOT / "examples" / "consumer.cpp")]
    line += ["-o", str(made / "consumer"), f"-I{cuda}/include", f"-L{cuda}/lib64", "-lnvinfer", "-lcudart"]
    done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"it can't be compiled here: {done.stderr.strip().splitlines()[0]}")
    models.classifier(made / "m.onnx")
    built = run_process("build", "m.onnx", "--profiles", "auto", "--batch", "1,8", "--output", "m.engine", cwd=made)
    assert built.returncode == 0, built.stderr
    return made


@pytest.mark.parametrize("batch", [1, 5, 8])
def test_it_names_the_best_class_of_every_sample(folder: Path, batch: int) -> None:
    samples = np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32)
    samples.tofile(folder / "samples.bin")
    line = ["./consumer", "m.engine", str(batch), "samples.bin"]
    done = subprocess.run(line, check=False, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    wanted = OnnxReference(folder / "m.onnx")({"input": samples})["output"].argmax(axis=1)
    assert done.stdout.splitlines() == [f"{row} {best}" for row, best in enumerate(wanted)]


def test_a_batch_that_no_profile_holds_is_an_error(folder: Path) -> None:
    done = subprocess.run(
        ["./consumer", "m.engine", "9", "samples.bin"], check=False, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "9" in done.stderr
