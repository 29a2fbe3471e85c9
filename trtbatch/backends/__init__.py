"""Choose the backend that builds here, and open the engine of an artifact from any backend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtbatch.backends.base import Builder, Engine
from trtbatch.core import store
from trtbatch.core.batches import pick_profile
from trtbatch.core.hints import call
from trtbatch.core.sidecar import Artifact, Sidecar
from trtbatch.core.store import check_file
from trtbatch.errors import ArtifactError, MissingPackageError, UsageError
from trtbatch.util.log import note, warn

if TYPE_CHECKING:
    from trtbatch.backends.tensorrt.engine import TensorRTEngine

__all__ = [
    "choose_builder",
    "engine_origin",
    "open_engine",
    "refuse_gpu",
    "resolve_engine",
    "runs_here",
    "warn_of_random",
]


_CPU = "`backend='onnxruntime'`"


def choose_builder(backend: str = "auto") -> Builder:
    """Return the builder for ``tensorrt``, ``onnxruntime`` or ``auto``.

    ``auto`` is TensorRT where it can run, else ONNX Runtime, with a log line that says why.

    Raises:
        MissingPackageError: TensorRT was requested by name and can't run here.
    """
    from trtbatch.backends import tensorrt

    if backend == "onnxruntime":
        return _onnxruntime()
    obstacle = tensorrt.obstacle()
    if obstacle is None:
        from trtbatch.backends.tensorrt.builder import TensorRTBuilder

        return TensorRTBuilder()
    if backend == "tensorrt":
        raise MissingPackageError(
            f"`backend='tensorrt'` can't run here: {obstacle.problem}", f"{obstacle.fix}, or pass {_CPU}"
        )
    hint = f"; {obstacle.fix}" if tensorrt.sees_nvidia() else ""
    note(f"backend: ONNX Runtime on the CPU ({obstacle.problem}{hint})")
    return _onnxruntime()


def _onnxruntime() -> Builder:
    from trtbatch.backends.onnxruntime import OnnxRuntimeBuilder

    return OnnxRuntimeBuilder()


def runs_here(backend: str | None) -> bool:
    """Return whether an engine of this backend can be opened on this machine."""
    from trtbatch.backends import tensorrt

    return backend == "onnxruntime" or (backend == "tensorrt" and tensorrt.obstacle() is None)


def resolve_engine(path: Path | None, batches: Sequence[int] = ()) -> Artifact:
    """Return the named engine, or the newest in ``engines/`` that runs here and takes these batches, and log its name.

    Where no engine takes the batches, the newest that runs here is returned, so that the error can show its profiles.

    Raises:
        ArtifactError: there is no engine.
    """
    if path is not None:
        artifact = store.load(path, "engine")
    else:
        artifact = store.newest(
            "engine",
            lambda sidecar: runs_here(sidecar.engine.backend),
            "engine that runs here",
            prefer=lambda sidecar: all(pick_profile(sidecar.engine.profiles, batch) is not None for batch in batches),
        )
        note(f"using the newest engine: {artifact.path}")
    warn_of_random(artifact.sidecar)
    return artifact


def engine_origin(path: Path | None) -> str:
    """Return where the engine of :func:`resolve_engine` comes from, in words."""
    return "given" if path is not None else "the newest in engines/ that runs here"


def warn_of_random(sidecar: Sidecar) -> None:
    """Repeat the warnings about random weights and random calibration samples."""
    if sidecar.model.weights.startswith("random"):
        warn(f"weights: {sidecar.model.weights}")
    conversion = sidecar.conversion
    if conversion is not None and conversion.method is not None and conversion.random:
        warn(f"calibration: {conversion.calibration}")


def refuse_gpu(device: int) -> None:
    """Raise where a GPU is named for a backend that uses none.

    Raises:
        UsageError: `device` isn't 0.
    """
    if device != 0:
        raise UsageError(f"`device={device}` names a GPU, and this runs on the CPU", "leave out `device`")


def open_engine(artifact: Artifact, device: int = 0, weights: Path | None = None) -> Engine:
    """Load an engine; version, GPU and hash are compared with the sidecar before deserialisation.

    Args:
        artifact: the engine and its sidecar.
        device: index of the GPU, for a TensorRT engine.
        weights: the ONNX file with the weights of a stripped engine; None finds it.

    Raises:
        UsageError: there is no such device.
        ArtifactError: the file is damaged, or was made by another TensorRT or for another GPU.
        MissingPackageError: the engine's backend can't run here.
    """
    backend = artifact.sidecar.engine.backend
    if backend == "onnxruntime":
        from trtbatch.backends.onnxruntime import OnnxRuntimeEngine

        refuse_gpu(device)
        check_file(artifact)
        return OnnxRuntimeEngine(artifact)
    if backend == "tensorrt":
        return _tensorrt(artifact, device, weights)
    raise ArtifactError(f"{artifact.path}: its sidecar names no backend", "build it again: `trtbatch.build()`")


def _tensorrt(artifact: Artifact, device: int, weights: Path | None = None) -> TensorRTEngine:
    from trtbatch.backends import tensorrt

    obstacle = tensorrt.obstacle()
    if obstacle is not None:
        fix = f"{obstacle.fix}; for this one: {call('build', backend='onnxruntime')}"
        raise MissingPackageError(f"{artifact.path} is a TensorRT engine: {obstacle.problem}", fix)
    from trtbatch.backends.tensorrt import buffers
    from trtbatch.backends.tensorrt.engine import TensorRTEngine

    buffers.refuse_device(device)
    tensorrt.refuse_foreign(artifact, device)
    check_file(artifact)
    return TensorRTEngine(artifact, device, weights)
