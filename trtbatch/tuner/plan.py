"""Plan the profiles that serve a traffic in the least time, from the measured times of an engine.

The latency model is in :mod:`trtbatch.tuner.latency_model`, the selection in :mod:`trtbatch.tuner.profile_selection`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trtbatch.backends import open_engine, resolve_engine, runs_here
from trtbatch.builder.profile_timing import time_profiles
from trtbatch.core import hints, store
from trtbatch.core.batches import Profile, pick_profile
from trtbatch.core.profiles import MAX_PROFILES, Measured
from trtbatch.core.sidecar import Artifact, FileRecord, Planned
from trtbatch.errors import ArtifactError, UsageError
from trtbatch.onnx_graph.read import load_onnx, read_specs
from trtbatch.tuner.latency_model import LatencyModel
from trtbatch.tuner.profile_selection import Choice, Costs, Method, best_choices, most_frequent, powers
from trtbatch.tuner.saving import keep, refuse_unwritable
from trtbatch.tuner.traffic import read_traffic
from trtbatch.util.log import note, warn
from trtbatch.util.notebook import html_table

__all__ = ["ENOUGH", "MOST_TIMED", "PlanLine", "PlanRequest", "PlanResult", "plan", "plan_lines"]

ENOUGH = 0.01
"""Largest relative excess over the best time; the proposal has the fewest profiles within it."""

MOST_TIMED = 32
"""Largest number of the traffic's batch sizes that are timed if the table lacks them, the most frequent first."""

_MOST_NAMED = 32
"""Largest number of batch sizes that the build command names."""


@dataclass(frozen=True)
class PlanRequest:
    """Request to plan profiles.

    Args:
        traffic: CSV file with the header ``batch,count``.
        engine: engine whose times are used; None takes the newest in ``engines/`` that runs here.
        most: largest number of profiles.
        from_table: whether to use the times in the sidecar alone and run nothing.
        save: whether to write the plan to the engine's sidecar.
        device: number of the GPU.
        progress: called with each step.
    """

    traffic: Path
    engine: Path | None = None
    most: int = MAX_PROFILES
    from_table: bool = False
    save: bool = True
    device: int = 0
    progress: Callable[[str, float | None], None] = lambda words, share: None


@dataclass(frozen=True)
class PlanLine:
    """Best choice of at most K profiles.

    Args:
        profiles: number of allowed profiles, K.
        opts: opts of the chosen profiles.
        total_ms: expected time of all requests.
        ms_per_request: expected mean time of a request.
        greedy, usual: the most frequent sizes, and the powers of two, with as many profiles.
        greedy_loss, usual_loss: their excess over `total_ms`, relative to it.
        slack: largest possible excess over the best possible set; 0 if this is the best one.
    """

    profiles: int
    opts: tuple[int, ...]
    total_ms: float
    ms_per_request: float
    greedy: tuple[int, ...]
    greedy_loss: float
    usual: tuple[int, ...]
    usual_loss: float
    slack: float = 0.0


@dataclass(frozen=True)
class PlanResult:
    """Result of planning.

    Args:
        lines: best choices of 1, 2, … profiles.
        chosen: the choice with the fewest profiles within :data:`ENOUGH` of the best.
        method: how the choices were found.
        by_batch_alone: whether the times depend on the batch alone, since no batch was measured on two profiles.
        extrapolated: batch sizes of the traffic above the largest measured one.
        build: arguments of :func:`trtbatch.build` that build the chosen profiles.
        unkept: why the sidecar couldn't be written; empty if it was, or if saving wasn't requested.
    """

    engine: str
    traffic: FileRecord
    requests: int
    sizes: int
    lines: tuple[PlanLine, ...]
    chosen: PlanLine
    profiles: tuple[Profile, ...]
    method: Method
    by_batch_alone: bool
    extrapolated: tuple[int, ...]
    build: dict[str, Any]
    created: str
    saved: bool
    unkept: str = ""
    format_version: int = 1

    def __repr__(self) -> str:
        profiles = ", ".join(map(str, self.profiles))
        return f"PlanResult({profiles} for {self.traffic.file}, {self.chosen.ms_per_request:.4g} ms per request)"

    def _repr_html_(self) -> str:
        rows = [[line.profiles, ", ".join(map(str, line.opts)), f"{line.ms_per_request:.4g}"] for line in self.lines]
        return html_table(f"{self.traffic.file}, times of {self.engine}", ["profiles", "opts", "ms/request"], rows)


