"""What a preprocessor takes of a photograph: the pixels that the crop needs, and how they are resized.

The record of a preprocessor says which recipe it follows; its graph is made in :mod:`trtbatch.preprocessor`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trtbatch.artifacts import FileRecord, TensorSpec
from trtbatch.errors import InputError
from trtbatch.preprocessing import Preprocessing
from trtbatch.resample import Side, most_taps, rows_first, sides

__all__ = [
    "FORMAT_VERSION",
    "MAX_SIZE",
    "OPSET",
    "OUTPUT",
    "Operands",
    "Packing",
    "PreprocessorRecord",
    "feeds",
    "operands",
]

Array = NDArray[Any]

OUTPUT = "sample"
MAX_SIZE = 4096
"""Rows and columns of the largest photograph, unless asked otherwise."""

OPSET = 17
"""The newest that TensorRT 8.6 reads."""

FORMAT_VERSION = 2

_ALIGNMENT = 256
"""Bytes, of an address that TensorRT takes (``IExecutionContext::setTensorAddress``)."""


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


class Operands(NamedTuple):
    """What is made of a photograph for the preprocessor: the part that the crop needs, and how its sides are resized.

    Args:
        image: ``(H, W, 3)`` uint8, a view of the photograph.
    """

    image: NDArray[np.uint8]
    rows: Side
    columns: Side


def operands(recipe: Preprocessing, pixels: NDArray[np.uint8], max_size: int = MAX_SIZE) -> Operands:
    """The operands of a photograph ``(H, W, 3)`` uint8.

    Where the part that the crop needs is over `max_size`, or Pillow resizes in another order
    (:func:`trtbatch.resample.rows_first`), Pillow does it here, and what it makes passes through as it is.

    Raises:
        InputError: not the pixels of a colour photograph.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise InputError(f"{pixels.dtype} {pixels.shape} is no photograph", "give RGB pixels (H, W, 3) uint8")
    height, width = pixels.shape[:2]
    rows, columns = sides(recipe, height, width)
    most = most_taps(recipe, max_size)
    too_large = max(rows.end - rows.first, columns.end - columns.first) > max_size
    if too_large or max(rows.taps.shape[1], columns.taps.shape[1]) > most or rows_first(recipe, height, width):
        from PIL import Image

        pixels = recipe.pixels(Image.fromarray(np.ascontiguousarray(pixels)))
        rows, columns = sides(_unresized(recipe), *recipe.crop)
    return Operands(pixels[rows.first : rows.end, columns.first : columns.end], rows, columns)


class Packing:
    """How the small inputs of a preprocessor lie in one block, each at a multiple of 256 bytes.

    Args:
        bytes: of the block.
        shapes, offsets: of each input, by name; all are float32.
    """

    def __init__(self, record: PreprocessorRecord) -> None:
        height, width = record.recipe.crop
        taps = most_taps(record.recipe, record.max_size) + 2  # a zero on either side
        self.shapes = {
            "row_starts": (2 * height, 1),
            "row_taps": (2 * height, taps),
            "column_starts": (2 * width, 1),
            "column_taps": (2 * width, taps),
        }
        self.offsets: dict[str, int] = {}
        self.bytes = 0
        for name, (lines, length) in self.shapes.items():
            self.offsets[name] = self.bytes
            self.bytes += -(-4 * lines * length // _ALIGNMENT) * _ALIGNMENT

    def views(self, block: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """The inputs as they lie in a block."""
        return {
            name: block[self.offsets[name] :][: 4 * lines * length].view(np.float32).reshape(lines, length)
            for name, (lines, length) in self.shapes.items()
        }

    def fill(self, block: NDArray[np.uint8], given: Operands) -> dict[str, NDArray[np.float32]]:
        """Write the small inputs of a photograph into a block of at least `bytes`; they are returned."""
        block[: self.bytes] = 0
        found = self.views(block)
        for name, made in (("row", given.rows), ("column", given.columns)):
            found[f"{name}_starts"][...] = made.starts
            found[f"{name}_taps"][:, 1 : 1 + made.taps.shape[1]] = made.taps
        return found


def feeds(record: PreprocessorRecord, given: Operands) -> dict[str, Array]:
    """All inputs of the preprocessor, contiguous, by name."""
    packing = Packing(record)
    height, width = given.image.shape[:2]
    return {
        "image": np.ascontiguousarray(given.image),
        "down": np.arange(height, dtype=np.float32)[None],
        "across": np.arange(width, dtype=np.float32)[None],
        **packing.fill(np.empty(packing.bytes, np.uint8), given),
    }


def _unresized(recipe: Preprocessing) -> Preprocessing:
    """The recipe for what has the size of the crop already."""
    return Preprocessing(min(recipe.crop), recipe.crop, interpolation=recipe.interpolation)
