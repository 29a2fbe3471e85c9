"""Gather the facts that ``doctor`` judges: driver, GPUs, CUDA and TensorRT libraries in search order, packages, tools.

Gathering never raises: a fact that can't be queried is None or empty. Imports that may crash run in processes of their
own.
"""

from __future__ import annotations

import glob
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtbatch.util import environment, optional

__all__ = ["FAMILIES", "Gpu", "Library", "SystemInfo", "gather"]

FAMILIES = ("libcudart", "libnvinfer", "libcublas", "libcudnn")
"""Libraries of which a second version on the machine often causes hard-to-find errors."""

_PACKAGES = re.compile(
    r"torch|torchvision|onnx|onnxruntime(-gpu)?|numpy|pycuda|cuda-bindings|tensorrt([-_].*)?|nvidia-(cuda-runtime|cudnn"
    r"|cublas).*",
    re.IGNORECASE,
)

_PROBES = {
    "tensorrt": (
        "import tensorrt, ctypes, json, re\n"
        "maps = sorted(set(re.findall(r'/\\S+\\.so[.\\d]*', open('/proc/self/maps').read())))\n"
        "lib = next((m for m in maps if re.search(r'libnvinfer\\.so', m)), None)\n"
        "number = ctypes.CDLL(lib).getInferLibVersion() if lib else None\n"
        "print(json.dumps({'version': tensorrt.__version__, 'library': number, 'maps': maps}))"
    ),
    "pycuda": (
        "import pycuda.driver as d, json, re\n"
        "maps = sorted(set(re.findall(r'/\\S+\\.so[.\\d]*', open('/proc/self/maps').read())))\n"
        "print(json.dumps({'cuda': list(d.get_version()), 'maps': maps}))"
    ),
    "torch": "import torch, json; print(json.dumps({'version': torch.__version__, 'cuda': torch.version.cuda}))",
}


@dataclass(frozen=True)
class Library:
    """Shared library file: its family, its path, the version in its name, and where the loader would find it.

    Args:
        place: ``LD_LIBRARY_PATH``, ``wheel`` or ``loader cache``, which is the order of search.
    """

    family: str
    path: str
    version: tuple[int, ...]
    place: str


@dataclass(frozen=True)
class Gpu:
    """GPU as NVML describes it; memory in MiB."""

    name: str
    capability: str
    free_mib: int
    total_mib: int
    compute_mode: str = "default"
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class SystemInfo:
    """Facts about a machine.

    Args:
        driver_cuda: newest CUDA version that the driver can run, (major, minor).
        libraries: all libraries found, by family, each family in search order.
        probes: what importing tensorrt, pycuda and torch reported, by package; ``error`` if it failed.
        nvcc, cuda_h, trtexec: paths; None if not found.
    """

    system: str = ""
    python: str = ""
    sees_nvidia: bool = False
    driver: str | None = None
    driver_cuda: tuple[int, int] | None = None
    gpus: tuple[Gpu, ...] = ()
    ld_library_path: tuple[str, ...] = ()
    libraries: tuple[Library, ...] = ()
    packages: dict[str, str] = field(default_factory=dict)
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    nvcc: str | None = None
    cuda_h: str | None = None
    trtexec: str | None = None


def gather() -> SystemInfo:
    """Gather all facts about this machine."""
    from trtbatch.backends.tensorrt import sees_nvidia

    path = tuple(part for part in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if part)
    driver, cuda, gpus = _nvml()
    return SystemInfo(
        system=platform.platform(),
        python=platform.python_version(),
        sees_nvidia=sees_nvidia(),
        driver=driver or _driver_of_proc(),
        driver_cuda=cuda,
        gpus=gpus,
        ld_library_path=path,
        libraries=tuple(_libraries(path)),
        packages=_packages(),
        probes={name: _probe(name) for name in _PROBES if optional.is_installed(name)},
        nvcc=_tool("nvcc"),
        cuda_h=_header(),
        trtexec=_tool("trtexec"),
    )


