"""Pillow's antialiased resize as two matrices, one for rows and one for columns, with the centre crop in them.

TensorRT's Resize doesn't antialias. But Pillow's resize is a product with one matrix from the left and one from the
right, each followed by rounding to 8 bits, and a machine for matrix products can do that. The coefficients are those
of Pillow's ``src/libImaging/Resample.c`` (``precompute_coeffs``, ``normalize_coeffs_8bpc``), in its fixed point of 22
bits: float32 holds each of them exactly, so that what remains to go wrong is the rounding of their sums.

Columns come first, rows second, as in every Pillow before 13. Pillow 13 turns that round for photographs that are
scaled down and more than twice as high as wide (:func:`rows_first`). The orders give different pixels, since what lies
between is rounded and clipped: by 1 of 255, and by more under filters that overshoot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch import optional
from trtbatch.preprocessing import Preprocessing

__all__ = ["FRACTION_BITS", "Band", "bands", "coefficients", "matrices", "needed_band", "resized", "rows_first"]

Floats = NDArray[np.float64]

KEPT = 256
"""Bands that are kept: 300 KB each, of photographs of 500×375."""

FRACTION_BITS = 22
"""Coefficients are multiples of 2⁻²² (``PRECISION_BITS`` of Pillow's Resample.c: 32 − 8 − 2)."""


@dataclass(frozen=True)
class Band:
    """The part of one side of a photograph that the crop needs, and how the crop is made of it.

    Args:
        matrix: ``(crop, end − first)`` float32, read-only.
        first, end: of the side's pixels, those that the matrix takes.
    """

    matrix: NDArray[np.float32]
    first: int
    end: int


def _bilinear(x: Floats) -> Floats:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: Floats) -> Floats:
    """Keys's cubic convolution with a = −0.5."""
    a, x = -0.5, np.abs(x)
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


def _lanczos(x: Floats) -> Floats:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3), 0.0)


