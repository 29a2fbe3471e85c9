"""Which batch sizes run as CUDA graphs, and which give way. What a graph does is tested on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trtbatch.backends.tensorrt.graphs import GraphCache, ShapesKey

CONTEXT: Any = None  # the cache only keeps it


class Closing:
    """Notes that it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def launch(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def size(batch: int) -> ShapesKey:
    return 0, (("input", (batch, 3)),)


def launch(cache: GraphCache, batch: int, number: int = 0) -> bool:
    """Launch a size as a slot does, and return whether that took a capture."""
    key = size(batch)
    if cache.find(key, number, "kernels") is not None or not cache.wants(key):
        return False
    shaped = cache.shaped(key) or cache.add(key, CONTEXT)
    shaped.graphs[number, "kernels"] = Closing()
    return True


def test_a_size_is_captured_when_it_comes_for_the_second_time() -> None:
    cache = GraphCache()
    assert [launch(cache, batch) for batch in (1, 2, 3, 2, 2, 1, 3, 1)] == [
        False,
        False,
        False,
        True,
        False,
        True,
        True,
        False,
    ]
    assert len(cache) == 3


def test_another_slot_captures_a_kept_size_at_once_in_the_same_context() -> None:
    cache = GraphCache(1)
    assert [launch(cache, 1), launch(cache, 1), launch(cache, 1, number=1)] == [False, True, True]
    assert len(cache) == 2


def test_the_size_that_was_not_launched_for_longest_gives_way() -> None:
    cache = GraphCache(2, patience=0)
    for batch in (1, 1, 2, 2, 1):
        launch(cache, batch)
    first, second = (cache.find(size(batch), 0, "kernels") for batch in (1, 2))
    assert cache.find(size(1), 0, "kernels") is first, "now 2 is the older"
    assert [launch(cache, 3), launch(cache, 3)] == [False, True]
    assert isinstance(second, Closing)
    assert second.closed
    assert isinstance(first, Closing)
    assert not first.closed
    assert cache.find(size(2), 0, "kernels") is None


def test_sizes_give_way_only_now_and_then() -> None:
    cache = GraphCache(1, patience=10)
    assert [launch(cache, 1) for _ in range(2)] == [False, True]
    captured = [launch(cache, 2 + turn % 2) for turn in range(30)]
    assert sum(captured) == 3
    assert captured.index(True) == 7, "ten launches after the cache was made"


@pytest.mark.parametrize(("sizes", "rate"), [(64, 0.0), (256, 0.005)])
def test_many_sizes_at_random_are_seldom_captured_anew(sizes: int, rate: float) -> None:
    cache, draw = GraphCache(), np.random.default_rng(0)
    for batch in draw.integers(1, sizes, 2000, endpoint=True):
        launch(cache, int(batch))
    again = [launch(cache, int(batch)) for batch in draw.integers(1, sizes, 10_000, endpoint=True)]
    assert np.mean(again) <= rate


def test_a_size_that_can_not_be_captured_is_not_tried_again() -> None:
    cache = GraphCache()
    assert not cache.refused(size(1))
    assert cache.refuse(size(1)), "that is new"
    assert not cache.refuse(size(1)), "so it is told once"
    assert cache.refused(size(1))
    assert [launch(cache, 1) for _ in range(3)] == [False, False, False]
    assert [launch(cache, 2) for _ in range(2)] == [False, True]


def test_a_batch_that_is_forgotten_takes_all_its_graphs_with_it() -> None:
    cache = GraphCache()
    graphs = [Closing() for _ in range(3)]
    shaped = cache.add(size(1), CONTEXT)
    shaped.graphs |= {(0, "whole"): graphs[0], (0, "kernels"): graphs[1], (1, "whole"): graphs[2]}
    cache.drop(0)
    assert [graph.closed for graph in graphs] == [True, True, False]
    assert len(cache) == 1
    cache.drop(7)
    cache.close()
    assert graphs[2].closed
    assert len(cache) == 0
