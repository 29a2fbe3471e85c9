"""Photographs decoded in part: the pixels of the whole, and files read and measured several at a time before that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scripts import ahead_table
from scripts.folder_table import make_folder
from tests.test_decoding import by_pillow, jpeg, photograph
from trtbatch.errors import ExecutionError, InputError
from trtbatch.photographs import codec, decoder_worker
from trtbatch.photographs.codec import PartDecoder, plain_jpeg
from trtbatch.photographs.decoder_worker import Order, _PackedMaker
from trtbatch.photographs.decoding import decode, is_upright
from trtbatch.photographs.operands import operands
from trtbatch.preprocessing import Preprocessing

pytest.importorskip("nvidia.nvimgcodec", reason="needs nvImageCodec (extra jpeg)")

RECIPE = Preprocessing(256, (224, 224))


@pytest.fixture(scope="module")
def decoder() -> PartDecoder:
    return PartDecoder()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_part_has_the_pixels_of_the_whole(decoder: PartDecoder, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 130)), data.draw(st.integers(codec.NARROWEST, 130))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - codec.NARROWEST))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + codec.NARROWEST, width))
    options = data.draw(
        st.fixed_dictionaries(
            {"subsampling": st.sampled_from([0, 1, 2]), "optimize": st.booleans(), "quality": st.integers(5, 100)}
        )
    )
    file = jpeg(photograph(height, width), **options)
    coded = decoder.coded(file)
    assert coded is not None and coded.size == (height, width)
    found = decoder(coded, top, bottom, left, right)
    assert found is not None
    np.testing.assert_array_equal(found, by_pillow(file)[top:bottom, left:right])


def test_a_narrow_part_is_left_to_others(decoder: PartDecoder) -> None:
    coded = decoder.coded(jpeg(photograph()))
    assert coded is not None
    assert decoder(coded, 0, 30, 4, 20) is not None and decoder(coded, 0, 30, 4, 19) is None


def test_what_its_file_is_turned_by_is_left_to_others(decoder: PartDecoder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = jpeg(photograph(), exif=exif)
    coded = decoder.coded(file)
    assert coded is not None and coded.size == (61, 90)
    found = decoder(coded, 3, 40, 5, 77)
    np.testing.assert_array_equal(found, decode(jpeg(photograph()))[3:40, 5:77])


def test_a_component_that_there_is_not_makes_no_part(decoder: PartDecoder) -> None:
    file = bytearray(jpeg(photograph()))
    at = file.index(b"\xff\xda")
    file[at + 5] ^= 0x55
    coded = decoder.coded(bytes(file))
    assert coded is None or decoder(coded, 0, 10, 0, 20) is None


def in_scan(file: bytes, mark: int) -> bytes:
    """With a mark instead of the last byte 255 of the scan."""
    at = file.rindex(b"\xff\x00")
    return file[: at + 1] + bytes([mark]) + file[at + 2 :]


@pytest.mark.parametrize("kind", ["mark", "restart", "two", "progressive", "progressive, cut", "restarts", "no scan"])
def test_what_only_the_whole_shows_or_changes_is_left_to_others(decoder: PartDecoder, kind: str) -> None:
    """Damage behind the part, which Pillow refuses; and scans whose lack makes the pixels of a part others."""
    file, slow = jpeg(photograph(375, 500)), jpeg(photograph(375, 500), progressive=True)
    given = {
        "mark": in_scan(file, 0xD8),
        "restart": in_scan(file, 0xD3),
        "two": file[: len(file) // 3] + file,
        "progressive": slow,
        "progressive, cut": slow[: slow.rindex(b"\xff\xda")] + b"\xff\xd9",
        "restarts": jpeg(photograph(375, 500), restart_marker_rows=1),
        "no scan": file[: file.index(b"\xff\xda")] + b"\xff\xd9",
    }
    assert decoder.coded(file) is not None and decoder.coded(given[kind]) is None


def test_fill_bytes_and_an_end_that_is_padded_are_no_damage(decoder: PartDecoder) -> None:
    file = jpeg(photograph(375, 500))
    coded = decoder.coded(file[:-2] + b"\xff\xff\xff\xd9" + bytes(40))
    assert coded is not None
    found = decoder(coded, 3, 40, 5, 77)
    np.testing.assert_array_equal(found, decode(file)[3:40, 5:77])


def maker(**changes: object) -> _PackedMaker:
    options = {"kind": "packed", "recipe": RECIPE, "ring": 32 << 20, "largest": 4 << 20} | changes
    return _PackedMaker(Order(**options))  # type: ignore[arg-type]


def write(folder: Path, content: dict[str, bytes]) -> list[Path]:
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in content]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Those that were decoded: the last pixel's row and column, and before them the first's."""
    found: list[tuple[int, ...]] = []
    own = PartDecoder.__call__

    def counting(self: PartDecoder, file: codec.Coded, *edges: int) -> object:
        found.append(edges)
        return own(self, file, *edges)

    monkeypatch.setattr(PartDecoder, "__call__", counting)
    return found


def test_no_more_is_decoded_than_the_crop_needs(tmp_path: Path, parts: list[tuple[int, ...]]) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    files = write(
        tmp_path,
        {
            "lying": jpeg(photograph(375, 500)),
            "standing": jpeg(photograph(500, 375)),
            "turned": jpeg(photograph(375, 500), exif=turned),
            "grey": jpeg(photograph(375, 500, "L")),
            "cut": jpeg(photograph(375, 500))[:-300],
        },
    )
    made = maker()
    read = made.read(files)
    assert [each.path for each in read] == files
    for each in read[:-1]:
        made.make(each)
        assert made._given is not None and isinstance(each.data, bytes)
        wanted = operands(RECIPE, decode(each.data))
        np.testing.assert_array_equal(made._given.image, wanted.image)
        np.testing.assert_array_equal(made._given.columns.taps, wanted.columns.taps)
        assert made._given.rows.first == wanted.rows.first
    with pytest.raises(InputError, match="truncated"):
        made.make(read[-1])
    uncropped = maker(recipe=Preprocessing(224, (224, 224)))
    (square,) = uncropped.read(write(tmp_path, {"square": jpeg(photograph(230, 230))}))
    assert uncropped.make(square) > 3 * 230 * 230, "all of it is needed"
    assert len(parts) == 2 and all(top > 0 and left > 0 for top, _, left, _ in parts)


