"""``trtbatch`` in processes of its own, and what they need."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

COMMANDS = (
    *("export", "build", "infer", "bench", "tune", "plan", "report", "compare", "verify", "inspect", "doctor"),
    *("export-preprocessor", "deploy triton"),
)
"""Every command that does something."""


OTHERS = {"export": os.environ.get("TRTBATCH_EXPORT_PYTHON"), "build": os.environ.get("TRTBATCH_BUILD_PYTHON")}
"""Interpreters that export and build where this one can't: it has no torch, or only TensorRT's lean runtime."""

EXPORT_PYTHON = OTHERS["export"]


def run_process(
    *args: object, cwd: Path, timeout: float = 600, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """``trtbatch ARGS`` as its own process, by one of :data:`OTHERS` where it is named; it builds for any release."""
    python, around = sys.executable, child_environment()
    other = OTHERS.get(str(args[0]))
    if other is not None:
        python, around = other, around | {"PYTHONPATH": str(ROOT)}
        around.pop("LD_LIBRARY_PATH", None)
        args = (*args, "--version-compatible") if args[0] == "build" else args
    return subprocess.run(
        [python, "-m", "trtbatch", *map(str, args)],
        check=False,
        cwd=cwd,
        timeout=timeout,
        capture_output=True,
        text=True,
        env=around | (env or {}),
    )


def run_with_file_limit(limit: int, *args: object, cwd: Path, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """``trtbatch ARGS`` as its own process, in which no file may have more than `limit` bytes, as on a full disk."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        f"from trtbatch.cli import main; sys.argv = {['trtbatch', *map(str, args)]}; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=cwd,
        timeout=timeout,
        capture_output=True,
        text=True,
        env=child_environment(),
    )


def needs_export() -> None:
    """Skip the test where no Python here sees torch."""
    if EXPORT_PYTHON is None:
        pytest.importorskip("torch", reason="export needs torch")


def child_environment() -> dict[str, str]:
    """This process's environment, with the package in reach."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def untold(told: str) -> list[str]:
    """Lines of standard error that aren't trtbatch's."""
    ours = ("note: ", "warning: ", "error: ", "fix: ")
    return [line for line in told.splitlines() if not line.startswith(ours)]


HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "tensorrt", "pycuda", "cuda", "pynvml", "PIL")

BARE = f"""
import importlib, pkgutil, runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (refused)", name=name)

sys.meta_path.insert(0, Refuse())
"""


def run_bare(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BARE + code],
        check=False,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )


RUNS = 10_000


def resident() -> int:
    """Resident bytes of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def interrupted(line: list[object], cwd: Path, seconds: float, number: signal.Signals) -> tuple[int, str]:
    """Start a command, send a signal after so many seconds; exit code and standard error."""
    process = subprocess.Popen(
        [sys.executable, "-m", "trtbatch", *map(str, line)],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    time.sleep(seconds)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr
