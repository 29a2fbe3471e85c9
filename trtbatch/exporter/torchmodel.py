"""A torch model ready to be traced and run: named inputs at any batch size, named outputs."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from trtbatch.core.preprocessing import Preprocessing
from trtbatch.errors import ModelError
from trtbatch.exporter.weights import first_line
from trtbatch.util import optional

__all__ = ["TorchModel", "flatten_outputs", "line_of"]


@dataclass(frozen=True)
class TorchModel:
    """A model ready to be traced: module in eval mode, named inputs at any batch size, and its story."""

    name: str
    module: Any
    example: Callable[[int], dict[str, Any]]
    by_keyword: bool
    weights: str
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None
    fix: str = "give shapes that the model takes with `input_shape`, and a model that takes any batch"

    def run(self, batch: int) -> dict[str, NDArray[Any]]:
        """Return the outputs for ``example(batch)``, by name.

        Raises:
            ModelError: the model itself doesn't run at this batch size.
        """
        return self.call(self.example(batch), f"batch {batch}")

    def call(self, inputs: Mapping[str, Any], where: str) -> dict[str, NDArray[Any]]:
        """Return the outputs for these tensors, in the order of :attr:`example`'s, by name.

        Raises:
            ModelError: the model itself doesn't run on them; `where` is said.
        """
        torch = optional.require("torch", "run the model")
        try:
            with torch.no_grad():
                outputs = self.module(**inputs) if self.by_keyword else self.module(*inputs.values())
        except Exception as error:
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())
            raise ModelError(
                f"{self.name} itself fails in torch at {where} ({shapes}): {first_line(error)}{line_of(error)}",
                self.fix,
            ) from error
        return {name: _array(name, tensor) for name, tensor in flatten_outputs(outputs).items()}


def line_of(error: Exception) -> str:
    """Where the model's own code was when torch raised: file, line and text of the innermost frame outside torch."""
    torch = str(Path(str(optional.require("torch", "run the model").__file__)).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)[1:]
        if not frame.filename.startswith((torch, "<", str(Path(__file__).parent)))
    ]
    if not frames:
        return ""
    return f" (in {Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line})"


def _array(name: str, tensor: Any) -> NDArray[Any]:
    try:
        array: NDArray[Any] = tensor.numpy()
    except TypeError as error:
        raise ModelError(
            f"output {name} is {tensor.dtype}, which numpy and ONNX Runtime can't check",
            "export the model in float32: an engine's precision is chosen when it is built",
        ) from error
    return array


def flatten_outputs(outputs: Any) -> dict[str, Any]:
    """Tensors of a model's result by name: ``output``; ``output0``, ``output1`` …; or the keys of a mapping.

    Raises:
        ModelError: a result that is not a tensor, a sequence or a mapping of tensors.
    """
    torch = optional.require("torch", "run the model")
    if isinstance(outputs, torch.Tensor):
        return {"output": outputs}
    if isinstance(outputs, Mapping):
        named = {str(name): value for name, value in outputs.items() if value is not None}
    elif isinstance(outputs, (tuple, list)):
        kept = [value for value in outputs if value is not None]
        named = {"output": kept[0]} if len(kept) == 1 else {f"output{i}": value for i, value in enumerate(kept)}
    else:
        named = {}
    if not named or not all(isinstance(value, torch.Tensor) for value in named.values()):
        raise ModelError(
            f"the model returns {type(outputs).__name__}, not a tensor or a flat sequence or mapping of tensors",
            "wrap it in a module that returns tensors, and pass that as package.module:factory",
        )
    return named
