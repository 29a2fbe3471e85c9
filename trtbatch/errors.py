"""Define every exception that trtbatch raises on purpose.

::

    TrtbatchError                exit code 1: the request was well-formed, and failed
    ├── UsageError               exit code 2: the request itself can't be carried out
    │   ├── BatchListError       a batch list that doesn't parse
    │   └── ProfileError         min, opt, max, or a batch outside every profile
        ├── MissingPackageError      an optional package or a GPU is missing
        ├── ArtifactError            a file of engines/ is missing, damaged or from another machine
        ├── ModelError               a torch model can't be found, made or run
        ├── ExportError              the export from torch to ONNX failed, or its validation did
        ├── PrecisionError           a requested precision isn't available, or overflows
        ├── BuildError               the build from ONNX to an engine failed
        ├── RowsError                an engine's rows are wrong
        │   └── AccuracyError        … or agree among themselves but are too far from the ONNX file's
        ├── InputError               data doesn't fit the engine
        └── ExecutionError           the engine failed while running

    Every exception carries a *problem* (one line, with the values) and a *fix* (one line, what to do).
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
    """Base of all errors: what is wrong, and what to do about it.

    Args:
        problem: one line, with the values that cause the problem.
        fix: one line, the command or the change that solves it.
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
    """A batch list doesn't parse."""


class ProfileError(UsageError):
    """An optimization profile is impossible, or a batch is outside every profile."""


class MissingPackageError(TrtbatchError):
    """An optional package, or the GPU that it needs, is missing."""


class ArtifactError(TrtbatchError):
    """A file of ``engines/`` is missing, damaged, or made on another machine."""


class ModelError(TrtbatchError):
    """A torch model can't be found, made or run."""


class ExportError(TrtbatchError):
    """The export from torch to ONNX failed, or the validation of the exported batch axis did."""


class PrecisionError(TrtbatchError):
    """A requested precision isn't available, was not realized, or overflows."""


class BuildError(TrtbatchError):
    """The build from ONNX to an engine failed."""


class RowsError(TrtbatchError):
    """An engine gives wrong rows."""


class AccuracyError(RowsError):
    """An engine's rows agree with each other, but are too far from the ONNX file's."""


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
    """Return the fix for a file that can't be read: permission where the system denied it, else `otherwise`."""
    return _READING if isinstance(error, OSError) and error.errno in _MAY_NOT else otherwise


def unreadable(path: object) -> TrtbatchError:
    """Return the error for a file that its reader has no permission to read."""
    return TrtbatchError(f"{path} can't be read: {os.strerror(errno.EACCES)}", _READING)


def from_os_error(error: OSError, option: str | None = None) -> TrtbatchError:
    """Convert an error of the operating system, and keep the file name where the system gave one.

    Args:
        error: what the system raised.
        option: the option that names the output; None where the command has none, or several.
    """
    told, barred = error.filename, error.errno in _MAY_NOT
    # The system doesn't report whether a file was opened to be read or to be written.
    if barred and isinstance(told, (str, os.PathLike)) and os.path.isfile(told) and not os.access(told, os.R_OK):
        return unreadable(told)
    where = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error) or type(error).__name__
    fix = _OS_FIXES.get(error.errno or 0, "check the path, its permissions and the free space of its disk")
    if option is not None and fix.endswith("write elsewhere"):
        fix = f"{fix} with {option}"
    return TrtbatchError(f"{where}{reason}", fix)
