"""Manage the folder of artifacts: names, hashes, the newest that fits, atomic writes.

Stages meet only through an artifact and its sidecar: a later stage reads the sidecar before it opens the artifact.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from trtbatch.core.hints import (
    ARTICLES,
    EXPORT,
    MAKE,
    build_line,
    call,
    instead,
    of_other_backend,
    refuse_other_file,
)
from trtbatch.core.sidecar import Artifact, FileRecord, Kind, Planned, Sidecar, Tuned, read_sidecar
from trtbatch.errors import ArtifactError, UsageError
from trtbatch.util.files import atomic_file, sidecar_path
from trtbatch.util.log import warn
from trtbatch.util.serialization import encode

__all__ = [
    "ENGINES",
    "check_file",
    "is_engine",
    "listed",
    "load",
    "newest",
    "now",
    "occupant",
    "publish",
    "record_file",
    "rewrite",
    "still_made_from",
]

ENGINES = Path("engines")
"""Folder of artifacts, relative to the working directory."""


def now() -> str:
    """Return the time in UTC to the microsecond, so that artifacts of the same second have an order."""
    return datetime.now(timezone.utc).isoformat()


def record_file(path: Path) -> FileRecord:
    """Return the name, hash and size of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return FileRecord(path.name, digest.hexdigest(), path.stat().st_size)


def load(path: Path, kind: Kind) -> Artifact:
    """Read the sidecar of an artifact.

    Raises:
        ArtifactError: the artifact or its sidecar is missing, or the sidecar is damaged or of another kind.
    """
    make = EXPORT if kind == "onnx" else call("build")
    refuse_other_file(path, kind)
    if not path.is_file():
        there = of_other_backend(path)
        fix = f"run: {make}" if there is None else f"name the one that is there: {there}"
        raise ArtifactError(f"{path} doesn't exist" if not path.exists() else f"{path} is not a file", fix)
    beside = sidecar_path(path)
    if not beside.is_file():
        if kind == "engine" and path.suffix == ".onnx" and not path.name.endswith(".ort.onnx"):
            raise ArtifactError(
                f"{path} is an ONNX file, not an engine", f"make an engine of it: {call('build', path)}"
            )
        raise ArtifactError(f"{path} has no sidecar {beside.name}", f"make it again, sidecar and all: {make}")
    sidecar = read_sidecar(beside, make)
    if sidecar.kind != kind:
        problem = f"{path} is {ARTICLES[sidecar.kind]}, not {ARTICLES[kind]}"
        raise ArtifactError(problem, instead(path, sidecar, kind))
    return Artifact(path, sidecar)


def check_file(artifact: Artifact) -> None:
    """Compare an artifact and its companions with the sidecar's record: size first, then SHA-256.

    Raises:
        ArtifactError: a file is truncated, changed or missing.
    """
    make = EXPORT if artifact.sidecar.kind == "onnx" else build_line(artifact)
    for record in (artifact.sidecar.artifact, *artifact.sidecar.companions):
        path = artifact.path if record is artifact.sidecar.artifact else artifact.path.with_name(record.file)
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; {artifact.path.name} needs it", f"put it back, or run: {make}")
        size = path.stat().st_size
        if size != record.bytes:
            state = "truncated" if size < record.bytes else "changed"
            raise ArtifactError(f"{path} is {state}: {size} bytes, {record.bytes} when it was made", f"run: {make}")
        if record_file(path).sha256 != record.sha256:
            raise ArtifactError(f"{path} is not the file that its sidecar describes (SHA-256 differs)", f"run: {make}")


def newest(
    kind: Kind,
    fits: Callable[[Sidecar], bool],
    what: str,
    folder: Path | None = None,
    prefer: Callable[[Sidecar], bool] = lambda sidecar: True,
) -> Artifact:
    """Return the newest artifact that fits; damaged ones are skipped with a warning.

    Args:
        kind: the kind of artifact.
        fits: whether a sidecar fits.
        what: description of what would fit, for the error.
        folder: where to search; None for :data:`ENGINES`.
        prefer: sidecars that come before all others, however old.

    Raises:
        ArtifactError: nothing fits; the fix names the command that makes one.
    """
    folder = ENGINES if folder is None else folder
    found = [each for each in listed(kind, folder) if fits(each.sidecar)]
    if not found:
        raise ArtifactError(f"no {what} in {folder}/", f"run: {MAKE[kind]}, or name the file")
    return max(found, key=lambda each: (prefer(each.sidecar), each.sidecar.build.created, each.path.name))


