"""Write rows of input batches on the GPU, in the thread that fills the batches."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from trtbatch.backends.tensorrt.buffers import CudaEvent, Device, Stream, entering

__all__ = ["GpuRows"]


class GpuRows:
    """Writer of rows with its own stream for the copies."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._stream: Stream | None = None

    def open(self) -> None:
        """Create the stream."""
        self._stream = self.device.stream()

    @property
    def stream(self) -> int:
        """Return the handle of the stream."""
        return self._opened.handle

    @entering
    def upload(self, address: int, row: NDArray[Any]) -> None:
        """Copy a row from the host to an address of the GPU, ordered on the stream."""
        self.device.upload(address, row, self._opened)

    def event(self) -> CudaEvent:
        """Return an event on the stream; a thread that waits for it sleeps."""
        return self._opened.event(timed=False, blocking=True)

    def close(self) -> None:
        """Wait for the copies, and free the stream."""
        if self._stream is not None:
            self._stream.synchronize()
            self._stream.free()
            self._stream = None

    @property
    def _opened(self) -> Stream:
        assert self._stream is not None, "opened before it is used"
        return self._stream
