"""Build an engine from an ONNX file: plan its profiles, run the backend's builder, validate the engine, publish it."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from trtbatch.backends import choose_builder, refuse_gpu
from trtbatch.backends.base import Builder, BuildPlan, Built, Progress
from trtbatch.builder import candidates
from trtbatch.builder.build_estimate import estimate_build
from trtbatch.builder.candidates import Candidate, Try, fastest_try
from trtbatch.builder.planning import plan_axes, prepared
from trtbatch.builder.preprocessor_engine import build_preprocessor, is_preprocessor
from trtbatch.builder.request import (
    BuildRequest,
    builder_settings,
    not_tried,
    note_unused,
    original_of,
    refuse_conversion_of,
    refuse_precision,
    refuse_target,
    refuse_tries,
    refuse_values,
    source_of,
    stem_of,
)
from trtbatch.builder.validation import ValidationRequest, ValidationResult, explained, validate
from trtbatch.core import store
from trtbatch.core.batches import Profile, pick_profile, refuse_outside
from trtbatch.core.profiles import gaps, powers_of_two
from trtbatch.core.sidecar import Artifact, BuildRecord, EngineRecord, PrecisionRecord, Sidecar, SourceRecord
from trtbatch.core.store import ENGINES
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import AccuracyError, BuildError, ExecutionError, MissingPackageError, PrecisionError, RowsError
from trtbatch.onnx_graph.dtypes import float_types, kinds, products
from trtbatch.onnx_graph.fusing import PREFIX, fuse
from trtbatch.onnx_graph.read import load_onnx, what_fixes_the_batch
from trtbatch.onnx_graph.workload import product_bytes
from trtbatch.quantization.precision import CONVERTED, PRECISIONS, ConversionRequest, convert, is_random, refuse_reduced
from trtbatch.util import files
from trtbatch.util.log import note, warn
from trtbatch.util.serialization import encode

__all__ = ["BuildRequest", "build"]

_BITS_ORDER = ("int8", "fp8", "fp16", "bf16")
"""Reduced precisions, narrowest first. An engine of mixed types is named after the first one that it computes in."""


def build(request: BuildRequest) -> Artifact:
    """Build an engine and publish it once it has run correctly at min, opt and max of every profile.

    Raises:
        UsageError, ProfileError: the request contradicts itself, or doesn't fit the model.
        ArtifactError: the ONNX file is missing or damaged.
        MissingPackageError: the backend or ModelOpt can't run here.
        PrecisionError: the precision isn't available here, or the engine doesn't realize it.
        BuildError: the backend can't build the model.
        RowsError: the engine gives wrong rows.
    """
    refuse_values(request)
    if is_preprocessor(request.onnx):
        return build_preprocessor(request)
    builder = choose_builder(request.backend)
    if builder.name == "onnxruntime":
        refuse_gpu(request.device)
        note_unused(request)
    refuse_precision(request, builder)
    refuse_tries(request)
    source = source_of(request)
    if request.fuse_preprocess is not None:
        folder = ENGINES if request.output is None else request.output.parent
        source = fuse(source, request.fuse_preprocess, folder)
    if source.sidecar.conversion is not None:
        refuse_conversion_of(source, request)
    elif request.precision in ("fp32", "tf32", "best"):
        refuse_reduced(load_onnx(source.path), source.path.name)
    target = request.output or ENGINES / f"{stem_of(source.path, request)}{builder.suffix}"
    refuse_target(target, source.path, builder.suffix)
    several = request.tries > 1 and builder.name == "tensorrt"
    make = _build_best if request.precision == "best" else build_again if several else _build_one
    with files.scratch(target) as folder:
        files.require_space(target, source.sidecar.artifact.bytes)
        made = make(request, builder, source, target, folder)
        return store.publish(made.path, target, made.sidecar, _companions(made))


def _build_best(request: BuildRequest, builder: Builder, source: Artifact, target: Path, folder: Path) -> Artifact:
    """Build in each precision that is available here, and return the fastest engine within the tolerance.

    Raises:
        PrecisionError: no engine is within the tolerance.
    """
    limit = candidates.TOLERANCE if request.tolerance is None else request.tolerance
    tried: list[Candidate] = []
    made: dict[str, Artifact] = {}
    for name in PRECISIONS:
        reason = not_tried(name, request, builder)
        if reason is not None:
            tried.append(Candidate(name, reason))
            continue
        one = replace(request, precision=name, tolerance=limit, progress=_named(name, request.progress))
        room = folder / name
        room.mkdir()
        try:
            made[name] = _build_one(one, builder, source, target, room)
            one.progress("timing it", None)
            weights = _weights(made[name].sidecar, source, target)
            tried.append(candidates.timed(name, made[name], request.device, weights))
        except (RowsError, PrecisionError, BuildError, MissingPackageError, ExecutionError) as error:
            tried.append(Candidate(name, error.problem))
    best = candidates.fastest(tried)
    if best is None:
        reasons = "; ".join(f"{each.precision}: {each.refused}" for each in tried)
        raise PrecisionError(f"no precision is right within {limit:g}: {reasons}", "raise `tolerance`")
    chosen = made[best.precision]
    precision = replace(chosen.sidecar.precision, asked="best")
    sidecar = _with_details(chosen.sidecar, candidates=[encode(each) for each in tried], tolerance=limit)
    return Artifact(chosen.path, replace(sidecar, precision=precision))


def build_again(request: BuildRequest, builder: Builder, source: Artifact, target: Path, folder: Path) -> Artifact:
    """Build several times, with the tactics timed anew, and return the fastest engine.

    Raises:
        RowsError, PrecisionError, BuildError, ExecutionError: every build failed; this is the error of the last one.
    """
    tries: list[Try] = []
    made: list[Artifact | None] = []
    begun = time.perf_counter()
    for number in range(1, request.tries + 1):
        room = folder / f"try{number}"
        room.mkdir()
        once = replace(request, keep_timings=False, progress=_named(f"{number} of {request.tries}", request.progress))
        try:
            one = _build_one(once, builder, source, target, room)
        except (RowsError, PrecisionError, BuildError, ExecutionError) as error:
            if number == request.tries and not any(made):
                raise
            warn(f"build {number} of {request.tries} is out: {error.problem}")
            tries.append(Try(0.0, {}, error.problem))
            made.append(None)
            continue
        facts = one.sidecar.build.details
        tries.append(Try(facts["build_seconds"], {str(row.batch): row.ms for row in one.sidecar.engine.table}))
        made.append(one)
    chosen = made[fastest_try(tries)]
    assert chosen is not None, "what is out is never the fastest"
    total = time.perf_counter() - begun  # refused builds took their time too
    sidecar = _with_details(chosen.sidecar, tries=[encode(each) for each in tries], total_seconds=round(total, 3))
    return Artifact(chosen.path, sidecar)


def _with_details(sidecar: Sidecar, **details: Any) -> Sidecar:
    """Return a sidecar with more details of the build."""
    return replace(sidecar, build=replace(sidecar.build, details=sidecar.build.details | details))


def _weights(sidecar: Sidecar, source: Artifact, target: Path) -> Path:
    """Return the ONNX file that an engine was built from, which holds its weights."""
    converted = None if sidecar.source is None else sidecar.source.converted
    return source.path if converted is None else target.with_name(converted.file)


def _named(name: str, progress: Progress) -> Progress:
    return lambda words, share: progress(f"{name}: {words}", share)


def _build_one(request: BuildRequest, builder: Builder, source: Artifact, target: Path, folder: Path) -> Artifact:
    """Build an engine in `folder` and validate it; return it with its complete sidecar."""
    started = time.perf_counter()
    inputs, outputs, profiles = plan_axes(
        source.path.name,
        source.sidecar.inputs,
        source.sidecar.outputs,
        request.profiles,
        request.static,
        request.shapes,
    )
    _show_plan(request, builder, source, profiles, target)
    typed, original = _typed(request, builder, source, inputs, target)
    inputs, outputs = (_as_typed(specs, typed) for specs in (inputs, outputs))
    onnx, external = prepared(typed.path, inputs, outputs, folder)
    graph = load_onnx(onnx)
    held, computes = kinds(graph), products(graph)
    conversion = typed.sidecar.conversion
    kept = set(conversion.kept) if conversion is not None else set()
    # Without strong typing, builder flags decide the precision of an int8 file's float layers: fp16 is allowed for all
    # but the nodes that stay in float32.
    allowed = ("fp16",) if held == {"int8"} and not builder.typed_alone and conversion is not None else ()
    types = float_types(graph) if "fp16" in (*held, *allowed) else {}
    # The nodes of the fused preprocessing become one kernel only if they have no types set.
    types = {name: kind for name, kind in types.items() if not name.startswith(PREFIX)}
    if allowed:
        types = {name: kind for name, kind in types.items() if name in kept}
    moved = product_bytes(graph, inputs)  # last, since it changes the graph
    plan = BuildPlan(
        onnx=onnx,
        name=target.name,
        inputs=inputs,
        outputs=outputs,
        profiles=profiles,
        external_weights=external,
        **builder_settings(request, target.parent),
        tf32=request.precision != "fp32",
        kinds=tuple(sorted(held)),
        allowed=allowed,
        node_types=types,
    )
    began = time.perf_counter()
    try:
        built = builder.build(plan, folder, request.progress)
    except BuildError as error:
        culprit = what_fixes_the_batch(onnx)
        if culprit is None or culprit.node not in error.problem:
            raise
        raise explained(error, onnx) from error
    seconds = time.perf_counter() - began
    sidecar = _sidecar(request, (source, typed, original), built, profiles, builder, held, computes)
    request.progress("running it at min, opt and max", None)
    validation = ValidationRequest(
        name=target.name,
        onnx=onnx,
        reference=original.path,
        products=computes,
        asked=request.precision,
        allowed=allowed,
        kept=kept,
        verify=request.verify,
        samples=None if is_random(request.calibration) else request.calibration,
        tolerance=request.tolerance,
        device=request.device,
        batches=_timed_batches(request, builder, profiles),
        progress=request.progress,
    )
    try:
        seen = validate(Artifact(built.file, sidecar), validation)
    except AccuracyError:
        raise
    except (RowsError, ExecutionError) as error:
        raise explained(error, onnx) from error
    facts: dict[str, Any] = {
        "build_seconds": round(seconds, 3),
        "total_seconds": round(time.perf_counter() - started, 3),
        **({} if moved is None else {"product_bytes": encode(moved)}),
    }
    return Artifact(built.file, _with_seen(sidecar, seen, facts, original.path, target))


def _show_plan(
    request: BuildRequest, builder: Builder, source: Artifact, profiles: tuple[Profile, ...], target: Path
) -> None:
    """Log the planned profiles and the batch sizes that no profile holds.

    Raises:
        ProfileError: no profile holds a batch size of interest.
    """
    for first, last in gaps(profiles):
        note(f"batch{f' {first} is' if first == last else f'es {first} to {last} are'} in no profile")
    refuse_outside(profiles, request.batches, target.name)
    if len(profiles) > 1:
        note(f"profiles (min:opt:max): {', '.join(map(str, profiles))}")
        if builder.name == "tensorrt":
            note(f"expected: {estimate_build(source, request.precision, profiles, target.parent)}")


def _timed_batches(request: BuildRequest, builder: Builder, profiles: tuple[Profile, ...]) -> tuple[int, ...]:
    """Return the batch sizes to time after the build.

    These are the batch sizes of interest, or else powers of two and the opt of every profile. ONNX Runtime runs all
    profiles alike, so an engine with one profile is timed there only at batch sizes of interest.
    """
    if request.batches:
        return request.batches
    if builder.name != "tensorrt" and len(profiles) == 1:
        return ()
    usual = powers_of_two(min(profile.min for profile in profiles), max(profile.max for profile in profiles))
    opts = {profile.opt for profile in profiles}
    return tuple(sorted(opts | {batch for batch in usual if pick_profile(profiles, batch) is not None}))


def _with_seen(
    sidecar: Sidecar, seen: ValidationResult, facts: dict[str, Any], original: Path, target: Path
) -> Sidecar:
    assert sidecar.source is not None
    return replace(
        sidecar,
        outputs=seen.outputs,
        source=replace(sidecar.source, path=_relative(original, target)),
        build=replace(sidecar.build, created=store.now(), details=facts | seen.facts),
        engine=replace(sidecar.engine, table=seen.table),
        precision=replace(sidecar.precision, layers=seen.layer_precisions, accuracy=seen.accuracy),
    )


def _companions(made: Artifact) -> tuple[Path, ...]:
    return tuple(made.path.with_name(record.file) for record in made.sidecar.companions)


def _typed(
    request: BuildRequest, builder: Builder, source: Artifact, inputs: tuple[TensorSpec, ...], target: Path
) -> tuple[Artifact, Artifact]:
    """Return the ONNX file in the requested precision, and the file that it was converted from."""
    if source.sidecar.conversion is not None:
        return source, original_of(source)
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
    known = {spec.name: spec for spec in source.sidecar.inputs}
    return convert(source, order, [_open_again(spec, known[spec.name]) for spec in inputs]), source


def _open_again(planned: TensorSpec, own: TensorSpec) -> TensorSpec:
    """Return the planned spec with the file's own batch axis, since a converted file serves every batch size."""
    if own.batch_axis is None:
        return planned
    shape = tuple(own.shape[axis] if axis == own.batch_axis else size for axis, size in enumerate(planned.shape))
    return replace(planned, shape=shape)


