"""Find the best batch size of an engine under a latency budget or for throughput, or the largest one that fits.

The measurement is defined in :mod:`trtbatch.tuner.closed_loop`, the search in :mod:`trtbatch.tuner.search`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from trtbatch.backends import engine_origin, open_engine, resolve_engine
from trtbatch.benchmark.clocks import ClockWatch
from trtbatch.benchmark.loops import MIN_ITERATIONS, TIME_OUT, Loop, Samples, StopRule, collect
from trtbatch.benchmark.request import MOST_STREAMS
from trtbatch.benchmark.run import Run
from trtbatch.core.batches import pick_profile, refuse_outside
from trtbatch.core.profiles import powers_of_two
from trtbatch.core.sidecar import Artifact, Sidecar, Tuned
from trtbatch.errors import ExecutionError, TrtbatchError, UsageError
from trtbatch.tuner.closed_loop import ClosedLoopLoad, throughput
from trtbatch.tuner.max_batch import MaxBatchResult, attempt, find_largest
from trtbatch.tuner.percentiles import percentile_interval, runs_needed
from trtbatch.tuner.saving import keep, refuse_unwritable
from trtbatch.tuner.search import Goal, Outcome, Trial, budget_for, search
from trtbatch.util import environment
from trtbatch.util.log import note
from trtbatch.util.notebook import html_table
from trtbatch.util.statistics import median_interval

__all__ = ["PATIENCE", "TunePlan", "TuneRequest", "TuneResult", "asked_for", "plan_tune", "tune"]

PATIENCE = 30.0
"""Multiple of ``min_time`` after which a choice ends with too few runs for its percentile, which is reported."""

PROBE = 20
"""Runs after which a choice is given up if the whole interval of its *median* latency is over the budget."""

RULED_OUT = 2.0
"""Multiple of the budget: a batch size whose time in the build's table exceeds it isn't tried. If smaller batches run
faster now than in the build, on a machine that was busy then, the time is scaled down by the same factor."""

MOST_SIZES = 12
"""Largest number of sizes of a table that the search begins with; a longer table is thinned out evenly."""


@dataclass(frozen=True)
class TuneRequest:
    """Request to tune an engine.

    Args:
        engine: engine to tune; None takes the newest in ``engines/`` that runs here.
        latency_ms: latency budget; None searches for throughput alone.
        percentile: percentile of the latency that must be under the budget; above 0 and below 100.
        streams: numbers of batches in flight to try.
        batches: batch sizes to try, and no others; None takes the table's, or powers of two, and refines them.
        min_time: seconds of load for each choice, at least.
        warmup: milliseconds of load before that.
        save: whether to write the result to the engine's sidecar.
        device: number of the GPU.
        cuda_graphs: whether batches may run as CUDA graphs.
        max_batch_search: whether to search for the largest batch that fits in memory, and nothing else.
        progress: called with each step.
    """

    engine: Path | None
    latency_ms: float | None = None
    percentile: float = 99.0
    streams: Sequence[int] = (1,)
    batches: Sequence[int] | None = None
    min_time: float = 1.0
    warmup: float = 200.0
    seed: int = 0
    save: bool = True
    device: int = 0
    cuda_graphs: bool = True
    max_batch_search: bool = False
    progress: Callable[[str, float | None], None] = lambda words, share: None

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that decide the figures, for the record."""
        return {
            "latency_ms": self.latency_ms,
            "percentile": self.percentile,
            "streams": list(self.streams),
            "batches": None if self.batches is None else list(self.batches),
            "min_time_s": self.min_time,
            "warmup_ms": self.warmup,
            "seed": self.seed,
            "cuda_graphs": self.cuda_graphs,
        }


