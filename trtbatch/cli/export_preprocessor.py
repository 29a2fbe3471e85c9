"""``trtbatch export-preprocessor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from trtbatch.cli.console import Debug, out, plain, size

__all__ = ["command"]


def command(
    artifact: Annotated[
        Optional[Path],
        typer.Argument(
            metavar="[ENGINE|ONNX]",
            help="The model whose input it fills. \\[default: the newest engine for photographs]",
        ),
    ] = None,
    max_size: Annotated[
        int, typer.Option(min=1, help="Rows and columns of the largest photograph that is resized there.")
    ] = 4096,
    output: Annotated[Optional[Path], typer.Option(metavar="PATH", help="\\[default: engines/NAME.pre.onnx]")] = None,
    debug: Debug = False,
) -> None:
    """Write a model's preprocessing as a model of its own: a photograph of any size becomes one sample of the input.

    It is accepted only after ONNX Runtime has run it on photographs of several sizes and no pixel is more than
    1 of 255 from Pillow's.
    """
    from trtbatch.photographs.preprocessor import OnnxPreprocessor, PreprocessorRequest, export_preprocessor

    path = export_preprocessor(PreprocessorRequest(artifact, max_size, output))
    with OnnxPreprocessor(path) as preprocessor:
        record = preprocessor.record
    recipe, console = record.recipe, out()
    console.print(f"[bold]{plain(str(path))}[/]  {size(path.stat().st_size)}, opset {record.opset}")
    console.print(f"  for     {record.source.file}", markup=False)
    crop = "×".join(map(str, recipe.crop[::-1]))
    console.print(f"  recipe  shorter side {recipe.resize}, {recipe.interpolation}, crop {crop}", markup=False)
    console.print(f"  output  {record.output}", markup=False)
    console.print("  proof   no pixel is more than 1 of 255 from Pillow's in ONNX Runtime")