def listed(kind: Kind, folder: Path, tell: Callable[[str], None] = warn) -> list[Artifact]:
    """Return the artifacts of `kind` in `folder`, by name; damaged ones are skipped and reported to `tell`."""
    found: list[Artifact] = []
    for beside in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        path = beside.with_suffix("")
        if not path.is_file():
            continue
        try:
            sidecar = read_sidecar(beside, MAKE[kind])
        except ArtifactError as error:
            tell(f"passed over: {error.problem}")
            continue
        if sidecar.kind == kind:
            found.append(Artifact(path, sidecar))
    return found


def occupant(target: Path, is_such: Callable[[Sidecar], bool], words: str) -> Artifact | None:
    """Return the ONNX file that already has the name of one to be made, or None where the name is free.

    Args:
        target: path of the file to be made.
        is_such: whether a sidecar is of the kind to be made.
        words: what such a sidecar says, for the error.

    Raises:
        UsageError: another file has the name.
    """
    if not target.exists():
        return None
    try:
        artifact = load(target, "onnx")
    except ArtifactError:
        artifact = None
    if artifact is None or not is_such(artifact.sidecar):
        raise UsageError(
            f"{target} is in the way: it has no sidecar that says {words}",
            "move it, or build into another folder (`output`)",
        )
    return artifact


def still_made_from(artifact: Artifact, source: Artifact) -> bool:
    """Return whether an artifact is undamaged, and was made from `source` in its present state."""
    made_from = artifact.sidecar.source
    if made_from is None or made_from.sha256 != source.sidecar.artifact.sha256:
        return False
    try:
        check_file(artifact)
    except ArtifactError:
        return False
    return True


def publish(made: Path, target: Path, sidecar: Sidecar, companions: tuple[Path, ...] = ()) -> Artifact:
    """Move a finished artifact from its scratch folder to `target`, with its sidecar, by atomic renames.

    The sidecar records the artifact's hash, so :func:`check_file` detects a crash between the renames.
    """
    text = json.dumps(encode(sidecar), indent=2, ensure_ascii=False)
    beside = sidecar_path(made)
    beside.write_text(text + "\n", encoding="utf-8")
    mask = os.umask(0)
    os.umask(mask)
    for companion in companions:
        companion.chmod(0o666 & ~mask)  # onnx writes weights that only their owner may read
        os.replace(companion, target.with_name(companion.name))
    os.replace(made, target)
    os.replace(beside, sidecar_path(target))
    return Artifact(target, sidecar)


def rewrite(artifact: Artifact, **fields: Tuned | Planned) -> Artifact:
    """Set fields of an engine's record atomically, and leave the artifact and all other fields unchanged.

    The sidecar is read again first, which keeps fields that another command has written since then, and fields of a
    newer trtbatch that this one doesn't know.

    Raises:
        ArtifactError: the artifact was replaced in the meantime, or its sidecar can no longer be read.
    """
    path, sidecar = artifact.path, artifact.sidecar
    there = load(path, sidecar.kind).sidecar
    if there.artifact != sidecar.artifact:
        raise ArtifactError(f"{path} was made anew meanwhile", "run the command again")
    beside = sidecar_path(path)
    data = json.loads(beside.read_text(encoding="utf-8"))
    data["engine"] |= {name: encode(value) for name, value in fields.items()}
    with atomic_file(beside) as made:
        made.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return load(path, sidecar.kind)


def is_engine(path: Path) -> bool:
    """Return whether a file is an engine, by its sidecar, else by its suffix."""
    if sidecar_path(path).is_file():
        try:
            return load(path, "engine").sidecar.kind == "engine"
        except ArtifactError:
            pass
    return path.name.endswith((".engine", ".ort.onnx", ".plan", ".trt"))
