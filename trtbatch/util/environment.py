"""Describe the machine and the software that made a result, without changing either."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from trtbatch.util import optional
from trtbatch.util.version import __version__

__all__ = [
    "ask_nvml",
    "commit",
    "cpu_name",
    "describe",
    "driver",
    "gpu_state",
    "nvml_handle",
    "open_nvml",
    "peak_memory",
]

T = TypeVar("T")

_LIBRARIES = ("numpy", "onnx", "onnxruntime", "torch", "torchvision", "tensorrt", "pycuda", "cuda-bindings")


def describe() -> dict[str, Any]:
    """Return CPU, cores, NVIDIA driver, operating system, Python, library versions and commit."""
    versions = {name: found for name in _LIBRARIES if (found := optional.version(name)) is not None}
    known: dict[str, Any] = {
        "trtbatch": __version__,
        "commit": commit(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "driver": driver(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": versions,
    }
    return known


def cpu_name() -> str:
    """Return the processor's name, from ``/proc/cpuinfo`` where that exists."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def commit() -> str | None:
    """Return the commit of this code: ``TRTBATCH_COMMIT``, else the checkout's, with ``-dirty`` where files differ.

    The variable serves copies of the tree without their history. An installed package has no commit: None.
    """
    told = os.environ.get("TRTBATCH_COMMIT")
    root = Path(__file__).resolve().parents[2]
    if told or not (root / ".git").exists():
        return told or None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def driver() -> str | None:
    """Return the version of the NVIDIA driver from NVML, or None without NVML."""
    return ask_nvml(lambda nvml: str(nvml.nvmlSystemGetDriverVersion()))


def nvml_handle(nvml: Any, device: int) -> Any:
    """Return NVML's handle of a CUDA device: NVML also numbers the GPUs that CUDA_VISIBLE_DEVICES hides."""
    name = visible_device(device, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return nvml.nvmlDeviceGetHandleByUUID(name) if isinstance(name, str) else nvml.nvmlDeviceGetHandleByIndex(name)


def visible_device(device: int, visible: str | None) -> int | str:
    """Return the index or UUID, among all GPUs, of CUDA's `device` under this value of CUDA_VISIBLE_DEVICES."""
    names = [name.strip() for name in (visible or "").split(",") if name.strip()]
    if device >= len(names):
        return device
    return int(names[device]) if names[device].isdigit() else names[device]


def gpu_state(index: int = 0) -> dict[str, Any]:
    """Return a GPU's clocks (MHz), temperature (°C), power (W) and throttle reasons now; empty without NVML."""
    return ask_nvml(lambda nvml: _nvml_state(nvml, nvml_handle(nvml, index))) or {}


def module_path() -> str:
    """Return the ``PYTHONPATH`` with which a child process finds the modules of this process."""
    return os.pathsep.join(folder or os.getcwd() for folder in sys.path)


def memory_bandwidth(index: int = 0) -> float | None:
    """Return the peak bandwidth between a GPU and its memory in bytes per second, or None without NVML.

    The memory transfers twice per clock, over the width of the bus (CUDA's sample ``deviceQuery``, and its best
    practices guide, "Theoretical Bandwidth Calculation").
    """

    def ask(nvml: Any) -> float:
        handle = nvml_handle(nvml, index)
        hertz = 1e6 * nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)
        return float(2 * hertz * nvml.nvmlDeviceGetMemoryBusWidth(handle) / 8)

    return ask_nvml(ask) or None


def ask_nvml(question: Callable[[Any], T]) -> T | None:
    """Return NVML's answer to one question, or None without NVML or without an answer."""
    nvml = open_nvml()
    if nvml is None:
        return None
    try:
        return question(nvml)
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def open_nvml() -> Any:
    """Initialise NVML and return its module, or None without NVML; the caller must call ``nvmlShutdown``.

    NVML counts the initialisations, so each needs its own shutdown.
    """
    if not optional.is_installed("pynvml"):
        return None
    pynvml: Any = optional.require("pynvml", "read the GPU's clocks")  # typed only where it is installed
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _nvml_state(pynvml: Any, handle: Any) -> dict[str, Any]:
    sm, memory = pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM
    questions: dict[str, Callable[[], Any]] = {
        "sm_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, sm),
        "sm_max_mhz": lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, sm),
        "memory_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, memory),
        "temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "throttle_reasons": lambda: hex(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
    }
    state: dict[str, Any] = {}
    for name, ask in questions.items():
        try:
            state[name] = ask()
        except (pynvml.NVMLError, AttributeError):
            continue  # a question that this GPU or this NVML doesn't answer
    return state
