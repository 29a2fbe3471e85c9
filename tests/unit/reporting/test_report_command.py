"""Results read back, their series, knees and charts, and ``trtbatch report``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from benchmarks import article_table
from tests.support.messages import refused
from tests.support.processes import ROOT, run_bare
from tests.support.results import BATCHES, row, saved, timed
from trtbatch.errors import ArtifactError
from trtbatch.reporting.charts import Bar, bars, rate_chart
from trtbatch.reporting.results import bench_result, clean, kept_ms, read_result
from trtbatch.reporting.series import ARTICLE_MS, Series, key, knee, series_of, shared
from trtbatch.reporting.summary import escaped, markdown, notes
from trtbatch.reporting.theme import AxisRange, apart, number, span, thinned, ticks
from trtbatch.util import optional

Cli = Callable[..., Any]


# The knee.


@pytest.mark.parametrize("corner", [3.0, 8.0, 20.0])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 7e4])
def test_the_knee_of_fixed_cost_plus_cost_per_sample(corner: float, scale: float) -> None:
    """ms = 1 + batch / corner: in log-log the slope of the rate is 1 / ms, and at the knee it is the chord's."""
    batches = [1, 2, 4, 8, 16, 32, 64]
    rates = [scale * batch / (1 + batch / corner) for batch in batches]
    chord = log(rates[-1] / rates[0]) / log(batches[-1] / batches[0])
    exact = corner * (1 / chord - 1)
    found = knee(batches, rates)
    assert found is not None
    assert found / 2 < exact < found * 2
    if corner == 8.0:  # in the middle of the range: where both costs are alike
        assert exact == pytest.approx(8.0)
        assert found == 8


def test_the_knee_of_a_sharp_corner_is_the_corner() -> None:
    batches = list(range(1, 33))
    assert knee(batches, [min(batch, 12) for batch in batches]) == 12


@pytest.mark.parametrize(
    "rate",
    [
        lambda batch: 100.0 * batch,
        lambda batch: 100.0,
        lambda batch: 100.0 * batch**0.5,
        lambda batch: 50.0 + batch**2,
        lambda batch: 100.0 * (1 + 0.02 * (-1) ** batch),
    ],
    ids=["perfect", "none", "power law", "bends upward", "noise"],
)
def test_a_line_without_a_bend_has_no_knee(rate: Callable[[int], float]) -> None:
    assert knee(BATCHES, [rate(batch) for batch in BATCHES]) is None


def test_two_points_have_no_knee() -> None:
    assert knee([1, 2], [1.0, 1.0]) is None
    assert knee([], []) is None


# Series.


def test_the_article_is_that_of_the_script_and_of_the_kept_run() -> None:
    assert ARTICLE_MS == article_table.ARTICLE_MS
    kept = json.loads((ROOT / "docs/gpu/article.json").read_text())["article_ms"]
    assert {int(batch): ms for batch, ms in kept.items()} == ARTICLE_MS


def test_a_saved_run_is_read_with_its_own_figures(tmp_path: Path) -> None:
    made = timed(lambda batch: 0.4 + 0.02 * batch, precision="tf32", model="resnet18")
    found = read_result(saved(tmp_path / "r.json", replace(made, tools={"tensorrt": "8.6.0"})))
    (line,) = series_of([("r.json", found)])
    for point, measured in zip(line.points, found.batches, strict=True):
        assert point.ms == pytest.approx(np.median(measured.samples_ms), rel=1e-5)
        assert point.p99 == pytest.approx(np.percentile(measured.samples_ms, 99), rel=1e-5)
    assert line.label == "resnet18 · tensorrt 8.6.0 · tf32 · NVIDIA H200"


def test_labels_have_all_that_differs_and_no_more() -> None:
    first, second = timed(lambda b: 1.0), timed(lambda b: 1.0, mode="async", precision="int8")
    both = replace(first, batches=(*first.batches, *second.batches))
    assert [line.label for line in series_of([("a.json", both)])] == ["graph", "async"]
    assert [line.label for line in series_of([("a.json", first), ("b.json", second)])] == [
        "fp16 · graph",
        "int8 · async",
    ]
    assert [line.label for line in series_of([("a.json", first), ("b.json", first)])] == ["a.json", "b.json"]
    assert [line.label for line in series_of([("a.json", first)] * 2)] == ["net (1)", "net (2)"]
    assert shared([("a.json", first), ("b.json", second)]) == "net · tensorrt · NVIDIA H200"


def test_keys_go_on_behind_z() -> None:
    assert [key(index) for index in (0, 25, 26, 51, 52)] == ["A", "Z", "AA", "AZ", "BA"]


