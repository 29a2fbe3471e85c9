"""Write Ray's results into a folder, one complete file per block, and find the rows that it holds."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trtbatch.deployment.store import Store, write_file
from trtbatch.errors import ExecutionError, TrtbatchError, UsageError, from_os_error
from trtbatch.util import optional
from trtbatch.util.files import probe
from trtbatch.util.text import shortened, written

__all__ = ["audit", "claim", "done_rows", "refuse_file_name", "refuse_taken", "write_rows"]

Array = NDArray[Any]

JOB = "_job.json"
"""File in the folder that records what its rows were made with; readers of folders skip names that begin with _."""


_FILE_SUFFIXES = (".csv", ".json", ".jsonl", ".npy", ".npz", ".parquet")


def refuse_file_name(target: Store, shown: str) -> None:
    """Refuse the name of a file for a folder of results, unless the folder exists.

    Raises:
        UsageError: the name has a file's suffix; the message suggests another.
    """
    fs = optional.require("pyarrow.fs", "write files for Ray")
    stem, suffix = os.path.splitext(shown.rstrip("/"))
    if suffix.lower() not in _FILE_SUFFIXES or target.system.get_file_info(target.path).type == fs.FileType.Directory:
        return
    kind = ", format='jsonl'" if suffix.lower() in (".json", ".jsonl") else ""
    problem = f"`output={shown!r}` is the name of a file, and `address` writes a folder of them (parquet or jsonl)"
    raise UsageError(problem, f"name a folder: `output={stem!r}{kind}`")


def refuse_taken(target: Store, shown: str, made_with: Mapping[str, Any]) -> None:
    """Refuse a folder that can't take the rows of a job; leave the folder unchanged.

    Args:
        target: the folder.
        shown: the folder's name as the user gave it.
        made_with: what the job's rows are made with.

    Raises:
        UsageError: the folder holds rows of another job or other files, is a file, or has a name that isn't UTF-8.
        TrtbatchError: the folder can't be written.
    """
    fs = optional.require("pyarrow.fs", "write files for Ray")
    if written(target.path) != target.path:
        raise UsageError(f"`output={shown!r}`: pyarrow takes names in UTF-8 only", "name another folder")
    if target.system.get_file_info(target.path).type == fs.FileType.File:
        raise UsageError(f"`output={shown!r}` is a file", "name a folder")
    _refuse_unwritable(target, shown)
    if not _files(target):
        return  # the record of a run that wrote no rows doesn't count
    there = _noted(target)
    if there is None:
        raise UsageError(f"`output={shown!r}` holds files of something else", "name another folder")
    different = [name for name in made_with if there.get(name) != made_with[name]]
    if different:
        raise UsageError(
            f"`output={shown!r}` holds rows of another {different[0]} ({there.get(different[0])})",
            "name another folder",
        )


def claim(target: Store, shown: str, made_with: Mapping[str, Any]) -> None:
    """Make the folder, record what its rows are made with, and remove partial files of dead runs.

    Raises:
        UsageError, TrtbatchError: as for :func:`refuse_taken`.
    """
    fs = optional.require("pyarrow.fs", "write files for Ray")
    refuse_taken(target, shown, made_with)
    try:
        target.system.create_dir(target.path, recursive=True)
        for each in target.system.get_file_info(fs.FileSelector(target.path)):
            if each.base_name.startswith((".part-", f".{JOB}.")):
                target.system.delete_file(each.path)  # a partial file, from a machine that stopped
        if not _files(target):
            place = f"{target.path}/{JOB}"
            write_file(target.system, place, lambda stream: stream.write(json.dumps(dict(made_with)).encode()))
    except OSError as error:
        raise _unwritable(shown, error) from error


def _refuse_unwritable(target: Store, shown: str) -> None:
    """Refuse a folder on this machine that can't be made or written; leave the disk unchanged.

    Raises:
        TrtbatchError: the folder can't be written; the message gives the system's reason.
    """
    if target.is_local:
        try:
            probe(Path(target.path, JOB))
        except OSError as error:
            raise _unwritable(shown, error) from error


def _unwritable(shown: str, error: OSError) -> TrtbatchError:
    reason = os.strerror(error.errno) if error.errno else shortened(str(error))
    fix = from_os_error(error, "`output`").fix if error.errno else "check the address, your permissions and the network"
    fix = "name a folder that can be made" if error.errno == errno.ENOENT else fix
    return TrtbatchError(f"`output={shown!r}` can't be written: {reason}", fix)


def _noted(target: Store) -> dict[str, Any] | None:
    """Return what the rows in a folder are made with; None where that isn't recorded."""
    fs = optional.require("pyarrow.fs", "read files for Ray")
    place = f"{target.path}/{JOB}"
    if target.system.get_file_info(place).type != fs.FileType.File:
        return None
    with target.system.open_input_stream(place) as stream:
        return dict(json.loads(stream.read()))


