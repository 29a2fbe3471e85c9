"""The three lines and infer on TensorRT, every row against ONNX Runtime."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.photos import PHOTOS
from tests.support.processes import run_process
from trtbatch.backends import open_engine
from trtbatch.core.rows import random_inputs, row_errors, rows_of
from trtbatch.core.store import load
from trtbatch.onnx_graph.run import OnnxReference

BATCHES = (1, 2, 3, 7, 16, 32)
LIMIT = 2e-3
"""Relative error per row, TF32 against float32."""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the three lines have run, each exactly as in the README."""
    folder = tmp_path_factory.mktemp("pipeline")
    done = run_process("export", "resnet18", "--dynamic", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = run_process("build", "--min", 1, "--opt", 16, "--max", 32, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "tensorrt" in done.stdout
    print(done.stdout)
    return folder


def test_the_bench_line_prints_a_table_of_every_batch(workdir: Path) -> None:
    done = run_process(
        "bench", "--batch", "1,2,4,...,32", "--mode", "execute_v2,async", "--json", "r.json", cwd=workdir
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "PyCUDA" not in done.stderr
    rows = json.loads((workdir / "r.json").read_text())["batches"]
    assert [(row["batch"], row["mode"]) for row in rows] == [
        (batch, mode) for batch in (1, 2, 4, 8, 16, 32) for mode in ("execute_v2", "async")
    ]
    for row in rows:
        assert row["shapes"] == {"input": [row["batch"], 3, 224, 224], "output": [row["batch"], 1000]}
        assert len(row["samples_ms"]) == row["summary"]["iterations"] >= 10


@pytest.mark.parametrize("batch", BATCHES)
def test_every_row_agrees_with_onnx_runtime(workdir: Path, batch: int) -> None:
    artifact = load(workdir / "engines/resnet18_dynamic.engine", "engine")
    inputs = random_inputs(artifact.sidecar.inputs, batch, seed=batch)
    expected = OnnxReference(workdir / "engines/resnet18_dynamic.onnx")(inputs)
    with open_engine(artifact) as engine, engine.session() as session:
        session.bind(inputs)
        session.poison(0xFF)
        session.run()
        found = session.fetch()
    spec = artifact.sidecar.outputs[0]
    errors = row_errors(rows_of(found["output"], spec), rows_of(expected["output"], spec))
    print(f"batch {batch}: relative error per row, largest {errors.max():.2e}, median {np.median(errors):.2e}")
    assert errors.shape == (batch,)
    assert errors.max() <= LIMIT


def test_execute_v2_gives_the_same_rows_as_the_enqueued_run(workdir: Path) -> None:
    artifact = load(workdir / "engines/resnet18_dynamic.engine", "engine")
    with open_engine(artifact) as engine, engine.session() as session:
        for batch in (32, 1, 7, 32):  # buffers shrink and grow back
            session.bind(random_inputs(artifact.sidecar.inputs, batch, seed=3))
            session.run()
            enqueued = session.fetch()["output"]
            session.poison(0xFF)
            session.modes()["execute_v2"].launch()
            assert np.array_equal(session.fetch()["output"], enqueued)


def test_inspect_puts_the_engine_beside_its_sidecar(workdir: Path) -> None:
    done = run_process("inspect", "engines/resnet18_dynamic.engine", "--json", cwd=workdir)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    for fact in report["facts"]:
        print(fact)
    print(f"{len(report['layers'])} layers, share of each precision: {report['precisions']}")
    assert {"profiles", "device memory", "input input", "output output"} <= {fact["what"] for fact in report["facts"]}
    assert report["layers"]
    assert report["precisions"]


def test_doctor_finds_what_is_mapped(workdir: Path) -> None:
    done = run_process("doctor", "--json", cwd=workdir)
    data = json.loads(done.stdout)
    for check in data["checks"]:
        print(check["level"], check["what"], check["found"])
    assert done.returncode == 0, done.stdout
    assert any("libnvinfer" in check["found"] for check in data["checks"] if check["what"] == "mapped by tensorrt")


def test_verify_passes_against_onnx_runtime(workdir: Path) -> None:
    done = run_process("verify", "engines/resnet18_dynamic.engine", "--batch", "1,2,3,7,16,32", cwd=workdir)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reference: ONNX Runtime" in done.stdout


def test_a_timing_cache_of_its_own_never_fails_the_build(workdir: Path) -> None:
    line = ("build", "--static", 1, "--opt-level", 2, "--output", "cached.engine", "--timing-cache", "t.cache")
    for _ in range(2):
        done = run_process(*line, cwd=workdir)
        print(done.stderr)
        assert done.returncode == 0, done.stderr
        assert (workdir / "t.cache").stat().st_size > 1000


def test_infer_predicts_every_photograph_in_order(workdir: Path, photos: Path) -> None:
    done = run_process("infer", "--input", photos, "--batch", 4, "--reader", "host", "--output", "p.csv", cwd=workdir)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "executed batches: 4×2 2" in done.stdout
    with (workdir / "p.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == list(PHOTOS)
    artifact = load(workdir / "engines/resnet18_dynamic.onnx", "onnx")
    preprocessing = artifact.sidecar.preprocessing
    assert preprocessing is not None
    samples = np.stack([preprocessing(Image.open(photos / name)) for name in PHOTOS])
    scores = OnnxReference(artifact.path)({"input": samples})["output"]
    assert [int(row["index_1"]) for row in rows] == scores.argmax(axis=1).tolist()