@pytest.mark.parametrize("changes", [{"max_pixels": 375 * 500 - 1}, {"max_size": 374}])
def test_nothing_is_made_for_a_photograph_over_a_limit_before_it_is_decoded(
    tmp_path: Path, parts: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
) -> None:
    wanted: list[tuple[int, int]] = []
    monkeypatch.setattr(decoder_worker, "keep", lambda recipe, sizes: wanted.extend(sizes))
    files = write(tmp_path, {"x": jpeg(photograph(375, 500)), "y": jpeg(photograph(300, 400))})
    made = maker(**changes)
    over, under = made.read(files)
    assert over.coded is None and over.size is None and under.coded is not None and wanted == [(300, 400)]


def test_each_file_goes_when_it_is_done(tmp_path: Path) -> None:
    """A task's next files are read when none of those before are held."""
    held: list[int] = []

    class HeldError(InputError):
        def __init__(self) -> None:
            super().__init__("no photograph", "leave it out")
            held.append(1)

        def __del__(self) -> None:
            held.pop()

    class Maker:
        def read(self, files: list[Path]) -> list[decoder_worker._Read]:
            assert held == []
            return [decoder_worker._Read(file, data=HeldError()) for file in files[:2]]

        def make(self, file: decoder_worker._Read) -> int:
            raise InputError("no photograph", "leave it out")

    class Inbox:
        tasks = 0

        def task(self) -> list[Path]:
            self.tasks += 1
            if self.tasks > 1:
                raise decoder_worker._EndedError
            return [tmp_path] * 6

    channel = os.open(os.devnull, os.O_WRONLY)
    order, maker, inbox = Order("packed", RECIPE, 1 << 20, 1 << 17), cast(Any, Maker()), cast(Any, Inbox())
    server = decoder_worker._Server(order, maker, np.zeros(1 << 16, np.uint8), inbox, channel)
    with pytest.raises(decoder_worker._EndedError):
        server.serve()
    os.close(channel)
    assert server._number == 6 and held == []


def test_parts_can_be_left_out_and_are_where_the_library_is_not_there(
    tmp_path: Path, parts: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = write(tmp_path, {"x": jpeg(photograph(375, 500))})

    def absent() -> None:
        raise ExecutionError("it doesn't start", "leave it out")

    made = [maker(parts=False)]
    monkeypatch.setattr(decoder_worker, "PartDecoder", absent)
    made.append(maker())
    for each in made:
        (read,) = each.read([file])
        assert each.make(read) > 0 and read.size == (375, 500), "its sides are made before it is decoded all the same"
    assert parts == []


def test_files_read_at_once_are_bounded_and_one_that_can_not_be_read_is_none_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = plain_jpeg()
    monkeypatch.setattr(decoder_worker, "_AT_ONCE", 3 * len(data) - 1)
    files = write(tmp_path, dict.fromkeys("abcdefg", data))
    files[1] = tmp_path / "missing"
    made, given = maker(), list(files)
    groups = []
    while given:
        groups.append(made.read(given))
        given = given[len(groups[-1]) :]
    assert [[each.path.name for each in group] for group in groups] == [["a", "missing", "c", "d"], ["e", "f", "g"]]
    with pytest.raises(InputError, match="No such file"):
        made.make(groups[0][1])


def test_what_libraries_print_while_they_load_is_lost_and_nothing_else(tmp_path: Path) -> None:
    code = "import os; from trtbatch.photographs.codec import PartDecoder; PartDecoder(); os.write(2, b'after')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert (done.returncode, done.stderr) == (0, "after")


def test_xmp_turns_it_as_pillow_says() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
    for orientation, upright in ((6, False), (1, True)):
        data = jpeg(photograph(), xmp=xmp % orientation)
        assert is_upright(data) is upright
        np.testing.assert_array_equal(decode(data), by_pillow(data))


@pytest.mark.parametrize("options", [{}, {"comment": b"y" * 60_000}, {"icc_profile": bytes(99_000)}])
@pytest.mark.parametrize("orientation", [None, 1, 6])
def test_the_exif_block_is_found_behind_other_blocks(orientation: int | None, options: dict[str, bytes]) -> None:
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = options | {"exif": exif.tobytes()}
    data = jpeg(photograph(), **options)
    assert is_upright(data) is (orientation != 6)
    padded = data[:2] + b"\xff" + data[2:]  # a mark may begin with several
    assert is_upright(padded) is (orientation != 6)


def test_the_costs_of_passing_on_from_end_to_end(tmp_path: Path) -> None:
    files = make_folder(tmp_path, 40, 60, 45)
    rounds = ahead_table.measure(files, 2, 1)
    assert set(rounds) == {"alone", "whole", "part"} and all(speed > 0 for (speed,) in rounds.values())
    line = ahead_table.markdown({"alone": [100.0, 120.0], "part": [90.0, 120.0]}).splitlines()[-1]
    assert line == "| part | 105 (90 to 120) | 0.95 |"
    with pytest.raises(RuntimeError, match="3 of 4 photographs have come"):
        ahead_table.rate([1, 2], 4)