@dataclass(frozen=True)
class TuneResult(Run):
    """Result of tuning: the measurements and the choice.

    Args:
        asked: goal of the search, in words.
        best: the valid trial with the largest throughput; with a budget it is the choice.
        knee: the trial with the largest throughput over latency.
        smaller, larger: the next batch sizes measured with the same number of streams.
        trials: all measurements.
        alike: other valid trials whose throughput interval overlaps with the choice's.
        timed: what a latency covers, by number of streams.
        device: device of the run.
        unkept: why the sidecar couldn't be written; empty if it was, or if saving wasn't requested.
        origins: where the engine, the batch sizes, the numbers of streams and the known times came from, in words.
    """

    asked: str
    chosen: Trial
    best: Trial
    knee: Trial
    smaller: Trial | None
    larger: Trial | None
    trials: tuple[Trial, ...]
    saved: bool
    alike: tuple[Trial, ...] = ()
    unkept: str = ""
    format_version: int = 1
    origins: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        chosen = self.chosen
        return (
            f"TuneResult({self.engine!r}, batch {chosen.batch} with {chosen.streams} in flight: "
            f"{chosen.samples_per_s.value:,.0f} samples/s, {chosen.latency_ms.value:.4g} ms)"
        )

    def _repr_html_(self) -> str:
        rows = [
            [each.batch, each.streams, f"{each.samples_per_s.value:,.0f}", f"{each.latency_ms.value:.4g}"]
            for each in self.trials
            if each.failed is None
        ]
        return html_table(f"{self.engine}: {self.asked}", ["batch", "in flight", "samples/s", "latency, ms"], rows)


def asked_for(latency_ms: float | None, percentile: float) -> str:
    """Return the goal of a search in words."""
    return "the largest throughput" if latency_ms is None else f"p{percentile:g} latency under {latency_ms:g} ms"


@dataclass(frozen=True)
class TunePlan:
    """Decisions of a search, made before the engine is opened.

    Args:
        batches: batch sizes to try: all of them in the search for the largest, else those to begin with.
        refines: whether sizes between them are tried too.
        known: ms of one run by batch size, by the build on this device.
        device: the device of the run.
        origins: where the engine, the batch sizes, the numbers of streams and the known times came from, in words.
    """

    request: TuneRequest
    artifact: Artifact
    batches: tuple[int, ...]
    refines: bool
    known: dict[int, float]
    device: dict[str, str]
    origins: dict[str, str]


def plan_tune(request: TuneRequest) -> TunePlan:
    """Decide what is tried; the engine isn't opened.

    Raises:
        UsageError: a number makes no sense, or arguments contradict each other.
        ProfileError: a batch size is outside every profile.
        TrtbatchError: the sidecar can't be written.
    """
    _refuse_numbers(request)
    artifact = resolve_engine(request.engine, request.batches or ())
    sidecar = artifact.sidecar
    origins = {"engine": engine_origin(request.engine)}
    if request.max_batch_search:
        profiles = sidecar.engine.profiles
        sizes = tuple(sorted({size for profile in profiles for size in range(profile.min, profile.max + 1)}))
        return TunePlan(request, artifact, sizes, False, {}, {}, origins | {"batches": "all that a profile holds"})
    if request.save:
        refuse_unwritable(artifact)
    device = _device(sidecar, request.device)
    origins["streams"] = "the default, 1" if tuple(request.streams) == (1,) else "given"
    if request.batches is not None:
        refuse_outside(sidecar.engine.profiles, request.batches, artifact.path.name)
        return TunePlan(request, artifact, tuple(request.batches), False, {}, device, origins | {"batches": "given"})
    batches, origins["batches"] = _usual(sidecar)
    known = _known_times(sidecar, device)
    origins["known"] = "the build's table" if known else "nothing is known of this device"
    return TunePlan(request, artifact, batches, True, known, device, origins)


