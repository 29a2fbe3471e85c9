"""Define the command ``trtbatch compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtbatch.cli.console import Debug, err, out, plain
from trtbatch.cli.wording import as_typed

__all__ = ["command"]


def command(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="What bench --json wrote before.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="… and after: what the verdicts are of.")],
    fail_if_slower: Annotated[
        str | None,
        typer.Option(
            metavar="P%",
            help="Exit code 1 where B's median is more than P% slower and the whole interval above 1; 3 where nothing "
            "is, and a line has fewer than 30 runs, too few to judge it.",
        ),
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="All figures.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown instead.")] = False,
    debug: Debug = False,
) -> None:
    """Compare two results of bench: is B FASTER, SLOWER or the SAME as A, batch by batch?

    Two runs also differ by the state of the machine: what is known of that is warned of. bench --against tells
    smaller differences.
    """
    import trtbatch
    from trtbatch.reporting import regression_report
    from trtbatch.util.files import refuse_outputs
    from trtbatch.util.log import warn

    limit = None if fail_if_slower is None else _share(fail_if_slower)
    refuse_outputs((json_, ".json", "--json"), inputs=[a, b])
    comparison = trtbatch.compare(a, b, fail_if_slower=limit)
    unjudged = limit is not None and not comparison.failures and bool(comparison.unjudged)
    console = out()
    if markdown:
        console.print(regression_report.comparison_markdown(comparison), markup=False, soft_wrap=True, end="")
    else:
        console.print(regression_report.comparison_table(comparison))
        for note in regression_report.comparison_notes(comparison):
            console.print(as_typed(note), style="dim", markup=False)
        style = "bold red" if comparison.failures else "bold yellow" if unjudged else "bold"
        console.print(regression_report.conclusion(comparison), style=style, markup=False)
    for text in regression_report.warnings(comparison):
        warn(text)
    if json_ is not None:
        regression_report.write_comparison(comparison, json_)
        (err() if markdown else console).print(f"[bold]{plain(str(json_))}[/]")
    if comparison.failures:
        raise typer.Exit(1)
    if unjudged:
        raise typer.Exit(regression_report.UNJUDGED)


def _share(text: str) -> float:
    """Parse a share of A's time, ``5%`` or ``0.05``.

    Raises:
        UsageError: another form; ``5`` could mean either of them.
    """
    from trtbatch.errors import UsageError

    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UsageError(
            f"--fail-if-slower {text!r} is not a share of A's time", "write it like 5% or 0.05: from 0, below 100%"
        )
    return value
