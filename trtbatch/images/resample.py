"""Make Pillow's antialiased resize and the centre crop as two matrices: one for the rows, one for the columns.

TensorRT's Resize does not antialias. Pillow resizes the columns, rounds to 8 bits, resizes the rows and rounds again;
each pass is a product with one matrix. The coefficients follow Pillow's ``src/libImaging/Resample.c``
(``precompute_coeffs``, ``normalize_coeffs_8bpc``), and ``ImagingScaleAffine`` of ``Geometry.c`` for ``nearest``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trtbatch.core.preprocessing import Preprocessing

__all__ = ["matrices", "matrix", "rows_first"]

Floats = NDArray[np.float64]

FRACTION_BITS = 22
"""Coefficients are multiples of 2⁻²² (``PRECISION_BITS`` of Resample.c: 32 − 8 − 2)."""


def _bilinear(x: Floats) -> Floats:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: Floats) -> Floats:
    """Keys's cubic convolution with a = −0.5."""
    a, x = -0.5, np.abs(x)
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


def _lanczos(x: Floats) -> Floats:
    return np.where(np.abs(x) < 3.0, np.sinc(x) * np.sinc(x / 3), 0.0)


_FILTERS: dict[str, tuple[Callable[[Floats], Floats], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
"""Each filter with its support: its reach to either side, in pixels of the smaller image."""


def matrices(recipe: Preprocessing, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the matrices ``(crop_h, height)`` and ``(crop_w, width)`` that resize and crop an image of this size."""
    new_width, new_height = recipe.resized(width, height)
    (crop_height, crop_width), kind = recipe.crop, recipe.interpolation
    return matrix(height, new_height, crop_height, kind), matrix(width, new_width, crop_width, kind)


@lru_cache(maxsize=8)  # a folder's images have a few sizes; a matrix of 224×4096 takes 3.5 MiB
def matrix(size: int, new_size: int, crop: int, interpolation: str) -> NDArray[np.float32]:
    """Return the matrix ``(crop, size)`` that makes the central `crop` of `new_size` lines out of `size` lines.

    A line outside the resized image is zero, which is black, as torchvision's ``center_crop`` pads.
    """
    # torchvision rounds what it cuts off to even, and what it adds down.
    offset = round((new_size - crop) / 2.0) if new_size >= crop else -((crop - new_size) // 2)
    lines = np.arange(max(offset, 0), min(offset + crop, new_size))
    if new_size == size:  # Pillow leaves this pass out
        first, weights = lines, np.ones((len(lines), 1))
    elif interpolation == "nearest":
        first, weights = _nearest(size, new_size)[lines], np.ones((len(lines), 1))
    else:
        first, weights = _weighed(size, size / new_size, lines, interpolation)
    line, tap = np.nonzero(weights)
    found = np.zeros((crop, size), np.float32)
    found[line + max(-offset, 0), first[line] + tap] = weights[line, tap]
    found.flags.writeable = False  # it is shared
    return found


def _nearest(size: int, new_size: int) -> NDArray[np.int64]:
    """Return the source line of each new line. Pillow adds up steps, and a product would round otherwise."""
    steps = np.full(new_size, size / new_size)
    steps[0] *= 0.5
    return np.cumsum(steps).astype(np.int64)


def _weighed(size: int, scale: float, lines: NDArray[np.int64], kind: str) -> tuple[NDArray[np.int64], Floats]:
    """Return the first source line of each new line, and the weights ``(line, tap)`` from there on."""
    weigh, support = _FILTERS[kind]
    stretch = max(scale, 1.0)
    support *= stretch
    centres = (lines + 0.5) * scale
    first = np.maximum(np.trunc(centres - support + 0.5), 0.0)[:, None]
    end = np.minimum(np.trunc(centres + support + 0.5), size)[:, None]
    at = first + np.arange(math.ceil(support) * 2 + 1)
    weights = weigh((at - centres[:, None] + 0.5) / stretch) * (at < end)
    weights /= weights.sum(axis=1, keepdims=True)
    unit = 1 << FRACTION_BITS
    return first[:, 0].astype(np.int64), np.rint(weights * unit) / unit


def rows_first(recipe: Preprocessing, height: int, width: int) -> bool:
    """Return whether the installed Pillow resizes an image's rows before its columns.

    Source: ``ImagingResampleInner`` of Resample.c since Pillow 13 (python-pillow/Pillow#9549).
    """
    from PIL import __version__

    new_width, new_height = recipe.resized(width, height)
    return int(__version__.partition(".")[0]) >= 13 and height - new_height > max(0, 2 * (width - new_width))
