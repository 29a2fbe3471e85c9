"""Where predictions go: ``.npz``, ``.csv`` or JSON Lines, row after row, complete or not at all.

Rows are spooled to disk as they come; the file appears under its name when everything is in it.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import repeat
from math import isfinite
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trtbatch.core.sidecar import Sidecar
from trtbatch.core.tensors import TensorSpec, npz_keys
from trtbatch.errors import UsageError
from trtbatch.util.files import atomic_file
from trtbatch.util.log import note, warn
from trtbatch.util.text import written

__all__ = ["BestClasses", "Prediction", "Sink", "best_classes", "open_sink", "refuse_topk", "top_predictions"]

Array = NDArray[Any]

_QUOTED = ',"\r\n'
"""What csv.writer puts a field in quotes for."""

_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode

PASSES = 16
"""Best classes up to which taking one at a time is quicker than partitioning (of 1000: 0.3 µs a row each; 11 µs)."""


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


@dataclass(frozen=True)
class BestClasses:
    """The k best classes of each of N rows, best first: a batch's predictions, before an object is made of each.

    Args:
        indices: ``(N, k)``.
        scores: ``(N, k)``, float64.
        names: of all classes, where they are known.
    """

    indices: NDArray[np.intp]
    scores: NDArray[np.float64]
    names: Sequence[str] | None

    def predictions(self, count: int | None = None) -> list[list[Prediction]]:
        """Those of the first `count` rows."""
        rows = zip(self.indices[:count].tolist(), self.scores[:count].tolist())
        return [[Prediction(i, self.name(i), score) for i, score in zip(*row)] for row in rows]

    def name(self, index: int) -> str:
        """Return a class's name; its index where that isn't known."""
        return str(index) if self.names is None else self.names[index]


def top_predictions(scores: Array, k: int, classes: Sequence[str] | None) -> list[list[Prediction]]:
    """Return the `k` best classes of each row of `scores`, ``(N, C)``, as :func:`best_classes` finds them."""
    return best_classes(scores, k, classes).predictions()


def best_classes(scores: Array, k: int, classes: Sequence[str] | None) -> BestClasses:
    """Return the `k` best classes of each row of `scores`, ``(N, C)``, best first; all C where `k` is larger.

    Scores are taken as they are where they are probabilities (not negative, sum 1 ± 1e-3); anything else is
    taken for logits and given as softmax.
    """
    # What is done to every score is done in float32, where that is its type: it takes as long as the GPU's computing.
    values = scores if scores.dtype == np.float64 else scores.astype(np.float32, copy=False)
    order = _best(values, min(k, values.shape[1]))
    best = np.take_along_axis(values, order, axis=1)
    known = best.astype(np.float64)
    are_probabilities = values.min(axis=1, keepdims=True) >= 0
    if are_probabilities.any():
        are_probabilities &= np.abs(values.sum(axis=1, keepdims=True, dtype=np.float64) - 1) < 1e-3
    if not are_probabilities.all():
        most = best[:, :1]
        powers = values - most
        totals = np.exp(powers, out=powers).sum(axis=1, keepdims=True, dtype=np.float64)
        known = np.where(are_probabilities, known, np.exp(known - most) / totals)
    return BestClasses(order, known, classes if classes is not None and len(classes) == scores.shape[1] else None)


def _best(values: Array, k: int) -> NDArray[np.intp]:
    """Return the indices of the `k` largest of each row, in order, the first of equal ones first, NaN last: ``(N, k)``.

    Sorting a thousand classes of each sample is dearer than a GPU's computing of them: where not all are wanted, it is
    left to the rows in which a quicker way can't be sure.
    """
    if k == values.shape[1]:
        return np.argsort(-values, axis=1, kind="stable")
    order, sure = (_by_passes if k <= PASSES else _by_partition)(values, k)
    if not sure.all():
        order[~sure] = np.argsort(-values[~sure], axis=1, kind="stable")[:, :k]
    return order


def _by_passes(values: Array, k: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Take the largest out, `k` times; unsure where that is NaN, or what stands for those taken out."""
    left, rows = values.copy(), np.arange(len(values))
    order = np.empty((len(values), k), np.intp)
    sure = np.ones(len(values), np.bool_)
    for rank in range(k):
        order[:, rank] = place = left.argmax(axis=1)
        sure &= left[rows, place] > -np.inf
        left[rows, place] = -np.inf
    return order, sure


