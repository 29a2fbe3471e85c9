"""Two results that were measured apart: coverage and power of the interval, verdicts, the gate."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import exp, inf, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.messages import refused
from tests.support.results import saved, timed
from trtbatch.benchmark.bench import THROTTLED, BatchResult, BenchResult
from trtbatch.errors import InputError
from trtbatch.reporting import regression_report
from trtbatch.reporting.regression import Comparison, compare_results
from trtbatch.reporting.unpaired import BLOCKS, MIN_BLOCKS, ratio_of_medians
from trtbatch.util.serialization import decode
from trtbatch.util.statistics import summarize

Cli = Callable[..., Any]
Array = NDArray[np.float64]


def run(random: np.random.Generator, count: int, alike: float, scale: float = 1.0) -> Array:
    """Times of a first-order chain, 3 % wide, of which 2 % are half as long again; `alike` is what neighbours share."""
    noise = random.standard_normal(count + 200) * np.sqrt(1 - alike**2)
    chain = np.empty(count + 200)
    chain[0] = noise[0]
    for index in range(1, chain.size):
        chain[index] = alike * chain[index - 1] + noise[index]
    times = 1 + 0.03 * chain[200:]
    return np.where(random.random(count) < 0.02, 1.5, 1.0) * times * scale


# The interval.


@pytest.mark.parametrize(("count", "alike"), [(30, 0.0), (200, 0.0), (1000, 0.0), (200, 0.5), (200, 0.9), (1000, 0.9)])
def test_the_interval_holds_the_true_ratio_in_95_of_100_cases(count: int, alike: float) -> None:
    random = np.random.default_rng(11)
    held = 0
    for _ in range(200):
        found = ratio_of_medians(run(random, count, alike), run(random, count, alike))
        held += found.low <= 1 <= found.high
    assert held >= 0.91 * 200


@pytest.mark.parametrize(("count", "alike"), [(60, 0.0), (200, 0.5), (1000, 0.9)])
def test_ten_per_cent_are_seen_in_either_direction(count: int, alike: float) -> None:
    random = np.random.default_rng(12)
    for scale, verdict in ((1.1, "SLOWER"), (1 / 1.1, "FASTER")):
        found = [
            ratio_of_medians(run(random, count, alike), run(random, count, alike, scale)).verdict for _ in range(60)
        ]
        assert found.count(verdict) >= 57


def test_a_naive_interval_would_be_too_narrow_where_neighbours_are_alike() -> None:
    """What the blocks are for: the same samples, shuffled, seem to know the ratio several times better."""
    random = np.random.default_rng(13)
    chains = [run(random, 1000, 0.97) for _ in range(2)]
    shuffled = [random.permutation(chain) for chain in chains]
    wide, narrow = ratio_of_medians(chains[0], chains[1]), ratio_of_medians(shuffled[0], shuffled[1])
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert wide.ratio == narrow.ratio


def test_the_ends_of_the_interval_by_hand() -> None:
    medians = np.array([1.00, 1.02, 0.98, 1.01, 0.99, 1.02, 0.98, 1.00, 1.01, 0.99])
    a = np.repeat(medians, 100) + np.tile([-0.5, 0.5], 500)  # neighbours lie on either side of the median
    found = ratio_of_medians(a, np.full(1000, 2.0))
    reach = 2.262 * np.log(medians).std(ddof=1) / np.sqrt(10)
    assert found.blocks == BLOCKS
    assert found.ratio == pytest.approx(2.0)
    assert (found.low, found.high) == pytest.approx((2 * exp(-reach), 2 * exp(reach)))


def test_quantiles_of_student_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    from trtbatch.reporting.unpaired import STUDENT

    assert sorted(STUDENT) == list(range(MIN_BLOCKS - 1, BLOCKS))
    for freedom, point in STUDENT.items():
        assert point == pytest.approx(float(stats.t.ppf(0.975, freedom)), abs=5e-4)


def test_too_few_samples_are_unclear_and_constant_ones_are_not() -> None:
    few = ratio_of_medians(np.full(29, 1.0), np.full(1000, 2.0))
    assert (few.ratio, few.low, few.high, few.verdict) == (2.0, 0.0, inf, "UNCLEAR")
    assert ratio_of_medians(np.full(30, 1.0), np.full(30, 1.005)).verdict == "SAME"
    assert ratio_of_medians(np.full(30, 1.0), np.full(30, 2.0)).verdict == "SLOWER"
    assert ratio_of_medians(np.full(30, 1.0), np.full(30, 0.5)).verdict == "FASTER"


def test_a_drift_widens_the_interval() -> None:
    random = np.random.default_rng(14)
    steady, other = run(random, 1000, 0.0), run(random, 1000, 0.0)
    drifting = other * np.linspace(0.95, 1.05, 1000)
    calm, found = ratio_of_medians(steady, other), ratio_of_medians(steady, drifting)
    assert found.high - found.low > 3 * (calm.high - calm.low)


# Results.


def pair(slower: Callable[[int], float], **other: Any) -> tuple[BenchResult, BenchResult]:
    def base(batch: int) -> float:
        return 0.2 + 0.01 * batch

    return timed(base), replace(timed(lambda b: base(b) * slower(b)), created="later", **other)


def test_b_is_what_is_judged() -> None:
    a, b = pair(lambda batch: {1: 0.8, 2: 1.3}.get(batch, 1.0))
    assert [line.verdict for line in compare_results(a, b).lines] == [
        "FASTER",
        "SLOWER",
        "SAME",
        "SAME",
        "SAME",
        "SAME",
    ]
    turned = compare_results(b, a).lines
    assert [line.verdict for line in turned[:2]] == ["SLOWER", "FASTER"]
    assert turned[1].ratio == pytest.approx(1 / 1.3, rel=0.01)


@pytest.mark.parametrize(("slower", "fails"), [(1.04, False), (1.06, True), (0.5, False), (2.0, True)])
def test_the_gate_is_the_ratio_over_the_limit_and_surely_above_one(slower: float, fails: bool) -> None:
    a, b = pair(lambda batch: slower)
    found = compare_results(a, b, limit=0.05)
    assert all(line.fails is fails for line in found.lines)
    assert not compare_results(a, b).failures, "without a limit nothing fails"


def test_what_may_be_chance_does_not_fail_and_is_told() -> None:

    a, b = pair(lambda batch: 1.0)
    few = tuple(replace(line, samples_ms=(0.9,) * 10) for line in b.batches)
    found = compare_results(a, replace(b, batches=few), limit=0.05)
    assert all(line.verdict == "UNCLEAR" for line in found.lines)
    assert not found.failures
    assert "by chance" not in "\n".join(regression_report.warnings(found)), "nothing is known of so few runs"
    assert found.unjudged == found.lines
    swaying = np.repeat([0.5, 2.0, 1.15, 0.6, 1.8, 1.2, 0.5, 2.0, 1.15, 1.2], 6)
    wide = tuple(replace(line, samples_ms=tuple(np.asarray(line.samples_ms) * swaying)) for line in b.batches)
    found = compare_results(a, replace(b, batches=wide), limit=0.05)
    assert not found.failures
    assert not found.unjudged
    assert "the median is over the limit, but may be by chance" in "\n".join(regression_report.warnings(found))


def test_bad_samples_do_not_count() -> None:
    a, b = pair(lambda batch: 1.0)
    spoiled = tuple(
        replace(line, samples_ms=(*line.samples_ms, *(9.0,) * 20), bad=((60, 80),), faults=("slow",))
        for line in b.batches
    )
    assert {line.verdict for line in compare_results(a, replace(b, batches=spoiled)).lines} == {"SAME"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"device": {"gpu": "NVIDIA L4"}}, "GPU: A NVIDIA H200; B NVIDIA L4"),
        ({"device": {"gpu": "NVIDIA H200", "memory_mib": "20000"}}, "GPU memory, MiB: A unknown; B 20000"),
        ({"environment": {"driver": "580.1"}}, "driver: A unknown; B 580.1"),
        ({"tools": {"tensorrt": "10.0.1"}}, "version of tensorrt: A unknown; B 10.0.1"),
        ({"profiles": ()}, "profiles: A 1:1:1, 1:8:32; B unknown"),
        ({"precision": "int8"}, "precision: A fp16; B int8"),
        ({"settings": {"streams": 2}}, "setting streams: A unknown; B 2"),
        ({"settings": {"iterations": 7, "max_noise": 0.1}}, None),
        ({"timed": {"graph": "something else"}}, "what graph times: A what graph is; B something else"),
        ({"gpu_after": {"sm_mhz": 1980}}, None),
    ],
)
def test_what_differs_between_the_runs_is_told(change: dict[str, Any], told: str | None) -> None:
    a, b = pair(lambda batch: 1.0, **change)
    found = compare_results(a, b).differences
    assert found == ((told,) if told else ())


def test_a_run_beside_itself_is_told() -> None:
    _, b = pair(lambda batch: 1.0)
    assert compare_results(b, b).differences == ("both are the same run",)


def test_clocks_throttling_and_shapes_are_told() -> None:
    a, b = pair(lambda batch: 1.0)
    a, b = replace(a, gpu_after={"sm_mhz": 1980}), replace(b, gpu_after={"sm_mhz": 1755, "memory_mhz": "?"})
    first = replace(b.batches[0], verdict="throttled", shapes={"input": [1, 3, 9, 9]})
    found = compare_results(a, replace(b, batches=(first, *b.batches[1:]))).differences
    assert found[0] == "GPU clock: A 1980 MHz; B 1755 MHz"
    assert found[1].startswith("batch 1 (graph) ran other shapes: A {'input': [1, 3, 8, 8]")
    assert found[2] == "batch 1 (graph) was throttled in B"


def test_batches_of_one_file_only_are_named_and_none_in_common_is_an_error() -> None:
    a, b = timed(lambda b: 1.0, batches=(1, 2, 4)), timed(lambda b: 1.0, batches=(2, 4, 8))
    found = compare_results(a, b)
    assert (found.only_a, found.only_b) == (("batch 1 (graph)",), ("batch 8 (graph)",))
    assert [line.batch for line in found.lines] == [2, 4]
    with pytest.raises(InputError, match="nothing in common"):
        compare_results(a, timed(lambda b: 1.0, mode="async"))


# The command.


def files(folder: Path, slower: float) -> None:
    a, b = pair(lambda batch: slower if batch == 8 else 1.0)
    saved(folder / "a.json", a)
    saved(folder / "b.json", b)


def test_the_gate_on_the_command_line(cli: Cli, folder: Path) -> None:
    files(folder, 1.2)
    line = ("compare", "a.json", "b.json", "--json", "c.json")
    failed = cli(*line, "--fail-if-slower", "5%")
    assert failed.exit_code == 1
    assert "fails: slower by more than 5 % at batch 8 (graph), most at batch 8 (graph): 20 %" in failed.output
    assert "B is SLOWER at batch 8 (graph), SAME at batch 1, 2, 4, 16, 32 (graph)" in failed.output
    assert "error" not in failed.output
    data = json.loads((folder / "c.json").read_text())
    found = decode(Comparison, data, "c.json")
    assert [each.batch for each in found.lines if each.fails] == [8]
    assert found.limit == 0.05
    for passing in ((*line, "--fail-if-slower", "25%"), (*line, "--fail-if-slower=0.25"), line):
        assert cli(*passing).exit_code == 0
    assert cli("compare", "b.json", "a.json", "--fail-if-slower", "5%").exit_code == 0, "A being slower is no failure"


def test_a_gate_does_not_pass_what_it_can_not_judge(cli: Cli, folder: Path) -> None:
    """Without a limit there is no gate; and what is surely slower fails, whatever else isn't known."""
    a, b = pair(lambda batch: 1.2 if batch == 8 else 1.0)
    few = replace(b.batches[4], samples_ms=b.batches[4].samples_ms[:29])
    saved(folder / "a.json", a)
    saved(folder / "b.json", replace(b, batches=(*b.batches[:4], few, *b.batches[5:])))
    line = ("compare", "a.json", "b.json")
    for options, code, told in (
        (("--fail-if-slower", "25%"), 3, "; not judged at batch 16 (graph): fewer than 30 runs\n"),
        (("--fail-if-slower", "25%", "--markdown"), 3, "; not judged at batch 16 (graph): fewer than 30 runs\n"),
        (("--fail-if-slower", "5%"), 1, "; fails: slower by more than 5 % at batch 8 (graph)"),
        ((), 0, "UNCLEAR at batch 16 (graph)"),
    ):
        done = cli(*line, *options)
        assert done.exit_code == code, done.output
        assert told in done.stdout, done.output
        unjudged = "batch 16 (graph): can't be judged with fewer than 30 runs: measure longer"
        assert f"warning: {unjudged}\n" in done.stderr
    assert "3 where nothing" in " ".join(cli("compare", "--help").output.replace("│", " ").split())


