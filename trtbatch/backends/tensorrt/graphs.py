"""Capture the work of one launch as a CUDA graph, and launch it as a whole.

pycuda has no graph API, so ``cuda-bindings`` captures on the handle of pycuda's stream. The first enqueue after a
change of shapes does work that can't be captured: enqueue the work once before its capture.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from trtbatch.backends.tensorrt.buffers import Stream
from trtbatch.errors import ExecutionError
from trtbatch.util import optional

__all__ = ["CudaGraph", "GraphCache"]

MOST_GRAPHS = 64
"""Most graphs that a session keeps; each holds its kernels' parameters on the GPU, a few hundred kilobytes."""


class GraphCache:
    """Cache of graphs by what they launch; the least recently used are dropped first.

    Args:
        most: number of graphs kept.
    """

    def __init__(self, most: int = MOST_GRAPHS) -> None:
        self._most = most
        self._graphs: OrderedDict[tuple[int, str], CudaGraph] = OrderedDict()

    def get(self, number: int, what: str) -> CudaGraph | None:
        """Return the graph of a prepared batch, and mark it as used; None where it isn't kept, or no longer."""
        key = (number, what)
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
        return graph

    def put(self, number: int, what: str, graph: CudaGraph) -> None:
        """Keep a graph, and close the least recently used above the limit."""
        self._graphs[number, what] = graph
        while len(self._graphs) > self._most:
            self._graphs.popitem(last=False)[1].close()

    def drop(self, number: int) -> None:
        """Close all graphs of a prepared batch."""
        for key in [key for key in self._graphs if key[0] == number]:
            self._graphs.pop(key).close()

    def close(self) -> None:
        """Close all graphs."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()

    def __len__(self) -> int:
        return len(self._graphs)


class CudaGraph:
    """A captured launch with the addresses and shapes of its capture; capture another when those change.

    Args:
        stream: the stream of the capture and of the launches.
        enqueue: puts the work on the stream, without waiting for it.

    Raises:
        ExecutionError: the work can't be captured.
    """

    def __init__(self, stream: Stream, enqueue: Callable[[], None]) -> None:
        self._driver: Any = optional.require("cuda.bindings.driver", "use CUDA graphs")
        self._stream = self._driver.CUstream(stream.handle)
        self.executable: Any = None
        # Relaxed: another thread may allocate meanwhile, which belongs to no graph.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self._checked(self._driver.cuStreamBeginCapture(self._stream, mode))
        try:
            enqueue()
        finally:
            answer = self._driver.cuStreamEndCapture(self._stream)
        graph = self._checked(answer)
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
