"""Write files safely: private folders, atomic renames, and checks that protect existing files.

A private folder is locked (``flock``) until its process ends, for whatever reason. Creating another private folder in
the same parent removes those without a lock. Locks are local to one machine and end when it stops, so a folder's name
holds the machine's boot id, and folders with another boot id stay.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from trtbatch.errors import TrtbatchError, UsageError, from_os_error
from trtbatch.util.log import note

__all__ = [
    "ASIDE",
    "Output",
    "atomic_file",
    "name_written",
    "probe",
    "refuse_outputs",
    "refuse_unwritable",
    "require_space",
    "scratch",
    "sidecar_path",
]

Output = tuple[Path | None, str, str]
"""An output file of a run, its required suffix (empty for any), and the option that names it."""

_PREFIX = ".trtbatch-"

ASIDE = "replaced"
"""Name, in a private folder, of what an output replaces. A private folder that a killed run left with it is kept."""


def sidecar_path(artifact: Path) -> Path:
    """Return the path of an artifact's sidecar."""
    return artifact.with_name(artifact.name + ".json")


def refuse_folder(target: Path, option: str | None = None) -> None:
    """Raise where the path of an output file is a folder.

    Args:
        target: the output file.
        option: the option that names it, if any.

    Raises:
        UsageError: `target` is a folder.
    """
    if target.is_dir():
        raise UsageError(f"{option} {target} is a folder" if option else f"{target} is a folder", "name a file")


def require_space(target: Path, wanted: int) -> None:
    """Raise where the disk of `target` has fewer free bytes than `wanted`, before a library fails less clearly.

    Raises:
        OSError: ENOSPC, with the path of `target`.
    """
    folder = next(parent for parent in target.absolute().parents if parent.is_dir())
    if shutil.disk_usage(folder).free < wanted:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({wanted:,} bytes are needed)", str(target))


def probe(target: Path) -> None:
    """Check before a long run that its output file can be written, and leave nothing behind.

    Raises:
        UsageError: `target` is a folder.
        OSError: its folder can't be written or made.
    """
    refuse_folder(target)
    there = _standing(target.parent)
    if not there.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(there))
    with _private(there) as folder:
        (folder / target.name).touch()  # the name may be too long


def _standing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists; a dangling link counts as existing, but is no folder."""
    return next((each for each in (folder, *folder.parents) if os.path.lexists(each)), Path())


def refuse_unwritable(target: Path, option: str) -> None:
    """Raise before a long run where the output that an option names can't be written.

    Raises:
        UsageError: the output is a folder.
        TrtbatchError: its folder can't be written; the message names the option.
    """
    try:
        probe(target)
    except OSError as error:
        told = from_os_error(error, option)
        raise TrtbatchError(f"{option} {target} can't be written: {told.problem}", told.fix) from error


def refuse_outputs(*targets: Output, inputs: Sequence[Path] = ()) -> None:
    """Raise before a long run where an output can't be written, or would destroy another file.

    Args:
        *targets: the files that the run writes.
        inputs: the files that the run reads.

    Raises:
        UsageError: an output is a folder, an artifact, a sidecar or an input, has another suffix, or is named twice.
        TrtbatchError: a folder can't be written.
    """
    named: list[Path] = []
    for target, suffix, option in targets:
        if target is None:
            continue
        _refuse_harm(target, suffix, option)
        if target.resolve() in {other.resolve() for other in (*named, *inputs)}:
            raise UsageError(f"{option} {target} is named twice", "write elsewhere")
        refuse_unwritable(target, option)
        named.append(target)


def _refuse_harm(target: Path, suffix: str, option: str) -> None:
    refuse_folder(target, option)
    if not target.name.endswith(suffix):
        raise UsageError(f"{option} {target} doesn't end in {suffix}", f"write {target.with_suffix(suffix)}")
    if sidecar_path(target).is_file() or (target.suffix == ".json" and target.with_suffix("").is_file()):
        raise UsageError(f"{option} {target} is an artifact, or the sidecar of one", "write elsewhere")


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """Yield a private folder on the disk of `target`, and remove it afterwards in any case.

    Raises:
        UsageError: `target` is a folder.
    """
    refuse_folder(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _private(target.parent) as folder:
        try:
            yield folder
        except OSError as error:
            name_written(error, folder, target)
            raise


def name_written(error: OSError, folder: Path, target: Path) -> None:
    """Make a write error name the path that the user knows, not a private file or the source of a copy.

    Args:
        error: changed in place.
        folder: the private folder in which `target` is prepared.
        target: what the user named.
    """
    told = error.filename if error.filename2 is None else error.filename2
    if told is None and error.errno in _FULL:
        told = target  # an error of writing into an open file names nothing
    elif isinstance(told, (str, Path)) and Path(told).is_relative_to(folder):
        own = folder / target.name
        told = target / Path(told).relative_to(own) if Path(told).is_relative_to(own) else target
    if isinstance(told, (str, Path)):
        error.filename, error.filename2 = str(told), None


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def _private(parent: Path) -> Iterator[Path]:
    """Yield a private folder in `parent`."""
    _remove_abandoned(parent)
    try:
        folder, lock = _private_folder(parent)
    except OSError as error:  # name the parent, not the random name that was tried in it
        error.filename = str(parent)
        raise
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _private_folder(parent: Path) -> tuple[Path, int | None]:
    """Return a new folder and the descriptor of its lock; without a lock (None) the folder is never removed later."""
    start = machine_start()
    for _ in range(3 if start else 0):  # another process may remove the folder before it is locked
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{start}-", dir=parent))
        lock = _lock(folder)
        if lock is not None:
            return folder, lock
        with suppress(OSError):
            folder.rmdir()
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)), None


def _remove_abandoned(parent: Path) -> None:
    """Remove private folders whose process is gone."""
    start = machine_start()
    for folder in parent.glob(f"{_PREFIX}{start}-????????") if start else ():
        lock = _lock(folder)
        if lock is None:
            continue
        try:
            if not (folder / ASIDE).exists():
                shutil.rmtree(folder, ignore_errors=True)
                note(f"removed {folder}, which a run that was killed had left")
        finally:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Return the descriptor that locks a folder until closed; None if it is locked already, no folder, or gone."""
    import fcntl

    with suppress(OSError), ExitStack() as stack:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        stack.callback(os.close, held)
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(held), os.stat(folder)):
            stack.pop_all()
            return held
    return None


@cache
def machine_start() -> str:
    """Return an id of the machine's current boot; empty where there is none (only Linux has one)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
    except OSError:
        return ""


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a path to write; the file becomes `target` when the block succeeds, and is removed when it fails."""
    with scratch(target) as folder:
        path = folder / target.name
        try:
            yield path
            os.replace(path, target)
        except OSError as error:
            if error.filename is None:  # the error of a full disk names no file
                error.filename = str(target)
            raise
