"""What a photograph gives the preprocessor: the part that the crop needs, and how its lines are made of it, packed.

That part lies in the upper left corner of a square of one of a few sizes, and nothing counts what is beside it: for
each size a GPU needs a context and a graph.

Light to import: a process that does nothing else needs neither ONNX nor a runtime.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, Union

import numpy as np
from numpy.typing import NDArray

from trtbatch.errors import InputError
from trtbatch.photographs.arena import aligned
from trtbatch.photographs.resample import Side, Span, keep, most_taps, rows_first, sides, spans
from trtbatch.preprocessing import Preprocessing

__all__ = [
    "GROUP",
    "GROUP_SIDE",
    "MAX_SIZE",
    "Lines",
    "Operands",
    "Packing",
    "Plan",
    "band",
    "is_computed",
    "make_sides",
    "operands",
    "plan",
    "profile_of",
    "square",
]

MAX_SIZE = 4096
"""Rows and columns of the largest photograph, unless asked otherwise."""

GROUP = 16
"""Photographs that a preprocessor takes at once."""

GROUP_SIDE = 512
"""Rows and columns of the largest squares that go in groups. A larger photograph keeps the host busy with decoding for
longer than its launch takes."""

LEAST = 64
"""Rows and columns of the smallest square."""

Lines = Union[Side, Span]
"""How the lines of one side are made."""


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
    rows: Lines
    columns: Lines


def is_computed(recipe: Preprocessing) -> bool:
    """Whether the preprocessor makes the coefficients itself, of a :class:`~trtbatch.photographs.resample.Span`."""
    return recipe.interpolation == "bilinear"


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
    rows, columns = _lines(recipe, height, width)
    if _is_resized_here(recipe, rows, columns, height, width, max_size):
        from PIL import Image

        pixels = recipe.pixels(Image.fromarray(np.ascontiguousarray(pixels)))
        rows, columns = _lines(_unresized(recipe), *recipe.crop)
    return _needed(pixels, rows, columns)


def _needed(pixels: NDArray[np.uint8], rows: Lines, columns: Lines) -> Operands:
    return Operands(pixels[rows.first : rows.end, columns.first : columns.end], rows, columns)


def _lines(recipe: Preprocessing, height: int, width: int) -> tuple[Lines, Lines]:
    return spans(recipe, height, width) if is_computed(recipe) else sides(recipe, height, width)


def _is_resized_here(
    recipe: Preprocessing, rows: Lines, columns: Lines, height: int, width: int, max_size: int
) -> bool:
    if rows.end - rows.first > max_size or columns.end - columns.first > max_size:
        return True
    fit = _fits(recipe, rows, max_size) and _fits(recipe, columns, max_size)
    return not fit or rows_first(recipe, height, width)


def _fits(recipe: Preprocessing, lines: Lines, max_size: int) -> bool:
    return lines.fits if isinstance(lines, Span) else lines.taps.shape[1] <= most_taps(recipe, max_size)


def band(recipe: Preprocessing, height: int, width: int, max_size: int = MAX_SIZE) -> tuple[Lines, Lines] | None:
    """The rows and columns of a photograph ``(height, width, 3)`` for the preprocessor; None where Pillow resizes it.

    Raises:
        ValueError: a side without pixels.
    """
    rows, columns = _lines(recipe, height, width)
    return None if _is_resized_here(recipe, rows, columns, height, width, max_size) else (rows, columns)


class Plan(NamedTuple):
    """How a photograph of a size, rows and columns, is given to the preprocessor.

    Args:
        side: of its square.
    """

    size: tuple[int, int]
    rows: Lines
    columns: Lines
    side: int

    def operands(self, pixels: NDArray[np.uint8]) -> Operands:
        """Those of a photograph of this size."""
        return _needed(pixels, self.rows, self.columns)


def plan(recipe: Preprocessing, height: int, width: int, max_size: int = MAX_SIZE) -> Plan | None:
    """The plan for photographs ``(height, width, 3)``; None where Pillow resizes them.

    Raises:
        ValueError: a side without pixels.
    """
    found = band(recipe, height, width, max_size)
    if found is None:
        return None
    rows, columns = found
    return Plan((height, width), rows, columns, square(rows.end - rows.first, columns.end - columns.first, max_size))


def make_sides(recipe: Preprocessing, sizes: Iterable[tuple[int, int]], max_size: int) -> None:
    """Make at once the taps of photographs of these heights and widths, for :func:`operands` and :func:`band`.

    Where both are over `max_size` Pillow resizes them, and the taps, which may take any memory, aren't made.
    """
    if not is_computed(recipe):
        keep(recipe, (size for size in sizes if min(size) <= max_size))


def square(rows: int, columns: int, most: int) -> int:
    """Rows and columns of the square that a part of a photograph lies in: two steps to each power of two.

    A lane makes a context and a graph for a size, which takes it as long as many photographs; to compute on what is
    beside one takes nothing that would show. So few sizes are better than close ones.
    """
    length = max(rows, columns)
    if length <= LEAST:
        return min(LEAST, most)
    step = 1 << max(0, (length - 1).bit_length() - 2)
    return min(most, -(-length // step) * step)


def profile_of(side: int) -> int:
    """Which of an engine's profiles a square is for: small ones in groups, large ones alone."""
    return 0 if side <= GROUP_SIDE else 1


