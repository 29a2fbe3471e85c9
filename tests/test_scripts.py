"""The scripts that a new user runs first."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

TOOLS = ("bash", "dirname", "env", "grep", "readlink")


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
    done = subprocess.run(line, env={"PATH": str(tools)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    problem, fix = done.stderr.strip().splitlines()
    assert problem == "error: there is an NVIDIA GPU here, and no c++, with which pycuda is compiled"
    assert fix.startswith("fix: install the CUDA toolkit") and "--cpu" in fix
    assert not (clone / ".venv").exists()


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
    done = subprocess.run(line, env=around, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stdout + done.stderr
    problem, fix = done.stderr.strip().splitlines()
    assert problem == "error: there is no Python 3.13 here, for the tests without torch"
    assert fix.startswith("fix: install Python 3.13") and "PYTHON_LIGHT=" in fix
    assert not list(clone.glob(".venv*"))


def test_scripts_are_valid_shell() -> None:
    for name in ("quickstart", "test", "venv.sh", "gpu-check"):
        done = subprocess.run(["bash", "-n", str(ROOT / "scripts" / name)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
