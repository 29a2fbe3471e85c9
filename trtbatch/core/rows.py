"""Draw, compare and judge rows: one sample's share of an output is a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.core.tensors import TensorSpec, numpy_dtype

__all__ = [
    "Limit",
    "RowErrors",
    "as_rows",
    "compare",
    "named_rows",
    "random_inputs",
    "row_errors",
    "rows_of",
    "tolerance",
    "valid_only",
    "wrong_rows",
]

Array = NDArray[Any]

_BY_DTYPE = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}
_BY_PRECISION = {"tf32": 2e-3, "fp16": 1e-2, "bf16": 8e-2, "int8": 1e-1, "fp8": 1e-1}


def tolerance(dtype: str, precision: str = "fp32") -> float:
    """Return the largest relative error ‖row − reference‖₂ / ‖reference‖₂ that counts as equal.

    By the output's dtype:

    * integers and booleans: 0, because they are counted, not rounded.
    * float32: 1e-4. Unit round-off is 6e-8. Over a hundred layers, summed in other orders, errors of 1e-6 to 1e-5 are
      usual; a wrong row is wrong by about 1.
    * float64: 1e-9, by the same reasoning (a constant kept as float32 would show as 1e-8).
    * float16, bfloat16: 1e-2 and 8e-2, about twenty unit round-offs (4.9e-4 and 3.9e-3).

    Or, where it is larger, by the precision that the engine computes in:

    * tf32 (TensorRT's default for float32): 2e-3, four unit round-offs of its 10-bit fraction (2⁻¹¹ ≈ 4.9e-4), because
      another batch size may run another kernel, which rounds in another order.
    * fp16, bf16: as for the dtypes. int8, fp8: 1e-1, because calibration, not only rounding, decides their 8 bits.
    """
    if numpy_dtype(dtype).kind in "iub":
        return 0.0
    return max(_BY_DTYPE[dtype], _BY_PRECISION.get(precision, 0.0))


def rows_of(array: Array, spec: TensorSpec) -> Array:
    """Return an array with its batch axis first and each row flat: ``(N, elements)``."""
    if spec.batch_axis is None:
        raise ValueError(f"{spec.name} has no batch axis")
    moved = np.moveaxis(array, spec.batch_axis, 0)
    return moved.reshape(moved.shape[0], math.prod(moved.shape[1:]))


def as_rows(array: Array, spec: TensorSpec) -> Array:
    """Return the rows of an output as :func:`rows_of`; without a batch axis it is one row, ``(1, elements)``."""
    return array.reshape(1, -1) if spec.batch_axis is None else rows_of(array, spec)


def row_errors(rows: Array, reference: Array) -> NDArray[np.float64]:
    """Return the relative error of each row, ‖row − reference‖₂ / ‖reference‖₂, shape ``(N,)``.

    Equal rows give 0, even where both are zero, infinite or NaN. A row that is NaN on one side only gives infinity, and
    so does any difference from a reference of zero.
    """
    same = (rows == reference) | ((rows != rows) & (reference != reference))
    wide = np.longdouble if rows.dtype == np.float64 else np.float64
    a, b = rows.astype(wide), reference.astype(wide)
    with np.errstate(all="ignore"):
        error = np.sqrt((np.where(same, 0.0, a - b) ** 2).sum(axis=1))
        norm = np.sqrt((np.where(same, np.nan_to_num(b), b) ** 2).sum(axis=1))
        relative = np.where(error == 0, 0.0, error / norm)
    smallest = np.nextafter(0.0, 1.0)  # for integers that differ by less than the wide type resolves
    relative = np.where((relative == 0) & ~same.all(axis=1), smallest, relative)
    return np.where(np.isnan(relative), np.inf, relative).astype(np.float64)


def wrong_rows(rows: Array, reference: Array, limit: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the indices of the rows whose error exceeds `limit`, and all errors."""
    errors = row_errors(rows, reference)
    return np.flatnonzero(errors > limit), errors


def random_inputs(inputs: Sequence[TensorSpec], batch: int, seed: int) -> dict[str, Array]:
    """Draw inputs for `batch` samples: floats from N(0, 1), integers from their recorded range (else 0 to 1).

    A uint8 input without a recorded range is drawn from 0 to 255. Every axis but the batch must have a size.
    """
    generator = np.random.default_rng(seed)
    drawn: dict[str, Array] = {}
    for spec in inputs:
        shape = tuple(int(size) for size in spec.at(batch))
        dtype = numpy_dtype(spec.dtype)
        if spec.is_float:
            drawn[spec.name] = generator.standard_normal(shape, dtype=np.float32).astype(dtype)
        elif dtype.kind == "b":
            drawn[spec.name] = generator.integers(0, 2, shape).astype(dtype)
        else:
            low, high = spec.value_range or ((0, 255) if dtype == np.uint8 else (0, 1))
            drawn[spec.name] = generator.integers(low, high, shape, dtype=np.int64, endpoint=True).astype(dtype)
    return drawn


@dataclass(frozen=True)
class Limit:
    """Limit of what counts as equal: an L2-relative error per row, or numpy's element-wise rtol and atol.

    Args:
        relative: bound of ‖row − reference‖₂ / ‖reference‖₂.
        rtol, atol: where given, every element must satisfy |a − b| ≤ atol + rtol·|b| instead.
    """

    relative: float
    rtol: float | None = None
    atol: float | None = None

    def __str__(self) -> str:
        if self.rtol is None and self.atol is None:
            return f"{self.relative:.0e}" if self.relative else "exact"
        return f"|a−b| ≤ {self.atol or 0.0:g} + {self.rtol or 0.0:g}·|b|"


@dataclass(frozen=True)
class RowErrors:
    """Differences of rows a with reference rows b, each field of shape ``(N,)``.

    Args:
        max_abs: largest |a − b|; infinity where only one side is NaN or infinite.
        max_rel: largest |a − b| / |b|; infinity where b is 0 and a isn't.
        l2_rel: ‖a − b‖₂ / ‖b‖₂.
        cosine: of the angle between a and b; 1 for two zero rows, 0 where only one is zero.
        top1: whether the largest element is at the same place; None where rows aren't class scores.
        nan, inf: number of elements of a that are NaN, or infinite.
        passed: whether the row is within the limit.
    """

    max_abs: NDArray[np.float64]
    max_rel: NDArray[np.float64]
    l2_rel: NDArray[np.float64]
    cosine: NDArray[np.float64]
    top1: NDArray[np.bool_] | None
    nan: NDArray[np.int64]
    inf: NDArray[np.int64]
    passed: NDArray[np.bool_]


def compare(rows: Array, reference: Array, limit: Limit, class_scores: bool = False) -> RowErrors:
    """Compare rows, ``(N, elements)``, with reference rows of the same shape."""
    same = (rows == reference) | ((rows != rows) & (reference != reference))
    a, b = rows.astype(np.float64), reference.astype(np.float64)
    with np.errstate(all="ignore"):
        difference = np.where(same, 0.0, np.abs(a - b))
        difference = np.where(np.isnan(difference), np.inf, difference)
        size = np.abs(b)
        relative = np.where(difference == 0, 0.0, difference / size)
    relative = np.where(np.isnan(relative), np.inf, relative)
    l2 = row_errors(rows, reference)
    if limit.rtol is None and limit.atol is None:
        passed = l2 <= limit.relative
    else:
        with np.errstate(all="ignore"):
            passed = (same | (difference <= (limit.atol or 0.0) + (limit.rtol or 0.0) * size)).all(axis=1)
    floats = rows.dtype.kind not in "iub"
    return RowErrors(
        max_abs=difference.max(axis=1, initial=0.0),
        max_rel=relative.max(axis=1, initial=0.0),
        l2_rel=l2,
        cosine=_cosines(a, b),
        top1=a.argmax(axis=1) == b.argmax(axis=1) if class_scores and a.shape[1] else None,
        nan=np.isnan(a).sum(axis=1) if floats else np.zeros(len(a), np.int64),
        inf=np.isinf(a).sum(axis=1) if floats else np.zeros(len(a), np.int64),
        passed=np.asarray(passed),
    )


def _cosines(a: Array, b: Array) -> NDArray[np.float64]:
    """Return the cosine of the angle between corresponding rows, scaled first so that large values don't overflow."""
    with np.errstate(all="ignore"):
        a = a / np.maximum(np.abs(a).max(axis=1, initial=0.0, keepdims=True), np.finfo(np.float64).tiny)
        b = b / np.maximum(np.abs(b).max(axis=1, initial=0.0, keepdims=True), np.finfo(np.float64).tiny)
        lengths = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
        cosine = np.where(lengths > 0, (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1.0), 0.0)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, cosine)


