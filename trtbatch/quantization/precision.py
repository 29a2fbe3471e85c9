"""ONNX → ONNX in another precision, by NVIDIA ModelOpt: AutoCast for fp16 and bf16, Q/DQ nodes for int8 and fp8.

The result is an artifact of its own, ``x.fp16.onnx``, and is used again while the source and the settings are the
same. ModelOpt runs in a process of its own: in this environment (extra ``precision``), or in the one whose
interpreter ``TRTBATCH_MODELOPT_PYTHON`` names.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import Progress
from trtbatch.core import store
from trtbatch.core.sidecar import Artifact, Conversion, Sidecar, SourceRecord
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import ArtifactError, InputError, PrecisionError, UsageError
from trtbatch.onnx_graph.dtypes import (
    PRODUCTS,
    half_inputs_and_outputs,
    kinds,
    lower_opset,
    products,
    raise_scales,
    tell_kernels,
)
from trtbatch.onnx_graph.fusing import PREFIX, halve_prefix
from trtbatch.onnx_graph.read import load_onnx, opset_of
from trtbatch.onnx_graph.run import OnnxReference
from trtbatch.quantization.converter import LARGEST, run_modelopt
from trtbatch.runtime.sources import read_samples
from trtbatch.util import files, optional
from trtbatch.util.log import note, warn

__all__ = [
    "CONVERTED",
    "PRECISIONS",
    "QUANTIZED",
    "ConversionRequest",
    "Precision",
    "convert",
    "is_random",
]

Array = NDArray[Any]

Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8", "fp8"]

PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")

CONVERTED = ("fp16", "bf16", "int8", "fp8")
"""Precisions that live in the ONNX file; fp32 and tf32 are ways to run a float32 one."""

QUANTIZED = ("int8", "fp8")

RANDOM_SAMPLES = 64
"""Random samples that ranges are taken from where no ``--calibration`` is given."""

MAX_SAMPLES = 512
"""Largest number of samples used of a calibration folder or file: ranges hardly change after some hundreds."""

CAST_SAMPLES = 16
"""Samples that AutoCast runs, to find what float16 can't hold; each is run with every tensor as an output."""


@dataclass(frozen=True)
class ConversionRequest:
    """What to make of an ONNX file.

    Args:
        precision: one of :data:`CONVERTED`.
        rest: type of what isn't quantized; fp16 for builders that take types from the file alone.
        io: type of inputs and outputs; None keeps theirs.
        keep_fp32: names of nodes (shell patterns too) or of operators that stay float32.
        calibration: folder or glob of images, ``.npy``, ``.npz``, or a number of random samples.
        method: how ranges are chosen, as ModelOpt offers it; None is entropy.
        folder: where the file goes.
    """

    precision: str
    rest: Literal["fp32", "fp16"] = "fp32"
    io: Literal["fp16"] | None = None
    keep_fp32: tuple[str, ...] = ()
    calibration: str | None = None
    method: Literal["entropy", "max"] | None = None
    seed: int = 0
    folder: Path = store.ENGINES
    progress: Progress = lambda words, share: None


def convert(source: Artifact, request: ConversionRequest, drawn: Sequence[TensorSpec] | None = None) -> Artifact:
    """Return the ONNX file in another precision, made now or found from before.

    Args:
        source: the float32 file.
        request: precision, samples and what stays in float32.
        drawn: its inputs with every axis but the batch known, for the samples; None where the file knows them.

    Raises:
        UsageError: a node that isn't there, or a file in the way that isn't a conversion.
        InputError: calibration samples that can't be had.
        MissingPackageError: no ModelOpt in reach.
        PrecisionError: ModelOpt fails, or nothing in the model takes the precision.
    """
    model = load_onnx(source.path)
    refuse_reduced(model, source.path.name)
    kept = kept_nodes(model, request.keep_fp32, source.path.name)
    kept |= {node.name for node in model.graph.node if node.name.startswith(f"{PREFIX}/")}
    sampled = replace(source.sidecar, inputs=tuple(drawn or source.sidecar.inputs))
    samples, words = _samples(sampled, request)
    quantized = request.precision in QUANTIZED
    wanted = Conversion(
        precision=request.precision,
        rest=request.rest if quantized else "fp32",
        io=request.io,
        keep_fp32=tuple(sorted(request.keep_fp32)),
        calibration=words,
        calibration_sha256=_digest(samples),
        method=(request.method or "entropy") if quantized else None,
        random=is_random(request.calibration),
        kept=tuple(sorted(kept)),
    )
    if quantized and wanted.random:
        warn(
            f"RANDOM CALIBRATION: the ranges of {request.precision} come from {words}; on real data the results may be "
            "useless. For real ones pass `calibration` with a folder of images, or a .npz"
        )
    target = request.folder / f"{source.path.name.removesuffix('.onnx')}.{request.precision}.onnx"
    found = _found(target, source, wanted)
    if found is not None:
        note(f"using {found.path}, converted before")
        return found
    request.progress(f"converting to {request.precision} (ModelOpt)", None)
    with files.scratch(target) as folder:
        made, tools = run_modelopt(source, wanted, samples, folder)
        return _publish(made, target, source, wanted, tools)


