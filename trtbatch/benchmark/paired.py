"""Compare engines or profiles in pairs: one engine against another, or each profile of an engine against the others.

The compared loops take turns, round after round (A B, B A, A B …), so that drifts of clocks, heat or other load affect
all alike. The number of rounds is fixed beforehand: to stop as soon as there is a clear answer would find differences
where there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trtbatch.benchmark.bench import rounded
from trtbatch.benchmark.clocks import ClockWatch
from trtbatch.benchmark.harness import Harness, open_harness
from trtbatch.benchmark.loops import Loop, collect
from trtbatch.benchmark.request import ROUNDS, BenchPlan, BenchRequest, plan_bench
from trtbatch.benchmark.run import EngineUnderTest, Run
from trtbatch.core import store
from trtbatch.core.sidecar import Sidecar
from trtbatch.errors import UsageError
from trtbatch.util import environment
from trtbatch.util.statistics import Relative, compare_rounds

__all__ = [
    "ROUNDS",
    "PairedLine",
    "PairedResult",
    "ProfileLine",
    "ProfilesResult",
    "compare_engines",
    "compare_profiles",
]

SETTLE_MS = 5.0
"""Milliseconds of runs before each turn, to settle caches and clocks; the first turn has the whole warm-up."""


@dataclass(frozen=True)
class PairedLine:
    """Comparison of two engines at one batch size in one mode; times are medians in ms per batch.

    Args:
        profile_a, profile_b: indices of the profiles that ran the batch.
        ms_a, ms_b: medians over the rounds.
        relative: A's time over B's.
        rounds_a, rounds_b: median of each round, in order.
        bad: rounds in which the GPU's clocks changed or were limited; the figures leave them out.
    """

    batch: int
    mode: str
    profile_a: int
    profile_b: int
    ms_a: float
    ms_b: float
    relative: Relative
    rounds_a: tuple[float, ...]
    rounds_b: tuple[float, ...]
    bad: tuple[int, ...] = ()


@dataclass(frozen=True)
class PairedResult:
    """Result of comparing two engines at each batch size."""

    a: EngineUnderTest
    b: EngineUnderTest
    timed: dict[str, str]
    settings: dict[str, Any]
    tools: dict[str, str]
    device: dict[str, str]
    environment: dict[str, Any]
    gpu: dict[str, Any]
    created: str
    lines: tuple[PairedLine, ...]
    format_version: int = 1
    origins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProfileLine:
    """Comparison of the profiles that hold one batch size, in one mode; times are medians in ms per batch.

    Args:
        ms: times by index of the profile.
        fastest: index of the fastest profile; None on ONNX Runtime, which treats a profile as a range only.
        widest: index of the profile, of these, that holds the most batch sizes.
        relative: the widest profile's time over that of the fastest; None if no profile is the fastest.
        rounds_ms: median of each round, by index of the profile.
        bad: rounds in which the GPU's clocks changed or were limited; the figures leave them out.
    """

    batch: int
    mode: str
    ms: dict[str, float]
    fastest: int | None
    widest: int
    relative: Relative | None
    rounds_ms: dict[str, tuple[float, ...]]
    bad: tuple[int, ...] = ()


@dataclass(frozen=True)
class ProfilesResult(Run):
    """Result of comparing the profiles of an engine at each batch size."""

    gpu: dict[str, Any]
    lines: tuple[ProfileLine, ...]
    format_version: int = 1
    origins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rounds:
    """Median of each round of each loop, and the bad rounds."""

    ms: tuple[tuple[float, ...], ...]
    bad: tuple[int, ...]

    def good(self, index: int) -> list[float]:
        """Return the rounds of one loop that count: those that aren't bad, or all if more than half are bad."""
        bad = self.bad if 2 * len(self.bad) <= len(self.ms[index]) else ()
        return [ms for turn, ms in enumerate(self.ms[index]) if turn not in bad]

    def median(self, index: int) -> float:
        """Return the median of the rounds of one loop that count."""
        return float(np.median(self.good(index)))

    def compare(self, one: int, other: int) -> Relative:
        """Return one loop against another; the verdict is UNCLEAR if more than half of the rounds are bad."""
        relative = compare_rounds(self.good(one), self.good(other))
        throttled = 2 * len(self.bad) > len(self.ms[one])
        return replace(relative, verdict="UNCLEAR") if throttled else relative


def compare_engines(request: BenchRequest) -> PairedResult:
    """Compare the engine of the request, A, with `against`, B, after checking the rows of both.

    Raises:
        ProfileError: one of them doesn't take a batch; nothing has run.
        UsageError: one of them lacks a mode.
        RowsError: one of them gives wrong rows.
    """
    plan = plan_bench(request)
    ours, theirs = plan.engines
    timed: dict[str, str] = {}
    lines: list[PairedLine] = []
    with open_harness(ours, request) as a, open_harness(theirs, request) as b, ClockWatch(plan.gpu) as watch:
        for harness in (a, b):
            harness.require_rows()
        for batch in request.batches:
            for mode in _modes_of_both(a, b, batch):
                request.progress(f"batch {batch}: {mode}, the two in turns", None)
                loops = [harness.loop(batch, mode) for harness in (a, b)]
                timed[mode] = loops[0].timed
                rounds = take_turns([lambda loop=loop: loop for loop in loops], plan, watch)  # type: ignore[misc]
                lines.append(_paired_line(batch, mode, a, b, rounds))
    return PairedResult(
        a=EngineUnderTest(**EngineUnderTest.fields_of(ours.artifact)),
        b=EngineUnderTest(**EngineUnderTest.fields_of(theirs.artifact)),
        timed=timed,
        settings=_settings(request),
        tools=ours.artifact.sidecar.build.tools,
        device=ours.artifact.sidecar.build.device,
        environment=environment.describe(),
        gpu=_gpu_state(plan),
        created=store.now(),
        lines=tuple(lines),
        origins=plan.origins,
    )


