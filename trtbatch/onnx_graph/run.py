"""Run an ONNX file in ONNX Runtime on the CPU: the reference that every check trusts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from trtbatch.errors import ArtifactError, ExecutionError
from trtbatch.util import optional

__all__ = ["OnnxReference", "fold", "open_session", "reason_of"]

Array = NDArray[Any]

_SILENT = 4
"""ONNX Runtime's log severity "fatal": what it has to say reaches the user through our errors."""


def open_session(model: Path | bytes, options: Any = None) -> Any:
    """Return an inference session on the CPU, of a file or of a serialised model.

    Raises:
        ArtifactError: ONNX Runtime can't load the file.
    """
    ort = optional.require("onnxruntime", "run ONNX files")
    options = options or ort.SessionOptions()
    options.log_severity_level = _SILENT
    try:
        source = model if isinstance(model, bytes) else str(model.resolve())
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        name = "the model" if isinstance(model, bytes) else model
        raise ArtifactError(
            f"ONNX Runtime can't load {name}: {reason_of(error)}", "export and build it again"
        ) from error


def reason_of(error: Exception) -> str:
    """Return the message of ONNX Runtime without its prefix, on one line."""
    text = " ".join(str(error).split())
    return text.partition(" : ")[2].partition(" : ")[2] or text or type(error).__name__


class OnnxReference:
    """An ONNX file, run as the reference: outputs by name, for inputs by name.

    Raises:
        ArtifactError: the file can't be loaded.
        ExecutionError: the model fails on these inputs; the node is named as ONNX Runtime names it.
    """

    def __init__(self, model: Path | bytes, options: Any = None) -> None:
        self._session = open_session(model, options)

    @classmethod
    def unoptimised(cls, model: Path | bytes) -> OnnxReference:
        """Run a file or a serialised model as it stands: nothing is folded or fused."""
        ort = optional.require("onnxruntime", "run ONNX files")
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return cls(model, options)

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the file."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for these inputs, by name."""
        names = [output.name for output in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, dict(inputs))))
        except Exception as error:
            shapes = ", ".join(f"{name} {'×'.join(map(str, array.shape))}" for name, array in inputs.items())
            raise ExecutionError(f"ONNX Runtime fails on {shapes}: {reason_of(error)}", "check the model") from error


def fold(path: Path, folder: Path) -> Path:
    """Return a copy of an ONNX file, in `folder`, in which whatever is computed from constants alone is an initializer.

    For reading, not for running; the file itself where ONNX Runtime can't write one.
    """
    ort = optional.require("onnxruntime", "fold constants")
    folded = folder / "folded.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    try:
        open_session(path, options)
    except ArtifactError:
        return path
    return folded if folded.is_file() else path
