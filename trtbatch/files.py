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

from trtbatch.errors import UsageError
from trtbatch.notes import note

__all__ = ["ASIDE", "atomic_file", "refuse_folder", "refuse_outputs", "require_space", "scratch", "sidecar_path"]


_PREFIX = ".trtbatch-"

ASIDE = "replaced"
"""In a private folder: what was there before, on its way out. A folder that a killed run left with it is kept."""


def sidecar_path(artifact: Path) -> Path:
    return artifact.with_name(artifact.name + ".json")


def refuse_folder(target: Path) -> None:
    """Raise where a file is to be written and a folder stands.

    Raises:
        UsageError: `target` is a folder.
    """
    if target.is_dir():
        raise UsageError(f"{target} is a folder", "name a file")


def require_space(target: Path, wanted: int) -> None:
    """Raise where the disk of `target` hasn't this many bytes free, before a library fails with other words.

    Raises:
        OSError: ENOSPC, for the folder.
    """
    folder = next(parent for parent in target.absolute().parents if parent.is_dir())
    if shutil.disk_usage(folder).free < wanted:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({wanted:,} bytes are needed)", str(target))


def refuse_outputs(*targets: tuple[Path | None, str], inputs: Sequence[Path] = ()) -> None:
    """Raise before a long run where what it is to write can't be written, or would destroy something else.

    Args:
        targets: each with the suffix that it must have, empty for any.
        inputs: files that the run reads.

    Raises:
        UsageError: a folder, another suffix, an artifact, a sidecar, an input, or the same file twice.
        OSError: the folder can't be written.
    """
    wanted = {target: suffix for target, suffix in targets if target is not None}
    named = [target for target, _ in targets if target is not None]
    for index, target in enumerate(named):
        refuse_folder(target)
        if not target.name.endswith(wanted[target]):
            raise UsageError(f"{target} doesn't end in {wanted[target]}", f"write {target.with_suffix(wanted[target])}")
        if sidecar_path(target).is_file() or (target.suffix == ".json" and target.with_suffix("").is_file()):
            raise UsageError(f"{target} is an artifact, or the sidecar of one", "write elsewhere")
        if target.resolve() in {other.resolve() for other in (*named[:index], *inputs)}:
            raise UsageError(f"{target} is named twice", "write elsewhere")
        with scratch(target):
            pass


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """A private folder on the disk of `target`, gone afterwards whatever happens.

    Raises:
        UsageError: `target` is a folder.
    """
    refuse_folder(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target.parent)
    try:
        folder, lock = _private_folder(target.parent)
    except OSError as error:  # the folder's fault, not that of the name that was tried
        error.filename = str(target.parent)
        raise
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _private_folder(parent: Path) -> tuple[Path, int | None]:
    """A new folder, and the descriptor that holds its lock; None where it can't be locked, and so is never removed."""
    start = _machine_start()
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
    start = _machine_start()
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
def _machine_start() -> str:
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
