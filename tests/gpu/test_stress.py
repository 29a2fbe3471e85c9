"""Long runs, threads, interrupts and another library in the process, on a GPU."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from tests.support import models
from tests.support.gpu_memory import held_memory
from tests.support.mutations import Mutation, fuzzed, mutated, mutations
from tests.support.neighbours import neighbour
from tests.support.processes import RUNS, child_environment, interrupted, resident, run_process, run_with_file_limit
from trtbatch.backends import open_engine
from trtbatch.core.rows import random_inputs, row_errors
from trtbatch.core.sidecar import Artifact
from trtbatch.core.store import check_file, load
from trtbatch.onnx_graph.run import OnnxReference


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``m.onnx`` and ``m.engine``, profile 1:4:8."""
    made = tmp_path_factory.mktemp("stress")
    models.classifier(made / "m.onnx")
    done = run_process("build", "m.onnx", "--opt", 4, "--max", 8, "--output", "m.engine", cwd=made)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def artifact(folder: Path) -> Artifact:
    return load(folder / "m.engine", "engine")


def test_ten_thousand_runs_at_changing_batches_need_no_more_memory(folder: Path, artifact: Artifact) -> None:
    oracle = OnnxReference(folder / "m.onnx")
    inputs = {batch: random_inputs(artifact.sidecar.inputs, batch, batch) for batch in (1, 7, 8)}
    expected = {batch: oracle(each)["output"] for batch, each in inputs.items()}
    host, device = [], []
    with open_engine(artifact) as engine, engine.session() as session:
        for index in range(RUNS):
            batch = (1, 7, 8)[index % 3]
            session.bind(inputs[batch])
            session.run()
            if index % 1000 == 0:
                assert row_errors(session.fetch()["output"], expected[batch]).max() < 2e-3
                host.append(resident())
                device.append(held_memory())
    print(f"host, resident MiB, every 1000 of {RUNS} runs: {[round(each / 2**20, 1) for each in host]}")
    print(f"GPU, MiB held: {[round(each / 2**20, 1) for each in device]}")
    assert host[-1] < host[2] + (4 << 20)
    assert device[-1] <= device[2] + (2 << 20)


def test_engines_can_be_opened_again_and_again_in_one_process(folder: Path, artifact: Artifact) -> None:
    held = []
    for _ in range(6):
        with open_engine(artifact) as engine, engine.session() as session:
            session.bind(random_inputs(artifact.sidecar.inputs, 4, seed=0))
            session.run()
        held.append(held_memory())
    print(f"GPU, MiB held after each of six: {[round(each / 2**20, 1) for each in held]}")
    assert held[-1] <= held[1] + (2 << 20), f"GPU memory leaks: {held}"


def test_four_threads_on_one_engine_each_get_their_own_rows(folder: Path, artifact: Artifact) -> None:
    oracle = OnnxReference(folder / "m.onnx")
    worst: list[float] = [np.inf] * 4
    failures: list[BaseException] = []

    def work(number: int) -> None:
        errors = []
        try:
            with engine.session() as session:
                for index in range(100):
                    inputs = random_inputs(artifact.sidecar.inputs, 1 + (index + number) % 8, 1000 * number + index)
                    session.bind(inputs)
                    session.run()
                    errors.append(float(row_errors(session.fetch()["output"], oracle(inputs)["output"]).max()))
            worst[number] = max(errors)
        except BaseException as error:
            failures.append(error)

    with open_engine(artifact) as engine:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(f"largest error of any row, by thread: {worst}")
    assert not failures, failures
    assert max(worst) < 2e-3


def test_another_library_may_use_the_gpu_in_the_same_process(folder: Path, artifact: Artifact, tmp_path: Path) -> None:
    oracle = OnnxReference(folder / "m.onnx")
    beside = neighbour(tmp_path)
    held = beside.take()
    with open_engine(artifact) as engine, engine.session() as session:
        for seed in range(50):
            mine = beside.take()
            inputs = random_inputs(artifact.sidecar.inputs, 1 + seed % 8, seed)
            session.bind(inputs)
            session.run()
            assert row_errors(session.fetch()["output"], oracle(inputs)["output"]).max() < 2e-3
            assert beside.mean(mine) == 1.0
            beside.give(mine)
    assert beside.mean(held) == 1.0, "its memory and its context outlive our engine"
    beside.give(held)
    print(f"next to {beside.name}")


def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    for line in (("bench", "m.engine"), ("verify", "m.engine"), ("build", "m.onnx", "--output", "other.engine")):
        done = run_process(*line, "--device", "99", cwd=folder)
        print(done.stderr.strip().splitlines()[-2])
        assert done.returncode == 2, done.stderr
        assert "--device 99: this machine has" in done.stderr, done.stderr
    assert not (folder / "other.engine").exists()


@pytest.mark.parametrize("kind", ["build", "infer"])
def test_ctrl_c_at_any_moment_leaves_nothing(kind: str, folder: Path) -> None:
    generator = random.Random(11)
    models.deep(folder / "deep.onnx")
    lines: dict[str, list[object]] = {
        "build": ["build", "deep.onnx", "--opt-level", "5", "--output", "out/deep.engine"],
        "infer": ["infer", "m.engine", "--input", "random", "--count", "500000", "--output", "out/p.csv"],
    }
    ended = 0
    for _ in range(10):
        seconds = generator.uniform(0.3, 6.0)
        code, stderr = interrupted(lines[kind], folder, seconds, signal.SIGINT)
        assert code in (0, 130), (seconds, stderr)
        assert "Traceback" not in stderr, (seconds, stderr)
        assert "PyCUDA" not in stderr, (seconds, stderr)
        out = folder / "out"
        left = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        if code == 130:
            ended += 1
            assert left == [], seconds
        for path in out.iterdir() if out.is_dir() else []:
            path.unlink()
    print(f"{ended} of 10 {kind}s were interrupted; none left a file, a banner or a process that hangs")
    assert ended >= 5, "hardly an interrupt came in time: nothing was tested"


def test_two_builds_of_the_same_target_at_once(folder: Path) -> None:
    line = [sys.executable, "-m", "trtbatch", "build", "m.onnx", "--output", "twice.engine", "--max"]
    running = [
        subprocess.Popen([*line, largest], cwd=folder, stdout=subprocess.DEVNULL, env=child_environment())
        for largest in ("4", "8")
    ]
    assert [process.wait(timeout=200) for process in running] == [0, 0]
    artifact = load(folder / "twice.engine", "engine")
    check_file(artifact)
    done = run_process("verify", "twice.engine", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_full_disk_is_two_lines_and_no_engine(folder: Path) -> None:
    done = run_with_file_limit(2000, "build", "m.onnx", "--output", "full.engine", cwd=folder)
    print(done.stderr)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("fix: ")
    assert not list(folder.glob("full.engine*"))
    assert not list(folder.glob(".trtbatch*"))


@fuzzed(100)
@given(changes=mutations)
def test_mutated_engines_are_refused_before_they_are_read(folder: Path, changes: list[Mutation]) -> None:
    from tests.support.mutations import run_mutated

    engine = folder / "m.engine"
    whole = engine.read_bytes()
    np.save(folder / "x.npy", np.zeros((2, 3, 8, 8), np.float32))
    try:
        engine.write_bytes(mutated(whole, changes))
        before = os.getcwd()
        os.chdir(folder)
        result = run_mutated("infer", engine, "--input", folder / "x.npy")
        os.chdir(before)
        assert result.exit_code == 1 or engine.read_bytes() == whole
    finally:
        engine.write_bytes(whole)