def _nvml() -> tuple[str | None, tuple[int, int] | None, tuple[Gpu, ...]]:
    asked = environment.ask_nvml(_ask)
    return asked if asked is not None else (None, None, ())


def _ask(nvml: Any) -> tuple[str | None, tuple[int, int] | None, tuple[Gpu, ...]]:
    number = nvml.nvmlSystemGetCudaDriverVersion_v2()
    gpus = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        modes = {0: "default", 1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}
        mode = modes.get(nvml.nvmlDeviceGetComputeMode(handle), "unknown")
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        others = tuple(f"pid {process.pid}" for process in running if process.pid != os.getpid())
        gpus.append(
            Gpu(
                str(nvml.nvmlDeviceGetName(handle)),
                f"{major}.{minor}",
                int(memory.free) >> 20,
                int(memory.total) >> 20,
                mode,
                others,
            )
        )
    return str(nvml.nvmlSystemGetDriverVersion()), (number // 1000, number % 1000 // 10), tuple(gpus)


def _driver_of_proc() -> str | None:
    """Return the driver's version from the kernel module's file, for machines without NVML."""
    try:
        found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", Path("/proc/driver/nvidia/version").read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[1] if found else None


def _libraries(path: Iterable[str]) -> Iterator[Library]:
    cache = _loader_cache()
    for family in FAMILIES:
        seen: set[str] = set()
        for folder, place in _folders(path):
            for file in sorted(glob.glob(f"{glob.escape(folder)}/{family}.so*")):
                yield from _found(family, file, place, seen)
        for file in cache:
            if os.path.basename(file).startswith(f"{family}.so"):
                yield from _found(family, file, "loader cache", seen)


def _folders(path: Iterable[str]) -> Iterator[tuple[str, str]]:
    for folder in path:
        yield folder, "LD_LIBRARY_PATH"
    for base in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))):
        for pattern in ("nvidia/*/lib", "tensorrt", "tensorrt_libs", "*.libs"):
            for folder in sorted(glob.glob(f"{glob.escape(base)}/{pattern}")):
                yield folder, "wheel"


def _found(family: str, file: str, place: str, seen: set[str]) -> Iterator[Library]:
    real = os.path.realpath(file)
    if real not in seen and os.path.exists(real):
        seen.add(real)
        yield Library(family, file, _version(real), place)


def _version(path: str) -> tuple[int, ...]:
    """Return the version in a file name: (12, 4, 127) for ``libcudart.so.12.4.127``; empty if it has none."""
    match = re.search(r"\.so((?:\.\d+)+)$", path)
    return tuple(int(part) for part in match[1][1:].split(".")) if match else ()


def _loader_cache() -> list[str]:
    tool = shutil.which("ldconfig") or "/sbin/ldconfig"
    try:
        done = subprocess.run([tool, "-p"], check=False, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return []
    return re.findall(r"=> (\S+)$", done.stdout, re.MULTILINE)


def _packages() -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        try:
            name = distribution.metadata["Name"]
            if name and _PACKAGES.fullmatch(name):
                found[name.lower().replace("_", "-")] = distribution.version
        except Exception:  # a damaged installation must not end the gathering
            continue
    return dict(sorted(found.items()))


def _probe(name: str) -> dict[str, Any]:
    """Return what importing a package in a fresh process reports; ``{"error": …}`` if that fails or crashes."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBES[name]], check=False, capture_output=True, text=True, timeout=120
        )
        if done.returncode == 0:
            answer = json.loads(done.stdout.strip().splitlines()[-1])
            return answer if isinstance(answer, dict) else {"error": done.stdout.strip()[:200]}
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    if done.returncode < 0:
        return {"error": f"importing it ends the process by signal {-done.returncode}"}
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return {"error": lines[-1][:300]}


def _tool(name: str) -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(name) or shutil.which(name, path=f"{home}/bin:/usr/src/tensorrt/bin")


def _header() -> str | None:
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), str(Path(nvcc).resolve().parent.parent) if nvcc else None, "/usr/local/cuda"]
    for home in homes:
        if home and os.path.isfile(f"{home}/include/cuda.h"):
            return f"{home}/include/cuda.h"
    return None
