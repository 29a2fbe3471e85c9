"""What README.md and the pages below docs/ say is what the program does, and what the kept results hold."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from benchmarks import (
    article_table,
    bench_overhead,
    build_times,
    bytes_table,
    images,
    performance,
    precision_table,
    prefix_table,
    scale_table,
    sessions,
)
from tests.support.pages import MYMODELS, PAGES, REFERENCE
from tests.support.processes import COMMANDS, ROOT
from trtbatch.cli.app import app

README = (ROOT / "README.md").read_text(encoding="utf-8")
GPU = ROOT / "docs" / "gpu"
PRECISION = (ROOT / "docs" / "guides" / "precision.md").read_text(encoding="utf-8")
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
GPU_TESTS = (
    "api",
    "consumer",
    "engines",
    "images",
    "models",
    "pipeline",
    "precision",
    "preprocessor",
    "speed",
    "stress",
)


def test_the_readme_is_short_and_names_the_test_command() -> None:
    assert len(README.splitlines()) <= 250
    assert "`scripts/test`" in README


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_that_it_names_exists_and_none_is_left_out(command: str) -> None:
    synopsis = re.search(rf"^    trtbatch {command} (?=\S*[\[A-Z]).*\n(?:^ {{10,}}.*\n)*", REFERENCE, re.MULTILINE)
    assert synopsis is not None
    described = set(re.findall(r"--[a-z0-9-]+", synopsis[0]))
    found: Any = get_command(app)
    for name in command.split():
        found = found.commands[name]
    parameters = found.params
    offered = {name for each in parameters for name in (*each.opts, *each.secondary_opts) if name.startswith("--")}
    assert described == offered - {"--help", "--debug"}


def test_the_table_of_bench_is_what_was_printed_on_the_gpu() -> None:
    kept = json.loads((GPU / "test_pipeline.json").read_text())
    lines = block("$ trtbatch bench --batch 1,2,4,...,32 --mode execute_v2,async --json r.json")[1:]
    shown = [line for line in lines if line[0] not in "┏┡└"]  # borders
    assert sum("execute_v2 │" in line for line in shown) == 6
    assert shown == kept["printed"]
    assert kept["device"]["gpu"] in shown[0]
    assert "On one H200 with TensorRT 8.6.0, both modes" in REFERENCE


ARTICLE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        features = self.conv(x).mean((2, 3))
        return torch.cat([self.head(features[:1]), torch.zeros(x.shape[0] - 1, 5)])


def net():
    return Net()
"""


def block(start: str) -> list[str]:
    """The lines of the reference from this one to the end of its block."""
    lines = REFERENCE.splitlines()
    first = next(index for index, line in enumerate(lines) if line.strip() == start)
    return list(itertools.takewhile(lambda line: line.strip() not in ("", "```"), (x.strip() for x in lines[first:])))


@pytest.mark.torch
def test_verify_prints_of_the_articles_bug_what_is_shown(cli: Callable[..., Any], folder: Path) -> None:
    (folder / "article.py").write_text(ARTICLE)
    assert cli("export", "article:net", "--dynamic", "--input-shape", "3,32,32").exit_code == 0
    assert cli("build", "--max", 8).exit_code == 1
    assert cli("build", "--max", 8, "--no-verify").exit_code == 0
    printed = cli("verify").output
    shown = block("$ trtbatch verify")[1:]
    assert len(shown) == 11
    for line in shown:
        if not line.startswith("reference:"):  # which tells the version of ONNX Runtime
            assert line in printed, printed


@pytest.mark.torch
def test_export_prints_of_a_baked_batch_what_is_shown(cli: Callable[..., Any], folder: Path) -> None:
    (folder / "mymodels.py").write_text(MYMODELS)
    printed = cli("export", "mymodels:net", "--dynamic").output
    for line in block("$ trtbatch export mymodels:net --dynamic")[1:]:
        assert line in printed, printed


def test_the_articles_table_is_the_kept_result() -> None:
    assert article_table.markdown(kept_on_gpu("article")) in README


def test_the_table_of_sessions_is_the_kept_result() -> None:
    assert sessions.markdown(json.loads((GPU / "sessions.json").read_text())["rows"]) in REFERENCE


def test_the_overhead_is_the_kept_result_and_within_two_per_cent() -> None:
    rows = json.loads((GPU / "overhead.json").read_text())["rows"]
    assert bench_overhead.markdown(rows) in REFERENCE
    assert {row["mode"] for row in rows} == {"execute_v2", "async", "graph"}
    assert max(row["ratio"] for row in rows) <= 1.02


