"""Nothing that trtbatch starts sends anything, or leaves a device id: system calls are watched with strace."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import models
from tests.support.processes import child_environment

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to watch system calls")

SILENCING = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "JENKINS_URL", "CODEBUILD_BUILD_ID", "ORT_RUNNING_UNIT_TESTS")
"""Variables that silence ONNX Runtime by themselves."""

NETWORK = re.compile(r"(?:connect|sendto|sendmsg|sendmmsg)\(.*AF_INET")
RESOLVER = re.compile(r'openat\(.*"/etc/(?:resolv\.conf|hosts|nsswitch\.conf)"')
TELEMETRY = re.compile(r'openat\(.*(?:onnxruntime\.db|deviceid|DeveloperTools)"')


def watched(command: Sequence[str], folder: Path, **variables: str) -> list[str]:
    """Run a command in `folder` and return the system calls that reach for the network or write telemetry files."""
    environment = {name: value for name, value in child_environment().items() if name not in SILENCING}
    environment.pop("ORT_DISABLE_TELEMETRY", None)  # set in this process, by importing trtbatch
    home = folder / "home"
    home.mkdir(exist_ok=True)
    log = folder / "calls.txt"
    subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=network,openat", "-o", str(log), *command],
        cwd=folder,
        env=environment | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")} | variables,
        check=True,
        timeout=300,
        capture_output=True,
    )
    calls = log.read_text(errors="replace").splitlines()
    return [call for call in calls if any(each.search(call) for each in (NETWORK, RESOLVER, TELEMETRY))]


def trtbatch(*args: str) -> list[str]:
    return [sys.executable, "-m", "trtbatch", *args]


@pytest.mark.slow
@pytest.mark.process
def test_build_and_infer_reach_for_nothing(folder: Path) -> None:
    models.classifier(folder / "small.onnx")
    assert watched(trtbatch("build", "small.onnx", "--backend", "onnxruntime"), folder) == []
    output = folder / "rows.npz"
    assert watched(trtbatch("infer", "--input", "random", "--count", "3", "--output", str(output)), folder) == []
    assert output.exists()


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.process
def test_export_reaches_for_nothing(folder: Path) -> None:
    (folder / "tiny.py").write_text("import torch\n\n\ndef net():\n    return torch.nn.Conv2d(3, 2, 3)\n")
    calls = watched(trtbatch("export", "tiny:net", "--dynamic", "--input-shape", "3,8,8"), folder)
    assert (folder / "engines" / "net_dynamic.onnx").exists()
    assert calls == []


@pytest.mark.process
@pytest.mark.parametrize(("given", "found"), [(None, "1"), ("0", "0"), ("1", "1")])
def test_child_processes_inherit_the_switch(given: str | None, found: str) -> None:
    """Workers, Ray's and ModelOpt's processes are children of one that has imported trtbatch."""
    child = [sys.executable, "-c", "import os; print(os.environ['ORT_DISABLE_TELEMETRY'])"]
    code = f"import subprocess, trtbatch; subprocess.run({child!r})"
    environment = child_environment()
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    if given is not None:
        environment["ORT_DISABLE_TELEMETRY"] = given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found


@pytest.mark.process
def test_the_watcher_sees_telemetry_that_the_user_switched_on(folder: Path) -> None:
    release = importlib.metadata.version("onnxruntime")
    if tuple(map(int, release.split(".")[:2])) < (1, 29):
        pytest.skip("this onnxruntime has no telemetry on Linux")
    calls = watched(
        [sys.executable, "-c", "import trtbatch, onnxruntime, time; time.sleep(1)"], folder, ORT_DISABLE_TELEMETRY="0"
    )
    assert any(TELEMETRY.search(call) for call in calls)
