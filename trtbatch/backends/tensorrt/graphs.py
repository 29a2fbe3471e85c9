"""Capture the work of one launch as a CUDA graph, and decide which batch sizes run as graphs.

pycuda has no graph API, so ``cuda-bindings`` captures on the handle of pycuda's stream. The first enqueue after a
change of shapes does work that can't be captured: enqueue the work once before its capture.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from trtbatch.backends.tensorrt.buffers import Stream
from trtbatch.backends.tensorrt.protocols import ExecutionContext
from trtbatch.errors import ExecutionError
from trtbatch.util import optional

__all__ = ["CudaGraph", "GraphCache", "Shaped", "ShapesKey"]

ShapesKey: TypeAlias = "tuple[int, tuple[tuple[str, tuple[int, ...]], ...]]"
"""Profile, and the shape of each input by name."""

MOST_SIZES = 64
"""Most batch sizes that a session keeps graphs of; the context and graphs of each hold some megabytes on the GPU."""

PATIENCE = 256
"""Fewest launches between two sizes that give way to others. A capture takes milliseconds, and a graph saves
microseconds a launch: with more sizes in turn than are kept, capturing each again would cost more than it saves."""


class Closable(Protocol):
    """A captured graph, or what stands for one."""

    def launch(self) -> None: ...
    def close(self) -> None: ...


@dataclass(eq=False)
class Shaped:
    """An execution context that keeps one profile and one set of shapes, and the graphs captured from it.

    Args:
        graphs: by the number of the prepared batch, whose addresses they hold, and what they launch.
    """

    context: ExecutionContext
    graphs: dict[tuple[int, str], Closable] = field(default_factory=dict)

    def close(self) -> None:
        """Close the graphs."""
        for graph in self.graphs.values():
            graph.close()
        self.graphs.clear()


class GraphCache:
    """Cache of graphs by batch size; the size that was launched least recently gives way.

    A size is captured when it comes for the second time, since a size that comes once costs a capture for nothing.

    Args:
        most: number of sizes kept.
        patience: fewest launches between two sizes that give way.
    """

    def __init__(self, most: int = MOST_SIZES, patience: int = PATIENCE) -> None:
        self._most = most
        self._patience = patience
        self._sizes: OrderedDict[ShapesKey, Shaped] = OrderedDict()
        self._missed: Counter[ShapesKey] = Counter()
        self._refused: set[ShapesKey] = set()
        self._waited = 0

    def find(self, key: ShapesKey, number: int, what: str) -> Closable | None:
        """Return the graph of a prepared batch for a launch, and mark its size as used; None where there is none."""
        self._waited += 1
        shaped = self._sizes.get(key)
        if shaped is None:
            return None
        self._sizes.move_to_end(key)
        return shaped.graphs.get((number, what))

    def wants(self, key: ShapesKey) -> bool:
        """Return whether to capture the graph of a size that was just missed."""
        self._missed[key] += 1
        if key in self._refused or self._missed[key] < 2:
            return False
        return key in self._sizes or len(self._sizes) < self._most or self._waited >= self._patience

    def refuse(self, key: ShapesKey) -> bool:
        """Never capture a size again; return whether that is new."""
        known = key in self._refused
        self._refused.add(key)
        return not known

    def refused(self, key: ShapesKey) -> bool:
        """Return whether a size can't be captured."""
        return key in self._refused

    def shaped(self, key: ShapesKey) -> Shaped | None:
        """Return the context of a size, where one is kept."""
        return self._sizes.get(key)

    @property
    def is_full(self) -> bool:
        """Return whether another size takes the place of one that is kept."""
        return len(self._sizes) >= self._most

    def add(self, key: ShapesKey, context: ExecutionContext) -> Shaped:
        """Keep the context of a size, and drop the size launched least recently above the limit."""
        while self.is_full:
            self._sizes.popitem(last=False)[1].close()
            self._waited = 0
        self._sizes[key] = Shaped(context)
        return self._sizes[key]

    def drop(self, number: int) -> None:
        """Close all graphs of a prepared batch."""
        for shaped in self._sizes.values():
            for key in [key for key in shaped.graphs if key[0] == number]:
                shaped.graphs.pop(key).close()

    def close(self) -> None:
        """Close all graphs, and drop their contexts."""
        for shaped in self._sizes.values():
            shaped.close()
        self._sizes.clear()

    def __len__(self) -> int:
        """Return the number of graphs."""
        return sum(len(shaped.graphs) for shaped in self._sizes.values())


class CudaGraph:
    """A captured launch with the addresses and shapes of its capture; capture another when those change.

    Args:
        stream: the stream of the capture and of the launches.
        enqueue: puts the work on the stream, without waiting for it.

    Raises:
        ExecutionError: the work can't be captured.
    """

    def __init__(self, stream: Stream, enqueue: Callable[[], None]) -> None:
        self._driver = optional.require("cuda.bindings.driver", "use CUDA graphs")
        self._stream = self._driver.CUstream(stream.handle)
        self.executable: Any = None
        # Relaxed: another thread may allocate at the same time, which belongs to no graph.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self._checked(self._driver.cuStreamBeginCapture(self._stream, mode))
        try:
            enqueue()
        except BaseException:
            answer = self._driver.cuStreamEndCapture(self._stream)
            if not answer[0]:
                self._driver.cuGraphDestroy(answer[-1])
            raise
        graph = self._checked(self._driver.cuStreamEndCapture(self._stream))
        try:
            self.executable = self._checked(self._driver.cuGraphInstantiate(graph, 0))
        finally:
            self._driver.cuGraphDestroy(graph)

    def launch(self) -> None:
        """Put the whole work on the stream.

        Raises:
            ExecutionError: the driver refuses.
        """
        error = self._driver.cuGraphLaunch(self.executable, self._stream)[0]
        if error:
            self._checked((error,))

    def _checked(self, answer: tuple[Any, ...]) -> Any:
        if answer[0] != self._driver.CUresult.CUDA_SUCCESS:
            raise ExecutionError(
                f"this engine can't run as a CUDA graph: {answer[0].name}", "use `modes=['async']`, or execute_v2"
            )
        return answer[-1]

    def close(self) -> None:
        """Free the graph; a second call does nothing."""
        if self.executable is not None:
            self._driver.cuGraphExecDestroy(self.executable)
            self.executable = None