def _modes_of_both(a: Harness, b: Harness, batch: int) -> Sequence[str]:
    """Return the modes to compare in.

    Raises:
        UsageError: no mode was named, and the engines' defaults differ.
    """
    ours, theirs = a.modes(batch), b.modes(batch)
    if list(ours) != list(theirs):
        raise UsageError(
            f"{a.artifact.path.name} is timed by {ours[0]} and {b.artifact.path.name} by {theirs[0]}, which don't "
            "compare",
            "pass `modes=['latency']`",
        )
    return ours


def _paired_line(batch: int, mode: str, a: Harness, b: Harness, rounds: Rounds) -> PairedLine:
    return PairedLine(
        batch=batch,
        mode=mode,
        profile_a=a.profiles[batch][0],
        profile_b=b.profiles[batch][0],
        ms_a=rounds.median(0),
        ms_b=rounds.median(1),
        relative=rounds.compare(0, 1),
        rounds_a=rounds.ms[0],
        rounds_b=rounds.ms[1],
        bad=rounds.bad,
    )


def compare_profiles(request: BenchRequest) -> ProfilesResult:
    """Compare all profiles that hold a batch size, at each batch size of the request.

    Raises:
        ProfileError: a batch is outside every profile; nothing has run.
        UsageError: a mode is unknown, or the request forces a profile.
        RowsError: rows are wrong.
    """
    plan = plan_bench(request)
    (engine,) = plan.engines
    timed: dict[str, str] = {}
    lines: list[ProfileLine] = []
    with open_harness(engine, request) as harness, ClockWatch(plan.gpu) as watch:
        harness.require_rows()
        for batch in request.batches:
            holding = engine.profiles[batch]
            for mode in harness.modes(batch):
                request.progress(f"batch {batch}: {mode}, {len(holding)} profiles in turns", None)
                turns = [_on_profile(harness, batch, mode, index) for index in holding]
                timed[mode] = turns[0]().timed
                rounds = take_turns(turns, plan, watch)
                lines.append(profile_line(batch, mode, harness.sidecar, holding, rounds))
    return ProfilesResult(
        **Run.of(engine.artifact, timed, _settings(request)),
        gpu=_gpu_state(plan),
        lines=tuple(lines),
        origins=plan.origins,
    )


def _on_profile(harness: Harness, batch: int, mode: str, profile: int) -> Callable[[], Loop]:
    """Return what prepares a batch on a profile for its turn; one session serves all, and holds one at a time."""
    return lambda: harness.loop(batch, mode, profile)


def profile_line(batch: int, mode: str, sidecar: Sidecar, holding: Sequence[int], rounds: Rounds) -> ProfileLine:
    profiles, differ = sidecar.engine.profiles, sidecar.engine.backend == "tensorrt"
    places = range(len(holding))
    fastest = min(places, key=rounds.median)
    widest = max(places, key=lambda place: profiles[holding[place]].max - profiles[holding[place]].min)
    return ProfileLine(
        batch=batch,
        mode=mode,
        ms={str(holding[place]): float(f"{rounds.median(place):.6g}") for place in places},
        fastest=holding[fastest] if differ else None,
        widest=holding[widest],
        relative=rounds.compare(widest, fastest) if differ else None,
        rounds_ms={str(holding[place]): rounds.ms[place] for place in places},
        bad=rounds.bad,
    )


def take_turns(prepare: Sequence[Callable[[], Loop]], plan: BenchPlan, watch: ClockWatch) -> Rounds:
    """Time each loop in every round, in alternating order."""
    rule, warmup = plan.rule, plan.request.warmup
    medians: list[list[float]] = [[] for _ in prepare]
    bad: list[int] = []
    for turn in range(ROUNDS):
        order = range(len(prepare)) if turn % 2 == 0 else range(len(prepare) - 1, -1, -1)
        for index in order:
            loop = prepare[index]()
            samples = collect(loop, rule, warmup if turn == 0 else min(SETTLE_MS, warmup), watch)
            medians[index].append(float(np.median(samples.kept(samples.ms))))
            if samples.throttled and turn not in bad:
                bad.append(turn)
    return Rounds(tuple(rounded(each) for each in medians), tuple(bad))


def _settings(request: BenchRequest) -> dict[str, Any]:
    return request.settings | {"rounds": ROUNDS}


def _gpu_state(plan: BenchPlan) -> dict[str, Any]:
    return {} if plan.gpu is None else environment.gpu_state(plan.gpu)
