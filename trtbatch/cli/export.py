"""Define the command ``trtbatch export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from trtbatch.cli.console import Debug, out, parse_names, parse_shape, plain, size

__all__ = ["command"]


def command(
    model: Annotated[
        str,
        typer.Argument(help="A torchvision name (resnet18), package.module:factory, or a .pt2 file.", metavar="MODEL"),
    ],
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="A dynamic batch axis: any batch size (the default).")
    ] = False,
    static: Annotated[bool, typer.Option("--static", help="One fixed batch size, that of --batch.")] = False,
    batch: Annotated[int | None, typer.Option(min=1, help="Batch size of a static export. \\[default: 1]")] = None,
    input_shape: Annotated[
        str | None, typer.Option(metavar="C,H,W", help="Shape of one sample. \\[default: the model's own]")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset. \\[default: 17 (torchscript), 18 (dynamo)]")] = None,
    exporter: Annotated[
        Literal["torchscript", "dynamo"] | None,
        typer.Option(help="Which of torch's exporters. \\[default: torchscript, while torch has it]"),
    ] = None,
    weights: Annotated[
        str, typer.Option(metavar="auto|pretrained|random|FILE", help="Where the weights come from.")
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of random weights and example inputs.")] = 0,
    input_names: Annotated[str | None, typer.Option(metavar="A,B", help="Names of the inputs, in order.")] = None,
    output_names: Annotated[str | None, typer.Option(metavar="A,B", help="Names of the outputs, in order.")] = None,
    input_dtype: Annotated[
        Literal["float32", "uint8"],
        typer.Option(help="uint8: the model takes bytes; scale, mean and deviation become its first nodes."),
    ] = "float32",
    layout: Annotated[
        Literal["NHWC", "NCHW"] | None, typer.Option(help="Of uint8 images. \\[default: NHWC, as they are decoded]")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="\\[default: engines/MODEL_dynamic.onnx or engines/MODEL.onnx]"),
    ] = None,
    trust_code: Annotated[
        bool,
        typer.Option("--trust-code", help="Run the code that a .pt2 file holds: only for files you made yourself."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Export a torch model to ONNX, and prove that its batch axis is what it says.

    A dynamic export is accepted only after ONNX Runtime has run it at batches 1, 2, 3 and 7 and every row
    agrees with torch.
    """
    import trtbatch
    from trtbatch.errors import UsageError
    from trtbatch.exporter.export_validation import VALIDATED_BATCHES

    if dynamic and static:
        problem = "--dynamic and --static contradict each other"
        raise UsageError(problem, "give --dynamic for any batch, or --static --batch N for one")
    artifact = trtbatch.export(
        model,
        dynamic=not static,
        batch=batch,
        input_shape=None if input_shape is None else parse_shape(input_shape),
        opset=opset,
        exporter=exporter,
        weights=weights,
        seed=seed,
        input_names=parse_names(input_names),
        output_names=parse_names(output_names),
        input_dtype=input_dtype,
        layout=layout,
        output=output,
        trust_code=trust_code,
    )
    sidecar = artifact.sidecar
    console = out()
    proof = f"batches {', '.join(map(str, VALIDATED_BATCHES))}" if not static else f"batch {batch or 1}"
    console.print(f"[bold]{plain(str(artifact.path))}[/]  {size(sidecar.artifact.bytes)}, opset {sidecar.model.opset}")
    for label, specs in (("input", sidecar.inputs), ("output", sidecar.outputs)):
        for spec in specs:
            console.print(f"  {label:8}{spec}", markup=False)
    console.print(f"  weights {sidecar.model.weights}", markup=False)
    console.print(f"  proof   every row equals torch's at {proof} in ONNX Runtime")