def tune(request: TuneRequest) -> TuneResult | MaxBatchResult:
    """Search, and write the result to the engine's sidecar, or search for the largest batch where that is requested.

    Raises:
        TrtbatchError: no batch size meets the budget; names the nearest. Or the sidecar can't be written; nothing has
            run.
        ProfileError: a batch size is outside every profile; nothing has run.
        RowsError: rows are wrong; nothing is chosen.
        ExecutionError: no batch size runs.
    """
    plan = plan_tune(request)
    if request.max_batch_search:
        return _largest_batch(plan)
    artifact, profiles = plan.artifact, plan.artifact.sidecar.engine.profiles
    gpu = artifact.sidecar.engine.backend == "tensorrt"
    goal = Goal(request.latency_ms)
    inside = (lambda batch: pick_profile(profiles, batch) is not None) if plan.refines else None
    with (
        open_engine(artifact, request.device) as engine,
        ClosedLoopLoad(engine, artifact, max(plan.batches), request.cuda_graphs, request.seed) as load,
        ClockWatch(request.device if gpu else None) as watch,
    ):
        bench = _Bench(request, load, watch, plan.known)
        outcome = search(plan.batches, request.streams, bench.measure, goal, inside)
        if outcome.chosen is None or outcome.best is None:
            patient = _Bench(replace(request, latency_ms=math.inf), load, watch, {})
            raise _unmet(request, outcome, artifact, patient.measure)
    found = _result(plan, outcome, bench.timed)
    unkept = keep(artifact, tuned=_tuned(found, request)) if request.save else ""
    return replace(found, saved=request.save and not unkept, unkept=unkept)


def _largest_batch(plan: TunePlan) -> MaxBatchResult:
    """Return the largest batch of the plan that fits in memory, found by running batches.

    As many batches are in flight as ``infer`` keeps, so the result can be used there.
    """
    request = plan.request
    with open_engine(plan.artifact, request.device) as engine:

        def run(batch: int) -> str | None:
            request.progress(f"batch {batch}: running it", None)
            return attempt(engine, plan.artifact.sidecar, batch, request.cuda_graphs)

        return replace(
            find_largest(plan.batches, run), most=plan.batches[-1], engine=plan.artifact.path.name, origins=plan.origins
        )


def _refuse_numbers(request: TuneRequest) -> None:
    """Raise if the request's numbers make no sense, or its arguments contradict each other.

    Raises:
        UsageError: names the arguments.
    """
    if request.max_batch_search and request.latency_ms is not None:
        raise UsageError("`latency_ms` and `max_batch_search` are two questions", "ask one after the other")
    if request.max_batch_search and request.batches is not None:
        raise UsageError("`max_batch_search` tries every batch size", "leave out `batches`")
    if request.max_batch_search and tuple(request.streams) != (1,):
        raise UsageError("`max_batch_search` has one batch in memory at a time", "leave out `streams`")
    if not 0 < request.percentile < 100:
        raise UsageError(f"`percentile={request.percentile:g}` has no interval", "give a number over 0 and below 100")
    if request.latency_ms is not None and not 0 < request.latency_ms < math.inf:
        raise UsageError(f"`latency_ms={request.latency_ms:g}` is no budget", "give one over 0")
    if not request.streams or not all(1 <= each <= MOST_STREAMS for each in request.streams):
        shown = ",".join(map(str, request.streams))
        raise UsageError(f"`streams={shown}`: not numbers of streams", f"give numbers from 1 to {MOST_STREAMS}")


def _usual(sidecar: Sidecar) -> tuple[tuple[int, ...], str]:
    """Return the sizes that a search begins with, and where they came from."""
    profiles, origin = sidecar.engine.profiles, "the build's table"
    found = [size for size in sidecar.engine.times if pick_profile(profiles, size) is not None]
    if not found:
        origin = "powers of two, and the ends and opts of the profiles"
        ends = min(profile.min for profile in profiles), max(profile.max for profile in profiles)
        found = [*sidecar.engine.corners, *powers_of_two(*ends)]
    sizes = sorted({size for size in found if pick_profile(profiles, size) is not None})
    if len(sizes) > MOST_SIZES:
        sizes = [sizes[place] for place in sorted({round(p) for p in np.linspace(0, len(sizes) - 1, MOST_SIZES)})]
    return tuple(sizes), origin