def test_bad_samples_are_left_out_unless_most_are() -> None:
    line = row(1, "graph", samples_ms=(1.0, 9.0, 9.0, 1.0), bad=((1, 3),))
    assert kept_ms(line).tolist() == [1.0, 1.0]
    assert kept_ms(replace(line, verdict="throttled")).size == 4
    assert kept_ms(replace(line, bad=((0, 4),))).size == 4


# Reading.


def _damaged(change: Callable[[dict[str, Any]], None]) -> Any:
    from trtbatch.util.serialization import encode

    data = json.loads(json.dumps(encode(timed(lambda b: 1.0))))
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.pop("batches"), "or damaged: it lacks 'batches'"),
        (lambda d: d.update(batches=[]), "it has no batches"),
        (lambda d: d["batches"][0].update(samples_ms=[]), "batch 1 (graph) has no samples"),
        (lambda d: d["batches"][0].update(samples_ms=[1.0, 0.0]), "samples that are no times"),
        (lambda d: d["batches"][0].update(samples_ms=[1.0, float("nan")]), "samples that are no times"),
        (lambda d: d["batches"][0].update(samples_ms=[10**400]), "a number without end"),
        (lambda d: d["batches"][1].update(batch=1), "batch 1 (graph) is there twice"),
        (lambda d: d["batches"][1].update(batch=0), "is not a batch size"),
        (lambda d: d["batches"][0].update(bad=[[5, 1000]]), "names bad samples that it hasn't"),
        (lambda d: d["batches"][0].update(mode=3), "damaged: mode of entry 0 of batches is 3, not text"),
        (lambda d: d["profiles"][0].update(min=0), "profile 0:1:1 is impossible"),
        (lambda d: d.update(format_version=2), "a newer trtbatch"),
    ],
)
def test_figures_that_cannot_be_are_refused_by_name(change: Callable[[dict[str, Any]], None], told: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        bench_result(_damaged(change), "r.json")
    assert told in caught.value.problem
    assert "r.json" in caught.value.problem


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "bad.json is damaged, or not JSON"),
        (b'{"engine": "x"', "bad.json is damaged, or not JSON"),
        (b"\xff\xfe\x00", "bad.json is not a result: it isn't text"),
        (b"[1, 2]", "bad.json is not a result of one engine: it is a JSON list"),
        (b"{}", "bad.json is not a result of bench"),
        (b'{"a": {}, "b": {}, "lines": []}', "it is what bench --against wrote"),
        (b'{"profiles": [], "lines": []}', "it is what bench --compare-profiles wrote"),
        (b"[" * 100_000, "bad.json is damaged, or not JSON"),
        (b'{"batches": ' + b"9" * 5000 + b"}", "bad.json is damaged, or not JSON"),
    ],
)
def test_one_bad_file_stops_all_and_nothing_is_written(cli: Cli, folder: Path, content: bytes, told: str) -> None:
    saved(folder / "good.json", timed(lambda b: 1.0))
    (folder / "bad.json").write_bytes(content)
    before = sorted(folder.iterdir())
    refused(cli("report", "good.json", "bad.json", "--html", "r.html", "--markdown", "r.md"), 1, told, "bench --json")
    assert sorted(folder.iterdir()) == before


def test_a_missing_file_and_a_folder(cli: Cli, folder: Path) -> None:
    refused(cli("report", "no.json"), 1, "no.json doesn't exist", "trtbatch bench --json")
    refused(cli("report", folder), 1, str(folder))
    refused(cli("report"), 2, "RESULT.json")


@pytest.mark.parametrize(
    "line",
    [
        ("--html", "a.json"),
        ("--html", "engines"),
        ("--png", "r.svg"),
        ("--html", "r.html", "--svg", "r.html"),
        ("--html=linked.html",),
    ],
)
def test_outputs_never_replace_inputs_or_each_other(cli: Cli, folder: Path, line: tuple[str, ...]) -> None:
    saved(folder / "a.json", timed(lambda b: 1.0))
    (folder / "linked.html").symlink_to(folder / "a.json")
    (folder / "engines").mkdir()
    before = (folder / "a.json").read_bytes()
    assert cli("report", "a.json", *line).exit_code == 2
    assert (folder / "a.json").read_bytes() == before
    assert not (folder / "r.html").exists()


def test_text_from_files_is_one_line_without_codes() -> None:
    assert clean("a\x1b[31mb\x00\n c\ud800\u202ed") == "a\ufffd[31mb\ufffd c\ufffd\ufffdd"
    assert clean("x" * 200) == "x" * 119 + "…"
    assert clean("résnet – 18 µ") == "résnet – 18 µ"


# What is printed.


