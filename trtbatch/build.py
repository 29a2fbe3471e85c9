"""ONNX → engine: which file, which profiles, the backend's builder, the rows checked, the sidecar written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from trtbatch import artifacts, environment, files
from trtbatch.artifacts import ENGINES, Artifact, FileRecord, ModelRecord, Sidecar, TensorSpec
from trtbatch.backends import choose_builder, open_engine, refuse_gpu
from trtbatch.backends.base import BuildPlan, Built, Engine
from trtbatch.batches import Profile
from trtbatch.checks import RowChecker
from trtbatch.errors import ExecutionError, RowsError, TrtbatchError, UsageError
from trtbatch.notes import note, warn
from trtbatch.onnxfile import load_onnx, opset_of, read_specs, what_fixes_the_batch
from trtbatch.outputs import observed
from trtbatch.planning import plan_axes, prepared

__all__ = ["BuildRequest", "build"]


@dataclass(frozen=True)
class BuildRequest:
    """What to build, and how.

    Args:
        onnx: None takes the newest in ``engines/`` that fits.
        profiles: of the batch axis; empty is 1:16:32 for a dynamic model.
        static: the one batch size to build for.
        backend: ``auto``, ``tensorrt`` or ``onnxruntime``.
        workspace: bytes that TensorRT's tactics may use; None is its own limit.
        opt_level: TensorRT's builder optimization level, 0 to 5.
        timing_cache: read where usable, and written after the build.
        shapes: sizes of the axes other than the batch, by input.
        output: None is ``engines/NAME.engine`` (``engines/NAME.ort.onnx`` for ONNX Runtime).
        verify: whether the rows are checked; the engine is run at min, opt and max either way.
        device: number of the GPU.
        progress: told what is being done, and how far it is (0 to 1) where that is known.
    """

    onnx: Path | None = None
    profiles: tuple[Profile, ...] = ()
    static: int | None = None
    backend: Literal["auto", "tensorrt", "onnxruntime"] = "auto"
    workspace: int | None = None
    opt_level: int | None = None
    timing_cache: Path | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    output: Path | None = None
    verify: bool = True
    device: int = 0
    progress: Callable[[str, float | None], None] = lambda words, share: None


@dataclass(frozen=True)
class _Source:
    """The ONNX file and what is known of it."""

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    model: ModelRecord
    record: FileRecord
    sidecar: Sidecar | None


def build(request: BuildRequest) -> Artifact:
    """Build an engine; it appears only when it has run right at min, opt and max of every profile.

    Raises:
        UsageError, ProfileError: the model and the profiles don't go together.
        ArtifactError: no ONNX file, or a damaged one.
        MissingPackageError: the backend can't run here.
        BuildError: the backend can't build the model.
        RowsError: the engine is built and gives wrong rows.
    """
    started = time.perf_counter()
    builder = choose_builder(request.backend)
    if builder.name == "onnxruntime":
        refuse_gpu(request.device)
        _note_unused(request)
    source = _source(request)
    name = source.path.name
    inputs, outputs, profiles = plan_axes(
        name, source.inputs, source.outputs, request.profiles, request.static, request.shapes
    )
    target = request.output or ENGINES / f"{_stem(source.path, request.static)}{builder.suffix}"
    _refuse_target(target, source.path, builder.suffix)
    with files.scratch(target) as folder:
        files.require_space(target, source.record.bytes)
        onnx, external = prepared(source.path, inputs, outputs, folder)
        plan = BuildPlan(
            onnx=onnx,
            name=target.name,
            inputs=inputs,
            outputs=outputs,
            profiles=profiles,
            external_weights=external,
            workspace=request.workspace,
            opt_level=request.opt_level,
            timing_cache=request.timing_cache,
            device=request.device,
        )
        began = time.perf_counter()
        built = builder.build(plan, folder, request.progress)
        seconds = time.perf_counter() - began
        sidecar = _sidecar(source, built, profiles, builder.name)
        request.progress("running it at min, opt and max", None)
        try:
            outputs, memory = _run_corners(Artifact(built.file, sidecar), target.name, request, onnx)
        except (RowsError, ExecutionError) as error:
            raise _explained(error, onnx) from error
        facts = {"build_seconds": round(seconds, 3), "total_seconds": round(time.perf_counter() - started, 3)}
        sidecar = replace(
            sidecar,
            outputs=outputs,
            source_path=_relative(source.path, target),
            build=facts | memory,
            created=artifacts.now(),
        )
        return artifacts.publish(built.file, target, sidecar, built.companions)


def _note_unused(request: BuildRequest) -> None:
    """Options that only TensorRT has, where they were given in vain."""
    given = {"--workspace": request.workspace, "--opt-level": request.opt_level, "--timing-cache": request.timing_cache}
    names = [name for name, value in given.items() if value is not None]
    if names:
        note(f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} no effect on ONNX Runtime")


def _refuse_target(target: Path, source: Path, suffix: str) -> None:
    """Raise where the engine would have the name of something else.

    Raises:
        UsageError: with the suffix that engines of this backend have.
    """
    if target.resolve() == source.resolve():
        raise UsageError(f"--output {target} is the ONNX file itself", "write elsewhere with --output")
    if not target.name.endswith((suffix, ".plan") if suffix == ".engine" else suffix):
        raise UsageError(f"--output {target} doesn't end in {suffix}", f"write --output {target.stem}{suffix}")


def _source(request: BuildRequest) -> _Source:
    path = request.onnx
    if path is None:
        dynamic = bool(request.profiles)
        artifact = artifacts.newest("onnx", lambda s: s.is_dynamic or not dynamic, _wanted(request))
        note(f"building the newest that fits: {artifact.path}")
    elif not files.sidecar_path(path).is_file():
        return _foreign(path)
    else:
        artifact = artifacts.load(path, "onnx")
    artifacts.check_file(artifact)
    sidecar = artifact.sidecar
    if sidecar.model.weights.startswith("random"):
        warn(f"weights: {sidecar.model.weights}")
    return _Source(artifact.path, sidecar.inputs, sidecar.outputs, sidecar.model, sidecar.artifact, sidecar)


def _wanted(request: BuildRequest) -> str:
    return "dynamic ONNX file" if request.profiles else "ONNX file"


def _foreign(path: Path) -> _Source:
    """An ONNX file that trtbatch didn't export: its own words are all there is."""
    model = load_onnx(path)
    inputs, outputs = read_specs(model, path.name)
    note(f"{path} has no sidecar: inputs and outputs are read from the file; preprocessing and classes are unknown")
    record = ModelRecord(path.stem, f"of {path.name}", model.producer_name or None, opset_of(model))
    return _Source(path, inputs, outputs, record, artifacts.record_file(path), None)


