"""Engines and profiles in turns; on ONNX Runtime. Nothing here looks at how long anything took."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.support.messages import refused
from trtbatch.benchmark import paired
from trtbatch.benchmark.bench import BenchRequest
from trtbatch.benchmark.clocks import ClockWatch
from trtbatch.benchmark.loops import Loop, Samples, StopRule, Taken
from trtbatch.benchmark.paired import PairedResult, ProfilesResult, compare_profiles
from trtbatch.benchmark.request import BenchPlan
from trtbatch.core import store
from trtbatch.core.batches import Profile
from trtbatch.core.sidecar import EngineRecord
from trtbatch.errors import UsageError
from trtbatch.reporting import report
from trtbatch.util.serialization import decode

Cli = Callable[..., Any]

TWO = ("build", "small.onnx", "--backend", "onnxruntime", "--profile", "1:1:4", "--profile", "2:8:8")
VERDICTS = {"FASTER", "SLOWER", "SAME", "UNCLEAR"}


@pytest.fixture
def two(cli: Cli, engine: Path) -> Path:
    """``engines/two.ort.onnx``: the model of `engine`, with the profiles 1:1:4 and 2:8:8."""
    made = engine.with_name("two.ort.onnx")
    assert cli(*TWO, "--output", made).exit_code == 0
    return made


@pytest.mark.slow
def test_one_engine_against_another(cli: Cli, engine: Path, two: Path, folder: Path) -> None:
    line = ("--batch", "1,8", "--mode", "run,throughput", "--iterations", 20, "--json", "r.json", "--csv", "r.csv")
    result = cli("bench", engine, "--against", two, *line)
    assert result.exit_code == 0, result.output
    data = json.loads((folder / "r.json").read_text())
    assert (data["a"]["engine"], data["b"]["engine"]) == ("small.ort.onnx", "two.ort.onnx")
    lines = data["lines"]
    assert [(x["batch"], x["mode"]) for x in lines] == [(b, mode) for b in (1, 8) for mode in ("run", "throughput")]
    assert [x["profile_b"] for x in lines] == [0, 0, 1, 1]
    for each in lines:
        ours, theirs, relative = np.array(each["rounds_a"]), np.array(each["rounds_b"]), each["relative"]
        assert len(ours) == len(theirs) == relative["rounds"] == data["settings"]["rounds"] == paired.ROUNDS
        assert each["ms_a"] == pytest.approx(np.median(ours))
        assert each["ms_b"] == pytest.approx(np.median(theirs))
        assert relative["ratio"] == pytest.approx(np.median(ours / theirs))
        assert relative["low"] <= relative["ratio"] <= relative["high"]
        assert relative["verdict"] in VERDICTS
        assert relative["verdict"] in result.output
    assert "A: small.ort.onnx" in result.output
    assert "B: two.ort.onnx" in result.output
    with (folder / "r.csv").open() as stream:
        assert [row["verdict"] for row in csv.DictReader(stream)] == [x["relative"]["verdict"] for x in lines]
    assert decode(PairedResult, data, "r.json").lines[0].batch == 1


def test_an_engine_against_itself(cli: Cli, engine: Path) -> None:
    result = cli("bench", engine, "--against", engine, "--batch", 4, "--mode", "latency", "--iterations", 20)
    assert result.exit_code == 0, result.output
    assert "A / B" in result.output
    assert any(verdict in result.output for verdict in VERDICTS)


def test_every_profile_that_holds_a_batch_is_timed_at_it(cli: Cli, two: Path, folder: Path) -> None:
    line = ("--batch", "1,4,8", "--iterations", 20, "--json", "r.json", "--csv", "r.csv")
    result = cli("bench", two, "--compare-profiles", *line)
    assert result.exit_code == 0, result.output
    data = json.loads((folder / "r.json").read_text())
    assert [sorted(each["ms"]) for each in data["lines"]] == [["0"], ["0", "1"], ["1"]]
    for each in data["lines"]:
        assert each["fastest"] is None
        assert each["relative"] is None
        assert all(len(rounds) == paired.ROUNDS for rounds in each["rounds_ms"].values())
        for index, rounds in each["rounds_ms"].items():
            assert each["ms"][index] == pytest.approx(np.median(rounds), rel=1e-5)
    both = data["lines"][1]
    assert both["widest"] == 1, "it holds seven batch sizes, the other one four"
    assert "0 (1:1:4)" in result.output
    assert "1 (2:8:8)" in result.output
    assert "ONNX Runtime runs all profiles alike" in result.output
    assert "none is the fastest" in result.output
    assert not any(words in result.output for words in ("widest", "costs", "verdict", *VERDICTS))
    with (folder / "r.csv").open() as stream:
        assert [(row["batch"], row["profile"]) for row in csv.DictReader(stream)] == [
            ("1", "0"),
            ("4", "0"),
            ("4", "1"),
            ("8", "1"),
        ]
    assert decode(ProfilesResult, data, "r.json").lines[1].widest == 1


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--against", "engines/two.ort.onnx", "--batch", 9), "batch 9 is outside every profile of small.ort.onnx"),
        (("--against", "engines/two.ort.onnx", "--mode", "graph"), "no mode 'graph'; it has run, latency, throughput"),
        (("--against", "engines/two.ort.onnx", "--compare-profiles"), "--against and --compare-profiles"),
        (("--against", "engines/two.ort.onnx", "--profile", 0), "--against and --profile"),
    ],
)
def test_what_cannot_be_compared(cli: Cli, engine: Path, two: Path, args: tuple[object, ...], told: str) -> None:
    refused(cli("bench", engine, *args), 2, told)


def test_an_engine_that_is_not_there(cli: Cli, engine: Path) -> None:
    refused(cli("bench", engine, "--against", "nothing.engine"), 1, "nothing.engine doesn't exist")


def test_a_forced_profile_leaves_nothing_to_compare(engine: Path) -> None:
    with pytest.raises(UsageError, match="`compare_profiles` and `profile` are two questions"):
        compare_profiles(BenchRequest(engine, [1], profile=0, compare_profiles=True))


def test_they_take_turns_and_rounds_of_changing_clocks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def collect(loop: Loop, rule: StopRule, warmup_ms: float, watch: ClockWatch) -> Samples:
        order.append(loop.name)
        ms = np.full(3, 1.0 if loop.name == "A" else 2.0)
        if len(order) == 2:  # B, in the first round
            return Samples(9 * ms, np.empty(0), ((0, 3),), ("hardware slowdown",))
        return Samples(ms, np.empty(0))

    def prepared(name: str) -> Callable[[], Loop]:
        return lambda: Loop(name, "", lambda count: Taken(np.ones(count)))

    monkeypatch.setattr(paired, "collect", collect)
    plan = BenchPlan(BenchRequest(None, [1]), (), StopRule(3), {})
    rounds = paired.take_turns([prepared("A"), prepared("B")], plan, ClockWatch())
    assert "".join(order) == "ABBA" * (paired.ROUNDS // 2)
    assert rounds.bad == (0,)
    assert rounds.ms[1][0] == 18.0
    relative = rounds.compare(0, 1)
    assert (relative.ratio, relative.rounds, relative.verdict) == (0.5, paired.ROUNDS - 1, "FASTER")


def test_on_a_gpu_the_fastest_profile_is_named(engine: Path) -> None:
    record = EngineRecord("tensorrt", (Profile(1, 1, 4), Profile(2, 8, 8)))
    sidecar = replace(store.load(engine, "engine").sidecar, engine=record)
    line = paired.profile_line(4, "graph", sidecar, (0, 1), paired.Rounds(((2.0,) * 20, (1.0,) * 20), ()))
    assert (line.fastest, line.widest, line.ms) == (1, 1, {"0": 2.0, "1": 1.0})
    other = paired.profile_line(4, "graph", sidecar, (0, 1), paired.Rounds(((1.0,) * 20, (2.0,) * 20), ()))
    assert (other.fastest, other.widest) == (0, 1)
    assert other.relative is not None
    assert other.relative.ratio == 2.0
    given: dict[str, Any] = {"engine": "x.engine", "backend": "tensorrt", "precision": "fp16", "model": sidecar.model}
    given |= {"profiles": sidecar.engine.profiles, "timed": {}, "settings": {"rounds": 20}, "tools": {}, "device": {}}
    result = ProfilesResult(**given, environment={}, gpu={}, created="", lines=(line, other))
    printed = io.StringIO()
    Console(width=160, file=printed).print(report.profiles_table(result))
    assert "fastest" in printed.getvalue()
    assert "+100.0 %" in printed.getvalue()
    assert "widest: " in "\n".join(report.profiles_notes(result))


def test_nothing_is_clear_where_most_rounds_are_bad() -> None:
    rounds = paired.Rounds(((1.0,) * 20, (2.0,) * 20), tuple(range(11)))
    assert rounds.compare(0, 1).verdict == "UNCLEAR"
    assert rounds.compare(0, 1).rounds == 20
