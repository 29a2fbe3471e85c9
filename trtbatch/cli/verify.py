"""Define the command ``trtbatch verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trtbatch.cli.console import Debug, Device, EngineFile, fitting, out, plain, show_progress

__all__ = ["command"]


def command(
    engine: EngineFile = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="onnxruntime|torch|FILE|none",
            help="The reference; FILE is an .onnx, or an .npz of saved outputs. "
            "\\[default: onnxruntime, where the engine's ONNX file is at hand]",
        ),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="LIST", help="Batch sizes. \\[default: each profile's min, opt and max]")
    ] = None,
    input_: Annotated[
        str | None,
        typer.Option("--input", metavar="DIR|GLOB|FILE|random", help="Samples, as for infer. \\[default: random]"),
    ] = None,
    rtol: Annotated[
        float | None, typer.Option(min=0, help="Element-wise |a-b| ≤ atol + rtol·|b|, instead of the default.")
    ] = None,
    atol: Annotated[float | None, typer.Option(min=0, help="See --rtol.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of random samples, the same as infer's.")] = 42,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Every sample of every output.")] = None,
    trust_code: Annotated[
        bool,
        typer.Option(
            "--trust-code", help="With --against torch: run the code that the .pt2 file holds, which you made yourself."
        ),
    ] = False,
    device: Device = 0,
    debug: Debug = False,
) -> None:
    """Check every sample of an engine: against a reference, and against itself. Exit code 0 only if all passes.

    The default tolerance is an L2-relative error per row that follows the output's dtype and the engine's
    precision: 1e-4 for float32, 2e-3 where TensorRT computes in TF32, exact for integers.
    """
    import trtbatch
    from trtbatch.reporting import report
    from trtbatch.util.files import refuse_outputs

    read = [Path(name) for name in (input_, against) if name is not None]
    refuse_outputs((json_, ".json", "--json"), inputs=read)
    with show_progress() as (_, progress):
        result = trtbatch.verify(
            engine,
            against=against,
            batches=() if batch is None else batch,
            input=input_,
            rtol=rtol,
            atol=atol,
            seed=seed,
            trust_code=trust_code,
            device=device,
            progress=progress,
        )
    _show(result)
    if json_ is not None:
        report.write_verdict(result, json_)
        out().print(f"[bold]{plain(str(json_))}[/]")
    if not result.passed:
        raise typer.Exit(1)


def _show(result: Any) -> None:
    from trtbatch.reporting import report

    console = out()
    if result.reference is not None:
        console.print(fitting(console, report.verify_table(result), report.verify_table(result, brief=True)))
        console.print(f"reference: {result.reference}", style="dim", markup=False)
    batches = ", ".join(map(str, result.batches))
    checks = ", ".join(result.checks)
    if result.findings:
        for line in result.explanations:
            console.print(f"wrong: {line}", style="red", markup=False)
    else:
        console.print(f"the engine against itself, at batch {batches}: {checks}: all pass", markup=False)
    verdict = "[bold green]right[/]" if result.passed else "[bold red]WRONG[/]"
    console.print(f"{verdict}: every sample of {plain(result.engine)} was looked at, batch {batches}")
