"""ONNX → engine: which file, which profiles, the backend's builder, the rows checked, the sidecar written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from trtbatch import artifacts, candidates, files, precision
from trtbatch.artifacts import ENGINES, Artifact, ModelRecord, Sidecar, TensorSpec
from trtbatch.backends import choose_builder, refuse_gpu, warn_of_random
from trtbatch.backends.base import Builder, BuilderOptions, BuildPlan, Built, Progress
from trtbatch.batches import Profile
from trtbatch.candidates import Candidate
from trtbatch.errors import BuildError, ExecutionError, MissingPackageError, PrecisionError, RowsError, UsageError
from trtbatch.examine import Examination, Examined, examine, explained
from trtbatch.notes import note
from trtbatch.onnxfile import external_files, load_onnx, opset_of, read_specs
from trtbatch.planning import plan_axes, prepared
from trtbatch.precision import CONVERTED, PRECISIONS, ConversionRequest
from trtbatch.records import encode
from trtbatch.typedgraph import float_types, kinds, products

__all__ = ["BuildRequest", "build", "foreign"]

_BITS_ORDER = ("int8", "fp8", "fp16", "bf16")
"""Reduced precisions, the narrowest first: the one by which an engine of mixed types is called."""


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
        precision: of :data:`trtbatch.precision.PRECISIONS`, or ``best``: the fastest within the tolerance; None is
            what the file and the backend make of it (TF32 on TensorRT).
        io_precision: type of the inputs and outputs; None keeps theirs.
        keep_fp32: names of nodes or operators that stay float32.
        calibration: folder, glob, ``.npy``, ``.npz``, or a number of random samples: for the ranges of int8 and fp8,
            for what fp16 can't hold, and for the accuracy.
        calibration_method: how ranges are chosen.
        tolerance: largest L2-relative error of a row against the ONNX file; None is that of the precision.
        options: what else a TensorRT engine is to be.
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
    precision: str | None = None
    io_precision: Literal["fp16"] | None = None
    keep_fp32: tuple[str, ...] = ()
    calibration: str | None = None
    calibration_method: Literal["entropy", "max"] = "entropy"
    tolerance: float | None = None
    options: BuilderOptions = field(default_factory=BuilderOptions)
    device: int = 0
    progress: Callable[[str, float | None], None] = lambda words, share: None


def build(request: BuildRequest) -> Artifact:
    """Build an engine; it appears only when it has run right at min, opt and max of every profile.

    Raises:
        UsageError, ProfileError: the model and the profiles don't go together.
        ArtifactError: no ONNX file, or a damaged one.
        MissingPackageError: the backend, or ModelOpt, can't run here.
        PrecisionError: the precision can't be had here, or was not realised.
        BuildError: the backend can't build the model.
        RowsError: the engine is built and gives wrong rows.
    """
    builder = choose_builder(request.backend)
    if builder.name == "onnxruntime":
        refuse_gpu(request.device)
        _note_unused(request)
    _refuse_precision(request, builder)
    source = _source(request)
    target = request.output or ENGINES / f"{_stem(source.path, request)}{builder.suffix}"
    _refuse_target(target, source.path, builder.suffix)
    make = _build_best if request.precision == "best" else _build_one
    with files.scratch(target) as folder:
        files.require_space(target, source.sidecar.artifact.bytes)
        made = make(request, builder, source, target, folder)
        return artifacts.publish(made.path, target, made.sidecar, _companions(made))


def _build_best(request: BuildRequest, builder: Builder, source: Artifact, target: Path, folder: Path) -> Artifact:
    """Build in each precision that can be had here, and keep the fastest whose rows are near enough.

    Raises:
        PrecisionError: none is.
    """
    limit = candidates.TOLERANCE if request.tolerance is None else request.tolerance
    tried: list[Candidate] = []
    made: dict[str, Artifact] = {}
    for name in PRECISIONS:
        reason = _not_tried(name, request, builder)
        if reason is not None:
            tried.append(Candidate(name, reason))
            continue
        one = replace(request, precision=name, tolerance=limit, progress=_named(name, request.progress))
        room = folder / name
        room.mkdir()
        try:
            made[name] = _build_one(one, builder, source, target, room)
            one.progress("timing it", None)
            tried.append(candidates.timed(name, made[name], request.device))
        except (RowsError, PrecisionError, BuildError, MissingPackageError) as error:
            tried.append(Candidate(name, error.problem))
    best = candidates.fastest(tried)
    if best is None:
        reasons = "; ".join(f"{each.precision}: {each.refused}" for each in tried)
        raise PrecisionError(f"no precision is right within {limit:g}: {reasons}", "raise --tolerance")
    chosen = made[best.precision]
    facts = chosen.sidecar.build | {"candidates": [encode(each) for each in tried], "tolerance": limit}
    return Artifact(chosen.path, replace(chosen.sidecar, precision_asked="best", build=facts))


def _named(name: str, progress: Progress) -> Progress:
    return lambda words, share: progress(f"{name}: {words}", share)


def _not_tried(name: str, request: BuildRequest, builder: Builder) -> str | None:
    """Why a precision is no candidate here; None where it is one."""
    try:
        builder.refuse(name, request.options, request.device)
    except PrecisionError as error:
        return error.problem
    if name in precision.QUANTIZED and (request.calibration is None or request.calibration.isdecimal()):
        return "not tried without real samples: --calibration"
    return None


def _build_one(request: BuildRequest, builder: Builder, source: Artifact, target: Path, folder: Path) -> Artifact:
    """Build into `folder` and examine; the artifact lies there, and its sidecar is complete."""
    started = time.perf_counter()
    inputs, outputs, profiles = plan_axes(
        source.path.name,
        source.sidecar.inputs,
        source.sidecar.outputs,
        request.profiles,
        request.static,
        request.shapes,
    )
    typed, original = _typed(request, builder, source, inputs, target)
    inputs, outputs = (_as_typed(specs, typed) for specs in (inputs, outputs))
    onnx, external = prepared(typed.path, inputs, outputs, folder)
    graph = load_onnx(onnx)
    held, computes = kinds(graph), products(graph)
    allowed = ("fp16",) if request.precision == "int8" and not builder.typed_alone else ()
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
        tf32=request.precision != "fp32",
        kinds=tuple(sorted(held)),
        allowed=allowed,
        node_types=float_types(graph) if held == {"fp16"} else {},
        options=request.options,
    )
    began = time.perf_counter()
    built = builder.build(plan, folder, request.progress)
    seconds = time.perf_counter() - began
    sidecar = _sidecar(request, (source, typed, original), built, profiles, builder, held, computes)
    request.progress("running it at min, opt and max", None)
    examination = Examination(
        name=target.name,
        onnx=onnx,
        reference=original.path,
        products=computes,
        asked=request.precision,
        allowed=allowed,
        verify=request.verify,
        samples=None if request.calibration is None or request.calibration.isdecimal() else request.calibration,
        tolerance=request.tolerance,
        device=request.device,
    )
    try:
        seen = examine(Artifact(built.file, sidecar), examination)
    except (RowsError, ExecutionError) as error:
        raise explained(error, onnx) from error
    facts = {"build_seconds": round(seconds, 3), "total_seconds": round(time.perf_counter() - started, 3)}
    return Artifact(built.file, _with_seen(sidecar, seen, facts, original.path, target))


def _with_seen(sidecar: Sidecar, seen: Examined, facts: dict[str, Any], original: Path, target: Path) -> Sidecar:
    return replace(
        sidecar,
        outputs=seen.outputs,
        source_path=_relative(original, target),
        accuracy=seen.accuracy,
        layer_precisions=seen.layer_precisions,
        build=facts | seen.facts,
        created=artifacts.now(),
    )


def _companions(made: Artifact) -> tuple[Path, ...]:
    return tuple(made.path.with_name(record.file) for record in made.sidecar.companions)


def _refuse_precision(request: BuildRequest, builder: Builder) -> None:
    """Raise where what is asked of the precision contradicts itself, or can't be had here.

    Raises:
        UsageError, PrecisionError: naming the option.
    """
    name = request.precision
    builder.refuse(None if name == "best" else name, request.options, request.device)
    if request.io_precision is not None and name != request.io_precision:
        raise UsageError(
            f"--io-precision {request.io_precision} goes with --precision {request.io_precision}", "give both, or none"
        )
    given = {"--keep-fp32": request.keep_fp32, "--calibration": request.calibration}
    vain = [option for option, value in given.items() if value]
    if vain and name not in (*CONVERTED, "best"):
        raise UsageError(
            f"{' and '.join(vain)} mean something for reduced precisions only", f"add --precision {CONVERTED[0]}"
        )
    if request.tolerance is not None and not request.verify:
        raise UsageError("--tolerance is for the check that --no-verify leaves out", "leave one of them out")
    if name == "best" and not request.verify:
        raise UsageError("--precision best needs the check that --no-verify leaves out", "leave one of them out")


def _typed(
    request: BuildRequest, builder: Builder, source: Artifact, inputs: tuple[TensorSpec, ...], target: Path
) -> tuple[Artifact, Artifact]:
    """The ONNX file in the precision asked for, and the one that it was made from."""
    if source.sidecar.conversion is not None:
        own = source.sidecar.conversion.precision
        if request.precision not in (None, own):
            raise UsageError(
                f"{source.path.name} is in {own} already, and {request.precision} was asked for",
                "name the float32 file that it was made from",
            )
        return source, _original(source)
    if request.precision not in CONVERTED:
        return source, source
    order = ConversionRequest(
        precision=request.precision,
        rest="fp16" if builder.typed_alone else "fp32",
        io=request.io_precision,
        keep_fp32=request.keep_fp32,
        calibration=request.calibration,
        method=request.calibration_method,
        folder=target.parent,
        progress=request.progress,
    )
    return precision.convert(replace(source, sidecar=replace(source.sidecar, inputs=inputs)), order), source


def _original(converted: Artifact) -> Artifact:
    """The float32 file of a converted one, where it is still there; else the converted one."""
    record, sidecar = converted.sidecar.source, converted.sidecar
    path = converted.path.parent / (sidecar.source_path or "")
    if record is not None and path.is_file() and artifacts.record_file(path).sha256 == record.sha256:
        return artifacts.load(path, "onnx") if files.sidecar_path(path).is_file() else foreign(path)
    note(f"the float32 file of {converted.path} isn't there: the accuracy is taken against itself")
    return converted


def _as_typed(specs: tuple[TensorSpec, ...], typed: Artifact) -> tuple[TensorSpec, ...]:
    """The specs with the types of the converted file."""
    types = {spec.name: spec.dtype for spec in (*typed.sidecar.inputs, *typed.sidecar.outputs)}
    return tuple(replace(spec, dtype=types.get(spec.name, spec.dtype)) for spec in specs)


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


def _source(request: BuildRequest) -> Artifact:
    path = request.onnx
    if path is None:
        dynamic = bool(request.profiles)
        artifact = artifacts.newest(
            "onnx", lambda s: s.conversion is None and (s.is_dynamic or not dynamic), _wanted(request)
        )
        note(f"building the newest that fits: {artifact.path}")
    elif not files.sidecar_path(path).is_file():
        return foreign(path)
    else:
        artifact = artifacts.load(path, "onnx")
    artifacts.check_file(artifact)
    warn_of_random(artifact.sidecar)
    return artifact


def _wanted(request: BuildRequest) -> str:
    return "dynamic ONNX file" if request.profiles else "ONNX file"


def foreign(path: Path) -> Artifact:
    """An ONNX file that trtbatch didn't export: its own words are all there is."""
    model = load_onnx(path)
    inputs, outputs = read_specs(model, path.name)
    note(f"{path} has no sidecar: inputs and outputs are read from the file; preprocessing and classes are unknown")
    record = ModelRecord(path.stem, f"of {path.name}", model.producer_name or None, opset_of(model))
    beside = tuple(artifacts.record_file(path.with_name(name)) for name in external_files(model))
    return Artifact(path, Sidecar("onnx", artifacts.record_file(path), inputs, outputs, record, companions=beside))


