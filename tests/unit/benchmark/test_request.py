"""What a request of bench means: engines, profiles, stopping rule, and where each came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

import trtbatch
from tests.support.sidecars import change_sidecar
from trtbatch.benchmark import harness
from trtbatch.benchmark.bench import BenchRequest, BenchResult
from trtbatch.benchmark.loops import StopRule
from trtbatch.benchmark.paired import PairedResult, ProfilesResult
from trtbatch.benchmark.request import ROUNDS, plan_bench
from trtbatch.core.profiles import Measured
from trtbatch.util.serialization import encode

Cli = Callable[..., Any]


@pytest.fixture
def two(cli: Cli, engine: Path) -> Path:
    """``engines/two.ort.onnx``: the model of `engine`, with the profiles 1:1:4 and 2:8:8."""
    made = engine.with_name("two.ort.onnx")
    built = cli("build", "small.onnx", "--profile", "1:1:4", "--profile", "2:8:8", "--output", made)
    assert built.exit_code == 0, built.output
    return made


@pytest.fixture(autouse=True)
def unopened(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "timed" not in request.node.name:
        monkeypatch.setattr(harness, "open_engine", lambda artifact, device: pytest.fail("the engine was opened"))


def test_what_is_given_is_planned_and_nothing_is_opened(engine: Path, two: Path) -> None:
    plan = plan_bench(BenchRequest(two, [4, 8], modes=["run"], min_time=0.5, time_out=2.0))
    assert [each.artifact.path for each in plan.engines] == [two]
    assert plan.rule == StopRule(None, 0.5, 2.0, plan.request.max_noise)
    assert plan.gpu is None
    assert plan.origins == {
        "engine": "given",
        "mode": "given",
        "profile": "the fastest by the build's table",
        "time_out": "given",
    }
    with pytest.raises(FrozenInstanceError):
        plan.engines = ()  # type: ignore[misc]


def test_what_is_not_given_is_found(engine: Path) -> None:
    plan = plan_bench(BenchRequest(None, [1]))
    assert plan.engines[0].artifact.path.name == engine.name
    assert plan.rule.time_out == 3 * plan.rule.min_time
    assert plan.origins == {
        "engine": "the newest in engines/ that runs here",
        "mode": "the first that the engine has",
        "profile": "the only one",
        "time_out": "3 times min_time",
    }


def test_the_profile_of_each_batch_is_the_fastest_or_the_one_that_is_given(engine: Path, two: Path) -> None:
    table = tuple(Measured(batch, profile, 1.0, {}) for batch, profile in ((2, 1), (4, 0), (8, 1)))
    change_sidecar(two, engine={"table": encode(table)})
    plan = plan_bench(BenchRequest(two, [2, 4, 8]))
    assert plan.engines[0].profiles == {2: (1,), 4: (0,), 8: (1,)}
    forced = plan_bench(BenchRequest(two, [2, 4], profile=0, iterations=40))
    assert forced.engines[0].profiles == {2: (0,), 4: (0,)}
    assert forced.origins["profile"] == "given"
    change_sidecar(two, engine={"table": []})
    assert plan_bench(BenchRequest(two, [2])).origins["profile"] == "the one with the nearest opt"
    assert "time_out" not in forced.origins, "the number of runs ends it"


def test_comparisons_take_turns_on_every_profile_or_on_two_engines(engine: Path, two: Path) -> None:
    profiles = plan_bench(BenchRequest(two, [1, 4, 8], compare_profiles=True))
    assert profiles.engines[0].profiles == {1: (0,), 4: (0, 1), 8: (1,)}
    assert profiles.origins["profile"] == "every one that holds the batch"
    assert profiles.rule.min_time == profiles.rule.time_out == profiles.request.min_time / ROUNDS
    two_engines = plan_bench(BenchRequest(engine, [8], against=two, iterations=40))
    assert [each.profiles for each in two_engines.engines] == [{8: (0,)}, {8: (1,)}]
    assert two_engines.rule.iterations == 40 / ROUNDS
    assert two_engines.origins["profile"] == "the only one"
    assert two_engines.origins["profile_b"] == "the fastest by the build's table"


def test_on_a_gpu_its_number_is_planned(engine: Path) -> None:
    plan = plan_bench(BenchRequest(engine, [1], device=3))
    (planned,) = plan.engines
    sidecar = planned.artifact.sidecar
    sidecar = replace(sidecar, engine=replace(sidecar.engine, backend="tensorrt"))
    on_gpu = replace(planned, artifact=replace(planned.artifact, sidecar=sidecar))
    assert replace(plan, engines=(planned, on_gpu)).gpu == 3


def test_what_is_timed_says_where_its_choices_came_from(engine: Path, two: Path) -> None:
    few: dict[str, Any] = {"batches": 2, "iterations": 20, "warmup": 0}
    found = trtbatch.bench(two, **few)
    compared = trtbatch.bench(engine, against=two, **few)
    profiles = trtbatch.bench(two, compare_profiles=True, **few)
    assert isinstance(found, BenchResult)
    assert isinstance(compared, PairedResult)
    assert isinstance(profiles, ProfilesResult)
    for result in (found, compared, profiles):
        assert result.origins["engine"] == "given"
    assert compared.b.engine == two.name
