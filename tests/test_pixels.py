"""Photographs read ahead: in order, bounded, every block given back."""

from __future__ import annotations

import io
import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from trtbatch.photographs.arena import Arena, rounded
from trtbatch.photographs.pixels import Photograph, read_ahead
from trtbatch.sources import Skipped


class Memory:
    """An arena that knows what is in use."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.made: list[int] = []
        self.freed: list[int] = []
        self.arena = Arena(self._allocate, lambda block: self.freed.append(block.size), most)

    def _allocate(self, count: int) -> NDArray[np.uint8]:
        self.made.append(count)
        return np.empty(count, np.uint8)

    def in_use(self) -> int:
        self.arena.close()
        return self.arena.bytes


BESIDE = 1000


def prepare(pixels: NDArray[np.uint8], beside: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pixels, the memory beside them having been written to."""
    assert beside.shape == (BESIDE,) and beside.ctypes.data % 4 == 0
    beside[...] = 255
    return pixels


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Thirty photographs, each of one value; numbers 5 and 11 are none."""
    for index in range(30):
        path = tmp_path / f"{index:02}.jpg"
        if index in (5, 11):
            path.write_bytes(b"none" if index == 5 else b"")
        else:
            Image.new("L", (40 + index, 30), index * 8).save(path, quality=95)
    return sorted(tmp_path.iterdir())


def read(
    files: list[Path], memory: Memory, workers: int = 3, most: int = 1 << 30
) -> list[Photograph[NDArray[np.uint8]] | Skipped]:
    names = [file.name for file in files]
    return list(read_ahead(files, names, prepare, BESIDE, memory.arena, workers, most=most))


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_photographs_come_in_order_and_give_their_memory_back(files: list[Path], workers: int) -> None:
    memory = Memory()
    found = read(files, memory, workers)
    assert [item.name for item in found] == [file.name for file in files]
    for index, item in enumerate(found):
        if index in (5, 11):
            assert isinstance(item, Skipped) and "not an image" in item.reason
        else:
            assert isinstance(item, Photograph)
            assert np.abs(item.prepared.astype(int) - index * 8).max() <= 3
            item.release()
    assert memory.in_use() == 0


def test_memory_is_used_again(files: list[Path]) -> None:
    memory = Memory()
    same = [files[0]] * 200
    for item in read_ahead(same, [str(index) for index in range(200)], prepare, BESIDE, memory.arena, workers=2):
        assert isinstance(item, Photograph)
        item.release()
    assert len(memory.made) <= 30


def test_a_tight_budget_holds_readers_back_and_nobody_forever(files: list[Path]) -> None:
    """Each photograph alone is over the budget: what is waited for is decoded all the same."""
    memory = Memory()
    most, names = 0, [file.name for file in files]
    for item in read_ahead(files, names, prepare, BESIDE, memory.arena, workers=4, most=1):
        if isinstance(item, Photograph):
            most = max(most, memory.arena.bytes)
            item.release()
    assert most <= 8 * rounded(3 * 30 * 70 + 256 + BESIDE)
    assert memory.in_use() == 0


def test_leaving_early_ends_the_threads_and_gives_the_memory_back(files: list[Path]) -> None:
    memory = Memory()
    names = [file.name for file in files * 20]
    reader = read_ahead(files * 20, names, prepare, BESIDE, memory.arena, workers=4, most=40_000)
    for item in itertools.islice(reader, 3):
        assert isinstance(item, Photograph)
        item.release()
    time.sleep(0.05)  # by then readers wait for the budget
    reader.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("trtbatch-read")]
    assert memory.in_use() == 0


def test_what_isnt_a_files_fault_is_raised(files: list[Path]) -> None:
    def failing(pixels: NDArray[np.uint8], beside: NDArray[np.uint8]) -> None:
        raise RuntimeError("not the file's fault")

    memory = Memory()
    with pytest.raises(RuntimeError, match="not the file's fault"):
        list(read_ahead(files, [file.name for file in files], failing, BESIDE, memory.arena, workers=2))
    assert memory.in_use() == 0


@given(st.integers(1, 1 << 34))
def test_blocks_are_little_larger_than_what_they_hold(count: int) -> None:
    size = rounded(count)
    assert count <= size <= max(1 << 12, count + count // 8 + (1 << 12))
    assert rounded(size) == size


def test_an_arena_gives_up_other_sizes_before_it_grows() -> None:
    memory = Memory(most=20_000)
    arena = memory.arena
    small = [arena.take(4096) for _ in range(4)]
    for block in small:
        arena.give(block)
    large = arena.take(12_288)
    assert memory.freed == [4096] * 4 and arena.bytes == large.size
    arena.give(large)
    assert arena.take(12_288) is large


def test_an_arena_that_can_not_grow_counts_right() -> None:
    def failing(count: int) -> NDArray[np.uint8]:
        raise MemoryError

    arena = Arena(failing)
    with pytest.raises(MemoryError):
        arena.take(10)
    assert arena.bytes == 0


def test_a_photograph_of_a_format_that_pillow_reads_lies_in_the_arena(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (50, 40), (1, 2, 3)).save(stream, "PNG")
    (tmp_path / "x.png").write_bytes(stream.getvalue())
    memory = Memory()
    (item,) = read([tmp_path / "x.png"], memory, workers=1)
    assert isinstance(item, Photograph) and memory.made == [rounded(6144 + BESIDE)]
    item.release()
