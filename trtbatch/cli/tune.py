"""Define the command ``trtbatch tune``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtbatch.cli.console import Debug, Device, EngineFile, fitting, out, plain, show_progress
from trtbatch.cli.wording import as_typed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from trtbatch.core.sidecar import Interval
    from trtbatch.tuner.max_batch import MaxBatchResult
    from trtbatch.tuner.search import Trial
    from trtbatch.tuner.tune import TuneResult

__all__ = ["command"]


def command(
    engine: EngineFile = None,
    latency: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="The largest throughput with a latency under this: 5ms, 500us, 0.005s."),
    ] = None,
    percentile: Annotated[
        float, typer.Option(metavar="P", help="Of the latency: its interval's upper end must be under the budget.")
    ] = 99.0,
    max_throughput: Annotated[
        bool, typer.Option("--max-throughput", help="The smallest batch within 2 % of the best throughput.")
    ] = False,
    max_batch_search: Annotated[
        bool, typer.Option("--max-batch-search", help="The largest batch that fits in memory.")
    ] = False,
    streams: Annotated[str, typer.Option(metavar="LIST", help="Numbers of batches in flight at once to try.")] = "1",
    batch: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Batch sizes to try, no others. \\[default: those measured, then finer]"),
    ] = None,
    min_time: Annotated[
        float, typer.Option(min=0.01, metavar="S", help="Seconds of load for each choice, at least.")
    ] = 1.0,
    no_cuda_graph: Annotated[
        bool, typer.Option("--no-cuda-graph", help="Launch kernel by kernel, not as a CUDA graph.")
    ] = False,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Everything, raw samples too.")] = None,
    no_save: Annotated[
        bool, typer.Option("--no-save", help="Leave the engine's sidecar, and what goes by it, as they are.")
    ] = False,
    device: Device = 0,
    debug: Debug = False,
) -> None:
    """Find the best batch size of an engine, and keep it for infer --batch auto and deploy triton.

    Where no batch size meets the latency, the nearest is named, and the exit code is 1.
    """
    import trtbatch
    from trtbatch.tuner.max_batch import MaxBatchResult
    from trtbatch.tuner.saving import refuse_unsaved
    from trtbatch.util.files import refuse_outputs
    from trtbatch.util.jsonfile import write_record

    _one_of(latency=latency is not None, max_throughput=max_throughput, max_batch_search=max_batch_search)
    budget = None if latency is None else parse_latency(latency)
    refuse_outputs((json_, ".json", "--json"))
    with show_progress() as (_, progress):
        result = trtbatch.tune(
            engine,
            latency_ms=budget,
            percentile=percentile,
            streams=_streams_of(streams),
            batches=() if batch is None else batch,
            min_time=min_time,
            cuda_graphs=not no_cuda_graph,
            save=not no_save,
            device=device,
            max_batch_search=max_batch_search,
            progress=progress,
        )
    if isinstance(result, MaxBatchResult):
        _show_largest(result)
    else:
        _show(result)
    if json_ is not None:
        write_record(result, json_)
        out().print(f"[bold]{plain(str(json_))}[/]")
    if not isinstance(result, MaxBatchResult):
        refuse_unsaved(result.unkept)


_LATENCY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(us|µs|μs|ms|s)", re.ASCII)
_MILLISECONDS = {"us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3}


def parse_latency(text: str) -> float:
    """Parse a latency, ``5ms``, ``500us`` or ``0.005s``, into milliseconds.

    Raises:
        UsageError: the text isn't a time, or the time is zero or at least 1,000,000 s.
    """
    from trtbatch.errors import UsageError

    match = _LATENCY.fullmatch(text.strip().lower())
    value = float(match[1]) * _MILLISECONDS[match[2]] if match else 0.0
    if not 0 < value < 1e9:
        raise UsageError(
            f"--latency {text!r} is not a time", "write it like 5ms, 500us or 0.005s: over 0, below 1000000s"
        )
    return value


def _streams_of(text: str) -> list[int]:
    """Parse numbers of streams, ``1,2,4``, in the grammar of batch lists.

    Raises:
        UsageError: the text isn't a list of numbers from 1 to the most streams.
    """
    from trtbatch.benchmark.request import MOST_STREAMS
    from trtbatch.core.batches import parse_batches
    from trtbatch.errors import BatchListError, UsageError

    try:
        found = parse_batches(text)
    except BatchListError:
        found = []
    if not found or max(found) > MOST_STREAMS:
        raise UsageError(
            f"--streams {text!r}: not numbers of streams", f"write them like 1,2,4: from 1 to {MOST_STREAMS}"
        )
    return found


def _one_of(**asked: bool) -> None:
    """Refuse options unless they ask for exactly one search.

    Raises:
        UsageError: the options ask for none, or for several.
    """
    from trtbatch.errors import UsageError

    names = [f"--{name.replace('_', '-')}" for name, given in asked.items() if given]
    if not names:
        raise UsageError("tune needs a goal", "pass --latency 5ms, --max-throughput or --max-batch-search")
    if len(names) > 1:
        raise UsageError(f"{names[0]} and {names[1]} are two questions", "ask one after the other")


def _show(result: TuneResult) -> None:
    console = out()
    console.print(fitting(console, *(trials_table(result, count) for count in range(len(_LESS) + 1))))
    _show_chosen(console, result)
    for line in _notes(result):
        console.print(line, style="dim", markup=False)


_LESS = ("runs", "p50 ms", "95 %", "profile", "streams", "95 % ")
"""Columns that a narrow terminal leaves out, in this order. The interval of the latency is last: it decides."""


def trials_table(result: TuneResult, without: int = 0) -> Table:
    """Return the table of measurements, without the first `without` columns of :data:`_LESS`.

    The column of streams stays where several numbers of streams were tried.
    """
    from rich.table import Table

    title = f"{result.engine} · {result.backend} {result.precision} · asked: {result.asked}"
    table = Table(title=plain(title), title_justify="left", title_style="bold")
    several = len({trial.streams for trial in result.trials}) > 1
    left_out = {name for name in _LESS[:without] if not (several and name == "streams")}
    lines = [_cells(trial, result) for trial in result.trials]
    columns = [name for name in lines[0] if name not in left_out]
    for name in columns:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for cells in lines:
        table.add_row(*(cells[name] for name in columns))
    return table


def _cells(trial: Trial, result: TuneResult) -> dict[str, str]:
    """Return one line of the table, by column; the last column, for remarks, has no name."""
    cells = {
        "batch": str(trial.batch),
        "streams": str(trial.streams),
        "profile": str(result.profiles[trial.profile]),
        "samples/s": _rate(trial.samples_per_s.value),
        "95 %": interval_text(trial.samples_per_s, _rate),
        "p50 ms": f"{trial.median_ms:.4g}",
        f"p{result.settings['percentile']:g} ms ": f"{trial.latency_ms.value:.4g}",
        "95 % ": interval_text(trial.latency_ms, ms_text),
        "runs": str(trial.runs),
        "": _remark(trial, result),
    }
    if trial.failed is None:
        return cells
    known = ("batch", "streams", "profile")
    remark = "[dim]left out[/]" if trial.left_out else "[yellow]doesn't run[/]"
    return {name: words if name in known else "" for name, words in cells.items()} | {"": remark}


def _is(one: Trial, other: Trial) -> bool:
    return (one.batch, one.streams) == (other.batch, other.streams)


def _remark(trial: Trial, result: TuneResult) -> str:
    marks = [
        *(["[bold green]chosen[/]"] if _is(trial, result.chosen) else []),
        *(["best"] if _is(trial, result.best) and not _is(trial, result.chosen) else []),
        *(["knee"] if _is(trial, result.knee) else []),
        *(["again"] if trial.round else []),
    ]
    return ", ".join(marks)


def _rate(value: float) -> str:
    from trtbatch.reporting.series import rate

    return rate(value)


def ms_text(value: float) -> str:
    return f"{value:.4g}"


def interval_text(interval: Interval, words: Callable[[float], str]) -> str:
    """Format an interval, ``4.1–4.4``; too few runs for an end give ``over 4.1``, ``up to 4.4`` or ``not known``."""
    below, above = interval.low > 0, interval.high < float("inf")
    if below and above:
        return f"{words(interval.low)}–{words(interval.high)}"
    if below:
        return f"over {words(interval.low)}"
    return f"up to {words(interval.high)}" if above else _UNKNOWN


_UNKNOWN = "not known"


def latency_text(trial: Trial, percentile: str) -> str:
    """Format a latency, ``p99 4.1–4.4 ms`` or ``p99 not known from 5 runs``."""
    known = interval_text(trial.latency_ms, ms_text)
    return f"{percentile} {known} from {trial.runs} runs" if known == _UNKNOWN else f"{percentile} {known} ms"


def _throughput(trial: Trial) -> str:
    """Format a throughput, ``900–1,100 samples/s`` or ``samples/s not known from 5 runs``."""
    known = interval_text(trial.samples_per_s, _rate)
    return f"samples/s {known} from {trial.runs} runs" if known == _UNKNOWN else f"{known} samples/s"


def _show_chosen(console: Console, result: TuneResult) -> None:
    chosen = result.chosen
    percentile = f"p{result.settings['percentile']:g}"
    lines = [
        (
            "chosen",
            f"batch {chosen.batch}, {_streams(chosen.streams)}, profile {chosen.profile} "
            f"({result.profiles[chosen.profile]}): {_rate(chosen.samples_per_s.value)} samples/s, {percentile} "
            f"{ms_text(chosen.latency_ms.value)} ms",
        ),
        (
            "sure",
            f"to 95 %, from {chosen.runs} fresh runs after the search: {latency_text(chosen, percentile)}, "
            f"{_throughput(chosen)}",
        ),
        *(("alike", _alike(result)) for _ in result.alike[:1]),
        *(("smaller", _cost(chosen, each, percentile)) for each in (result.smaller,) if each is not None),
        *(("larger", _cost(chosen, each, percentile)) for each in (result.larger,) if each is not None),
        ("knee", f"batch {result.knee.batch}: beyond it a larger batch costs more latency than it gains throughput"),
    ]
    for label, text in lines:
        console.print(f"  {label:9}{text}", markup=False)


def _alike(result: TuneResult) -> str:
    """List the measurements whose throughput doesn't differ clearly from the choice's, smaller batches first.

    ``no clear difference in throughput: batch 12 (46.1–48.2 samples/s), batch 17 (…)``.
    """
    one = result.chosen.streams
    others = (
        f"batch {each.batch}{'' if each.streams == one else f', {_streams(each.streams)}'} ({_throughput(each)})"
        for each in sorted(result.alike, key=lambda each: (each.batch, each.streams))
    )
    return f"no clear difference in throughput: {', '.join(others)}"


def _cost(chosen: Trial, other: Trial, percentile: str) -> str:
    """Compare another batch size with the choice: ``batch 32: +4.1 % throughput, +61.0 % latency (p99 …)``."""
    rate = other.samples_per_s.value / chosen.samples_per_s.value - 1
    time = other.latency_ms.value / chosen.latency_ms.value - 1
    return f"batch {other.batch}: {rate:+.1%} throughput, {time:+.1%} latency ({latency_text(other, percentile)})"


def _streams(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"


def _notes(result: TuneResult) -> Sequence[str]:
    """Return notes on what the columns mean, what isn't known well enough, and where the result is."""
    from trtbatch.tuner.percentiles import runs_needed

    percentile = result.settings["percentile"]
    lines = [f"latency: {words}" for words in result.timed.values()]
    lines.append("samples/s: of the same load, by Little's law; 95 %: intervals by order statistics")
    needed = runs_needed(percentile)
    if any(trial.failed is None and trial.runs < needed for trial in result.trials):
        lines.append(f"p{percentile:g} is known from above from {needed} runs on: fewer give its lower end, or none")
    for trial in result.trials:
        if trial.failed is not None and not trial.left_out:
            lines.append(
                f"batch {trial.batch}, {_streams(trial.streams)} doesn't run: {' '.join(trial.failed.split())}"
            )
        if trial.faults:
            lines.append(f"batch {trial.batch}, {_streams(trial.streams)}: the GPU's clocks: {', '.join(trial.faults)}")
    left_out = {trial.batch: trial.failed for trial in result.trials if trial.left_out}
    lines += [f"batch {batch} is left out: {reason}" for batch, reason in left_out.items()]
    lines.append(
        "again: measured after the search, one after the other; the choice is compared with these. The other rows, "
        "and the knee, are of the search."
    )
    compared = [each for each in (result.best, result.smaller, result.larger) if each is not None]
    for trial in compared:
        if trial.round != result.chosen.round:
            lines.append(f"batch {trial.batch}, {_streams(trial.streams)}: measured at another time than the choice")
    if result.saved:
        lines.append("kept in the engine's sidecar: infer --batch auto and deploy triton take it")
    return lines


def _show_largest(largest: MaxBatchResult) -> None:
    console = out()
    console.print(
        f"largest batch: [bold]{largest.batch}[/] of {largest.most}, the most that {plain(largest.engine)} takes"
    )
    if largest.bound == "profile":
        console.print("  bounded by the profile, not by memory: rebuild with a larger --max to go on")
        return
    cause = "memory" if largest.bound == "memory" else "an error that doesn't speak of memory"
    console.print(as_typed(f"  bounded by {cause}: batch {largest.refused} fails: {largest.reason}"), markup=False)
