"""Define the look of series, the same on the page and in pictures: colours, dashes, markers, axes; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log, log10, sqrt

from trtbatch.reporting.series import Metric, Series

__all__ = [
    "DARK",
    "DARK_PAPER",
    "DASHES",
    "LIGHT",
    "LIGHT_PAPER",
    "MARKERS",
    "AxisRange",
    "apart",
    "number",
    "span",
    "thinned",
    "ticks",
    "values_of",
]

LIGHT = ("#0b5cad", "#b3400a", "#00705a", "#8a2b8f", "#5f5a00", "#a3173f")
DARK = ("#7db8ff", "#ffb07c", "#5fd6b8", "#e3a3ea", "#d6d06a", "#ff9db5")
"""Colours of lines and of the text that names them. Their contrast with the paper is at least 4.5:1, which WCAG 2.2
asks of text (1.4.3). After six series the colours repeat, with other dashes and markers."""

LIGHT_PAPER, DARK_PAPER = "#ffffff", "#14181d"

DASHES: tuple[tuple[int, ...], ...] = ((), (8, 4), (2, 3), (10, 3, 2, 3), (14, 4), (6, 2, 2, 2, 2, 2), (4, 4))
"""Lengths of strokes and gaps. There are seven, as of markers, and six colours: seven series differ without colours,
forty-two with them."""

MARKERS = ("circle", "square", "triangle", "diamond", "down", "plus", "cross")


@dataclass(frozen=True)
class AxisRange:
    """Range of a logarithmic axis."""

    low: float
    high: float

    def share(self, value: float) -> float:
        """Return the position of `value` on the axis: 0 at `low`, 1 at `high`."""
        return log(value / self.low) / log(self.high / self.low)


def span(values: Sequence[float], margin: float = 0.06, least: float = 1.3) -> AxisRange:
    """Return the range of an axis that shows all values, with some room at both ends.

    Args:
        values: values to show, above 0.
        margin: room at each end, as a share of the values' range on the axis.
        least: least ratio of high to low, so that nearly equal values look nearly equal.
    """
    low, high = min(values), max(values)
    if high / low < least:
        middle = sqrt(low) * sqrt(high)
        low, high = middle / sqrt(least), middle * sqrt(least)
    room = (high / low) ** margin
    return AxisRange(low / room, high * room)


def values_of(series: Sequence[Series], metric: Metric) -> list[float]:
    """Return all values that a chart of a metric shows: the medians, and the far ends of their bands."""
    return [
        metric.value(point.batch, ms)
        for line in series
        for point in line.points
        for ms in (point.ms, point.p99)
        if ms is not None
    ]


def ticks(axis: AxisRange) -> list[float]:
    """Return round numbers on a logarithmic axis, four or more."""
    first, last = floor(log10(axis.low)), ceil(log10(axis.high))
    for digits in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)):
        found = [float(f"{digit}e{power}") for power in range(first, last + 1) for digit in digits]
        inside = [value for value in found if axis.low <= value <= axis.high]
        if len(inside) >= 4:
            return inside[:: ceil(len(inside) / 9)]
    step = float(f"1e{floor(log10(axis.high - axis.low))}")
    while (axis.high - axis.low) / step < 4:
        step /= 2
    return [float(f"{index * step:.10g}") for index in range(ceil(axis.low / step), floor(axis.high / step) + 1)]


def thinned(batches: Sequence[int], axis: AxisRange, nearest: float) -> list[int]:
    """Return the batch sizes to label on an axis, at least the share `nearest` of its length apart.

    The largest is always labelled; the others are chosen from the smallest on.
    """
    if not batches:
        return []
    ordered = sorted(set(batches))
    kept: list[int] = []
    for batch in ordered[:-1]:
        place = axis.share(batch)
        if (not kept or place - axis.share(kept[-1]) >= nearest) and axis.share(ordered[-1]) - place >= nearest:
            kept.append(batch)
    return [*kept, ordered[-1]]


def apart(places: Sequence[float], least: float, most: float) -> list[float]:
    """Return places for the names at the ends of lines, moved to be at least `least` apart.

    Places move up as little as possible, and down again where the last would exceed `most`.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for before, index in pairwise(order):
        moved[index] = max(moved[index], moved[before] + least)
    ceiling = most
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - least
    return moved


def number(value: float) -> str:
    """Format a tick's label, with no more digits than needed and thousands separated."""
    if value >= 1e6 or value < 1e-4:
        return f"{value:.3g}"
    return f"{value:,.6g}"
