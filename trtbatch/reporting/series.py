"""Turn results into series over the batch size, which reports draw, label and mark; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp

import numpy as np

from trtbatch.benchmark.bench import BatchResult, BenchResult
from trtbatch.reporting.results import clean, kept_ms

__all__ = [
    "ARTICLE_MODEL",
    "ARTICLE_MS",
    "BOUNDS",
    "KNEE_LIMIT",
    "METRICS",
    "Metric",
    "Point",
    "Series",
    "article",
    "gpu_of",
    "key",
    "knee",
    "rate",
    "series_of",
    "shared",
    "version_of",
]

ARTICLE_MS = {1: 1.57, 2: 1.67, 4: 1.78, 6: 2.67, 8: 2.81, 12: 3.83, 16: 4.80, 24: 6.43, 32: 8.65}
"""ms for the whole batch of resnet18 on a V100, from the article that this project began with."""

ARTICLE_MODEL = "resnet18"

KNEE_LIMIT = 1.1
"""Least ratio of the throughput at a knee to the power law between the curve's ends. A smaller ratio is noise: a stable
line is known to 1 %."""

BOUNDS = {
    "enqueue-bound": "launch",
    "launch-bound": "launch",
    "memory-bound": "memory",
    "compute-bound": "compute",
    "copy-bound": "copy",
}
"""Short names of the bounds in results."""


@dataclass(frozen=True)
class Point:
    """One batch size; times in ms per batch.

    Args:
        ms: median.
        p99: 99th percentile; None where single times aren't known.
        bound: ``launch``, ``memory``, ``compute`` or ``copy``; None where it isn't known.
        runs: number of samples behind the figures; 0 where it isn't known.
        verdict: ``stable``, or what wasn't reached; empty where it isn't known.
        window: number of batches whose mean is one sample.
    """

    batch: int
    ms: float
    p99: float | None = None
    bound: str | None = None
    runs: int = 0
    verdict: str = ""
    window: int = 1

    @property
    def samples_per_s(self) -> float:
        """Return the throughput at the median time."""
        return self.batch / self.ms * 1e3


@dataclass(frozen=True)
class Series:
    """One engine in one mode over its batch sizes.

    Args:
        key: letter that names the series in charts, tables and the legend.
        label: facts that distinguish the series from the others.
        points: points in order of batch size.
        mode: mode of the timing loop.
        result: result behind the series; None for the article's.
    """

    key: str
    label: str
    points: tuple[Point, ...]
    mode: str = ""
    result: BenchResult | None = None

    @property
    def knee(self) -> int | None:
        """Return the batch size of the knee, see :func:`knee`."""
        return knee([point.batch for point in self.points], [point.samples_per_s for point in self.points])

    @property
    def best(self) -> Point:
        """Return the point with the most samples/s."""
        return max(self.points, key=lambda point: point.samples_per_s)


@dataclass(frozen=True)
class Metric:
    """Quantity on a chart's vertical axis, as a function of the batch size and the ms per batch."""

    name: str
    unit: str
    value: Callable[[int, float], float]


METRICS = (
    Metric("Time per batch", "ms", lambda batch, ms: ms),
    Metric("Throughput", "samples/s", lambda batch, ms: batch / ms * 1e3),
    Metric("Time per sample", "ms", lambda batch, ms: ms / batch),
)


def rate(samples_per_s: float) -> str:
    """Format samples/s for people, with the same digits in every table and chart."""
    return f"{samples_per_s:,.0f}" if samples_per_s >= 100 else f"{samples_per_s:.3g}"


def knee(batches: Sequence[int], samples_per_s: Sequence[float]) -> int | None:
    """Return the batch size from which larger batches gain less: the point farthest above the chord in log-log.

    This is the Kneedle rule (Satopää, Albrecht, Irwin, Raghavan, Finding a "Kneedle" in a Haystack, ICDCS workshops
    2011) without its smoothing: the knee of a concave curve is the point farthest from the line through its ends. The
    vertical and the perpendicular distance from a chord are largest at the same point. In logarithms the chord is the
    power law through the ends, so units and scales don't matter, only the measured range: for ms = t₀ + t₁·batch the
    knee is batch = t₀/t₁ where that is the middle of the range.

    Args:
        batches: rising batch sizes, at least 1.
        samples_per_s: throughput at each batch size, above 0.

    Returns:
        One of `batches`; None for fewer than three of them, and where the distance is under :data:`KNEE_LIMIT`: on a
        straight line, whether scaling is perfect or absent, and on a line that bends upward.
    """
    if len(batches) < 3:
        return None
    x, y = np.log(np.asarray(batches, np.float64)), np.log(np.asarray(samples_per_s, np.float64))
    above = y - (y[0] + (y[-1] - y[0]) * (x - x[0]) / (x[-1] - x[0]))
    farthest = int(np.argmax(above))
    return batches[farthest] if exp(float(above[farthest])) >= KNEE_LIMIT else None


