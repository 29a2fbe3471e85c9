"""Are the rows right? Comparison of outputs sample by sample, and the checks that need no reference.

The checks work on any session (TensorRT or ONNX Runtime) and are the same for ``build`` and ``bench``:

* *written*: the output buffers are filled with two different byte patterns before two runs; an element
  that keeps both was never written. (One pattern is not enough: it may be a legal value.)
* *finite*: no NaN where the single sample has none.
* *identical rows*: a batch of copies of one sample gives equal rows.
* *batch = singles*: row *i* of a batch equals sample *i* run alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.artifacts import TensorSpec
from trtbatch.backends.base import Session
from trtbatch.errors import RowsError

__all__ = ["Finding", "RowChecker", "random_inputs", "row_errors", "rows_of", "tolerance", "wrong_rows"]

Array = NDArray[Any]

_POISONS = (0xFF, 0x5A)
"""Byte patterns of the poison; 0xFF… is NaN in every IEEE 754 binary format."""


def tolerance(dtype: str, backend: str | None = None) -> float:
    """Largest relative error ‖row − reference‖₂ / ‖reference‖₂ that counts as equal.

    * integers and booleans: 0, they are counted, not rounded.
    * float32 on TensorRT: 2e-3. Its default is TF32, with a 10-bit fraction (unit round-off 2⁻¹¹ ≈ 4.9e-4),
      and another batch size may run another kernel, which rounds in another order.
    * float32 on ONNX Runtime against torch or itself: 1e-4. Unit round-off is 6e-8; over a hundred layers,
      summed in other orders, 1e-6 to 1e-5 is usual, and a row that is wrong is wrong by about 1.
    * float64: 1e-9, by the same reckoning (a constant kept as float32 would show as 1e-8).
    * float16, bfloat16: 1e-2 and 8e-2, about ten unit round-offs (4.9e-4 and 3.9e-3), doubled.
    """
    kind = np.dtype(dtype).kind if dtype != "bfloat16" else "f"
    if kind in "iub":
        return 0.0
    known = {"float64": 1e-9, "float16": 1e-2, "bfloat16": 8e-2}
    return max(known.get(dtype, 1e-4), 2e-3 if backend == "tensorrt" else 0.0)


def rows_of(array: Array, spec: TensorSpec) -> Array:
    """The array with its batch axis first, each row flat: ``(N, elements)``."""
    if spec.batch_axis is None:
        raise ValueError(f"{spec.name} has no batch axis")
    moved = np.moveaxis(array, spec.batch_axis, 0)
    return moved.reshape(moved.shape[0], -1)


def row_errors(rows: Array, reference: Array) -> NDArray[np.float64]:
    """Relative error of each row, ‖row − reference‖₂ / ‖reference‖₂, shape ``(N,)``.

    Equal rows give 0, also where they are zero, infinite or NaN alike; a row that is NaN on one side only
    gives infinity, as does anything where the reference is zero.
    """
    same = (rows == reference) | ((rows != rows) & (reference != reference))
    wide = np.longdouble if rows.dtype == np.float64 else np.float64
    a, b = rows.astype(wide), reference.astype(wide)
    with np.errstate(all="ignore"):
        error = np.sqrt((np.where(same, 0.0, a - b) ** 2).sum(axis=1))
        norm = np.sqrt((np.where(same, np.nan_to_num(b), b) ** 2).sum(axis=1))
        relative = np.where(error == 0, 0.0, error / norm)
    smallest = np.nextafter(0.0, 1.0)  # for integers that differ by less than the wide type can tell
    relative = np.where((relative == 0) & ~same.all(axis=1), smallest, relative)
    return np.where(np.isnan(relative), np.inf, relative).astype(np.float64)


def wrong_rows(rows: Array, reference: Array, limit: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Indices of the rows whose error exceeds `limit`, and all errors."""
    errors = row_errors(rows, reference)
    return np.flatnonzero(errors > limit), errors


def random_inputs(inputs: Sequence[TensorSpec], batch: int, seed: int) -> dict[str, Array]:
    """Fresh inputs for `batch` samples: floats from N(0, 1), integers from their recorded range (else 0, 1).

    Every axis but the batch must be known.
    """
    generator = np.random.default_rng(seed)
    drawn: dict[str, Array] = {}
    for spec in inputs:
        shape = tuple(int(size) for size in spec.at(batch))
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            drawn[spec.name] = generator.standard_normal(shape, dtype=np.float32).astype(dtype)
        elif dtype.kind == "b":
            drawn[spec.name] = generator.integers(0, 2, shape).astype(dtype)
        else:
            low, high = spec.value_range or ((0, 255) if dtype == np.uint8 else (0, 1))
            drawn[spec.name] = generator.integers(low, high, shape, dtype=np.int64, endpoint=True).astype(dtype)
    return drawn


@dataclass(frozen=True)
class Finding:
    """One failed check: what it was, which rows of which output, and the plain words."""

    check: str
    output: str
    batch: int
    rows: tuple[int, ...]
    message: str

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.output}: {self.message}"


