"""Signals that come in a callback from C, which swallows what is raised there."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import child_environment
from trtbatch.interrupts import in_callback

PROGRAM = """
import ctypes, os, signal, sys, time
from trtbatch.cli import app
from trtbatch.interrupts import called_back

compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
sort = ctypes.CDLL(None).qsort

def command():
    calls = []

    {mark}
    def order(one, other):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.{name})
        return 0

    sort((ctypes.c_int * 8)(), 8, 4, compare(order))
    print(len(calls) > 3, flush=True)
    time.sleep(5)
    print("went on", flush=True)

app.app = lambda standalone_mode: command()
app.main()
"""


def run(mark: str, name: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", PROGRAM.format(mark=mark, name=name)]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=child_environment(), timeout=60)


@pytest.mark.parametrize(("name", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_in_a_callback_comes_after_it(name: str, code: int, word: str, tmp_path: Path) -> None:
    done = run("@called_back", name, tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stdout == "True\n"
    assert done.stderr == f"{word}; nothing half-written is left\n"


def test_c_swallows_what_is_raised_in_a_callback(tmp_path: Path) -> None:
    """What the mark is for: without it the command goes on."""
    done = run("", "SIGINT", tmp_path)
    assert "went on" in done.stdout
    assert "KeyboardInterrupt" in done.stderr


def test_a_signal_waits_until_an_extension_module_has_started() -> None:
    """From Python 3.13 on, C code that starts one swallows what is raised in it, too."""
    waits: list[bool] = []

    class Loader(ExtensionFileLoader):
        def __getattribute__(self, name: str) -> Any:
            waits.append(in_callback(inspect.currentframe()))
            return super().__getattribute__(name)

    loader = Loader("m", "m.so")
    loader.exec_module(ModuleType("m"))  # which reads its own name
    assert not waits[0] and waits[-1]