def series_of(results: Sequence[tuple[str, BenchResult]], with_article: bool = False) -> list[Series]:
    """Return one series for each result and mode, labelled by what differs among them.

    Args:
        results: file name and result of each.
        with_article: whether the article's series comes last.
    """
    found = [(name, mode, result) for name, result in results for mode in _modes(result)]
    labels = _labels([_facts(name, mode, result) for name, mode, result in found])
    lines = [
        Series(
            key(index),
            labels[index],
            tuple(_point(row) for row in sorted(result.batches, key=lambda row: row.batch) if row.mode == mode),
            mode,
            result,
        )
        for index, (_, mode, result) in enumerate(found)
    ]
    return [*lines, article(key(len(lines)))] if with_article else lines


def article(letter: str) -> Series:
    """Return the series of the article, of which only the times of its table are known."""
    points = tuple(Point(batch, ms) for batch, ms in ARTICLE_MS.items())
    return Series(letter, f"{ARTICLE_MODEL} · V100, from the article", points)


def key(index: int) -> str:
    """Return the letter of a series: A to Z, then AA, AB and so on."""
    letter = chr(ord("A") + index % 26)
    return letter if index < 26 else key(index // 26 - 1) + letter


def shared(results: Sequence[tuple[str, BenchResult]]) -> str:
    """Return the title of a report: what all results have in common, else their models."""
    facts = [_facts(name, "", result)[:4] for name, result in results]
    common = [column[0] for column in zip(*facts, strict=True) if len(set(column)) == 1]
    return " · ".join(common) or " and ".join(dict.fromkeys(fact[0] for fact in facts))


def gpu_of(result: BenchResult) -> str:
    """Return the GPU's name, else the processor's."""
    return (
        result.device.get("gpu") or result.device.get("cpu") or str(result.environment.get("cpu") or "unknown device")
    )


def version_of(result: BenchResult) -> str:
    """Return the version of the backend that ran, else of the one that built; empty where neither is recorded."""
    libraries = result.environment.get("libraries")
    ran = libraries.get(result.backend) if isinstance(libraries, dict) else None
    return str(ran or result.tools.get(result.backend) or "")


def _modes(result: BenchResult) -> list[str]:
    return list(dict.fromkeys(row.mode for row in result.batches))


def _point(row: BatchResult) -> Point:
    samples = kept_ms(row)
    bound = None if row.bound is None else BOUNDS.get(row.bound, row.bound)
    return Point(
        batch=row.batch,
        ms=float(np.median(samples)),
        p99=float(np.percentile(samples, 99)),
        bound=None if bound is None else clean(bound, 20),
        runs=int(samples.size),
        verdict=clean(row.verdict or ("stable" if row.summary.stable else "unstable"), 30),
        window=row.window,
    )


def _facts(name: str, mode: str, result: BenchResult) -> tuple[str, ...]:
    """Return facts that may distinguish series, the most important first."""
    settings = result.settings
    return tuple(
        clean(fact)
        for fact in (
            result.model.name,
            f"{result.backend} {version_of(result)}".strip(),
            result.precision,
            gpu_of(result),
            f"profiles {', '.join(map(str, result.profiles))}" if result.profiles else "",
            mode,
            f"streams {settings['streams']}" if settings.get("streams", 1) != 1 else "",
            f"profile {settings['profile']}" if settings.get("profile") is not None else "",
            result.engine,
            name,
        )
    )


def _labels(facts: Sequence[tuple[str, ...]]) -> list[str]:
    """Return for each series the facts that differ among all of them.

    The last two facts, engine and file, are used only where the others don't distinguish all series.
    """
    if len(facts) == 1:
        return [" · ".join(facts[0][:4])]
    labels: list[list[str]] = [[] for _ in facts]
    columns = list(zip(*facts, strict=True))
    for number, column in enumerate(columns):
        told_apart = len({tuple(label) for label in labels}) == len(labels)
        if len(set(column)) > 1 and not (told_apart and number >= len(columns) - 2):
            for label, fact in zip(labels, column, strict=True):
                label.append(fact)
    named = [" · ".join(part for part in label if part) or fact[0] for label, fact in zip(labels, facts, strict=True)]
    return [
        f"{name} ({named[:index].count(name) + 1})" if named.count(name) > 1 else name
        for index, name in enumerate(named)
    ]
