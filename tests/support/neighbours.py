"""Other users of the GPU in this process: torch, torch's own libraries without its Python, CUDA's runtime."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trtbatch.util import optional

__all__ = ["Neighbour", "neighbour"]

ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Neighbour:
    """Takes memory on the GPU and fills it with ones, tells the mean of it, and gives it back."""

    name: str
    take: Callable[[], Any]
    mean: Callable[[Any], float]
    give: Callable[[Any], None]


def neighbour(folder: Path) -> Neighbour:
    """torch where it is installed here; its libraries where another interpreter has it; else CUDA's runtime API."""
    if optional.is_installed("torch"):
        return _torch()
    other = os.environ.get("TRTBATCH_EXPORT_PYTHON")
    return _torch_libraries(other, folder) if other else _cuda_runtime()


def _torch() -> Neighbour:
    import torch

    def give(held: Any) -> None:
        del held
        torch.cuda.empty_cache()

    return Neighbour(
        f"torch {torch.__version__}",
        lambda: torch.ones(ELEMENTS, device="cuda"),
        lambda held: float(held.mean().item()),
        give,
    )


_SOURCE = """
#include <ATen/ATen.h>
extern "C" void *take(long count, int cuda) {
  return new at::Tensor(at::ones({count}, at::device(cuda ? at::kCUDA : at::kCPU)));
}
extern "C" double mean(void *held) { return static_cast<at::Tensor *>(held)->mean().item<double>(); }
extern "C" void give(void *held) { delete static_cast<at::Tensor *>(held); }
"""


def _torch_libraries(python: str, folder: Path, cuda: bool = True) -> Neighbour:
    """torch as C++ programs use it: its libraries have no Python in them, and so fit any interpreter."""
    line = [python, "-c", "import os, torch; print(torch.__version__, os.path.dirname(torch.__file__))"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LD_LIBRARY_PATH")}
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=environment)
    version, home = done.stdout.split()
    source, made = folder / "neighbour.cpp", folder / "neighbour.so"
    source.write_text(_SOURCE)
    flags = ["-O0", "-std=c++20", "-shared", "-fPIC", "-w", f"-I{home}/include"]
    link = [f"-L{home}/lib", f"-Wl,-rpath,{home}/lib", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"]
    link += ["-ltorch_cuda", "-lc10_cuda"] if cuda else []
    subprocess.run(["g++", *flags, str(source), "-o", str(made), *link], check=True)
    library = ctypes.CDLL(str(made))
    library.take.restype = ctypes.c_void_p
    library.mean.restype = ctypes.c_double
    for function in (library.mean, library.give):
        function.argtypes = [ctypes.c_void_p]
    return Neighbour(
        f"the libraries of torch {version}",
        lambda: library.take(ctypes.c_long(ELEMENTS), int(cuda)),
        library.mean,
        library.give,
    )


def _cuda_runtime() -> Neighbour:
    from cuda.bindings import runtime

    def checked(answer: Any) -> Any:
        assert answer[0] == runtime.cudaError_t.cudaSuccess, answer[0]
        return answer[-1]

    def take() -> Any:
        address = checked(runtime.cudaMalloc(ELEMENTS))
        checked(runtime.cudaMemset(address, 1, ELEMENTS))
        return address

    def mean(held: Any) -> float:
        back = np.empty(ELEMENTS, np.uint8)
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        checked(runtime.cudaMemcpy(back.ctypes.data, held, ELEMENTS, kind))
        return float(back.mean())

    return Neighbour("cuda.bindings.runtime", take, mean, lambda held: checked(runtime.cudaFree(held)) and None)