def _stem(onnx: Path, static: int | None) -> str:
    stem = onnx.name.removesuffix(".onnx")
    return stem if static is None else f"{stem.removesuffix('_dynamic')}_b{static}"


def _sidecar(source: _Source, built: Built, profiles: tuple[Profile, ...], backend: Any) -> Sidecar:
    known = source.sidecar
    return Sidecar(
        kind="engine",
        artifact=artifacts.record_file(built.file),
        companions=tuple(artifacts.record_file(path) for path in built.companions),
        inputs=built.inputs,
        outputs=built.outputs,
        model=source.model,
        source=source.record,
        backend=backend,
        profiles=profiles,
        precision_asked="default",
        precision_realised=built.precision,
        preprocessing=known.preprocessing if known else None,
        classes=known.classes if known else None,
        tools=built.tools,
        device=built.device,
    )


_LOOK = "make the model treat each sample alone; to look at every row, build with --no-verify and run trtbatch verify"


def _relative(source: Path, target: Path) -> str:
    """Where the ONNX file lies, as seen from the engine's folder."""
    return os.path.relpath(source.resolve(), target.resolve().parent)


def _run_corners(
    artifact: Artifact, name: str, request: BuildRequest, onnx: Path
) -> tuple[tuple[TensorSpec, ...], dict[str, Any]]:
    """Run the engine at min, opt and max of every profile, and check its rows.

    Returns:
        The outputs as they were seen, and what is known of memory.

    Raises:
        RowsError: wrong rows.
    """
    sidecar = artifact.sidecar
    corners = sidecar.corners
    with open_engine(artifact, request.device) as engine, engine.session() as session:
        outputs = observed(session, sidecar.inputs, sidecar.outputs, corners[0], corners[-1])
        _refuse_rowless(outputs, name, onnx, corners)
        sidecar = replace(sidecar, outputs=outputs)
        checker = RowChecker.of(session, sidecar, corners[-1])
        for batch in corners:
            if request.verify:
                checker.require(batch, name, _LOOK)
            else:
                session.bind(checker.inputs(batch))
                session.run()
        memory = _memory(engine, sidecar, corners[-1])
        return outputs, {"ran_at": corners, "rows_checked_at": corners if request.verify else []} | memory


def _refuse_rowless(outputs: tuple[TensorSpec, ...], name: str, onnx: Path, corners: list[int]) -> None:
    """Warn of outputs that don't follow the batch; raise where none does and a node is found that fixes it.

    Raises:
        RowsError: naming the node.
    """
    rowless = [spec for spec in outputs if spec.batch_axis is None]
    if len(rowless) == len(outputs) and corners[0] != corners[-1] and what_fixes_the_batch(onnx) is not None:
        shapes = ", ".join(map(str, rowless))
        raise RowsError(f"no output of {name} follows the batch size: {shapes}", "export it with --dynamic")
    for spec in rowless:
        warn(f"output {spec} doesn't follow the batch: it is recorded so, and is no row of any sample")


def _explained(error: TrtbatchError, onnx: Path) -> TrtbatchError:
    """The error with the node that probably fixes the batch, where one is found."""
    culprit = what_fixes_the_batch(onnx, error.problem)
    if culprit is None:
        return error
    return RowsError(
        f"the batch is probably fixed in {onnx.name}: {culprit}; {error.problem}",
        "make the model take its batch size from its input (x.shape[0] or -1), and export it again with --dynamic",
    )


def _memory(engine: Engine, sidecar: Sidecar, largest: int) -> dict[str, Any]:
    """Bytes that running needs: on the GPU weights, activations and bindings; on the CPU this process's peak."""
    activations = getattr(engine, "activation_bytes", None)
    if activations is None:
        return {"peak_host_bytes": environment.peak_memory()}
    bindings = sum(_bytes(spec, largest) for spec in (*sidecar.inputs, *sidecar.outputs))
    return {
        "activation_bytes": activations,
        "binding_bytes": bindings,
        "peak_device_bytes_estimate": sidecar.artifact.bytes + activations + bindings,
    }


def _bytes(spec: TensorSpec, batch: int) -> int:
    import numpy as np

    sizes = [size for size in spec.at(batch) if isinstance(size, int)]
    return int(np.prod(sizes, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
