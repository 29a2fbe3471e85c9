"""Describe a preprocessor file: an ONNX file by its metadata, an engine by its sidecar."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trtbatch.core import store
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.sidecar import Artifact, Sidecar
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import ArtifactError
from trtbatch.images.preprocessor import KEY, engine_record, read_record
from trtbatch.onnx_graph.read import load_onnx
from trtbatch.util import files

__all__ = ["PreprocessorReport", "inspect_preprocessor", "is_preprocessor_file"]


@dataclass(frozen=True)
class PreprocessorReport:
    """Contents of a preprocessor file.

    Args:
        model: name of the artifact whose input it fills.
        opset: opset of an ONNX file; None for an engine.
        damaged: how the file differs from its sidecar's record; None if it doesn't.
        sidecar: sidecar of an engine; None for an ONNX file.
    """

    path: str
    model: str
    recipe: Preprocessing
    max_size: int
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    opset: int | None
    damaged: str | None
    sidecar: Sidecar | None

    def __repr__(self) -> str:
        return f"PreprocessorReport({self.path!r}, for {self.model}, {self.output})"


def is_preprocessor_file(path: Path) -> bool:
    """Return whether a file is a preprocessor, by its sidecar or its own metadata."""
    if files.sidecar_path(path).is_file():
        return _engine(path) is not None
    if path.suffix != ".onnx" or not path.is_file():
        return False
    return KEY in _metadata(path)


def inspect_preprocessor(path: Path) -> PreprocessorReport:
    """Return what a preprocessor file reports about itself.

    Raises:
        ArtifactError: the file is no preprocessor, or its record is damaged.
    """
    artifact = _engine(path)
    if artifact is None:
        record = read_record(_metadata(path), path)
        model, opset, sidecar = record.source.file, record.opset, None
    else:
        record, opset, sidecar = engine_record(artifact), None, artifact.sidecar
        model = sidecar.model.name
    damaged = None if artifact is None else _damage(artifact)
    recipe, size = record.recipe, record.max_size
    return PreprocessorReport(str(path), model, recipe, size, record.inputs, record.output, opset, damaged, sidecar)


def _engine(path: Path) -> Artifact | None:
    try:
        return store.load(path, "preprocessor")
    except ArtifactError:
        return None


def _metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in load_onnx(path).metadata_props}


def _damage(artifact: Artifact) -> str | None:
    try:
        store.check_file(artifact)
    except ArtifactError as error:
        return error.problem
    return None
