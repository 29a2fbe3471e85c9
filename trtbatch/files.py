"""Writing without harm: private folders, atomic renames, and what may not be replaced."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trtbatch.errors import UsageError

__all__ = ["atomic_file", "refuse_folder", "refuse_outputs", "require_space", "scratch", "sidecar_path"]


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
    try:
        folder = Path(tempfile.mkdtemp(prefix=".trtbatch-", dir=target.parent))
    except OSError as error:  # the folder's fault, not that of the name that was tried
        error.filename = str(target.parent)
        raise
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