class _Bench:
    """Measurement of one choice after the other."""

    def __init__(
        self, request: TuneRequest, load: ClosedLoopLoad, watch: ClockWatch, known: Mapping[int, float]
    ) -> None:
        self._request = request
        self._known = known
        self._left_out: dict[int, str] = {}
        self._pace = math.inf
        self._load = load
        self._watch = watch
        self.timed: dict[str, str] = {}
        self._count = 0

    def measure(self, batch: int, streams: int) -> Trial:
        """Measure a choice. One that fails gives a trial too, and the next one gets fresh sessions."""
        profile = self._load.sidecar.engine.profile_for(batch) or 0
        if self._is_ruled_out(batch):
            return Trial.failure(batch, streams, profile, self._left_out[batch], left_out=True)
        self._count += 1
        self._request.progress(f"measurement {self._count}: batch {batch}, {streams} in flight", None)
        try:
            loop = self._load.loop(batch, streams)
            self.timed[str(streams)] = loop.timed
            samples = self._take(loop, streams)
        except (ExecutionError, MemoryError) as error:
            reason = error.problem if isinstance(error, ExecutionError) else f"out of memory: {error}"
        else:
            trial = self._trial(batch, streams, profile, samples)
            self._pace = min(self._pace, trial.median_ms / self._known.get(batch, trial.median_ms))
            return trial
        self._load.reset()
        return Trial.failure(batch, streams, profile, reason)

    def _is_ruled_out(self, batch: int) -> bool:
        """Return whether a size needn't be tried; none is ruled out before the first and smallest has run.

        The build's time covers one run alone, a latency covers that and more. A size that the build didn't time is
        never left out, whatever its neighbors took.
        """
        time, budget = self._known.get(batch), self._request.latency_ms
        if batch in self._left_out or time is None or budget is None or math.isinf(self._pace):
            return batch in self._left_out
        if time * min(1.0, self._pace) > RULED_OUT * budget:
            self._left_out[batch] = f"it took {time:.4g} ms alone when the engine was built"
            note(f"batch {batch} is left out: {self._left_out[batch]}, over {RULED_OUT:g} × the budget")
        return batch in self._left_out

    def _take(self, loop: Loop, streams: int) -> Samples:
        """Return enough latencies for the percentile, or only a few if even the median is over the budget.

        The end doesn't depend on whether the percentile meets the budget: going on until it does would find that it
        does. A measurement ends early only to give up a choice.
        """
        request = self._request
        probe = collect(loop, StopRule(iterations=PROBE), request.warmup, self._watch)
        if request.latency_ms is not None and median_interval(probe.ms)[0] > request.latency_ms:
            return probe
        rule = StopRule(
            min_time=request.min_time,
            time_out=TIME_OUT * request.min_time,
            least=max(MIN_ITERATIONS, 0 if request.latency_ms is None else runs_needed(request.percentile)),
            patience=PATIENCE * request.min_time,
        )
        return collect(loop, rule, 0.0, self._watch)

    def _trial(self, batch: int, streams: int, profile: int, samples: Samples) -> Trial:
        """Return the figures of a choice; runs at changed clocks stay in, since a caller waits through them too."""
        return Trial(
            batch=batch,
            streams=streams,
            profile=profile,
            median_ms=float(np.median(samples.ms)),
            latency_ms=percentile_interval(samples.ms, self._request.percentile),
            samples_per_s=throughput(samples.ms, batch, streams),
            runs=int(samples.ms.size),
            faults=samples.faults,
            latencies_ms=tuple(float(f"{value:.6g}") for value in samples.ms),
        )


