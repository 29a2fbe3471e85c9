"""Draw small bar charts for terminals, of block characters, or of # in ASCII; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trtbatch.reporting.series import Series, rate

__all__ = ["Bar", "bars", "rate_chart"]

_EIGHTHS = "▏▎▍▌▋▊▉█"

_SHORTEST = 20
"""Fewest characters for the longest bar; with less room there is no chart."""

_LONGEST = 60


@dataclass(frozen=True)
class Bar:
    """One line of a chart: `name`, a bar as long as `value`, then `text`."""

    name: str
    value: float
    text: str


def bars(lines: Sequence[Bar], width: int, ascii_only: bool = False) -> list[str]:
    """Return the lines of a chart at most `width` characters wide; none where that is too narrow or all values are 0.

    Bars begin at 0 and share a scale. Values are at least 0.
    """
    names = max((len(line.name) for line in lines), default=0)
    room = min(_LONGEST, width - names - 2 - max((len(line.text) for line in lines), default=0))
    largest = max((line.value for line in lines), default=0.0)
    if room < _SHORTEST or largest <= 0:
        return []
    return [f"{line.name:>{names}} {_bar(line.value / largest * room, ascii_only)} {line.text}" for line in lines]


def _bar(length: float, ascii_only: bool) -> str:
    if ascii_only:
        return "#" * max(1, round(length))
    eighths = max(1, round(length * 8))
    return _EIGHTHS[-1] * (eighths // 8) + (_EIGHTHS[eighths % 8 - 1] if eighths % 8 else "")


def rate_chart(series: Sequence[Series], names: Sequence[str], width: int, ascii_only: bool = False) -> list[str]:
    """Return a chart of samples/s over the batch size, one bar per series and batch, with the knees marked.

    Args:
        series: series to draw.
        names: name of each series in the chart.
        width: most characters of a line.
        ascii_only: whether bars are of # instead of block characters.

    Returns:
        Lines of the chart, heading first; none with a single batch size or too little room.
    """
    batches = sorted({point.batch for line in series for point in line.points})
    if len(batches) < 2:
        return []
    digits, wide = len(str(batches[-1])), max(map(len, names))
    found = []
    for batch in batches:
        shown = f"{batch:>{digits}}"
        for line, name in zip(series, names, strict=True):
            for point in line.points:
                if point.batch == batch:
                    label = f"{shown} {name:<{wide}}" if len(series) > 1 else shown
                    mark = "  knee" if line.knee == batch else ""
                    found.append(Bar(label, point.samples_per_s, f"{rate(point.samples_per_s)}{mark}"))
                    shown = " " * digits
    drawn = bars(found, width, ascii_only)
    return ["samples/s by batch size", *drawn] if drawn else []
