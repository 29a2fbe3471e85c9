"""Packed operands by size: what photographs of a size share, and when its memory goes back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.test_decoders import Reader
from trtbatch.photographs import packs
from trtbatch.photographs.operands import operands
from trtbatch.photographs.packs import Pack, Packs


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def made(reader: Reader) -> Iterator[Packs]:
    """In the end nothing is in use, whatever was taken."""
    packs = Packs(reader)
    yield packs
    packs.close()
    assert in_use(reader) == 0


def taken(made: Packs, height: int, width: int) -> Pack:
    pack = made.take(height, width)
    assert pack is not None
    return pack


def in_use(reader: Reader) -> int:
    """Blocks that aren't back."""
    blocks = reader.memory.made
    return reader.memory.in_use() // blocks[0] if blocks else 0


def test_a_pack_is_what_is_packed_for_each(made: Packs, reader: Reader) -> None:
    for height, width in ((40, 90), (90, 60), (33, 33)):
        pixels, beside = np.zeros((height, width, 3), np.uint8), np.empty(reader.beside, np.uint8)
        reader.prepare(pixels, beside)
        pack, wanted = taken(made, height, width), operands(reader.recipe, pixels, reader.max_size)
        assert (pack.packed == beside).all()
        assert (pack.rows.first, pack.columns.end) == (wanted.rows.first, wanted.columns.end)
        made.give(pack)


def test_photographs_of_a_size_share_one(made: Packs, reader: Reader) -> None:
    first, second, other = taken(made, 40, 90), taken(made, 40, 90), taken(made, 90, 40)
    assert first.packed is second.packed and first.packed is not other.packed
    for pack in (first, second, other):
        made.give(pack)
    assert in_use(reader) == 2
    assert taken(made, 40, 90) is first
    made.give(first)


def test_what_is_in_use_stays_until_it_is_given_back(made: Packs, reader: Reader) -> None:
    pack, again = taken(made, 40, 90), taken(made, 40, 90)
    before = pack.packed.tobytes()
    made.close()
    made.give(again)
    other = taken(made, 90, 40)
    assert other.block is not pack.block and pack.packed.tobytes() == before
    made.give(pack)
    made.give(other)


def test_sizes_that_were_not_used_for_longest_go(made: Packs, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "KEPT", 2)
    first = taken(made, 40, 50)
    made.give(first)
    for width in (60, 50, 70):
        made.give(taken(made, 40, width))
    assert in_use(reader) == 2
    assert taken(made, 40, 50) is first
    made.give(first)


def test_what_pillow_resizes_has_none(made: Packs, reader: Reader) -> None:
    assert made.take(4000, 4000) is None and not reader.memory.made
