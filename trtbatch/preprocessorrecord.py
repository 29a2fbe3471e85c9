"""What a preprocessor is: the record that its ONNX file and its engine keep."""

from __future__ import annotations

from dataclasses import dataclass, field

from trtbatch.artifacts import FileRecord, TensorSpec
from trtbatch.preprocessing import Preprocessing

__all__ = ["FORMAT_VERSION", "OPSET", "OUTPUT", "PreprocessorRecord"]

OUTPUT = "sample"

OPSET = 17
"""The newest that TensorRT 8.6 reads."""

FORMAT_VERSION = 2


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
