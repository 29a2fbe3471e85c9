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

from tests.support.processes import child_environment
from trtbatch.util.signals import in_callback

PROGRAM = """
import ctypes, os, signal, sys, time
from trtbatch.cli import app
from trtbatch.util.signals import called_back

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
    return subprocess.run(
        line, check=False, capture_output=True, text=True, cwd=cwd, env=child_environment(), timeout=60
    )


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(("name", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_in_a_callback_comes_after_it(name: str, code: int, word: str, tmp_path: Path) -> None:
    done = run("@called_back", name, tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stdout == "True\n"
    assert done.stderr == f"{word}; nothing half-written is left\n"


@pytest.mark.slow
@pytest.mark.process
def test_a_signal_that_python_ignores_comes_again(tmp_path: Path) -> None:
    """Without the mark, the callback ends where the signal comes, and ctypes ignores what is raised there."""
    done = run("", "SIGINT", tmp_path)
    assert done.returncode == 130, done.stderr
    assert done.stdout == "True\n"
    assert done.stderr == "interrupted; nothing half-written is left\n"


FINALIZERS = """
import os, signal, time, weakref
from trtbatch.cli import app

class Some:
    {kind}

def interrupt(reference=None):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # the signal is handled here

def command():
    some = Some()
    {before}
    del some
    print("ignored", flush=True)
    time.sleep(5)
    print("went on", flush=True)

app.app = lambda standalone_mode: command()
app.main()
"""


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
    ("kind", "before"),
    [
        ("def __del__(self): interrupt()", "pass"),
        ("pass", "kept = weakref.ref(some, interrupt)"),
        ("pass", "try: interrupt()\n    except KeyboardInterrupt: pass"),
    ],
)
def test_a_signal_whose_exception_is_dropped_ends_the_command(kind: str, before: str, tmp_path: Path) -> None:
    line = [sys.executable, "-c", FINALIZERS.format(kind=kind, before=before)]
    done = subprocess.run(
        line, check=False, capture_output=True, text=True, cwd=tmp_path, env=child_environment(), timeout=60
    )
    assert done.returncode == 130, done.stderr
    assert done.stdout == "ignored\n"
    assert done.stderr == "interrupted; nothing half-written is left\n"


@pytest.mark.slow
@pytest.mark.process
def test_a_signal_after_the_command_ends_the_process_at_once(tmp_path: Path) -> None:
    program = FINALIZERS.format(kind="pass", before="import atexit; atexit.register(print, 'at exit')")
    program = program.replace("    time.sleep(5)\n", "    atexit.register(interrupt)\n")
    line = [sys.executable, "-c", program]
    done = subprocess.run(
        line, check=False, capture_output=True, text=True, cwd=tmp_path, env=child_environment(), timeout=60
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == ""
    assert done.stdout == "ignored\nwent on\n"


@pytest.mark.process
def test_other_ignored_errors_are_shown(tmp_path: Path) -> None:
    program = FINALIZERS.format(kind="def __del__(self): 1 / 0", before="pass").replace("time.sleep(5)", "pass")
    line = [sys.executable, "-c", program]
    done = subprocess.run(
        line, check=False, capture_output=True, text=True, cwd=tmp_path, env=child_environment(), timeout=60
    )
    assert done.returncode == 0
    assert "ZeroDivisionError" in done.stderr
    assert "went on" in done.stdout


def test_a_signal_waits_until_an_extension_module_has_started() -> None:
    """From Python 3.13 on, C code that starts one swallows what is raised in it, too."""
    waits: list[bool] = []

    class Loader(ExtensionFileLoader):
        def __getattribute__(self, name: str) -> Any:
            waits.append(in_callback(inspect.currentframe()))
            return super().__getattribute__(name)

    loader = Loader("m", "m.so")
    loader.exec_module(ModuleType("m"))  # which reads its own name
    assert not waits[0]
    assert waits[-1]
