"""Draw the page's charts as SVG that loads nothing and uses the colours that the page defines; no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby, pairwise

from trtbatch.reporting.series import Metric, Point, Series
from trtbatch.reporting.theme import DASHES, LIGHT, MARKERS, AxisRange, apart, number, span, thinned, ticks, values_of

__all__ = ["chart", "figure", "sample"]

WIDTH, HEIGHT = 480, 340
"""Size of the drawing in its own units; it is small, so that letters stay legible on a phone."""

LEFT, RIGHT, TOP, BOTTOM = 76, 32, 14, 48

_ROW = 20
"""Height of one series' row of bounds."""

_SHORT = {"launch": "L", "memory": "M", "compute": "C", "copy": "Cp"}

_SHAPES = {
    "circle": "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "square": "M-3.6,-3.6h7.2v7.2h-7.2z",
    "triangle": "M0,-4.8L4.6,3.4H-4.6z",
    "diamond": "M0,-5.2L5.2,0L0,5.2L-5.2,0z",
    "down": "M0,4.8L4.6,-3.4H-4.6z",
    "plus": "M-1.5,-5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
    "cross": "M-5,-3L-3,-5L0,-2L3,-5L5,-3L2,0L5,3L3,5L0,2L-3,5L-5,3L-2,0z",
}


class _Place:
    """Map from batch sizes and values to the drawing's units."""

    def __init__(self, series: Sequence[Series], metric: Metric) -> None:
        self.batches = [point.batch for line in series for point in line.points]
        self.x_axis: AxisRange = span(self.batches, 0.04, 2.0)
        self.y_axis: AxisRange = span(values_of(series, metric))

    def x(self, batch: float) -> float:
        return LEFT + self.x_axis.share(batch) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self.y_axis.share(value) * (HEIGHT - BOTTOM - TOP)


def chart(series: Sequence[Series], metric: Metric, name: str, bounds: bool = False) -> str:
    """Return a chart of one metric of all series over the batch size, both axes logarithmic.

    Elements of series number *i* have the class ``s<i>``, by which the page hides them.

    Args:
        series: series to draw.
        metric: quantity on the vertical axis.
        name: start of every id, unique on the page.
        bounds: whether rows below the chart show what bounds each series at each batch.
    """
    place = _Place(series, metric)
    rows = [(index, line) for index, line in enumerate(series) if bounds and any(p.bound for p in line.points)]
    height = HEIGHT + (len(rows) * _ROW + 10 if rows else 0)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{name}-title {name}-desc">',
        f'<title id="{name}-title">{escape(f"{metric.name} ({metric.unit}) by batch size")}</title>',
        f'<desc id="{name}-desc">{escape(_description(series, metric))}</desc>',
        *_axes(place, metric),
        *(text for index, line in enumerate(series) for text in _band(index, line, metric, place)),
        *(text for index, line in enumerate(series) for text in _line(index, line, metric, place)),
        *_keys(series, metric, place),
        *(text for row, (index, line) in enumerate(rows) for text in _bounds(row, index, line, place)),
        "</svg>",
    ]
    return "\n".join(parts)


def sample(index: int) -> str:
    """Return a piece of a series' line with its marker, for the legend."""
    return (
        f'<svg class="sample" viewBox="0 0 44 14" width="44" height="14" aria-hidden="true" focusable="false">'
        f'<path d="M1,7H43" {_stroke(index)}/>{_marker(index, 22, 7)}</svg>'
    )


def _description(series: Sequence[Series], metric: Metric) -> str:
    """Describe the chart in words: where each series begins and ends, and its knee."""
    told = []
    for line in series:
        first, last = line.points[0], line.points[-1]
        ends = (f"{figure(metric.value(point.batch, point.ms))} at batch {point.batch}" for point in (first, last))
        knee = f"; knee at batch {line.knee}" if line.knee is not None else ""
        told.append(f"{line.key}, {line.label}: {' to '.join(dict.fromkeys(ends))}{knee}.")
    return " ".join([f"Both axes logarithmic, in {metric.unit}.", *told, "The tables below have every figure."])


