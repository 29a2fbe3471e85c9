"""What processes read of a task's files before they decode the first, and what all that costs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from scripts import ahead_table
from scripts.folder_table import make_folder
from tests.test_decoding import by_pillow, jpeg, photograph
from trtbatch.errors import InputError
from trtbatch.photographs import decoder_worker, operands
from trtbatch.photographs.codec import plain_jpeg
from trtbatch.photographs.decoder_worker import Order, _PackedMaker
from trtbatch.photographs.decoding import decode, header
from trtbatch.photographs.parts import part_decoder
from trtbatch.preprocessing import Preprocessing

RECIPE = Preprocessing(256, (224, 224))


def maker(**changes: object) -> _PackedMaker:
    options = {"kind": "packed", "recipe": RECIPE, "ring": 32 << 20, "largest": 4 << 20, "whole": 1 << 20} | changes
    return _PackedMaker(Order(**options))  # type: ignore[arg-type]


def write(folder: Path, content: dict[str, bytes]) -> list[Path]:
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in content]


@pytest.mark.parametrize("limit", ["pixels", "size"])
def test_nothing_is_made_for_a_photograph_over_a_limit_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    changes = {"max_size": 374} if limit == "size" else {}
    if limit == "pixels":  # which a process sets as its parent has it
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 375 * 500 - 1)
    wanted: list[tuple[int, int]] = []
    monkeypatch.setattr(operands, "keep", lambda recipe, sizes: wanted.extend(sizes))
    files = write(tmp_path, {"x": jpeg(photograph(375, 500)), "y": jpeg(photograph(300, 400))})
    made = maker(recipe=replace(RECIPE, interpolation="bicubic"), **changes)
    assert len(made.read(files)) == 2 and wanted == [(300, 400)]
    wanted.clear()
    assert len(maker(**changes).read(files)) == 2 and wanted == [], "bilinear coefficients are made by the preprocessor"


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

        def lay(self, file: decoder_worker._Read, place: object) -> None:
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
        made.lay(groups[0][1], lambda count: (0, np.empty(count, np.uint8)))


def test_xmp_turns_it_as_pillow_says() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
    for orientation, upright in ((6, False), (1, True)):
        data = jpeg(photograph(), xmp=xmp % orientation)
        assert (header(data) is not None) is upright
        np.testing.assert_array_equal(decode(data), by_pillow(data))


@pytest.mark.parametrize("options", [{}, {"comment": b"y" * 60_000}, {"icc_profile": bytes(99_000)}])
@pytest.mark.parametrize("orientation", [None, 1, 6])
def test_the_exif_block_is_found_behind_other_blocks(orientation: int | None, options: dict[str, bytes]) -> None:
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = options | {"exif": exif.tobytes()}
    data = jpeg(photograph(), **options)
    assert (header(data) is not None) is (orientation != 6)
    padded = data[:2] + b"\xff" + data[2:]  # a mark may begin with several
    assert (header(padded) is not None) is (orientation != 6)


def test_the_costs_of_passing_on_from_end_to_end(tmp_path: Path) -> None:
    files = make_folder(tmp_path, 40, 60, 45)
    rounds = ahead_table.measure(files, 2, 1)
    parts = {"parts, alone"} if part_decoder() else set()
    assert set(rounds) == {"alone", "ahead"} | parts and all(speed > 0 for (speed,) in rounds.values())
    line = ahead_table.markdown({"alone": [100.0, 120.0], "ahead": [90.0, 120.0]}).splitlines()[-1]
    assert line == "| ahead | 105 (90 to 120) | 0.95 |"
    with pytest.raises(RuntimeError, match="3 of 4 photographs have come"):
        ahead_table.rate([1, 2], 4)
