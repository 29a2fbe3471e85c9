"""Commands on a terminal: progress is drawn there, and what is printed must not break it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import child_environment

pty = pytest.importorskip("pty", reason="pseudo-terminals are Unix's")


def on_a_terminal(*args: object, cwd: Path, columns: int = 80) -> tuple[int, str]:
    """Run a command with all its streams on a pseudo-terminal; exit code, and what it wrote."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "trtbatch", *map(str, args)],
        cwd=cwd,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=child_environment() | {"COLUMNS": str(columns), "TERM": "xterm-256color"},
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            block = os.read(ours, 1 << 16)
        except OSError:  # the other side is closed
            break
        if not block:
            break
        written += block
    os.close(ours)
    return process.wait(timeout=60), written.decode("utf-8")


@pytest.mark.process
@pytest.mark.parametrize(
    "line",
    [
        ("build", "small.onnx", "--max", 4),
        ("bench", "--batch", "1,2", "--iterations", 5),
        ("infer", "--input", "random", "--count", 5),
        ("verify",),
        ("inspect", "engines/small.ort.onnx"),
    ],
)
def test_every_command_ends_well(engine: Path, folder: Path, line: tuple[object, ...]) -> None:
    code, written = on_a_terminal(*line, cwd=folder)
    assert code == 0, written
    assert "error" not in written
    assert "Traceback" not in written


@pytest.mark.process
def test_figures_are_whole_on_a_narrow_terminal(engine: Path, folder: Path) -> None:
    code, written = on_a_terminal("bench", "--batch", "1,8", "--iterations", 5, cwd=folder, columns=80)
    assert code == 0
    table = [line for line in written.splitlines() if line.startswith(("│", "┃"))]
    assert table
    assert not any("…" in line for line in table)
    assert "ms/sample" in written
    assert "CV" not in written
    _, wide = on_a_terminal("bench", "--batch", "1,8", "--iterations", 5, cwd=folder, columns=200)
    assert "CV" in wide


@pytest.mark.process
def test_names_are_printed_as_they_are(engine: Path, folder: Path) -> None:
    _, written = on_a_terminal("build", "small.onnx", "--profile", "a:b:c", cwd=folder)
    assert "'a:b:c'" in written
