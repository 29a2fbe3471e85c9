"""Profiles chosen by measurement, slots, CUDA graphs, the modes of bench and the pipeline of infer, on a GPU."""

from __future__ import annotations

import json
import re
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from tests.support import models
from tests.support.arrays import read_npz
from tests.support.processes import run_process
from trtbatch.backends import open_engine
from trtbatch.backends.tensorrt.graphs import GraphCache
from trtbatch.backends.tensorrt.session import TensorRTSession
from trtbatch.core.rows import random_inputs, row_errors
from trtbatch.core.sidecar import Artifact
from trtbatch.core.store import load
from trtbatch.onnx_graph.run import OnnxReference

LIMIT = 2e-3
"""TF32 rounds to 10 bits; see trtbatch.core.rows.tolerance."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``m.onnx`` and ``m.engine``, of the profiles 1:1:1, 1:2:2, 1:4:4, 1:8:8."""
    made = tmp_path_factory.mktemp("speed")
    models.classifier(made / "m.onnx")
    line = ("build", "m.onnx", "--profiles", "auto", "--max", 8, "--output", "m.engine")
    done = run_process(*line, cwd=made)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
    assert "profiles (min:opt:max): 1:1:1, 1:2:2, 1:4:4, 1:8:8" in done.stderr
    return made


@pytest.fixture
def artifact(folder: Path) -> Artifact:
    return load(folder / "m.engine", "engine")


def outputs_of(oracle: OnnxReference, artifact: Artifact, batch: int, seed: int) -> tuple[dict[str, object], object]:
    inputs = random_inputs(artifact.sidecar.inputs, batch, seed)
    return dict(inputs), oracle(inputs)["output"]


def test_the_table_names_the_fastest_profile_of_each_batch(folder: Path, artifact: Artifact) -> None:
    sidecar = artifact.sidecar
    assert [row.batch for row in sidecar.engine.table] == [1, 2, 4, 8]
    for row in sidecar.engine.table:
        holding = {str(i) for i, profile in enumerate(sidecar.engine.profiles) if row.batch in profile}
        assert set(row.times) == holding
        assert row.ms == min(row.times.values()) == row.times[str(row.profile)]
        assert sidecar.engine.profile_for(row.batch) == row.profile
    done = run_process("inspect", "m.engine", cwd=folder)
    print(done.stdout)
    assert done.returncode == 0
    assert "next best" in done.stdout


def test_a_timing_cache_lies_beside_the_engine_and_serves_the_next_build(folder: Path) -> None:
    caches = list(folder.glob("*.timing"))
    assert len(caches) == 1
    assert "tensorrt" in caches[0].name
    assert caches[0].stat().st_size > 100
    line = ("build", "m.onnx", "--profiles", "auto", "--max", 8, "--output", "again.engine")
    done = run_process(*line, cwd=folder)
    print(done.stderr)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr


def test_an_engine_of_tensorrts_own_kernels_alone(tmp_path: Path) -> None:
    onnx = models.classifier(tmp_path / "m.onnx")
    done = run_process("build", onnx, "--static", 4, "--own-kernels", "--output", "m.engine", cwd=tmp_path)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr


def test_of_several_builds_the_fastest_is_kept(tmp_path: Path) -> None:
    onnx = models.classifier(tmp_path / "m.onnx")
    done = run_process("build", onnx, "--static", 4, "--tries", 2, "--output", "m.engine", cwd=tmp_path)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
    assert "build 1" in done.stdout
    assert "build 2" in done.stdout
    sidecar = load(tmp_path / "m.engine", "engine").sidecar
    times = [each["ms"]["4"] for each in sidecar.build.details["tries"]]
    assert len(times) == 2
    assert sidecar.engine.times[4] == min(times)
    assert not list(tmp_path.glob("*.timing"))


def test_every_profile_gives_right_rows_in_every_way_of_running(folder: Path, artifact: Artifact) -> None:
    oracle = OnnxReference(folder / "m.onnx")
    with open_engine(artifact) as engine, engine.session() as session:
        slot = session.slot()
        for index, profile in enumerate(artifact.sidecar.engine.profiles):
            session.use_profile(index)
            for batch in profile.corners:
                inputs, expected = outputs_of(oracle, artifact, batch, seed=10 * index + batch)
                session.bind(inputs)  # type: ignore[arg-type]
                for mode in session.modes().values():
                    session.poison(0xFF)
                    mode.launch()
                    assert row_errors(session.fetch()["output"], expected).max() < LIMIT, (profile, mode.name)  # type: ignore[arg-type]
                for _ in range(3):  # enqueued and captured, then launched
                    slot.prepare(batch)["input"][...] = inputs["input"]
                    assert row_errors(slot.run()["output"], expected).max() < LIMIT  # type: ignore[arg-type]


