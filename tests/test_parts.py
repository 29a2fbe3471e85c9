"""Of a JPEG file the part that a crop needs: the pixels of the whole, and the same files refused."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.test_decoding import by_pillow, jpeg, photograph
from trtbatch.errors import InputError
from trtbatch.photographs import parts
from trtbatch.photographs.codec import segments
from trtbatch.photographs.decoder_worker import Order, Place, _PackedMaker
from trtbatch.photographs.decoding import header
from trtbatch.photographs.operands import Packing, operands, plan
from trtbatch.photographs.parts import MARGIN, STEP, PartDecoder, Region, is_one_scan
from trtbatch.preprocessing import Preprocessing

simplejpeg = pytest.importorskip("simplejpeg")
pytest.importorskip("turbojpeg")

RECIPE = Preprocessing(256, (224, 224))
Pixels = np.ndarray[Any, Any]


def grainy(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Neighbours that differ, in colour too: chroma is interpolated everywhere."""
    generator = np.random.default_rng(height * width)
    smooth = np.asarray(photograph(height, width)).astype(int)
    pixels = np.clip(smooth + generator.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture(scope="module")
def decoder() -> PartDecoder:
    found = parts.part_decoder()
    assert found is not None, "the package turbojpeg has the library"
    return found


@pytest.fixture
def sought() -> Iterator[None]:
    """The library is looked for again, in this test and after it."""
    parts.part_decoder.cache_clear()
    yield
    parts.part_decoder.cache_clear()


def scan_of(data: bytes) -> int:
    found = header(data)
    assert found is not None
    return found.scan


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("sampled", ["4:4:4", "4:2:2", "4:2:0", "4:4:0", "4:1:1"])
@pytest.mark.parametrize("size", [(375, 500), (211, 97), (64, 333)])
def test_the_pixels_are_those_of_the_whole(
    decoder: PartDecoder, size: tuple[int, int], sampled: str, mode: str
) -> None:
    image = grainy(*size, mode)
    if mode == "L":
        data = jpeg(image, quality=85)
    else:
        data = simplejpeg.encode_jpeg(np.asarray(image), 85, "RGB", sampled.replace(":", ""))
    whole, (height, width) = by_pillow(data), size
    generator, done = np.random.default_rng(7), 0
    for _ in range(40):
        left, top = int(generator.integers(0, width - 40)) // STEP * STEP, int(generator.integers(0, height - 40))
        right = int(generator.integers(left + 1, width + 1))
        bottom = int(generator.integers(top + 1, height + 1))
        region = Region(left, top, right - left, bottom - top)
        memory = np.full(region.bytes + 64, 0xAB, np.uint8)
        if not decoder(data, region, memory):
            continue
        done += 1
        assert (memory[region.bytes :] == 0xAB).all(), "what lies behind is another photograph's"
        made = memory[: region.bytes].reshape(region.height, region.width, 3)
        # At an edge that isn't the photograph's own, chroma is interpolated between what isn't there.
        rows = slice(MARGIN * (top > 0), region.height - MARGIN * (bottom < height))
        columns = slice(MARGIN * (left > 0), region.width - MARGIN * (right < width))
        np.testing.assert_array_equal(made[rows, columns], whole[top:bottom, left:right][rows, columns])
    assert done == 40 or (sampled == "4:1:1" and mode == "RGB" and done > 10), "blocks of 32 columns: half are refused"


def maker(is_part: bool, recipe: Preprocessing = RECIPE) -> _PackedMaker:
    made = _PackedMaker(Order("packed", recipe, 32 << 20, 4 << 20, 1 << 20))
    if not is_part:
        made._parts = None
    return made


def laid(made: _PackedMaker, path: Path) -> tuple[Pixels, Pixels, Place]:
    """The part as it lies, what is packed before it, and where."""
    memory = np.zeros(8 << 20, np.uint8)
    (read,) = made.read([path])
    at, place = made.lay(read, lambda count: (0, memory[:count]))
    assert at == 0
    begin = Packing(made._order).bytes
    shape, strides = (place.height, place.width, 3), (place.pitch, 3, 1)
    return np.ndarray(shape, np.uint8, memory, begin + place.offset, strides), memory[:begin], place


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        Preprocessing(256, (224, 224), interpolation="bicubic"),
        Preprocessing(300, (120, 280), interpolation="lanczos"),
        Preprocessing(64, (64, 48), interpolation="nearest"),
        Preprocessing(100, (160, 130)),  # with black beside it
    ],
    ids=str,
)
@pytest.mark.parametrize("options", [{}, {"subsampling": 0, "restart_marker_blocks": 5}, {"progressive": True}])
@pytest.mark.parametrize("size", [(375, 500), (500, 375), (600, 230), (800, 1500), (256, 256), (90, 61)])
def test_what_is_laid_of_a_photograph(
    tmp_path: Path, size: tuple[int, int], options: dict[str, Any], recipe: Preprocessing
) -> None:
    file = tmp_path / "x.jpg"
    file.write_bytes(jpeg(grainy(*size), **options))
    planned = plan(recipe, *size)
    pixels = by_pillow(file.read_bytes())
    wanted = operands(recipe, pixels).image if planned is None else planned.operands(pixels).image
    part, packed, place = laid(maker(True, recipe), file)
    np.testing.assert_array_equal(part, wanted)
    whole, packed_whole, _ = laid(maker(False, recipe), file)
    np.testing.assert_array_equal(whole, wanted)
    np.testing.assert_array_equal(packed, packed_whole)
    assert planned is None or place.side == planned.side
    if recipe is RECIPE:
        is_large = size == (800, 1500)  # of which no more than the part is laid, whoever decodes it
        is_cut = size not in ((256, 256), (90, 61)) and "progressive" not in options
        assert (place.pitch < 3 * size[1]) is (is_cut or is_large)


