"""Make the table of a report and the notes that readers need: for the terminal, as Markdown, and for the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtbatch.benchmark.bench import BenchResult
from trtbatch.reporting.results import clean
from trtbatch.reporting.series import KNEE_LIMIT, Point, Series, gpu_of, rate, version_of
from trtbatch.util.files import atomic_file
from trtbatch.util.statistics import MEMORY_LIMIT

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "cells",
    "columns",
    "escaped",
    "markdown",
    "markdown_table",
    "notes",
    "run_facts",
    "summary",
    "table",
    "write_markdown",
]

WORDS = frozenset({"series", "bound", "verdict", "mark", "is"})
"""Columns of words, which are aligned left."""


def columns(series: Sequence[Series]) -> list[str]:
    """Return the names of the table's columns, without those that are empty in all series."""
    points = [point for line in series for point in line.points]
    shown = {
        "batch": True,
        "samples/s": True,
        "ms/batch": True,
        "p99": any(point.p99 is not None for point in points),
        "ms/sample": True,
        "bound": any(point.bound for point in points),
        "runs": any(point.runs for point in points),
        "verdict": any(point.verdict for point in points),
        "mark": any(line.knee is not None for line in series),
    }
    return [name for name, wanted in shown.items() if wanted]


def cells(line: Series, point: Point) -> dict[str, str]:
    """Return the text of each column; empty where a figure isn't known."""
    return {
        "batch": str(point.batch),
        "samples/s": rate(point.samples_per_s),
        "ms/batch": f"{point.ms:.3f}",
        "p99": "" if point.p99 is None else f"{point.p99:.3f}",
        "ms/sample": f"{point.ms / point.batch:.4f}",
        "bound": point.bound or "",
        "runs": str(point.runs) if point.runs else "",
        "verdict": point.verdict,
        "mark": "knee" if point.batch == line.knee else "",
    }


def summary(line: Series) -> str:
    """Return one line about a series: its knee, and its largest throughput."""
    best = line.best
    most = f"most {cells(line, best)['samples/s']} samples/s at batch {best.batch}"
    if line.knee is None:
        return f"no knee; {most}"
    at = next(point for point in line.points if point.batch == line.knee)
    share = at.samples_per_s / best.samples_per_s
    return f"knee at batch {line.knee} ({cells(line, at)['samples/s']} samples/s, {share:.0%} of the most); {most}"


def table(series: Sequence[Series], title: str, brief: bool = False) -> Table:
    """Return a table of all series for the terminal, one below the other; `brief` for narrow terminals."""
    from rich.markup import escape
    from rich.table import Table

    shown = [name for name in columns(series) if not (brief and name in ("runs", "ms/sample"))]
    several = len(series) > 1
    made = Table(title=escape(title), title_justify="left", title_style="bold")
    for name in (*(("series",) if several else ()), *shown):
        made.add_column("" if name == "mark" else name, justify="left" if name in WORDS else "right", no_wrap=True)
    for line in series:
        for point in line.points:
            found = cells(line, point)
            row = [escape(found[name]) for name in shown]
            made.add_row(*((line.key,) if several else ()), *row, end_section=point is line.points[-1])
    return made


def markdown(series: Sequence[Series], title: str) -> str:
    """Return the report in Markdown: heading, legend, table, notes."""
    shown = columns(series)
    several = len(series) > 1
    names = [*(("series",) if several else ()), *shown]
    rows = [
        [*((line.key,) if several else ()), *(cells(line, point)[name] for name in shown)]
        for line in series
        for point in line.points
    ]
    legend = [f"- {escaped(f'{line.key}: {line.label}; {summary(line)}')}" for line in series]
    told = [f"- {escaped(note)}" for note in notes(series)]
    return "\n".join([f"### {escaped(title)}", "", *legend, "", *markdown_table(names, rows), "", *told, ""])


def write_markdown(series: Sequence[Series], title: str, path: Path) -> None:
    """Write the result of :func:`markdown` to a file, complete or not at all."""
    with atomic_file(path) as made:
        made.write_text(markdown(series, title), encoding="utf-8")


def markdown_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; columns of :data:`WORDS` are aligned left."""
    shown = " | ".join("" if name == "mark" else name for name in names)
    ruler = "|".join("---" if name in WORDS else "---:" for name in names)
    body = [f"| {' | '.join(map(escaped, row))} |" for row in rows]
    return [f"| {shown} |", f"|{ruler}|", *body]


def escaped(text: str) -> str:
    """Escape text so that Markdown shows it literally, without markup, HTML or accidental links."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#])|://", lambda match: f"\\{match[0]}" if match[1] else ":\\//", text)


def notes(series: Sequence[Series]) -> list[str]:
    """Return notes on what the figures are, how the marks are found, and what the figures don't show."""
    points = [point for line in series for point in line.points]
    timed = dict.fromkeys(
        f"{clean(mode)}: {clean(what)}"
        for line in series
        if line.result is not None
        for mode, what in line.result.timed.items()
        if mode == line.mode
    )
    told = [*timed, "ms/batch is the median of the runs; p99 their 99th percentile; samples/s = batch / median."]
    few = [point.batch for point in points if point.p99 is not None and 0 < point.runs < 100]
    if few:
        sizes = ", ".join(map(str, sorted(set(few))))
        told.append(f"Of fewer than 100 runs the p99 is the longest, or nearly: batch {sizes}.")
    if any(point.window > 1 for point in points):
        told.append("In throughput a run is the mean of several batches: its p99 is not that of single batches.")
    told.append(
        "Knee: the batch size at which samples/s lie farthest above the straight line between the curve's ends, both "
        f"axes logarithmic (the Kneedle rule), where that is {KNEE_LIMIT - 1:.0%} or more. It depends on the range of "
        "batch sizes that was measured."
    )
    if any(point.bound for point in points):
        told.append(
            "Bound: launch, where the CPU takes over 0.8 of the GPU's time to launch (enqueue-bound); copy, where one "
            "direction of the copies takes at least as long as the GPU; memory, where it is known that moving what the "
            f"products read and write takes over {MEMORY_LIMIT:g} of the GPU's time at its memory's full bandwidth; "
            "compute, where none of these is so."
        )
    unknown = [line.key for line in series if line.result is not None and not any(p.bound for p in line.points)]
    if unknown:
        told.append(f"No bound is known of {', '.join(unknown)}: of synchronous calls only the whole is timed.")
    if any(line.result is None for line in series):
        told.append(
            "The article's line has the figures of its table, two decimals, no percentiles, and other software."
        )
    return told


def run_facts(result: BenchResult) -> dict[str, str]:
    """Return what a result was measured with, by name; empty where it isn't recorded."""
    clock = result.gpu_after.get("sm_mhz")
    facts = {
        "engine": result.engine,
        "model": result.model.name,
        "weights": result.model.weights,
        "backend": f"{result.backend} {version_of(result)}",
        "precision": result.precision,
        "profiles": ", ".join(map(str, result.profiles)),
        "device": gpu_of(result),
        "driver": str(result.environment.get("driver") or ""),
        "GPU clock after": f"{clock} MHz" if clock else "",
        "commit": str(result.environment.get("commit") or ""),
        "measured": result.created.partition(".")[0].replace("T", " "),
    }
    return {name: clean(fact) for name, fact in facts.items()}