def test_warnings_go_to_standard_error(cli: Cli, folder: Path) -> None:
    a, b = pair(lambda batch: 1.0, device={"gpu": "NVIDIA L4"})
    saved(folder / "a.json", replace(a, batches=a.batches[:-1]))
    saved(folder / "b.json", b)
    done = cli("compare", "a.json", "b.json")
    assert done.exit_code == 0
    assert "warning: the runs differ in GPU: A NVIDIA H200; B NVIDIA L4" in done.stderr
    assert "warning: in B only, not in A: batch 32 (graph)" in done.stderr


def test_lines_that_bench_had_called_unstable_are_named(cli: Cli, folder: Path) -> None:
    """B warms up at batch 8, has too few runs at 16, and is throttled at 32; A is noisy at batch 1."""
    a, b = pair(lambda batch: 1.0)

    def spoiled(line: BatchResult, ms: Array, **other: Any) -> BatchResult:
        summary = summarize(ms, (90, 99))
        return replace(line, samples_ms=tuple(ms.tolist()), summary=summary, **{"verdict": summary.verdict} | other)

    noisy = spoiled(a.batches[0], np.tile([0.1, 0.3], 30))
    warming = spoiled(b.batches[3], np.repeat([0.3, 0.25], 30))
    few = spoiled(b.batches[4], np.full(4, 0.3))
    throttled = spoiled(b.batches[5], np.repeat([0.3, 0.25], 30), verdict=THROTTLED)
    saved(folder / "a.json", replace(a, batches=(noisy, *a.batches[1:])))
    saved(folder / "b.json", replace(b, batches=(*b.batches[:3], warming, few, throttled)))
    done = cli("compare", "a.json", "b.json", "--json", "c.json")
    assert done.exit_code == 0
    fix = "stop other programs, or measure longer"
    assert f"warning: A wasn't stable at batch 1 (graph, {noisy.summary.verdict}): {fix}" in done.stderr
    told = f"batch 8 (graph, drift -16.7 %), batch 16 (graph, too few runs): {fix}"
    assert f"warning: B wasn't stable at {told}" in done.stderr
    assert "batch 32 (graph) was throttled in B" in done.stderr
    assert f"warning: B wasn't stable at {told}" in cli("compare", "a.json", "b.json", "--markdown").stdout
    assert json.loads((folder / "c.json").read_text())["unstable_b"][0] == "batch 8 (graph, drift -16.7 %)"
    steady = cli("compare", "b.json", "b.json", "--fail-if-slower", "5%")
    assert "A wasn't stable at batch 8" in steady.stderr
    assert steady.exit_code == 3


