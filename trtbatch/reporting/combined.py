"""Lay results of ``bench`` over each other, and write the table, the charts and the page that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trtbatch.benchmark.bench import BenchResult
from trtbatch.reporting import summary
from trtbatch.reporting.series import ARTICLE_MODEL, Series, series_of, shared
from trtbatch.util.notebook import html_table

__all__ = ["Report", "write_report"]


@dataclass(frozen=True, repr=False)
class Report:
    """Results in one picture: a series for each result and mode.

    Args:
        title: what all results have in common.
        written: files that were written.
    """

    series: tuple[Series, ...]
    title: str
    written: tuple[Path, ...]

    def __repr__(self) -> str:
        return f"Report({self.title!r}, {len(self.series)} series)"

    def _repr_html_(self) -> str:
        names = summary.columns(self.series)
        rows = [
            [line.key, *(summary.cells(line, point)[name] for name in names)]
            for line in self.series
            for point in line.points
        ]
        return html_table(self.title, ["series", *names], rows)


def write_report(
    results: Sequence[tuple[str, BenchResult]],
    html: Path | None,
    png: Path | None,
    svg: Path | None,
    markdown: Path | None,
    article: bool | None,
) -> Report:
    """Write the files that are asked for; those that need matplotlib first, so that without it there are none.

    Args:
        results: results, each with the name of its file.
        html: file of the page.
        png: file of the charts.
        svg: file of the charts, scalable.
        markdown: file of the table.
        article: whether to add the article's line; None adds it next to its own model.

    Raises:
        MissingPackageError: matplotlib isn't installed, and PNG or SVG is asked for.
    """
    if article is None:
        article = any(result.model.name == ARTICLE_MODEL for _, result in results)
    series, title = series_of(results, article), shared(results)
    written = []
    for path, kind in ((png, "png"), (svg, "svg")):
        if path is not None:
            from trtbatch.reporting.plot import write_plot

            write_plot(series, title, path, kind)
            written.append(path)
    if html is not None:
        from trtbatch.reporting.page import write_page

        write_page(series, title, html)
        written.append(html)
    if markdown is not None:
        summary.write_markdown(series, title, markdown)
        written.append(markdown)
    return Report(tuple(series), title, tuple(written))