def _stem(onnx: Path, request: BuildRequest) -> str:
    stem = onnx.name.removesuffix(".onnx")
    if request.static is not None:
        stem = f"{stem.removesuffix('_dynamic')}_b{request.static}"
    named = request.precision is None or stem.endswith(f".{request.precision}")
    return stem if named else f"{stem}.{request.precision}"


def _sidecar(
    request: BuildRequest,
    files_of: tuple[Artifact, Artifact, Artifact],
    built: Built,
    profiles: tuple[Profile, ...],
    builder: Builder,
    held: set[str],
    computes: dict[str, str],
) -> Sidecar:
    source, typed, original = files_of
    known = source.sidecar
    own = [kind for kind in _BITS_ORDER if kind in held and kind in computes.values()]
    return Sidecar(
        kind="engine",
        artifact=artifacts.record_file(built.file),
        companions=tuple(artifacts.record_file(path) for path in built.companions),
        inputs=built.inputs,
        outputs=built.outputs,
        model=known.model,
        source=original.sidecar.artifact,
        backend=builder.name,
        profiles=profiles,
        precision_asked=request.precision or "default",
        precision_realised=request.precision or (own[0] if own else built.precision),
        conversion=typed.sidecar.conversion,
        converted=typed.sidecar.artifact if typed is not original else None,
        options=request.options.asked,
        preprocessing=known.preprocessing,
        classes=known.classes,
        tools=built.tools,
        device=built.device,
    )


def _relative(source: Path, target: Path) -> str:
    """Where the ONNX file lies, as seen from the engine's folder."""
    return os.path.relpath(source.resolve(), target.resolve().parent)
