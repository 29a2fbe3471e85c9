"""Read rows of files in Ray's tasks, in the form that the predictor takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.core.readers import image_input
from trtbatch.core.sidecar import Sidecar
from trtbatch.deployment.predictor import PIXELS, prepare
from trtbatch.deployment.store import Kind, Store, named, npy_header, parquet_columns
from trtbatch.util import optional
from trtbatch.util.text import shortened, written

__all__ = ["read_rows"]

Array = NDArray[Any]


def read_rows(
    batch: Mapping[str, Any], source: Store, kind: Kind, sidecar: Sidecar, encoded: bool = False
) -> dict[str, Any]:
    """Return the rows of a block: names, errors, and the columns that the predictor takes.

    With `encoded`, images stay encoded, for the predictor's reader.
    """
    files = [each.decode("utf-8", "surrogateescape") for each in batch["file"]]
    numbers = [int(each) for each in batch["row"]]
    found: dict[str, Any] = {
        "path": np.array([named(source, path, row) for path, row in zip(files, numbers)], dtype=object),
        "error": np.array([""] * len(files), dtype=object),
    }
    if kind == "images":
        if encoded:
            return found | {"bytes": _files(source, files, found["error"])}
        _, preprocessing = image_input(sidecar)
        pixels = np.zeros((len(files), *preprocessing.crop, 3), np.uint8)
        for index, path in enumerate(files):  # one file at a time, so that only the pixels stay in memory
            errors = found["error"][index : index + 1]
            pixels[index] = _pixels({"bytes": _files(source, [path], errors)}, errors, sidecar)[0]
        return found | {PIXELS: pixels}
    columns: dict[str, list[Array]] = {}
    for path in dict.fromkeys(files):
        wanted = [row for file, row in zip(files, numbers) if file == path]
        part = _npy(source, path, wanted) if kind == "npy" else _parquet(source, path, wanted, sidecar)
        for name, rows in part.items():
            columns.setdefault(name, []).append(rows)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    if "bytes" in joined and not encoded:
        return found | {PIXELS: _pixels(joined, found["error"], sidecar)}
    return found | joined


def _files(source: Store, files: Sequence[str], errors: Array) -> Array:
    """Return the contents of files; write into `errors` why a file can't be read, and return it empty."""
    held = np.empty(len(files), dtype=object)
    held[:] = b""
    for index, path in enumerate(files):
        try:
            with source.reading(path) as stream:
                held[index] = bytes(stream.read())
        except OSError as error:
            errors[index] = shortened(str(error))
    return held


def _pixels(columns: Mapping[str, Any], errors: Array, sidecar: Sidecar) -> Array:
    """Return images resized and cropped in one array, ``(N, H, W, 3)`` uint8; unusable images are black."""
    pixels = prepare(columns, sidecar, errors)
    _, preprocessing = image_input(sidecar)
    even = np.zeros((len(pixels), *preprocessing.crop, 3), np.uint8)
    for index, image in enumerate(pixels):
        if image is not None:
            even[index] = image
    return even


def _npy(source: Store, path: str, rows: Sequence[int]) -> dict[str, Array]:
    """Read rows of an array file; only the part from the first to the last of them is read."""
    with source.reading(path) as stream:
        shape, dtype = npy_header(stream)
        width = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        stream.seek(stream.tell() + rows[0] * width)
        block = np.frombuffer(stream.read((rows[-1] + 1 - rows[0]) * width), dtype)
    return {"data": block.reshape(-1, *shape[1:])[np.asarray(rows) - rows[0]]}


def _parquet(source: Store, path: str, rows: Sequence[int], sidecar: Sidecar) -> dict[str, Array]:
    """Read rows of a Parquet file, the model's inputs or encoded images, from the row groups that hold them.

    Raises:
        InputError: the file has neither.
    """
    parquet = optional.require("pyarrow.parquet", "read Parquet")
    with source.reading(path) as stream:
        file = parquet.ParquetFile(stream)
        wanted = parquet_columns(file, sidecar, written(path))
        edges = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))])
        groups = sorted({int(np.searchsorted(edges, row, side="right")) - 1 for row in rows})
        table = file.read_row_groups(groups, columns=wanted)
        place = {row: index for index, row in enumerate(r for g in groups for r in range(edges[g], edges[g + 1]))}
        table = table.take([place[row] for row in rows])
    if wanted == ["bytes"]:
        held = np.empty(len(rows), dtype=object)
        held[:] = table["bytes"].to_pylist()
        return {"bytes": held}
    found: dict[str, Array] = {}
    for spec in sidecar.inputs:
        sizes = [int(size) for axis, size in enumerate(spec.shape) if axis != spec.batch_axis]
        found[spec.name] = np.asarray(table[spec.name].to_pylist(), spec.dtype).reshape(len(rows), *sizes)
    return found
