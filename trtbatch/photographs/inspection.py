"""What is in a preprocessor: its ONNX file, which says so itself, or its engine, whose sidecar does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from trtbatch import artifacts, files
from trtbatch.artifacts import Artifact, FileRecord, Sidecar, TensorSpec
from trtbatch.backends.base import Range
from trtbatch.errors import ArtifactError
from trtbatch.onnxfile import load_onnx
from trtbatch.photographs.build import ranges_of, specs_of
from trtbatch.photographs.preprocessor import KEY, recorded_in
from trtbatch.photographs.record import record_of_engine
from trtbatch.preprocessing import Preprocessing
from trtbatch.records import RecordError, decode

__all__ = ["PreprocessorReport", "inspect_preprocessor", "is_preprocessor_file"]


@dataclass(frozen=True)
class PreprocessorReport:
    """What a preprocessor says of itself.

    Args:
        model: the artifact whose input it fills.
        ranges: of each profile, the shapes that its engine takes, or is to be built for, by open input.
        opset: of an ONNX file.
        damaged: what is wrong with the file, where it isn't the one that was recorded.
        sidecar: of an engine.
    """

    path: str
    model: str
    recipe: Preprocessing
    max_size: int
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    ranges: tuple[dict[str, Range], ...]
    opset: int | None
    damaged: str | None
    sidecar: Sidecar | None


def is_preprocessor_file(path: Path) -> bool:
    """Whether a file is a preprocessor: its sidecar says so, or the ONNX file itself."""
    if files.sidecar_path(path).is_file():
        return _engine(path) is not None
    if path.suffix != ".onnx" or not path.is_file():
        return False
    return any(entry.key == KEY for entry in load_onnx(path).metadata_props)


def _engine(path: Path) -> Artifact | None:
    try:
        return artifacts.load(path, "preprocessor")
    except ArtifactError:
        return None


def inspect_preprocessor(path: Path) -> PreprocessorReport:
    """Read what a preprocessor says of itself, and compare the file with what was recorded.

    Raises:
        ArtifactError: no preprocessor, or a damaged record.
    """
    artifact = _engine(path)
    damaged = None
    if artifact is None:
        record = recorded_in({entry.key: entry.value for entry in load_onnx(path).metadata_props}, path)
        model, opset = record.source.file, record.opset
        if not _is_recorded(path):
            damaged = f"{path} is not the file that {path.with_suffix('.json').name} describes (SHA-256 differs)"
    else:
        record, opset = record_of_engine(artifact), None
        model = artifact.sidecar.model.name
        try:
            artifacts.check_file(artifact)
        except ArtifactError as error:
            damaged = error.problem
    inputs, output = specs_of(record)
    return PreprocessorReport(
        path=str(path),
        model=model,
        recipe=record.recipe,
        max_size=record.max_size,
        inputs=inputs,
        output=output,
        ranges=ranges_of(record),
        opset=opset,
        damaged=damaged,
        sidecar=None if artifact is None else artifact.sidecar,
    )


def _is_recorded(path: Path) -> bool:
    """Whether an ONNX file is the one in the JSON file beside it, where there is one."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return True
    try:
        data = json.loads(beside.read_text(encoding="utf-8"))
        known = decode(FileRecord, data.get("artifact") if isinstance(data, dict) else data)
    except (RecordError, ValueError, RecursionError):
        return False
    return artifacts.record_file(path).sha256 == known.sha256
