"""Image files to pixels: the fast way and Pillow's give the same, and what can't be read says why."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trtbatch.errors import InputError
from trtbatch.photographs import decoding
from trtbatch.photographs.decoding import decode, read_pixels
from trtbatch.preprocessing import Preprocessing

simplejpeg = pytest.importorskip("simplejpeg")


def photograph(height: int = 61, width: int = 90, mode: str = "RGB") -> Image.Image:
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (9, 12, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def by_pillow(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Preprocessing.rgb(Image.open(io.BytesIO(data))))


def test_how_chroma_is_sampled_may_be_unknown_to_the_fast_way() -> None:
    """4:4:1, for which simplejpeg has no name."""
    data = bytearray(jpeg(photograph(64, 64), subsampling=2))
    at = data.index(b"\xff\xc0")
    data[at + 11] = 0x14  # of luma: one across, four down
    assert (found := decoding.header(bytes(data))) is None or found.size == (64, 64)
    np.testing.assert_array_equal(decode(bytes(data)), by_pillow(bytes(data)))


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes that simplejpeg has decoded."""
    decoded: list[int] = []
    own: Callable[..., Any] = simplejpeg.decode_jpeg

    def counting(*args: Any, **options: Any) -> Any:
        found = own(*args, **options)
        decoded.append(found.size)
        return found

    monkeypatch.setattr(simplejpeg, "decode_jpeg", counting)
    return decoded


@pytest.mark.parametrize("options", [{"subsampling": s, "quality": q} for s in (0, 1, 2) for q in (40, 90)])
@pytest.mark.parametrize("size", [(61, 90), (1, 1), (17, 8), (375, 500)])
def test_the_fast_way_gives_pillows_pixels(size: tuple[int, int], options: dict[str, int], fast: list[int]) -> None:
    data = jpeg(photograph(*size), **options)
    assert (decode(data) == by_pillow(data)).all()
    assert len(fast) == 1


@pytest.mark.parametrize("options", [{"progressive": True}, {"keep_rgb": True}, {"optimize": True}])
def test_other_kinds_of_jpeg(options: dict[str, bool], fast: list[int]) -> None:
    data = jpeg(photograph(), **options)
    assert (decode(data) == by_pillow(data)).all()
    assert len(fast) == 1


def test_grey(fast: list[int]) -> None:
    data = jpeg(photograph(mode="L"))
    assert decode(data).shape == (61, 90, 3)
    assert (decode(data) == by_pillow(data)).all()
    assert len(fast) == 2


def test_four_colours_go_through_pillow(fast: list[int]) -> None:
    data = jpeg(photograph(mode="CMYK"))
    assert (decode(data) == by_pillow(data)).all()
    assert not fast


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_turned_back(orientation: int, fast: list[int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photograph(), exif=exif)
    assert (decode(data) == by_pillow(data)).all()
    assert len(fast) == (1 if orientation == 1 else 0)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "1", "LA"])
def test_other_formats_become_colours_of_8_bits(mode: str, tmp_path: Path) -> None:
    image = photograph(mode="L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image, np.uint16) * 257)
    image.save(tmp_path / "x.png")
    found = read_pixels(tmp_path / "x.png")
    assert found.dtype == np.uint8 and found.shape == (61, 90, 3)
    assert (found == np.asarray(Preprocessing.rgb(Image.open(tmp_path / "x.png")))).all()


def test_without_the_library_pillow_decodes(monkeypatch: pytest.MonkeyPatch, fast: list[int]) -> None:
    monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    data = jpeg(photograph())
    assert (decode(data) == by_pillow(data)).all()
    assert not fast


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not an image"),
        (b"\xff\xd8\xff", "not an image"),
        (b"some text, called photo.jpg", "not an image"),
        (jpeg(photograph(375, 500))[:3000], "truncated"),
    ],
)
def test_damaged_files_say_so(data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        decode(data)


def test_bytes_after_the_end_are_forgiven() -> None:
    data = jpeg(photograph()) + b"\0" * 100
    assert (decode(data) == by_pillow(data)).all()


def test_a_header_that_promises_too_much() -> None:
    data = bytearray(jpeg(photograph()))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = (60000).to_bytes(2, "big") * 2
    with pytest.raises(InputError, match="limit"):
        decode(bytes(data))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_pixels(tmp_path / "none.jpg")


def test_pixels_lie_where_there_is_room() -> None:
    given: list[np.ndarray[Any, Any]] = []

    def room(count: int) -> np.ndarray[Any, Any]:
        given.append(np.empty(count + 999, np.uint8))
        return given[-1]

    stream = io.BytesIO()
    photograph().save(stream, "PNG")
    for data in (jpeg(photograph()), stream.getvalue()):
        found = decode(data, room)
        assert np.shares_memory(found, given[-1]) and found.flags.c_contiguous
        assert (found == by_pillow(data)).all()