def test_without_an_option_a_table_and_a_chart_are_printed(cli: Cli, folder: Path) -> None:
    saved(
        folder / "a.json",
        timed(lambda b: 0.2 + 0.025 * b, bound=lambda b: "enqueue-bound" if b < 4 else "compute-bound"),
    )
    saved(folder / "b.json", timed(lambda b: 0.4 + 0.025 * b, precision="int8"))
    shown = cli("report", "a.json", "b.json")
    assert shown.exit_code == 0, shown.output
    for words in (
        "A: fp16",
        "B: int8",
        "launch",
        "compute",
        "knee at batch 8",
        "Kneedle",
        "█",
        "samples/s by batch size",
    ):
        assert words in shown.output
    assert "V100" not in shown.output
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "b.json"]


def test_the_article_stands_beside_resnet18_and_where_it_is_asked_for(cli: Cli, folder: Path) -> None:
    saved(folder / "net.json", timed(lambda b: 1.0))
    saved(folder / "resnet.json", timed(lambda b: 1.0, model="resnet18"))
    assert "V100" in cli("report", "resnet.json").output
    assert "V100" not in cli("report", "net.json").output
    assert "V100" in cli("report", "net.json", "--article").output
    assert "V100" not in cli("report", "resnet.json", "--no-article").output


def test_markdown_is_printed_or_written(cli: Cli, folder: Path) -> None:
    saved(folder / "a.json", timed(lambda b: 0.2 + 0.025 * b))
    printed = [cli("report", *line).stdout for line in (("a.json", "--markdown"), ("--markdown", "a.json"))]
    assert printed[0] == printed[1]
    assert printed[0].startswith("### net")
    assert "| 8 | 20,000 | 0.400 |" in printed[0]
    for line in (("a.json", "--markdown", "t.md"), ("--markdown=t.md", "a.json")):
        done = cli("report", *line)
        assert done.exit_code == 0
        assert done.output.strip() == "t.md"
        assert (folder / "t.md").read_text() == printed[0]
        (folder / "t.md").unlink()


def test_markdown_takes_names_as_text() -> None:
    assert escaped("a|b <i> *c* `d` [e](https://f)") == r"a\|b &lt;i&gt; \*c\* \`d\` \[e\](https:\//f)"
    found = [("x.json", timed(lambda b: 1.0, model="<script>|x|"))]
    text = markdown(series_of(found), shared(found))
    assert "<script>" not in text
    assert "&lt;script&gt;\\|x\\|" in text


def test_notes_say_what_is_not_known() -> None:
    plain = "\n".join(notes(series_of([("a", timed(lambda b: 1.0))])))
    assert "No bound is known of A" in plain
    assert "memory" not in plain
    known = "\n".join(notes(series_of([("a", timed(lambda b: 1.0, bound=lambda b: "compute-bound"))])))
    assert "memory, where it is known that moving" in known
    assert "over 0.6 of the GPU's time" in known
    assert "the p99 is the longest, or nearly: batch 1, 2, 4," in plain
    assert "the longest" not in "\n".join(notes(series_of([("a", timed(lambda b: 1.0, samples=100))])))
    measured = timed(lambda b: 1.0, mode="throughput")
    windows = replace(measured, batches=tuple(replace(line, window=24) for line in measured.batches))
    assert "its p99 is not that of single batches" in "\n".join(notes(series_of([("a", windows)])))


# Bars.


def test_bars_are_as_long_as_their_values() -> None:
    assert bars([Bar("1", 50, "50"), Bar("16", 100, "100")], 28) == [
        f" 1 {'█' * 10}▌ 50",
        f"16 {'█' * 21} 100",
    ]
    assert bars([Bar("1", 1, "1"), Bar("2", 1e9, "2")], 40)[0] == "1 ▏ 1"
    assert bars([Bar("1", 1, "1"), Bar("2", 2, "2")], 24, ascii_only=True) == ["1 ########## 1", "2 " + "#" * 20 + " 2"]


@pytest.mark.parametrize("width", range(0, 200, 7))
@pytest.mark.parametrize("ascii_only", [True, False])
def test_no_chart_is_wider_than_its_terminal(width: int, ascii_only: bool) -> None:
    lines = series_of([("a", timed(lambda b: 0.2 + 0.025 * b)), ("b", timed(lambda b: 3.0, mode="async"))])
    chart = rate_chart(lines, ["graph", "async"], width, ascii_only)
    assert all(len(line) <= width for line in chart)
    assert bool(chart) if width >= 50 else width >= 35 or not chart
    assert not ascii_only or all(line.isascii() for line in chart)


def test_one_batch_has_no_chart() -> None:
    assert rate_chart(series_of([("a", timed(lambda b: 1.0, batches=(4,)))]), ["a"], 100) == []


