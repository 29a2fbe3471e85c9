"""Where predictions go: ``.npz``, ``.csv`` or JSON Lines, row after row, complete or not at all.

Rows are spooled to disk as they come; the file appears under its name when everything is in it.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trtbatch.artifacts import Sidecar, TensorSpec
from trtbatch.errors import UsageError
from trtbatch.files import atomic_file
from trtbatch.names import written
from trtbatch.notes import warn

__all__ = ["Prediction", "Sink", "open_sink", "refuse_topk", "top_predictions"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Prediction:
    """One of the k best classes of a sample: index, name where known, and score (probability)."""

    index: int
    name: str
    score: float


def refuse_topk(k: Any) -> None:
    """Raise where it is no number of classes to give; one larger than the model's is all of them.

    Raises:
        UsageError: it is below 1, or not a whole number.
    """
    if not isinstance(k, Integral) or k < 1:
        raise UsageError(f"topk={k!r} is no number of classes", "give a whole number, 1 or more")


def top_predictions(scores: Array, k: int, classes: Sequence[str] | None) -> list[list[Prediction]]:
    """The `k` best classes of each row of `scores`, ``(N, C)``, best first; all C where `k` is larger.

    Scores are taken as they are where they are probabilities (not negative, sum 1 ± 1e-3); anything else is
    taken for logits and given as softmax.
    """
    # What is done to every score is done in float32, where that is its type: it takes as long as the GPU's computing.
    values = scores if scores.dtype == np.float64 else scores.astype(np.float32, copy=False)
    order = _best(-values, k)
    best = np.take_along_axis(values, order, axis=1).astype(np.float64)
    sums = values.sum(axis=1, keepdims=True, dtype=np.float64)
    are_probabilities = (values.min(axis=1, keepdims=True) >= 0) & (np.abs(sums - 1) < 1e-3)
    if not are_probabilities.all():
        most = values.max(axis=1, keepdims=True)
        totals = np.exp(values - most).sum(axis=1, keepdims=True, dtype=np.float64)
        best = np.where(are_probabilities, best, np.exp(best - most) / totals)
    names = classes if classes is not None and len(classes) == scores.shape[1] else None
    return [
        [Prediction(i, names[i] if names else str(i), score) for i, score in zip(indices, row)]
        for indices, row in zip(order.tolist(), best.tolist())
    ]


def _best(keys: Array, k: int) -> NDArray[np.intp]:
    """Indices of the `k` least of each row, in order, the first of equal ones first: ``(N, min(k, C))``.

    What can't be among them is set aside first: sorting a thousand classes of each sample is dearer than a GPU's
    computing of them.
    """
    if k >= keys.shape[1]:
        return np.argsort(keys, axis=1, kind="stable")
    chosen = np.sort(np.argpartition(keys, k - 1, axis=1)[:, :k], axis=1)
    best = np.take_along_axis(keys, chosen, axis=1)
    order = np.take_along_axis(chosen, np.argsort(best, axis=1, kind="stable"), axis=1)
    unsure = (keys <= best.max(axis=1, keepdims=True)).sum(axis=1) != k  # equals on both sides of the cut, or NaN
    order[unsure] = np.argsort(keys[unsure], axis=1, kind="stable")[:, :k]
    return order


class Sink(Protocol):
    """Takes rows in order. `wants_top`: whether it writes the best classes."""

    wants_top: bool

    def write(self, names: Sequence[str], outputs: dict[str, Array], top: list[list[Prediction]] | None) -> None:
        """Rows of a batch: names, each output with its batch axis first, and the best classes where there are any."""


@contextmanager
def open_sink(path: Path | None, sidecar: Sidecar) -> Iterator[Sink]:
    """The sink for ``--output``; its file appears when the block ends well.

    Raises:
        UsageError: a suffix other than .npz, .csv, .jsonl.
    """
    if path is None:
        yield _Nothing()
        return
    kinds = {".npz": _NpzSink, ".csv": _CsvSink, ".jsonl": _JsonLinesSink}
    kind = kinds.get(path.suffix)
    if kind is None:
        raise UsageError(f"--output {path}: no format for {path.suffix!r}", "write .npz, .csv or .jsonl")
    with (
        atomic_file(path) as made,
        kind(made, [spec for spec in sidecar.outputs if spec.batch_axis is not None]) as sink,
    ):
        yield sink


class _Nothing:
    wants_top = False

    def write(self, names: Sequence[str], outputs: dict[str, Array], top: list[list[Prediction]] | None) -> None:
        return


class _FileSink:
    """A sink that holds files open until it is closed."""

    wants_top = True

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        self._path = path
        self._specs = specs
        self._stack = ExitStack()

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if kind is None:
            self._finish()

    def _finish(self) -> None:
        return


class _CsvSink(_FileSink):
    """A header and a line per sample: the file, then class, index and score of each of the k best, or the values."""

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        super().__init__(path, specs)
        self._writer = csv.writer(
            self._stack.enter_context(path.open("w", newline="", encoding="utf-8", errors="backslashreplace"))
        )
        self._has_header = False

    def write(self, names: Sequence[str], outputs: dict[str, Array], top: list[list[Prediction]] | None) -> None:
        if top is not None:
            header = [f"{what}_{rank + 1}" for rank in range(len(top[0])) for what in ("class", "index", "score")]
            rows = [[value for p in row for value in (p.name, p.index, f"{p.score:.6g}")] for row in top]
        else:
            flat = {name: array.reshape(len(names), -1) for name, array in outputs.items()}
            header = [f"{name}[{i}]" for name, array in flat.items() for i in range(array.shape[1])]
            rows = [[value for array in flat.values() for value in array[i].tolist()] for i in range(len(names))]
        if top is not None and len(outputs) > 1 and not self._has_header:
            rest = ", ".join(list(outputs)[1:])
            warn(f"a .csv holds the best classes of the first output only, not {rest}: write .jsonl or .npz for all")
        if not self._has_header:
            self._writer.writerow(["file", *header])
            self._has_header = True
        self._writer.writerows([written(name), *row] for name, row in zip(names, rows))

    def _finish(self) -> None:
        if not self._has_header:
            with self._path.open("a", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerow(["file"])


class _JsonLinesSink(_FileSink):
    """An object per sample: the file, the k best classes of the first output, the values of every other one."""

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        super().__init__(path, specs)
        self._stream = self._stack.enter_context(path.open("w", encoding="utf-8", errors="backslashreplace"))

    def write(self, names: Sequence[str], outputs: dict[str, Array], top: list[list[Prediction]] | None) -> None:
        for row, name in enumerate(names):
            line: dict[str, Any] = {"file": written(name)}
            if top is not None:
                line["top"] = [{"class": p.name, "index": p.index, "score": _finite(p.score)} for p in top[row]]
            rest = {output: _jsonable(array[row]) for output, array in list(outputs.items())[0 if top is None else 1 :]}
            if rest:
                line["outputs"] = rest
            self._stream.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)


def _jsonable(array: Array) -> Any:
    """Nested lists; NaN and infinities, which JSON doesn't have, as strings."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return np.where(np.isfinite(array), array.astype(object), array.astype(str).astype(object)).tolist()
    return array.tolist()


