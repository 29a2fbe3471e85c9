"""Define the command ``trtbatch deploy``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtbatch.cli.console import Debug, EngineFile, out, plain

__all__ = ["app"]

app = typer.Typer(
    help="Hand an engine to a server.", no_args_is_help=True, add_completion=False, rich_markup_mode="rich"
)


@app.callback()
def _root() -> None:
    """Hand an engine to a server."""


@app.command("triton")
def triton(
    engine: EngineFile = None,
    repository: Annotated[
        Path, typer.Option(metavar="DIR", help="Triton's model repository; it is made where it isn't there.")
    ] = ...,  # type: ignore[assignment]
    name: Annotated[str | None, typer.Option(help="The model's name; else the one in the sidecar.")] = None,
    instances: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Copies that run at the same time, on each GPU or on the CPU. \\[default: the tuned streams, else 1]",
        ),
    ] = None,
    max_queue_delay: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="How long a request may wait for others to share a batch with. "
            "\\[default: by the tuned latency, else 2ms]",
        ),
    ] = None,
    from_images: Annotated[
        bool, typer.Option("--from-images", help="Write an ensemble too, which takes encoded images: DALI reads them.")
    ] = False,
    version: Annotated[int, typer.Option(min=1, max=2**31 - 1, help="The version that is served from now on.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace a version that is there already.")] = False,
    debug: Debug = False,
) -> None:
    """Write a model folder for NVIDIA Triton: NAME/config.pbtxt, NAME/VERSION/model.plan (or model.onnx), labels.

    Batch sizes, profiles, CUDA graphs and warm-up requests come from what build has measured and tune has found.
    Other versions of the model stay where they are. With --from-images there are two more models: NAME_images, the
    ensemble that takes encoded images, and NAME_preprocessing, DALI's part of it.
    """
    import trtbatch
    from trtbatch.deployment.tritonbatching import parse_delay

    done = trtbatch.deploy_triton(
        engine,
        repository=repository,
        name=name,
        instances=instances,
        max_queue_delay_us=None if max_queue_delay is None else parse_delay(max_queue_delay),
        version=version,
        force=force,
        from_images=from_images,
    )
    console = out()
    console.print(f"[bold]{plain(str(done.folder))}[/] (version {done.version})")
    if done.ensemble is not None:
        console.print(
            f"[bold]{plain(str(done.ensemble))}[/] takes encoded images, {plain(str(done.preprocessing))} reads them"
        )
    if done.batching.tuned:
        console.print(f"  from tune: {', '.join(done.batching.tuned)}", markup=False)
    console.print(plain(f"tritonserver --model-repository={done.folder.parent.absolute()}"))
