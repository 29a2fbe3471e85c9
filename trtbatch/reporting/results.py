"""Read results of ``trtbatch bench --json``, and check them: files may be damaged, foreign or hostile."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.benchmark.bench import THROTTLED, BatchResult, BenchResult
from trtbatch.core.batches import MAX_BATCH
from trtbatch.errors import ArtifactError, TrtbatchError
from trtbatch.util.serialization import RecordError, decode

__all__ = ["bench_result", "clean", "kept_ms", "read_result"]

Milliseconds = NDArray[np.float64]

_FORMAT = 1
"""Newest format that this release knows."""

_RANGE_MS = (1e-9, 1e12)
"""Shortest and longest time of a batch. Other numbers are damage, and wouldn't fit on an axis."""


def read_result(path: Path) -> BenchResult:
    """Read the result in a file.

    Raises:
        ArtifactError: the file is missing, isn't JSON, or isn't a result of ``bench``.
        OSError: the file can't be read.
    """
    if path.suffix in (".engine", ".plan", ".onnx") and path.is_file():
        what = "an ONNX file" if path.suffix == ".onnx" and not path.name.endswith(".ort.onnx") else "an engine"
        raise ArtifactError(f"{path} is {what}, not a result of bench", "measure it: trtbatch bench ENGINE --json FILE")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} doesn't exist", "trtbatch bench --json FILE writes results") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not a result: it isn't text", _fix()) from error
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        words = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise ArtifactError(f"{path} is damaged, or not JSON: {words}", _fix()) from error
    return bench_result(data, str(path))


def bench_result(data: Any, name: str) -> BenchResult:
    """Decode a result and check it, so that later code may divide and take logarithms.

    Args:
        data: decoded JSON.
        name: name of the file, for error messages.

    Raises:
        ArtifactError: the data has another form, or impossible figures.
    """
    foreign = _foreign(data)
    if foreign is not None:
        raise ArtifactError(f"{name} is not a result of one engine: it is {foreign}", _fix())
    try:
        result = decode(BenchResult, data)
    except RecordError as error:
        raise ArtifactError(f"{name} is not a result of bench, or damaged: {error}", _fix()) from error
    except OverflowError as error:
        raise ArtifactError(f"{name} is damaged: a number without end", _fix()) from error
    except TrtbatchError as error:
        raise ArtifactError(f"{name} is damaged: {error.problem}", _fix()) from error
    if result.format_version > _FORMAT:
        raise ArtifactError(
            f"{name} was written by a newer trtbatch", "update trtbatch, or measure again with this one"
        )
    wrong = _wrong(result.batches)
    if wrong is not None:
        raise ArtifactError(f"{name} is damaged: {wrong}", _fix())
    return result


def _fix() -> str:
    return "give a file that trtbatch bench --json wrote, or measure again"


def _foreign(data: Any) -> str | None:
    """Return what the data is instead of a result; None where it may be one."""
    if not isinstance(data, dict):
        return f"a JSON {'list' if isinstance(data, list) else 'value'}"
    if "artifact" in data and "batches" not in data:
        return "the sidecar of an artifact"
    if "lines" not in data or "batches" in data:
        return None
    return "what bench `against` wrote" if "a" in data and "b" in data else "what bench `compare_profiles` wrote"


def _wrong(rows: Sequence[BatchResult]) -> str | None:
    """Return what is impossible in the rows; None where nothing is."""
    if not rows:
        return "it has no batches"
    seen: set[tuple[int, str]] = set()
    for row in rows:
        where = f"batch {row.batch} ({row.mode})"
        if not 1 <= row.batch <= MAX_BATCH:
            return f"{where} is not a batch size"
        if (row.batch, row.mode) in seen:
            return f"{where} is there twice"
        if not row.samples_ms:
            return f"{where} has no samples"
        if not all(math.isfinite(ms) and _RANGE_MS[0] <= ms <= _RANGE_MS[1] for ms in row.samples_ms):
            return f"{where} has samples that are no times"
        if not all(0 <= first < end <= len(row.samples_ms) for first, end in row.bad):
            return f"{where} names bad samples that it hasn't"
        seen.add((row.batch, row.mode))
    return None


def kept_ms(row: BatchResult) -> Milliseconds:
    """Return the samples behind a row's figures, in ms per batch, in the order they were taken.

    Samples taken while the GPU's clocks were unsteady are left out, unless more than half are such samples.
    """
    samples = np.asarray(row.samples_ms, np.float64)
    keep = np.ones(samples.size, np.bool_)
    for first, end in row.bad:
        keep[first:end] = False
    return samples if row.verdict == THROTTLED or not keep.any() else samples[keep]


def clean(text: str, longest: int = 120) -> str:
    """Return text from a file on one line, at most `longest` characters.

    Control, formatting and invalid characters are replaced, because pages and terminals handle them badly.
    """
    shown = "".join(
        char if char.isprintable() else " " if char.isspace() else "\N{REPLACEMENT CHARACTER}" for char in text
    )
    shown = " ".join(shown.split())
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"