class _NpzSink(_FileSink):
    """``file`` (names) and each output, ``(N, …)``: rows are spooled and zipped at the end, never all in memory."""

    wants_top = False

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        super().__init__(path, specs)
        self._spools: dict[str, Any] = {}
        self._kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self._names: list[str] = []

    def write(self, names: Sequence[str], outputs: dict[str, Array], top: list[list[Prediction]] | None) -> None:
        for output, array in outputs.items():
            if output not in self._spools:
                spool = self._path.with_name(f"spool{len(self._spools)}")
                self._spools[output] = (spool, self._stack.enter_context(spool.open("wb")))
                self._kinds[output] = (array.dtype, array.shape[1:])
            if array.shape[1:] != self._kinds[output][1]:
                raise UsageError(f"rows of {output} differ in shape: a .npz can't hold them", "write .jsonl")
            self._spools[output][1].write(np.ascontiguousarray(array).data)
        self._names += names

    def _finish(self) -> None:
        with zipfile.ZipFile(self._path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with archive.open("file.npy", "w") as entry:
                np.lib.format.write_array(entry, np.asarray(self._names, dtype=np.str_), allow_pickle=False)
            for output, (spool, _) in self._spools.items():
                dtype, shape = self._kinds[output]
                header = {
                    "descr": np.lib.format.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": (len(self._names), *shape),
                }
                with archive.open(f"{output.replace('/', '_')}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array_header_2_0(entry, header)
                    with spool.open("rb") as rows:
                        while block := rows.read(1 << 20):
                            entry.write(block)
