"""Compare an engine's outputs with those of a reference, output by output and row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.core.rows import Limit, RowErrors, as_rows, compare, tolerance, valid_only
from trtbatch.core.tensors import TensorSpec

__all__ = ["OutputResult", "SampleResult", "compare_outputs"]

Array = NDArray[Any]


@dataclass(frozen=True)
class SampleResult:
    """Result of comparing one row of one output; errors that aren't finite are the strings ``inf`` and ``nan``."""

    sample: int
    max_abs: float | str
    max_rel: float | str
    l2_rel: float | str
    cosine: float | str
    top1: bool | None
    nan: int
    inf: int
    passed: bool


@dataclass(frozen=True)
class OutputResult:
    """Result of comparing one output at one batch size.

    Args:
        shape, reference_shape: if they differ, there are no rows to compare.
        limit: largest difference that counts as equal.
        top1_agreement: share of the samples with the same top class; None if rows aren't class scores.
    """

    batch: int
    output: str
    shape: tuple[int, ...]
    reference_shape: tuple[int, ...]
    limit: str
    rows: tuple[SampleResult, ...]
    top1_agreement: float | None
    passed: bool


def compare_outputs(
    found: Mapping[str, Array],
    wanted: Mapping[str, Array],
    batch: int,
    outputs: Sequence[TensorSpec],
    precision: str,
    limit: Limit | None = None,
) -> list[OutputResult]:
    """Compare every output that the reference has.

    `precision` is that of the engine; together with each output's dtype it sets the limit, unless `limit` is given.
    """
    found, wanted = (valid_only(dict(each), outputs) for each in (found, wanted))
    return [
        _output(spec, batch, found[spec.name], wanted[spec.name], limit or Limit(tolerance(spec.dtype, precision)))
        for spec in outputs
        if spec.name in wanted
    ]


def _output(spec: TensorSpec, batch: int, found: Array, wanted: Array, limit: Limit) -> OutputResult:
    if found.shape != wanted.shape:
        return OutputResult(batch, spec.name, found.shape, wanted.shape, str(limit), (), None, False)
    found, wanted = (_in_order(each, spec) for each in (found, wanted))
    scores = spec.batch_axis == 0 and found.ndim == 2 and found.shape[1] > 1 and found.dtype.kind == "f"
    rows = as_rows(found, spec)
    comparison = compare(rows, as_rows(wanted, spec), limit, scores)
    agreement = None if comparison.top1 is None or not len(rows) else float(comparison.top1.mean())
    return OutputResult(
        batch,
        spec.name,
        found.shape,
        wanted.shape,
        str(limit),
        tuple(_sample(comparison, index) for index in range(len(rows))),
        agreement,
        bool(comparison.passed.all()),
    )


def _in_order(array: Array, spec: TensorSpec) -> Array:
    """Return a list whose length depends on the data (boxes, nonzero indices) in sorted order; other outputs unchanged.

    ONNX doesn't define the order of such a list: non-maximum suppression sorts by score in TensorRT and by class in
    ONNX Runtime.
    """
    open_axes = [axis for axis, size in enumerate(spec.shape) if isinstance(size, str)]
    if spec.batch_axis is not None or len(open_axes) != 1 or array.ndim < 2 or not array.size:
        return array
    entries = np.moveaxis(array, open_axes[0], 0).reshape(array.shape[open_axes[0]], -1)
    return entries[np.lexsort(entries.T[::-1])]


def _sample(comparison: RowErrors, index: int) -> SampleResult:
    return SampleResult(
        sample=index,
        max_abs=_number(comparison.max_abs[index]),
        max_rel=_number(comparison.max_rel[index]),
        l2_rel=_number(comparison.l2_rel[index]),
        cosine=_number(comparison.cosine[index]),
        top1=None if comparison.top1 is None else bool(comparison.top1[index]),
        nan=int(comparison.nan[index]),
        inf=int(comparison.inf[index]),
        passed=bool(comparison.passed[index]),
    )


def _number(value: float) -> float | str:
    """Return the value for JSON, which has no infinity and no NaN: those become strings."""
    return float(f"{value:.6g}") if np.isfinite(value) else str(float(value))
