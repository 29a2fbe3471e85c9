"""What a preprocessor is: the record that its ONNX file and its engine keep."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from trtbatch.artifacts import Artifact, FileRecord, TensorSpec
from trtbatch.errors import ArtifactError
from trtbatch.preprocessing import Preprocessing

__all__ = ["FORMAT_VERSION", "OPSET", "OUTPUT", "PreprocessorRecord", "record_of_engine"]

OUTPUT = "sample"

OPSET = 17
"""The newest that TensorRT 8.6 reads."""

FORMAT_VERSION = 3


@dataclass(frozen=True)
class PreprocessorRecord:
    """What a preprocessor is, kept in its ONNX file and in the JSON file beside it.

    Args:
        recipe: that it follows.
        output: one sample of the model's input, ``(1, 3, H, W)``, or uint8 as `recipe` says.
        max_size: rows and columns of the largest part of a photograph that it is to be built for.
        source: the artifact whose input it fills.
    """

    recipe: Preprocessing
    output: TensorSpec
    max_size: int
    source: FileRecord
    opset: int = OPSET
    tools: dict[str, str] = field(default_factory=dict)
    created: str = ""
    format_version: int = FORMAT_VERSION


def record_of_engine(artifact: Artifact) -> PreprocessorRecord:
    """The record of a preprocessor's engine, as its sidecar has it; its source is the ONNX file that it was built from.

    Raises:
        ArtifactError: the sidecar lacks something.
    """
    sidecar = artifact.sidecar
    recipe, most = sidecar.preprocessing, sidecar.build.get("max_size")
    if recipe is None or not isinstance(most, int) or sidecar.source is None:
        raise ArtifactError(f"{artifact.path}: its sidecar lacks the recipe or the size", "run: trtbatch build")
    if all(spec.name != "positions" for spec in sidecar.inputs):
        fix = "make both again: trtbatch export-preprocessor, then trtbatch build"
        raise ArtifactError(f"{artifact.path} is of an earlier trtbatch, whose preprocessors had other inputs", fix)
    group = sidecar.outputs[0]
    return PreprocessorRecord(recipe, replace(group, shape=(1, *group.shape[1:])), most, sidecar.source)