_FILTERS: dict[str, tuple[Callable[[Floats], Floats], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
"""Each with its support: how far it reaches to either side, in pixels of the smaller image."""


def resized(preprocessing: Preprocessing, height: int, width: int) -> tuple[int, int]:
    """``(H, W)`` of the whole image after resizing: the shorter side is `resize`, the other torchvision's
    ``int(resize * long / short)``."""
    new_width, new_height = preprocessing.resized(width, height)
    return new_height, new_width


def rows_first(preprocessing: Preprocessing, height: int, width: int) -> bool:
    """Whether the Pillow that is installed resizes the rows of such a photograph before its columns.

    Source: ``ImagingResampleInner`` of Resample.c, since Pillow 13 (python-pillow/Pillow, pull request 9549).
    """
    new_height, new_width = resized(preprocessing, height, width)
    saved = height - new_height
    return _turns_round() and preprocessing.interpolation != "nearest" and saved > max(0, 2 * (width - new_width))


@lru_cache(maxsize=1)
def _turns_round() -> bool:
    major = (optional.version("pillow") or "").partition(".")[0]
    return major.isdigit() and int(major) >= 13


def matrices(preprocessing: Preprocessing, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What resizes and crops a photograph ``(height, width)``: ``rows (crop_h, H)`` and ``columns (crop_w, W)``.

    Lines of zeros stand where the resized image is smaller than the crop: black.

    Raises:
        ValueError: a side without pixels.
    """
    rows, columns = bands(preprocessing, height, width)
    return _whole(rows, height), _whole(columns, width)


def bands(preprocessing: Preprocessing, height: int, width: int) -> tuple[Band, Band]:
    """The same, of the pixels that the crop needs alone: the bands of rows and of columns.

    Each side's is kept for the next photograph with that side: photographs of one camera share them.

    Raises:
        ValueError: a side without pixels.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a photograph of {width}×{height} has no pixels")
    new_height, new_width = resized(preprocessing, height, width)
    crop_height, crop_width = preprocessing.crop
    rows = _band(height, new_height, crop_height, preprocessing.interpolation)
    return rows, _band(width, new_width, crop_width, preprocessing.interpolation)


def needed_band(matrix: NDArray[Any]) -> tuple[int, int]:
    """First and end of the columns of a matrix that aren't all zero: the pixels that it needs; at least one."""
    needed = np.flatnonzero(matrix.any(axis=0))
    return (int(needed[0]), int(needed[-1]) + 1) if needed.size else (0, 1)


def coefficients(size: int, new_size: int, interpolation: str, first: int, count: int) -> NDArray[np.float32]:
    """Lines `first` to `first + count` of the matrix ``(new_size, size)`` that resizes one side; zeros outside it.

    Where the side keeps its size it is the identity: Pillow leaves that pass out.

    Args:
        interpolation: Pillow's name of the filter, in lower case.
    """
    found = np.zeros((count, size), np.float32)
    lines = np.arange(max(first, 0), min(first + count, new_size))
    if new_size == size:
        found[lines - first, lines] = 1
    elif interpolation == "nearest":
        nearest = _nearest(size, new_size)[lines]
        inside = nearest < size
        found[lines[inside] - first, nearest[inside]] = 1
    else:
        at, weights = _taps(size, new_size, interpolation, lines)
        line, tap = np.nonzero(weights)
        found[lines[line] - first, at[line, tap]] = weights[line, tap]
    return found


@lru_cache(maxsize=KEPT)
def _band(size: int, new_size: int, crop: int, interpolation: str) -> Band:
    matrix = coefficients(size, new_size, interpolation, _offset(new_size, crop), crop)
    first, end = needed_band(matrix)
    matrix = np.ascontiguousarray(matrix[:, first:end])
    matrix.flags.writeable = False
    return Band(matrix, first, end)


def _whole(band: Band, size: int) -> NDArray[np.float32]:
    whole = np.zeros((len(band.matrix), size), np.float32)
    whole[:, band.first : band.end] = band.matrix
    return whole


def _offset(size: int, crop: int) -> int:
    """Where the crop begins, in pixels of the resized side; below 0 where black comes first.

    torchvision's ``center_crop``: Python's round, to even, for what is cut off; ``//`` for what is added.
    """
    return round((size - crop) / 2.0) if size >= crop else -((crop - size) // 2)


def _nearest(size: int, new_size: int) -> NDArray[np.int64]:
    """The pixel that each line of the result takes: Pillow steps along the side (``ImagingScaleAffine``, Geometry.c).

    A sum of steps, not a product, rounds as Pillow's does.
    """
    step = size / new_size
    steps = np.full(new_size, step)
    steps[0] = step * 0.5
    return np.cumsum(steps).astype(np.int64)


def _taps(size: int, new_size: int, interpolation: str, lines: NDArray[Any]) -> tuple[NDArray[np.int64], Floats]:
    """For each line of the result, pixels ``(n, taps)`` and their weights; taps over the edges weigh 0.

    Source: ``precompute_coeffs`` and ``normalize_coeffs_8bpc`` of Pillow's Resample.c.
    """
    weigh, support = _FILTERS[interpolation]
    scale = size / new_size
    widened = max(scale, 1.0)  # what antialiases: the filter covers all pixels that become one
    support *= widened
    centres = (lines + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centres + support + 0.5).astype(np.int64), size)
    at = first[:, None] + np.arange(int(np.ceil(support)) * 2 + 1)
    weights = np.where(at < end[:, None], weigh((at - centres[:, None] + 0.5) * (1.0 / widened)), 0.0)
    # One after the other, as Pillow adds them: numpy's own sum goes in pairs, and rounds otherwise.
    totals = np.cumsum(weights, axis=1)[:, -1:]
    weights = weights / np.where(totals == 0.0, 1.0, totals)
    unit = float(1 << FRACTION_BITS)
    return np.minimum(at, size - 1), np.trunc(weights * unit + np.copysign(0.5, weights)) / unit