def is_random(calibration: str | None) -> bool:
    """Whether ``--calibration`` asks for random samples."""
    return calibration is None or calibration == "random" or calibration.isdecimal()


def refuse_reduced(model: Any, name: str) -> None:
    """Raise where a file holds reduced types already.

    Raises:
        UsageError: naming them.
    """
    held = sorted(kinds(model))
    if held:
        raise UsageError(
            f"{name} holds {' and '.join(held)} already",
            "name the float32 file, or leave out `precision`: its types hold",
        )


def kept_nodes(model: Any, names: Sequence[str], file: str) -> set[str]:
    """Return the nodes that ``--keep-fp32`` names: by name, by shell pattern, or by operator.

    Raises:
        UsageError: with the nearest that there is.
    """
    nodes = {node.name: node.op_type for node in model.graph.node if node.name}
    kept: set[str] = set()
    for name in names:
        found = {name} & set(nodes) or {node for node, operator in nodes.items() if operator == name}
        found = found or set(fnmatch.filter(nodes, name))
        if not found:
            operators = sorted(set(nodes.values()))
            near = [node for node in nodes if name in node][:3]
            near = near or difflib.get_close_matches(name, [*operators, *nodes], n=3, cutoff=0.4)
            hint = f"nearest: {', '.join(near)}" if near else f"operators: {', '.join(operators)}"
            raise UsageError(f"`keep_fp32={name!r}`: {file} has no such node or operator", hint)
        kept |= found
    return kept


