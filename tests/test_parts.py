"""Photographs decoded in part: the pixels of the whole, and files read and measured several at a time before that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
            {"subsampling": st.sampled_from([0, 1, 2]), "progressive": st.booleans(), "quality": st.integers(5, 100)}
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


def test_damage_is_no_part(decoder: PartDecoder) -> None:
    file = bytearray(jpeg(photograph()))
    at = file.index(b"\xff\xda")
    file[at + 5] ^= 0x55  # a component that there isn't
    coded = decoder.coded(bytes(file))
    assert coded is None or decoder(coded, 0, 10, 0, 10) is None


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


def test_a_photograph_over_pillows_limit_is_decoded_by_nobody(tmp_path: Path, parts: list[tuple[int, ...]]) -> None:
    (file,) = write(tmp_path, {"x": jpeg(photograph(375, 500))})
    made = maker(max_pixels=375 * 500 - 1)
    (read,) = made.read([file])
    made._of_part(read.data, read.coded)  # type: ignore[arg-type]
    assert parts == []


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
