"""What is printed of results that only a GPU gives."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from tests.support.results import result, row
from trtbatch.benchmark.bench import THROTTLED, BenchResult
from trtbatch.core.batches import Profile
from trtbatch.reporting import report
from trtbatch.util.serialization import decode
from trtbatch.util.statistics import summarize

PARTS = {"h2d": 0.2, "gpu": 0.15, "d2h": 0.01}
FULL = result(
    row(1, "async", bound="enqueue-bound", enqueue_ms=0.45),
    row(1, "graph", bound="compute-bound", enqueue_ms=0.01),
    row(1, "latency", bound="copy-bound", parts_ms=PARTS),
    row(32, "throughput", bound="copy-bound", parts_ms=PARTS, window=24),
)


def printed(table: Table, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_bound_is_in_the_table_and_named_with_its_threshold() -> None:
    table = printed(report.bench_table(FULL))
    for words in ("profile", "bound", "enqueue-bound", "compute-bound", "copy-bound", "stable"):
        assert words in table
    assert "…" not in table
    notes = "\n".join(report.footnotes(FULL))
    assert "enqueue-bound (batch 1 (async)): the CPU's median time of a launch is over 0.8 × the GPU's" in notes
    assert "copy-bound (batch 1 (latency), 32 (throughput)): the larger of h2d and d2h takes at least as long" in notes
    assert "compute-bound (batch 1 (graph)): none of these" in notes


def test_the_brief_table_fits_eighty_columns_with_every_mode() -> None:
    slow = replace(summarize(np.full(200, 98.7654), (90, 99)), stable=False, noise=0.123)
    lines = [replace(line, summary=slow, verdict=slow.verdict) for line in FULL.batches]
    table = printed(report.bench_table(result(*lines, row(128, "execute_v2")), brief=True), 80)
    assert "…" not in table
    assert "noise 12.3 %" in table
    assert "p99" in table
    assert "bound" not in table
    assert "CV" not in table


def test_the_parts_have_a_table_of_their_own() -> None:
    table = report.parts_table(FULL)
    assert table is not None
    shown = printed(table)
    line = next(line for line in shown.splitlines() if "latency" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        "1",
        "latency",
        "0.200",
        "0.150",
        "0.010",
        "0.360",
        "0.500",
    ]
    assert report.parts_table(result(row(1, "async"))) is None


def test_samples_under_other_clocks_are_told() -> None:
    few = row(8, "graph", bad=((50, 100),), faults=("software power cap",))
    many = row(16, "graph", bad=((0, 150),), faults=("changed clock",), verdict=THROTTLED)
    told = result(few, many)
    assert "throttled" in printed(report.bench_table(told))
    notes = "\n".join(report.footnotes(told))
    assert "batch 8, graph: 50 of 200 runs are bad (software power cap): left out" in notes
    assert "batch 16, graph: 150 of 200 runs are bad (changed clock): more than half" in notes
    assert "unstable at batch 16 (graph)" in notes
    assert "batch 8 (" not in notes


def test_what_was_wanted_and_what_was_reached() -> None:
    loose = replace(summarize(np.full(200, 0.5), (90, 99)), stable=False, noise=0.0234, drift=0.01)
    told = result(row(1, "graph", summary=loose, verdict=loose.verdict))
    assert "noise 2.4 %" in printed(report.bench_table(told))
    notes = "\n".join(report.footnotes(told))
    assert "wanted: the median to 0.5 %, and a drift of at most 3 %, within 3 s" in notes
    assert "reached: batch 1, graph: noise 2.4 %, drift +1.0 %. Stop other programs, or raise `min_time`" in notes


def test_the_csv_keeps_its_first_columns_and_ends_with_the_new_ones(tmp_path: Path) -> None:
    report.write_csv(FULL, tmp_path / "r.csv")
    lines = [line.split(",") for line in (tmp_path / "r.csv").read_text().splitlines()]
    assert lines[0][: len(report.CSV_FIELDS)] == list(report.CSV_FIELDS)
    assert lines[0][len(report.CSV_FIELDS) :] == ["ms_p90", "ms_p99", *report.CSV_LATER_FIELDS]
    assert lines[3][-9:] == ["1", "stable", "copy-bound", "", "0.2", "0.15", "0.01", "0", "0"]
    assert lines[1][-6] == "0.45"


def test_the_json_comes_back_and_so_does_that_of_an_older_release(tmp_path: Path) -> None:
    report.write_json(FULL, tmp_path / "r.json")
    data = json.loads((tmp_path / "r.json").read_text())
    assert decode(BenchResult, data, "r.json") == FULL
    later = ("verdict", "bound", "enqueue_ms", "parts_ms", "window", "bad", "faults")
    for line in data["batches"]:
        for name in later:
            line.pop(name, None)
    old = decode(BenchResult, data, "r.json")
    assert "stable" in printed(report.bench_table(old))
    assert report.parts_table(old) is None
    assert report.footnotes(old)


@pytest.mark.parametrize("brief", [True, False])
def test_one_profile_and_one_mode_have_no_columns(brief: bool) -> None:
    single = replace(result(row(1, "run")), profiles=(Profile(1, 4, 8),))
    table = printed(report.bench_table(single, brief))
    assert "profile" not in table
    assert "mode" not in table
    assert "bound" not in table
