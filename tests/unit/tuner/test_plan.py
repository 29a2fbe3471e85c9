"""Profiles for a traffic: on tables whose best choice is known, against every choice there is, and end to end."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support import models
from tests.support.messages import refused
from tests.support.sidecars import change_sidecar
from trtbatch.core import store
from trtbatch.core.batches import Profile
from trtbatch.core.profiles import Measured, auto_profiles
from trtbatch.core.store import load
from trtbatch.errors import ArtifactError, UsageError
from trtbatch.tuner import plan as planning
from trtbatch.tuner.latency_model import LatencyModel
from trtbatch.tuner.plan import plan_lines
from trtbatch.tuner.profile_selection import FEW, Costs, best_choices, most_frequent, powers
from trtbatch.tuner.traffic import MOST_SIZES, read_traffic
from trtbatch.util.files import sidecar_path

Cli = Callable[..., Any]
Times = Callable[[Sequence[int], int], NDArray[np.float64]]


def padded(batches: Sequence[int], opt: int) -> NDArray[np.float64]:
    """A profile takes as long as its opt, whatever the batch: the largest price that a wrong one can have."""
    return np.where(np.asarray(batches) <= opt, float(opt), np.inf)


def brute_force(costs: Costs, candidates: Sequence[int], count: int) -> float:
    return min(costs.total(opts) for opts in itertools.combinations(sorted(set(candidates)), count))


# The choice.


def test_a_choice_by_hand() -> None:
    """On two: 8 alone costs 8 · 12 = 96; with 2 it is 10 · 2 + 2 · 8 = 36; with 1, 1 · 6 + 8 · 6 = 54."""
    costs = Costs({1: 6, 2: 4, 8: 2}, padded)
    choices, method = best_choices(costs, costs.batches, 8)
    assert [(choice.opts, choice.total_ms) for choice in choices] == [
        ((8,), 96.0),
        ((2, 8), 36.0),
        ((1, 2, 8), 30.0),
    ]
    assert method == "recurrence"
    assert all(choice.slack == 0 for choice in choices)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.integers(1, 40), st.integers(1, 1000), min_size=1, max_size=7),
    st.sets(st.integers(1, 60), max_size=3),
    st.floats(0, 10),
    st.floats(0, 1),
)
def test_the_recurrence_finds_what_trying_every_set_finds(
    counts: dict[int, int], measured: set[int], fixed: float, share: float
) -> None:
    def times(batches: Sequence[int], opt: int) -> NDArray[np.float64]:
        sizes = np.asarray(batches, np.float64)
        return np.where(sizes <= opt, fixed + share * opt + sizes, np.inf)

    costs = Costs(counts, times)
    candidates = sorted({*counts, *measured})
    choices, method = best_choices(costs, candidates, len(candidates))
    assert method == "recurrence"
    for count, choice in enumerate(choices, 1):
        assert choice.total_ms == pytest.approx(brute_force(costs, candidates, count))
        assert costs.total(choice.opts) == choice.total_ms
        assert len(choice.opts) == count


def scattered(seed: int) -> Times:
    """Times that rise and fall with the opt, as noise and odd kernels make them."""
    generator = np.random.default_rng(seed)
    factors = {opt: float(factor) for opt, factor in enumerate(generator.uniform(0.5, 1.5, 200))}

    def times(batches: Sequence[int], opt: int) -> NDArray[np.float64]:
        sizes = np.asarray(batches, np.float64)
        return np.where(sizes <= opt, factors[opt] * (5 + opt + sizes), np.inf)

    return times


@pytest.mark.parametrize("seed", range(10))
def test_where_times_fall_with_the_opt_every_set_is_tried(seed: int) -> None:
    counts = {size: 1 + size * seed % 7 for size in (1, 3, 4, 9, 16, 20)}
    costs = Costs(counts, scattered(seed))
    candidates = [*counts, 2, 24, 32]
    choices, method = best_choices(costs, candidates, 4)
    assert method == "every set"
    for count, choice in enumerate(choices, 1):
        assert choice.total_ms == pytest.approx(brute_force(costs, candidates, count))


@pytest.mark.parametrize("seed", range(5))
def test_where_there_are_too_many_sets_it_is_told_how_far_from_the_best_the_choice_may_be(seed: int) -> None:
    counts = {size: 1 + size * (seed + 3) % 11 for size in range(1, FEW + 6)}
    costs = Costs(counts, scattered(seed))
    choices, method = best_choices(costs, costs.batches, 3)
    assert method == "assumption"
    for count, choice in enumerate(choices, 1):
        best = brute_force(costs, costs.batches, count)
        assert best <= choice.total_ms * (1 + 1e-12)
        assert choice.total_ms / (1 + choice.slack) <= best * (1 + 1e-9), "the bound is one"


def test_more_profiles_never_cost_more() -> None:
    costs = Costs({size: 1 + size % 5 for size in range(1, 30)}, padded)
    totals = [choice.total_ms for choice in best_choices(costs, costs.batches, 29)[0]]
    assert totals == sorted(totals, reverse=True)


def test_many_sizes_are_chosen_from() -> None:
    counts = {size: 1 + size % 13 for size in range(1, 601)}
    choices, method = best_choices(Costs(counts, padded), list(counts), 8)
    assert method == "recurrence"
    assert len(choices) == 8
    assert all(choice.opts[-1] == 600 for choice in choices)


def test_the_naive_choices() -> None:
    counts = {1: 5, 3: 100, 4: 5, 24: 50, 40: 1}
    assert most_frequent(counts, 1) == (40,)
    assert most_frequent(counts, 3) == (3, 24, 40)
    assert most_frequent(counts, 4) == (3, 4, 24, 40), "of equally frequent ones the larger"
    assert powers(counts, 8) == (1, 2, 4, 8, 16, 32, 40)
    assert len(powers(counts, 2)) == 2
    assert powers(counts, 2)[-1] == 40


def test_lines_say_what_naive_choices_would_cost() -> None:
    """Requests of 3, and few of 8: two of the powers of two, 2 and 8, serve 3 on 8."""
    lines, _ = plan_lines(Costs({3: 100, 8: 1}, padded), [3, 8], 8)
    assert [line.opts for line in lines] == [(8,), (3, 8)]
    assert lines[1].total_ms == 308.0
    assert lines[1].ms_per_request == pytest.approx(308 / 101)
    assert lines[1].greedy == (3, 8)
    assert lines[1].greedy_loss == 0.0
    assert lines[1].usual == (2, 8)
    assert lines[1].usual_loss == pytest.approx(808 / 308 - 1)


# The times.


def table(profiles: Sequence[Profile], ms: Callable[[int, int], float], batches: Sequence[int]) -> list[Measured]:
    """Every batch on every profile that holds it, as a build times them."""
    rows = []
    for batch in batches:
        times = {index: ms(batch, each.opt) for index, each in enumerate(profiles) if batch in each}
        if times:
            rows.append(Measured.of(batch, times))
    return rows


PROFILES = auto_profiles([1, 4, 16], 1)


def affine(batch: int, opt: int) -> float:
    return 1 + 0.05 * opt + 0.1 * batch


def test_measured_times_are_kept_and_those_between_interpolated() -> None:
    model = LatencyModel.of(PROFILES, table(PROFILES, affine, [1, 2, 4, 8, 16]))
    assert not model.by_batch_alone
    assert model.largest == 16
    assert model.sizes == [1, 2, 4, 8, 16]
    for opt in (4, 16):
        for batch in (1, 2, 3, 4):
            assert model.times([batch], opt)[0] == pytest.approx(affine(batch, opt)), "linear in the batch"
    for opt in (4, 6, 10, 13, 16):  # linear in the opt too, where no batch under the smallest measured one matters
        for batch in range(4, opt + 1):
            assert model.times([batch], opt)[0] == pytest.approx(affine(batch, opt))
    assert model.times([5, 4], 4).tolist() == [np.inf, pytest.approx(affine(4, 4))]


def test_full_profiles_lie_between_full_ones() -> None:
    """Static times 1, 2, 8 at 1, 4, 16: one for 10 takes 5, half way between 2 and 8."""
    model = LatencyModel({1: {1: 1.0}, 4: {1: 1.5, 4: 2.0}, 16: {1: 3.0, 4: 4.0, 16: 8.0}})
    assert model.times([10], 10)[0] == pytest.approx(5.0)


def test_beyond_the_largest_opt_time_grows_in_proportion_and_below_the_smallest_it_stays() -> None:
    model = LatencyModel({4: {1: 1.0, 4: 2.0}, 8: {1: 2.0, 8: 5.0}})
    assert model.times([16], 16)[0] == pytest.approx(10.0), "as much a sample as at 8"
    assert model.times([8], 16)[0] == pytest.approx(2 * model.times([4], 8)[0])
    assert model.times([1, 2], 2).tolist() == model.times([1, 2], 4).tolist()


def test_a_batch_is_no_larger_than_what_was_measured_on_its_profile() -> None:
    """The widest profile's maximum wasn't timed: beyond it is proportional."""
    model = LatencyModel({8: {1: 1.0, 4: 2.0}, 4: {1: 0.5}})
    assert model.times([8], 8)[0] == pytest.approx(4.0)


def test_where_no_batch_has_two_times_profiles_make_no_difference() -> None:
    profiles = auto_profiles([1, 4, 16], 1)
    rows = [Measured(1, 0, 1.0, {"0": 1.0}), Measured(4, 1, 2.0, {"1": 2.0}), Measured(16, 2, 6.0, {"2": 6.0})]
    model = LatencyModel.of(profiles, rows)
    assert model.by_batch_alone
    assert model.times([1, 4, 10, 16], 100).tolist() == pytest.approx([1.0, 2.0, 4.0, 6.0])
    assert model.times([4], 4)[0] == model.times([4], 16)[0] == 2.0
    assert model.times([32], 32)[0] == pytest.approx(12.0)
    lines, _ = plan_lines(Costs({1: 9, 10: 2, 16: 1}, model.times), model.sizes, 4)
    assert lines[0].opts == (16,)
    assert {line.total_ms for line in lines} == {lines[0].total_ms}


def test_of_two_profiles_with_one_opt_the_faster_one_counts_and_old_rows_are_read() -> None:
    profiles = [Profile(1, 4, 4), Profile(1, 4, 8), Profile(1, 8, 8)]
    model = LatencyModel.of(
        profiles, [Measured(4, 0, 2.0, {"0": 2.0, "1": 1.5, "2": 3.0, "9": 0.1}), Measured(8, 2, 4.0)]
    )
    assert model.times([4], 4)[0] == 1.5
    assert model.times([8], 8)[0] == 4.0


def test_no_times_are_an_error() -> None:
    with pytest.raises(ArtifactError, match="no measured times"):
        LatencyModel.of(PROFILES, [])


# The traffic.


def written(folder: Path, text: str) -> Path:
    path = folder / "traffic.csv"
    path.write_bytes(text.encode())
    return path


def test_a_traffic_is_read_and_lines_of_one_size_added_up(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffBatch, count\r\n8,10\r\n\r\n1,5\r\n8, 2\r\n")
    assert read_traffic(path) == {1: 5, 8: 12}
    assert list(read_traffic(path)) == [1, 8]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1: the header is ''"),
        ("8,10\n", "line 1: the header is '8,10', not 'batch,count'"),
        ("batch,count\n", "holds no requests"),
        ("batch,count\n8,10\n1.5,2\n", "line 3: batch '1.5' is not a whole number"),
        ("batch,count\n8,-1\n", "line 2: count '-1' is not"),
        ("batch,count\n8,0\n", "line 2: count '0' is not"),
        ("batch,count\n0,8\n", "line 2: batch '0' is not"),
        ("batch,count\n1,2,3\n", "line 2: '1,2,3' has 3 values"),
        ("batch,count\n\n8\n", "line 3: '8' has 1 values"),
        ("batch,count\neight,1\n", "line 2: batch 'eight'"),
        ("batch,count\n8,1e3\n", "line 2: count '1e3'"),
        ("batch,count\n8,٣\n", "line 2: count '٣'"),
        ("batch,count\n9999999,1\n", "line 2: batch 9999999 is no batch size"),
        ("batch,count\n" + "".join(f"{n},1\n" for n in range(1, MOST_SIZES + 2)), f"over {MOST_SIZES}"),
    ],
)
def test_a_wrong_traffic_names_line_and_value(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_traffic(written(tmp_path, text))
    assert told in caught.value.problem
    assert "traffic.csv" in caught.value.problem


def test_what_is_no_text_is_no_traffic(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"batch,count\n\xff\xfe\n")
    with pytest.raises(UsageError, match="isn't text"):
        read_traffic(path)
    with pytest.raises(UsageError, match="is a folder"):
        read_traffic(tmp_path)


# The command.


def traffic(folder: Path, counts: Mapping[int, int]) -> Path:
    return written(folder, "batch,count\n" + "".join(f"{batch},{count}\n" for batch, count in counts.items()))


@pytest.fixture
def auto(cli: Cli, folder: Path) -> Path:
    """``engines/small.ort.onnx`` with the profiles 1:1:1, 1:2:2, 1:4:4, 1:8:8 and a time for each."""
    models.classifier(folder / "small.onnx")
    assert cli("build", "small.onnx", "--profiles", "auto", "--max", 8, "--backend", "onnxruntime").exit_code == 0
    return folder / "engines" / "small.ort.onnx"


def with_table(engine: Path, rows: Sequence[Measured], profiles: Sequence[Profile]) -> None:
    """The sidecar as a TensorRT build would have it, where each profile has its own times."""
    from trtbatch.util.serialization import encode

    change_sidecar(engine, engine={"table": encode(rows), "profiles": encode(profiles)})


def test_on_onnx_runtime_one_profile_is_as_good_as_any(cli: Cli, auto: Path, folder: Path) -> None:
    before = auto.read_bytes()
    result = cli("plan", "--traffic", traffic(folder, {1: 90, 3: 5, 8: 5}), "--json", "p.json")
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "traffic.csv: 100 requests of 3 sizes take " in told
    assert "ms each with one profile, and no batch size was measured on two that could differ" in told
    assert "chosen" not in told
    data = json.loads((folder / "p.json").read_text())
    assert data["chosen"]["profiles"] == 1
    assert data["chosen"]["opts"] == [8]
    assert data["by_batch_alone"] is True
    assert data["profiles"] == [{"min": 1, "opt": 8, "max": 8}]
    assert data["requests"] == 100
    planned = load(auto, "engine").sidecar.engine.planned
    assert planned is not None
    assert planned.profiles == (Profile(1, 8, 8),)
    assert planned.requests == 100
    assert planned.traffic.file == "traffic.csv"
    assert str(planned).startswith("1:8:8 for traffic.csv: ")
    assert auto.read_bytes() == before
    assert load(auto, "engine").sidecar.engine.best_batch in (1, 2, 4, 8)


def test_the_plan_follows_the_table_and_its_line_builds_it(cli: Cli, auto: Path, folder: Path) -> None:
    """Every profile takes as long as it is large: batch 3 is to have one of its own."""
    profiles = auto_profiles([1, 2, 3, 4, 8], 1)
    with_table(auto, table(profiles, lambda batch, opt: float(opt), [1, 2, 3, 4, 8]), profiles)
    line = ("plan", "--traffic", traffic(folder, {3: 1000, 8: 3}), "--from-table", "--json", "p.json", "--no-save")
    before = sidecar_path(auto).read_bytes()
    result = cli(*line)
    assert result.exit_code == 0, result.output
    assert sidecar_path(auto).read_bytes() == before
    data = json.loads((folder / "p.json").read_text())
    assert [row["opts"] for row in data["lines"][:2]] == [[8], [3, 8]]
    assert data["chosen"]["profiles"] == 2
    assert data["chosen"]["total_ms"] == 3024.0
    assert data["method"] == "recurrence"
    told = "trtbatch build small.onnx --profile 1:3:3 --profile 1:8:8 --batch 3,8"
    assert data["build"] == {"onnx": "small.onnx", "profiles": ["1:3:3", "1:8:8"], "batches": [3, 8]}
    assert told in result.output
    assert "chosen" in result.output
    built = cli(*shlex.split(told)[1:], "--backend", "onnxruntime", "--output", "engines/planned.ort.onnx")
    assert built.exit_code == 0, built.output
    made = load(folder / "engines/planned.ort.onnx", "engine").sidecar
    assert made.engine.profiles == (Profile(1, 3, 3), Profile(1, 8, 8))
    assert set(made.engine.times) == {3, 8}


def test_the_number_of_profiles_is_bounded(cli: Cli, auto: Path, folder: Path) -> None:
    path = traffic(folder, {1: 5, 2: 5, 4: 5, 8: 5})
    assert cli("plan", "--traffic", path, "--max-profiles", 2, "--json", "p.json").exit_code == 0
    assert [row["profiles"] for row in json.loads((folder / "p.json").read_text())["lines"]] == [1, 2]


def test_sizes_beyond_the_measured_ones_are_warned_of(cli: Cli, auto: Path, folder: Path) -> None:
    result = cli("plan", "--traffic", traffic(folder, {1: 5, 20: 1}), "--json", "p.json")
    assert result.exit_code == 0
    assert "warning: batch 20: larger than every measured one (8)" in result.output
    data = json.loads((folder / "p.json").read_text())
    assert data["extrapolated"] == [20]
    eight = load(auto, "engine").sidecar.engine.times
    assert data["chosen"]["total_ms"] == pytest.approx(5 * eight[1] + 20 / 8 * eight[8])


def test_what_the_table_lacks_is_timed_unless_the_table_is_to_decide(
    cli: Cli, engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = traffic(folder, {3: 5, 7: 6})
    refused(cli("plan", "--traffic", path, "--from-table"), 1, "has no table of measured times", "--from-table")
    timed: list[list[int]] = []

    def script(session: object, sidecar: object, batches: list[int], tell: object) -> tuple[Measured, ...]:
        timed.append(sorted(set(batches)))
        return tuple(Measured(batch, 0, float(batch), {"0": float(batch)}) for batch in sorted(set(batches)))

    monkeypatch.setattr(planning, "time_profiles", script)
    assert cli("plan", "--traffic", path, "--json", "p.json").exit_code == 0
    assert timed == [[1, 3, 4, 7, 8]]
    assert json.loads((folder / "p.json").read_text())["chosen"]["total_ms"] == pytest.approx(3 * 5 + 7 * 6)


def test_a_table_of_an_engine_that_does_not_run_here_is_enough(cli: Cli, auto: Path, folder: Path) -> None:
    from trtbatch.backends import tensorrt

    if tensorrt.obstacle() is None:
        pytest.skip("TensorRT runs here")
    change_sidecar(auto, engine={"backend": "tensorrt"})
    result = cli("plan", auto, "--traffic", traffic(folder, {3: 5, 8: 1}))
    assert result.exit_code == 0, result.output
    assert "doesn't run here: the times of batch 3 are interpolated" in result.output


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("--traffic", "traffic.csv", "--max-profiles", 0), 2, "--max-profiles 0"),
        (("--traffic", "nothing.csv"), 2, "--traffic nothing.csv: no such file"),
        (("--traffic", "wrong.csv"), 2, "wrong.csv, line 2: count '-1' is not a whole number"),
        (("--traffic", "traffic.csv", "--json", "p.txt"), 2, "p.txt doesn't end in .json"),
        ((), 2, "--traffic"),
    ],
)
def test_wrong_words(cli: Cli, auto: Path, folder: Path, args: tuple[object, ...], code: int, told: str) -> None:
    traffic(folder, {1: 1})
    (folder / "wrong.csv").write_text("batch,count\n8,-1\n")
    refused(cli("plan", *args), code, told)


def test_a_sidecar_that_cannot_be_written_is_told_before_anything_runs(
    cli: Cli, engine: Path, folder: Path, closed: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("plan", engine, "--traffic", traffic(folder, {3: 5}))
    closed(engine.parent)
    with monkeypatch.context() as patch:
        patch.setattr(planning, "time_profiles", None)
        result = cli(*line)
    refused(result, 1, f"the sidecar of {engine}: {engine.parent}: Read-only file system", "pass --no-save")
    assert cli(*line, "--no-save").exit_code == 0


def test_what_cannot_be_kept_in_the_end_is_shown_all_the_same(
    cli: Cli, auto: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def anew(artifact: Any, **fields: Any) -> None:
        raise ArtifactError(f"{artifact.path} was made anew meanwhile", "run the command again")

    monkeypatch.setattr(store, "rewrite", anew)
    result = cli("plan", "--traffic", traffic(folder, {3: 5}), "--json", "p.json")
    refused(result, 1, "isn't kept in the engine's sidecar", "was made anew meanwhile", "--no-save")
    assert "trtbatch build small.onnx --profile" in result.stdout
    assert json.loads((folder / "p.json").read_text())["saved"] is False


@pytest.mark.slow
def test_a_build_line_whose_onnx_file_is_gone_is_told(cli: Cli, engine: Path, folder: Path) -> None:
    (folder / "t.csv").write_text("batch,count\n3,5\n")
    line = ("plan", "engines/small.ort.onnx", "--traffic", "t.csv", "--no-save")
    assert "isn't there" not in cli(*line).output
    (folder / "small.onnx").rename(folder / "elsewhere.onnx")
    result = cli(*line)
    assert result.exit_code == 0
    assert "trtbatch build small.onnx" in result.output
    assert "warning: small.onnx (SHA-256 " in result.output
    assert "isn't there: bring it there before" in result.output
    change_sidecar(engine, source={"path": None})
    assert "isn't recorded: name it in the build line" in cli(*line).output


def test_a_file_of_one_batch_takes_no_profile(cli: Callable[..., Any], folder: Path) -> None:
    models.classifier(folder / "open.onnx")
    model = onnx.load("open.onnx")
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, "fixed.onnx")
    (folder / "t.csv").write_text("batch,count\n1,5\n8,2\n")
    assert cli("build", "fixed.onnx", "--backend", "onnxruntime", "--output", "f.ort.onnx").exit_code == 0
    done = cli("plan", "f.ort.onnx", "--traffic", "t.csv")
    assert done.exit_code == 2
    assert "has a fixed batch of 4: no profile can be added" in done.output
    line = ("build", "open.onnx", "--static", 4, "--backend", "onnxruntime", "--output", "s.ort.onnx")
    assert cli(*line).exit_code == 0
    assert cli("plan", "s.ort.onnx", "--traffic", "t.csv").exit_code == 0, "its file is open: profiles can be added"
