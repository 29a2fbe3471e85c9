"""Which outputs hold a row for each sample: seen by running an engine at two batch sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from trtbatch.artifacts import BATCH_AXIS, TensorSpec
from trtbatch.backends.base import Session
from trtbatch.rows import random_inputs

__all__ = ["observed"]

Outputs = Mapping[str, NDArray[Any]]

_COUNT = re.compile(r"(^|[_/.:-])(num|count|n)([_/.:-]|$)|num_?det|valid_?det|counts?$", re.IGNORECASE)
"""Names under which detectors tell how many of their padded entries are valid (``num_detections``, ``num_dets``)."""


def observed(
    session: Session, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], few: int, many: int
) -> tuple[TensorSpec, ...]:
    """The outputs' specs as two runs show them.

    An axis that no name ties to the inputs' batch is the batch axis where it has the size of the batch in both
    runs. A declared batch axis stays: that it follows the batch is for the checks to find. Where `few` and
    `many` are the same (a fixed batch), a declared batch axis of another size is none.

    Detections padded to a fixed number are recognised by an integer output of one element a row that is named
    like a count and never exceeds the second axis of the others: their ``counted_by`` is set.
    """
    first, second = (_run(session, inputs, batch) for batch in (few, many))
    specs = [_observed(spec, first[spec.name].shape, second[spec.name].shape, few, many) for spec in outputs]
    count = next((spec for spec in specs if _is_count(spec, second[spec.name])), None)
    if count is None:
        return tuple(specs)
    largest = max(int(run[count.name].max(initial=0)) for run in (first, second))
    return tuple(_counted(spec, count, largest) for spec in specs)


def _run(session: Session, inputs: Sequence[TensorSpec], batch: int) -> Outputs:
    session.bind(random_inputs(inputs, batch, 0))
    session.run()
    return session.fetch()


def _observed(spec: TensorSpec, few_shape: Sequence[int], many_shape: Sequence[int], few: int, many: int) -> TensorSpec:
    if few == many:
        axis = spec.batch_axis
        follows = axis is not None and axis < len(few_shape) and few_shape[axis] == few
        return spec if follows else replace(spec, batch_axis=None)
    if spec.batch_axis is not None or len(few_shape) != len(many_shape):
        return spec
    following = [axis for axis, sizes in enumerate(zip(few_shape, many_shape)) if sizes == (few, many)]
    if not following:
        return spec
    found = replace(spec, batch_axis=following[0])
    return replace(found, shape=found.at_name(BATCH_AXIS))


def _is_count(spec: TensorSpec, array: NDArray[Any]) -> bool:
    one_each = spec.batch_axis == 0 and array.size == array.shape[0]
    named = array.dtype.kind in "iu" and _COUNT.search(spec.name) is not None
    return one_each and named and bool((array >= 0).all())


def _counted(spec: TensorSpec, count: TensorSpec, largest: int) -> TensorSpec:
    entries = spec.shape[1] if spec.batch_axis == 0 and len(spec.shape) > 1 and spec is not count else None
    return replace(spec, counted_by=count.name) if isinstance(entries, int) and entries >= max(2, largest) else spec
