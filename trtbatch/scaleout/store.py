"""Files for Ray's tasks, wherever pyarrow reaches: the rows that they hold, in order, and writing whole files."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np

from trtbatch import optional
from trtbatch.artifacts import Sidecar
from trtbatch.errors import InputError, TrtbatchError, UsageError
from trtbatch.names import written
from trtbatch.photographs.images import image_input

__all__ = ["Kind", "Store", "list_rows", "named", "npy_header", "open_store", "write_file"]

Kind = Literal["images", "npy", "parquet"]
"""What files are; of one image each, or of several rows."""


@dataclass(frozen=True)
class Store:
    """A place that pyarrow reaches: file system, path in it, and what precedes the path in a URI."""

    system: Any
    path: str
    prefix: str

    @property
    def is_local(self) -> bool:
        """Whether it is on the disks of this machine."""
        return bool(self.system.type_name == "local")

    def reading(self, path: str) -> Any:
        """A file that is open for reading, seekable, whatever bytes its name is of."""
        return open(path, "rb") if self.is_local else self.system.open_input_file(path)


def open_store(text: str, option: str) -> Store:
    """The place that a path or URI names.

    Raises:
        UsageError: a scheme that pyarrow has no file system for.
    """
    fs = optional.require("pyarrow.fs", "read and write files for Ray")
    if "://" not in text:
        if not text:
            raise UsageError(f"{option} is empty", "name a folder, or a URI such as s3://bucket/folder")
        return Store(fs.LocalFileSystem(), os.path.abspath(text), "")
    try:
        system, path = fs.FileSystem.from_uri(text)
    except Exception as error:  # what pyarrow raises differs by scheme
        raise UsageError(f"{option} {text}: {' '.join(str(error).split())[:200]}", "name a path, s3:// or gs://") from (
            error
        )
    scheme = text.partition("://")[0]
    return Store(system, path, "" if scheme == "file" else f"{scheme}://")


def named(source: Store, path: str, row: int) -> str:
    """A row's name, as text: the path of its file, and its number where a file holds several."""
    return written(f"{source.prefix}{path}" if row < 0 else f"{source.prefix}{path}[{row}]")


def list_rows(source: Store, sidecar: Sidecar, count: int | None) -> tuple[Kind, list[tuple[str, int]]]:
    """Every row as (path, number in the file), in order; the number is -1 where the file is the row.

    Raises:
        UsageError: nothing is there, or files of several kinds.
        InputError: a folder without usable files.
    """
    shown = f"--input {source.prefix}{source.path}"
    found = _local_files(source.path) if source.is_local else _remote_files(source)
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
        rows += [(path, row) for row in range(_length(source, path, kind))]
        if count is not None and len(rows) >= count:
            break
    return kind, rows[:count]


def _local_files(root: str) -> list[str] | None:
    """Regular files in and under a folder, links to nothing included, or the file itself; None where nothing is.

    Not by pyarrow, which knows names in UTF-8 only.
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


def _length(source: Store, path: str, kind: Kind) -> int:
    """Number of rows in a file, from its header.

    Raises:
        InputError: it can't be read.
    """
    try:
        with source.reading(path) as stream:
            if kind == "npy":
                return int(npy_header(stream)[0][0])
            return int(optional.require("pyarrow.parquet", "read Parquet").ParquetFile(stream).metadata.num_rows)
    except TrtbatchError:
        raise
    except Exception as error:
        raise InputError(f"{path} can't be read: {' '.join(str(error).split())[:200]}", "mend or remove it") from error


def npy_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array file, whose rows follow.

    Raises:
        InputError: it holds objects, no rows, or is in Fortran's order.
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject or not shape or (fortran and len(shape) > 1):
        raise InputError("it holds Python objects, no rows, or rows in Fortran's order", "save it in C order")
    return shape, dtype


def write_file(system: Any, place: str, write: Callable[[Any], Any]) -> None:
    """Write under another name and rename; an object store shows an object when it is closed, and can't rename."""
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
