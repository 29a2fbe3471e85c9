"""Compare two results that were measured separately, and find slowdowns beyond a limit.

Engines timed in turns (:mod:`trtbatch.benchmark.paired`) show smaller differences, because drift is then the same for
both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from trtbatch.benchmark.bench import THROTTLED, BatchResult, BenchResult
from trtbatch.errors import InputError
from trtbatch.reporting.results import clean, kept_ms
from trtbatch.reporting.series import gpu_of, version_of
from trtbatch.reporting.unpaired import ratio_of_medians
from trtbatch.util.notebook import html_table

__all__ = ["Change", "Comparison", "ResultFile", "compare_results"]

CLOCK_LIMIT = 0.02
"""Relative difference of the two runs' clocks above which it is reported: times follow clocks."""

_TIMING = frozenset({"iterations", "min_time_s", "time_out_s", "max_noise", "seed"})
"""Settings that decide how long to measure, not what."""


@dataclass(frozen=True)
class ResultFile:
    """One side of a comparison."""

    file: str
    engine: str
    model: str
    backend: str
    precision: str
    device: str
    created: str


@dataclass(frozen=True)
class Change:
    """One batch size in one mode; times are medians in ms per batch.

    Args:
        ratio: B's time over A's; below 1, B is faster.
        low, high: 95 % interval of the ratio, see :func:`trtbatch.reporting.unpaired.ratio_of_medians`.
        runs_a, runs_b: numbers of samples.
        verdict: verdict on B: ``FASTER``, ``SLOWER``, ``SAME`` or ``UNCLEAR``.
        fails: whether B is slower by more than the limit, and surely slower.
    """

    batch: int
    mode: str
    ms_a: float
    ms_b: float
    ratio: float
    low: float
    high: float
    runs_a: int
    runs_b: int
    verdict: str
    fails: bool = False

    @property
    def judged(self) -> bool:
        """Return whether there were enough runs for an interval."""
        return isfinite(self.high)


