"""The part of a JPEG file that a crop needs, decoded by libjpeg-turbo: what lies beside it is passed over.

What a crop cuts off of a photograph needn't be made pixels of (docs/performance.md). libjpeg-turbo has cropping
regions since version 3, in its TurboJPEG interface, which neither simplejpeg nor PyTurboJPEG passes on; so the library
is called here by itself: the system's, or the one that comes with the package ``turbojpeg``.

The pixels are those of the whole photograph. What follows the part in a file isn't looked at, so a file is left to
other decoders, which say what is wrong with it, unless one scan ends as it should (:func:`is_one_scan`).
"""

from __future__ import annotations

import ctypes
import importlib.util
import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trtbatch.photographs.decoding import decode
from trtbatch.photographs.operands import Lines

__all__ = ["PartDecoder", "Region", "around", "is_one_scan", "part_decoder"]

Pixels = NDArray[np.uint8]

MARGIN = 8
"""Rows and columns of a region beyond the part: chroma is interpolated, and at an edge between what isn't there."""

STEP = 16
"""Columns that a region begins at a multiple of: those of a block of chroma that has half of luma's. Of files with a
quarter, a region that begins elsewhere is refused."""

SHARE = 7 / 8
"""Of a photograph's pixels, at most, that a region is worth while for: the file is searched for marks first."""

LARGEST = 8 << 20
"""Bytes of a file, at most, that is searched for marks."""

_SYSTEM = "libturbojpeg.so.0"
_PACKAGE = "turbojpeg"

# Of turbojpeg.h: enum TJINIT, enum TJPARAM, enum TJPF.
_DECOMPRESS = 1
_STOP_ON_WARNING = 0
_RGB = 0

_END = 0xD9
_RESTARTS = range(0xD0, 0xD8)


class Region(NamedTuple):
    """Of a photograph, in pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def bytes(self) -> int:
        """Of its pixels."""
        return 3 * self.width * self.height


def around(rows: Lines, columns: Lines, height: int, width: int) -> Region | None:
    """The region to decode of a photograph ``(height, width, 3)`` for these lines; None where it is nearly all."""
    left, top = max(0, columns.first - MARGIN) // STEP * STEP, max(0, rows.first - MARGIN)
    right, bottom = min(width, columns.end + MARGIN), min(height, rows.end + MARGIN)
    region = Region(left, top, right - left, bottom - top)
    return region if region.width * region.height <= SHARE * width * height else None


def is_one_scan(data: bytes, begin: int) -> bool:
    """Whether the coded data of a JPEG file that begin there are all of it, and end as they should.

    Then libjpeg-turbo doesn't refuse it for anything that comes after the part, but at most complains. Marks are two
    bytes, the first 255 and the second not 0 (ITU-T T.81, B.1.1.2); among coded data only restarts may be.
    """
    if not 0 < begin < len(data) <= LARGEST:
        return False
    values = np.frombuffer(data, np.uint8, offset=begin)
    follow = values[1:]
    marks = (values[:-1] == 0xFF) & (follow != 0)
    if np.count_nonzero(marks) > 1:
        kinds = follow[marks]
        kinds = kinds[(kinds < _RESTARTS.start) | (kinds >= _RESTARTS.stop)]
        return kinds.size > 0 and int(kinds[0]) == _END
    return data.endswith(bytes([0xFF, _END]))


class _Cropping(ctypes.Structure):
    """``tjregion`` of turbojpeg.h."""

    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class PartDecoder:
    """Decodes regions; for any thread.

    Args:
        library: libturbojpeg, version 3 or later.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
        file = (pointer, ctypes.c_char_p, size)
        self._start = _function(library, "tj3Init", number, result=pointer)
        self._end = _function(library, "tj3Destroy", pointer, result=None)
        self._set = _function(library, "tj3Set", pointer, number, number)
        self._read_header = _function(library, "tj3DecompressHeader", *file)
        self._crop = _function(library, "tj3SetCroppingRegion", pointer, _Cropping)
        self._decode = _function(library, "tj3Decompress8", *file, pointer, number, number)

    def __call__(self, data: bytes, region: Region, memory: Pixels) -> bool:
        """Decode a file's region into the first bytes of memory, row after row.

        False where other decoders are to try it: it is damaged before the region's end, or of a rare kind.
        """
        handle, count = self._start(_DECOMPRESS), len(data)
        if handle is None:
            return False
        try:  # each file has a handle of its own: one keeps the tables of the file before
            return not (
                self._set(handle, _STOP_ON_WARNING, 1)
                or self._read_header(handle, data, count)
                or self._crop(handle, _Cropping(*region))
                or self._decode(handle, data, count, memory.__array_interface__["data"][0], 3 * region.width, _RGB)
            )
        finally:
            self._end(handle)


def _function(library: ctypes.CDLL, name: str, *arguments: Any, result: Any = ctypes.c_int) -> Any:
    found = getattr(library, name)
    found.argtypes, found.restype = arguments, result
    return found


@lru_cache(maxsize=1)
def part_decoder() -> PartDecoder | None:
    """The process's own; None where there is no libturbojpeg of version 3, or it decodes otherwise than others do."""
    for path in _libraries():
        try:
            decoder = PartDecoder(ctypes.CDLL(path))
        except (OSError, AttributeError):  # none, or an older one
            continue
        if _decodes(decoder):
            return decoder
    return None


def _libraries() -> Iterator[str]:
    yield _SYSTEM
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / f"{_PACKAGE}.libs"
        yield from map(str, sorted(folder.glob("libturbojpeg*")))


def _decodes(decoder: PartDecoder) -> bool:
    """Whether it makes of a photograph what is made of the whole, and refuses one that is cut."""
    from PIL import Image

    stream, grain = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    Image.fromarray(grain).save(stream, "JPEG", subsampling="4:2:0")
    data = stream.getvalue()
    region = Region(2 * STEP, 3 * MARGIN, 5 * STEP, 9 * MARGIN)
    made = np.zeros((region.height, region.width, 3), np.uint8)
    if decoder(data[: len(data) // 3], region, made.reshape(-1)) or not decoder(data, region, made.reshape(-1)):
        return False
    part = decode(data)[region.top : region.top + region.height, region.left : region.left + region.width]
    inner = slice(MARGIN, -MARGIN)
    return bool((made[inner, inner] == part[inner, inner]).all())
