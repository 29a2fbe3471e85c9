"""The proof that an exported batch axis is dynamic, and the search for what fixes one that isn't.

ONNX Runtime runs the exported file at batches 1, 2, 3 and 7, and every row is compared with torch's
(tolerance: see :func:`trtbatch.core.rows.tolerance`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from trtbatch.core.rows import as_rows, tolerance, wrong_rows
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import ExecutionError, ExportError, ModelError, TrtbatchError
from trtbatch.exporter.exporters import Trace
from trtbatch.onnx_graph.read import what_fixes_the_batch
from trtbatch.onnx_graph.run import OnnxReference
from trtbatch.util import optional

__all__ = ["VALIDATED_BATCHES", "Reference", "hard_coded_batch", "validate_export"]

VALIDATED_BATCHES = (1, 2, 3, 7)

HARD_CODED_BATCHES = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64)
"""Where a model is tried that doesn't run at every batch of the proof: those that people train and trace with."""

Reference = dict[int, dict[str, NDArray[Any]]]
"""torch's outputs by name, for each batch size."""

_FIX_ANY = (
    "keep what depends on samples or their number out of Python: no if, int() or float() on tensors, and x.shape[0] or "
    "-1 for the batch"
)
_FIX = "make the model take its batch size from its input: x.shape[0] or -1 instead of a number"


def validate_export(trace: Trace, made: Path, reference: Reference) -> None:
    """Run the file at every batch of the reference and compare each row with torch's.

    Raises:
        ExportError: naming the node and the constant that fix the batch, where they can be found.
    """
    run = OnnxReference(made)
    for batch, expected in reference.items():
        try:
            got = run(_inputs(trace, batch))
        except ExecutionError as error:
            raise _invalid(made, f"at batch {batch} it fails: {error.problem}", error.problem) from error
        for spec, wanted in zip(trace.outputs, expected.values()):
            wrong = _wrong(spec, got[spec.name], wanted)
            if wrong:
                _refuse_random(trace, batch, expected)
                raise _invalid(made, f"at batch {batch}, {wrong}")
    if len(reference) > 1 and all(spec.batch_axis is None for spec in trace.outputs):
        shapes = ", ".join(f"{spec.name} {spec.shape}" for spec in trace.outputs)
        raise _invalid(made, f"no output follows the batch size ({shapes} at every batch)")


def _refuse_random(trace: Trace, batch: int, expected: dict[str, NDArray[Any]]) -> None:
    """Raise where torch itself gives other outputs on the same inputs: no export of that can be proven.

    Raises:
        ExportError: naming the output.
    """
    example = trace.model.example(batch)  # which seeds torch, so that the same randomness would follow
    optional.require("torch", "run the model").manual_seed(batch + 12_345)
    for name, again in trace.model.call(example, f"batch {batch}").items():
        if wrong_rows(again.reshape(1, -1), expected[name].reshape(1, -1), tolerance(again.dtype.name))[0].size:
            raise ExportError(
                f"{trace.model.name} gives another {name} each time, in torch, on the same input",
                "take the randomness out of its forward",
            )


def _inputs(trace: Trace, batch: int) -> dict[str, NDArray[Any]]:
    tensors = trace.model.example(batch).values()
    return {spec.name: tensor.numpy() for spec, tensor in zip(trace.inputs, tensors)}


def _wrong(spec: TensorSpec, found: NDArray[Any], wanted: NDArray[Any]) -> str | None:
    """Return what differs from torch; None where nothing does."""
    if found.shape != wanted.shape:
        return f"{spec.name} has shape {found.shape}, not {wanted.shape}"
    limit = tolerance(wanted.dtype.name)
    bad, errors = wrong_rows(as_rows(found, spec), as_rows(wanted, spec), limit)
    if not bad.size:
        return None
    return f"row {bad[0]} of {spec.name} differs from torch by {errors[bad[0]]:.1e} (limit {limit:.0e})"


def _invalid(made: Path, what: str, message: str = "") -> ExportError:
    """Return the error, with the node and the constant that fix the batch first, where they can be found."""
    culprit = what_fixes_the_batch(made, message)
    if culprit is None:
        return ExportError(f"the exported model is not right at every batch: {what}", _FIX_ANY)
    return ExportError(f"the batch is fixed in the exported model: {culprit}; {what}", _FIX)


def hard_coded_batch(trace: Trace, failure: ModelError, folder: Path) -> ExportError | None:
    """Find what fixes the batch of a model that torch itself runs at some batch sizes only.

    The model is exported at a batch size that it takes, and the result run at one that it doesn't.

    Args:
        trace: how it would have been exported.
        failure: what torch said.
        folder: for the files of the attempt.

    Returns:
        None where the model runs at no batch size, or its export says nothing.
    """
    runs, fails = [], []
    for batch in HARD_CODED_BATCHES:
        try:
            outputs = trace.model.run(batch)
            runs.append(batch)
        except ModelError:
            fails.append(batch)
    if not runs or not fails:
        return None
    specs = tuple(TensorSpec(name, array.dtype.name, array.shape, None) for name, array in outputs.items())
    made = folder / "hard_coded.onnx"
    message = ""
    try:
        # torchscript whatever was asked for: dynamo refuses such a model without a file to look into
        Trace(trace.model, "torchscript", min(trace.opset, 17), trace.inputs, specs).write(runs[-1], made)
        OnnxReference(made)(_inputs(trace, fails[0]))
    except ExecutionError as error:
        message = error.problem
    except TrtbatchError:
        return None
    culprit = what_fixes_the_batch(made, message)
    if culprit is None:
        return None
    ran = f"batch {runs[0]}" if len(runs) == 1 else f"batches {', '.join(map(str, runs))}"
    return ExportError(
        f"the batch is fixed in the model: {culprit}; torch runs it at {ran} only ({failure.problem})", _FIX
    )