class RowChecker:
    """The checks that need no reference, on one session; single samples are run once and kept.

    Args:
        session: what runs.
        inputs, outputs: its specs.
        backend: decides the tolerance.
        smallest: the smallest batch the engine takes; a "single" is a batch of that many copies.
        largest: the largest batch that will be checked.
        seed: of the random inputs.
    """

    def __init__(
        self,
        session: Session,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        backend: str,
        smallest: int,
        largest: int,
        seed: int = 0,
    ) -> None:
        self._session = session
        self._inputs = inputs
        self._outputs = outputs
        self._backend = backend
        self._smallest = smallest
        self._pool = random_inputs(inputs, largest, seed)
        self._singles: list[dict[str, Array]] = []

    def inputs(self, batch: int) -> dict[str, Array]:
        """The first `batch` samples of the pool."""
        return self._take(range(batch))

    def check(self, batch: int) -> list[Finding]:
        """Everything that is wrong at this batch size; an empty list when nothing is."""
        outputs, findings = self._run_poisoned(batch)
        if findings:
            return findings
        copies = self._run(self._take([0] * batch))
        for spec in self._outputs:
            if spec.batch_axis is not None:
                findings += self._check_output(spec, batch, outputs[spec.name], copies[spec.name])
        return findings

    def require(self, batch: int, engine: str) -> None:
        """Raise where :meth:`check` finds something.

        Raises:
            RowsError: with the first finding.
        """
        findings = self.check(batch)
        if findings:
            more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
            raise RowsError(
                f"{engine} gives wrong rows: {findings[0]}{more}",
                "its numbers would mean nothing: rebuild from an ONNX that trtbatch export has proven",
            )

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._session.bind(inputs)
        self._session.run()
        return self._session.fetch()

    def _run_poisoned(self, batch: int) -> tuple[dict[str, Array], list[Finding]]:
        self._session.bind(self.inputs(batch))
        results = []
        for pattern in _POISONS:
            self._session.poison(pattern)
            self._session.run()
            results.append(self._session.fetch())
        findings = []
        for spec in self._outputs:
            untouched = _is_poison(results[0][spec.name], _POISONS[0]) & _is_poison(results[1][spec.name], _POISONS[1])
            wanted = None if spec.batch_axis is None else results[0][spec.name].shape[spec.batch_axis]
            if wanted is not None and wanted != batch:
                message = f"has {wanted} rows for {batch} samples: the batch is fixed somewhere in the model"
                findings.append(Finding("shape", spec.name, batch, (), message))
            elif untouched.any():
                rows = _rows_with(untouched, spec)
                findings.append(Finding("written", spec.name, batch, rows, f"{_named(rows)} were never written"))
        return results[-1], findings

    def _check_output(self, spec: TensorSpec, batch: int, output: Array, copies: Array) -> list[Finding]:
        limit = tolerance(spec.dtype, self._backend)
        singles = np.concatenate([rows_of(single[spec.name], spec)[:1] for single in self._run_singles(batch)])
        alike = rows_of(copies, spec)
        rows = rows_of(output, spec)
        findings = []
        bad, errors = wrong_rows(rows, singles, limit)
        if bad.size:
            message = _explain(rows, singles, bad, errors, limit)
            findings.append(Finding("batch = singles", spec.name, batch, tuple(bad.tolist()), message))
        bad, errors = wrong_rows(alike, np.broadcast_to(singles[:1], alike.shape), limit)
        if bad.size:
            message = f"copies of one sample differ in {_named(bad.tolist())} (error {errors.max():.1e} > {limit:.0e})"
            findings.append(Finding("identical rows", spec.name, batch, tuple(bad.tolist()), message))
        return findings

    def _run_singles(self, batch: int) -> list[dict[str, Array]]:
        while len(self._singles) < batch:
            self._singles.append(self._run(self._take([len(self._singles)] * self._smallest)))
        return self._singles[:batch]

    def _take(self, indices: Sequence[int]) -> dict[str, Array]:
        return {
            spec.name: self._pool[spec.name]
            if spec.batch_axis is None
            else np.ascontiguousarray(np.take(self._pool[spec.name], list(indices), axis=spec.batch_axis))
            for spec in self._inputs
        }


def _is_poison(array: Array, pattern: int) -> NDArray[np.bool_]:
    raw = np.ascontiguousarray(array).view(np.uint8).reshape(*array.shape, array.dtype.itemsize)
    return np.asarray((raw == pattern).all(axis=-1))


def _rows_with(mask: NDArray[np.bool_], spec: TensorSpec) -> tuple[int, ...]:
    return () if spec.batch_axis is None else tuple(np.flatnonzero(rows_of(mask, spec).any(axis=1)).tolist())


def _named(rows: Sequence[int]) -> str:
    """Row numbers for people, counted from 1: ``rows 2–8``, ``row 3``, ``rows 1, 4, 5``; ``elements`` for none."""
    if not rows:
        return "elements"
    one, first, last = len(rows) == 1, rows[0] + 1, rows[-1] + 1
    if one:
        return f"row {first}"
    if last - first + 1 == len(rows):
        return f"rows {first}–{last}"
    shown = ", ".join(str(row + 1) for row in rows[:8])
    return f"rows {shown}{' …' if len(rows) > 8 else ''}"


def _explain(rows: Array, singles: Array, bad: NDArray[np.int64], errors: NDArray[np.float64], limit: float) -> str:
    named = _named(bad.tolist())
    if not rows[bad].any():
        return f"{named} are all zero: the batch axis is probably fixed in the model"
    if (rows[bad] != rows[bad]).any() and not (singles[bad] != singles[bad]).any():
        return f"{named} hold NaN, and the same samples run alone don't"
    return f"{named} differ from the same samples run alone (error {errors[bad].max():.1e} > {limit:.0e})"
