"""What a photograph gives the preprocessor: the part that the crop needs, and the taps of its lines, packed.

Light to import: a process that does nothing else needs neither ONNX nor a runtime.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from trtbatch.errors import InputError
from trtbatch.photographs.arena import aligned
from trtbatch.photographs.resample import Side, keep, most_taps, rows_first, sides
from trtbatch.preprocessing import Preprocessing

__all__ = ["MAX_SIZE", "Operands", "Packing", "band", "band_bytes", "make_sides", "operands"]

MAX_SIZE = 4096
"""Rows and columns of the largest photograph, unless asked otherwise."""


class _Described(Protocol):
    @property
    def recipe(self) -> Preprocessing: ...

    @property
    def max_size(self) -> int: ...


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
    (:func:`trtbatch.photographs.resample.rows_first`), Pillow does it here, and what it makes passes through as it is.

    Raises:
        InputError: not the pixels of a colour photograph.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise InputError(f"{pixels.dtype} {pixels.shape} is no photograph", "give RGB pixels (H, W, 3) uint8")
    height, width = pixels.shape[:2]
    rows, columns = sides(recipe, height, width)
    if _is_resized_here(recipe, rows, columns, height, width, max_size):
        from PIL import Image

        pixels = recipe.pixels(Image.fromarray(np.ascontiguousarray(pixels)))
        rows, columns = sides(_unresized(recipe), *recipe.crop)
    return Operands(pixels[rows.first : rows.end, columns.first : columns.end], rows, columns)


def _is_resized_here(recipe: Preprocessing, rows: Side, columns: Side, height: int, width: int, max_size: int) -> bool:
    too_large = max(rows.end - rows.first, columns.end - columns.first) > max_size
    too_many = max(rows.taps.shape[1], columns.taps.shape[1]) > most_taps(recipe, max_size)
    return too_large or too_many or rows_first(recipe, height, width)


def band(recipe: Preprocessing, height: int, width: int, max_size: int = MAX_SIZE) -> tuple[Side, Side] | None:
    """The rows and columns of a photograph ``(height, width, 3)`` for the preprocessor; None where Pillow resizes it.

    Raises:
        ValueError: a side without pixels.
    """
    rows, columns = sides(recipe, height, width)
    return None if _is_resized_here(recipe, rows, columns, height, width, max_size) else (rows, columns)


def make_sides(recipe: Preprocessing, sizes: Iterable[tuple[int, int]], max_size: int) -> None:
    """Make at once the sides of photographs of these heights and widths, for :func:`operands` and :func:`band`.

    Where both are over `max_size` Pillow resizes them, and the sides, which may take any memory, aren't made.
    """
    keep(recipe, (size for size in sizes if min(size) <= max_size))


def band_bytes(recipe: Preprocessing, height: int, width: int, max_size: int = MAX_SIZE) -> int:
    """Bytes of the image that :func:`operands` makes of a photograph ``(height, width, 3)``.

    Raises:
        ValueError: a side without pixels.
    """
    rows, columns = band(recipe, height, width, max_size) or sides(_unresized(recipe), *recipe.crop)
    return 3 * (rows.end - rows.first) * (columns.end - columns.first)


class Packing:
    """How the small inputs of a preprocessor lie in one block, each at a multiple of 256 bytes.

    Args:
        bytes: of the block.
        shapes, offsets: of each input, by name; all are float32.
    """

    def __init__(self, record: _Described) -> None:
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
            self.bytes += aligned(4 * lines * length)

    def views(self, block: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """The inputs as they lie in a block."""
        return {name: np.ndarray(self.shapes[name], np.float32, block, at) for name, at in self.offsets.items()}

    def fill(self, block: NDArray[np.uint8], rows: Side, columns: Side) -> dict[str, NDArray[np.float32]]:
        """Write the small inputs of a photograph into a block of at least `bytes`; they are returned."""
        block[: self.bytes] = 0
        found = self.views(block)
        for name, made in (("row", rows), ("column", columns)):
            found[f"{name}_starts"][...] = made.starts
            found[f"{name}_taps"][:, 1 : 1 + made.taps.shape[1]] = made.taps
        return found


def _unresized(recipe: Preprocessing) -> Preprocessing:
    """The recipe for what has the size of the crop already."""
    return Preprocessing(min(recipe.crop), recipe.crop, interpolation=recipe.interpolation)
