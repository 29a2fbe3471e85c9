"""Check the rows of an engine without a reference.

* *written*: the output buffers are filled with two different byte patterns before two runs; an element that keeps both
  was never written. One pattern isn't enough, since it may be a legal value.
* *repeatable*: the two runs agree.
* *batch = singles*: row *i* of a batch equals sample *i* run alone.
* *identical rows*: a batch of copies of one sample gives equal rows.
* *permuted*: reversing the samples reverses the rows.
* *isolated*: changing every other sample leaves the rows between them unchanged.

Outputs without a batch axis (a scalar, a mean over the batch, a list of detections) are checked for *written* and
*repeatable* only. Of detections that are padded to a fixed number, only the valid ones are checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import Session, Slot
from trtbatch.core.rows import as_rows, named_rows, random_inputs, rows_of, tolerance, valid_only, wrong_rows
from trtbatch.core.sidecar import Sidecar
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import RowsError

__all__ = ["CHECKS", "Finding", "RowChecker", "fill_slot", "require_same_rows", "require_slots"]

Array = NDArray[Any]
Outputs = dict[str, Array]

CHECKS = ("written", "repeatable", "batch = singles", "identical rows", "permuted", "isolated")

_POISONS = (0xFF, 0x5A)
"""Byte patterns of the poison; 0xFF… is NaN in every IEEE 754 binary format."""

_FIXED = "the batch axis is probably fixed in the model"


@dataclass(frozen=True)
class Finding:
    """Result of a failed check: its name, the output, the wrong rows (from 0) and an explanation."""

    check: str
    output: str
    batch: int
    rows: tuple[int, ...]
    message: str

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.output}: {self.message}"


class RowChecker:
    """Checks on one session. Each single sample runs once, and its rows are kept.

    Args:
        session: session to check.
        inputs, outputs: specs of the session.
        precision: precision that the engine computes in; together with each output's dtype it sets the tolerance.
        smallest: smallest batch size of the engine; a "single" is a batch of that many copies.
        largest: largest batch size to check.
        seed: seed of the random inputs.
        pool: samples to use instead of random ones, at least ``largest + 1``.
    """

    def __init__(
        self,
        session: Session,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        precision: str,
        smallest: int,
        largest: int,
        seed: int = 0,
        pool: Mapping[str, Array] | None = None,
    ) -> None:
        self._session = session
        self._inputs = inputs
        self._outputs = outputs
        self._precision = precision
        self._smallest = smallest
        # One sample more than the largest batch, for the check that replaces samples.
        self._pool = dict(pool) if pool is not None else random_inputs(inputs, largest + 1, seed)
        self._singles: list[Outputs] = []

    @classmethod
    def of(
        cls,
        session: Session,
        sidecar: Sidecar,
        largest: int,
        *,
        smallest: int | None = None,
        seed: int = 0,
        pool: Mapping[str, Array] | None = None,
    ) -> RowChecker:
        """Return the checker of an engine; None for `smallest` takes the smallest batch size of all profiles."""
        return cls(
            session,
            sidecar.inputs,
            sidecar.outputs,
            precision=sidecar.precision.name,
            smallest=sidecar.engine.corners[0] if smallest is None else smallest,
            largest=largest,
            seed=seed,
            pool=pool,
        )

    def inputs(self, batch: int) -> dict[str, Array]:
        """Return the first `batch` samples of the pool."""
        return self._take(range(batch))

    def check(self, batch: int) -> list[Finding]:
        """Return all findings at a batch size; an empty list if every check passes."""
        first, outputs = self._run_poisoned(batch)
        findings = self._written(batch, first, outputs)
        if findings:
            return findings  # elements that were never written can't be compared
        first, outputs = (valid_only(each, self._outputs) for each in (first, outputs))
        rows = self._flat(outputs)
        findings = self._compare("repeatable", batch, rows, self._flat(first), _not_repeatable)
        findings += self._compare("batch = singles", batch, rows, self._expected(range(batch)), _not_singles)
        copies = self._flat(self._run(self._take([0] * batch)))
        findings += self._compare("identical rows", batch, copies, self._expected([0] * batch), _not_identical)
        if batch > 1 and not findings:  # rows that fail these checks fail the next ones too
            permuted = self._flat(self._run(self._take(range(batch)[::-1])))
            wanted = {spec.name: rows[spec.name][::-1] for spec in self._outputs if spec.batch_axis is not None}
            findings += self._compare("permuted", batch, permuted, wanted, _not_permuted)
            findings += self._isolated(batch, rows)
        return findings

    def require(self, batch: int, engine: str, fix: str) -> None:
        """Raise if :meth:`check` has findings; `fix` is the advice of the error.

        Raises:
            RowsError: names the first finding.
        """
        findings = self.check(batch)
        if findings:
            more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
            raise RowsError(f"{engine} gives wrong rows: {findings[0]}{more}", fix)

    def _run(self, inputs: Mapping[str, Array]) -> Outputs:
        self._session.bind(inputs)
        self._session.run()
        return valid_only(self._session.fetch(), self._outputs)

    def _run_poisoned(self, batch: int) -> tuple[Outputs, Outputs]:
        self._session.bind(self.inputs(batch))
        results = []
        for pattern in _POISONS:
            self._session.poison(pattern)
            self._session.run()
            results.append(self._session.fetch())
        return results[0], results[1]

    def _written(self, batch: int, first: Outputs, second: Outputs) -> list[Finding]:
        findings = []
        for spec in self._outputs:
            one, two = first[spec.name], second[spec.name]
            wanted = None if spec.batch_axis is None else one.shape[spec.batch_axis]
            if wanted is not None and wanted != batch:
                message = f"has {wanted} rows for {batch} samples: {_FIXED}"
                findings.append(Finding("written", spec.name, batch, (), message))
            elif one.shape == two.shape and spec.counted_by is None:
                untouched = _is_poison(one, _POISONS[0]) & _is_poison(two, _POISONS[1])
                if untouched.any():
                    rows = _rows_with(untouched, spec)
                    cause = "the buffers, or the batch inside the model, are smaller than the batch"
                    message = f"{named_rows(rows)} were never written: {cause}"
                    findings.append(Finding("written", spec.name, batch, rows, message))
        return findings

    def _flat(self, outputs: Outputs) -> Outputs:
        """Return each output as rows, ``(N, elements)``; an output without a batch axis is a single row."""
        return {spec.name: as_rows(outputs[spec.name], spec) for spec in self._outputs}

    def _expected(self, indices: Sequence[int]) -> Outputs:
        """Return the rows of these samples, each run alone."""
        while len(self._singles) <= max(indices):
            self._singles.append(self._flat(self._run(self._take([len(self._singles)] * self._smallest))))
        return {
            spec.name: np.concatenate([self._singles[index][spec.name][:1] for index in indices])
            for spec in self._outputs
            if spec.batch_axis is not None
        }

    def _isolated(self, batch: int, rows: Outputs) -> list[Finding]:
        """Return the findings after every other sample is replaced by one from outside the batch."""
        for parity in (0, 1):
            changed = [batch if index % 2 == parity else index for index in range(batch)]
            kept = [index for index in range(batch) if index % 2 != parity]
            got = self._flat(self._run(self._take(changed)))
            findings = []
            for spec in self._outputs:
                if spec.batch_axis is not None:
                    limit = tolerance(spec.dtype, self._precision)
                    bad, _ = wrong_rows(got[spec.name][kept], rows[spec.name][kept], limit)
                    if bad.size:
                        leaking = [kept[index] for index in bad]
                        findings.append(Finding("isolated", spec.name, batch, tuple(leaking), _not_isolated(leaking)))
            if findings:
                return findings
        return []

    def _compare(
        self,
        check: str,
        batch: int,
        got: Outputs,
        wanted: Mapping[str, Array],
        explain: Callable[[Array, Array, list[int], str], str],
    ) -> list[Finding]:
        """Return the findings of one check, which compares the rows of each output with the expected ones."""
        findings = []
        for spec in self._outputs:
            if spec.name not in wanted:
                continue
            limit = tolerance(spec.dtype, self._precision)
            rows, reference = got[spec.name], wanted[spec.name]
            if rows.shape != reference.shape:
                message = f"has {rows.shape[1]} elements a row, then {reference.shape[1]}, for the same samples"
                findings.append(Finding(check, spec.name, batch, (), message))
                continue
            bad, errors = wrong_rows(rows, reference, limit)
            if bad.size:
                indices = bad.tolist()
                message = explain(rows, reference, indices, f"error {errors[bad].max():.1e} > {limit:.0e}")
                where = tuple(indices) if spec.batch_axis is not None else ()
                findings.append(Finding(check, spec.name, batch, where, message))
        return findings

    def _take(self, indices: Sequence[int]) -> dict[str, Array]:
        return {
            spec.name: self._pool[spec.name]
            if spec.batch_axis is None
            else np.ascontiguousarray(np.take(self._pool[spec.name], list(indices), axis=spec.batch_axis))
            for spec in self._inputs
        }


def require_same_rows(what: str, found: Mapping[str, Array], wanted: Mapping[str, Array], sidecar: Sidecar) -> None:
    """Raise if an engine's rows differ from those of the run that was checked; `what` names the engine and the mode.

    Raises:
        RowsError: names the output.
    """
    one, two = (valid_only(dict(outputs), sidecar.outputs) for outputs in (found, wanted))
    for spec in sidecar.outputs:
        rows, others = one[spec.name], two[spec.name]
        limit = tolerance(spec.dtype, sidecar.precision.name)
        if rows.shape != others.shape or wrong_rows(as_rows(rows, spec), as_rows(others, spec), limit)[0].size:
            raise RowsError(
                f"{what} gives other rows of {spec.name} than the run that was checked",
                "a fault of trtbatch or of the backend: report it, with what trtbatch doctor prints",
            )


def require_slots(
    what: str,
    slots: Sequence[Slot],
    batch: int,
    inputs: Mapping[str, Array],
    wanted: Mapping[str, Array],
    sidecar: Sidecar,
    overlapping: bool = True,
) -> None:
    """Run every slot as it will be timed, and check its rows.

    Before that, each slot runs on other inputs and its outputs are overwritten, so stale results can't pass.

    Args:
        what: the engine and the mode, for errors.
        slots: slots to run.
        batch: batch size.
        inputs: samples of the run that was checked.
        wanted: outputs of the run that was checked.
        sidecar: sidecar of the engine.
        overlapping: whether all slots run at the same time.

    Raises:
        RowsError: as :func:`require_same_rows`.
    """
    others = {name: array.reshape(-1)[::-1].reshape(array.shape) for name, array in inputs.items()}  # same value range
    for slot in slots:
        fill_slot(slot, batch, others)
        for output in slot.run().values():
            if output.flags.writeable and output.flags.c_contiguous:
                output.reshape(-1).view(np.uint8).fill(_POISONS[0])
    for slot in slots:
        fill_slot(slot, batch, inputs)
        if overlapping:
            slot.submit()
    for slot in slots:
        require_same_rows(what, slot.wait() if overlapping else slot.run(), wanted, sidecar)


def fill_slot(slot: Slot, batch: int, inputs: Mapping[str, Array]) -> None:
    """Write a batch of samples into a slot."""
    rows = slot.prepare(batch)
    for name, array in inputs.items():
        np.copyto(rows[name], array)


def _is_poison(array: Array, pattern: int) -> NDArray[np.bool_]:
    raw = np.ascontiguousarray(array).view(np.uint8).reshape(*array.shape, array.dtype.itemsize)
    return np.asarray((raw == pattern).all(axis=-1))


def _rows_with(mask: NDArray[np.bool_], spec: TensorSpec) -> tuple[int, ...]:
    return () if spec.batch_axis is None else tuple(np.flatnonzero(rows_of(mask, spec).any(axis=1)).tolist())


def _not_repeatable(rows: Array, reference: Array, bad: list[int], error: str) -> str:
    return f"{named_rows(bad)} differ between two runs on the same input ({error}): uninitialised memory, or a race"


def _not_identical(rows: Array, reference: Array, bad: list[int], error: str) -> str:
    return f"copies of one sample differ in {named_rows(bad)} ({error})"


def _not_permuted(rows: Array, reference: Array, bad: list[int], error: str) -> str:
    return f"{named_rows(bad)} don't follow their samples when these are turned round ({error})"


def _not_isolated(bad: list[int]) -> str:
    return (
        f"{named_rows(bad)} change when other samples do: rows leak into each other (the batch is folded into "
        "another axis, or something is computed over it)"
    )


def _not_singles(rows: Array, reference: Array, bad: list[int], error: str) -> str:
    """Return a description of the wrong rows and of their probable cause."""
    named = named_rows(bad)
    wrong, right = rows[bad], reference[bad]
    if not wrong.any():
        return f"{named} are all zero: {_FIXED}"
    if (wrong != wrong).any() and not (right != right).any():
        return f"{named} hold NaN, and the same samples run alone don't"
    if bad[0] > 0 and (wrong == rows[0]).all():
        return f"{named} repeat row 0: {_FIXED}"
    if sorted(map(bytes, np.ascontiguousarray(wrong))) == sorted(map(bytes, np.ascontiguousarray(right))):
        return f"{named} are right and in another order: the batch axis was moved or reshaped"
    return f"{named} differ from the same samples run alone ({error})"
