"""Find the batch axis of each output by running an engine at two batch sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from trtbatch.backends.base import Session
from trtbatch.core.rows import random_inputs
from trtbatch.core.tensors import BATCH_AXIS, TensorSpec

__all__ = ["observed"]

Outputs = Mapping[str, NDArray[Any]]

_COUNT = re.compile(r"(^|[_/.:-])(num|count|n)([_/.:-]|$)|num_?det|valid_?det|counts?$", re.IGNORECASE)
"""Names of outputs with which detectors count the valid ones of their padded entries (``num_detections``,
``num_dets``)."""


def observed(
    session: Session, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], few: int, many: int
) -> tuple[TensorSpec, ...]:
    """Return the specs of the outputs as runs at two batch sizes show them.

    An undeclared axis is the batch axis if its size is the batch size in every run. A declared batch axis stays; the
    row checks find whether it follows the batch. If `few` equals `many` (a fixed batch), a declared batch axis of
    another size is dropped.

    Detections that are padded to a fixed number get ``counted_by``. They are recognized by an integer output with one
    element per row that is named like a count and never exceeds the second axis of the other outputs.
    """
    if few != many and all(spec.batch_axis is not None and not _may_count(spec) for spec in outputs):
        return tuple(outputs)  # every batch axis is declared, and no output can be a count
    # Four draws each, since a list of detections may have the length of the batch by chance.
    runs = [(batch, _run(session, inputs, batch, seed)) for seed in range(4) for batch in dict.fromkeys((few, many))]
    specs = [_observed(spec, [(batch, run[spec.name].shape) for batch, run in runs]) for spec in outputs]
    count = next((spec for spec in specs if all(_is_count(spec, run[spec.name]) for _, run in runs)), None)
    if count is None:
        return tuple(specs)
    largest = max(int(run[count.name].max(initial=0)) for _, run in runs)
    return tuple(_counted(spec, count, largest) for spec in specs)


def _run(session: Session, inputs: Sequence[TensorSpec], batch: int, seed: int) -> Outputs:
    session.bind(random_inputs(inputs, batch, seed))
    session.run()
    return session.fetch()


def _observed(spec: TensorSpec, seen: Sequence[tuple[int, tuple[int, ...]]]) -> TensorSpec:
    """Return the spec that fits the shapes seen at each batch size."""
    ranks = {len(shape) for _, shape in seen}
    if len(ranks) > 1:
        return replace(spec, batch_axis=None)
    following = [axis for axis in range(ranks.pop()) if all(shape[axis] == batch for batch, shape in seen)]
    if len({batch for batch, _ in seen}) == 1:  # one size alone can't prove a new batch axis
        return spec if spec.batch_axis in following else replace(spec, batch_axis=None)
    if spec.batch_axis is not None or not following:
        return spec
    found = replace(spec, batch_axis=following[0])
    return replace(found, shape=found.at_name(BATCH_AXIS))


def _may_count(spec: TensorSpec) -> bool:
    return spec.dtype.lstrip("u").startswith("int") and _COUNT.search(spec.name) is not None


def _is_count(spec: TensorSpec, array: NDArray[Any]) -> bool:
    one_each = spec.batch_axis == 0 and array.size == array.shape[0]
    return one_each and _may_count(spec) and bool((array >= 0).all())


def _counted(spec: TensorSpec, count: TensorSpec, largest: int) -> TensorSpec:
    entries = spec.shape[1] if spec.batch_axis == 0 and len(spec.shape) > 1 and spec is not count else None
    return replace(spec, counted_by=count.name) if isinstance(entries, int) and entries >= max(2, largest) else spec
