"""The folder of artifacts: names, hashes, the newest that fits, atomic writes.

Stages meet only through an artifact and its sidecar: a later stage reads the sidecar before it opens the artifact.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trtbatch.core.hints import ARTICLES, MAKE, build_line, instead, of_other_backend, refuse_other_file
from trtbatch.core.sidecar import Artifact, FileRecord, Kind, Sidecar, read_sidecar
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
"""Where artifacts go and are looked for, relative to the working directory."""


def now() -> str:
    """The time, UTC, to the microsecond: artifacts of one second still have an order."""
    return datetime.now(timezone.utc).isoformat()


def record_file(path: Path) -> FileRecord:
    """Name, hash and size of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return FileRecord(path.name, digest.hexdigest(), path.stat().st_size)


def load(path: Path, kind: Kind) -> Artifact:
    """Read the sidecar of an artifact.

    Raises:
        ArtifactError: no artifact, no sidecar, a damaged sidecar, or a sidecar of another kind.
    """
    make = "trtbatch build" if kind != "onnx" else "trtbatch export MODEL --dynamic"
    refuse_other_file(path, kind)
    if not path.is_file():
        there = of_other_backend(path)
        fix = f"run: {make}" if there is None else f"name the one that is there: {there}"
        raise ArtifactError(f"{path} doesn't exist" if not path.exists() else f"{path} is not a file", fix)
    beside = sidecar_path(path)
    if not beside.is_file():
        raise ArtifactError(f"{path} has no sidecar {beside.name}", f"make it again, sidecar and all: {make}")
    sidecar = read_sidecar(beside, make)
    if sidecar.kind != kind:
        problem = f"{path} is {ARTICLES[sidecar.kind]}, not {ARTICLES[kind]}"
        raise ArtifactError(problem, instead(path, sidecar, kind))
    return Artifact(path, sidecar)


def check_file(artifact: Artifact) -> None:
    """Compare the artifact and its companions with what the sidecar recorded: size first, then SHA-256.

    Raises:
        ArtifactError: a file is truncated, changed or missing.
    """
    make = "trtbatch export MODEL --dynamic" if artifact.sidecar.kind == "onnx" else build_line(artifact)
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
    """The artifact of `kind` in `folder` that was made last and that `fits`; damaged ones are passed over, and named.

    Args:
        what: the description of what would fit, for the error.
        prefer: what comes before all that is newer, where there is any.

    Raises:
        ArtifactError: there is none; the command that makes one is named.
    """
    folder = ENGINES if folder is None else folder
    found = [each for each in listed(kind, folder) if fits(each.sidecar)]
    if not found:
        raise ArtifactError(f"no {what} in {folder}/", f"run: {MAKE[kind]}, or name the file")
    return max(found, key=lambda each: (prefer(each.sidecar), each.sidecar.created, each.path.name))


def listed(kind: Kind, folder: Path, tell: Callable[[str], None] = warn) -> list[Artifact]:
    """The artifacts of `kind` in `folder`, by name; damaged ones are passed over, and `tell` is told of them."""
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
    """The ONNX file that has the name of one that is to be made; None where the name is free.

    Args:
        is_such: whether it is of the kind that is to be made.
        words: what a sidecar of that kind says, for the error.

    Raises:
        UsageError: the name is taken by something else.
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
    """Whether a file is whole, and was made from `source` as that is now."""
    made_from = artifact.sidecar.source
    if made_from is None or made_from.sha256 != source.sidecar.artifact.sha256:
        return False
    try:
        check_file(artifact)
    except ArtifactError:
        return False
    return True


def publish(made: Path, target: Path, sidecar: Sidecar, companions: tuple[Path, ...] = ()) -> Artifact:
    """Move a finished artifact from its scratch folder to `target`, sidecar beside it, by atomic renames.

    The sidecar records the artifact's hash, so a crash between the renames is found by :func:`check_file`.
    """
    text = json.dumps(encode(sidecar), indent=2, ensure_ascii=False)
    beside = sidecar_path(made)
    beside.write_text(text + "\n", encoding="utf-8")
    mask = os.umask(0)
    os.umask(mask)
    for companion in companions:
        companion.chmod(0o666 & ~mask)  # onnx writes weights for the owner alone
        os.replace(companion, target.with_name(companion.name))
    os.replace(made, target)
    os.replace(beside, sidecar_path(target))
    return Artifact(target, sidecar)


def rewrite(artifact: Artifact, **fields: Any) -> Artifact:
    """Set fields of an artifact's sidecar, atomically; the artifact itself, and all else in the sidecar, stay.

    The sidecar is read again first: what another command has written meanwhile, and what a newer trtbatch has written
    that this one doesn't know, is kept.

    Raises:
        ArtifactError: the artifact was made anew meanwhile, or its sidecar can't be read any more.
    """
    path, sidecar = artifact.path, artifact.sidecar
    there = load(path, sidecar.kind).sidecar
    if there.artifact != sidecar.artifact:
        raise ArtifactError(f"{path} was made anew meanwhile", "run the command again")
    beside = sidecar_path(path)
    data = json.loads(beside.read_text(encoding="utf-8")) | {name: encode(value) for name, value in fields.items()}
    with atomic_file(beside) as made:
        made.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return load(path, sidecar.kind)


def is_engine(path: Path) -> bool:
    """Whether a file is an engine: its sidecar says so, else its suffix."""
    if sidecar_path(path).is_file():
        try:
            return load(path, "engine").sidecar.kind == "engine"
        except ArtifactError:
            pass
    return path.name.endswith((".engine", ".ort.onnx", ".plan", ".trt"))
