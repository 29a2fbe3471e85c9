"""The cache of CUDA graphs: which graph goes first. What a graph does is tested on a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from trtbatch.backends.tensorrt.graphs import GraphCache


class Closing:
    """Notes that it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def graphs() -> list[Any]:
    return [Closing() for _ in range(4)]


def test_the_graph_that_was_not_launched_for_longest_goes_first(graphs: list[Any]) -> None:
    cache = GraphCache(2)
    cache.put(0, "whole", graphs[0])
    cache.put(1, "whole", graphs[1])
    assert cache.get(0, "whole") is graphs[0]  # now 1 is the older
    cache.put(2, "whole", graphs[2])
    assert [graph.closed for graph in graphs] == [False, True, False, False]
    assert cache.get(1, "whole") is None
    assert len(cache) == 2


def test_a_batch_that_is_forgotten_takes_all_its_graphs_with_it(graphs: list[Any]) -> None:
    cache = GraphCache()
    for graph, key in zip(graphs, ((0, "whole"), (0, "kernels"), (1, "whole"))):
        cache.put(*key, graph)
    cache.drop(0)
    assert [graph.closed for graph in graphs] == [True, True, False, False]
    assert len(cache) == 1
    cache.drop(7)
    cache.close()
    assert graphs[2].closed
    assert len(cache) == 0
