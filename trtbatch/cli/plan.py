"""Define the command ``trtbatch plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtbatch.cli.console import Debug, Device, EngineFile, out, plain, show_progress
from trtbatch.cli.wording import as_typed

if TYPE_CHECKING:
    from rich.table import Table

    from trtbatch.tuner.plan import PlanResult

__all__ = ["command"]


def command(
    engine: EngineFile = None,
    traffic: Annotated[
        Path, typer.Option("--traffic", metavar="FILE.csv", help="Batch sizes and how often: header batch,count.")
    ] = ...,  # type: ignore[assignment]
    max_profiles: Annotated[int, typer.Option(min=1, max=64, metavar="K", help="Profiles at the most.")] = 8,
    from_table: Annotated[
        bool, typer.Option("--from-table", help="The sidecar's times alone: run nothing, interpolate what lacks.")
    ] = False,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="The plan, as JSON.")] = None,
    no_save: Annotated[bool, typer.Option("--no-save", help="Leave the engine's sidecar as it is.")] = False,
    device: Device = 0,
    debug: Debug = False,
) -> None:
    """Choose the optimization profiles that serve a traffic in the least time.

    Times come from the engine's table; batch sizes of the traffic that it lacks are timed first.
    """
    import trtbatch
    from trtbatch.core.hints import call
    from trtbatch.tuner.saving import refuse_unsaved
    from trtbatch.util.files import refuse_outputs
    from trtbatch.util.jsonfile import write_record

    refuse_outputs((json_, ".json", "--json"), inputs=[traffic])
    with show_progress() as (_, progress):
        result = trtbatch.plan(
            engine,
            traffic=traffic,
            max_profiles=max_profiles,
            from_table=from_table,
            save=not no_save,
            device=device,
            progress=progress,
        )
    console = out()
    arguments = dict(result.build)
    onnx = [arguments.pop("onnx")] if "onnx" in arguments else []
    if not result.by_batch_alone:
        console.print(_table(result))
    for line in _words(result):
        console.print(line, markup=False)
    line = as_typed(call("build", *onnx, **arguments))
    console.print(f"[bold]{plain(line)}[/]", soft_wrap=True)
    if result.saved:
        console.print("kept in the engine's sidecar")
    if json_ is not None:
        write_record(result, json_)
        console.print(f"[bold]{plain(str(json_))}[/]")
    refuse_unsaved(result.unkept)


def _table(result: PlanResult) -> Table:
    from rich.table import Table

    title = f"{result.traffic.file}: {result.requests:,} requests of {result.sizes} sizes · times of {result.engine}"
    columns = ("profiles", "opts", "ms/request", "total s", "most frequent", "powers of two", "")
    table = Table(*columns, title=plain(title), title_justify="left", title_style="bold")
    for column in table.columns[:-1]:
        column.justify = "right"
    for line in result.lines:
        table.add_row(
            str(line.profiles),
            ", ".join(map(str, line.opts)),
            f"{line.ms_per_request:.4g}",
            f"{line.total_ms / 1e3:,.4g}",
            f"{line.greedy_loss:+.1%}",
            f"{line.usual_loss:+.1%}",
            "[bold green]chosen[/]" if line.profiles == result.chosen.profiles else "",
        )
    return table


def _words(result: PlanResult) -> list[str]:
    """Return the lines that explain the choice of profiles; one where profiles don't differ in the times."""
    from trtbatch.tuner.plan import ENOUGH

    chosen = result.chosen
    if result.by_batch_alone:
        traffic = f"{result.traffic.file}: {result.requests:,} requests of {result.sizes} sizes"
        return [
            f"{traffic} take {chosen.ms_per_request:.4g} ms each with one profile, and no batch size was measured on "
            "two that could differ (ONNX Runtime runs all alike; for TensorRT build with --profiles auto)."
        ]
    many = "1 profile" if chosen.profiles == 1 else f"{chosen.profiles} profiles"
    lines = [
        f"{many}: the fewest within {ENOUGH:.0%} of the best, {chosen.ms_per_request:.4g} ms per request. As many for "
        f"the most frequent sizes ({_listed(chosen.greedy)}) take {chosen.greedy_loss:+.1%}, for powers of two "
        f"({_listed(chosen.usual)}) {chosen.usual_loss:+.1%}."
    ]
    if result.method == "every set":
        lines.append("Some batches are faster on a larger opt than on their own: every set was tried.")
    if result.method == "assumption":
        lines.append(
            "Some batches are faster on a larger opt than on their own, and the sets are too many to try. The choice "
            "takes it that each batch runs on the next larger opt, or on the best beyond it; it is within "
            f"{chosen.slack:.2%} of the best there is."
        )
    lines.append("Times between measured sizes and profiles are interpolated. To build it:")
    return lines


def _listed(opts: tuple[int, ...]) -> str:
    return ", ".join(map(str, opts))
