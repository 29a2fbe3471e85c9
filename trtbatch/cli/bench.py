"""Define the command ``trtbatch bench``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtbatch.cli.console import Debug, Device, EngineFile, fitting, out, parse_names, plain, show_progress
from trtbatch.cli.wording import as_typed

if TYPE_CHECKING:
    from rich.console import Console

    from trtbatch.benchmark.bench import BenchResult
    from trtbatch.benchmark.paired import PairedResult, ProfilesResult

__all__ = ["command"]


def command(
    engine: EngineFile = None,
    batch: Annotated[
        str, typer.Option(metavar="LIST", help="Batch sizes: 1,2,4,...,32 or 8,16,...,64 or 1-4, mixed.")
    ] = "1",
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="TensorRT: execute_v2, async, graph; else run; both: latency, throughput. \\[default: the first]",
        ),
    ] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Number of timed runs of each, exactly.")] = None,
    min_time: Annotated[
        float | None,
        typer.Option(min=0.01, metavar="S", help="Seconds of timed runs of each, at least. \\[default: 1]"),
    ] = None,
    time_out: Annotated[
        float | None,
        typer.Option(min=0.01, metavar="S", help="Seconds, stable or not. \\[default: 3 × --min-time]"),
    ] = None,
    max_noise: Annotated[
        str, typer.Option(metavar="P%", help="How well the median is to be known before timing stops.")
    ] = "1%",
    warmup: Annotated[float, typer.Option(min=0, metavar="MS", help="Milliseconds of runs before each.")] = 200.0,
    percentile: Annotated[str, typer.Option(metavar="P,Q", help="Percentiles next to the median.")] = "90,99",
    streams: Annotated[int, typer.Option(min=1, max=64, help="Sessions side by side, for throughput.")] = 1,
    no_cuda_graph: Annotated[
        bool, typer.Option("--no-cuda-graph", help="Launch kernel by kernel in latency and throughput.")
    ] = False,
    flush_l2: Annotated[
        bool, typer.Option("--flush-l2", help="Evict the GPU's L2 cache before each launch, untimed.")
    ] = False,
    profile: Annotated[
        int | None, typer.Option(min=0, metavar="I", help="Optimization profile. \\[default: each batch's fastest]")
    ] = None,
    compare_profiles: Annotated[
        bool, typer.Option("--compare-profiles", help="Time every profile that holds each batch size, in turns.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(metavar="ENGINE", help="Time another engine in turns with this one: which is faster?"),
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Everything, raw samples too.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="One line per batch size.")] = None,
    device: Device = 0,
    debug: Debug = False,
) -> None:
    """Time an engine at each batch size; its rows are checked first.

    An engine whose rows are wrong gets no numbers, and exit code 1.
    """
    import trtbatch
    from trtbatch.reporting import report
    from trtbatch.util.files import refuse_outputs

    _refuse_contradictions(iterations, min_time, time_out, warmup)
    refuse_outputs((json_, ".json", "--json"), (csv, ".csv", "--csv"))
    with show_progress() as (_, progress):
        result = trtbatch.bench(
            engine,
            batches=batch,
            modes=None if mode is None else list(dict.fromkeys(parse_names(mode))),
            iterations=iterations,
            min_time=1.0 if min_time is None else min_time,
            warmup=warmup,
            percentiles=_percentiles(percentile),
            device=device,
            progress=progress,
            max_noise=_share(max_noise),
            time_out=time_out,
            streams=streams,
            cuda_graphs=not no_cuda_graph,
            flush_l2=flush_l2,
            profile=profile,
            against=against,
            compare_profiles=compare_profiles,
        )
    console = out()
    for line in _show(console, result):
        console.print(as_typed(line), style="dim", markup=False)
    for line in _chart(console, result):
        console.print(line, markup=False, no_wrap=True)
    for path, write in ((json_, report.write_json), (csv, report.write_csv)):
        if path is not None:
            write(result, path)
            console.print(f"[bold]{plain(str(path))}[/]")


def _show(console: Console, result: BenchResult | PairedResult | ProfilesResult) -> Sequence[str]:
    """Print the tables, and return the notes that belong below them."""
    from trtbatch.benchmark.paired import PairedResult, ProfilesResult
    from trtbatch.reporting import report

    if isinstance(result, PairedResult):
        console.print(report.paired_table(result))
        return report.paired_notes(result)
    if isinstance(result, ProfilesResult):
        console.print(fitting(console, report.profiles_table(result), report.profiles_table(result, brief=True)))
        return report.profiles_notes(result)
    console.print(fitting(console, report.bench_table(result), report.bench_table(result, brief=True)))
    parts = report.parts_table(result)
    if parts is not None:
        console.print(parts)
    return report.footnotes(result)


def _chart(console: Console, result: BenchResult | PairedResult | ProfilesResult) -> Sequence[str]:
    """Return a chart of samples/s over the batch size; empty for comparisons: their differences are too small."""
    from trtbatch.benchmark.bench import BenchResult
    from trtbatch.reporting.charts import rate_chart
    from trtbatch.reporting.series import series_of

    if not isinstance(result, BenchResult):
        return []
    series = series_of([(result.engine, result)])
    return rate_chart(series, [line.mode for line in series], console.width, console.options.ascii_only)


def _refuse_contradictions(
    iterations: int | None, min_time: float | None, time_out: float | None, warmup: float
) -> None:
    """Refuse options that contradict each other about how long to measure, or that never end.

    Raises:
        UsageError: the message names the options.
    """
    from trtbatch.errors import UsageError

    if iterations is not None and min_time is not None:
        raise UsageError("--iterations and --min-time say the same thing twice", "give one of them")
    if iterations is not None and time_out is not None:
        raise UsageError("--iterations and --time-out contradict each other", "give one of them")
    for name, value in (("--min-time", min_time), ("--time-out", time_out), ("--warmup", warmup)):
        if value is not None and not math.isfinite(value):
            raise UsageError(f"{name} {value} never ends", "give a finite number of seconds (--warmup: milliseconds)")
    shortest = 1.0 if min_time is None else min_time
    if time_out is not None and time_out < shortest:
        raise UsageError(
            f"--time-out {time_out:g} is less than the {shortest:g} s of --min-time",
            f"pass --min-time {time_out:g} too",
        )


def _share(text: str) -> float:
    """Parse a share of the median, ``1%`` or ``0.01``."""
    from trtbatch.errors import UsageError

    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise UsageError(
            f"--max-noise {text!r} is not a share of the median", "write it like 1% or 0.01: over 0, below 100%"
        )
    return value


def _percentiles(text: str) -> list[float]:
    from trtbatch.errors import UsageError

    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value <= 100 for value in values):
        raise UsageError(f"--percentile {text!r}: not percentiles", "write them like 90,99 (over 0, up to 100)")
    return list(dict.fromkeys(values))
