"""The scripts that a new user runs first."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import summary
from scripts import test_summary
from tests.support.processes import ROOT

TOOLS = ("bash", "dirname", "env", "grep", "readlink")


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix" or not all(map(shutil.which, TOOLS)), reason="needs a POSIX shell")
def test_quickstart_tells_before_it_installs_what_pycuda_needs(tmp_path: Path) -> None:
    """A machine that has a GPU and no compiler: two lines, and nothing was set up."""
    clone, tools = tmp_path / "clone", tmp_path / "bin"
    tools.mkdir()
    shutil.copytree(ROOT / "scripts", clone / "scripts")
    for name in TOOLS:
        (tools / name).symlink_to(str(shutil.which(name)))
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: one'\n")
    (tools / "nvidia-smi").chmod(0o755)
    line = [str(tools / "bash"), str(clone / "scripts" / "quickstart")]
    done = subprocess.run(line, check=False, env={"PATH": str(tools)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    problem, fix = done.stderr.strip().splitlines()
    assert problem == "error: there is an NVIDIA GPU here, and no c++, with which pycuda is compiled"
    assert fix.startswith("fix: install the CUDA toolkit")
    assert "--cpu" in fix
    assert not (clone / ".venv").exists()


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix" or not all(map(shutil.which, TOOLS)), reason="needs a POSIX shell")
def test_continuous_integration_leaves_no_environment_out(tmp_path: Path) -> None:
    """Where CI is set, a machine without Python 3.13 is an error, before anything is installed."""
    clone, tools = tmp_path / "clone", tmp_path / "bin"
    tools.mkdir()
    shutil.copytree(ROOT / "scripts", clone / "scripts")
    for name in TOOLS:
        (tools / name).symlink_to(str(shutil.which(name)))
    line = [str(tools / "bash"), str(clone / "scripts" / "test")]
    around = {"PATH": str(tools), "HOME": str(tmp_path), "CI": "true"}
    done = subprocess.run(line, check=False, env=around, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stdout + done.stderr
    problem, fix = done.stderr.strip().splitlines()
    assert problem == "error: there is no Python 3.13 here, for the tests without torch"
    assert fix.startswith("fix: install Python 3.13")
    assert "PYTHON_LIGHT=" in fix
    assert not list(clone.glob(".venv*"))


@pytest.mark.process
def test_scripts_are_valid_shell() -> None:
    for name in ("quickstart", "test", "venv.sh", "gpu-check"):
        done = subprocess.run(["bash", "-n", str(ROOT / "scripts" / name)], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


XML = """<testsuites><testsuite>
<testcase classname="tests.gpu.test_x" name="test_the_bench_line_prints_a_table_of_every_batch"><system-out>
weights  random
┏━━━┓
┃ a ┃
│ 1 │
r.json
</system-out></testcase>
<testcase classname="tests.gpu.test_x" name="test_b"><system-out>long</system-out></testcase>
<testcase classname="tests.gpu.test_x" name="test_c"><skipped/></testcase>
</testsuite></testsuites>"""


def test_a_summary_of_tests_has_names_by_outcome_and_what_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "tests.xml").write_text(XML)
    assert test_summary.main(str(tmp_path / "out.json"), str(tmp_path / "tests.xml")) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["counts"] == {"passed": 2, "failure": 0, "error": 0, "skipped": 1}
    assert found["passed"] == ["test_the_bench_line_prints_a_table_of_every_batch", "test_b"]
    assert found["skipped"] == ["test_c"]
    assert found["files"] == ["tests.gpu.test_x"]
    assert found["printed"] == ["┃ a ┃", "│ 1 │", "r.json"]
    assert found["environment"]["commit"]


def test_a_result_has_a_line_for_each_row() -> None:
    data = {"ms": [1, 2], "rows": [{"ms": 0.5}, {"ms": 0.25}], "name": "×", "none": []}
    text = summary.text(data)
    assert json.loads(text) == data
    assert text.splitlines()[1:5] == [' "ms": [1, 2],', ' "rows": [', '  {"ms": 0.5},', '  {"ms": 0.25}']
