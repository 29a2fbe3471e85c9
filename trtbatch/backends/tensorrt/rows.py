"""Write rows of input batches on the GPU, in the thread that fills the batches."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from trtbatch.backends.tensorrt.buffers import CudaEvent, Device, Stream

__all__ = ["GpuRows"]


class GpuRows:
    """Writer of rows with its own stream for the copies; open, use and close it in one thread."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._stream: Stream | None = None

    def open(self) -> None:
        """Make the context current in this thread, and create the stream."""
        self._device.enter_thread()
        try:
            self._stream = self._device.stream()
        except BaseException:
            self._device.leave_thread()
            raise

    @property
    def stream(self) -> int:
        """Return the handle of the stream."""
        return self._opened.handle

    def upload(self, address: int, row: NDArray[Any]) -> None:
        """Copy a row from the host to an address of the GPU, ordered on the stream."""
        self._device.upload(address, row, self._opened)

    def event(self) -> CudaEvent:
        """Return an event on the stream; a thread that waits for it sleeps."""
        return self._opened.event(timed=False, blocking=True)

    def close(self) -> None:
        """Free the stream, and leave the context."""
        if self._stream is not None:
            self._stream.synchronize()
            self._stream = None
            self._device.leave_thread()

    @property
    def _opened(self) -> Stream:
        assert self._stream is not None, "opened before it is used"
        return self._stream
