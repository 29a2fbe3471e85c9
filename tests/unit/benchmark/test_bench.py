"""The timing loops and what is kept of them; on ONNX Runtime. Nothing here looks at how long anything took."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import models
from tests.support.messages import refused
from tests.support.sidecars import change_sidecar
from trtbatch.backends.base import Mode
from trtbatch.backends.onnxruntime import OnnxRuntimeSession, OnnxRuntimeSlot
from trtbatch.benchmark import harness, loops
from trtbatch.benchmark.bench import BenchRequest, BenchResult, bench, measure
from trtbatch.core.store import load
from trtbatch.reporting.series import rate
from trtbatch.util.files import sidecar_path
from trtbatch.util.serialization import decode, encode

Cli = Callable[..., Any]


def test_a_table_with_every_batch_and_its_files(cli: Cli, engine: Path, folder: Path) -> None:
    result = cli("bench", "--batch", "1,2,4,...,8", "--iterations", 20, "--json", "r.json", "--csv", "r.csv")
    assert result.exit_code == 0, result.output
    data = json.loads((folder / "r.json").read_text())
    assert [row["batch"] for row in data["batches"]] == [1, 2, 4, 8]
    for row in data["batches"]:
        samples, summary = np.array(row["samples_ms"]), row["summary"]
        assert len(samples) == summary["iterations"] == 20
        assert (samples > 0).all()
        assert row["shapes"] == {"input": [row["batch"], 3, 8, 8], "output": [row["batch"], 5]}
        assert summary["median"] == pytest.approx(np.median(samples), rel=1e-4)
        assert summary["percentiles"]["p90"] == pytest.approx(np.percentile(samples, 90), rel=1e-4)
        assert summary["cv"] == pytest.approx(samples.std(ddof=1) / samples.mean(), rel=0.06)
        assert row["samples_per_s"] == pytest.approx(row["batch"] / summary["median"] * 1e3)
        assert row["ms_per_sample"] == pytest.approx(summary["median"] / row["batch"])
        assert row["speedup"] == pytest.approx(row["samples_per_s"] / data["batches"][0]["samples_per_s"])
    assert data["backend"] == "onnxruntime"
    assert data["environment"]["cpu"]
    assert data["environment"]["commit"]
    assert data["timed"] == {"run": "InferenceSession.run with I/O binding, wall time per call"}
    with (folder / "r.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["batch"] for row in rows] == ["1", "2", "4", "8"]
    assert rows[0]["ms_p99"]
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
    monkeypatch.setattr(harness, "open_engine", lambda artifact, device: pytest.fail("the engine was opened"))
    refused(cli("bench", "--batch", "1,9"), 2, "batch 9 is outside every profile of small.ort.onnx", "--max 9")


@pytest.mark.parametrize("model", [models.leaking, models.first_row_only])
def test_a_wrong_engine_gets_no_numbers(cli: Cli, folder: Path, model: Callable[[Path], Path]) -> None:
    models.two_inputs(folder / "right.onnx")
    assert cli("build", "right.onnx", "--max", 8).exit_code == 0
    right = load(folder / "engines/right.ort.onnx", "engine").sidecar
    wrong = model(folder / "engines/wrong.onnx")  # as if an engine had turned wrong after it was built
    spec = replace(right.inputs[0], name="input", shape=("batch_size", 6))
    from trtbatch.core.store import record_file

    sidecar = replace(right, artifact=record_file(wrong), inputs=(spec,), outputs=(replace(spec, name="output"),))
    sidecar_path(wrong).write_text(json.dumps(encode(sidecar)))
    result = cli("bench", wrong, "--batch", "1,4", "--json", "r.json", "--csv", "r.csv")
    refused(result, 1, "wrong.onnx gives wrong rows: batch 4, output:")
    assert "samples/s" not in result.output
    assert not (folder / "r.json").exists()
    assert not (folder / "r.csv").exists()


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
        (("--json", "small.onnx/r.json"), 1, "--json small.onnx/r.json can't be written: small.onnx: File exists"),
        (("--csv", "small.onnx/a/r.csv"), 1, "or write elsewhere with --csv"),
        (("--mode", "run,latencies"), 2, "no mode 'latencies'; it has run, latency, throughput"),
        (("--streams", 2), 2, "--streams 2 is for throughput"),
        (("--flush-l2",), 2, "--flush-l2 flushes the cache of a GPU, and this runs on the CPU"),
        (("--flush-l2", "--mode", "latency"), 2, "--flush-l2 flushes before each launch alone"),
        (("--max-noise", "5"), 2, "--max-noise '5'"),
        (("--max-noise", "little"), 2, "--max-noise 'little'"),
        (("--time-out", "0.5"), 2, "--time-out 0.5 is less than the 1 s of --min-time"),
        (("--time-out", "inf"), 2, "--time-out inf never ends"),
        (("--time-out", 5, "--iterations", 5), 2, "--iterations and --time-out"),
        (("--profile", 1), 2, "small.ort.onnx has no profile 1"),
        (("--profile", 0, "--compare-profiles"), 2, "--compare-profiles and --profile are two questions"),
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
    refused(cli("bench", "small.onnx"), 1, "small.onnx is an ONNX file, not an engine", "trtbatch build small.onnx")


def test_a_tensorrt_engine_without_tensorrt_says_what_is_missing(cli: Cli, engine: Path, folder: Path) -> None:
    from trtbatch.backends import tensorrt

    if tensorrt.obstacle() is None:
        pytest.skip("TensorRT runs here")
    change_sidecar(engine, engine={"backend": "tensorrt"})
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
    assert len(measure(mode, None, 0.01, 0.0)) >= loops.MIN_ITERATIONS


def test_the_event_loop_keeps_two_launches_in_flight_and_times_each_once() -> None:
    """On a clock of our own: every launch takes 1 ms of a device that works in order, but 9 ms where that was idle."""
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
        now += 1.0 if log and (log[-1] == "launch" or log[-2:] == ["launch", "wait"]) else 9.0
        log.append("launch")

    samples = measure(Mode("async", "counting", launch, Event), 5, 1.0, 0.0)
    assert samples.tolist() == [1.0] * 5
    timed = log[-14:]
    assert timed == ["launch", "launch", *["wait", "launch"] * 5, "wait", "wait"], "two launches aren't kept"


def test_the_result_of_the_api_is_the_same_record(engine: Path) -> None:
    result = bench(BenchRequest(engine, [2], iterations=4))
    assert result.batches[0].batch == 2
    assert len(result.batches[0].samples_ms) == 4
    assert result.model.name == "small"
    assert result.settings["iterations"] == 4


def test_a_mode_that_runs_something_else_gets_no_numbers(cli: Cli, engine: Path, monkeypatch: Any) -> None:
    """The timed launch is compared with the checked run: here it leaves the outputs as they were poisoned."""
    idle = {"run": Mode("run", "nothing", lambda: None)}
    monkeypatch.setattr(OnnxRuntimeSession, "modes", lambda self: idle)
    result = cli("bench", "--batch", 4, "--iterations", 3)
    refused(result, 1, "run gives other rows of output than the run that was checked")
    assert "samples/s" not in result.output


def test_json_has_no_infinity(cli: Cli, engine: Path, folder: Path) -> None:
    assert cli("bench", "--iterations", 2, "--json", "r.json").exit_code == 0
    data = json.loads((folder / "r.json").read_text(), parse_constant=pytest.fail)
    assert data["batches"][0]["summary"]["noise"] == "inf"


def test_every_mode_of_a_slot_is_timed_and_says_what_it_timed(cli: Cli, engine: Path, folder: Path) -> None:
    modes = ("run", "latency", "throughput")
    line = ("--batch", "1,8", "--mode", ",".join(modes), "--streams", 2, "--iterations", 6, "--json", "r.json")
    result = cli("bench", *line, "--no-cuda-graph", "--csv", "r.csv")
    assert result.exit_code == 0, result.output
    data = json.loads((folder / "r.json").read_text())
    assert [(row["batch"], row["mode"]) for row in data["batches"]] == [(b, mode) for b in (1, 8) for mode in modes]
    assert set(data["timed"]) == set(modes)
    assert "2 in flight" in data["timed"]["throughput"]
    for row in data["batches"]:
        assert len(row["samples_ms"]) == 6
        assert (row["window"] > 1) == (row["mode"] == "throughput")
        assert row["window"] % 2 == 0 or row["window"] == 1, "whole rounds of the lanes"
        assert row["parts_ms"] == {}, "the CPU has neither"
        assert "bound" not in row, "the CPU has neither"
        assert row["bad"] == [], "the CPU has neither"
    assert data["settings"]["streams"] == 2
    assert data["settings"]["cuda_graphs"] is False
    for mode in modes:
        assert f"{mode}: {data['timed'][mode]}" in result.output
    with (folder / "r.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0])[:2] == ["batch", "mode"]
    assert list(rows[0])[-1] == "bad"
    assert rows[0]["profile"] == "0"
    assert decode(BenchResult, data, "r.json").batches[0].mode == "run"


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_a_slot_that_runs_nothing_gets_no_numbers(
    cli: Cli, engine: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """It ran right once, on other samples: its old outputs are not taken for the answer."""
    real, runs = OnnxRuntimeSlot.submit, iter([True])

    def submit_once(self: OnnxRuntimeSlot) -> None:
        if next(runs, False):
            real(self)

    monkeypatch.setattr(OnnxRuntimeSlot, "submit", submit_once)
    refused(cli("bench", "--batch", 4, "--mode", mode), 1, f"{mode} gives other rows of output than the run that was")


def test_a_forced_profile_is_the_one_that_runs(cli: Cli, engine: Path, folder: Path) -> None:
    two = ("build", "small.onnx", "--backend", "onnxruntime", "--profile", "1:1:4", "--profile", "3:8:8")
    assert cli(*two, "--output", "engines/two.ort.onnx").exit_code == 0
    line = ("bench", "engines/two.ort.onnx", "--iterations", 3, "--json", "r.json")
    for profile in (0, 1):
        result = cli(*line, "--batch", 4, "--profile", profile)
        assert result.exit_code == 0
        assert "profile" in result.output
        assert json.loads((folder / "r.json").read_text())["batches"][0]["profile"] == profile
    refused(cli(*line, "--batch", "1,4", "--profile", 1), 2, "batch 1 is outside profile 1", "(3:8:8)", "--batch 3")


@pytest.mark.parametrize("noise", ["2%", "0.02", " 2 % "])
def test_the_noise_wanted_is_kept(cli: Cli, engine: Path, folder: Path, noise: str) -> None:
    line = ("--max-noise", noise, "--min-time", 0.01, "--time-out", 0.02, "--json", "r.json")
    result = cli("bench", *line)
    assert result.exit_code == 0, result.output
    settings = json.loads((folder / "r.json").read_text())["settings"]
    assert (settings["max_noise"], settings["time_out_s"]) == (0.02, 0.02)


def test_what_was_not_reached_is_told(cli: Cli, engine: Path) -> None:
    result = cli("bench", "--iterations", 5)
    assert "too few runs" in result.output
    assert (
        "unstable at batch 1 (run); wanted: the median to 1 %, and a drift of at most 3 %, in 5 runs" in result.output
    )


class Device:
    """A GPU of a kind: the modes, the events and the parts of one, computed by ONNX Runtime."""

    def __init__(self, gpu_ms: float) -> None:
        self.gpu_ms = gpu_ms
        self.log: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch, parts: dict[str, float]) -> None:
        device = self

        class Event:
            def record(self) -> None:
                device.log.append("record")

            def synchronize(self) -> None:
                device.log.append("synchronize")

            def milliseconds_since(self, earlier: Any) -> float:
                return device.gpu_ms

        def modes(session: OnnxRuntimeSession) -> dict[str, Mode]:
            def launch() -> None:
                device.log.append("launch")
                session.run()

            return {
                "execute_v2": Mode("execute_v2", "a call", launch),
                "async": Mode("async", "a launch", launch, Event),
            }

        monkeypatch.setattr(OnnxRuntimeSession, "modes", modes)
        monkeypatch.setattr(OnnxRuntimeSession, "flush", lambda session: device.log.append("flush"))
        monkeypatch.setattr(OnnxRuntimeSlot, "parts", lambda slot: parts)


@pytest.mark.parametrize(("gpu_ms", "bound"), [(1e6, "compute-bound"), (1e-6, "enqueue-bound")])
def test_launches_are_compared_with_the_gpus_time(
    engine: Path, monkeypatch: pytest.MonkeyPatch, gpu_ms: float, bound: str
) -> None:
    Device(gpu_ms).install(monkeypatch, {})
    sync, launched = bench(BenchRequest(engine, [2], ["execute_v2", "async"], iterations=8)).batches
    assert launched.bound == bound
    assert launched.enqueue_ms is not None
    assert launched.enqueue_ms > 0
    assert launched.samples_ms == (gpu_ms,) * 8
    assert sync.bound is None
    assert sync.enqueue_ms is None


@pytest.mark.parametrize(("h2d", "bound"), [(0.5, "compute-bound"), (2.0, "copy-bound")])
def test_copies_are_compared_with_the_gpus_time(
    engine: Path, monkeypatch: pytest.MonkeyPatch, h2d: float, bound: str
) -> None:
    parts = {"h2d": h2d, "gpu": 1.0, "d2h": 0.1}
    Device(1.0).install(monkeypatch, parts)
    for row in bench(BenchRequest(engine, [2], ["latency", "throughput"], iterations=3)).batches:
        assert row.parts_ms == parts
        assert row.bound == bound


def test_the_cache_is_flushed_before_every_launch_and_waited_for_where_that_is_timed(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(1.0)
    device.install(monkeypatch, {})
    result = bench(BenchRequest(engine, [2], ["execute_v2"], iterations=3, warmup=0, flush_l2=True))
    assert device.log[-12:] == ["flush", "record", "synchronize", "launch"] * 3
    assert "L2 cache flushed" in result.timed["execute_v2"]
    bench(BenchRequest(engine, [2], ["async"], iterations=1, warmup=0, flush_l2=True))
    launch = ["flush", "record", "launch", "record"]
    assert device.log[-15:] == [*launch, *launch, "synchronize", *launch, "synchronize", "synchronize"]


def test_table_chart_and_record_have_the_same_figures(cli: Callable[..., Any], engine: Path, folder: Path) -> None:
    printed = cli("bench", "--batch", "1,2,4,8", "--iterations", 7, "--json", "r.json").output
    table = dict(re.findall(r"^│ +(\d+) │ +([\d,.]+) │", printed, re.MULTILINE))
    chart = dict(re.findall(r"^ *(\d+) [▏▎▍▌▋▊▉█#]+ ([\d,.]+)", printed, re.MULTILINE))
    assert len(table) == 4, printed
    assert table == chart, printed
    for row in json.loads((folder / "r.json").read_text())["batches"]:
        assert row["samples_per_s"] == row["batch"] / np.median(row["samples_ms"]) * 1e3


def test_samples_per_second_are_written_in_one_way() -> None:
    assert [rate(value) for value in (0.1234, 9.996, 99.96, 100.4, 1234.5)] == ["0.123", "10", "100", "100", "1,234"]