def _samples(sidecar: Sidecar, request: ConversionRequest) -> tuple[dict[str, Array], str]:
    """Calibration samples stacked by input, and what they are, in words."""
    quantized = request.precision in QUANTIZED
    text = request.calibration
    fixed = max((spec.fixed_batch or 1 for spec in sidecar.inputs), default=1)
    most = max(MAX_SAMPLES if quantized else CAST_SAMPLES, fixed)
    if text is None or is_random(text):
        count = int(text) if text is not None and text.isdecimal() else RANDOM_SAMPLES
        if not 1 <= count <= MAX_SAMPLES:
            raise UsageError(
                f"`calibration={text!r}`: not a number of samples", f"give 1 to {MAX_SAMPLES}, or a folder"
            )
        count = count if quantized else min(count, CAST_SAMPLES)
        count = -(-count // fixed) * fixed  # whole batches of a model whose batch is fixed
        samples, _ = read_samples("random", sidecar, count, request.seed)
        return samples, f"{count} random samples (seed {request.seed})"
    samples, names = read_samples(text, sidecar, most, option="`calibration`")
    _refuse_strange(samples, sidecar.inputs, names, text)
    whole = len(names) // fixed * fixed
    if not whole:
        raise UsageError(
            f"`calibration={text!r}` has {len(names)} samples, and the model a fixed batch of {fixed}", "give more"
        )
    cut = {
        spec.name: samples[spec.name].take(np.arange(whole), axis=spec.batch_axis)
        if spec.batch_axis is not None
        else samples[spec.name]
        for spec in sidecar.inputs
    }
    return cut, f"{whole} samples of {text}"


def _refuse_strange(
    samples: Mapping[str, Array], inputs: Sequence[TensorSpec], names: Sequence[str], text: str
) -> None:
    """Raise where a sample isn't finite: it would set every range.

    Raises:
        InputError: naming the sample.
    """
    for spec in inputs:
        array = samples[spec.name]
        if spec.batch_axis is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
            finite = np.isfinite(np.moveaxis(array, spec.batch_axis, 0).reshape(len(names), -1)).all(axis=1)
            bad = names[int(np.flatnonzero(~finite)[0])]
            raise InputError(f"`calibration={text!r}`: {bad} holds NaN or infinity", "remove or mend that sample")


def _digest(samples: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name in sorted(samples):
        array = np.ascontiguousarray(samples[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _found(target: Path, source: Artifact, wanted: Conversion) -> Artifact | None:
    """Return the file of an earlier run, where source and settings are the same.

    Raises:
        UsageError: the name is taken by something that isn't a conversion.
    """
    artifact = store.occupant(target, lambda sidecar: sidecar.conversion is not None, "trtbatch converted it")
    own = None if artifact is None else artifact.sidecar.conversion
    if artifact is None or own is None or own.settings != wanted.settings:
        return None
    return artifact if store.still_made_from(artifact, source) else None


def _publish(made: Path, target: Path, source: Artifact, wanted: Conversion, tools: dict[str, str]) -> Artifact:
    """Finish the file (scales, types of inputs and outputs, opset), see that it loads, and put it in its place.

    Raises:
        PrecisionError: no product computes in the precision, or ONNX Runtime can't load the file.
    """
    onnx = optional.require("onnx", "write ONNX files")
    model = load_onnx(made, weights=True)
    before = load_onnx(source.path)
    raised = raise_scales(model)
    if raised:
        warn(f"{raised} quantization scales were zero in the type that they are stored in, and were raised")
    if wanted.io is not None and wanted.io != wanted.precision:
        half_inputs_and_outputs(model)
    recipe = source.sidecar.preprocessing
    if recipe is not None and recipe.fused is not None:
        halve_prefix(model, recipe)
    tell_kernels(model, before)
    obstacle = lower_opset(model, opset_of(before))
    if obstacle is None:
        model.ir_version = before.ir_version
    else:
        note(f"{target.name} has opset {opset_of(model)}, {source.path.name} {opset_of(before)}: {obstacle}")
    computes = products(model)
    stayed = tuple(name for name, kind in computes.items() if kind != wanted.precision)
    _refuse_none(source.path.name, computes, stayed, wanted)
    by_itself = [name for name in stayed if name not in wanted.kept]
    if by_itself:
        why = "not of a kind that is quantized" if wanted.precision in QUANTIZED else "values too large for the type"
        shown = ", ".join(by_itself[:3]) + (" …" if len(by_itself) > 3 else "")
        note(f"{len(by_itself)} of {len(computes)} products stay {wanted.rest} ({why}): {shown}")
    final = made.with_name(target.name)
    large = model.ByteSize() > LARGEST
    beside = final.with_name(f"{target.name}.data")
    onnx.save(model, str(final), save_as_external_data=large, location=beside.name)
    if wanted.precision in ("fp16", "int8") and wanted.rest == "fp32":  # what the CPU has kernels for
        _refuse_unloadable(final, target.name)
    companions = (beside,) if large else ()
    inputs, outputs = (_retyped(specs, infos) for specs, infos in _sides(source.sidecar, model))
    sidecar = replace(
        source.sidecar,
        artifact=store.record_file(final),
        companions=tuple(store.record_file(path) for path in companions),
        inputs=inputs,
        outputs=outputs,
        model=replace(source.sidecar.model, opset=opset_of(model)),
        source=SourceRecord.of(
            source.sidecar.artifact, os.path.relpath(source.path.resolve(), target.resolve().parent)
        ),
        conversion=replace(wanted, stayed=stayed, tools=tools),
        build=replace(source.sidecar.build, tools=source.sidecar.build.tools | tools, created=store.now()),
    )
    return store.publish(final, target, sidecar, companions)


def _refuse_none(name: str, computes: Mapping[str, str], stayed: Sequence[str], wanted: Conversion) -> None:
    """Raise where no product came out in the precision.

    Raises:
        PrecisionError: with what would help.
    """
    if len(stayed) < len(computes):
        return
    kinds_of = ", ".join(PRODUCTS)
    if not computes:
        raise PrecisionError(
            f"{name} has no {kinds_of}: nothing of it would compute in {wanted.precision}", "leave out `precision`"
        )
    if set(stayed) <= set(wanted.kept):
        raise PrecisionError(
            f"`keep_fp32` keeps every product of {name} in float32: nothing computes in {wanted.precision}",
            "keep less, or leave out `precision`",
        )
    raise PrecisionError(
        f"ModelOpt changes no product of {name}: nothing of it computes in {wanted.precision}",
        "they are of too few channels, or their values too large: leave out `precision`",
    )


def _refuse_unloadable(file: Path, name: str) -> None:
    try:
        OnnxReference.unoptimised(file)
    except ArtifactError as error:
        raise PrecisionError(
            f"{name} as ModelOpt made it isn't a valid model: {error.problem}",
            "keep the part that it names (`keep_fp32`)",
        ) from error


def _sides(sidecar: Sidecar, model: Any) -> list[tuple[tuple[TensorSpec, ...], Any]]:
    return [(sidecar.inputs, model.graph.input), (sidecar.outputs, model.graph.output)]


def _retyped(specs: Sequence[TensorSpec], infos: Any) -> tuple[TensorSpec, ...]:
    """Return the specs with the types that the converted model has."""
    onnx = optional.require("onnx", "read ONNX files")
    types = {
        info.name: onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type).name
        for info in infos
        if info.type.tensor_type.elem_type
    }
    return tuple(replace(spec, dtype=types.get(spec.name, spec.dtype)) for spec in specs)
