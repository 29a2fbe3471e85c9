"""``trtbatch infer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.progress import TextColumn

from trtbatch.cli.console import Debug, Device, EngineFile, err, out, plain, show_progress

__all__ = ["command"]


def command(
    engine: EngineFile = None,
    input_: Annotated[
        str,
        typer.Option("--input", metavar="DIR|GLOB|FILE|random", help="Images, a .npy or .npz file, or random samples."),
    ] = ...,  # type: ignore[assignment]
    batch: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="Batch size; auto is the fastest one that the build has measured, else the largest opt.",
        ),
    ] = "auto",
    count: Annotated[Optional[int], typer.Option(min=1, help="At most so many samples.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of random samples.")] = 42,
    output: Annotated[
        Optional[Path], typer.Option(metavar="OUT.npz|.csv|.jsonl", help="Where the predictions go.")
    ] = None,
    topk: Annotated[int, typer.Option(min=1, help="Classes given for each sample.")] = 5,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first unusable input.")] = False,
    no_cuda_graph: Annotated[
        bool, typer.Option("--no-cuda-graph", help="Launch kernels one by one, not as a CUDA graph.")
    ] = False,
    trace: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE.json", help="What each thread did when, for chrome://tracing or ui.perfetto.dev."),
    ] = None,
    device: Device = 0,
    debug: Debug = False,
) -> None:
    """Run images or arrays through an engine, in order, at their true batch sizes.

    Reading, computing and writing overlap. A batch larger than every profile is run in pieces.

    An unusable image is reported and left out, the rest goes on, and the exit code is 1.
    """
    from trtbatch.infer import InferRequest, infer

    with show_progress(TextColumn("{task.fields[rate]}")) as (bar, _):
        task = bar.tasks[0].id
        bar.update(task, description="predicting")

        def progress(done: int, total: int) -> None:
            elapsed = bar.tasks[0].elapsed or 1e-9
            bar.update(task, completed=done, total=total, rate=f"{done / elapsed:,.0f} images/s")

        result = infer(
            InferRequest(
                engine=engine,
                input=input_,
                batch=_batch(batch),
                count=count,
                seed=seed,
                output=output,
                topk=topk,
                strict=strict,
                device=device,
                cuda_graphs=not no_cuda_graph,
                trace=trace,
                progress=progress,
            )
        )
    _show(result)
    if result.skipped:
        err().print(
            f"[bold yellow]{len(result.skipped)} of {result.samples + len(result.skipped)} inputs were skipped[/]"
        )
        raise typer.Exit(1)


def _batch(text: str) -> int | None:
    from trtbatch.errors import UsageError

    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < 1:
        raise UsageError(f"--batch {text!r} is not a batch size", "give a number from 1, or auto")
    return int(text)


def _show(result: Any) -> None:
    from rich.table import Table

    console = out()
    if result.shown:
        table = Table(
            title=plain(f"{result.engine} · weights: {result.weights}"), title_justify="left", title_style="bold"
        )
        table.add_column("input", overflow="fold")
        table.add_column("predictions")
        for name, predictions in result.shown:
            table.add_row(plain(name), plain(", ".join(f"{p.name} {p.score:.1%}" for p in predictions)))
        console.print(table)
        if result.samples > len(result.shown):
            console.print(f"… and {result.samples - len(result.shown)} more")
    batches = " ".join(f"{size}×{times}" if times > 1 else f"{size}" for size, times in result.executed.items())
    rate = result.samples / result.seconds if result.seconds else 0.0
    samples = "1 sample" if result.samples == 1 else f"{result.samples} samples"
    console.print(
        f"{samples} in {result.seconds:.2f} s ({rate:,.0f} images/s, reading included); "
        f"executed batches: {batches or 'none'}"
    )
    if result.samples:
        console.print(result.bound)
    for path in (result.output, result.trace):
        if path is not None:
            console.print(f"[bold]{plain(str(path))}[/]")
