"""Draw a report's charts as one PNG or SVG picture with matplotlib; the same results give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtbatch.reporting.results import clean
from trtbatch.reporting.series import METRICS, Metric, Series
from trtbatch.reporting.theme import (
    DASHES,
    LIGHT,
    LIGHT_PAPER,
    MARKERS,
    AxisRange,
    apart,
    number,
    span,
    thinned,
    ticks,
    values_of,
)
from trtbatch.util import optional
from trtbatch.util.files import atomic_file

__all__ = ["write_plot"]

_MARKS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "down": "v", "plus": "P", "cross": "X"}

_SETTINGS = {
    "text.parse_math": False,  # names from files may hold dollars
    "text.usetex": False,
    "svg.hashsalt": "trtbatch",  # else ids are random
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # matplotlib includes it
    "font.size": 10,
}

_UNDATED: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": "trtbatch"},
}


def write_plot(series: Sequence[Series], title: str, path: Path, kind: str) -> None:
    """Draw time per batch, throughput and time per sample next to each other; write the file complete or not at all.

    `kind` is ``png`` or ``svg``.

    Raises:
        MissingPackageError: matplotlib isn't installed.
    """
    matplotlib: Any = optional.require("matplotlib", f"draw {kind.upper()} charts")
    figures: Any = optional.require("matplotlib.figure", f"draw {kind.upper()} charts")
    with matplotlib.rc_context(), atomic_file(path) as made:
        matplotlib.rcdefaults()  # ignore the user's matplotlibrc
        matplotlib.rcParams.update(_SETTINGS)
        figure = figures.Figure(figsize=(15, 5.2 + 0.22 * len(series)), dpi=110, facecolor=LIGHT_PAPER)
        axes = figure.subplots(1, len(METRICS))
        for axis, metric in zip(axes, METRICS, strict=True):
            _draw(axis, series, metric)
        handles, _ = axes[0].get_legend_handles_labels()
        labels = [f"{line.key}  {clean(line.label)}{_knee(line)}" for line in series]
        figure.suptitle(clean(title), fontweight="bold")
        figure.legend(handles, labels, loc="outside lower center", frameon=False)
        figure.set_layout_engine("constrained")
        figure.savefig(made, format=kind, metadata=_UNDATED[kind])


def _knee(line: Series) -> str:
    return "" if line.knee is None else f" (knee at batch {line.knee})"


def _draw(axis: Any, series: Sequence[Series], metric: Metric) -> None:
    batches = [point.batch for line in series for point in line.points]
    x_axis, y_axis = span(batches, 0.04, 2.0), span(values_of(series, metric))
    axis.set_xscale("log")
    axis.set_yscale("log")
    for index, line in enumerate(series):
        _draw_series(axis, index, line, metric)
    _name_ends(axis, series, metric, y_axis)
    named = thinned(batches, x_axis, 0.06)
    _set_ticks(axis.xaxis, [float(batch) for batch in named], [str(batch) for batch in named])
    upright = ticks(y_axis)
    _set_ticks(axis.yaxis, upright, [number(value) for value in upright])
    _set_range(axis.set_xlim, x_axis)
    _set_range(axis.set_ylim, y_axis)
    axis.set_xlabel("batch size")
    axis.set_ylabel(metric.unit)
    axis.set_title(metric.name)
    axis.grid(True, color="#d3d9df", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_series(axis: Any, index: int, line: Series, metric: Metric) -> None:
    colour = LIGHT[index % len(LIGHT)]
    dashes = DASHES[index % len(DASHES)]
    values = [metric.value(point.batch, point.ms) for point in line.points]
    axis.plot(
        [point.batch for point in line.points],
        values,
        color=colour,
        marker=_MARKS[MARKERS[index % len(MARKERS)]],
        markersize=5,
        linestyle=(0, tuple(stroke / 2 for stroke in dashes)) if dashes else "solid",
        label=line.key,
    )
    known = [point for point in line.points if point.p99 is not None]
    if known:
        medians = [metric.value(point.batch, point.ms) for point in known]
        far = [metric.value(point.batch, point.p99) for point in known if point.p99 is not None]
        axis.fill_between([point.batch for point in known], medians, far, color=colour, alpha=0.16, linewidth=0)
    for point, value in zip(line.points, values, strict=True):
        if point.batch == line.knee:
            axis.plot(
                [point.batch], [value], "o", markersize=13, markerfacecolor="none", color=colour, markeredgewidth=1.6
            )


def _name_ends(axis: Any, series: Sequence[Series], metric: Metric, y_axis: AxisRange) -> None:
    ends = [line.points[-1] for line in series]
    places = apart([y_axis.share(metric.value(point.batch, point.ms)) for point in ends], 0.03, 1.0)
    for index, (line, point, place) in enumerate(zip(series, ends, places, strict=True)):
        axis.annotate(
            line.key,
            (point.batch, place),
            (9, -4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=LIGHT[index % len(LIGHT)],
            weight="bold",
        )


def _set_ticks(axis: Any, places: Sequence[float], labels: Sequence[str]) -> None:
    axis.set_ticks(places, labels)
    axis.set_ticks([], minor=True)


def _set_range(setter: Any, axis: AxisRange) -> None:
    setter(axis.low, axis.high)
