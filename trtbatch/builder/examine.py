"""What a freshly built engine is seen to do: it runs, its rows are right, how near it comes, what it computes in."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends import open_engine
from trtbatch.backends.base import Engine, Progress, Session
from trtbatch.builder.outputs import observed
from trtbatch.builder.timetable import time_profiles
from trtbatch.core.batches import Profile
from trtbatch.core.profiles import Measured
from trtbatch.core.rows import Limit, random_inputs, rows_of
from trtbatch.core.sidecar import Accuracy, Artifact, Sidecar
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import AccuracyError, PrecisionError, RowsError, TrtbatchError
from trtbatch.onnx_graph.dtypes import Overflow, OverflowSearch
from trtbatch.onnx_graph.read import what_fixes_the_batch
from trtbatch.quantization.realised import Realised, realised
from trtbatch.runtime.sources import read_samples
from trtbatch.util import environment
from trtbatch.util.log import note, warn
from trtbatch.verification.checks import RowChecker
from trtbatch.verification.comparison import OutputResult, compare_outputs
from trtbatch.verification.references import OnnxFileReference

__all__ = ["Examination", "Examined", "examine", "explained"]

Array = NDArray[Any]

ACCURACY_SAMPLES = 32
"""So many samples are compared with the reference, which runs on the CPU; a larger batch takes them in turn."""

_LOOK = "make the model treat each sample alone; to look at every row, build with --no-verify and run trtbatch verify"


@dataclass(frozen=True)
class Examination:
    """What to look at.

    Args:
        name: of the engine, for errors.
        onnx: the file that the engine was built from.
        reference: the file that it is to agree with.
        products: what each product of the graph is to compute in.
        asked: the precision that was asked for; None where none was.
        allowed: precisions that layers may use though the graph doesn't say so.
        kept: nodes to which that doesn't apply: they were to stay float32.
        verify: whether rows and accuracy are checked; the engine is run either way.
        samples: folder, glob or file of samples for the accuracy; None draws random ones.
        tolerance: largest L2-relative error per row; None is that of dtype and precision.
        device: number of the GPU.
        batches: sizes to time on every profile that holds them.
        progress: told what is being done.
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
class Examined:
    """What was seen: outputs as they are, accuracy, the layers' precisions, facts for the sidecar, and times."""

    outputs: tuple[TensorSpec, ...]
    accuracy: Accuracy | None
    layer_precisions: dict[str, float]
    facts: dict[str, Any]
    table: tuple[Measured, ...] = ()


def examine(artifact: Artifact, what: Examination) -> Examined:
    """Run the engine at min, opt and max of every profile, and look.

    Raises:
        RowsError: wrong rows.
        AccuracyError: rows that differ from the reference's.
        PrecisionError: layers that compute in another precision than was asked for.
    """
    sidecar = artifact.sidecar
    corners = sidecar.corners
    with open_engine(artifact, what.device, what.onnx) as engine, engine.session() as session:
        layers = realised(what.products, engine.describe().layers, what.allowed, what.kept)
        if sidecar.backend == "tensorrt":
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
    return Examined(outputs, accuracy, layers.shares, facts, table)


def _run_corners(session: Session, sidecar: Sidecar, what: Examination) -> None:
    """Run every profile at its own min, opt and max, and look at the rows.

    On ONNX Runtime a profile is no more than a range: there each size is run once.

    Raises:
        RowsError: wrong rows.
    """
    turns: list[tuple[int | None, int, tuple[int, ...]]]
    if sidecar.backend == "tensorrt":
        turns = [(index, profile.min, profile.corners) for index, profile in enumerate(sidecar.profiles)]
    else:
        turns = [(None, sidecar.corners[0], tuple(sidecar.corners))]
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


def _require_precision(found: Realised, what: Examination) -> None:
    """Raise where a product computes in another precision than its node has.

    Raises:
        PrecisionError: naming products.
    """
    if what.asked is None:
        return
    strange = [*found.unmet, *found.narrow]
    if what.asked == "fp32" and found.shares.get("tf32"):
        strange.append(f"{found.shares['tf32']:.0%} of the layers (tf32, not fp32)")
    if strange:
        shown = ", ".join(strange[:5]) + (" …" if len(strange) > 5 else "")
        raise PrecisionError(
            f"{what.name}: {what.asked} was not realised; of {found.resolved} products that tell, {len(strange)} "
            f"compute in something else: {shown}",
            "leave those in float32 (--keep-fp32 NODE), raise --opt-level, or take another --precision",
        )
    if what.asked in ("fp16", "bf16", "int8", "fp8") and what.products and not found.resolved:
        note(f"TensorRT tells the precision of no single product of {what.name}: it compiled them into regions")


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


def explained(error: TrtbatchError, onnx: Path) -> TrtbatchError:
    """The error with the node that probably fixes the batch, where one is found."""
    culprit = what_fixes_the_batch(onnx, error.problem)
    if culprit is None:
        return error
    return RowsError(
        f"the batch is probably fixed in {onnx.name}: {culprit}; {error.problem}",
        "make the model take its batch size from its input (x.shape[0] or -1), and export it again with --dynamic",
    )


