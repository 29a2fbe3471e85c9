"""CUDA graphs: what one launch enqueues is recorded once, and then launched as a whole.

pycuda has no graph API; ``cuda-bindings`` captures on the handle of pycuda's stream. The first enqueue after a change
of shapes does work that can't be captured, so capture what has been enqueued once before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trtbatch import optional
from trtbatch.backends.tensorrt.buffers import Stream
from trtbatch.errors import ExecutionError

__all__ = ["CudaGraph"]


class CudaGraph:
    """A captured launch. It holds the addresses and shapes of its capture: make another when those change.

    Args:
        stream: on which it is captured and launched.
        enqueue: puts the work on the stream, without waiting for it.

    Raises:
        ExecutionError: the work can't be captured.
    """

    def __init__(self, stream: Stream, enqueue: Callable[[], None]) -> None:
        self._driver: Any = optional.require("cuda.bindings.driver", "use CUDA graphs")
        self._stream = self._driver.CUstream(stream.handle)
        self._executable: Any = None
        # Relaxed: another thread may allocate meanwhile, which belongs to no graph.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self._checked(self._driver.cuStreamBeginCapture(self._stream, mode))
        try:
            enqueue()
        finally:
            answer = self._driver.cuStreamEndCapture(self._stream)
        graph = self._checked(answer)
        try:
            self._executable = self._checked(self._driver.cuGraphInstantiate(graph, 0))
        finally:
            self._driver.cuGraphDestroy(graph)

    def launch(self) -> None:
        """Put the whole work on the stream.

        Raises:
            ExecutionError: the driver refuses.
        """
        error = self._driver.cuGraphLaunch(self._executable, self._stream)[0]
        if error:
            self._checked((error,))

    def _checked(self, answer: tuple[Any, ...]) -> Any:
        if answer[0] != self._driver.CUresult.CUDA_SUCCESS:
            raise ExecutionError(
                f"this engine can't run as a CUDA graph: {answer[0].name}", "use --mode async, or execute_v2"
            )
        return answer[-1]

    def close(self) -> None:
        if self._executable is not None:
            self._driver.cuGraphExecDestroy(self._executable)
            self._executable = None
