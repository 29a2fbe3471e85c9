"""Source → batches → engine → sink: in order, at the true batch sizes, nothing lost, memory bounded."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch import files
from trtbatch.artifacts import Sidecar, TensorSpec
from trtbatch.backends import open_engine, resolve_engine
from trtbatch.backends.base import Session
from trtbatch.batches import Profile, pick_profile, refuse_outside
from trtbatch.errors import InputError
from trtbatch.notes import warn
from trtbatch.sinks import Prediction, open_sink, top_predictions
from trtbatch.sources import Sample, Skipped, Source, open_source

__all__ = ["InferRequest", "InferResult", "infer"]

Array = NDArray[Any]

SHOWN = 10
"""Samples whose predictions are kept for the terminal."""


@dataclass(frozen=True)
class InferRequest:
    """What to predict, and with which engine.

    Args:
        engine: None takes the newest in ``engines/`` that runs here.
        input: folder or glob of images, ``.npy``, ``.npz``, or ``random``.
        batch: None is the first profile's opt.
        count: at most so many samples.
        output: ``.npz``, ``.csv`` or ``.jsonl``.
        strict: the first unusable input ends the run.
        device: number of the GPU.
        progress: told the number of inputs done, and of all.
    """

    engine: Path | None
    input: str
    batch: int | None = None
    count: int | None = None
    seed: int = 42
    output: Path | None = None
    topk: int = 5
    strict: bool = False
    device: int = 0
    progress: Callable[[int, int], None] = lambda done, total: None


@dataclass
class InferResult:
    """What was done: samples, unusable inputs, executed batch sizes, the first predictions.

    Args:
        seconds: wall time from the first read to the last row handed to the sink, the engine being loaded.
        executed: how often each batch size ran, as executed (padding included).
    """

    engine: str
    backend: str
    weights: str
    samples: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    executed: Counter[int] = field(default_factory=Counter)
    shown: list[tuple[str, list[Prediction]]] = field(default_factory=list)
    output: Path | None = None
    seconds: float = 0.0


def infer(request: InferRequest) -> InferResult:
    """Run everything in `request.input` through an engine.

    Raises:
        ProfileError: a batch outside every profile.
        UsageError, InputError: an input that doesn't fit; with `strict`, the first unusable image.
    """
    artifact = resolve_engine(request.engine, () if request.batch is None else [request.batch])
    sidecar = artifact.sidecar
    batch = request.batch if request.batch is not None else sidecar.profiles[0].opt
    refuse_outside(sidecar.profiles, [batch], artifact.path.name)
    for spec in sidecar.outputs:
        if spec.batch_axis is None:
            warn(f"output {spec.name!r} has no batch axis: it is not one row per sample, and is left out")
    files.refuse_outputs((request.output, ""), inputs=[Path(request.input)])
    source = open_source(request.input, sidecar, request.count, request.seed)
    result = InferResult(artifact.path.name, sidecar.backend or "", sidecar.model.weights, output=request.output)
    with (
        open_sink(request.output, sidecar) as sink,
        open_engine(artifact, request.device) as engine,
        engine.session() as session,
    ):
        begun = time.perf_counter()
        for samples in _batches(source, batch, request, result):
            outputs = _run(session, samples, source.constants, sidecar, result)
            names = [sample.name for sample in samples]
            top = _top(outputs, sidecar, request.topk)
            sink.write(names, outputs, top)
            result.samples += len(samples)
            if top is not None:
                result.shown += list(zip(names, top))[: SHOWN - len(result.shown)]
            request.progress(result.samples + len(result.skipped), source.total)
        result.seconds = time.perf_counter() - begun
    return result


def _batches(source: Source, batch: int, request: InferRequest, result: InferResult) -> Iterator[list[Sample]]:
    """Samples in lists of `batch`, the last one shorter; unusable inputs are noted and left out."""
    pending: list[Sample] = []
    for item in source:
        if isinstance(item, Skipped):
            if request.strict:
                raise InputError(f"{item.name}: {item.reason}", "mend or remove it, or leave out --strict")
            warn(f"skipped {item.name}: {item.reason}")
            result.skipped.append(item)
            continue
        pending.append(item)
        if len(pending) == batch:
            yield pending
            pending = []
    if pending:
        yield pending


def _run(
    session: Session, samples: Sequence[Sample], constants: dict[str, Array], sidecar: Sidecar, result: InferResult
) -> dict[str, Array]:
    """Outputs of these samples, batch axis first, padding trimmed."""
    size = executed_size(len(samples), sidecar.profiles)
    inputs = dict(constants)
    for spec in sidecar.inputs:
        if spec.batch_axis is not None:
            rows = [sample.rows[spec.name] for sample in samples]
            rows += [rows[-1]] * (size - len(rows))
            inputs[spec.name] = np.stack(rows, axis=spec.batch_axis)
    session.bind(inputs)
    session.run()
    outputs = session.fetch()
    result.executed[size] += 1
    return {
        spec.name: _first_rows(outputs[spec.name], spec, len(samples))
        for spec in sidecar.outputs
        if spec.batch_axis is not None
    }


def executed_size(count: int, profiles: Sequence[Profile]) -> int:
    """The batch size that `count` samples run at: their number, or the next larger size that a profile holds."""
    if pick_profile(profiles, count) is not None:
        return count
    return min(profile.min for profile in profiles if profile.min > count)


def _first_rows(output: Array, spec: TensorSpec, count: int) -> Array:
    moved: Array = np.moveaxis(output, spec.batch_axis or 0, 0)
    return moved[:count]


def _top(outputs: dict[str, Array], sidecar: Sidecar, k: int) -> list[list[Prediction]] | None:
    """The best classes, where the first output is class scores: ``(N, C)`` floats with C ≥ 2."""
    if not outputs or k < 1:
        return None
    first = next(iter(outputs.values()))
    if first.ndim != 2 or first.shape[1] < 2 or first.dtype.kind != "f":
        return None
    return top_predictions(first, k, sidecar.classes)