@dataclass(frozen=True)
class Comparison:
    """Comparison of B with A at every batch size and mode that both results have.

    Args:
        only_a, only_b: batch sizes and modes of one result only, as ``batch 4 (run)``.
        differences: differences of machines and work that may explain the times, in words.
        limit: share by which B may be slower without failing; None without a limit.
        unstable_a, unstable_b: lines that ``bench`` called unstable, with the reason: ``batch 4 (run, drift -8.3 %)``.
    """

    a: ResultFile
    b: ResultFile
    lines: tuple[Change, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    differences: tuple[str, ...]
    limit: float | None = None
    unstable_a: tuple[str, ...] = ()
    unstable_b: tuple[str, ...] = ()
    format_version: int = 1

    def __repr__(self) -> str:
        verdicts = ", ".join(f"{line.batch}: {line.verdict} {line.ratio:.3f}" for line in self.lines)
        return f"Comparison({self.b.file!r} against {self.a.file!r}, by batch {verdicts})"

    def _repr_html_(self) -> str:
        rows = [
            [line.batch, line.mode, f"{line.ms_a:.4g}", f"{line.ms_b:.4g}", f"{line.ratio:.3f}", line.verdict]
            for line in self.lines
        ]
        names = ["batch", "mode", "A, ms", "B, ms", "B/A", "B is"]
        return html_table(f"A: {self.a.file}, B: {self.b.file}", names, rows)

    @property
    def failures(self) -> tuple[Change, ...]:
        """Return the lines that fail."""
        return tuple(line for line in self.lines if line.fails)

    @property
    def unjudged(self) -> tuple[Change, ...]:
        """Return the lines that have too few runs for a verdict."""
        return tuple(line for line in self.lines if not line.judged)


def compare_results(
    a: BenchResult, b: BenchResult, files: tuple[str, str] = ("A", "B"), limit: float | None = None
) -> Comparison:
    """Compare B with A at every batch size and mode that both have.

    A line fails where B's median is more than `limit` slower **and** the whole interval of the ratio is above 1: B is
    slower by too much, and not by chance. (To ask for the whole interval above 1 + limit would pass nearly all
    slowdowns just over the limit. The ratio alone would fail on noise.)

    Args:
        a: result to compare with.
        b: result to judge.
        files: names of the results, for messages.
        limit: share by which B may be slower; 0.05 fails what is more than 5 % slower.

    Raises:
        InputError: the results have no batch size and mode in common.
    """
    ours, theirs = _rows(a), _rows(b)
    both = [place for place in ours if place in theirs]
    if not both:
        raise InputError(
            f"{files[0]} and {files[1]} have nothing in common: {_named(ours)}; {_named(theirs)}",
            "measure both with the same `batches` and `modes`",
        )
    return Comparison(
        a=_run(files[0], a),
        b=_run(files[1], b),
        lines=tuple(_change(ours[place], theirs[place], limit) for place in both),
        only_a=tuple(_place(place) for place in ours if place not in theirs),
        only_b=tuple(_place(place) for place in theirs if place not in ours),
        differences=tuple(_differences(a, b, [(ours[place], theirs[place]) for place in both])),
        limit=limit,
        unstable_a=_unstable(ours[place] for place in both),
        unstable_b=_unstable(theirs[place] for place in both),
    )


def _unstable(rows: Iterable[BatchResult]) -> tuple[str, ...]:
    return tuple(
        f"batch {row.batch} ({clean(row.mode)}, {row.summary.verdict})"
        for row in rows
        if not row.summary.stable and row.verdict != THROTTLED
    )


def _rows(result: BenchResult) -> dict[tuple[int, str], BatchResult]:
    return {(row.batch, row.mode): row for row in result.batches}


def _place(place: tuple[int, str]) -> str:
    return f"batch {place[0]} ({clean(place[1])})"


def _named(places: dict[tuple[int, str], BatchResult]) -> str:
    names = [_place(place) for place in places]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _run(file: str, result: BenchResult) -> ResultFile:
    facts = (file, result.engine, result.model.name, result.backend, result.precision, gpu_of(result), result.created)
    return ResultFile(*map(clean, facts))


def _change(ours: BatchResult, theirs: BatchResult, limit: float | None) -> Change:
    a_ms, b_ms = kept_ms(ours), kept_ms(theirs)
    found = ratio_of_medians(a_ms, b_ms)
    return Change(
        batch=ours.batch,
        mode=clean(ours.mode),
        ms_a=float(np.median(a_ms)),
        ms_b=float(np.median(b_ms)),
        ratio=found.ratio,
        low=found.low,
        high=found.high,
        runs_a=int(a_ms.size),
        runs_b=int(b_ms.size),
        verdict=found.verdict,
        fails=limit is not None and found.ratio > 1 + limit and found.low > 1,
    )


def _differences(a: BenchResult, b: BenchResult, rows: Sequence[tuple[BatchResult, BatchResult]]) -> Iterator[str]:
    """Yield the differences of the two runs, in words."""
    if a.created and a.created == b.created:
        yield "both are the same run"
    ours, theirs = _facts(a), _facts(b)
    for name in dict.fromkeys([*ours, *theirs]):
        if ours.get(name) != theirs.get(name):
            yield f"{name}: {_sides(ours.get(name), theirs.get(name))}"
    yield from _clocks(a, b)
    for mode in dict.fromkeys(row.mode for row, _ in rows):
        if a.timed.get(mode) != b.timed.get(mode):
            yield f"what {clean(mode)} times: {_sides(a.timed.get(mode), b.timed.get(mode))}"
    for our, their in rows:
        where = _place((our.batch, our.mode))
        if our.shapes != their.shapes:
            yield f"{where} ran other shapes: {_sides(our.shapes, their.shapes)}"
        for side, row in (("A", our), ("B", their)):
            if row.verdict == THROTTLED:
                yield f"{where} was throttled in {side}"


def _facts(result: BenchResult) -> dict[str, Any]:
    """Return the facts that decide times, by name; not the engine's file, because the engines are meant to differ."""
    environment, device = result.environment, result.device
    facts = {
        "model": result.model.name,
        "backend": result.backend,
        f"version of {result.backend}": version_of(result),
        "precision": result.precision,
        "profiles": ", ".join(map(str, result.profiles)),
        "GPU" if device.get("gpu") else "device": gpu_of(result),
        "GPU memory, MiB": device.get("memory_mib"),  # a slice of a GPU has the GPU's name and less memory
        "driver": environment.get("driver"),
        "CPU": environment.get("cpu"),
        "cores": environment.get("cores"),
    }
    settings = {f"setting {name}": value for name, value in result.settings.items() if name not in _TIMING}
    return {name: value for name, value in {**facts, **settings}.items() if value is not None}


def _clocks(a: BenchResult, b: BenchResult) -> Iterator[str]:
    """Yield the clocks that differ by more than :data:`CLOCK_LIMIT`, as read under load at the end of the runs."""
    for name, what in (("sm_mhz", "GPU clock"), ("sm_max_mhz", "largest GPU clock"), ("memory_mhz", "memory clock")):
        ours, theirs = a.gpu_after.get(name), b.gpu_after.get(name)
        if not isinstance(ours, (int, float)) or not isinstance(theirs, (int, float)) or min(ours, theirs) <= 0:
            continue
        if max(ours, theirs) / min(ours, theirs) > 1 + CLOCK_LIMIT:
            yield f"{what}: {_sides(f'{ours:g} MHz', f'{theirs:g} MHz')}"


def _sides(ours: Any, theirs: Any) -> str:
    """Format the values of both runs, ``A 580.1; B 570.2``."""
    return f"A {_told(ours)}; B {_told(theirs)}"


def _told(value: Any) -> str:
    return "unknown" if value in (None, "") else clean(str(value))
