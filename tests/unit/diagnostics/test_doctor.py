"""``doctor`` on broken machines: facts in, lines out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trtbatch.backends.tensorrt import wheel
from trtbatch.diagnostics.doctor import Check, diagnose
from trtbatch.diagnostics.system_info import Gpu, Library, SystemInfo, gather

Cli = Callable[..., Any]

GOOD = SystemInfo(
    system="Linux",
    python="3.12",
    sees_nvidia=True,
    driver="580.1",
    driver_cuda=(13, 0),
    gpus=(Gpu("NVIDIA H200", "9.0", 140_000, 143_000),),
    packages={
        "tensorrt": "10.16.1",
        "tensorrt-cu13": "10.16.1",
        "pycuda": "2026.1",
        "onnx": "1.23",
        "onnxruntime": "1.30",
        "numpy": "2.4",
        "torch": "2.11",
    },
    probes={
        "tensorrt": {"version": "10.16.1", "library": 101601, "maps": ["/wheels/libnvinfer.so.10"]},
        "pycuda": {"cuda": [13, 0, 0]},
        "torch": {"version": "2.11+cu130", "cuda": "13.0"},
    },
    nvcc="/usr/local/cuda/bin/nvcc",
    cuda_h="/usr/local/cuda/include/cuda.h",
)


def troubles(facts: SystemInfo) -> list[Check]:
    return [check for check in diagnose(facts) if check.level != "ok"]


def only(facts: SystemInfo, what: str) -> Check:
    found = [check for check in diagnose(facts) if check.what == what and check.level != "ok"]
    assert len(found) == 1, diagnose(facts)
    assert found[0].fix
    return found[0]


def runtime(version: tuple[int, ...], place: str = "LD_LIBRARY_PATH", family: str = "libcudart") -> Library:
    dotted = ".".join(map(str, version))
    return Library(family, f"/cuda-{version[0]}.{version[1]}/lib64/{family}.so.{dotted}", version, place)


def test_a_good_machine_has_no_trouble() -> None:
    assert troubles(GOOD) == []


def test_the_articles_machine_is_told_which_cuda_comes_first() -> None:
    """CUDA 9.2 before the 9.0 that TensorRT was built for: the wrong one is found first."""
    facts = replace(
        GOOD,
        packages={name: version for name, version in GOOD.packages.items() if name != "tensorrt-cu13"},
        probes=GOOD.probes | {"torch": {"version": "0.4", "cuda": "9.0"}},
        ld_library_path=("/cuda-9.2/lib64", "/cuda-9.0/lib64"),
        libraries=(runtime((9, 2, 148)), runtime((9, 0, 176))),
    )
    check = only(facts, "libcudart")
    assert check.level == "problem"
    assert "9.2.148 in /cuda-9.2/lib64 comes before 9.0.176 in /cuda-9.0/lib64" in check.found
    assert check.fix == "export LD_LIBRARY_PATH=/cuda-9.0/lib64:/cuda-9.2/lib64"


def test_an_older_cuda_that_comes_first_is_named() -> None:
    facts = replace(
        GOOD,
        ld_library_path=("/cuda-11.8/lib64", "/other", "/cuda-13.0/lib64"),
        libraries=(runtime((11, 8, 89)), runtime((13, 0, 48)), runtime((13, 0, 48), "wheel")),
    )
    check = only(facts, "libcudart")
    assert check.fix == "export LD_LIBRARY_PATH=/cuda-13.0/lib64:/cuda-11.8/lib64:/other"


def test_several_majors_off_the_path_are_a_warning_only() -> None:
    facts = replace(GOOD, libraries=(runtime((13, 0, 1), "wheel"), runtime((12, 4, 1), "loader cache")))
    assert only(facts, "libcudart").level == "warning"


def test_another_tensorrt_mapped_than_imported() -> None:
    facts = replace(GOOD, probes=GOOD.probes | {"tensorrt": {"version": "10.16.1", "library": 8600}})
    check = only(facts, "TensorRT")
    assert "the package is 10.16.1, the library that it maps 8.6.0" in check.found


@pytest.mark.parametrize(
    ("reason", "fix"),
    [
        ("ImportError: libnvinfer.so.10: cannot open shared object file", "LD_LIBRARY_PATH"),
        ("importing it ends the process by signal 11", "reinstall it"),
    ],
)
def test_a_tensorrt_that_does_not_import_says_why(reason: str, fix: str) -> None:
    check = only(replace(GOOD, probes=GOOD.probes | {"tensorrt": {"error": reason}}), "TensorRT")
    assert reason in check.found
    assert fix in check.fix


def test_two_tensorrt_installs() -> None:
    facts = replace(GOOD, packages=GOOD.packages | {"tensorrt-cu12": "10.9.0"})
    assert "two installs" in only(facts, "TensorRT packages").found


def test_a_wheel_for_a_newer_cuda_than_the_driver_runs() -> None:
    check = only(replace(GOOD, driver_cuda=(12, 4)), "driver")
    assert "the TensorRT installed is for CUDA 13" in check.found
    assert check.fix == "pip install tensorrt-cu12, or update the driver"


def test_no_driver_and_no_tensorrt() -> None:
    facts = replace(GOOD, driver=None, driver_cuda=None, gpus=(), probes={}, packages={}, nvcc=None, cuda_h=None)
    whats = {check.what for check in troubles(facts) if check.level == "problem"}
    assert {"GPU", "driver", "TensorRT", "pycuda", "nvcc", "cuda.h", "onnx", "onnxruntime", "numpy"} <= whats


def test_pycuda_of_a_newer_cuda_than_the_driver() -> None:
    facts = replace(GOOD, driver_cuda=(13, 0), probes=GOOD.probes | {"pycuda": {"cuda": [14, 0, 0]}})
    assert "built with CUDA 14.0" in only(facts, "pycuda").found
    broken = replace(GOOD, probes=GOOD.probes | {"pycuda": {"error": "ImportError: libcuda.so.1: cannot open"}})
    assert only(broken, "pycuda").fix == "install the NVIDIA driver"


def test_torch_and_tensorrt_of_two_cudas() -> None:
    facts = replace(GOOD, probes=GOOD.probes | {"torch": {"version": "2.6", "cuda": "12.4"}})
    assert only(facts, "torch").level == "warning"


@pytest.mark.parametrize(
    ("gpu", "told"),
    [
        (Gpu("A", "9.0", 500, 40_000, others=("pid 7",)), "pid 7 run there"),
        (Gpu("A", "9.0", 30_000, 40_000, "prohibited"), "prohibited"),
        (Gpu("A", "9.0", 30_000, 40_000, "exclusive process", ("pid 7",)), "held by pid 7 alone"),
        (Gpu("A", "9.0", 30_000, 40_000, "default", ("pid 7",)), "pid 7 run there too"),
    ],
)
def test_a_gpu_that_is_not_ours_alone(gpu: Gpu, told: str) -> None:
    assert told in only(replace(GOOD, gpus=(gpu,)), "GPU 0").found


def test_both_onnx_runtimes() -> None:
    facts = replace(GOOD, packages=GOOD.packages | {"onnxruntime-gpu": "1.30"})
    assert only(facts, "onnxruntime").level == "warning"


def test_an_empty_machine_is_examined_without_raising() -> None:
    assert diagnose(SystemInfo())


@pytest.mark.slow
def test_facts_are_gathered_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libcudart.so.9.2.148").write_bytes(b"")
    (tmp_path / "libcudart.so.9.2").symlink_to(tmp_path / "libcudart.so.9.2.148")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    facts = gather()
    first = next(library for library in facts.libraries if library.family == "libcudart")
    assert first.version == (9, 2, 148)
    assert first.place == "LD_LIBRARY_PATH"
    assert facts.packages["numpy"]
    assert facts.python


@pytest.mark.slow
def test_the_command_prints_lines(cli: Cli) -> None:
    result = cli("doctor")
    assert result.exit_code in (0, 1)
    assert "numpy" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("driver", "version", "line"),
    [
        ("12.4", None, "pip install tensorrt-cu12"),
        ("13.0", None, "pip install tensorrt-cu13"),
        ("11.8", None, "pip install tensorrt-cu11==10.13.0.35"),
        ("11.8", "10.5.0", "pip install tensorrt-cu11==10.5.0"),
        ("11.8", "11.4.0.106", "pip install tensorrt-cu11==10.13.0.35, or update the NVIDIA driver"),
        ("12.4", "10.16.1.11", "pip install tensorrt-cu12==10.16.1.11"),
        ("13.0", "10.16.1.11", "pip install tensorrt-cu13==10.16.1.11"),
        ("13.0", "10.0.1", "pip install tensorrt-cu12==10.0.1"),
        ("13.0", "8.6.1", "pip install tensorrt==8.6.1 (for CUDA 12, and Python up to 3.11)"),
        (None, "10.5.0", "pip install tensorrt==10.5.0"),
        (None, None, "pip install 'trtbatch[tensorrt]'"),
    ],
)
def test_the_wheel_for_a_driver_and_a_version(driver: str | None, version: str | None, line: str) -> None:
    assert wheel(driver, version) == line
