"""Define the command ``trtbatch report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from trtbatch.cli.console import Debug, err, fitting, out, plain
from trtbatch.cli.wording import as_typed

if TYPE_CHECKING:
    from trtbatch.reporting.series import Series

__all__ = ["Command", "command"]

PRINT = "-"
"""Value of ``--markdown`` where no file is named."""


class Command(TyperCommand):
    """Command whose ``--markdown`` may stand alone: it takes a file only where the next word ends in .md."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, with :data:`PRINT` after each ``--markdown`` that names no file."""
        return super().parse_args(ctx, _with_value(args))


def _with_value(args: Sequence[str]) -> list[str]:
    made: list[str] = []
    for index, word in enumerate(args):
        if word == "--":
            return [*made, *args[index:]]
        made.append(word)
        if word == "--markdown" and not (index + 1 < len(args) and args[index + 1].endswith(".md")):
            made.append(PRINT)
    return made


def command(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT.json...", help="What bench --json wrote.")],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="A page that opens offline: charts and tables.")
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="The charts as a picture.")] = None,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="The charts, scalable.")] = None,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="[FILE]", help="The table as Markdown; printed where no FILE.md follows."),
    ] = None,
    article: Annotated[
        bool | None,
        typer.Option(
            "--article/--no-article", help="The article's V100 line. \\[default: next to results of resnet18]"
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Lay results of bench over each other: table, charts, page.

    Without an option, the table and a small chart are printed. The knee, from where larger batches buy less, is
    marked in all of them.
    """
    import trtbatch
    from trtbatch.util.files import refuse_outputs

    text = None if markdown is None or str(markdown) == PRINT else markdown
    refuse_outputs(
        (html, ".html", "--html"),
        (png, ".png", "--png"),
        (svg, ".svg", "--svg"),
        (text, ".md", "--markdown"),
        inputs=results,
    )
    made = trtbatch.report(results, html=html, png=png, svg=svg, markdown=text, article=article)
    series, title, written = made.series, made.title, made.written
    if text is None and markdown is not None:
        from trtbatch.reporting.summary import markdown as as_markdown

        out().print(as_markdown(series, title), markup=False, soft_wrap=True, end="")
    elif not written:
        _show(series, title)
    for path in written:  # the printed Markdown may be redirected into a file
        (out() if markdown is None or text is not None else err()).print(f"[bold]{plain(str(path))}[/]")


def _show(series: Sequence[Series], title: str) -> None:
    from trtbatch.reporting import summary
    from trtbatch.reporting.charts import rate_chart

    console = out()
    console.print(fitting(console, summary.table(series, title), summary.table(series, title, brief=True)))
    for line in series:
        named = f"{line.key}: {line.label}; " if len(series) > 1 else ""
        console.print(f"{named}{summary.summary(line)}", markup=False)
    for note in summary.notes(series):
        console.print(as_typed(note), style="dim", markup=False)
    for text in rate_chart(series, [line.key for line in series], console.width, console.options.ascii_only):
        console.print(text, markup=False, no_wrap=True)
