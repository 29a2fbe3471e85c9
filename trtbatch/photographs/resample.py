"""Pillow's antialiased resize as two matrices, one for rows and one for columns, with the centre crop in them.

TensorRT's Resize doesn't antialias. But Pillow's resize is a product with one matrix from the left and one from the
right, each followed by rounding to 8 bits, and a machine for matrix products can do that. The coefficients are those
of Pillow's ``src/libImaging/Resample.c`` (``precompute_coeffs``, ``normalize_coeffs_8bpc``), in its fixed point of 22
bits. A line of a matrix is zero but for a few neighbours, its taps, so that these and where they begin are kept.

**Bilinear coefficients are quotients of integers**: of pixel `j` and line `i` of a side of `S` pixels that become `N`,
``max(0, 2M − |(2j + 1)·N − (2i + 1)·S|)``, M being the larger of both, over the sum of the line's. So a graph can make
them itself, exactly, of the few integers of a :class:`Span`; Pillow's own arithmetic, in doubles, rounds to the same 22
bits. Those of other filters come as taps (:class:`Side`).

**In halves of 11 bits.** A coefficient of 22 bits is kept as two integers of at most 11, so that each is exact in TF32
too, TensorRT's default for products, and so are the sums: integers below 2²⁴ (where one pixel is made of more than some
twenty in a row they may round, in the last of the 22 bits). Put together again they are the integer that Pillow shifts
and clips, whatever the order of the sums.

Columns come first, rows second, as in every Pillow before 13. Pillow 13 turns that round for photographs that are
scaled down and more than twice as high as wide (:func:`rows_first`). The orders give different pixels, since what lies
between is rounded and clipped: by 1 of 255, and by more under filters that overshoot.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trtbatch import optional
from trtbatch.preprocessing import Preprocessing

__all__ = [
    "FRACTION_BITS",
    "LOW_BITS",
    "Side",
    "Span",
    "forget",
    "keep",
    "most_taps",
    "resized",
    "rows_first",
    "side",
    "sides",
    "spans",
]

Floats = NDArray[np.float64]

KEPT = 32 << 20
"""Bytes of the sides that are kept: 11 KB each, of photographs of 500×375."""

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

    @property
    def bytes(self) -> int:
        return self.starts.nbytes + self.taps.nbytes


MOST_SIDE = 1 << 20
"""Pixels of a side are below, before and after: twice as many are multiplied by 2¹⁰ in 32 bits."""

MOST_PRODUCT = 1 << 23
"""Twice the sum of a line's integers is below; they are multiplied by up to 2⁷ in 32 bits."""


class Span(NamedTuple):
    """One side of a photograph, resized by a bilinear filter: what its coefficients are made of.

    Args:
        first, end: of the side's pixels, those that the crop needs.
        integers: pixels of the whole side before and after; how far the first pixel is behind the crop's first line,
            where the photograph has twice the product of both; pixels that are needed; and the lines before and behind
            those that aren't black.
        fits: whether 32 bits are enough for all that is computed of them.
    """

    first: int
    end: int
    integers: tuple[int, ...]
    fits: bool


def spans(preprocessing: Preprocessing, height: int, width: int) -> tuple[Span, Span]:
    """As :func:`sides`, for a recipe whose filter is bilinear.

    Raises:
        ValueError: a side without pixels.
    """
    _with_pixels(height, width)
    new_height, new_width = resized(preprocessing, height, width)
    crop_height, crop_width = preprocessing.crop
    return _span(height, new_height, crop_height), _span(width, new_width, crop_width)