def _by_partition(values: Array, k: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Sort only what can be among the `k`; unsure where equals lie on both sides of the cut, or NaN is in it."""
    keys = -values
    chosen = np.sort(np.argpartition(keys, k - 1, axis=1)[:, :k], axis=1)
    best = np.take_along_axis(keys, chosen, axis=1)
    order = np.take_along_axis(chosen, np.argsort(best, axis=1, kind="stable"), axis=1)
    return order, (keys <= best.max(axis=1, keepdims=True)).sum(axis=1) == k


class Sink(Protocol):
    """Takes rows in order. `wants_top`: whether it writes the best classes."""

    wants_top: bool

    def write(self, names: Sequence[str], outputs: dict[str, Array], top: BestClasses | None) -> None:
        """Rows of a batch: names, each output with its batch axis first, and the best classes where there are any."""


@contextmanager
def open_sink(path: Path | None, sidecar: Sidecar) -> Iterator[Sink]:
    """Return the sink for ``--output``; its file appears when the block ends well.

    Raises:
        UsageError: a suffix other than .npz, .csv, .jsonl.
    """
    if path is None:
        yield _Nothing()
        return
    kinds = {".npz": _NpzSink, ".csv": _CsvSink, ".jsonl": _JsonLinesSink}
    kind = kinds.get(path.suffix)
    if kind is None:
        if not path.suffix:
            raise UsageError(
                f"`output={str(path)!r}` has no suffix", "write .npz, .csv or .jsonl; a folder is for `address`"
            )
        raise UsageError(f"`output={str(path)!r}`: no format for {path.suffix!r}", "write .npz, .csv or .jsonl")
    specs = [spec for spec in sidecar.outputs if spec.batch_axis is not None]
    if kind is _NpzSink:
        _note_changes(specs)
    with atomic_file(path) as made, kind(made, specs) as sink:
        yield sink


def _note_changes(specs: Sequence[TensorSpec]) -> None:
    """Log which outputs a ``.npz`` holds under another name or in another order of axes than the model has."""
    keys = npz_keys([spec.name for spec in specs])
    for spec in specs:
        if keys[spec.name] != spec.name:
            note(f"the .npz holds {spec.name} as {keys[spec.name]}")
        if spec.batch_axis:
            note(f"the .npz holds {spec.name} with its batch axis, {spec.batch_axis}, first: a row is a sample")


class _Nothing:
    wants_top = False

    def write(self, names: Sequence[str], outputs: dict[str, Array], top: BestClasses | None) -> None:
        return


class _FileSink:
    """A sink that holds files open until it is closed."""

    wants_top = True

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        self._path = path
        self._specs = specs
        self._stack = ExitStack()
        self._texts: dict[int, str] = {}
        self._names: Sequence[str] | None = None

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

    def _ranks(self, top: BestClasses, made: Callable[[str, int], str]) -> Iterator[tuple[list[str], list[float]]]:
        """Of each of the k ranks, every row's class, as `made` of name and index, and score.

        A class's text is made when it is first met, not for every row.
        """
        if self._names is not top.names:
            self._texts, self._names = {}, top.names
        for index in set(top.indices.ravel().tolist()).difference(self._texts):
            self._texts[index] = made(top.name(index), index)
        for indices, scores in zip(top.indices.T.tolist(), top.scores.T.tolist()):
            yield list(map(self._texts.__getitem__, indices)), scores


class _CsvSink(_FileSink):
    """A header and a line per sample: the file, then class, index and score of each of the k best, or the values."""

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        super().__init__(path, specs)
        self._stream = self._stack.enter_context(
            path.open("w", newline="", encoding="utf-8", errors="backslashreplace")
        )
        self._writer = csv.writer(self._stream)
        self._has_header = False

    def write(self, names: Sequence[str], outputs: dict[str, Array], top: BestClasses | None) -> None:
        files = [written(name) for name in names]
        if top is not None:
            ranks = range(1, top.indices.shape[1] + 1)
            self._write_header([f"{what}_{rank}" for rank in ranks for what in ("class", "index", "score")], outputs)
            self._stream.write(self._best_lines(files, top))
            return
        flat = {name: array.reshape(len(names), -1) for name, array in outputs.items()}
        self._write_header([f"{name}[{i}]" for name, array in flat.items() for i in range(array.shape[1])])
        rows = [[value for array in flat.values() for value in array[i].tolist()] for i in range(len(names))]
        self._writer.writerows([file, *row] for file, row in zip(files, rows))

    def _best_lines(self, files: Sequence[str], top: BestClasses) -> str:
        """Return the lines that csv.writer would write, which looks at every field while it holds Python's lock."""
        columns: list[Sequence[Any]] = [_csv_fields(files)]
        for classes, scores in self._ranks(top, _csv_class):
            columns += [classes, scores]
        line = "%s" + ",%s,%.6g" * top.indices.shape[1] + "\r\n"
        return "".join([line % row for row in zip(*columns)])

    def _write_header(self, header: Sequence[str], dropped: Iterable[str] = ()) -> None:
        if self._has_header:
            return
        if rest := ", ".join(list(dropped)[1:]):
            warn(f"a .csv holds the best classes of the first output only, not {rest}: write .jsonl or .npz for all")
        self._writer.writerow(["file", *header])
        self._has_header = True

    def _finish(self) -> None:
        if not self._has_header:
            with self._path.open("a", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerow(["file"])


def _csv_fields(texts: Sequence[str]) -> Sequence[str]:
    """Each as one of several fields of a line: in quotes where it needs them."""
    every = "".join(texts)
    return [_csv_field(text) for text in texts] if any(mark in every for mark in _QUOTED) else texts


def _csv_field(text: str) -> str:
    line = io.StringIO(newline="")
    csv.writer(line).writerow([text, ""])
    return line.getvalue().removesuffix(",\r\n")


def _csv_class(name: str, index: int) -> str:
    return f"{_csv_field(name)},{index}"


class _JsonLinesSink(_FileSink):
    """An object per sample: the file, the k best classes of the first output, the values of every other one."""

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        super().__init__(path, specs)
        self._stream = self._stack.enter_context(path.open("w", encoding="utf-8", errors="backslashreplace"))

    def write(self, names: Sequence[str], outputs: dict[str, Array], top: BestClasses | None) -> None:
        files = [_json(written(name)) for name in names]
        tops = repeat("") if top is None else self._best_texts(top)
        others = list(outputs.items())[0 if top is None else 1 :]
        rest = _json_outputs(others, len(names)) if others else repeat("")
        lines = [f'{{"file": {file}{best}{further}}}\n' for file, best, further in zip(files, tops, rest)]
        self._stream.write("".join(lines))

    def _best_texts(self, top: BestClasses) -> Iterator[str]:
        """Of each row, the ``top`` of its object."""
        columns: list[Iterable[str]] = []
        for classes, scores in self._ranks(top, _json_class):
            columns += [classes, map(_json_number, scores)]
        line = ', "top": [' + ", ".join(["%s%s}"] * top.indices.shape[1]) + "]"
        return (line % row for row in zip(*columns))


def _json_class(name: str, index: int) -> str:
    return f'{{"class": {_json(name)}, "index": {index}, "score": '


def _json_number(value: float) -> str:
    return repr(value) if isfinite(value) else _json(str(value))


def _json_outputs(outputs: Sequence[tuple[str, Array]], count: int) -> Iterator[str]:
    """Of each row, the ``outputs`` of its object."""
    for row in range(count):
        yield ', "outputs": ' + _json({name: _jsonable(array[row]) for name, array in outputs})


def _jsonable(array: Array) -> Any:
    """Nested lists; NaN and infinities, which JSON doesn't have, as strings."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return np.where(np.isfinite(array), array.astype(object), array.astype(str).astype(object)).tolist()
    return array.tolist()


class _NpzSink(_FileSink):
    """``file`` (names) and each output, ``(N, …)``: rows are spooled and zipped at the end, never all in memory.

    :func:`trtbatch.core.tensors.npz_keys` gives the outputs' keys.
    """

    wants_top = False

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        super().__init__(path, specs)
        self._spools: dict[str, Any] = {}
        self._kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self._names: list[str] = []

    def write(self, names: Sequence[str], outputs: dict[str, Array], top: BestClasses | None) -> None:
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
        keys = npz_keys([spec.name for spec in self._specs])
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
                with archive.open(f"{keys[output]}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array_header_2_0(entry, header)
                    with spool.open("rb") as rows:
                        while block := rows.read(1 << 20):
                            entry.write(block)