def _as_typed(specs: tuple[TensorSpec, ...], typed: Artifact) -> tuple[TensorSpec, ...]:
    """Return the specs with the data types of the converted file."""
    types = {spec.name: spec.dtype for spec in (*typed.sidecar.inputs, *typed.sidecar.outputs)}
    return tuple(replace(spec, dtype=types.get(spec.name, spec.dtype)) for spec in specs)


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
    converted = typed.sidecar.artifact if typed is not original else None
    return Sidecar(
        kind="engine",
        artifact=store.record_file(built.file),
        companions=tuple(store.record_file(path) for path in built.companions),
        inputs=built.inputs,
        outputs=built.outputs,
        model=known.model,
        source=SourceRecord.of(original.sidecar.artifact, None, converted),
        conversion=typed.sidecar.conversion,
        preprocessing=known.preprocessing,
        classes=known.classes,
        build=BuildRecord(built.tools, built.device, options=request.options.asked),
        engine=EngineRecord(builder.name, profiles),
        precision=PrecisionRecord(
            request.precision or "default", request.precision or (own[0] if own else built.precision)
        ),
    )


def _relative(source: Path, target: Path) -> str:
    """Return the path of the ONNX file relative to the engine's folder."""
    return os.path.relpath(source.resolve(), target.resolve().parent)
