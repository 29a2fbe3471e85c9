"""Time per batch size: rows checked first, warm-up per shape, tight loops, every raw sample kept.

*execute_v2* and ONNX Runtime's *run* are synchronous and wall-timed per call. *async* keeps the stream
busy: CUDA events stand before and after each ``execute_async_v3``, and the host waits for the launch
before last, so that the next one is already queued.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch import artifacts, environment
from trtbatch.artifacts import Accuracy, ModelRecord, Sidecar
from trtbatch.backends import open_engine, resolve_engine
from trtbatch.backends.base import Event, Mode, Session
from trtbatch.batches import Profile, pick_profile, refuse_outside
from trtbatch.checks import RowChecker
from trtbatch.errors import RowsError, UsageError
from trtbatch.rows import tolerance, wrong_rows
from trtbatch.stats import Summary, summarize

__all__ = ["BatchResult", "BenchRequest", "BenchResult", "bench", "measure"]

Milliseconds = NDArray[np.float64]

QUEUE_DEPTH = 2
"""Launches in flight in the async loop: one running, one waiting."""

MIN_ITERATIONS = 10
TIME_OUT = 3.0
"""Times ``min_time``, after which an unstable measurement is ended and called so."""


@dataclass(frozen=True)
class BenchRequest:
    """What to time, and how.

    Args:
        engine: None takes the newest in ``engines/`` that runs here.
        batches: batch sizes, in the order to be measured.
        modes: None is the backend's default, ``execute_v2`` or ``run``.
        iterations: exactly so many timed runs of each; None goes by time.
        min_time: seconds of timed runs of each, at least; up to three times that while not stable.
        warmup: milliseconds of runs before, for each shape.
        percentiles: beside the median, 0 to 100.
        device: number of the GPU.
        progress: told what is being done.
    """

    engine: Path | None
    batches: Sequence[int]
    modes: Sequence[str] | None = None
    iterations: int | None = None
    min_time: float = 1.0
    warmup: float = 200.0
    percentiles: Sequence[float] = (90, 99)
    seed: int = 0
    device: int = 0
    progress: Callable[[str, float | None], None] = lambda words, share: None


@dataclass(frozen=True)
class BatchResult:
    """One batch size in one mode.

    Args:
        shapes: of every input and output, as executed.
        profile: index of the optimization profile that ran it.
        samples_per_s: batch over median time.
        speedup: samples/s over those of `speedup_over`, the smallest batch measured in this mode.
        samples_ms: every raw sample, in order.
    """

    batch: int
    mode: str
    profile: int
    shapes: dict[str, list[int]]
    samples_per_s: float
    ms_per_sample: float
    speedup: float
    speedup_over: int
    summary: Summary
    samples_ms: tuple[float, ...]


@dataclass(frozen=True)
class BenchResult:
    """A whole run: what was timed, on what, and the figures."""

    engine: str
    backend: str
    precision: str
    model: ModelRecord
    profiles: tuple[Profile, ...]
    timed: dict[str, str]
    settings: dict[str, Any]
    tools: dict[str, str]
    device: dict[str, str]
    environment: dict[str, Any]
    gpu_before: dict[str, Any]
    gpu_after: dict[str, Any]
    created: str
    batches: tuple[BatchResult, ...]
    accuracy: Accuracy | None = None
    format_version: int = 1


def bench(request: BenchRequest) -> BenchResult:
    """Check the rows at each batch size, then time it.

    Raises:
        ProfileError: a batch outside every profile; nothing has run.
        UsageError: an unknown mode.
        RowsError: wrong rows; no figure is given.
    """
    artifact = resolve_engine(request.engine, request.batches)
    sidecar = artifact.sidecar
    refuse_outside(sidecar.profiles, request.batches, artifact.path.name)
    gpu = sidecar.backend == "tensorrt"
    found: list[BatchResult] = []
    with open_engine(artifact, request.device) as engine, engine.session() as session:
        _modes(session, request.modes)  # an unknown one is told before anything runs
        before = environment.gpu_state(request.device) if gpu else {}
        checker = RowChecker.of(session, sidecar, max(request.batches), seed=request.seed)
        for batch in request.batches:
            request.progress(f"batch {batch}: checking rows", None)
            checker.require(
                batch, artifact.path.name, f"its numbers would mean nothing; see trtbatch verify {artifact.path}"
            )
        timed: dict[str, str] = {}
        for batch in request.batches:
            session.bind(checker.inputs(batch))
            for mode in _modes(session, request.modes):
                _require_same_rows(session, sidecar, mode, artifact.path.name)
                timed[mode.name] = mode.timed
                request.progress(f"batch {batch}: timing {mode.name}", None)
                found.append(_measure(mode, batch, request, pick_profile(sidecar.profiles, batch) or 0, session))
        after = environment.gpu_state(request.device) if gpu else {}
    return BenchResult(
        engine=artifact.path.name,
        backend=sidecar.backend or "",
        precision=sidecar.precision_realised or "",
        model=sidecar.model,
        profiles=sidecar.profiles,
        timed=timed,
        settings={
            "iterations": request.iterations,
            "min_time_s": request.min_time,
            "warmup_ms": request.warmup,
            "seed": request.seed,
        },
        tools=sidecar.tools,
        device=sidecar.device,
        environment=environment.describe(),
        gpu_before=before,
        gpu_after=after,
        created=artifacts.now(),
        batches=_with_speedup(found),
        accuracy=sidecar.accuracy,
    )


def _require_same_rows(session: Session, sidecar: Sidecar, mode: Mode, name: str) -> None:
    """Raise where what is timed gives other rows than what was checked.

    Raises:
        RowsError: naming the mode.
    """
    session.run()
    checked = session.fetch()
    session.poison(0xFF)
    mode.launch()
    launched = session.fetch()
    for spec in sidecar.outputs:
        limit = tolerance(spec.dtype, sidecar.precision)
        one, two = (each[spec.name].reshape(1, -1) for each in (launched, checked))
        if one.shape != two.shape or wrong_rows(one, two, limit)[0].size:
            raise RowsError(
                f"{name}: {mode.name} gives other rows of {spec.name} than the run that was checked",
                "a fault of trtbatch or of the backend: report it, with what trtbatch doctor prints",
            )


def _modes(session: Session, wanted: Sequence[str] | None) -> list[Mode]:
    modes = session.modes()
    if not wanted and wanted is not None:
        raise UsageError("--mode names no mode", f"pass --mode {','.join(modes)}")
    if wanted is None:
        return [next(iter(modes.values()))]
    unknown = [name for name in wanted if name not in modes]
    if unknown:
        raise UsageError(
            f"this engine has no mode {unknown[0]!r}; it has {', '.join(modes)}", f"pass --mode {','.join(modes)}"
        )
    return [modes[name] for name in wanted]


def _measure(mode: Mode, batch: int, request: BenchRequest, profile: int, session: Session) -> BatchResult:
    samples = measure(mode, request.iterations, request.min_time, request.warmup)
    outputs = session.fetch()
    summary = summarize(samples, request.percentiles)
    return BatchResult(
        batch=batch,
        mode=mode.name,
        profile=profile,
        shapes={name: list(array.shape) for name, array in (session.bound() | outputs).items()},
        samples_per_s=batch / summary.median * 1e3,
        ms_per_sample=summary.median / batch,
        speedup=1.0,
        speedup_over=batch,
        summary=summary,
        samples_ms=tuple(float(f"{value:.6g}") for value in samples),
    )


def _with_speedup(results: Sequence[BatchResult]) -> tuple[BatchResult, ...]:
    base: dict[str, BatchResult] = {}
    for result in results:
        if result.mode not in base or result.batch < base[result.mode].batch:
            base[result.mode] = result
    return tuple(
        replace(
            result,
            speedup=result.samples_per_s / base[result.mode].samples_per_s,
            speedup_over=base[result.mode].batch,
        )
        for result in results
    )


def measure(mode: Mode, iterations: int | None, min_time: float, warmup_ms: float) -> Milliseconds:
    """Timed runs of what is bound, in ms.

    Either exactly `iterations`, or at least `min_time` seconds and :data:`MIN_ITERATIONS`, and on until the
    measurement is stable or :data:`TIME_OUT` times `min_time` have passed.
    """
    loop = _wall_times if mode.new_event is None else _event_times
    each = _warm_up(mode, loop, warmup_ms)
    if iterations is not None:
        return loop(mode, iterations)
    chunk = int(np.clip(0.05 / max(each, 1e-6), 1, 1000))  # about 50 ms between looks at the clock
    parts: list[Milliseconds] = []
    count = 0
    begun = time.perf_counter()
    while True:
        parts.append(loop(mode, chunk))
        count += chunk
        elapsed = time.perf_counter() - begun
        if elapsed < min_time or count < MIN_ITERATIONS:
            continue
        samples = np.concatenate(parts)
        if elapsed >= TIME_OUT * min_time or summarize(samples).stable:
            return samples


def _warm_up(mode: Mode, loop: Callable[[Mode, int], Milliseconds], warmup_ms: float) -> float:
    """Run for `warmup_ms`, three times at least; returns seconds per run at the end."""
    begun = time.perf_counter()
    runs = 0
    while runs < 3 or (time.perf_counter() - begun) * 1e3 < warmup_ms:
        last = loop(mode, 1)
        runs += 1
    return float(last[0]) / 1e3


def _wall_times(mode: Mode, count: int) -> Milliseconds:
    """Wall time of each of `count` synchronous launches, in ms."""
    launch, clock = mode.launch, time.perf_counter_ns
    nanoseconds = np.empty(count, np.int64)
    for index in range(count):
        begun = clock()
        launch()
        nanoseconds[index] = clock() - begun
    return nanoseconds / 1e6


def _event_times(mode: Mode, count: int) -> Milliseconds:
    """GPU time between the events around each of `count` asynchronous launches, in ms."""
    assert mode.new_event is not None
    launch = mode.launch
    ring: list[tuple[Event, Event]] = [(mode.new_event(), mode.new_event()) for _ in range(QUEUE_DEPTH)]
    milliseconds = np.empty(count, np.float64)
    for index in range(count + QUEUE_DEPTH):
        begin, end = ring[index % QUEUE_DEPTH]
        if index >= QUEUE_DEPTH:
            end.synchronize()
            milliseconds[index - QUEUE_DEPTH] = end.milliseconds_since(begin)
        if index < count:
            begin.record()
            launch()
            end.record()
    return milliseconds