def figure(value: float) -> str:
    """Format a figure to three digits, or as a whole number from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _axes(place: _Place, metric: Metric) -> Iterator[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for value in ticks(place.y_axis):
        y = place.y(value)
        yield f'<path class="grid" d="M{LEFT},{y:.1f}H{right}"/>'
        yield f'<text class="tick" x="{LEFT - 8}" y="{y + 4.5:.1f}" text-anchor="end">{number(value)}</text>'
    for batch in thinned(place.batches, place.x_axis, 0.075):
        x = place.x(batch)
        yield f'<path class="grid" d="M{x:.1f},{TOP}V{bottom}"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{batch}</text>'
    yield f'<path class="axis" d="M{LEFT},{TOP}V{bottom}H{right}"/>'
    yield f'<text class="name" x="{(LEFT + right) / 2:.1f}" y="{bottom + 38}" text-anchor="middle">batch size</text>'
    middle = (TOP + bottom) / 2
    yield (
        f'<text class="name" transform="translate(14,{middle:.1f}) rotate(-90)" text-anchor="middle">'
        f"{escape(metric.unit)}</text>"
    )


def _band(index: int, line: Series, metric: Metric, place: _Place) -> Iterator[str]:
    """Yield the band from the median to the 99th percentile, and a vertical stroke at each batch size.

    With a single batch size, only the stroke is visible.
    """
    known = [(point, point.p99) for point in line.points if point.p99 is not None]
    if not known:
        return
    there = [f"{place.x(p.batch):.1f},{place.y(metric.value(p.batch, p.ms)):.1f}" for p, _ in known]
    back = [f"{place.x(p.batch):.1f},{place.y(metric.value(p.batch, p99)):.1f}" for p, p99 in reversed(known)]
    yield f'<path class="band s{index} c{index % len(LIGHT)}" d="M{"L".join([*there, *back])}z"/>'
    for (_, _), low, high in zip(known, there, reversed(back), strict=True):
        yield f'<path class="whisker s{index} c{index % len(LIGHT)}" d="M{low}L{high}"/>'


def _line(index: int, line: Series, metric: Metric, place: _Place) -> Iterator[str]:
    yield f'<g class="s{index} c{index % len(LIGHT)}">'
    spots = [(place.x(p.batch), place.y(metric.value(p.batch, p.ms)), p) for p in line.points]
    path = "L".join(f"{x:.1f},{y:.1f}" for x, y, _ in spots)
    yield f'<path d="M{path}" {_stroke(index, coloured=False)}/>'
    for x, y, point in spots:
        hint = escape(f"{line.key}: {_hint(point, metric)}{', knee' if point.batch == line.knee else ''}")
        if point.batch == line.knee:
            yield f'<circle class="knee" cx="{x:.1f}" cy="{y:.1f}" r="9"/>'
        yield f"<g><title>{hint}</title>{_marker(index, x, y, coloured=False)}</g>"
    yield "</g>"


def _hint(point: Point, metric: Metric) -> str:
    told = f"batch {point.batch}, {figure(metric.value(point.batch, point.ms))} {metric.unit}"
    if point.p99 is not None:
        told += f" (p99 {figure(metric.value(point.batch, point.p99))})"
    return told if point.bound is None else f"{told}, {point.bound}-bound"


def _keys(series: Sequence[Series], metric: Metric, place: _Place) -> Iterator[str]:
    """Yield the letters at the ends of lines, moved apart where they would overlap."""
    ends = [line.points[-1] for line in series]
    places = apart([place.y(metric.value(point.batch, point.ms)) for point in ends], 14, HEIGHT - BOTTOM - 6)
    for index, (line, point, y) in enumerate(zip(series, ends, places, strict=True)):
        yield (
            f'<text class="key s{index} c{index % len(LIGHT)}" x="{place.x(point.batch) + 11:.1f}" y="{y + 5:.1f}" '
            f'aria-hidden="true">{line.key}</text>'
        )


def _bounds(row: int, index: int, line: Series, place: _Place) -> Iterator[str]:
    """Yield a row of boxes, one for each range of batch sizes with the same bound."""
    top = HEIGHT + row * _ROW
    yield f'<g class="s{index} c{index % len(LIGHT)}">'
    yield f'<text class="key" x="{LEFT - 10}" y="{top + 13}" text-anchor="end">{line.key}</text>'
    edges = _edges([place.x(point.batch) for point in line.points])
    for bound, group in groupby(zip(line.points, edges, strict=True), key=lambda pair: pair[0].bound):
        spans = [edge for _, edge in group]
        if bound is None:
            continue
        left, right = spans[0][0], spans[-1][1]
        text = bound if right - left >= 8 * len(bound) + 6 else _SHORT.get(bound, bound[:1].upper())
        size = f'width="{right - left - 2:.1f}" height="{_ROW - 3}"'
        place_of_text = f'x="{(left + right) / 2:.1f}" y="{top + 13}" text-anchor="middle"'
        yield f'<rect class="bound" x="{left + 1:.1f}" y="{top}" {size} rx="3"/>'
        yield f'<text class="tick" {place_of_text}>{escape(text)}</text>'
    yield "</g>"


def _edges(xs: Sequence[float]) -> list[tuple[float, float]]:
    """Return the extent of each place, up to the middle between it and its neighbours."""
    middles = [(first + second) / 2 for first, second in pairwise(xs)]
    reach = 12.0
    lefts = [max(float(LEFT - 4), xs[0] - reach), *middles]
    rights = [*middles, min(float(WIDTH - 4), xs[-1] + reach)]
    return list(zip(lefts, rights, strict=True))


def _stroke(index: int, coloured: bool = True) -> str:
    dashes = DASHES[index % len(DASHES)]
    kind = f'class="line c{index % len(LIGHT)}"' if coloured else 'class="line"'
    return f'{kind} stroke-dasharray="{" ".join(map(str, dashes))}"' if dashes else kind


def _marker(index: int, x: float, y: float, coloured: bool = True) -> str:
    kind = f"marker c{index % len(LIGHT)}" if coloured else "marker"
    shape = _SHAPES[MARKERS[index % len(MARKERS)]]
    return f'<path class="{kind}" transform="translate({x:.1f},{y:.1f})" d="{shape}"/>'
