"""Rewrite a model's first convolution for blocks of pixels: the same sums, over fewer and wider pixels.

A convolution with a stride of two reads three channels of each pixel. TensorRT's layouts hold channels in groups of
eight (fp16) or thirty-two (int8), so most of what is written and read before such a convolution is padding. *Space to
depth* puts the pixels of a block next to each other as channels: 2×2 pixels of 3 channels become one pixel of 12. Then
the stride is one, the kernel covers half the rows and columns, and little is padding. Each weight multiplies the same
value as before. Weights for pixels outside the original kernel are zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Convolution", "Line", "blocked"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Line:
    """Convolution along one axis of an image.

    Args:
        size: pixels of the image.
        kernel, stride: pixels.
        begin, end: pixels of padding.
    """

    size: int
    kernel: int
    stride: int
    begin: int
    end: int

    @property
    def outputs(self) -> int:
        """Return the number of outputs along the axis."""
        return (self.size + self.begin + self.end - self.kernel) // self.stride + 1

    def blocked(self, block: int, is_even: bool = False) -> Line | None:
        """Return the same convolution along blocks of pixels; None if blocks don't fit.

        `is_even` makes the padding at the end as large as at the beginning, by a kernel with more zeros.
        """
        if self.size % block or self.stride % block:
            return None
        size, stride, begin = self.size // block, self.stride // block, -(-self.begin // block)
        kernel = begin + (self.kernel - 1 - self.begin) // block + 1
        end = (self.outputs - 1) * stride + kernel - begin - size
        if is_even and end < begin:
            kernel, end = kernel + begin - end, begin
        made = Line(size, kernel, stride, begin, end)
        return made if kernel > 0 and end >= 0 and made.outputs == self.outputs else None


@dataclass(frozen=True)
class Convolution:
    """Convolution over an image.

    Args:
        weights: ``(M, C, kernel height, kernel width)``.
        rows, columns: the convolution along each axis.
    """

    weights: Array
    rows: Line
    columns: Line

    @property
    def attributes(self) -> dict[str, list[int]]:
        """Return the attributes of ONNX's Conv."""
        rows, columns = self.rows, self.columns
        return {
            "kernel_shape": [rows.kernel, columns.kernel],
            "strides": [rows.stride, columns.stride],
            "pads": [rows.begin, columns.begin, rows.end, columns.end],
        }


def blocked(given: Convolution, block: tuple[int, int], is_even: bool = False) -> Convolution | None:
    """Return the same convolution over blocks of pixels; None if blocks don't fit.

    `block` is (rows, columns). The channels of a block are those of its pixels, row after row: ``(row, column, C)``.
    """
    rows, columns = given.rows.blocked(block[0], is_even), given.columns.blocked(block[1], is_even)
    if rows is None or columns is None:
        return None
    many, channels, height, width = given.weights.shape
    made = np.zeros((many, *block, channels, rows.kernel, columns.kernel), given.weights.dtype)
    for row in range(height):
        down, r = divmod(row - given.rows.begin + rows.begin * block[0], block[0])
        for column in range(width):
            across, c = divmod(column - given.columns.begin + columns.begin * block[1], block[1])
            made[:, r, c, :, down, across] = given.weights[:, :, row, column]
    return Convolution(made.reshape(many, -1, rows.kernel, columns.kernel), rows, columns)