def test_stable_lines_are_not_warned_of(cli: Cli, folder: Path) -> None:
    files(folder, 1.2)
    assert "wasn't stable" not in cli("compare", "a.json", "b.json").output


def test_markdown_is_all_that_is_printed(cli: Cli, folder: Path) -> None:
    files(folder, 1.2)
    done = cli("compare", "a.json", "b.json", "--markdown", "--fail-if-slower", "5%", "--json", "c.json")
    assert done.exit_code == 1
    assert done.stdout.startswith("### B is SLOWER at batch 8")
    assert "┃" not in done.stdout
    assert "| SLOWER, fails |" in done.stdout
    assert "c.json" not in done.stdout


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("a.json", "no.json"), 1, "no.json doesn't exist"),
        (("a.json", "bad.json"), 1, "bad.json is damaged, or not JSON"),
        (("a.json", "x.ort.onnx"), 1, "x.ort.onnx is an engine, not a result of bench"),
        (("a.json", "x.pre.onnx"), 1, "x.pre.onnx is an ONNX file, not a result of bench"),
        (("a.json", "x.engine.json"), 1, "it is the sidecar of an artifact"),
        (("a.json", "b.json", "--fail-if-slower", "5"), 2, "--fail-if-slower '5'"),
        (("a.json", "b.json", "--fail-if-slower", "nan"), 2, "--fail-if-slower 'nan'"),
        (("a.json", "b.json", "--fail-if-slower=-1%"), 2, "--fail-if-slower '-1%'"),
        (("a.json", "b.json", "--json", "b.json"), 2, "b.json is named twice"),
        (("a.json",), 2, "B.json"),
    ],
)
def test_wrong_words(cli: Cli, folder: Path, args: tuple[str, ...], code: int, told: str) -> None:
    files(folder, 1.0)
    (folder / "bad.json").write_text("{")
    for name in ("x.ort.onnx", "x.pre.onnx"):
        (folder / name).write_bytes(b"a model")
    (folder / "x.engine.json").write_text('{"kind": "engine", "artifact": {}}')
    before = (folder / "b.json").read_bytes()
    refused(cli("compare", *args), code, told)
    assert (folder / "b.json").read_bytes() == before


def test_real_results_of_one_engine(cli: Cli, engine: Path, folder: Path) -> None:
    for name in ("a.json", "b.json"):
        assert cli("bench", "--batch", "1,8", "--iterations", 60, "--json", name).exit_code == 0
    done = cli("compare", "a.json", "b.json", "--json", "c.json")
    assert done.exit_code == 0, done.output
    found = decode(Comparison, json.loads((folder / "c.json").read_text()), "c.json")
    assert [line.batch for line in found.lines] == [1, 8]
    assert found.differences == ()
    for line in found.lines:
        assert line.low <= line.ratio <= line.high
        assert line.runs_a == line.runs_b == 60
        assert log(line.ratio) == pytest.approx(log(line.ms_b / line.ms_a))