def test_the_table_of_precisions_is_the_kept_result_and_holds_its_ratios() -> None:
    rows = json.loads((GPU / "precision.json").read_text())["rows"]
    assert precision_table.markdown(rows) in PRECISION
    ms = {row["precision"]: row["ms"] for row in rows if row["model"] == "resnet18"}
    assert ms["tf32"]["32"] / ms["fp16"]["32"] >= 2
    assert ms["int8"]["128"] < ms["fp16"]["128"]
    assert all(row["passed"] for row in rows)


def test_every_kept_result_names_its_script_commit_gpu_driver_and_versions() -> None:
    kept = sorted(GPU.glob("*.json"))
    names = ("article", "overhead", *(f"test_{name}" for name in GPU_TESTS))
    assert {path.name for path in kept} >= {f"{name}.json" for name in names}
    for path in kept:
        data = json.loads(path.read_text())
        assert (ROOT / data["script"].split()[0]).is_file(), path
        environment = data["environment"]
        assert re.fullmatch(r"[0-9a-f]{12}", environment["commit"]), path
        assert environment["driver"], path
        assert data["device"]["gpu"], path
        assert environment["python"], path
        assert data.get("tools") or environment["libraries"], path


def test_kept_results_are_summaries() -> None:
    kept = [*GPU.glob("*.json"), *(ROOT / "docs" / "cpu").glob("*.json")]
    assert kept
    assert {path.name: path.stat().st_size for path in kept if path.stat().st_size > 5 * 1024} == {}


def kept_on_gpu(name: str) -> Any:
    return json.loads((GPU / f"{name}.json").read_text())


def test_performance_has_the_tables_that_its_scripts_print() -> None:
    kept = kept_on_gpu("performance")
    times, figures = performance.markdown(kept).split("\n\n")
    assert times in PERFORMANCE
    assert times in REFERENCE
    assert figures in PERFORMANCE
    assert f'"the H100" is one {kept["device"]["gpu"]}' in PERFORMANCE
    assert "on one H100 with TensorRT 8.6.0" in REFERENCE
    assert kept["tools"]["tensorrt"] == "8.6.0"
    assert build_times.markdown(kept_on_gpu("build_times")["rows"]) in PERFORMANCE
    pipeline = json.loads((ROOT / "docs" / "cpu" / "pipeline_overhead.json").read_text())
    assert f"{pipeline['ratio']:.3f} times" in PERFORMANCE
    assert pipeline["ratio"] <= 1.03


def test_performance_quotes_what_the_kept_runs_hold() -> None:
    text = " ".join(PERFORMANCE.split())
    kept, later, earlier = map(kept_on_gpu, ("performance", "performance_h200", "performance_h200_earlier"))
    now, after, before = (each["profiles"][0] for each in (kept, later, earlier))
    assert {each["device"]["gpu"] for each in (later, earlier)} == {"NVIDIA H200"}
    assert {row["batch"] for row in (now, after, before)} == {1}
    growth = after["static_ms"] / before["static_ms"] - 1
    seconds, gpu_ms = kept["builds"]["seconds"], (kept["latency"]["gpu"], later["latency"]["gpu"])
    built = {row["way"]: row["build_seconds"] for row in kept_on_gpu("build_times")["rows"]}
    second = kept["profiles"][1]
    assert second["batch"] == 2
    for quoted in (
        f"as at batch 2 ({second['auto_over_static']:.3f} of its time)",
        f"took {before['static_ms']:.4f} ms in the earlier run",
        f"and {after['static_ms']:.4f} ms in the later one",
        f", {growth:.0%} more.".replace("%", " %"),
        f"took {before['auto_ms']:.4f} ms and {after['auto_ms']:.4f} ms",
        f"{before['auto_over_one']:.3f} and {after['auto_over_one']:.3f} of what 1:16:32 took",
        f"{before['auto_over_static']:.3f} and {after['auto_over_static']:.3f} of what the engine built for"
        " batch 1 took",
        f"On the H100 that gave {now['auto_over_one']:.3f} and {now['auto_over_static']:.3f};",
        f"is {gpu_ms[0]:.4f} ms here, where one engine ran alone, and {now['auto_ms']:.4f} ms in the first table",
        f"({gpu_ms[1]:.4f} ms and {after['auto_ms']:.4f} ms)",
        f"took {seconds['auto']:.1f} s to build, and 1:16:32 {seconds['one']:.1f} s: "
        f"{kept['builds']['auto_over_one']:.2f} times one",
        f"then take {built['several'] / built['one']:.2f} times one (*several*)",
        f"one build took {later['builds']['auto_over_one']:.2f} times one",
    ):
        assert quoted in text, quoted
    assert f"took {kept['builds']['auto_over_one']:.2f} times as long as 1:16:32" in REFERENCE
    assert f"holds {kept['memory']['auto_over_one_in_use']:.2f} times the device memory" in REFERENCE