def plan(request: PlanRequest) -> PlanResult:
    """Choose the profiles, and write the plan to the engine's sidecar.

    Raises:
        UsageError: the traffic file is invalid; names line and value.
        ArtifactError: there is no engine; or, with `from_table`, no table of times.
        TrtbatchError: the sidecar can't be written; nothing has run.
    """
    if request.most < 1:
        raise UsageError(f"`max_profiles={request.most}` leaves no profile", "give 1 or more")
    counts = read_traffic(request.traffic)
    artifact = resolve_engine(request.engine)
    sidecar = artifact.sidecar
    _refuse_fixed(artifact)
    if request.save:
        refuse_unwritable(artifact)
    table = sidecar.engine.table if request.from_table else (*sidecar.engine.table, *_timed(request, artifact, counts))
    if not table:
        raise ArtifactError(
            f"{artifact.path} has no table of measured times",
            "leave out `from_table`, or build it again with `profiles='auto'`",
        )
    model = LatencyModel.of(sidecar.engine.profiles, table)
    beyond = tuple(batch for batch in counts if batch > model.largest)
    if beyond:
        warn(
            f"batch {', '.join(map(str, beyond[:5]))}{' …' if len(beyond) > 5 else ''}: larger than every measured one "
            f"({model.largest}); its time is taken to grow in proportion"
        )
    lines, method = plan_lines(Costs(counts, model.times), model.sizes, request.most)
    chosen = _enough(lines)
    smallest = min(sidecar.engine.corners[0], *counts)
    profiles = tuple(Profile(smallest, opt, opt) for opt in chosen.opts)
    found = PlanResult(
        engine=artifact.path.name,
        traffic=store.record_file(request.traffic),
        requests=sum(counts.values()),
        sizes=len(counts),
        lines=lines,
        chosen=chosen,
        profiles=profiles,
        method=method,
        by_batch_alone=model.by_batch_alone,
        extrapolated=beyond,
        build=_build(artifact, profiles, counts),
        created=store.now(),
        saved=request.save,
    )
    _tell_missing(artifact)
    unkept = keep(artifact, planned=_planned(found)) if request.save else ""
    return replace(found, saved=request.save and not unkept, unkept=unkept)


def _refuse_fixed(artifact: Artifact) -> None:
    """Raise if the ONNX file of an engine has a fixed batch, so that no profile can be added.

    Raises:
        UsageError: names the batch size.
    """
    named = hints.built_from(artifact)
    if artifact.sidecar.is_dynamic or named is None or not Path(named).is_file():
        return
    inputs, _ = read_specs(load_onnx(Path(named)), named)
    sizes = [spec.fixed_batch for spec in inputs if spec.fixed_batch is not None]
    if sizes:
        raise UsageError(
            f"{named[0]}, from which {artifact.path.name} was built, has a fixed batch of {sizes[0]}: no profile can "
            "be added",
            "export it with `dynamic`, build that, and plan for its engine",
        )


def _timed(request: PlanRequest, artifact: Artifact, counts: Mapping[int, int]) -> tuple[Measured, ...]:
    """Time up to :data:`MOST_TIMED` batch sizes of the traffic that a profile holds and the table lacks."""
    sidecar = artifact.sidecar
    known = sidecar.engine.times
    lacking = [size for size in counts if size not in known and pick_profile(sidecar.engine.profiles, size) is not None]
    chosen = sorted(lacking, key=lambda size: (-counts[size], size))[:MOST_TIMED]
    if not known:
        chosen += sidecar.engine.corners  # otherwise a traffic beyond every profile leaves no times at all
    if not chosen:
        return ()
    if known and not runs_here(sidecar.engine.backend):
        note(
            f"{artifact.path.name} doesn't run here: the times of batch {', '.join(map(str, chosen))} are interpolated"
        )
        return ()
    with open_engine(artifact, request.device) as engine, engine.session() as session:
        return time_profiles(session, sidecar, chosen, lambda words: request.progress(words, None))


def plan_lines(costs: Costs, measured: list[int], most: int) -> tuple[tuple[PlanLine, ...], Method]:
    """Return the best choices of 1, 2, … `most` profiles; candidates are the traffic's sizes and the measured ones."""
    choices, method = best_choices(costs, [*costs.batches, *measured], most)
    return tuple(_line(costs, count, choice) for count, choice in enumerate(choices, 1)), method


def _line(costs: Costs, count: int, choice: Choice) -> PlanLine:
    greedy, usual = most_frequent(costs.counts, count), powers(costs.counts, count)
    return PlanLine(
        profiles=count,
        opts=choice.opts,
        total_ms=choice.total_ms,
        ms_per_request=choice.total_ms / costs.requests,
        greedy=greedy,
        greedy_loss=costs.total(greedy) / choice.total_ms - 1,
        usual=usual,
        usual_loss=costs.total(usual) / choice.total_ms - 1,
        slack=choice.slack,
    )


def _enough(lines: tuple[PlanLine, ...]) -> PlanLine:
    best = min(line.total_ms for line in lines)
    return next(line for line in lines if line.total_ms <= (1 + ENOUGH) * best)


def _build(artifact: Artifact, profiles: tuple[Profile, ...], counts: Mapping[int, int]) -> dict[str, Any]:
    """Return the arguments that build an engine of these profiles and, if they are few, time the traffic's sizes."""
    named = hints.built_from(artifact)
    arguments: dict[str, Any] = {} if named is None else {"onnx": named}
    arguments["profiles"] = [str(profile) for profile in profiles]
    if len(counts) <= _MOST_NAMED:
        arguments["batches"] = list(counts)
    return arguments | hints.precision_arguments(artifact.sidecar)


def _tell_missing(artifact: Artifact) -> None:
    """Warn if the build command can't run as it is, because its ONNX file is missing or unknown."""
    source = artifact.sidecar.source
    named = hints.built_from(artifact)
    if named is None:
        warn(f"the ONNX file that {artifact.path.name} was built from isn't recorded: name it in the build line")
    elif not Path(named).is_file():
        known = f" (SHA-256 {source.sha256[:12]}…)" if source is not None else ""
        warn(f"{named}{known} isn't there: bring it there before you run the build line, or name it where it is")


def _planned(found: PlanResult) -> Planned:
    return Planned(
        traffic=found.traffic,
        requests=found.requests,
        profiles=found.profiles,
        ms_per_request=found.chosen.ms_per_request,
        build=found.build,
        created=found.created,
    )