class Packing:
    """How the small inputs of a photograph lie in one block, each at a multiple of 256 bytes.

    Args:
        arrays: shape and type of each, by name; rows, then columns, are the first axis.
        sizes: of each of one photograph's, in bytes.
        offsets: of each, in bytes.
        bytes: of the block.
    """

    def __init__(self, record: _Described) -> None:
        recipe, lines = record.recipe, 2 * max(record.recipe.crop)
        self.arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
        if is_computed(recipe):
            self.arrays = {"sides": ((2, 1, 6), np.dtype(np.int32))}
        else:
            taps = most_taps(recipe, record.max_size) + 2  # a zero on either side
            self.arrays = {
                "starts": ((2, lines, 1), np.dtype(np.int32)),
                "taps": ((2, lines, taps), np.dtype(np.float32)),
            }
        self._half = lines // 2
        self.sizes = {name: math.prod(shape) * kind.itemsize for name, (shape, kind) in self.arrays.items()}
        self.offsets: dict[str, int] = {}
        self.bytes = 0
        for name, size in self.sizes.items():
            self.offsets[name] = self.bytes
            self.bytes += aligned(size)

    def shapes(self, count: int) -> dict[str, tuple[int, ...]]:
        """Those of so many photographs'."""
        return {name: (count, *shape) for name, (shape, _) in self.arrays.items()}

    def room(self, side: int) -> int:
        """Bytes of a photograph that lies in a square, its block behind it."""
        return aligned(3 * side * side) + self.bytes

    def views(self, block: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The inputs as they lie in a block, ``(1, …)``."""
        return {
            name: np.ndarray((1, *shape), dtype, block, self.offsets[name])
            for name, (shape, dtype) in self.arrays.items()
        }

    def fill(self, block: NDArray[np.uint8], rows: Lines, columns: Lines) -> None:
        """Write the small inputs of a photograph into a block of at least `bytes`."""
        if isinstance(rows, Span) and isinstance(columns, Span):
            _INTEGERS.pack_into(block.data, 0, *rows.integers, *columns.integers)
            return
        assert isinstance(rows, Side) and isinstance(columns, Side), "both are of one recipe"
        block[: self.bytes] = 0
        found = self.views(block)
        starts, taps = found["starts"][0], found["taps"][0]
        for index, made in enumerate((rows, columns)):
            count, length = made.taps.shape[0] // 2, made.taps.shape[1]
            for half in range(2):
                to, given = slice(half * self._half, half * self._half + count), slice(half * count, (half + 1) * count)
                starts[index, to] = made.starts[given]
                taps[index, to, 1 : 1 + length] = made.taps[given]

    def lay(self, room: NDArray[np.uint8], side: int, given: Operands) -> None:
        """Write a photograph into a square at the beginning of :meth:`room` bytes, and its small inputs behind that."""
        height, width = given.image.shape[:2]
        np.ndarray((height, width, 3), np.uint8, room, 0, (3 * side, 3, 1))[...] = given.image
        self.fill(room[aligned(3 * side * side) :], given.rows, given.columns)


_INTEGERS = struct.Struct("=12i208x")
"""Of rows and of columns, to the end of a block."""


def _unresized(recipe: Preprocessing) -> Preprocessing:
    """The recipe for what has the size of the crop already."""
    return Preprocessing(min(recipe.crop), recipe.crop, interpolation=recipe.interpolation)
