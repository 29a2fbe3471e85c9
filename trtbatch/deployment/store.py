"""List the rows of files and write whole files, on every file system that pyarrow reaches."""

from __future__ import annotations

import contextlib
import math
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np

from trtbatch.backends.base import array_fix, refuse_integers
from trtbatch.core.readers import image_input
from trtbatch.core.sidecar import Sidecar
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import InputError, TrtbatchError, UsageError, reading_fix
from trtbatch.util import optional
from trtbatch.util.text import shortened, written

__all__ = ["Kind", "Store", "list_rows", "named", "npy_header", "open_store", "parquet_columns", "write_file"]

Kind = Literal["images", "npy", "parquet"]
"""Kinds of input files: an image file is one row, the others hold several."""


@dataclass(frozen=True)
class Store:
    """Location that pyarrow reaches: its file system, the path in it, and the URI's part before the path."""

    system: Any
    path: str
    prefix: str

    @property
    def is_local(self) -> bool:
        """Return whether the location is on a disk of this machine."""
        return bool(self.system.type_name == "local")

    def reading(self, path: str) -> Any:
        """Open a file for reading, seekable; a local file's name may be any bytes."""
        return open(path, "rb") if self.is_local else self.system.open_input_file(path)


def open_store(text: str, option: str) -> Store:
    """Return the location that a path or URI names.

    Raises:
        UsageError: the name is empty, or a URI that pyarrow can't open.
    """
    fs = optional.require("pyarrow.fs", "read and write files for Ray")
    if "://" not in text:
        if not text:
            raise UsageError(f"{option} is empty", "name a folder, or a URI such as s3://bucket/folder")
        return Store(fs.LocalFileSystem(), os.path.abspath(text), "")
    try:
        system, path = fs.FileSystem.from_uri(text)
    except Exception as error:  # what pyarrow raises differs by scheme
        raise _unreached(f"{option} {text}", error) from error
    scheme = text.partition("://")[0]
    return Store(system, path, "" if scheme == "file" else f"{scheme}://")


def _unreached(shown: str, error: Exception) -> UsageError:
    """Return the error for a URI that pyarrow can't open.

    An ``OSError`` comes from the file system of a known scheme; other errors mean that pyarrow doesn't know the scheme.
    """
    known = isinstance(error, OSError)
    fix = "check the bucket's name, your permissions and the network" if known else "name a path, s3:// or gs://"
    return UsageError(f"{shown}: {shortened(str(error))}", fix)


def named(source: Store, path: str, row: int) -> str:
    """Return a row's name as text: the path of its file, and its number where the file holds several rows."""
    return written(f"{source.prefix}{path}" if row < 0 else f"{source.prefix}{path}[{row}]")


def list_rows(source: Store, sidecar: Sidecar, count: int | None) -> tuple[Kind, list[tuple[str, int]]]:
    """Return the kind of the files, and every row as (path, number in the file), in order, at most `count`.

    The number is -1 where the file is the row.

    Raises:
        UsageError: nothing exists there, or the files are of several kinds.
        InputError: the folder has no usable files, or the rows of a file don't fit the engine.
    """
    shown = f"`input={source.prefix + source.path!r}`"
    try:
        found = _local_files(source.path) if source.is_local else _remote_files(source)
    except OSError as error:
        if source.is_local:
            problem = f"{written(str(error.filename))} can't be read: {error.strerror}"
            raise InputError(problem, reading_fix(error, "mend or remove it")) from error
        raise _unreached(shown, error) from error
    if found is None:
        raise UsageError(f"{shown}: no such file or folder", "name a folder or file of images, .npy or .parquet")
    paths = [path for path in sorted(found) if not _hidden(path, source.path)]
    kinds: dict[str, Kind] = {path: each for path in paths if (each := _kind(path)) is not None}
    if len(set(kinds.values())) > 1:
        raise UsageError(f"{shown} holds {' and '.join(sorted(set(kinds.values())))}", "name a folder of one kind")
    if not kinds:
        raise InputError(f"{shown} holds no images, .npy or .parquet files", "name another")
    kind: Kind = next(iter(kinds.values()))
    if kind == "images":
        image_input(sidecar)
        return kind, [(path, -1) for path in kinds][:count]
    rows: list[tuple[str, int]] = []
    for path in kinds:
        rows += [(path, row) for row in range(_length(source, path, kind, sidecar))]
        if count is not None and len(rows) >= count:
            break
    return kind, rows[:count]


def _local_files(root: str) -> list[str] | None:
    """Return the files in and under a folder, broken links included, or the file itself; None where neither exists.

    pyarrow can't list them, because it takes names in UTF-8 only.
    """
    if not os.path.isdir(root):
        return [root] if os.path.isfile(root) else None

    def refuse(error: OSError) -> NoReturn:
        raise error

    found: list[str] = []
    for parent, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [os.path.join(parent, name) for name in names]
        found += [path for path in paths if os.path.isfile(path) or not os.path.exists(path)]
    return found


def _remote_files(source: Store) -> list[str] | None:
    fs = optional.require("pyarrow.fs", "read files for Ray")
    info = source.system.get_file_info(source.path)
    if info.type == fs.FileType.NotFound:
        return None
    found = [info]
    if info.type == fs.FileType.Directory:
        found = source.system.get_file_info(fs.FileSelector(source.path, recursive=True))
    return [each.path for each in found if each.type == fs.FileType.File]