def _accuracy(session: Session, sidecar: Sidecar, what: Examination) -> Accuracy | None:
    """Compare with the reference, on a batch of as many samples as are compared and one run holds.

    Raises:
        AccuracyError: a row is further from the reference than the tolerance.
    """
    reference = OnnxFileReference(what.reference)
    batch = _compared_batch(sidecar.profiles)
    alike = reference.is_dynamic and all(spec.batch_axis is not None for spec in sidecar.outputs)
    rows = min(batch, ACCURACY_SAMPLES) if alike else batch
    drawn, count, words = _samples(sidecar, what, rows)
    wanted = reference(drawn, rows)
    inputs = _in_turn(drawn, sidecar.inputs, batch, rows)
    session.bind(inputs)
    session.run()
    limit = None if what.tolerance is None else Limit(what.tolerance)
    expected = _in_turn(wanted, sidecar.outputs, batch, rows)
    results = compare_outputs(session.fetch(), expected, batch, sidecar.outputs, sidecar.precision, limit)
    others = examine_other_profiles(session, sidecar, drawn, wanted, rows, limit)
    _tell_constant(wanted, sidecar.outputs, what.name)
    some = rows if sidecar.is_dynamic else batch
    overflow = _overflow(sidecar, inputs, some, what) if "fp16" in what.products.values() else None
    _require_near([*results, *others], what, overflow)
    if overflow is not None and sidecar.backend == "onnxruntime":
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
    """The batch at which a profile is compared: the number of samples to compare, or the nearest that it takes."""
    return max(profile.min, min(profile.max, ACCURACY_SAMPLES))


def _compared_batch(profiles: Sequence[Profile]) -> int:
    """The largest batch, up to the number of samples to compare, that a profile holds, corner or not.

    Where that would be a single sample it is the least that the other profiles hold: in a batch of one no row can be
    another's.
    """
    sizes = sorted({_compared_size(profile) for profile in profiles})
    several = [size for size in sizes if size > 1]
    return max((size for size in several if size <= ACCURACY_SAMPLES), default=min(several, default=1))


def _in_turn(arrays: Mapping[str, Array], specs: Sequence[TensorSpec], batch: int, rows: int) -> dict[str, Array]:
    """A batch of the first samples of `rows`, which begin again where the batch is larger."""
    if batch == rows:
        return dict(arrays)
    turns = np.arange(batch) % rows
    known = [spec for spec in specs if spec.name in arrays]
    return {spec.name: np.ascontiguousarray(_part(arrays[spec.name], spec, turns)) for spec in known}


def examine_other_profiles(
    session: Session,
    sidecar: Sidecar,
    inputs: Mapping[str, Array],
    wanted: Mapping[str, Array],
    rows: int,
    limit: Limit | None,
) -> list[OutputResult]:
    """Each profile but the one that ran, on a batch of the samples that it takes, against the same reference.

    A profile has kernels of its own: that one is near says nothing of the next.
    """
    if sidecar.backend != "tensorrt" or len(sidecar.profiles) == 1 or not sidecar.is_dynamic:
        return []
    outputs = tuple(spec for spec in sidecar.outputs if spec.batch_axis is not None and spec.name in wanted)
    wanted = {spec.name: wanted[spec.name] for spec in outputs}
    results: list[OutputResult] = []
    for index, profile in enumerate(sidecar.profiles):
        batch = _compared_size(profile)
        session.use_profile(index)
        session.bind(_in_turn(inputs, sidecar.inputs, batch, rows))
        session.run()
        expected = _in_turn(wanted, outputs, batch, rows)
        results += compare_outputs(session.fetch(), expected, batch, outputs, sidecar.precision, limit)
    session.use_profile(None)
    return results


def _tell_constant(wanted: Mapping[str, Array], outputs: Sequence[TensorSpec], name: str) -> None:
    """Warn where the reference gives every sample the same row: then no check can tell rows apart."""
    for spec in outputs:
        if spec.name in wanted and spec.batch_axis is not None and spec.dtype.startswith("float"):
            rows = rows_of(wanted[spec.name], spec)
            if len(rows) > 1 and rows.shape[1] and (rows == rows[0]).all():
                warn(f"output {spec.name!r} of {name} is the same for every sample: its rows can't be told apart")


def _samples(sidecar: Sidecar, what: Examination, batch: int) -> tuple[dict[str, Array], int, str]:
    """A batch of samples, how many of them differ, and what they are."""
    if what.samples is None:
        return random_inputs(sidecar.inputs, batch, seed=1), batch, _counted(batch, "random sample")
    wide = {"float16": "float32"}  # samples are float32, whatever the engine takes
    specs = tuple(replace(spec, dtype=wide.get(spec.dtype, spec.dtype)) for spec in sidecar.inputs)
    given, names = read_samples(what.samples, replace(sidecar, inputs=specs), batch, option="--calibration")
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
"""Samples at once in the search for overflows, where every tensor of the graph is kept."""


def _part(array: Array, spec: TensorSpec, samples: range | NDArray[np.int64]) -> Array:
    """These samples of an input or output; the whole of one that has no batch axis."""
    return array if spec.batch_axis is None else array.take(samples, axis=spec.batch_axis)


def _overflow(sidecar: Sidecar, inputs: Mapping[str, Array], batch: int, what: Examination) -> Overflow | None:
    """The first overflow on any of the samples."""
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
        f"keep that part in float32: --keep-fp32 {shlex.quote(overflow.node)}, or --precision bf16",
    )


def _require_near(results: Sequence[OutputResult], what: Examination, overflow: Overflow | None) -> None:
    """Raise where an output differs from the reference's.

    Raises:
        AccuracyError: with the row, its error and the limit, and the node that overflows, where one does.
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


def _nearer(what: Examination) -> str:
    """What brings rows nearer to the file's, of what wasn't done already."""
    ways = ["raise --tolerance"] if what.tolerance is not None else []
    if what.asked in ("int8", "fp8") and what.samples is None:
        ways.append("calibrate on real samples (--calibration)")
    if what.asked in ("fp16", "bf16", "int8", "fp8"):
        ways.append("keep its sensitive part in float32 (--keep-fp32)")
    ways.append("to look at every row, build with --no-verify and run trtbatch verify")
    return "; ".join(ways)


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
    sizes = [size for size in spec.at(batch) if isinstance(size, int)]
    return int(np.prod(sizes, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