def valid_only(outputs: dict[str, Array], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Return outputs with the padding of detections set to zero, because its values are undefined.

    A spec with ``counted_by`` has an axis of entries after its batch axis; only the first *count* entries of a sample
    are valid.
    """
    cleaned = dict(outputs)
    for spec in specs:
        if spec.counted_by is not None and spec.counted_by in outputs and spec.batch_axis == 0:
            counts = outputs[spec.counted_by].reshape(-1)
            array = outputs[spec.name]
            invalid = np.arange(array.shape[1])[None, :] >= counts[:, None]
            cleaned[spec.name] = np.where(invalid.reshape(*invalid.shape, *[1] * (array.ndim - 2)), 0, array).astype(
                array.dtype
            )
    return cleaned


def named_rows(rows: Sequence[int]) -> str:
    """Return row numbers in words, from 0: ``rows 1–7``, ``row 2``, ``rows 0, 3, 4``; ``elements`` for none."""
    if not rows:
        return "elements"
    one, first, last = len(rows) == 1, rows[0], rows[-1]
    if one:
        return f"row {first}"
    if last - first + 1 == len(rows):
        return f"rows {first}–{last}"
    shown = ", ".join(str(row) for row in rows[:8])
    return f"rows {shown}{' …' if len(rows) > 8 else ''}"