def _files(target: Store) -> list[str]:
    """Return the paths of the result files in a folder."""
    fs = optional.require("pyarrow.fs", "read files for Ray")
    found = target.system.get_file_info(fs.FileSelector(target.path, allow_not_found=True))
    names = [each.path for each in found if each.type == fs.FileType.File and not each.base_name.startswith((".", "_"))]
    return sorted(name for name in names if name.endswith((".parquet", ".jsonl")))


class Done(NamedTuple):
    """Number of times that each row's name is in the output files, and the names of rows with an error."""

    names: Counter[str]
    failed: set[str]


def done_rows(target: Store) -> Done:
    """Read the names of all rows in the output files, and which of them have an error."""
    parquet = optional.require("pyarrow.parquet", "read Parquet")
    done = Done(Counter(), set())
    for path in _files(target):
        if path.endswith(".parquet"):
            table = parquet.read_table(path, columns=["path", "error"], filesystem=target.system)
            rows = list(zip(table["path"].to_pylist(), table["error"].to_pylist()))
        else:
            with target.system.open_input_stream(path) as stream:
                lines = [json.loads(line) for line in stream.read().splitlines()]
            rows = [(line["path"], line.get("error")) for line in lines]
        done.names.update(name for name, _ in rows)
        done.failed.update(name for name, error in rows if error)
    return done


def audit(wanted: Sequence[str], found: Mapping[str, int], output: str) -> None:
    """Check that every row is in the output exactly once.

    Raises:
        ExecutionError: a row is missing or duplicated.
    """
    missing = [name for name in wanted if name not in found]
    doubled = [name for name in wanted if found.get(name, 0) > 1]
    if missing:
        raise ExecutionError(f"{len(missing)} rows are not in {output}, {missing[0]} first", "run it again")
    if doubled:
        raise ExecutionError(
            f"{len(doubled)} rows are in {output} more than once, {doubled[0]} first",
            "did two runs write there at once? Remove the folder, and run one",
        )


def write_rows(batch: Mapping[str, Any], target: Store, format: str) -> dict[str, Any]:
    """Write a block's rows as one file, complete or not at all, and return the number of rows."""
    names = [str(name) for name in batch["path"]]
    failed = np.array([bool(error) for error in batch["error"]])
    if names:
        table = _table(batch, failed)
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:24]
        place = f"{target.path}/part-{digest}.{format}"
        write_file(target.system, place, _parquet_of(table) if format == "parquet" else _lines_of(table))
    return {"rows": [len(names)]}


def _table(batch: Mapping[str, Any], failed: NDArray[np.bool_]) -> Any:
    """Return an Arrow table whose column types don't depend on the values.

    The predicted classes of failed rows are null, and so are the errors of all other rows.
    """
    pyarrow = optional.require("pyarrow", "write results")
    kinds = {
        "class": pyarrow.string(),
        "index": pyarrow.int64(),
        "score": pyarrow.float64(),
        "classes": pyarrow.list_(pyarrow.string()),
        "indices": pyarrow.list_(pyarrow.int64()),
        "scores": pyarrow.list_(pyarrow.float64()),
    }
    columns = {"path": pyarrow.array([str(name) for name in batch["path"]], pyarrow.string())}
    for name, values in batch.items():
        if name in kinds:
            rows = [None if bad else _listed(value) for value, bad in zip(values, failed)]
            columns[name] = pyarrow.array(rows, kinds[name])
        elif name not in ("path", "error"):
            columns[name] = _nested(pyarrow, np.asarray(values))
    columns["error"] = pyarrow.array([str(error) or None for error in batch["error"]], pyarrow.string())
    return pyarrow.table(columns)


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _nested(pyarrow: Any, array: Array) -> Any:
    """Return rows of numbers of any shape as nested lists of fixed length."""
    made = pyarrow.array(np.ascontiguousarray(array).reshape(-1))
    for size in array.shape[:0:-1]:
        made = pyarrow.FixedSizeListArray.from_arrays(made, size)
    return made


def _parquet_of(table: Any) -> Callable[[Any], None]:
    parquet = optional.require("pyarrow.parquet", "write Parquet")
    return lambda stream: parquet.write_table(table, stream)


def _lines_of(table: Any) -> Callable[[Any], None]:
    def write(stream: Any) -> None:
        for row in table.to_pylist():
            stream.write((json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8"))

    return write


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON doesn't have, with strings."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
