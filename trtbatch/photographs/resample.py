"""Pillow's antialiased resize as two matrices, one for rows and one for columns, with the centre crop in them.

TensorRT's Resize doesn't antialias. But Pillow's resize is a product with one matrix from the left and one from the
right, each followed by rounding to 8 bits, and a machine for matrix products can do that. The coefficients are those
of Pillow's ``src/libImaging/Resample.c`` (``precompute_coeffs``, ``normalize_coeffs_8bpc``), in its fixed point of 22
bits. A line of a matrix is zero but for a few neighbours, its taps, so that these and where they begin are kept.

**In halves of 11 bits.** A coefficient of 22 bits is kept as two integers of at most 11, so that each is exact in TF32
too, TensorRT's default for products, and so are the sums: integers below 2²⁴ (where one pixel is made of more than some
twenty in a row they may round, in the last of the 22 bits). Put together again they are the integer that Pillow shifts
and clips, whatever the order of the sums.

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

__all__ = ["FRACTION_BITS", "LOW_BITS", "Side", "most_taps", "resized", "rows_first", "side", "sides"]

Floats = NDArray[np.float64]

KEPT = 4096
"""Sides that are kept: 11 KB each, of photographs of 500×375."""

FRACTION_BITS = 22
"""Coefficients are multiples of 2⁻²² (``PRECISION_BITS`` of Pillow's Resample.c: 32 − 8 − 2)."""

LOW_BITS = 12
"""Of these in the lower half. Coefficients may be a little over 1 at the edges, which the upper 10 have room for."""


@dataclass(frozen=True)
class Side:
    """One side of a photograph: the pixels that the crop needs of it, and the lines of the crop that come of them.

    Line `i` of `n` is Σₖ (2¹²·taps[i, k] + taps[n + i, k])·2⁻²²·pixel[first + starts[i] + k]. A line without taps is
    black.

    Args:
        first, end: of the side's pixels, those that are needed.
        starts: ``(2n, 1)`` float32, the second half as the first; read-only.
        taps: ``(2n, k)`` float32, integers; read-only.
    """

    first: int
    end: int
    starts: NDArray[np.float32]
    taps: NDArray[np.float32]


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


def sides(preprocessing: Preprocessing, height: int, width: int) -> tuple[Side, Side]:
    """What resizes and crops a photograph ``(height, width)``: rows, and columns.

    Each is kept for the next photograph with that side: photographs of one camera share them.

    Raises:
        ValueError: a side without pixels.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a photograph of {width}×{height} has no pixels")
    new_height, new_width = resized(preprocessing, height, width)
    crop_height, crop_width = preprocessing.crop
    rows = side(height, new_height, crop_height, preprocessing.interpolation)
    return rows, side(width, new_width, crop_width, preprocessing.interpolation)


def most_taps(preprocessing: Preprocessing, size: int) -> int:
    """Taps of a line, at the most, where the side that is scaled down has so many pixels."""
    if preprocessing.interpolation == "nearest":
        return 1
    support = _FILTERS[preprocessing.interpolation][1]
    # The longer side is rounded down, and so scaled down by a little more than the shorter one.
    scale = max(1.0, size / preprocessing.resize * (1 + 1 / preprocessing.resize))
    return int(np.ceil(support * scale)) * 2 + 1


@lru_cache(maxsize=KEPT)
def side(size: int, new_size: int, crop: int, interpolation: str) -> Side:
    """The central `crop` lines of `size` pixels that become `new_size`.

    Where the side keeps its size every line is one pixel: Pillow leaves that pass out.

    Args:
        interpolation: Pillow's name of the filter, in lower case.
    """
    offset = _offset(new_size, crop)
    lines = np.arange(max(offset, 0), min(offset + crop, new_size))
    first, end, weights = _lines(size, new_size, interpolation, lines)
    begin = int(first.min())
    high = np.floor(weights * 2.0**-LOW_BITS + 0.5)
    starts, taps = np.zeros((2, crop, 1), np.float32), np.zeros((2, crop, weights.shape[1]), np.float32)
    inside = slice(int(lines[0]) - offset, int(lines[-1]) - offset + 1)
    starts[:, inside, 0] = first - begin
    taps[0, inside] = high
    taps[1, inside] = weights - high * 2.0**LOW_BITS
    starts.flags.writeable = taps.flags.writeable = False
    return Side(begin, max(begin + 1, int(end.max())), starts.reshape(2 * crop, 1), taps.reshape(2 * crop, -1))


def _lines(
    size: int, new_size: int, interpolation: str, lines: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Of each line, the first pixel, the end, and the weights of the pixels from the first on, in units of 2⁻²²."""
    unit = float(1 << FRACTION_BITS)
    if new_size == size:
        return lines, lines + 1, np.full((len(lines), 1), unit)
    if interpolation == "nearest":
        nearest = _nearest(size, new_size)[lines]
        return np.minimum(nearest, size - 1), np.minimum(nearest + 1, size), unit * (nearest < size)[:, None]
    return _taps(size, new_size, interpolation, lines)


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


def _taps(
    size: int, new_size: int, interpolation: str, lines: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """As :func:`_lines`; taps from the end on weigh 0.

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
    weights = weigh((at - centres[:, None] + 0.5) * (1.0 / widened))
    weights[at >= end[:, None]] = 0.0
    # One after the other, as Pillow adds them: numpy's own sum goes in pairs, and rounds otherwise.
    totals = np.cumsum(weights, axis=1)[:, -1:]
    totals[totals == 0.0] = 1.0
    weights /= totals
    return first, end, np.trunc(weights * float(1 << FRACTION_BITS) + np.copysign(0.5, weights))
