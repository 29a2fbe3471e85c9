"""Writing without harm: private folders, atomic renames, and what may not be replaced.

A private folder is locked (``flock``) while its process lives, whatever ends that; the next one made beside it removes
those that nobody holds. Locks are known to one machine, and end with it: so the name tells the machine's start, and
folders of another are left alone.
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
"""A file that a run is to write, the suffix that it must have (empty for any), and the option that names it."""

_PREFIX = ".trtbatch-"

ASIDE = "replaced"
"""In a private folder: what was there before, on its way out. A folder that a killed run left with it is kept."""


def sidecar_path(artifact: Path) -> Path:
    return artifact.with_name(artifact.name + ".json")


def refuse_folder(target: Path, option: str | None = None) -> None:
    """Raise where a file is to be written and a folder stands.

    Args:
        option: that names it, if any.

    Raises:
        UsageError: `target` is a folder.
    """
    if target.is_dir():
        raise UsageError(f"{option} {target} is a folder" if option else f"{target} is a folder", "name a file")


def require_space(target: Path, wanted: int) -> None:
    """Raise where the disk of `target` hasn't this many bytes free, before a library fails with other words.

    Raises:
        OSError: ENOSPC, for the folder.
    """
    folder = next(parent for parent in target.absolute().parents if parent.is_dir())
    if shutil.disk_usage(folder).free < wanted:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({wanted:,} bytes are needed)", str(target))


def probe(target: Path) -> None:
    """Raise where a file can't be written, before a long run that is to write it; nothing of this stays.

    Raises:
        UsageError: `target` is a folder.
        OSError: its folder can't be written, or can't be made.
    """
    refuse_folder(target)
    there = _standing(target.parent)
    if not there.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(there))
    with _private(there) as folder:
        (folder / target.name).touch()  # a name may be too long


def _standing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there; a link to nothing is there too, and no folder."""
    return next((each for each in (folder, *folder.parents) if os.path.lexists(each)), Path())


def refuse_unwritable(target: Path, option: str) -> None:
    """Raise before a long run where what an option names can't be written.

    Raises:
        UsageError: it is a folder.
        TrtbatchError: its folder can't be written; the option is named.
    """
    try:
        probe(target)
    except OSError as error:
        told = from_os_error(error, option)
        raise TrtbatchError(f"{option} {target} can't be written: {told.problem}", told.fix) from error


def refuse_outputs(*targets: Output, inputs: Sequence[Path] = ()) -> None:
    """Raise before a long run where what it is to write can't be written, or would destroy something else.

    Args:
        inputs: files that the run reads.

    Raises:
        UsageError: a folder, another suffix, an artifact, a sidecar, an input, or the same file twice.
        TrtbatchError: the folder can't be written.
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
    """A private folder on the disk of `target`, gone afterwards whatever happens.

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
    """Let an error of writing name what the user knows: not a private file, nor, as copying has it, the file read.

    Args:
        folder: the private one in which `target` is prepared.
    """
    told = error.filename if error.filename2 is None else error.filename2
    if told is None and error.errno in _FULL:
        told = target  # writing into an open file names nothing
    elif isinstance(told, (str, Path)) and Path(told).is_relative_to(folder):
        own = folder / target.name
        told = target / Path(told).relative_to(own) if Path(told).is_relative_to(own) else target
    if isinstance(told, (str, Path)):
        error.filename, error.filename2 = str(told), None


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def _private(parent: Path) -> Iterator[Path]:
    """A private folder in `parent`."""
    _remove_abandoned(parent)
    try:
        folder, lock = _private_folder(parent)
    except OSError as error:  # the folder's fault, not that of the name that was tried
        error.filename = str(parent)
        raise
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _private_folder(parent: Path) -> tuple[Path, int | None]:
    """A new folder, and the descriptor that holds its lock; None where it can't be locked, and so is never removed."""
    start = machine_start()
    for _ in range(3 if start else 0):  # another process may take it for abandoned before it is locked
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
    """The descriptor that locks a folder until it is closed; None where another holds it, or it is none or gone."""
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
    """A name for the time since this machine was started; empty where it has none (only Linux does)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
    except OSError:
        return ""


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A path to write; it becomes `target` when the block ends well, and vanishes when it doesn't."""
    with scratch(target) as folder:
        path = folder / target.name
        try:
            yield path
            os.replace(path, target)
        except OSError as error:
            if error.filename is None:  # as a full disk is told
                error.filename = str(target)
            raise