def test_batches_in_flight_keep_their_rows(folder: Path, artifact: Artifact) -> None:
    oracle = OnnxReference(folder / "m.onnx")
    for graphs in (True, False):
        with open_engine(artifact) as engine, engine.session(cuda_graphs=graphs) as session:
            slots = [session.slot() for _ in range(session.in_flight + 2)]
            waiting: deque[tuple[object, object]] = deque()
            checked = 0
            for turn in range(200):
                slot = slots[turn % len(slots)]
                if len(waiting) == len(slots):
                    done, expected = waiting.popleft()
                    assert row_errors(done.wait()["output"], expected).max() < LIMIT  # type: ignore[attr-defined, arg-type]
                    checked += 1
                inputs, wanted = outputs_of(oracle, artifact, (1, 8, 3, 8, 5)[turn % 5], seed=turn)
                slot.prepare(len(inputs["input"]))["input"][...] = inputs["input"]  # type: ignore[arg-type]
                slot.submit()
                waiting.append((slot, wanted))
            assert checked == 200 - len(slots)
            assert isinstance(session, TensorRTSession)
            assert bool(len(session.contexts.graphs)) == graphs


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("spins", [True, False])
def test_a_slot_that_was_made_ready_runs_what_comes(
    folder: Path, artifact: Artifact, graphs: bool, spins: bool
) -> None:
    oracle = OnnxReference(folder / "m.onnx")
    with open_engine(artifact) as engine, engine.session(cuda_graphs=graphs) as session:
        assert isinstance(session, TensorRTSession)
        slot = session.slot(spins=spins)
        given = {batch: outputs_of(oracle, artifact, batch, seed=batch) for batch in (8, 3)}
        slot.prepare(8)["input"][...] = given[8][0]["input"]
        for batch in given:
            slot.warm(batch)
        assert len(session.contexts.graphs) == (2 if graphs else 0)
        for batch in (8, 3, 8):
            inputs, expected = given[batch]
            slot.prepare(batch)["input"][...] = inputs["input"]
            slot.submit()
            assert row_errors(slot.wait()["output"], expected).max() < LIMIT  # type: ignore[arg-type]
        assert len(session.contexts.graphs) == (2 if graphs else 0), "nothing was left to be made"


def test_graphs_are_bounded_and_captured_again(folder: Path, artifact: Artifact) -> None:
    oracle = OnnxReference(folder / "m.onnx")
    with open_engine(artifact) as engine, engine.session() as session:
        assert isinstance(session, TensorRTSession)
        session.contexts.graphs = GraphCache(2)
        slot = session.slot()
        for batch in (1, 2, 3, 8, 1, 2, 8, 3, 1):  # 8 after 3 needs other memory: the graphs of the old go
            inputs, expected = outputs_of(oracle, artifact, batch, seed=batch)
            slot.prepare(batch)["input"][...] = inputs["input"]
            assert row_errors(slot.run()["output"], expected).max() < LIMIT  # type: ignore[arg-type]
            assert len(session.contexts.graphs) <= 2


def test_graphs_of_one_profile_keep_their_rows_whatever_ran_since(folder: Path, artifact: Artifact) -> None:
    oracle = OnnxReference(folder / "m.onnx")
    with open_engine(artifact) as engine, engine.session() as session:
        session.use_profile(len(artifact.sidecar.engine.profiles) - 1)  # one that holds every batch
        slots = [session.slot(), session.slot()]
        for turn in range(3):  # captured in the first turn, launched in the others
            for batch in (1, 8, 3, 5):
                for slot in slots:
                    inputs, expected = outputs_of(oracle, artifact, batch, seed=100 * turn + batch)
                    slot.prepare(batch)["input"][...] = inputs["input"]
                    session.bind(random_inputs(artifact.sidecar.inputs, 9 - batch, seed=turn))
                    session.run()
                    assert row_errors(slot.run()["output"], expected).max() < LIMIT  # type: ignore[arg-type]