def _unmet(
    request: TuneRequest, outcome: Outcome, artifact: Artifact, measure: Callable[[int, int], Trial]
) -> TrtbatchError:
    """Return the error that names the nearest choice and a budget that it can meet, after measuring it again."""
    nearest = outcome.nearest()
    if nearest is None:
        reason = next(trial.failed for trial in outcome.trials if not trial.left_out)
        return ExecutionError(f"{artifact.path.name} runs at no batch size: {reason}", "see trtbatch doctor")
    latency, what = nearest.latency_ms, f"p{request.percentile:g}"
    shown = f"{what} {latency.value:.4g} ms" + ("" if math.isinf(latency.high) else f", up to {latency.high:.4g}")
    where = f"batch {nearest.batch} with {_streams(nearest.streams)}"
    problem = (
        f"no batch size keeps {asked_for(request.latency_ms, request.percentile)}; the nearest is {where} ({shown}"
    )
    needed = runs_needed(request.percentile)
    if nearest.runs < needed and latency.value < (request.latency_ms or 0.0):
        few = f"{nearest.runs} runs; {what} needs {needed} to be known from above"
        return TrtbatchError(f"{problem}; {few})", "raise `min_time`, or lower `percentile`")
    problem = f"{problem}, of {nearest.runs} runs)"
    enough = budget_for(nearest, measure)
    if math.isinf(enough):
        return TrtbatchError(
            f"{problem}; {what} needs {needed} runs to be known from above, which take longer than `min_time` allows",
            "raise `min_time`, or lower `percentile`, and raise `latency_ms`",
        )
    smallest = min(outcome.trials, key=lambda trial: trial.batch).batch
    smaller = ", or try smaller batches with `batches`" if smallest > artifact.sidecar.engine.corners[0] else ""
    return TrtbatchError(problem, f"pass a `latency_ms` of about {_plainly(enough)}ms{smaller}")


def _plainly(value: float) -> str:
    """Return a number as ``--latency`` takes it: without an exponent."""
    return np.format_float_positional(value, trim="-")


def _known_times(sidecar: Sidecar, device: Mapping[str, str]) -> dict[int, float]:
    """Return the build's times in ms by batch size; empty if the engine was built for another device."""
    kind = "gpu" if sidecar.engine.backend == "tensorrt" else "cpu"
    return sidecar.engine.times if sidecar.build.device.get(kind) == device.get(kind) else {}


def _streams(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"


def _device(sidecar: Sidecar, number: int) -> dict[str, str]:
    """Return the device of the run; a hardware-compatible engine may have been built on another one."""
    if sidecar.engine.backend != "tensorrt":
        return {"cpu": environment.cpu_name()}
    name = environment.ask_nvml(lambda nvml: nvml.nvmlDeviceGetName(environment.nvml_handle(nvml, number)))
    known = sidecar.build.device.get("gpu", "unknown")
    return {"gpu": known if name is None else str(name)}


def _result(plan: TunePlan, outcome: Outcome, timed: dict[str, str]) -> TuneResult:
    request = plan.request
    chosen, best, knee = outcome.chosen, outcome.best, outcome.knee()
    assert chosen is not None, "only what was found has a result"
    assert best is not None, "only what was found has a result"
    assert knee is not None, "only what was found has a result"
    smaller, larger = outcome.neighbours()
    return TuneResult(
        **(Run.of(plan.artifact, timed, request.settings) | {"device": plan.device}),
        asked=asked_for(request.latency_ms, request.percentile),
        chosen=replace(chosen, latencies_ms=()),
        best=replace(best, latencies_ms=()),
        knee=replace(knee, latencies_ms=()),
        smaller=None if smaller is None else replace(smaller, latencies_ms=()),
        larger=None if larger is None else replace(larger, latencies_ms=()),
        trials=outcome.trials,
        saved=request.save,
        alike=tuple(replace(each, latencies_ms=()) for each in outcome.alike(Goal(request.latency_ms))),
        origins=plan.origins,
    )


def _tuned(result: TuneResult, request: TuneRequest) -> Tuned:
    chosen = result.chosen
    return Tuned(
        asked=result.asked,
        batch=chosen.batch,
        streams=chosen.streams,
        profile=chosen.profile,
        percentile=request.percentile,
        latency_ms=chosen.latency_ms,
        samples_per_s=chosen.samples_per_s,
        device=result.device,
        created=result.created,
        budget_ms=request.latency_ms,
    )