def test_a_tall_photograph_is_cut_below_and_above(decoder: PartDecoder, tmp_path: Path) -> None:
    file = tmp_path / "x.jpg"
    file.write_bytes(jpeg(grainy(900, 256)))
    (read,) = maker(True).read([file])
    assert read.known is not None and read.known.region is not None
    left, top, width, height = read.known.region
    assert (left, width) == (0, 240 + MARGIN) and 300 < top < 345 and 224 < height < 260
    assert read.known.size == 3 * width * height


def outcome(made: _PackedMaker, path: Path) -> Pixels | str:
    try:
        return laid(made, path)[0]
    except InputError as error:
        return error.problem


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    options=st.sampled_from([{}, {"subsampling": 0}, {"restart_marker_rows": 2}, {"progressive": True}]),
    kind=st.sampled_from(["flip", "mark", "cut", "cut, ended", "gone", "doubled"]),
)
def test_damaged_files_become_what_they_become_without(
    tmp_path_factory: pytest.TempPathFactory, seed: int, options: dict[str, Any], kind: str
) -> None:
    generator = np.random.default_rng(seed)
    data = bytearray(jpeg(grainy(330, 400), **options))
    at = int(generator.integers(2, len(data) if generator.random() < 0.5 else 700))
    if kind == "flip":
        data[at] ^= int(generator.integers(1, 256))
    elif kind == "mark":
        data[at : at + 2] = bytes([0xFF, int(generator.integers(1, 256))])
    elif kind == "cut":
        del data[at:]
    elif kind == "cut, ended":
        data[at:] = b"\xff\xd9"
    elif kind == "gone":
        del data[at : at + int(generator.integers(1, 2000))]
    else:
        data += data[at:]
    file = tmp_path_factory.mktemp("damaged") / "x.jpg"
    file.write_bytes(data)
    one = maker(True)
    before = file.with_name("before.jpg")  # whose tables are its own
    before.write_bytes(jpeg(grainy(200, 300), optimize=True, quality=int(generator.integers(5, 95))))
    assert not isinstance(outcome(one, before), str)
    part, whole = outcome(one, file), outcome(maker(False), file)
    if isinstance(whole, str) or isinstance(part, str):
        assert part == whole
    else:
        np.testing.assert_array_equal(part, whole)


def test_files_that_end_anywhere_in_their_headers(tmp_path: Path) -> None:
    data, file = jpeg(grainy(330, 400)), tmp_path / "x.jpg"
    one, other = maker(True), maker(False)
    for end in range(scan_of(data) + 4):
        file.write_bytes(data[:end])
        found = outcome(one, file)
        assert isinstance(found, str) and found == outcome(other, file)
    assert not is_one_scan(data, len(data)) and not is_one_scan(data, len(data) + 1)


@pytest.mark.parametrize("mark", [0xDB, 0xC4, 0xDD])
def test_no_file_is_decoded_with_tables_of_another(tmp_path: Path, mark: int) -> None:
    other, file = tmp_path / "other.jpg", tmp_path / "x.jpg"
    other.write_bytes(jpeg(grainy(330, 400), optimize=True, quality=35, restart_marker_blocks=3))
    data = jpeg(grainy(330, 400), restart_marker_blocks=7)
    for found, at, end in reversed(list(segments(data))):
        if found == mark:
            data = data[:at] + data[end:]
    file.write_bytes(data)
    one = maker(True)
    assert not isinstance(outcome(one, other), str)
    part, whole = outcome(one, file), outcome(maker(False), file)
    assert isinstance(part, str) is isinstance(whole, str) is (mark == 0xDB)
    np.testing.assert_array_equal(part, whole)


