"""Define the command ``trtbatch infer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trtbatch.cli.console import Debug, Device, EngineFile, err, out, plain, show_progress
from trtbatch.cli.quiet import quiet_ray

__all__ = ["command"]

READ_BY = {
    "host": "read by Pillow on the host: torchvision's pixels",
    "dali": "read by DALI: pixels differ slightly from Pillow's",
    "preprocessor": "read by Pillow, resized by the preprocessor: at most 1 of 255 from Pillow's",
}


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
            help="Batch size; auto is what tune has found, else the fastest that was measured, else the largest opt.",
        ),
    ] = "auto",
    count: Annotated[int | None, typer.Option(min=1, help="Largest number of samples.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of random samples.")] = 42,
    output: Annotated[
        str | None,
        typer.Option(metavar="OUT.npz|.csv|.jsonl|DIR", help="Where the predictions go; with --ray a folder or URI."),
    ] = None,
    topk: Annotated[int, typer.Option(min=1, help="Classes given for each sample.")] = 5,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first unusable input.")] = False,
    no_cuda_graph: Annotated[
        bool, typer.Option("--no-cuda-graph", help="Launch kernels one by one, not as a CUDA graph.")
    ] = False,
    reader: Annotated[
        str,
        typer.Option(
            metavar="auto|host|dali",
            help="What reads images: Pillow on the host, or NVIDIA DALI on the GPU (auto where it is installed).",
        ),
    ] = "auto",
    preprocessor: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.pre.engine|.pre.onnx",
            help="Model that resizes and normalises images in Pillow's place: see export-preprocessor.",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="What each thread did when, for chrome://tracing or ui.perfetto.dev."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="local|auto|ADDRESS",
            help="Predict with Ray Data: on this machine, on the cluster that runs here, or on the one at ADDRESS.",
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="With --ray: actors, each with an engine. \\[default: one a GPU, or one a node]"),
    ] = None,
    format_: Annotated[
        str | None, typer.Option("--format", metavar="parquet|jsonl", help="With --ray: of the files in DIR.")
    ] = None,
    device: Device = 0,
    debug: Debug = False,
) -> None:
    """Run images or arrays through an engine, in order, at their true batch sizes.

    Reading, computing and writing overlap. A batch larger than every profile is run in pieces.

    An unusable image is reported and left out, the rest goes on, and the exit code is 1.

    With --ray the input is a folder or file of images, .npy or .parquet, here or at a URI such as s3://bucket/folder;
    the next run into the same DIR goes on where one has ended.
    """
    if ray is not None:
        single = {
            "--strict": strict,
            "--trace": trace is not None,
            "--preprocessor": preprocessor is not None,
            "--device": device != 0,
            "--seed": seed != 42,
        }
        _refuse_options(single, "is for a run on one machine, without --ray")
        _with_ray(engine, input_, output, ray, batch, concurrency, format_, topk, count, not no_cuda_graph, reader)
        return
    _refuse_options({"--concurrency": concurrency is not None, "--format": format_ is not None}, "goes with --ray")

    import trtbatch

    with show_progress("{task.fields[rate]}") as (bar, _):
        task = bar.tasks[0].id
        bar.update(task, description="predicting")

        def progress(done: int, total: int) -> None:
            elapsed = bar.tasks[0].elapsed or 1e-9
            bar.update(task, completed=done, total=total, rate=f"{done / elapsed:,.0f} images/s")

        result = trtbatch.infer(
            engine,
            input=input_,
            batch=_batch(batch),
            count=count,
            seed=seed,
            output=output,
            topk=topk,
            strict=strict,
            reader=reader,
            preprocessor=preprocessor,
            cuda_graphs=not no_cuda_graph,
            trace=trace,
            device=device,
            progress=progress,
        )
    _show(result)
    if result.skipped:
        err().print(
            f"[bold yellow]{len(result.skipped)} of {result.samples + len(result.skipped)} inputs were skipped[/]"
        )
        raise typer.Exit(1)


def _refuse_options(given: dict[str, bool], why: str) -> None:
    from trtbatch.errors import UsageError

    for option, is_given in given.items():
        if is_given:
            raise UsageError(f"{option} {why}", "leave it out")


def _with_ray(
    engine: Path | None,
    input_: str,
    output: str | None,
    address: str,
    batch: str,
    concurrency: int | None,
    format_: str | None,
    topk: int,
    count: int | None,
    cuda_graphs: bool,
    reader: str,
) -> None:
    from trtbatch.deployment.scale import RayRequest, infer_with_ray
    from trtbatch.errors import UsageError

    if output is None:
        raise UsageError("--ray needs --output DIR", "name a folder, or a URI such as s3://bucket/folder")
    if format_ not in (None, "parquet", "jsonl"):
        raise UsageError(f"--format {format_} is no format", "give parquet or jsonl")
    with show_progress("{task.fields[rate]}") as (bar, _), quiet_ray():
        task = bar.tasks[0].id
        bar.update(task, description="predicting")
        result = infer_with_ray(
            RayRequest(
                engine=engine,
                input=input_,
                output=output,
                address=address,
                batch=_batch(batch),
                concurrency=concurrency,
                format="jsonl" if format_ == "jsonl" else "parquet",
                topk=topk,
                count=count,
                cuda_graphs=cuda_graphs,
                reader=reader,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        )
    out().print(f"{result.rows} rows predicted, {result.before} were there")
    out().print(f"[bold]{plain(result.output)}[/]")
    if result.failed:
        err().print(f"[bold yellow]{result.failed} of {result.rows + result.before} rows have an error[/]")
        raise typer.Exit(1)


def _batch(text: str) -> int | None:
    from trtbatch.core.batches import MAX_BATCH
    from trtbatch.errors import UsageError

    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= MAX_BATCH:
        raise UsageError(f"--batch {text!r} is not a batch size", f"give a number from 1 to {MAX_BATCH}, or auto")
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
        if result.origins["batch"] != "given":
            console.print(f"batch {result.batch}: {result.origins['batch']}")
        console.print(result.bound)
    if result.reader is not None:
        console.print(READ_BY[result.reader])
    for path in (result.output, result.trace):
        if path is not None:
            console.print(f"[bold]{plain(str(path))}[/]")
