"""What the README says is what the program does, and what the kept results hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from scripts import article_table, bench_overhead
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
GPU = ROOT / "docs" / "gpu"
GPU_TESTS = ("test_engines", "test_models", "test_pipeline", "test_stress")


@pytest.mark.parametrize("command", ["export", "build", "infer", "bench", "verify", "inspect", "doctor"])
def test_every_option_that_it_names_exists_and_none_is_left_out(cli: Callable[..., Any], command: str) -> None:
    synopsis = re.search(rf"^    trtbatch {command} (?=\S*[\[A-Z]).*\n(?:^ {{10,}}.*\n)*", README, re.MULTILINE)
    assert synopsis is not None
    described = set(re.findall(r"--[a-z-]+", synopsis[0]))
    offered = set(re.findall(r"--[a-z][a-z-]+", cli(command, "--help").output)) - {"--help", "--debug"}
    assert described == offered


def test_the_table_of_bench_is_what_was_printed_on_the_gpu() -> None:
    kept = json.loads((GPU / "test_pipeline.json").read_text())
    lines = [line for test in kept["tests"] for line in test.get("printed", [])]
    shown = [line for line in README.splitlines() if line.startswith("│ ") and "execute_v2" in line]
    assert len(shown) == 6 and set(shown) <= set(lines)


def test_the_articles_table_is_the_kept_result() -> None:
    assert article_table.markdown(article_table.kept(GPU / "article.json")) in README


def test_the_overhead_is_the_kept_result_and_within_two_per_cent() -> None:
    rows = json.loads((GPU / "overhead.json").read_text())["rows"]
    assert bench_overhead.markdown(rows) in README
    assert {row["mode"] for row in rows} == {"execute_v2", "async"}
    assert max(row["ratio"] for row in rows) <= 1.02


def test_every_kept_result_names_its_script_commit_gpu_driver_and_versions() -> None:
    kept = sorted(GPU.glob("*.json"))
    assert {path.name for path in kept} >= {f"{name}.json" for name in ("article", "overhead", *GPU_TESTS)}
    for path in kept:
        data = json.loads(path.read_text())
        assert (ROOT / data["script"].split()[0]).is_file(), path
        environment = data["environment"]
        assert re.fullmatch(r"[0-9a-f]{12}", environment["commit"]), path
        assert environment["driver"] and data["device"]["gpu"] and environment["python"], path
        assert data.get("tools") or environment["libraries"], path
