"""Long runs, threads, interrupts and concurrent builds; on ONNX Runtime. ``tests/gpu/test_stress.py`` is its twin."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.support import models
from tests.support.processes import RUNS, child_environment, interrupted, resident
from trtbatch.backends import open_engine
from trtbatch.core.rows import random_inputs, row_errors
from trtbatch.core.store import check_file, load
from trtbatch.onnx_graph.run import OnnxReference


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_ten_thousand_runs_at_changing_batches_need_no_more_memory(engine: Path, folder: Path) -> None:
    artifact = load(engine, "engine")
    oracle = OnnxReference(folder / "small.onnx")
    inputs = {batch: random_inputs(artifact.sidecar.inputs, batch, batch) for batch in (1, 7, 8)}
    expected = {batch: oracle(each)["output"] for batch, each in inputs.items()}
    seen = []
    with open_engine(artifact) as opened, opened.session() as session:
        for index in range(RUNS):
            batch = (1, 7, 8)[index % 3]
            session.bind(inputs[batch])
            session.run()
            if index % 1000 == 0:
                assert row_errors(session.fetch()["output"], expected[batch]).max() < 1e-5
                seen.append(resident())
    print(f"resident MiB, every 1000 of {RUNS} runs: {[round(each / 2**20, 1) for each in seen]}")
    assert seen[-1] < seen[2] + (4 << 20)


def test_four_threads_on_one_engine_each_get_their_own_rows(engine: Path, folder: Path) -> None:
    artifact = load(engine, "engine")
    oracle = OnnxReference(folder / "small.onnx")
    worst = [np.inf] * 4

    def work(number: int) -> None:
        errors = []
        with opened.session() as session:
            for index in range(100):
                inputs = random_inputs(artifact.sidecar.inputs, 1 + (index + number) % 8, 1000 * number + index)
                session.bind(inputs)
                session.run()
                errors.append(row_errors(session.fetch()["output"], oracle(inputs)["output"]).max())
        worst[number] = max(errors)

    with open_engine(artifact) as opened:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert max(worst) < 1e-5, worst


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("kind", ["build", "infer"])
def test_ctrl_c_at_any_moment_leaves_nothing(kind: str, engine: Path, folder: Path) -> None:
    """Six random moments each; a run that ended before its interrupt is not a failure."""
    generator = random.Random(7)
    models.deep(folder / "deep.onnx")
    lines: dict[str, list[object]] = {
        "build": ["build", "deep.onnx", "--max", "64", "--opt", "64", "--output", "out/deep.ort.onnx"],
        "infer": ["infer", engine, "--input", "random", "--count", "200000", "--output", "out/p.csv"],
    }
    ended = 0
    for _ in range(6):
        seconds = generator.uniform(0.5, 2.0)
        code, stderr = interrupted(lines[kind], folder, seconds, signal.SIGINT)
        assert code in (0, 130), (seconds, stderr)
        assert "Traceback" not in stderr, (seconds, stderr)
        out = folder / "out"
        left = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        if code == 130:
            ended += 1
            assert left == [], seconds
        for path in out.iterdir() if out.is_dir() else []:
            path.unlink()
    assert ended >= 3, "hardly an interrupt came in time: nothing was tested"


@pytest.mark.slow
@pytest.mark.process
def test_two_builds_of_the_same_target_at_once(folder: Path) -> None:
    models.classifier(folder / "m.onnx")
    lines = [[sys.executable, "-m", "trtbatch", "build", "m.onnx", "--max", str(largest)] for largest in (4, 8) * 3]
    running = [
        subprocess.Popen(line, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=child_environment())
        for line in lines
    ]
    assert [process.wait(timeout=120) for process in running] == [0] * 6
    assert sorted(path.name for path in (folder / "engines").iterdir()) == ["m.ort.onnx", "m.ort.onnx.json"]
    artifact = load(folder / "engines/m.ort.onnx", "engine")
    check_file(artifact)
    for process in running:
        assert process.stderr is not None
        process.stderr.close()
