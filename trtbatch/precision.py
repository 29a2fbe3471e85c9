"""ONNX → ONNX in another precision, by NVIDIA ModelOpt: AutoCast for fp16 and bf16, Q/DQ nodes for int8 and fp8.

The result is an artifact of its own, ``x.fp16.onnx``, and is used again while the source and the settings are the
same. ModelOpt runs in a process of its own: in this environment (extra ``precision``), or in the one whose
interpreter ``TRTBATCH_MODELOPT_PYTHON`` names.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trtbatch import artifacts, files, optional
from trtbatch.artifacts import Artifact, Conversion, Sidecar, TensorSpec
from trtbatch.backends.base import Progress
from trtbatch.errors import ArtifactError, MissingPackageError, PrecisionError, UsageError
from trtbatch.notes import note, warn
from trtbatch.onnxfile import load_onnx, opset_of
from trtbatch.sources import read_samples
from trtbatch.typedgraph import PRODUCTS, lower_opset, products, raise_scales

__all__ = ["CONVERTED", "MODELOPT_PYTHON", "PRECISIONS", "ConversionRequest", "Precision", "convert"]

Array = NDArray[Any]

Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8", "fp8"]

PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")

CONVERTED = ("fp16", "bf16", "int8", "fp8")
"""Precisions that live in the ONNX file; fp32 and tf32 are ways to run a float32 one."""

QUANTIZED = ("int8", "fp8")

MODELOPT_PYTHON = "TRTBATCH_MODELOPT_PYTHON"
"""Environment variable: an interpreter that has nvidia-modelopt[onnx], where this one hasn't."""

RANDOM_SAMPLES = 64
"""Random samples that ranges are taken from where no ``--calibration`` is given."""

MAX_SAMPLES = 512
"""Of a calibration folder or file, at most so many: ranges hardly change after some hundreds."""

CAST_SAMPLES = 16
"""Samples that AutoCast runs, to find what float16 can't hold; each is run with every tensor as an output."""

LARGEST = 2**31 - 2**20
"""Bytes of a protobuf file, less some: larger models keep their weights beside them."""


@dataclass(frozen=True)
class ConversionRequest:
    """What to make of an ONNX file.

    Args:
        precision: one of :data:`CONVERTED`.
        rest: type of what isn't quantized; fp16 for builders that take types from the file alone.
        io: type of inputs and outputs; None keeps theirs.
        keep_fp32: names of nodes (shell patterns too) or of operators that stay float32.
        calibration: folder or glob of images, ``.npy``, ``.npz``, or a number of random samples.
        method: how ranges are chosen, as ModelOpt offers it.
        folder: where the file goes.
    """

    precision: str
    rest: Literal["fp32", "fp16"] = "fp32"
    io: Literal["fp16"] | None = None
    keep_fp32: tuple[str, ...] = ()
    calibration: str | None = None
    method: Literal["entropy", "max"] = "entropy"
    seed: int = 0
    folder: Path = artifacts.ENGINES
    progress: Progress = lambda words, share: None


def convert(source: Artifact, request: ConversionRequest) -> Artifact:
    """The ONNX file in another precision, made now or found from before.

    Args:
        source: the float32 file; every axis of its inputs but the batch is known.

    Raises:
        UsageError: a node that isn't there, or a file in the way that isn't a conversion.
        InputError: calibration samples that can't be had.
        MissingPackageError: no ModelOpt in reach.
        PrecisionError: ModelOpt fails, or nothing in the model takes the precision.
    """
    model = load_onnx(source.path)
    kept = _kept(model, request.keep_fp32, source.path.name)
    samples, words = _samples(source.sidecar, request)
    wanted = Conversion(
        precision=request.precision,
        rest=request.rest if request.precision in QUANTIZED else "fp32",
        io=request.io,
        keep_fp32=tuple(sorted(request.keep_fp32)),
        calibration=words,
        calibration_sha256=_digest(samples),
        method=request.method if request.precision in QUANTIZED else None,
    )
    if request.precision in QUANTIZED and "random" in words:
        warn(
            f"RANDOM CALIBRATION: the ranges of {request.precision} come from {words}; on real data the results may be "
            "useless. For real ones pass --calibration with a folder of images, or a .npz"
        )
    target = request.folder / f"{source.path.name.removesuffix('.onnx')}.{request.precision}.onnx"
    found = _found(target, source, wanted)
    if found is not None:
        note(f"using {found.path}, converted before")
        return found
    request.progress(f"converting to {request.precision} (ModelOpt)", None)
    with files.scratch(target) as folder:
        made, tools = _run_modelopt(source, request, kept, samples, folder)
        return _publish(made, target, source, wanted, tools, kept)


