"""Define the request of ``bench`` and its comparisons, and decide from it what runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtbatch.backends import engine_origin, resolve_engine
from trtbatch.benchmark.loops import TIME_OUT, StopRule
from trtbatch.core.batches import nearest_inside, refuse_no_profile, refuse_outside
from trtbatch.core.sidecar import Artifact, Sidecar
from trtbatch.errors import ProfileError, UsageError
from trtbatch.util.statistics import NOISE_LIMIT

__all__ = [
    "LATENCY",
    "MOST_STREAMS",
    "ROUNDS",
    "SLOT_MODES",
    "THROUGHPUT",
    "BenchPlan",
    "BenchRequest",
    "PlannedEngine",
    "plan_bench",
]

LATENCY, THROUGHPUT = "latency", "throughput"

SLOT_MODES = (LATENCY, THROUGHPUT)
"""Modes that run on slots, on every backend; the others are a session's own."""

MOST_STREAMS = 64
"""Largest number of streams; more are taken for a typing error."""


ROUNDS = 20
"""Rounds of a comparison. The 95 % interval of the median of 20 lies between the 6th smallest and the 6th largest."""

MIN_RUNS = 3
"""Smallest number of samples in a turn of a comparison."""


@dataclass(frozen=True)
class BenchRequest:
    """Request to time an engine, or to compare two engines or the profiles of one.

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
        against: engine to compare with, in turns.
        compare_profiles: whether to compare the profiles that hold each batch size, in turns.
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
    against: Path | None = None
    compare_profiles: bool = False

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


@dataclass(frozen=True)
class PlannedEngine:
    """Engine under test, and the profiles that run each batch size there, by batch size."""

    artifact: Artifact
    profiles: dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class BenchPlan:
    """Decisions of a run, made before it starts.

    Args:
        engines: the engine under test, A; the one that it is compared with, B, comes second.
        rule: when there are enough samples of a result, or of one turn of a comparison.
        origins: where the engine, the mode, the profile and the time-out came from, in words.
    """

    request: BenchRequest
    engines: tuple[PlannedEngine, ...]
    rule: StopRule
    origins: dict[str, str]

    @property
    def gpu(self) -> int | None:
        """Return the number of the GPU; None where all engines run on the CPU."""
        on_gpu = any(engine.artifact.sidecar.engine.backend == "tensorrt" for engine in self.engines)
        return self.request.device if on_gpu else None


def plan_bench(request: BenchRequest) -> BenchPlan:
    """Decide which engines, profiles and stopping rule a request means; nothing is opened on a device.

    Raises:
        ProfileError: an engine, or the one profile to run on, doesn't hold a batch.
        UsageError: there is no such profile, or arguments contradict each other.
        ArtifactError: no engine, or a damaged one.
    """
    _refuse_two_questions(request)
    _refuse_modes(request)
    artifacts = [resolve_engine(request.engine, request.batches)]
    if request.against is not None:
        artifacts.append(resolve_engine(request.against))
    for artifact in artifacts:
        _refuse_batches(request, artifact.sidecar, artifact.path.name)
    engines = tuple(PlannedEngine(each, _profiles(request, each.sidecar)) for each in artifacts)
    origins = {
        "engine": engine_origin(request.engine),
        "mode": "given" if request.modes is not None else "the first that the engine has",
    }
    for name, artifact in zip(("profile", "profile_b"), artifacts):
        origins[name] = _profile_origin(request, artifact.sidecar)
    if request.against is not None or request.compare_profiles:
        return BenchPlan(request, engines, _turn_rule(request), origins)
    if request.iterations is None:
        origins["time_out"] = "given" if request.time_out is not None else f"{TIME_OUT:g} times min_time"
    return BenchPlan(request, engines, request.rule, origins)


def _profiles(request: BenchRequest, sidecar: Sidecar) -> dict[int, tuple[int, ...]]:
    """Return the indices of the profiles to time each batch size on."""
    if request.compare_profiles:
        profiles = list(enumerate(sidecar.engine.profiles))
        return {batch: tuple(index for index, each in profiles if batch in each) for batch in request.batches}
    forced = request.profile
    return {batch: (sidecar.engine.profile_for(batch) or 0 if forced is None else forced,) for batch in request.batches}


def _profile_origin(request: BenchRequest, sidecar: Sidecar) -> str:
    if request.profile is not None:
        return "given"
    if request.compare_profiles:
        return "every one that holds the batch"
    if len(sidecar.engine.profiles) == 1:
        return "the only one"
    return "the fastest by the build's table" if sidecar.engine.table else "the one with the nearest opt"


def _turn_rule(request: BenchRequest) -> StopRule:
    """Return the stop rule of a turn: its share of the runs or of the time, stable or not."""
    if request.iterations is not None:
        return StopRule(max(1, round(request.iterations / ROUNDS)))
    slice_s = request.min_time / ROUNDS
    return StopRule(None, slice_s, slice_s, request.max_noise, MIN_RUNS)


def _refuse_two_questions(request: BenchRequest) -> None:
    """Raise if a request has more than one of `against`, `compare_profiles` and `profile`.

    Raises:
        UsageError: names two of them.
    """
    given = {
        "`against`": request.against is not None,
        "`compare_profiles`": request.compare_profiles,
        "`profile`": request.profile is not None,
    }
    asked = [name for name, is_given in given.items() if is_given]
    if len(asked) > 1:
        raise UsageError(f"{asked[0]} and {asked[1]} are two questions", "ask one after the other")


def _refuse_batches(request: BenchRequest, sidecar: Sidecar, name: str) -> None:
    """Raise if the engine, or the one profile to run on, doesn't hold a batch.

    Raises:
        UsageError: there is no such profile.
        ProfileError: names the batches.
    """
    refuse_outside(sidecar.engine.profiles, request.batches, name)
    if request.profile is None:
        return
    refuse_no_profile(sidecar.engine.profiles, request.profile, name)
    profile = sidecar.engine.profiles[request.profile]
    outside = [batch for batch in request.batches if batch not in profile]
    if outside:
        what = f"batch {outside[0]} is" if len(outside) == 1 else f"batches {', '.join(map(str, outside))} are"
        raise ProfileError(
            f"{what} outside profile {request.profile} of {name} ({profile})",
            f"leave out `profile`, or pass `batches=[{nearest_inside([profile], outside[0])}]`",
        )


def _refuse_modes(request: BenchRequest) -> None:
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
