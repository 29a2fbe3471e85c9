"""Addresses where no Ray is, and signals while Ray is started or sought."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.messages import refused
from tests.support.processes import child_environment, run_process, untold

pytest.importorskip("ray.data", reason="Ray (ray[data]) isn't installed")

Cli = Callable[..., Any]

SIGNALS = [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")]

pytestmark = pytest.mark.ray

PROGRAM = """
import sys, time
from trtbatch.deployment import scale
from trtbatch.cli import app

def command():
    scale.CONNECT_S = {seconds}
    with scale.connected({address!r}):
        print("connected", flush=True)
        time.sleep(60)

app.app = lambda standalone_mode: command()
app.main()
"""


def connecting(address: str, seconds: float = 60) -> subprocess.Popen[str]:
    """A process that connects, and stays for a minute."""
    line = [sys.executable, "-c", PROGRAM.format(address=address, seconds=seconds)]
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environment() | {"RAY_ADDRESS": ""}
    )


@pytest.fixture
def silent() -> Any:
    """A listener that never says a word; on every address, because Ray makes another of 127.0.0.1."""
    with socket.create_server(("", 0)) as listener:
        listener.settimeout(60)
        yield listener


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:1", "no TCP connection to port 1 of 127.0.0.1 (Connection refused)"),
        ("ray://[::1]:1", "no TCP connection to port 1 of ::1 ("),
        ("name.invalid:6379", "no TCP connection to port 6379 of name.invalid ("),
        ("127.0.0.1:99999", "no TCP connection to port 99999 of 127.0.0.1 ("),
        ("nonsense", "Invalid address format: nonsense"),
    ],
)
def test_an_address_where_nothing_listens(
    cli: Cli, photo_engine: Path, photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, address: str, told: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")  # connecting sets it, which the other tests would see
    refused(
        cli("infer", "--ray", address, "--input", photos, "--output", "out"),
        2,
        f"error: no Ray cluster at {address}: {told}",
        "fix: check host and port, start one (ray start --head), or pass --ray local",
    )
    assert not (folder / "out").exists(), "a folder is claimed by a run that has a cluster"


@pytest.mark.slow
@pytest.mark.process
def test_an_address_where_something_listens_that_says_nothing(silent: socket.socket) -> None:
    address = f"127.0.0.1:{silent.getsockname()[1]}"
    with connecting(address, seconds=3) as process:
        _, told = process.communicate(timeout=50)
    assert process.returncode != 0
    assert f"no Ray cluster at {address}: it gave no answer in 3 s" in told


@pytest.mark.process
@pytest.mark.parametrize(("name", "code", "word"), SIGNALS)
def test_a_signal_while_ray_is_sought(silent: socket.socket, name: str, code: int, word: str) -> None:
    with connecting(f"127.0.0.1:{silent.getsockname()[1]}") as process:
        for _ in range(2):  # the first connection tries the address, the second is Ray's own
            silent.accept()[0].close()
        process.send_signal(signal.Signals[name])
        _, told = process.communicate(timeout=30)
    assert process.returncode == code, told
    assert told.endswith(f"{word}; nothing half-written is left\n")


@pytest.mark.slow
@pytest.mark.process
def test_ray_itself_says_nothing(photo_engine: Path, photos: Path, folder: Path) -> None:
    """Of a run whose actors fail; tests/project/test_recipes.py has one that ends well."""
    photo_engine.write_bytes(photo_engine.read_bytes()[:100])
    line = ("infer", "--ray", "local", "--input", photos, "--output", "out")
    done = run_process(*line, "--concurrency", 2, cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert untold(done.stderr) == []
    assert "error: the Ray job failed: " in done.stderr
    assert "small.ort.onnx is truncated: 100 bytes" in done.stderr


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(("name", "code", "word"), SIGNALS)
def test_a_signal_while_ray_runs(name: str, code: int, word: str) -> None:
    with connecting("local") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n"
        process.send_signal(signal.Signals[name])
        _, told = process.communicate(timeout=30)
    assert process.returncode == code, told
    assert told == f"{word}; nothing half-written is left\n"
