"""Everything trtbatch raises on purpose.

::

    TrtbatchError                exit code 1: the request was well-formed, and failed
    ├── UsageError               exit code 2: the request itself can't be carried out
    │   ├── BatchListError       a batch list that doesn't parse
    │   └── ProfileError         min, opt, max, or a batch outside every profile
    ├── MissingPackageError      an optional package or a GPU that isn't there
    ├── ArtifactError            a file of engines/ that is missing, damaged or of another machine
    ├── ModelError               a torch model that can't be found, made or run
    ├── ExportError              torch → ONNX failed, or its proof did
    ├── PrecisionError           a precision that was asked for can't be had, or overflows
    ├── BuildError               ONNX → engine failed
    ├── RowsError                an engine whose rows are wrong
    │   └── AccuracyError        … or right among themselves and too far from the ONNX file's
    ├── InputError               data that doesn't fit the engine
    └── ExecutionError           the engine failed while running

Every one of them carries a *problem* (one line, with the values) and a *fix* (one line, what to do).
"""

from __future__ import annotations

import errno
import os

__all__ = [
    "AccuracyError",
    "ArtifactError",
    "BatchListError",
    "BuildError",
    "ExecutionError",
    "ExportError",
    "InputError",
    "MissingPackageError",
    "ModelError",
    "PrecisionError",
    "ProfileError",
    "RowsError",
    "TrtbatchError",
    "UsageError",
    "from_os_error",
    "reading_fix",
    "unreadable",
]


class TrtbatchError(Exception):
    """A failure that says what is wrong and what to do about it.

    Args:
        problem: one line, with the values that make the problem.
        fix: one line, the command or change that mends it.
    """

    exit_code = 1

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}; {fix}")
        self.problem = problem
        self.fix = fix


class UsageError(TrtbatchError):
    """The request itself can't be carried out."""

    exit_code = 2


class BatchListError(UsageError):
    """A batch list that doesn't parse."""


class ProfileError(UsageError):
    """An impossible optimization profile, or a batch outside every profile."""


class MissingPackageError(TrtbatchError):
    """An optional package, or the GPU that it needs, isn't there."""


class ArtifactError(TrtbatchError):
    """A file of ``engines/`` is missing, damaged, or belongs to another machine."""


class ModelError(TrtbatchError):
    """A torch model can't be found, made or run."""


class ExportError(TrtbatchError):
    """torch → ONNX failed, or the proof of the exported batch axis did."""


class PrecisionError(TrtbatchError):
    """A precision that was asked for can't be had, was not realised, or overflows."""


class BuildError(TrtbatchError):
    """ONNX → engine failed."""


class RowsError(TrtbatchError):
    """An engine gives wrong rows."""


class AccuracyError(RowsError):
    """An engine's rows agree with each other, and are too far from those of the ONNX file."""


class InputError(TrtbatchError):
    """Data doesn't fit the engine's inputs."""


class ExecutionError(TrtbatchError):
    """The engine failed while it ran."""


_OS_FIXES = {
    errno.ENOSPC: "free disk space, or write elsewhere",
    errno.EDQUOT: "free disk space (your quota is used up), or write elsewhere",
    errno.EACCES: "give yourself the permission, or write elsewhere",
    errno.EPERM: "give yourself the permission, or write elsewhere",
    errno.EROFS: "this file system is read-only: write elsewhere",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or write elsewhere",
    errno.ENOENT: "check the path",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "name a folder whose every parent is a folder",
    errno.EEXIST: "a file stands where a folder is needed: move it, or write elsewhere",
}


_MAY_NOT = (errno.EACCES, errno.EPERM)

_READING = "give yourself the permission to read it"


def reading_fix(error: Exception, otherwise: str) -> str:
    """What to do about a file that can't be read, where the system says why."""
    return _READING if isinstance(error, OSError) and error.errno in _MAY_NOT else otherwise


def unreadable(path: object) -> TrtbatchError:
    """A file that its reader has no permission to read."""
    return TrtbatchError(f"{path} can't be read: {os.strerror(errno.EACCES)}", _READING)


def from_os_error(error: OSError, option: str | None = None) -> TrtbatchError:
    """The operating system's refusal, in our words; the file name is kept where the system gave one.

    Args:
        option: by which the command is told where to write; None where it has none, or several.
    """
    told, barred = error.filename, error.errno in _MAY_NOT
    # The system doesn't say what a file was opened for.
    if barred and isinstance(told, (str, os.PathLike)) and os.path.isfile(told) and not os.access(told, os.R_OK):
        return unreadable(told)
    where = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error) or type(error).__name__
    fix = _OS_FIXES.get(error.errno or 0, "check the path, its permissions and the free space of its disk")
    if option is not None and fix.endswith("write elsewhere"):
        fix = f"{fix} with {option}"
    return TrtbatchError(f"{where}{reason}", fix)