def test_a_progressive_file_that_was_cut_and_ended_has_the_same_pixels(tmp_path: Path) -> None:
    """Of its first scan libjpeg-turbo smooths what is coarse, across all of the photograph."""
    data, file = jpeg(grainy(375, 500), progressive=True), tmp_path / "x.jpg"
    begin = data.index(b"\xff\xda")
    file.write_bytes(data[: data.index(b"\xff\xc4", begin)] + b"\xff\xd9")
    assert scan_of(file.read_bytes()) == 0
    np.testing.assert_array_equal(outcome(maker(True), file), outcome(maker(False), file))


def test_one_scan() -> None:
    data, image = jpeg(grainy(300, 400)), grainy(300, 400)
    scan = scan_of(data)
    assert data[scan - 14 : scan - 12] == b"\xff\xda" and is_one_scan(data, scan)
    assert not is_one_scan(data, 0), "it wasn't found"
    assert not is_one_scan(data[:-2], scan) and not is_one_scan(data[:-1], scan)
    assert is_one_scan(data + b"notes", scan) is False, "rare, and left to others"
    assert is_one_scan(data + data, scan), "another behind it is none of it"
    for restarts in ({"restart_marker_blocks": 3}, {"restart_marker_rows": 1}):
        marked = jpeg(image, **restarts)
        assert marked.count(b"\xff\xd3") and is_one_scan(marked, scan_of(marked))
        assert not is_one_scan(marked[:-2], scan_of(marked))
    several = jpeg(image, progressive=True)
    assert not is_one_scan(several, scan_of(several))
    middle = data.index(b"\xff\x00", (scan + len(data)) // 2)
    assert not is_one_scan(data[:middle] + b"\xff\xc0" + data[middle + 2 :], scan)


def test_a_file_that_is_damaged_in_the_part_is_left_to_others(decoder: PartDecoder) -> None:
    data = jpeg(grainy(300, 400))
    region = Region(0, 50, 300, 200)
    memory = np.empty(region.bytes, np.uint8)
    assert decoder(data, region, memory)
    assert not decoder(data[: len(data) // 2], region, memory)
    assert not decoder(b"no photograph", region, memory)
    assert not decoder(data, Region(0, 50, 300, 251), memory), "it isn't that high"
    assert not decoder(data, Region(8, 50, 100, 20), memory), "no multiple of 16"
    assert decoder(data, region, memory)


def test_a_large_file_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(grainy(300, 400))
    monkeypatch.setattr(parts, "LARGEST", len(data))
    assert is_one_scan(data, scan_of(data))
    monkeypatch.setattr(parts, "LARGEST", len(data) - 1)
    assert not is_one_scan(data, scan_of(data))


def test_the_system_may_have_an_older_library_or_none(monkeypatch: pytest.MonkeyPatch, sought: None) -> None:
    ours = [path for path in parts._libraries() if "/" in path]
    assert len(ours) == 1
    older = ctypes.util.find_library("c")
    for found, is_there in (
        ([], False),
        (["libnone.so.0"], False),
        ([older], False),
        (["libnone.so.0", older, *ours], True),
    ):
        monkeypatch.setattr(parts, "_libraries", lambda found=found: iter(found))
        parts.part_decoder.cache_clear()
        assert (parts.part_decoder() is not None) is is_there


FAST_UPSAMPLE = 9
"""``TJPARAM_FASTUPSAMPLE`` of turbojpeg.h."""


@pytest.mark.parametrize("how", ["elsewhere", "fast", "not at all"])
def test_a_library_that_decodes_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch, sought: None, how: str) -> None:
    class Other(PartDecoder):
        def __init__(self, library: ctypes.CDLL) -> None:
            super().__init__(library)
            own = self._set
            if how == "fast":
                self._set = lambda handle, name, value: own(handle, FAST_UPSAMPLE, 1) or own(handle, name, value)
            elif how == "not at all":
                self._start = lambda kind: None

        def __call__(self, data: bytes, region: Region, memory: Pixels) -> bool:
            if how == "elsewhere":
                region = region._replace(left=region.left - STEP)
            return super().__call__(data, region, memory)

    monkeypatch.setattr(parts, "PartDecoder", Other)
    assert parts.part_decoder() is None
