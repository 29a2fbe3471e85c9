"""From an image file to RGB pixels: Pillow, and libjpeg-turbo by simplejpeg for the JPEG files that need nothing else.

Pillow decodes into memory of its own, which is then copied under Python's lock; simplejpeg decodes straight to where
the pixels are wanted, without the lock. Both are libjpeg-turbo with the exact DCT and smooth upsampling, and give the
same pixels. Whatever isn't an upright, whole JPEG file in grey or YCbCr goes through Pillow.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trtbatch import optional
from trtbatch.errors import InputError
from trtbatch.photographs.codec import segments
from trtbatch.photographs.images import open_image, plain, unusable
from trtbatch.preprocessing import Preprocessing, orientation_of

__all__ = [
    "Header",
    "decode",
    "decode_by_pillow",
    "decode_into",
    "header",
    "read_bytes",
    "read_pixels",
    "read_sample",
]

Pixels = NDArray[np.uint8]

Room = Callable[[int], Pixels]
"""Gives memory of at least so many bytes, flat."""

_FIX = "mend it, or leave it out"

_JPEG = b"\xff\xd8\xff"
_EXIF = b"Exif\0\0"
_XMP = b"tiff:Orientation"
"""By which Pillow goes too."""
_HEADERS = 1 << 16
"""Bytes in which a camera's EXIF block begins: it is the first of a file, or the second."""

_SEQUENTIAL = (0xC0, 0xC1)
"""Marks of frames that are coded so, baseline or extended (ITU-T T.81, B.1.1.3)."""

_REFUSALS = (ValueError, KeyError)
"""Of simplejpeg: the second where it has no name for how chroma is sampled."""

_PLAIN = ("YCbCr", "Gray", "RGB")
"""Colour spaces, in simplejpeg's names, that become RGB as in Pillow; CMYK and YCCK don't."""


def read_pixels(path: Path, room: Room | None = None) -> Pixels:
    """The pixels ``(H, W, 3)`` of an image file, upright, in three colours of 8 bits.

    Args:
        room: for the pixels; None leaves them where they are made.

    Raises:
        InputError: it can't be read, or has no known white, or is over Pillow's limit of pixels.
    """
    return decode(read_bytes(path), room)


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        InputError: it can't be read.
    """
    try:
        with open(path, "rb", buffering=0) as stream:  # no buffer: it is read at once
            return stream.readall()
    except OSError as error:
        raise InputError(error.strerror or str(error), _FIX) from error


def read_sample(path: Path, make: Callable[[Any], NDArray[Any]]) -> NDArray[Any]:
    """What is made of an image file's Pillow image.

    Raises:
        InputError: as :func:`read_pixels`, or `make` failed on it.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            reason = unusable(image)
            if reason is not None:
                raise InputError(reason, _FIX)
            return make(image)
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their format makes them
        raise InputError(plain(error), _FIX) from error


def decode(data: bytes, room: Room | None = None, size: tuple[int, int] | None = None) -> Pixels:
    """The same of a file's bytes.

    Args:
        size: rows and columns, where :func:`header` has told them.

    Raises:
        InputError: as :func:`read_pixels`.
    """
    if size is None and (found := header(data)) is not None:
        size = found.size
    pixels = _decoded_jpeg(data, room, size)
    return decode_by_pillow(data, room) if pixels is None else pixels


def decode_by_pillow(data: bytes, room: Room | None = None) -> Pixels:
    """The same, whatever simplejpeg could make of it."""
    pixels = np.asarray(Preprocessing.rgb(open_image(data)))
    return pixels if room is None else _placed(pixels, room)


def _placed(pixels: Pixels, room: Room) -> Pixels:
    there = room(pixels.size)[: pixels.size].reshape(pixels.shape)
    there[...] = pixels
    return there


def _decoded_jpeg(data: bytes, room: Room | None, size: tuple[int, int] | None) -> Pixels | None:
    """The pixels of a plain JPEG file; None where Pillow is to decode it, or to say what is wrong with it."""
    if size is None:
        return None
    height, width = size
    count = height * width * 3
    memory = np.empty(count, np.uint8) if room is None else room(count)
    return memory[:count].reshape(height, width, 3) if decode_into(data, memory) else None


class Header(NamedTuple):
    """A JPEG file that :func:`decode_into` may decode.

    Args:
        size: rows and columns.
        scan: bytes before the coded data of its first scan; 0 where they weren't found, or it isn't sequential with
            Huffman's coding (most files are).
    """

    size: tuple[int, int]
    scan: int


def header(data: bytes) -> Header | None:
    """What a JPEG file says that is upright, of plain colours, and not larger than Pillow allows; None for others."""
    from PIL import Image

    library = _simplejpeg() if data.startswith(_JPEG) else None
    if library is None:
        return None
    try:
        height, width, colours, _ = library.decode_jpeg_header(data)
        limit = Image.MAX_IMAGE_PIXELS
        if (limit is not None and height * width > limit) or colours not in _PLAIN:
            return None
        scan, has_exif = _blocks(data)
        is_upright = not has_exif or orientation_of(Image.open(io.BytesIO(data))) == 1
        return Header((height, width), scan) if is_upright else None
    except Exception:  # simplejpeg's, or Pillow's of a damaged EXIF block: decoding says better what is wrong
        return None


def decode_into(data: bytes, memory: Pixels) -> bool:
    """Decode a JPEG file whose size :func:`header` has told into the first bytes of memory, row after row.

    False where Pillow is to say what is wrong with it.
    """
    try:
        _simplejpeg().decode_jpeg(data, "RGB", buffer=memory)
    except _REFUSALS:  # damaged in some way; Pillow forgives some of them
        return False
    return True


def _blocks(data: bytes) -> tuple[int, bool]:
    """Where the coded data of the first scan begin, of a sequential file with Huffman's coding, or 0; and whether there
    may be an EXIF block before it, or one of XMP that turns the photograph: APP1 segments."""
    has_exif = is_sequential = False
    for mark, at, end in segments(data):
        if mark == 0xDA:
            return end if is_sequential else 0, has_exif
        is_sequential |= mark in _SEQUENTIAL
        if mark == 0xE1 and (data.startswith(_EXIF, at + 4) or data.find(_XMP, at, end) >= 0):
            has_exif = True
    return 0, has_exif or data.find(_EXIF, 0, _HEADERS) >= 0  # padded, or damaged


@lru_cache(maxsize=1)
def _simplejpeg() -> Any:
    """The library, or None where it isn't installed."""
    return optional.require("simplejpeg", "decode JPEG files") if optional.is_installed("simplejpeg") else None