def test_bench_ends_with_a_chart_and_report_reads_what_it_wrote(cli: Cli, engine: Path, folder: Path) -> None:
    line = ("bench", "--mode", "run,latency", "--iterations", 30)
    several = cli(*line, "--batch", "1,2,4,8", "--json", "r.json")
    lines = several.output.splitlines()
    assert several.exit_code == 0
    assert lines[-1] == "r.json"
    assert lines[-10] == "samples/s by batch size"
    assert lines[-9].startswith("1 run     █")
    assert "samples/s by batch size" not in cli(*line, "--batch", 8).output
    shown = cli("report", "r.json", "--html", "r.html", "--markdown", "r.md")
    assert shown.exit_code == 0, shown.output
    assert shown.output.split() == ["r.html", "r.md"]
    text = (folder / "r.md").read_text()
    assert "A: run" in text
    assert "B: latency" in text
    assert "InferenceSession.run" in text


@pytest.mark.process
def test_the_chart_needs_no_unicode(engine: Path, folder: Path) -> None:
    import subprocess

    from tests.support.processes import child_environment

    done = subprocess.run(
        [sys.executable, "-m", "trtbatch", "bench", "--batch", "1,8", "--iterations", "5"],
        check=False,
        cwd=folder,
        capture_output=True,
        env=child_environment() | {"PYTHONIOENCODING": "ascii:replace", "NO_COLOR": "1"},
    )
    assert done.returncode == 0
    assert b"1 #" in done.stdout
    assert b"\x1b" not in done.stdout


# Axes.


@pytest.mark.parametrize("values", [(1.0,), (0.48, 8.65), (1.0, 1.001), (1e-9, 1e12), (100.0, 131.0), (3.0, 4.0)])
def test_every_axis_has_ticks_inside_and_numbers_that_differ(values: tuple[float, ...]) -> None:
    axis = span(values)
    found = ticks(axis)
    assert 3 <= len(found) <= 12
    assert all(axis.low <= value <= axis.high for value in found)
    assert found == sorted(set(found))
    assert len({number(value) for value in found}) == len(found)
    assert all(0 < axis.share(value) < 1 for value in values)


def test_batch_sizes_are_named_where_there_is_room_and_the_largest_always() -> None:
    assert thinned(list(range(1, 129)), AxisRange(0.9, 140.0), 0.06)[-1] == 128
    assert thinned([1, 2, 4, 8], AxisRange(0.9, 9.0), 0.06) == [1, 2, 4, 8]
    assert thinned([4], AxisRange(2.0, 8.0), 0.06) == [4]


def test_names_are_moved_apart() -> None:
    assert apart([5.0, 0.0, 5.5], 2.0, 9.0) == [5.0, 0.0, 7.0]
    assert apart([], 1.0, 1.0) == []
    assert apart([5.0, 0.0, 5.5], 2.0, 6.0) == [4.0, 0.0, 6.0], "and stay inside"


# Pictures.


@pytest.mark.slow
def test_pictures_are_the_same_every_time(cli: Cli, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    dollars = "$\\frac{1}{0}$ <script> _x"
    saved(folder / "a.json", timed(lambda b: 0.2 + 0.025 * b, model=dollars, precision=dollars))
    saved(folder / "b.json", timed(lambda b: 0.4, batches=(4,), mode="async", model=dollars))
    for name in ("1", "2"):
        done = cli("report", "a.json", "b.json", "--article", "--png", f"{name}.png", "--svg", f"{name}.svg")
        assert done.exit_code == 0, done.output
    for kind in ("png", "svg"):
        assert (folder / f"1.{kind}").read_bytes() == (folder / f"2.{kind}").read_bytes()
    with Image.open(folder / "1.png") as image:
        assert image.width > 1000
        assert image.height > 400
    root = ElementTree.parse(folder / "1.svg").getroot()
    assert root.tag.endswith("svg")
    assert not list(root.iter("{http://purl.org/dc/elements/1.1/}date"))


def test_without_matplotlib_nothing_is_written(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(folder / "a.json", timed(lambda b: 1.0))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(optional, "EXTRAS", optional.EXTRAS | {"matplotlib": "report"})
    done = cli("report", "a.json", "--html", "r.html", "--png", "r.png")
    refused(done, 1, "matplotlib is needed to draw PNG charts, and isn't installed", "trtbatch[report]")
    assert [path.name for path in folder.iterdir()] == ["a.json"]


@pytest.mark.process
def test_a_page_is_made_without_heavy_packages(tmp_path: Path) -> None:
    saved(tmp_path / "a.json", timed(lambda b: 1.0))
    code = (
        "sys.argv = 'trtbatch report a.json --html r.html'.split(); runpy.run_module('trtbatch', run_name='__main__')"
    )
    done = run_bare(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r.html").is_file()


def test_the_reference_has_no_percentiles() -> None:
    lines: list[Series] = series_of([("a", timed(lambda b: 1.0))], with_article=True)
    assert lines[-1].result is None
    assert all(point.p99 is None and point.bound is None for point in lines[-1].points)