@lru_cache(maxsize=1 << 12)
def _span(size: int, new_size: int, crop: int) -> Span:
    offset = _offset(new_size, crop)
    first, end = max(offset, 0), min(offset + crop, new_size)
    if new_size != size:
        scale = size / new_size
        support = max(scale, 1.0)
        first = max(int((first + 0.5) * scale - support + 0.5), 0)
        end = max(first + 1, min(int((end - 0.5) * scale + support + 0.5), size))
    shift = 2 * (first * new_size - offset * size)
    integers = size, new_size, shift, end - first, max(-offset, 0) - 1, min(new_size - offset, crop)
    weights = 2 * max(size, new_size) * (size // new_size + 2)
    places = 2 * max((2 * crop + 1) * size, (2 * (end - first) + 1) * new_size)
    fits = max(size, new_size) < MOST_SIDE and weights < MOST_PRODUCT and places < 1 << 31
    return Span(first, end, integers, fits)


def _bilinear(x: Floats) -> Floats:
    np.abs(x, out=x)
    np.subtract(1.0, x, out=x)
    return np.maximum(x, 0.0, out=x)


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
"""Each with its support: how far it reaches to either side, in pixels of the smaller image. It may write over `x`."""


def resized(preprocessing: Preprocessing, height: int, width: int) -> tuple[int, int]:
    """``(H, W)`` of the whole image after resizing: the shorter side is `resize`, the other torchvision's
    ``int(resize * long / short)``."""
    return _resized(preprocessing.resize, height, width)


@lru_cache(maxsize=1 << 10)
def _resized(resize: int, height: int, width: int) -> tuple[int, int]:
    new_width, new_height = Preprocessing(resize, (1, 1)).resized(width, height)
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
    rows, columns = _sides(_keys(preprocessing, *_with_pixels(height, width)))
    return rows, columns


def _with_pixels(height: int, width: int) -> tuple[int, int]:
    if height < 1 or width < 1:
        raise ValueError(f"a photograph of {width}×{height} has no pixels")
    return height, width


def keep(preprocessing: Preprocessing, sizes: Iterable[tuple[int, int]]) -> None:
    """Make the sides of several photographs, heights and widths, for :func:`sides` at once, in a part of the time that
    each would take by itself."""
    _sides([key for height, width in sizes if min(height, width) > 0 for key in _keys(preprocessing, height, width)])


def _keys(preprocessing: Preprocessing, height: int, width: int) -> tuple[_Key, _Key]:
    new_height, new_width = resized(preprocessing, height, width)
    crop_height, crop_width = preprocessing.crop
    kind = preprocessing.interpolation
    return _Key(height, new_height, crop_height, kind), _Key(width, new_width, crop_width, kind)


def most_taps(preprocessing: Preprocessing, size: int) -> int:
    """Taps of a line, at the most, where the side that is scaled down has so many pixels."""
    if preprocessing.interpolation == "nearest":
        return 1
    support = _FILTERS[preprocessing.interpolation][1]
    # The longer side is rounded down, and so scaled down by a little more than the shorter one.
    scale = max(1.0, size / preprocessing.resize * (1 + 1 / preprocessing.resize))
    return int(np.ceil(support * scale)) * 2 + 1


class _Key(NamedTuple):
    """What decides a side: its pixels, those that they become, the lines of the crop, and the filter."""

    size: int
    new_size: int
    crop: int
    interpolation: str

    @property
    def is_weighed(self) -> bool:
        """Whether a line is a sum of pixels, not a single one."""
        return self.new_size != self.size and self.interpolation != "nearest"

    @property
    def scale(self) -> float:
        return self.size / self.new_size

    @property
    def lines(self) -> tuple[int, int]:
        """Of the resized side, those in the crop: the first, and the end."""
        offset = _offset(self.new_size, self.crop)
        return max(offset, 0), min(offset + self.crop, self.new_size)

    @property
    def shape(self) -> tuple[int, int, int, str]:
        """What sides that are made together have in common: lines, taps to either side, the crop and the filter."""
        first, end = self.lines
        return end - first, math.ceil(self.support), self.crop, self.interpolation

    @property
    def support(self) -> float:
        """Pixels that a line's filter reaches to either side: all that become one, which is what antialiases."""
        return _FILTERS[self.interpolation][1] * max(self.scale, 1.0)


class _Kept:
    """Sides by what decides them, those used last; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sides: OrderedDict[_Key, Side] = OrderedDict()
        self._bytes = 0

    def of(self, keys: Iterable[_Key]) -> dict[_Key, Side]:
        """Those that are kept."""
        with self._lock:
            found = {key: self._sides[key] for key in keys if key in self._sides}
            for key in found:
                self._sides.move_to_end(key)
            return found

    def add(self, made: Mapping[_Key, Side]) -> None:
        with self._lock:
            for key, each in made.items():
                if key not in self._sides:
                    self._sides[key] = each
                    self._bytes += each.bytes
            while self._bytes > KEPT:
                self._bytes -= self._sides.popitem(last=False)[1].bytes

    def clear(self) -> None:
        with self._lock:
            self._sides.clear()
            self._bytes = 0


_kept = _Kept()


def side(size: int, new_size: int, crop: int, interpolation: str) -> Side:
    """The central `crop` lines of `size` pixels that become `new_size`.

    Where the side keeps its size every line is one pixel: Pillow leaves that pass out.

    Args:
        interpolation: Pillow's name of the filter, in lower case.
    """
    return _sides([_Key(size, new_size, crop, interpolation)])[0]


def forget() -> None:
    """Give up the sides that are kept."""
    _kept.clear()


def _sides(keys: Sequence[_Key]) -> list[Side]:
    found = _kept.of(keys)
    missing = [key for key in dict.fromkeys(keys) if key not in found]
    if missing:
        made = _made(missing)
        _kept.add(made)
        found |= made
    return [found[key] for key in keys]


def _made(keys: Sequence[_Key]) -> dict[_Key, Side]:
    """Make sides, those together that have arrays of one shape."""
    alike: dict[tuple[Any, ...], list[_Key]] = {}
    for key in keys:
        alike.setdefault(key.shape if key.is_weighed else (key,), []).append(key)
    return {key: made for group in alike.values() for key, made in zip(group, _made_alike(group))}


def _made_alike(keys: Sequence[_Key]) -> list[Side]:
    """Make sides: all of as many lines and taps; several only where they are weighed."""
    crop = keys[0].crop
    first, ends, weights = _lines(keys)
    begins = first[:, 0].astype(np.int64)  # the least: line after line they go on
    first -= first[:, :1]
    high = weights * 2.0**-LOW_BITS
    high += 0.5
    np.floor(high, out=high)
    weights -= high * 2.0**LOW_BITS
    starts = np.zeros((len(keys), 2, crop, 1), np.float32)
    taps = np.zeros((len(keys), 2, crop, len(weights)), np.float32)
    black = max(-_offset(keys[0].new_size, crop), 0)  # lines before the first: as many in all of them
    inside = slice(black, black + first.shape[1])
    starts[:, :, inside, 0] = first[:, None]
    taps[:, 0, inside] = high.transpose(1, 2, 0)
    taps[:, 1, inside] = weights.transpose(1, 2, 0)
    made = []
    for index, begin in enumerate(begins):
        pair = starts[index].reshape(2 * crop, 1).copy(), taps[index].reshape(2 * crop, -1).copy()
        for each in pair:
            each.flags.writeable = False
        made.append(Side(int(begin), max(int(begin) + 1, ends[index]), *pair))
    return made


def _lines(keys: Sequence[_Key]) -> tuple[Floats, list[int], Floats]:
    """Of each line ``(side, line)``, the first pixel; of each side, the end of its pixels; and the weights ``(k, side,
    line)`` of the pixels from the first on, in units of 2⁻²²."""
    key = keys[0]
    if key.is_weighed:
        return _taps(keys)
    unit = float(1 << FRACTION_BITS)
    lines = np.arange(*key.lines)
    if key.new_size == key.size:
        return lines[None].astype(np.float64), [key.lines[1]], np.full((1, 1, len(lines)), unit)
    nearest = _nearest(key.size, key.new_size)[lines]
    first = np.minimum(nearest, key.size - 1)
    end = min(int(nearest[-1]) + 1, key.size)
    weights = np.where(nearest < key.size, unit, 0.0)
    return first[None].astype(np.float64), [end], weights[None, None]


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


def _taps(keys: Sequence[_Key]) -> tuple[Floats, list[int], Floats]:
    """As :func:`_lines`; taps from a line's end on weigh 0.

    Source: ``precompute_coeffs`` and ``normalize_coeffs_8bpc`` of Pillow's Resample.c. One filter weighs all, in few
    steps: of numpy's time for a side most goes into calling it.
    """
    weigh = _FILTERS[keys[0].interpolation][0]
    scales, supports, sizes = (
        np.array(values, np.float64)[:, None]
        for values in ([key.scale for key in keys], [key.support for key in keys], [key.size for key in keys])
    )
    begin, end = zip(*(key.lines for key in keys))
    centres = (np.arange(end[0] - begin[0]) + (np.array(begin, np.float64)[:, None] + 0.5)) * scales
    first = np.maximum(np.trunc(centres - supports + 0.5), 0.0)
    ends = np.minimum(np.trunc(centres + supports + 0.5), sizes)
    at = first + np.arange(math.ceil(keys[0].support) * 2.0 + 1)[:, None, None]
    x = at - centres
    x += 0.5
    x *= 1.0 / np.maximum(scales, 1.0)
    weights = weigh(x)
    weights *= at < ends
    # One after the other, as Pillow adds them: numpy's own sum may go in pairs, and rounds otherwise.
    totals = np.add.accumulate(weights, axis=0)[-1]
    totals[totals == 0.0] = 1.0
    weights /= totals
    weights *= float(1 << FRACTION_BITS)
    weights += np.copysign(0.5, weights)
    np.trunc(weights, out=weights)
    return first, [int(last) for last in ends[:, -1]], weights