def _hidden(path: str, root: str) -> bool:
    return any(part.startswith(".") for part in path[len(root) :].split("/"))


def _kind(path: str) -> Kind | None:
    from PIL import Image

    suffix = os.path.splitext(path)[1].lower()
    if suffix in (".npy", ".parquet"):
        return "npy" if suffix == ".npy" else "parquet"
    Image.init()
    return "images" if Image.registered_extensions().get(suffix) in Image.OPEN else None


def _length(source: Store, path: str, kind: Kind, sidecar: Sidecar) -> int:
    """Return the number of rows in a file, from its header.

    Raises:
        InputError: the file can't be read, or its rows don't fit the engine.
        UsageError: an array file for a model with several inputs, or images for a model that takes none.
    """
    try:
        with source.reading(path) as stream:
            if kind == "npy":
                shape, dtype = npy_header(stream)
                _refuse_array(written(path), shape, dtype, sidecar)
                return shape[0]
            parquet = optional.require("pyarrow.parquet", "read Parquet")
            file = parquet.ParquetFile(stream)
            if parquet_columns(file, sidecar, written(path)) == ["bytes"]:
                image_input(sidecar)
            else:
                _refuse_columns(written(path), file.schema_arrow, sidecar)
            return int(file.metadata.num_rows)
    except TrtbatchError:
        raise
    except Exception as error:
        reason = shortened(str(getattr(error, "strerror", None) or error))
        raise InputError(f"{written(path)} can't be read: {reason}", reading_fix(error, "mend or remove it")) from error


def _refuse_array(path: str, shape: tuple[int, ...], dtype: np.dtype[Any], sidecar: Sidecar) -> None:
    """Refuse an array whose rows aren't the model's input; an array without rows may have any shape and type."""
    if len(sidecar.inputs) != 1:
        names = ", ".join(spec.name for spec in sidecar.inputs)
        raise UsageError(
            f"{path}: the model has {len(sidecar.inputs)} inputs ({names})", "give a .parquet with a column of each"
        )
    (spec,) = sidecar.inputs
    sizes = _row_shape(spec)
    if not shape[0]:
        return
    if shape[1:] != sizes or dtype.kind not in "biuf":
        wanted = ", ".join(map(str, ("N", *sizes)))
        raise InputError(
            f"{path}: {spec.name} is {dtype} {shape}; the engine takes {spec.dtype} ({wanted})",
            array_fix(str(dtype), shape, spec),
        )
    refuse_integers(str(dtype), spec, path)


def _row_shape(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(int(size) for axis, size in enumerate(spec.shape) if axis != spec.batch_axis)


def parquet_columns(file: Any, sidecar: Sidecar, path: str) -> list[str]:
    """Return the columns to read from a Parquet file: the model's inputs, or encoded images.

    Raises:
        InputError: the file has neither.
    """
    names, there = [spec.name for spec in sidecar.inputs], file.schema_arrow.names
    if set(names) <= set(there):
        return names
    if "bytes" in there:
        return ["bytes"]
    raise InputError(
        f"{path} has the columns {', '.join(there)}", f"wanted: {', '.join(names)}, or bytes (encoded images)"
    )


def _refuse_columns(path: str, schema: Any, sidecar: Sidecar) -> None:
    """Refuse a column that doesn't fit its input, by its type, and by its size where the type fixes it."""
    for spec in sidecar.inputs:
        kind, size = schema.field(spec.name).type, 1
        while (kind := getattr(kind, "storage_type", kind)) and hasattr(kind, "value_type"):
            size *= getattr(kind, "list_size", 0)
            kind = kind.value_type
        dtype, where, wanted = np.dtype(kind.to_pandas_dtype()), f"{path}, column {spec.name!r}", _row_shape(spec)
        if dtype.kind not in "biuf":
            problem = f"{where} holds {schema.field(spec.name).type}; the engine takes {spec.dtype} {wanted}"
            raise InputError(problem, "give lists of numbers, one a row")
        if size not in (0, math.prod(wanted)):
            problem = f"{where} holds {size} numbers a row; the engine takes {math.prod(wanted)}, {wanted}"
            raise InputError(problem, "give each row with as many")
        refuse_integers(str(dtype), spec, where)


def npy_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and type of an array file, and leave the stream at its first row.

    Raises:
        InputError: the file holds Python objects, a single value, or rows in Fortran order.
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject or not shape or (fortran and len(shape) > 1):
        raise InputError("it holds Python objects, no rows, or rows in Fortran's order", "save it in C order")
    return shape, dtype


def write_file(system: Any, place: str, write: Callable[[Any], Any]) -> None:
    """Write a file, complete or not at all.

    Local and HDFS files are written under another name and renamed. An object store can't rename, but shows an object
    only once it is closed.
    """
    if system.type_name not in ("local", "hdfs"):
        with system.open_output_stream(place) as stream:
            write(stream)
        return
    folder, _, name = place.rpartition("/")
    scratch = f"{folder}/.{name}.{uuid.uuid4().hex}"
    try:
        with system.open_output_stream(scratch) as stream:
            write(stream)
        system.move(scratch, place)
    except BaseException:
        with contextlib.suppress(OSError):
            system.delete_file(scratch)
        raise