def test_contexts_share_their_activation_memory(folder: Path, artifact: Artifact) -> None:
    with open_engine(artifact) as engine, engine.session() as session:
        assert isinstance(session, TensorRTSession)
        for batch in (1, 2, 4, 8):
            session.bind(random_inputs(artifact.sidecar.inputs, batch, seed=0))
            session.run()
        assert len(session.contexts) == len({artifact.sidecar.engine.profile_for(batch) for batch in (1, 2, 4, 8)})
        assert session.contexts.activations is not None
        assert session.contexts.activations.bytes == max(1, engine.activation_bytes)  # type: ignore[attr-defined]


def test_what_can_not_be_captured_runs_without_a_graph_and_says_so(tmp_path: Path) -> None:
    onnx = models.nonzero_twice(tmp_path / "m.onnx")
    done = run_process("build", onnx, "--max", 8, "--output", "m.engine", cwd=tmp_path)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
    artifact = load(tmp_path / "m.engine", "engine")
    oracle = OnnxReference(onnx)
    with open_engine(artifact) as engine, engine.session() as session:
        slot = session.slot()
        for batch in (1, 8, 3):
            inputs = random_inputs(artifact.sidecar.inputs, batch, seed=batch)
            for name, array in slot.prepare(batch).items():
                array[...] = inputs[name]
            found, expected = slot.run(), oracle(inputs)
            for name, array in expected.items():
                assert found[name].shape == array.shape
        assert isinstance(session, TensorRTSession)
        assert not session.contexts.uses_graphs


@pytest.mark.parametrize("options", [(), ("--no-cuda-graph",)])
def test_infer_keeps_order_and_rows_at_any_batch(folder: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    samples = np.random.default_rng(0).standard_normal((1003, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "in.npy", samples)
    expected = OnnxReference(folder / "m.onnx")({"input": samples})["output"]
    for batch in (7, 20, "auto"):
        line = ("infer", folder / "m.engine", "--input", "in.npy", "--batch", batch, "--output", "out.npz", *options)
        done = run_process(*line, cwd=tmp_path)
        print(done.stdout, done.stderr)
        assert done.returncode == 0, done.stderr
        assert row_errors(read_npz(tmp_path / "out.npz")["output"], expected).max() < LIMIT
    said = re.search(r"batch 20 .* runs as ([\d, ]+)", run_process(*line[:4], "--batch", 20, cwd=tmp_path).stderr)
    assert said is not None
    pieces = [int(piece) for piece in said[1].split(",")]
    assert sum(pieces) == 20
    assert max(pieces) <= 8


def test_bench_has_every_mode(folder: Path) -> None:
    modes = "execute_v2,async,graph,latency,throughput"
    line = ("bench", "m.engine", "--batch", "1,8", "--mode", modes, "--streams", 2, "--min-time", 0.1)
    done = run_process(*line, "--json", "r.json", cwd=folder)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    rows = json.loads((folder / "r.json").read_text())["batches"]
    assert [(row["batch"], row["mode"]) for row in rows] == [(b, m) for b in (1, 8) for m in modes.split(",")]
    parts = next(row["parts_ms"] for row in rows if row["mode"] == "latency")
    assert set(parts) == {"h2d", "gpu", "d2h"}
    assert min(parts.values()) > 0


def test_bench_flushes_forces_and_compares(folder: Path) -> None:
    short = ("--batch", "1,2", "--min-time", 0.05)
    for line in (
        ("bench", "m.engine", *short, "--mode", "graph,async,execute_v2", "--flush-l2"),
        ("bench", "m.engine", *short, "--profile", 3),
        ("bench", "m.engine", *short, "--compare-profiles"),
        ("bench", "m.engine", *short, "--mode", "graph", "--against", "m.engine"),
        ("bench", "m.engine", *short, "--no-cuda-graph", "--mode", "latency,throughput"),
    ):
        done = run_process(*line, cwd=folder)
        print(done.stdout, done.stderr)
        assert done.returncode == 0, (line, done.stderr)
    done = run_process("bench", "m.engine", "--batch", 8, "--profile", 0, cwd=folder)
    assert done.returncode != 0
    assert "8" in done.stderr
    print(done.stderr)
