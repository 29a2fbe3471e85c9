"""Define the command ``trtbatch export-preprocessor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtbatch.cli.console import Debug, out, plain, size

__all__ = ["command"]


def command(
    artifact: Annotated[
        Path | None,
        typer.Argument(
            metavar="[ENGINE|ONNX]",
            help="The model whose input it fills. \\[default: the newest engine that takes images]",
        ),
    ] = None,
    max_size: Annotated[
        int, typer.Option(min=1, help="Rows and columns of the largest image; Pillow resizes larger ones.")
    ] = 4096,
    output: Annotated[Path | None, typer.Option(metavar="PATH", help="\\[default: engines/NAME.pre.onnx]")] = None,
    debug: Debug = False,
) -> None:
    """Write a model's preprocessing as a network of its own, which makes one sample of an image of any size.

    The file appears once ONNX Runtime has run it on images of several sizes and no pixel is more than 1 of 255 from
    Pillow's.
    """
    from trtbatch.images.preprocessor import OnnxPreprocessor, export_preprocessor

    path = export_preprocessor(artifact, max_size, output)
    record = OnnxPreprocessor(path).record
    recipe, console = record.recipe, out()
    console.print(f"[bold]{plain(str(path))}[/]  {size(path.stat().st_size)}, opset {record.opset}")
    console.print(f"  for     {record.source.file}", markup=False)
    crop = "×".join(map(str, recipe.crop[::-1]))
    console.print(f"  recipe  shorter side {recipe.resize}, {recipe.interpolation}, crop {crop}", markup=False)
    console.print(f"  input   images of up to {max_size}×{max_size}; Pillow resizes larger ones", markup=False)
    console.print(f"  output  {record.output}", markup=False)
    console.print("  checked no pixel is more than 1 of 255 from Pillow's in ONNX Runtime")
