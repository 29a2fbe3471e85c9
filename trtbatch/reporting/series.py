"""Results as lines over the batch size: what reports draw, label and mark. Pure."""

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
"""resnet18 on a V100: ms for the whole batch, all time, as the article that this project began with gives them."""

ARTICLE_MODEL = "resnet18"

KNEE_LIMIT = 1.1
"""A curve has a knee where its throughput is at least so many times that of the power law between its ends. Less is
noise: a stable line is known to 1 %."""

BOUNDS = {
    "enqueue-bound": "launch",
    "launch-bound": "launch",
    "memory-bound": "memory",
    "compute-bound": "compute",
    "copy-bound": "copy",
}
"""Bounds that results name, and what is short for them."""


@dataclass(frozen=True)
class Point:
    """One batch size; times in ms per batch.

    Args:
        ms: the median.
        p99: 99th percentile; None where single times aren't known.
        bound: ``launch``, ``memory``, ``compute``, ``copy``; None where that isn't known.
        runs: samples that the figures are of; 0 where that isn't known.
        verdict: ``stable``, or what was not reached; empty where that isn't known.
        window: batches that one sample is the mean of.
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
        return self.batch / self.ms * 1e3


@dataclass(frozen=True)
class Series:
    """One engine in one mode over its batch sizes.

    Args:
        key: a letter, by which charts, tables and legend name it.
        label: what it is, as far as that tells it from the others.
        points: by batch size.
        mode: of the timing loop.
        result: that it is from; None for the article's.
    """

    key: str
    label: str
    points: tuple[Point, ...]
    mode: str = ""
    result: BenchResult | None = None

    @property
    def knee(self) -> int | None:
        """The batch size of the knee, see :func:`knee`."""
        return knee([point.batch for point in self.points], [point.samples_per_s for point in self.points])

    @property
    def best(self) -> Point:
        """The point with the most samples/s."""
        return max(self.points, key=lambda point: point.samples_per_s)


@dataclass(frozen=True)
class Metric:
    """What a chart has on its upright axis, as a function of the batch size and the ms per batch."""

    name: str
    unit: str
    value: Callable[[int, float], float]


METRICS = (
    Metric("Time per batch", "ms", lambda batch, ms: ms),
    Metric("Throughput", "samples/s", lambda batch, ms: batch / ms * 1e3),
    Metric("Time per sample", "ms", lambda batch, ms: ms / batch),
)


def rate(samples_per_s: float) -> str:
    """Samples/s for people: in every table and chart the same digits."""
    return f"{samples_per_s:,.0f}" if samples_per_s >= 100 else f"{samples_per_s:.3g}"


def knee(batches: Sequence[int], samples_per_s: Sequence[float]) -> int | None:
    """The batch size from which larger batches buy less: the point farthest above the chord in log-log.

    The Kneedle rule (Satopää, Albrecht, Irwin, Raghavan, Finding a "Kneedle" in a Haystack, ICDCS workshops 2011)
    without its smoothing: the knee of a concave curve is where it is farthest from the line through its ends. Of one
    chord, the upright and the perpendicular distance are largest at the same point. In logarithms the chord is the
    power law through the ends, so neither units nor scales matter, only the range that was measured: for
    ms = t₀ + t₁·batch the knee is batch = t₀/t₁ where the range has that in its middle.

    Args:
        batches: rising, at least 1.
        samples_per_s: over 0.

    Returns:
        One of `batches`; None below three of them, and where the distance is under :data:`KNEE_LIMIT`: on a straight
        line, be it of perfect scaling or of none, and on one that bends upward.
    """
    if len(batches) < 3:
        return None
    x, y = np.log(np.asarray(batches, np.float64)), np.log(np.asarray(samples_per_s, np.float64))
    above = y - (y[0] + (y[-1] - y[0]) * (x - x[0]) / (x[-1] - x[0]))
    farthest = int(np.argmax(above))
    return batches[farthest] if exp(float(above[farthest])) >= KNEE_LIMIT else None


def series_of(results: Sequence[tuple[str, BenchResult]], with_article: bool = False) -> list[Series]:
    """One series for each result and mode, labelled by what differs among them.

    Args:
        results: with the name of each one's file.
        with_article: the article's line comes last.
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
    """The line of the article: the times of its table, of which nothing but the figures is known."""
    points = tuple(Point(batch, ms) for batch, ms in ARTICLE_MS.items())
    return Series(letter, f"{ARTICLE_MODEL} · V100, from the article", points)


def key(index: int) -> str:
    """A to Z, then AA, AB …"""
    letter = chr(ord("A") + index % 26)
    return letter if index < 26 else key(index // 26 - 1) + letter


def shared(results: Sequence[tuple[str, BenchResult]]) -> str:
    """What all results have in common: the title of a report."""
    facts = [_facts(name, "", result)[:4] for name, result in results]
    common = [column[0] for column in zip(*facts, strict=True) if len(set(column)) == 1]
    return " · ".join(common) or " and ".join(dict.fromkeys(fact[0] for fact in facts))


def gpu_of(result: BenchResult) -> str:
    """The GPU's name, else the processor's."""
    return (
        result.device.get("gpu") or result.device.get("cpu") or str(result.environment.get("cpu") or "unknown device")
    )


def version_of(result: BenchResult) -> str:
    """Version of the backend that ran, else of the one that built; empty where neither is told."""
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
    """What may tell one series from another, the most telling first."""
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
    """Of each, the facts in which not all are alike; the last two, engine and file, only where the others are."""
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
