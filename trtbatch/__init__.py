"""Run PyTorch vision models on TensorRT at any batch size.

Each stage is a function of one request::

    export(ExportRequest("resnet18", dynamic=True))     # torch → engines/resnet18_dynamic.onnx
    build(BuildRequest(profiles=(Profile(1, 16, 32),)))  # → engines/resnet18_dynamic.engine
    infer(InferRequest(None, "IMAGES/"))                 # → predictions
    bench(BenchRequest(None, parse_batches("1,2,4,...,32")))
    verify(VerifyRequest(None))                          # → every sample, right or wrong

A loaded engine is a function of arrays or tensors at any batch size; its method ``predict`` takes images::

    with load("engines/resnet18_dynamic.engine") as engine:
        scores = engine(images)

Importing the package imports none of torch, onnx, onnxruntime, tensorrt and pycuda: names are loaded on first use.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from trtbatch.util.version import __version__

# From release 1.29 on, ONNX Runtime writes a device id to the user's cache folder and looks up an external host when it
# is loaded. Child processes inherit the variable. A value that is already set stays: "0" turns telemetry on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "BenchRequest": "benchmark.bench",
    "BenchResult": "benchmark.bench",
    "BuildRequest": "builder.build",
    "ExportRequest": "exporter.export",
    "InferRequest": "runtime.infer",
    "InferResult": "runtime.infer",
    "LoadedEngine": "runtime.loaded",
    "ModelSpec": "exporter.models",
    "Preprocessing": "core.preprocessing",
    "Profile": "core.batches",
    "TrtbatchError": "errors",
    "VerifyRequest": "verification.verify",
    "VerifyResult": "verification.verify",
    "load": "runtime.loaded",
    "parse_batches": "core.batches",
}

_MODULES = frozenset({"ray"})
"""Modules that are also attributes of the package: ``import trtbatch`` is enough for ``trtbatch.ray.Predictor``."""

if TYPE_CHECKING:
    from trtbatch.benchmark.bench import BenchRequest, BenchResult
    from trtbatch.builder.build import BuildRequest
    from trtbatch.core.batches import Profile, parse_batches
    from trtbatch.core.preprocessing import Preprocessing
    from trtbatch.errors import TrtbatchError
    from trtbatch.exporter.export import ExportRequest
    from trtbatch.exporter.models import ModelSpec
    from trtbatch.runtime.infer import InferRequest, InferResult
    from trtbatch.runtime.loaded import LoadedEngine, load
    from trtbatch.verification.verify import VerifyRequest, VerifyResult

__all__ = [
    "BenchRequest",
    "BenchResult",
    "BuildRequest",
    "ExportRequest",
    "InferRequest",
    "InferResult",
    "LoadedEngine",
    "ModelSpec",
    "Preprocessing",
    "Profile",
    "TrtbatchError",
    "VerifyRequest",
    "VerifyResult",
    "__version__",
    "load",
    "parse_batches",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"trtbatch.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'trtbatch' has no attribute {name!r}")
    return getattr(importlib.import_module(f"trtbatch.{home}"), name)