def test_performance_is_within_the_projects_bounds() -> None:
    kept = kept_on_gpu("performance")
    rows = {row["batch"]: row for row in kept["profiles"]}
    assert set(rows) == set(performance.STATIC) == {1, 2, 4, 8, 16, 24, 32}
    assert all(row["auto_over_static"] <= 1.03 for row in rows.values())
    assert all(rows[batch]["auto_over_one"] <= most for batch, most in ((1, 0.82), (2, 0.86), (4, 0.93)))
    assert {row["batch"] for row in kept["graph"]} == {1, 32}
    assert all(row["graph_over_bare"] <= 1.01 for row in kept["graph"])
    assert kept["latency"]["latency_over_parts"] <= 1.05
    assert kept["throughput"]["of_the_bound"] >= 0.95
    assert kept["memory"]["auto_over_one_in_use"] <= 1.3


def test_images_have_the_figures_that_were_kept() -> None:
    kept = kept_on_gpu("images")
    assert images.markdown(kept) in PERFORMANCE
    figures = kept["figures"]
    assert figures["broken_named"]
    assert figures["broken_rest_right"]
    assert figures["broken_over_clean"] >= 0.7
    assert figures["infer_images_per_s"] >= 18_000
    assert figures["infer_over_fastest_dali"] >= 0.9
    assert figures["host_over_threads"]["16"] >= 0.95
    readers = figures["readers"]
    assert readers["mean_difference"] <= 1
    assert readers["nearest_is_own"] >= 0.999
    assert readers["two_swapped_are_found"]


def test_ways_to_write_a_prefix_have_the_figures_that_were_kept() -> None:
    kept = kept_on_gpu("prefix")
    assert prefix_table.markdown(kept["rows"]) + "\n\n" in PERFORMANCE
    rows = {row["way"]: row for row in kept["rows"]}
    assert tuple(rows) == prefix_table.SHOWN
    assert "int8 planar" in kept["failed"]
    assert "Assertion" in kept["failed"]["int8 planar"]
    for kind in prefix_table.PRECISIONS:
        written = [f"{kind} {layout}looked up as it is, one node" for layout in ("", "planar, ")]
        assert all(rows[way]["more_ms"] - kept["least"][kind]["more_ms"] <= 0.003 for way in written)


def test_bytes_have_the_figures_that_were_kept() -> None:
    rows = {row["engine"]: row for row in kept_on_gpu("bytes")["rows"]}
    assert bytes_table.markdown(list(rows.values())) in PERFORMANCE
    text = " ".join(PERFORMANCE.split())
    more = {name: f"{row['gpu_over_float32'] - 1:.1%}".replace("%", " %") for name, row in rows.items()}
    assert f"costs {more['fp16-NHWC']} of the GPU's time in fp16, and {more['int8-NHWC']} in int8" in text
    assert f"for NCHW {more['fp16-NCHW']} and {more['int8-NCHW']}" in text
    assert f"{rows['fp16-NHWC']['of_gpu_samples_per_s_float32']:.3f} of it in fp16" in text
    assert f"{rows['int8-NHWC']['of_float32_upload_ceiling']:.2f} times what floats could reach" in text


def test_bytes_are_within_the_projects_bounds() -> None:
    rows = {row["engine"]: row for row in kept_on_gpu("bytes")["rows"]}
    for layout in ("NHWC", "NCHW"):
        assert rows[f"fp16-{layout}"]["gpu_over_float32"] <= 1.04
        assert rows[f"fp16-{layout}"]["of_gpu_samples_per_s_float32"] >= 0.92
        assert rows[f"int8-{layout}"]["of_float32_upload_ceiling"] >= 1.5


def test_two_gpus_have_the_figures_that_were_kept() -> None:
    kept = kept_on_gpu("scale")
    assert scale_table.markdown(kept) in PERFORMANCE
    assert kept["actors"] == 2
    assert kept["several_over_one"] >= 1.9
    one, two = ([run["rows_per_s"] for run in kept["rounds"][actors]] for actors in ("1", "2"))
    ratios = [f"{over / under:.2f}" for over, under in zip(two, one)]
    assert f"they reached {ratios[0]}, {ratios[1]} and {ratios[2]}" in PERFORMANCE
    runs = [run for several in kept["rounds"].values() for run in several]
    assert all(run["rows"] == kept["samples"] and not run["failed"] for run in runs)
