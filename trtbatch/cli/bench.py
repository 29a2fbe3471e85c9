"""``trtbatch bench``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Optional

import typer

from trtbatch.cli.console import Debug, Device, EngineFile, fitting, out, parse_names, plain, show_progress

__all__ = ["command"]


def command(
    engine: EngineFile = None,
    batch: Annotated[
        str, typer.Option(metavar="LIST", help="Batch sizes: 1,2,4,...,32 or 8,16,...,64 or 1-4, mixed.")
    ] = "1",
    mode: Annotated[
        Optional[str],
        typer.Option(metavar="A,B", help="TensorRT: execute_v2, async, graph; else run. \\[default: the first]"),
    ] = None,
    iterations: Annotated[Optional[int], typer.Option(min=1, help="Exactly so many timed runs of each.")] = None,
    min_time: Annotated[
        Optional[float],
        typer.Option(min=0.01, metavar="S", help="Seconds of timed runs of each, at least. \\[default: 1]"),
    ] = None,
    warmup: Annotated[float, typer.Option(min=0, metavar="MS", help="Milliseconds of runs before each.")] = 200.0,
    percentile: Annotated[str, typer.Option(metavar="P,Q", help="Percentiles beside the median.")] = "90,99",
    json_: Annotated[
        Optional[Path], typer.Option("--json", metavar="FILE", help="Everything, raw samples too.")
    ] = None,
    csv: Annotated[Optional[Path], typer.Option("--csv", metavar="FILE", help="One line per batch size.")] = None,
    device: Device = 0,
    debug: Debug = False,
) -> None:
    """Time an engine at each batch size; its rows are checked first.

    An engine whose rows are wrong gets no numbers, and exit code 1.
    """
    from trtbatch import report
    from trtbatch.batches import parse_batches
    from trtbatch.bench import BenchRequest, bench
    from trtbatch.errors import UsageError
    from trtbatch.files import refuse_outputs

    if iterations is not None and min_time is not None:
        raise UsageError("--iterations and --min-time say the same thing twice", "give one of them")
    for name, value in (("--min-time", min_time), ("--warmup", warmup)):
        if value is not None and not math.isfinite(value):
            raise UsageError(f"{name} {value} never ends", "give a number of seconds (--warmup: milliseconds)")
    refuse_outputs((json_, ".json"), (csv, ".csv"))
    with show_progress() as (_, progress):
        result = bench(
            BenchRequest(
                engine=engine,
                batches=parse_batches(batch),
                modes=None if mode is None else parse_names(mode),
                iterations=iterations,
                min_time=1.0 if min_time is None else min_time,
                warmup=warmup,
                percentiles=_percentiles(percentile),
                device=device,
                progress=progress,
            )
        )
    console = out()
    console.print(fitting(console, report.bench_table(result), report.bench_table(result, brief=True)))
    for line in report.footnotes(result):
        console.print(line, style="dim", markup=False)
    for path, write in ((json_, report.write_json), (csv, report.write_csv)):
        if path is not None:
            write(result, path)
            console.print(f"[bold]{plain(str(path))}[/]")


def _percentiles(text: str) -> list[float]:
    from trtbatch.errors import UsageError

    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value <= 100 for value in values):
        raise UsageError(f"--percentile {text!r}: not percentiles", "write them like 90,99 (over 0, up to 100)")
    return list(dict.fromkeys(values))