def _kept(model: Any, names: Sequence[str], file: str) -> tuple[set[str], set[str]]:
    """The nodes and the operators that ``--keep-fp32`` names; nodes by shell patterns too.

    Raises:
        UsageError: with the nearest that there is.
    """
    nodes = {node.name for node in model.graph.node if node.name}
    operators = {node.op_type for node in model.graph.node}
    kept: set[str] = set()
    for name in names:
        found = {name} & nodes or set(fnmatch.filter(nodes, name))
        if not found and name not in operators:
            near = difflib.get_close_matches(name, [*operators, *nodes], n=3, cutoff=0.4)
            hint = f"nearest: {', '.join(near)}" if near else f"operators: {', '.join(sorted(operators))}"
            raise UsageError(f"--keep-fp32 {name}: {file} has no such node or operator", hint)
        kept |= found
    return kept, operators & set(names)


def _samples(sidecar: Sidecar, request: ConversionRequest) -> tuple[dict[str, Array], str]:
    """Calibration samples stacked by input, and what they are, in words."""
    quantized = request.precision in QUANTIZED
    text = request.calibration
    fixed = max((spec.fixed_batch or 1 for spec in sidecar.inputs), default=1)
    most = MAX_SAMPLES if quantized else CAST_SAMPLES
    if text is None or text.isdecimal():
        count = RANDOM_SAMPLES if text is None else int(text)
        if not 1 <= count <= 100_000:
            raise UsageError(f"--calibration {text}: not a number of samples", "give 1 to 100000, or a folder")
        count = count if quantized else min(count, CAST_SAMPLES)
        count = -(-count // fixed) * fixed  # whole batches of a model whose batch is fixed
        samples, _ = read_samples("random", sidecar, count, request.seed)
        return samples, f"{count} random samples (seed {request.seed})"
    samples, names = read_samples(text, sidecar, most)
    whole = len(names) // fixed * fixed
    if not whole:
        raise UsageError(
            f"--calibration {text} has {len(names)} samples, and the model a fixed batch of {fixed}", "give more"
        )
    cut = {
        spec.name: samples[spec.name].take(np.arange(whole), axis=spec.batch_axis)
        if spec.batch_axis is not None
        else samples[spec.name]
        for spec in sidecar.inputs
    }
    return cut, f"{whole} samples of {text}"


def _digest(samples: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name in sorted(samples):
        array = np.ascontiguousarray(samples[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _found(target: Path, source: Artifact, wanted: Conversion) -> Artifact | None:
    """The file of an earlier run, where source and settings are the same.

    Raises:
        UsageError: the name is taken by something that isn't a conversion.
    """
    if not target.exists():
        return None
    try:
        artifact = artifacts.load(target, "onnx")
    except ArtifactError:
        artifact = None
    if artifact is None or artifact.sidecar.conversion is None:
        raise UsageError(f"{target} is in the way: it is no conversion that trtbatch made", "move it, or use --output")
    own, made_from = artifact.sidecar.conversion, artifact.sidecar.source
    if own.settings != wanted.settings or made_from is None or made_from.sha256 != source.sidecar.artifact.sha256:
        return None
    try:
        artifacts.check_file(artifact)
    except ArtifactError:
        return None
    return artifact


def _interpreter() -> tuple[str, dict[str, str]]:
    """The Python that has ModelOpt, and the environment to run it in.

    Raises:
        MissingPackageError: there is none; both ways to get one are named.
    """
    named = os.environ.get(MODELOPT_PYTHON)
    if named:
        path = shutil.which(named)
        if path is None:
            raise MissingPackageError(f"{MODELOPT_PYTHON}={named}: no such program", "name a Python with ModelOpt")
        # Another environment: what this one has on its path must not get in there.
        return path, {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if not optional.is_installed("modelopt"):
        raise MissingPackageError(
            "nvidia-modelopt is needed to convert ONNX files to another precision, and isn't installed",
            "pip install 'trtbatch[precision]' (in a clone: '.[precision]'), or let "
            f"{MODELOPT_PYTHON} name a Python that has nvidia-modelopt[onnx]",
        )
    return sys.executable, dict(os.environ)


def _run_modelopt(
    source: Artifact,
    request: ConversionRequest,
    kept: tuple[set[str], set[str]],
    samples: Mapping[str, Array],
    folder: Path,
) -> tuple[Path, dict[str, str]]:
    """The converted file as ModelOpt wrote it, in `folder`, and what wrote it.

    Raises:
        PrecisionError: with the last words of ModelOpt.
    """
    python, environment = _interpreter()
    work = folder.resolve() / "modelopt"
    work.mkdir()
    for name in (source.path.name, *(record.file for record in source.sidecar.companions)):
        shutil.copy(source.path.with_name(name), work / name)  # ModelOpt writes beside its source
    arrays: dict[str, Any] = dict(samples)
    np.savez(work / "calibration.npz", **arrays)
    made = work / "converted.onnx"
    order = {
        "source": str(work / source.path.name),
        "output": str(made),
        "precision": request.precision,
        "rest": request.rest,
        "keep_io": request.io is None,
        "exclude_nodes": [f"^{re.escape(name)}$" for name in sorted(kept[0])],
        "exclude_ops": sorted(kept[1]),
        "calibration": str(work / "calibration.npz"),
        "method": request.method,
        "largest": LARGEST,
    }
    file = work / "request.json"
    file.write_text(json.dumps(order), encoding="utf-8")
    worker = Path(__file__).with_name("modelopt_worker.py")
    log = folder / "modelopt.log"
    with log.open("wb") as stream:
        done = subprocess.run(
            [python, str(worker), str(file)], stdout=subprocess.PIPE, stderr=stream, cwd=work, env=environment
        )
    answer = _answer(done.stdout)
    if "converted" not in answer or not made.is_file():
        said = answer.get("failed") or _last_line(log) or f"it ended with exit code {done.returncode}"
        raise PrecisionError(
            f"ModelOpt can't convert {source.path.name} to {request.precision}: {said}",
            f"leave the part that it names in float32 (--keep-fp32), or check its installation: {python} -c 'import "
            "modelopt.onnx'",
        )
    return made, answer["converted"]


def _answer(output: bytes) -> dict[str, Any]:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""


def _publish(
    made: Path,
    target: Path,
    source: Artifact,
    wanted: Conversion,
    tools: dict[str, str],
    kept: tuple[set[str], set[str]],
) -> Artifact:
    """Finish the file (scales, opset), and put it in its place with its sidecar.

    Raises:
        PrecisionError: no product computes in the precision.
    """
    onnx = optional.require("onnx", "write ONNX files")
    model = load_onnx(made, weights=True)
    before = load_onnx(source.path)
    raised = raise_scales(model)
    if raised:
        warn(f"{raised} quantization scales were zero in the type that they are stored in, and were raised")
    if lower_opset(model, opset_of(before)):
        model.ir_version = before.ir_version
    computes = products(model)
    stayed = tuple(name for name, kind in computes.items() if kind == "fp32")
    reached = [name for name, kind in computes.items() if kind == wanted.precision]
    if not reached:
        what = "has no convolution or matrix product" if not computes else "has no product that ModelOpt changes"
        raise PrecisionError(
            f"{source.path.name} {what}: nothing of it computes in {wanted.precision}",
            f"build it in float32, or keep less in that (--keep-fp32); {wanted.precision} is for "
            f"{', '.join(PRODUCTS)} of some size",
        )
    if stayed:
        operators = {node.name: node.op_type for node in model.graph.node}
        by_itself = [name for name in stayed if name not in kept[0] and operators[name] not in kept[1]]
        _tell_stayed(by_itself, len(computes), wanted.precision)
    final = made.with_name(target.name)
    large = model.ByteSize() > LARGEST
    beside = final.with_name(f"{target.name}.data")
    onnx.save(model, str(final), save_as_external_data=large, location=beside.name)
    companions = (beside,) if large else ()
    inputs, outputs = (_retyped(specs, infos) for specs, infos in _sides(source.sidecar, model))
    sidecar = replace(
        source.sidecar,
        artifact=artifacts.record_file(final),
        companions=tuple(artifacts.record_file(path) for path in companions),
        inputs=inputs,
        outputs=outputs,
        model=replace(source.sidecar.model, opset=opset_of(model)),
        source=source.sidecar.artifact,
        source_path=os.path.relpath(source.path.resolve(), target.resolve().parent),
        conversion=replace(wanted, stayed=stayed, tools=tools),
        tools=source.sidecar.tools | tools,
        created=artifacts.now(),
    )
    return artifacts.publish(final, target, sidecar, companions)


def _tell_stayed(by_itself: Sequence[str], count: int, precision: str) -> None:
    """Say which products ModelOpt left in float32 without being told to."""
    if by_itself:
        why = "not of a kind that is quantized" if precision in QUANTIZED else "values too large for the type"
        shown = ", ".join(by_itself[:3]) + (" …" if len(by_itself) > 3 else "")
        note(f"{len(by_itself)} of {count} products stay float32 ({why}): {shown}")


def _sides(sidecar: Sidecar, model: Any) -> list[tuple[tuple[TensorSpec, ...], Any]]:
    return [(sidecar.inputs, model.graph.input), (sidecar.outputs, model.graph.output)]


def _retyped(specs: Sequence[TensorSpec], infos: Any) -> tuple[TensorSpec, ...]:
    """The specs with the types that the converted model has."""
    onnx = optional.require("onnx", "read ONNX files")
    types = {
        info.name: onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type).name
        for info in infos
        if info.type.tensor_type.elem_type
    }
    return tuple(replace(spec, dtype=types.get(spec.name, spec.dtype)) for spec in specs)
