"""Define the request of ``bench`` and its comparisons, and check it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtbatch.benchmark.loops import TIME_OUT, StopRule
from trtbatch.core.batches import nearest_inside, refuse_no_profile, refuse_outside
from trtbatch.core.sidecar import Sidecar
from trtbatch.errors import ProfileError, UsageError
from trtbatch.util.statistics import NOISE_LIMIT

__all__ = ["LATENCY", "MOST_STREAMS", "SLOT_MODES", "THROUGHPUT", "BenchRequest", "refuse_batches", "refuse_modes"]

LATENCY, THROUGHPUT = "latency", "throughput"

SLOT_MODES = (LATENCY, THROUGHPUT)
"""Modes that run on slots, on every backend; the others are a session's own."""

MOST_STREAMS = 64
"""Largest number of streams; more are taken for a typing error."""


@dataclass(frozen=True)
class BenchRequest:
    """Request to time an engine.

    Args:
        engine: engine to time; None takes the newest in ``engines/`` that runs here.
        batches: batch sizes, in the order of measurement.
        modes: ``execute_v2``, ``run``, ``async``, ``graph``, ``latency`` or ``throughput``; None is the backend's
            default, ``execute_v2`` or ``run``.
        iterations: exact number of samples per result; None goes by time. A sample of throughput is a window.
        min_time: seconds of timed runs per result, at least; up to `time_out` while not stable.
        warmup: milliseconds of runs before, for each shape.
        percentiles: percentiles to report next to the median, 0 to 100.
        device: number of the GPU.
        progress: called with each step.
        max_noise: largest half width of the median's 95 % interval, relative to the median, that counts as stable.
        time_out: seconds; None is three times `min_time`.
        streams: sessions that run at the same time, for throughput; at most :data:`MOST_STREAMS`.
        cuda_graphs: whether slots may run as CUDA graphs.
        flush_l2: whether to evict the L2 cache before each launch, for the session's own modes on a GPU.
        profile: optimization profile to run on; None is the fastest one for each batch.
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
    max_noise: float = NOISE_LIMIT
    time_out: float | None = None
    streams: int = 1
    cuda_graphs: bool = True
    flush_l2: bool = False
    profile: int | None = None

    @property
    def rule(self) -> StopRule:
        """Return the rule for when there are enough samples."""
        time_out = TIME_OUT * self.min_time if self.time_out is None else self.time_out
        return StopRule(self.iterations, self.min_time, time_out, self.max_noise)

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that decide the figures, for the record."""
        rule = self.rule
        return {
            "iterations": rule.iterations,
            "min_time_s": rule.min_time,
            "time_out_s": rule.time_out,
            "max_noise": rule.max_noise,
            "warmup_ms": self.warmup,
            "seed": self.seed,
            "streams": self.streams,
            "cuda_graphs": self.cuda_graphs,
            "flush_l2": self.flush_l2,
            "profile": self.profile,
        }


def refuse_batches(request: BenchRequest, sidecar: Sidecar, name: str) -> None:
    """Raise if the engine, or the one profile to run on, doesn't hold a batch.

    Raises:
        UsageError: there is no such profile.
        ProfileError: names the batches.
    """
    refuse_outside(sidecar.profiles, request.batches, name)
    if request.profile is None:
        return
    refuse_no_profile(sidecar.profiles, request.profile, name)
    profile = sidecar.profiles[request.profile]
    outside = [batch for batch in request.batches if batch not in profile]
    if outside:
        what = f"batch {outside[0]} is" if len(outside) == 1 else f"batches {', '.join(map(str, outside))} are"
        raise ProfileError(
            f"{what} outside profile {request.profile} of {name} ({profile})",
            f"leave out `profile`, or pass `batches=[{nearest_inside([profile], outside[0])}]`",
        )


def refuse_modes(request: BenchRequest) -> None:
    """Raise if modes and options contradict each other, as far as that shows without an engine.

    Raises:
        UsageError: names the option.
    """
    modes = request.modes
    if not request.batches:
        raise UsageError("`batches` names no batch size", "give at least one")
    if modes is not None and not modes:
        raise UsageError("`modes` names no mode", "name one, like `modes=['latency']`, or leave out `modes`")
    if not 1 <= request.streams <= MOST_STREAMS:
        raise UsageError(f"`streams={request.streams}`: not a number of streams", f"give 1 to {MOST_STREAMS}")
    if request.streams > 1 and THROUGHPUT not in (modes or ()):
        raise UsageError(f"`streams={request.streams}` is for throughput", f"pass `modes=['{THROUGHPUT}']` with it")
    for mode in modes or ():
        if request.flush_l2 and mode in SLOT_MODES:
            raise UsageError(
                f"`flush_l2` flushes before each launch alone, and {mode} times copies with it",
                "pass `modes=['execute_v2']`, async or graph with it",
            )
