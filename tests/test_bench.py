"""The timing loops and what is kept of them; on ONNX Runtime. Nothing here looks at how long anything took."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import models
from tests.test_build import refused
from trtbatch import bench as bench_module
from trtbatch.artifacts import load
from trtbatch.backends.base import Mode
from trtbatch.bench import BenchRequest, bench, measure
from trtbatch.files import sidecar_path
from trtbatch.records import encode

Cli = Callable[..., Any]


def test_a_table_with_every_batch_and_its_files(cli: Cli, engine: Path, folder: Path) -> None:
    result = cli("bench", "--batch", "1,2,4,...,8", "--iterations", 20, "--json", "r.json", "--csv", "r.csv")
    assert result.exit_code == 0, result.output
    data = json.loads((folder / "r.json").read_text())
    assert [row["batch"] for row in data["batches"]] == [1, 2, 4, 8]
    for row in data["batches"]:
        samples, summary = np.array(row["samples_ms"]), row["summary"]
        assert len(samples) == summary["iterations"] == 20 and (samples > 0).all()
        assert row["shapes"] == {"input": [row["batch"], 3, 8, 8], "output": [row["batch"], 5]}
        assert summary["median"] == pytest.approx(np.median(samples), rel=1e-4)
        assert summary["percentiles"]["p90"] == pytest.approx(np.percentile(samples, 90), rel=1e-4)
        assert summary["cv"] == pytest.approx(samples.std(ddof=1) / samples.mean(), rel=0.06)
        assert row["samples_per_s"] == pytest.approx(row["batch"] / summary["median"] * 1e3)
        assert row["ms_per_sample"] == pytest.approx(summary["median"] / row["batch"])
        assert row["speedup"] == pytest.approx(row["samples_per_s"] / data["batches"][0]["samples_per_s"])
    assert data["backend"] == "onnxruntime" and data["environment"]["cpu"] and data["environment"]["commit"]
    assert data["timed"] == {"run": "InferenceSession.run with I/O binding, wall time per call"}
    with (folder / "r.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["batch"] for row in rows] == ["1", "2", "4", "8"] and rows[0]["ms_p99"]
    for words in ("samples/s", "ms/batch", "p90", "p99", "ms/sample", "× batch 1", "CV", "runs", "verdict", "r.json"):
        assert words in result.output
    assert "executed at batch 8: input 8×3×8×8, output 8×5" in result.output
    assert "20 runs are too few for p99 to be more than the maximum: raise --iterations" in result.output


def test_batches_keep_the_order_given_and_speedup_is_over_the_smallest(cli: Cli, engine: Path, folder: Path) -> None:
    assert cli("bench", "--batch", "8,2,5", "--iterations", 5, "--json", "r.json").exit_code == 0
    rows = json.loads((folder / "r.json").read_text())["batches"]
    assert [row["batch"] for row in rows] == [8, 2, 5]
    assert {row["speedup_over"] for row in rows} == {2}
    assert rows[1]["speedup"] == 1.0


def test_nothing_runs_when_a_batch_is_outside_the_profile(
    cli: Cli, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_module, "open_engine", lambda artifact: pytest.fail("the engine was opened"))
    refused(cli("bench", "--batch", "1,9"), 2, "batch 9 is outside every profile of small.ort.onnx", "--max 9")


@pytest.mark.parametrize("model", [models.leaking, models.first_row_only])
def test_a_wrong_engine_gets_no_numbers(cli: Cli, folder: Path, model: Callable[[Path], Path]) -> None:
    models.two_inputs(folder / "right.onnx")
    assert cli("build", "right.onnx", "--max", 8).exit_code == 0
    right = load(folder / "engines/right.ort.onnx", "engine").sidecar
    wrong = model(folder / "engines/wrong.onnx")  # as if an engine had turned wrong after it was built
    spec = replace(right.inputs[0], name="input", shape=("batch_size", 6))
    from trtbatch.artifacts import record_file

    sidecar = replace(right, artifact=record_file(wrong), inputs=(spec,), outputs=(replace(spec, name="output"),))
    sidecar_path(wrong).write_text(json.dumps(encode(sidecar)))
    result = cli("bench", wrong, "--batch", "1,4", "--json", "r.json", "--csv", "r.csv")
    refused(result, 1, "wrong.onnx gives wrong rows: batch 4, output:")
    assert "samples/s" not in result.output
    assert not (folder / "r.json").exists() and not (folder / "r.csv").exists()


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("--batch", "1,2,4,...,33"), 2, "33"),
        (("--batch", "0"), 2, "'0'"),
        (("--batch", "two"), 2, "'two'"),
        (("--mode", "execute_v2"), 2, "no mode 'execute_v2'; it has run"),
        (("--percentile", "101"), 2, "--percentile '101'"),
        (("--iterations", 5, "--min-time", 1), 2, "--iterations and --min-time"),
        (("--json", "engines"), 2, "engines is a folder"),
        (("--mode", ","), 2, "--mode names no mode"),
        (("--min-time", "inf"), 2, "--min-time inf never ends"),
        (("--json", "/sys/r.json"), 1, "/sys: "),
    ],
)
def test_wrong_words(cli: Cli, engine: Path, args: tuple[object, ...], code: int, told: str) -> None:
    refused(cli("bench", *args), code, told)


def test_percentiles_are_those_asked_for(cli: Cli, engine: Path, folder: Path) -> None:
    assert cli("bench", "--percentile", "75,99.9", "--iterations", 5, "--json", "r.json").exit_code == 0
    assert list(json.loads((folder / "r.json").read_text())["batches"][0]["summary"]["percentiles"]) == ["p75", "p99.9"]


def test_an_artifact_is_named_when_it_is_missing_bare_or_damaged(cli: Cli, engine: Path, folder: Path) -> None:
    content = engine.read_bytes()
    engine.write_bytes(content[: len(content) // 2])
    refused(cli("bench"), 1, "small.ort.onnx is truncated", "trtbatch build")
    engine.write_bytes(content)
    sidecar_path(engine).unlink()
    refused(cli("bench", engine), 1, "has no sidecar small.ort.onnx.json")
    refused(cli("bench"), 1, "no engine that runs here in engines/", "trtbatch build")
    refused(cli("bench", "nothing.engine"), 1, "nothing.engine doesn't exist")
    refused(cli("bench", "small.onnx"), 1, "small.onnx has no sidecar")


def test_a_tensorrt_engine_without_tensorrt_says_what_is_missing(cli: Cli, engine: Path, folder: Path) -> None:
    from trtbatch.backends import tensorrt

    if tensorrt.obstacle() is None:
        pytest.skip("TensorRT runs here")
    data = json.loads(sidecar_path(engine).read_text()) | {"backend": "tensorrt"}
    sidecar_path(engine).write_text(json.dumps(data))
    refused(cli("bench", engine), 1, "is a TensorRT engine: no NVIDIA GPU here")
    refused(cli("bench"), 1, "no engine that runs here")


def test_measure_takes_exactly_the_iterations_or_at_least_the_minimum() -> None:
    launches = 0

    def launch() -> None:
        nonlocal launches
        launches += 1

    mode = Mode("run", "counting", launch)
    assert measure(mode, 37, 1.0, 0.0).shape == (37,)
    assert launches == 37 + 3, "three warm-up runs, not timed"
    assert len(measure(mode, None, 0.01, 0.0)) >= bench_module.MIN_ITERATIONS


def test_the_event_loop_keeps_two_launches_in_flight_and_times_each_once() -> None:
    """On a clock of our own: every launch takes 1 ms of a device that works in order."""
    log: list[str] = []
    now = 0.0

    class Event:
        def record(self) -> None:
            self.at = now

        def synchronize(self) -> None:
            log.append("wait")

        def milliseconds_since(self, earlier: Any) -> float:
            return float(self.at - earlier.at)

    def launch() -> None:
        nonlocal now
        now += 1.0
        log.append("launch")

    samples = measure(Mode("async", "counting", launch, Event), 5, 1.0, 0.0)
    assert samples.tolist() == [1.0] * 5
    timed = log[-10:]
    assert timed == ["launch", "launch", "wait", "launch", "wait", "launch", "wait", "launch", "wait", "wait"]


def test_the_result_of_the_api_is_the_same_record(engine: Path) -> None:
    result = bench(BenchRequest(engine, [2], iterations=4))
    assert result.batches[0].batch == 2 and len(result.batches[0].samples_ms) == 4
    assert result.model.name == "small" and result.settings["iterations"] == 4


def test_a_mode_that_runs_something_else_gets_no_numbers(cli: Cli, engine: Path, monkeypatch: Any) -> None:
    """The timed launch is compared with the checked run: here it leaves the outputs as they were poisoned."""
    from trtbatch.backends.onnxruntime import OnnxRuntimeSession

    idle = {"run": Mode("run", "nothing", lambda: None)}
    monkeypatch.setattr(OnnxRuntimeSession, "modes", lambda self: idle)
    result = cli("bench", "--batch", 4, "--iterations", 3)
    refused(result, 1, "run gives other rows of output than the run that was checked")
    assert "samples/s" not in result.output


def test_json_has_no_infinity(cli: Cli, engine: Path, folder: Path) -> None:
    assert cli("bench", "--iterations", 2, "--json", "r.json").exit_code == 0
    data = json.loads((folder / "r.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert data["batches"][0]["summary"]["noise"] == "inf"
