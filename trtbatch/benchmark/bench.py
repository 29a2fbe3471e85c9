"""Time an engine at each batch size: check the rows, warm up per shape, run tight loops, keep every raw sample.

The loops are in :mod:`trtbatch.benchmark.loops`, the comparisons of engines and profiles in
:mod:`trtbatch.benchmark.paired`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trtbatch.benchmark.clocks import ClockWatch
from trtbatch.benchmark.harness import Harness, open_harness
from trtbatch.benchmark.loops import Loop, Milliseconds, collect, measure
from trtbatch.benchmark.request import BenchPlan, BenchRequest, plan_bench
from trtbatch.benchmark.run import Run
from trtbatch.core.sidecar import Accuracy, Sidecar
from trtbatch.onnx_graph.workload import ProductBytes
from trtbatch.util import environment
from trtbatch.util.notebook import html_table
from trtbatch.util.statistics import Summary, bound_by, summarize

__all__ = ["THROTTLED", "BatchResult", "BenchRequest", "BenchResult", "bench", "measure", "rounded"]

THROTTLED = "throttled"
"""Verdict on a result with more bad samples than good ones."""


@dataclass(frozen=True)
class BatchResult:
    """Result of one batch size in one mode.

    Args:
        shapes: executed shape of every input and output.
        profile: index of the optimization profile that ran the batch.
        samples_per_s: batch size over median time.
        speedup: samples/s over those of `speedup_over`, the smallest batch size measured in this mode.
        summary: figures of the samples that aren't bad; of all if more than half are bad.
        samples_ms: every raw sample, in order.
        verdict: ``stable``, ``throttled``, or what was not reached.
        bound: ``enqueue-bound``, ``copy-bound``, ``memory-bound`` or ``compute-bound``; None if unknown.
        enqueue_ms: median CPU time of a launch; None if launches are synchronous.
        parts_ms: medians of ``h2d``, ``gpu`` and ``d2h``, each run alone; empty if batches aren't copied.
        memory_ms: time that the GPU's memory takes at full bandwidth for what the products read and write; None if
            unknown.
        window: number of batches that one sample is the mean of.
        bad: ``(first, end)`` of the ranges of samples in which the GPU's clocks changed or were limited.
        faults: reasons why these samples are bad.
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
    verdict: str = ""
    bound: str | None = None
    enqueue_ms: float | None = None
    parts_ms: dict[str, float] = field(default_factory=dict)
    memory_ms: float | None = None
    window: int = 1
    bad: tuple[tuple[int, int], ...] = ()
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchResult(Run):
    """Result of a whole run: what was timed, on what, and the figures.

    Args:
        origins: where the engine, the mode, the profile and the time-out came from, in words.
    """

    gpu_before: dict[str, Any]
    gpu_after: dict[str, Any]
    batches: tuple[BatchResult, ...]
    accuracy: Accuracy | None = None
    format_version: int = 1
    origins: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        times = ", ".join(f"{line.batch}: {line.summary.median:.4g}" for line in self.batches)
        return f"BenchResult({self.engine!r}, ms by batch {times})"

    def _repr_html_(self) -> str:
        rows = [
            [line.batch, line.mode, f"{line.summary.median:.4g}", f"{line.samples_per_s:,.0f}", line.verdict]
            for line in self.batches
        ]
        return html_table(self.engine, ["batch", "mode", "ms", "samples/s", "verdict"], rows)


def bench(request: BenchRequest) -> BenchResult:
    """Check the rows at each batch size, then time it.

    Raises:
        ProfileError: a batch is outside every profile; nothing has run.
        UsageError: a mode or profile is unknown, or an option doesn't fit the modes.
        RowsError: rows are wrong; there are no figures.
    """
    plan = plan_bench(request)
    gpu, (engine,) = plan.gpu, plan.engines
    sidecar = engine.artifact.sidecar
    bandwidth = None if gpu is None else environment.memory_bandwidth(gpu)
    found: list[BatchResult] = []
    timed: dict[str, str] = {}
    with open_harness(engine, request) as harness, ClockWatch(gpu) as watch:
        before = {} if gpu is None else environment.gpu_state(gpu)
        harness.require_rows()
        for batch in request.batches:
            for mode in harness.modes(batch):
                request.progress(f"batch {batch}: timing {mode}", None)
                loop = harness.loop(batch, mode)
                timed[mode] = loop.timed
                found.append(_measure(loop, batch, plan, harness, watch, memory_ms(sidecar, batch, bandwidth)))
        after = {} if gpu is None else environment.gpu_state(gpu)
    return BenchResult(
        **Run.of(engine.artifact, timed, request.settings),
        gpu_before=before,
        gpu_after=after,
        batches=_with_speedup(found),
        accuracy=sidecar.precision.accuracy,
        origins=plan.origins,
    )


def _measure(
    loop: Loop, batch: int, plan: BenchPlan, harness: Harness, watch: ClockWatch, memory: float | None
) -> BatchResult:
    request = plan.request
    samples = collect(loop, plan.rule, request.warmup, watch)
    parts = loop.parts()
    recorded = rounded(samples.ms)  # figures of the rounded samples can be computed again from the record
    summary = summarize(samples.kept(np.asarray(recorded)), request.percentiles, request.max_noise)
    enqueue = float(np.median(samples.kept(samples.enqueue_ms))) if samples.enqueue_ms.size else None
    return BatchResult(
        batch=batch,
        mode=loop.name,
        profile=harness.profiles[batch][0],
        shapes=harness.shapes(batch),
        samples_per_s=batch / summary.median * 1e3,
        ms_per_sample=summary.median / batch,
        speedup=1.0,
        speedup_over=batch,
        summary=summary,
        samples_ms=recorded,
        verdict=THROTTLED if samples.throttled else summary.verdict,
        bound=_bound(summary, enqueue, parts, memory),
        memory_ms=memory,
        enqueue_ms=enqueue,
        parts_ms=parts,
        window=loop.window,
        bad=samples.bad,
        faults=samples.faults,
    )


def _bound(summary: Summary, enqueue: float | None, parts: dict[str, float], memory: float | None) -> str | None:
    """Return what limits the speed; None for synchronous calls, of which only the total time is known."""
    if parts:
        return bound_by(parts["gpu"], parts_ms=parts, memory_ms=memory)
    return None if enqueue is None else bound_by(summary.median, enqueue_ms=enqueue, memory_ms=memory)


def memory_ms(sidecar: Sidecar, batch: int, bandwidth: float | None) -> float | None:
    """Return the time in ms that the GPU's memory takes for a batch at `bandwidth` bytes/s; None if unknown."""
    moved = sidecar.build.details.get("product_bytes")
    if bandwidth is None or not isinstance(moved, dict):
        return None
    return float(f"{ProductBytes(int(moved['weights']), int(moved['per_sample'])).ms(batch, bandwidth):.5g}")


def rounded(values: Milliseconds | Sequence[float]) -> tuple[float, ...]:
    """Return times rounded to six significant digits, for the record."""
    return tuple(float(f"{value:.6g}") for value in values)


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
