"""Validate a built engine: run it, check its rows, measure its accuracy, and read the precisions of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends import open_engine
from trtbatch.backends.base import Engine, Progress, Session
from trtbatch.builder.outputs import observed
from trtbatch.builder.profile_timing import time_profiles
from trtbatch.core.batches import Profile
from trtbatch.core.profiles import Measured
from trtbatch.core.rows import Limit, random_inputs, rows_of
from trtbatch.core.sidecar import Accuracy, Artifact, Sidecar
from trtbatch.core.tensors import TensorSpec, numpy_dtype
from trtbatch.errors import AccuracyError, PrecisionError, RowsError, TrtbatchError
from trtbatch.onnx_graph.dtypes import Overflow, OverflowSearch
from trtbatch.onnx_graph.read import what_fixes_the_batch
from trtbatch.quantization.realized import RealizedPrecision, realized_precision
from trtbatch.runtime.sources import read_samples
from trtbatch.util import environment
from trtbatch.util.log import note, warn
from trtbatch.verification.checks import RowChecker
from trtbatch.verification.comparison import OutputResult, compare_outputs
from trtbatch.verification.references import OnnxFileReference

__all__ = ["ValidationRequest", "ValidationResult", "explained", "validate"]

Array = NDArray[Any]

ACCURACY_SAMPLES = 32
"""Number of samples that are compared with the reference, which runs on the CPU; a larger batch repeats them."""

_LOOK = (
    "make the model treat each sample alone; to look at every row, build with `verify=False` and run trtbatch verify"
)


@dataclass(frozen=True)
class ValidationRequest:
    """Settings of a validation.

    Args:
        name: name of the engine, for errors.
        onnx: file that the engine was built from.
        reference: file that the engine must agree with.
        products: precision that each matrix product or convolution of the graph must compute in, by node name.
        asked: requested precision; None if none was requested.
        allowed: precisions that layers may use although the graph doesn't ask for them.
        kept: nodes to which `allowed` doesn't apply, since they stay in float32.
        verify: whether to check rows and accuracy; the engine runs either way.
        samples: folder, glob or file of samples for the accuracy; None draws random ones.
        tolerance: largest L2-relative error of a row; None derives it from dtype and precision.
        device: number of the GPU.
        batches: batch sizes to time on every profile that holds them.
        progress: called with each step.
    """

    name: str
    onnx: Path
    reference: Path
    products: Mapping[str, str]
    asked: str | None = None
    allowed: tuple[str, ...] = ()
    kept: Set[str] = frozenset()
    verify: bool = True
    samples: str | None = None
    tolerance: float | None = None
    device: int = 0
    batches: tuple[int, ...] = ()
    progress: Progress = lambda words, share: None


@dataclass(frozen=True)
class ValidationResult:
    """Result of a validation: outputs as observed, accuracy, precisions of the layers, facts for the sidecar, times."""

    outputs: tuple[TensorSpec, ...]
    accuracy: Accuracy | None
    layer_precisions: dict[str, float]
    facts: dict[str, Any]
    table: tuple[Measured, ...] = ()


def validate(artifact: Artifact, what: ValidationRequest) -> ValidationResult:
    """Validate an engine at min, opt and max of every profile.

    Raises:
        RowsError: rows are wrong.
        AccuracyError: rows differ from those of the reference.
        PrecisionError: layers compute in another precision than was requested.
    """
    sidecar = artifact.sidecar
    corners = sidecar.engine.corners
    with open_engine(artifact, what.device, what.onnx) as engine, engine.session() as session:
        layers = realized_precision(what.products, engine.describe().layers, what.allowed, what.kept)
        if sidecar.engine.backend == "tensorrt":
            _require_precision(layers, what)
        elif layers.shares.get("fp32") and what.asked in ("fp16", "int8"):
            note(
                f"{layers.shares['fp32']:.0%} of the products are computed in float32 on the CPU: the file is checked, "
                f"its speed isn't {what.asked}'s, and its rounding isn't quite"
            )
        outputs = observed(session, sidecar.inputs, sidecar.outputs, corners[0], corners[-1])
        _refuse_rowless(outputs, what.name, what.onnx, corners)
        sidecar = replace(sidecar, outputs=outputs)
        _run_corners(session, sidecar, what)
        accuracy = _accuracy(session, sidecar, what) if what.verify else None
        memory = _memory(engine, sidecar, corners[-1])
        table = time_profiles(session, sidecar, what.batches, lambda words: what.progress(words, None))
    facts = {"ran_at": corners, "rows_checked_at": corners if what.verify else []} | memory
    return ValidationResult(outputs, accuracy, layers.shares, facts, table)


def _run_corners(session: Session, sidecar: Sidecar, what: ValidationRequest) -> None:
    """Run every profile at its own min, opt and max, and check the rows.

    ONNX Runtime treats a profile as a range only, so each batch size runs once there.

    Raises:
        RowsError: rows are wrong.
    """
    turns: list[tuple[int | None, int, tuple[int, ...]]]
    if sidecar.engine.backend == "tensorrt":
        turns = [(index, profile.min, profile.corners) for index, profile in enumerate(sidecar.engine.profiles)]
    else:
        turns = [(None, sidecar.engine.corners[0], tuple(sidecar.engine.corners))]
    for profile, smallest, corners in turns:
        session.use_profile(profile)
        checker = RowChecker.of(session, sidecar, corners[-1], smallest=smallest)
        for batch in corners:
            if what.verify:
                checker.require(batch, what.name, _LOOK)
            else:
                session.bind(checker.inputs(batch))
                session.run()
    session.use_profile(None)


def _require_precision(found: RealizedPrecision, what: ValidationRequest) -> None:
    """Raise if a product computes in another precision than its node asks for.

    Raises:
        PrecisionError: names the products.
    """
    if what.asked is None:
        return
    strange = [*found.unmet, *found.narrow]
    if what.asked == "fp32" and found.shares.get("tf32"):
        strange.append(f"{found.shares['tf32']:.0%} of the layers (tf32, not fp32)")
    if strange:
        shown = ", ".join(strange[:5]) + (" …" if len(strange) > 5 else "")
        raise PrecisionError(
            f"{what.name}: {what.asked} was not realized; of {found.resolved} products that tell, {len(strange)} "
            f"compute in something else: {shown}",
            "leave those in float32 (`keep_fp32=[NODE]`), raise `opt_level`, or take another `precision`",
        )
    if what.asked in ("fp16", "bf16", "int8", "fp8") and what.products and not found.resolved:
        note(f"TensorRT reports the precision of no single product of {what.name}: it compiled them into regions")


def _refuse_rowless(outputs: tuple[TensorSpec, ...], name: str, onnx: Path, corners: list[int]) -> None:
    """Warn of outputs without a batch axis; raise if all lack one and a node fixes the batch.

    Raises:
        RowsError: no output follows the batch size.
    """
    rowless = [spec for spec in outputs if spec.batch_axis is None]
    if len(rowless) == len(outputs) and corners[0] != corners[-1] and what_fixes_the_batch(onnx) is not None:
        shapes = ", ".join(map(str, rowless))
        raise RowsError(f"no output of {name} follows the batch size: {shapes}", "export it with `dynamic`")
    for spec in rowless:
        warn(f"output {spec} doesn't follow the batch: it is recorded so, and is no row of any sample")


def explained(error: TrtbatchError, onnx: Path) -> TrtbatchError:
    """Return the error with the node that probably fixes the batch, or the error itself if no such node is found."""
    culprit = what_fixes_the_batch(onnx, error.problem)
    if culprit is None:
        return error
    return RowsError(
        f"the batch is probably fixed in {onnx.name}: {culprit}; {error.problem}",
        "make the model take its batch size from its input (x.shape[0] or -1), and export it again with `dynamic`",
    )


def _accuracy(session: Session, sidecar: Sidecar, what: ValidationRequest) -> Accuracy | None:
    """Compare an engine with its reference, on up to :data:`ACCURACY_SAMPLES` samples.

    Raises:
        AccuracyError: a row differs from the reference by more than the tolerance.
    """
    reference = OnnxFileReference(what.reference)
    batch = _compared_batch(sidecar.engine.profiles)
    alike = reference.is_dynamic and all(spec.batch_axis is not None for spec in sidecar.outputs)
    rows = min(batch, ACCURACY_SAMPLES) if alike else batch
    drawn, count, words = _samples(sidecar, what, rows)
    wanted = reference(drawn, rows)
    inputs = _in_turn(drawn, sidecar.inputs, batch, rows)
    session.bind(inputs)
    session.run()
    limit = None if what.tolerance is None else Limit(what.tolerance)
    expected = _in_turn(wanted, sidecar.outputs, batch, rows)
    results = compare_outputs(session.fetch(), expected, batch, sidecar.outputs, sidecar.precision.name, limit)
    others = validate_other_profiles(session, sidecar, drawn, wanted, rows, limit)
    _tell_constant(wanted, sidecar.outputs, what.name)
    some = rows if sidecar.is_dynamic else batch
    overflow = _overflow(sidecar, inputs, some, what) if "fp16" in what.products.values() else None
    _require_near([*results, *others], what, overflow)
    if overflow is not None and sidecar.engine.backend == "onnxruntime":
        raise _overflowing(f"{what.name} is right on the CPU alone, which computes it in float32", overflow)
    errors = np.array([[float(row.l2_rel) for row in each.rows] for each in results if len(each.rows) == batch])
    if not errors.size:
        return None
    worst = errors[:, :count].max(axis=0)
    agreements = [
        np.mean([row.top1 for row in each.rows[:count]]) for each in results if each.top1_agreement is not None
    ]
    return Accuracy(
        reference=what.reference.name,
        samples=words,
        l2_rel=float(f"{worst.max():.4g}"),
        l2_rel_median=float(f"{np.median(worst):.4g}"),
        top1=float(min(agreements)) if agreements else None,
    )


def _compared_size(profile: Profile) -> int:
    """Return the batch size to compare a profile at: of those it holds, the one nearest to :data:`ACCURACY_SAMPLES`."""
    return max(profile.min, min(profile.max, ACCURACY_SAMPLES))


def _compared_batch(profiles: Sequence[Profile]) -> int:
    """Return the largest batch size up to :data:`ACCURACY_SAMPLES` that a profile can be compared at.

    If that is 1, it is the smallest size above 1 that another profile can be compared at: a batch of one sample can't
    show that rows are mixed up.
    """
    sizes = sorted({_compared_size(profile) for profile in profiles})
    several = [size for size in sizes if size > 1]
    return max((size for size in several if size <= ACCURACY_SAMPLES), default=min(several, default=1))


def _in_turn(arrays: Mapping[str, Array], specs: Sequence[TensorSpec], batch: int, rows: int) -> dict[str, Array]:
    """Return a batch that repeats the first `rows` samples as often as needed."""
    if batch == rows:
        return dict(arrays)
    turns = np.arange(batch) % rows
    known = [spec for spec in specs if spec.name in arrays]
    return {spec.name: np.ascontiguousarray(_part(arrays[spec.name], spec, turns)) for spec in known}


def validate_other_profiles(
    session: Session,
    sidecar: Sidecar,
    inputs: Mapping[str, Array],
    wanted: Mapping[str, Array],
    rows: int,
    limit: Limit | None,
) -> list[OutputResult]:
    """Compare every profile of a TensorRT engine with the same reference.

    Each profile has its own kernels, so the accuracy of one says nothing about the others.
    """
    if sidecar.engine.backend != "tensorrt" or len(sidecar.engine.profiles) == 1 or not sidecar.is_dynamic:
        return []
    outputs = tuple(spec for spec in sidecar.outputs if spec.batch_axis is not None and spec.name in wanted)
    wanted = {spec.name: wanted[spec.name] for spec in outputs}
    results: list[OutputResult] = []
    for index, profile in enumerate(sidecar.engine.profiles):
        batch = _compared_size(profile)
        session.use_profile(index)
        session.bind(_in_turn(inputs, sidecar.inputs, batch, rows))
        session.run()
        expected = _in_turn(wanted, outputs, batch, rows)
        results += compare_outputs(session.fetch(), expected, batch, outputs, sidecar.precision.name, limit)
    session.use_profile(None)
    return results


def _tell_constant(wanted: Mapping[str, Array], outputs: Sequence[TensorSpec], name: str) -> None:
    """Warn if the reference gives every sample the same row, since no check can distinguish such rows."""
    for spec in outputs:
        if spec.name in wanted and spec.batch_axis is not None and spec.dtype.startswith("float"):
            rows = rows_of(wanted[spec.name], spec)
            if len(rows) > 1 and rows.shape[1] and (rows == rows[0]).all():
                warn(f"output {spec.name!r} of {name} is the same for every sample: no check can distinguish its rows")


def _samples(sidecar: Sidecar, what: ValidationRequest, batch: int) -> tuple[dict[str, Array], int, str]:
    """Return a batch of samples, the number of distinct ones, and a description."""
    if what.samples is None:
        return random_inputs(sidecar.inputs, batch, seed=1), batch, _counted(batch, "random sample")
    wide = {"float16": "float32"}  # samples are float32, whatever the engine takes
    specs = tuple(replace(spec, dtype=wide.get(spec.dtype, spec.dtype)) for spec in sidecar.inputs)
    given, names = read_samples(what.samples, replace(sidecar, inputs=specs), batch, option="`calibration`")
    turns = np.arange(batch) % len(names)
    inputs = {}
    for spec in sidecar.inputs:
        array = given[spec.name].astype(spec.dtype, copy=False)
        repeated = array if spec.batch_axis is None else array.take(turns, axis=spec.batch_axis)
        inputs[spec.name] = np.ascontiguousarray(repeated)
    return inputs, len(names), f"{_counted(len(names), 'sample')} of {what.samples}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


SCANNED = 4
"""Samples per run of the search for overflows, which keeps every tensor of the graph."""


def _part(array: Array, spec: TensorSpec, samples: range | NDArray[np.int64]) -> Array:
    """Return the given samples of an input or output, or the whole array if it has no batch axis."""
    return array if spec.batch_axis is None else array.take(samples, axis=spec.batch_axis)


def _overflow(sidecar: Sidecar, inputs: Mapping[str, Array], batch: int, what: ValidationRequest) -> Overflow | None:
    """Return the first overflow of float16 on any of the samples, or None."""
    search = OverflowSearch(what.onnx)
    step = SCANNED if sidecar.is_dynamic else batch
    for first in range(0, batch, step):
        some = {
            spec.name: _part(inputs[spec.name], spec, range(first, min(first + step, batch))) for spec in sidecar.inputs
        }
        found = search(some)
        if found is not None:
            return found
    return None


def _overflowing(problem: str, overflow: Overflow) -> AccuracyError:
    return AccuracyError(
        f"{problem}; float16 overflows first at {overflow.words}",
        f"keep that part in float32: `keep_fp32={[overflow.node]}`, or `precision='bf16'`",
    )


def _require_near(results: Sequence[OutputResult], what: ValidationRequest, overflow: Overflow | None) -> None:
    """Raise if an output differs from that of the reference.

    Raises:
        AccuracyError: names the row, its error, the limit and the node that overflows, if any.
    """
    wrong = next((each for each in results if not each.passed), None)
    if wrong is None:
        return
    if wrong.shape != wrong.reference_shape:
        how = f"{wrong.output} has shape {wrong.shape}, not {wrong.reference_shape}"
    else:
        bad = max((row for row in wrong.rows if not row.passed), key=lambda row: float(row.l2_rel))
        count = sum(not row.passed for row in wrong.rows)
        strange = f", {bad.nan} NaN and {bad.inf} infinite elements" if bad.nan or bad.inf else ""
        how = (
            f"{count} of {len(wrong.rows)} rows of {wrong.output}, the worst row {bad.sample} by "
            f"{float(bad.l2_rel):.1e} (limit {wrong.limit}{strange})"
        )
    problem = f"{what.name} differs from {what.reference.name}: {how}"
    if overflow is not None:
        raise _overflowing(problem, overflow)
    raise AccuracyError(problem, _nearer(what))


def _nearer(what: ValidationRequest) -> str:
    """Return the ways to bring the rows nearer to those of the file that the request didn't use yet."""
    ways = ["raise `tolerance`"] if what.tolerance is not None else []
    if what.asked in ("int8", "fp8") and what.samples is None:
        ways.append("calibrate on real samples (`calibration`)")
    if what.asked in ("fp16", "bf16", "int8", "fp8"):
        ways.append("keep its sensitive part in float32 (`keep_fp32`)")
    ways.append("to look at every row, build with `verify=False` and run trtbatch verify")
    return "; ".join(ways)


def _memory(engine: Engine, sidecar: Sidecar, largest: int) -> dict[str, Any]:
    """Return the bytes that running takes.

    On the GPU these are weights, activations and bindings, on the CPU the peak of this process.
    """
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
    sizes = [size for size in spec.at(batch) if isinstance(size, int)]
    return int(np.prod(sizes, dtype=np.int64)) * numpy_dtype(spec.dtype).itemsize
