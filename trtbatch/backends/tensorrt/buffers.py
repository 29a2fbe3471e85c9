"""GPU memory, streams and events through pycuda. The only file that imports it.

The device's primary context is used, never one of our own, so that torch can live in the same process.
Whatever is made here is freed by ``close()`` or ``free()``, in reverse order; the context is popped last
(pycuda aborts at exit otherwise).
"""

from __future__ import annotations

import atexit
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch import optional
from trtbatch.errors import ExecutionError, MissingPackageError, UsageError

__all__ = ["BindingBuffer", "CudaEvent", "Device", "Stream", "device_count", "device_facts", "refuse_device"]


def _driver() -> Any:
    driver = optional.require("pycuda.driver", "reach the GPU")
    try:
        driver.init()
    except driver.Error as error:
        raise MissingPackageError(f"the CUDA driver doesn't start: {error}", "check nvidia-smi") from error
    return driver


def device_count() -> int:
    """Number of GPUs that the CUDA driver sees."""
    return int(_driver().Device.count())


def refuse_device(index: int) -> None:
    """Raise where there is no such GPU.

    Raises:
        UsageError: with the number there is.
    """
    count = device_count()
    if not 0 <= index < count:
        there = "1 GPU" if count == 1 else f"{count} GPUs"
        raise UsageError(f"--device {index}: this machine has {there}, numbered from 0", f"pass --device {count - 1}")


def device_facts(index: int = 0) -> dict[str, str]:
    """Name, compute capability, memory and driver of a GPU; no context is made."""
    driver = _driver()
    device = driver.Device(index)
    major, minor = device.compute_capability()
    cuda = driver.get_driver_version()
    return {
        "gpu": device.name(),
        "compute_capability": f"{major}.{minor}",
        "memory_mib": str(device.total_memory() >> 20),
        "driver_cuda": f"{cuda // 1000}.{cuda % 1000 // 10}",
    }


class Device:
    """A GPU with its primary context current in this thread, until ``close()``."""

    def __init__(self, index: int = 0) -> None:
        refuse_device(index)
        self._driver = _driver()
        self._context: Any = self._driver.Device(index).retain_primary_context()
        self._context.push()
        atexit.register(self.close)

    def stream(self) -> Stream:
        return Stream(self._driver)

    def enter_thread(self) -> None:
        """Make the context current in this thread too; :meth:`leave_thread` undoes it, in the same thread."""
        self._context.push()

    def leave_thread(self) -> None:
        # pycuda aborts the process where a thread ends with a context on its stack.
        self._context.pop()

    def free_memory(self) -> int:
        """Bytes free on the GPU now."""
        return int(self._driver.mem_get_info()[0])

    def close(self) -> None:
        if self._context is not None:
            atexit.unregister(self.close)
            self._context.pop()
            self._context = None


class Stream:
    """A CUDA stream."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self._stream: Any = driver.Stream()

    @property
    def pycuda(self) -> Any:
        """pycuda's own stream."""
        return self._stream

    @property
    def handle(self) -> int:
        """The ``cudaStream_t``, as TensorRT takes it."""
        return int(self._stream.handle)

    def synchronize(self) -> None:
        try:
            self._stream.synchronize()
        except self.driver.Error as error:
            raise ExecutionError(
                f"the GPU reports: {error}", "check the inputs; a fault here ends the context"
            ) from error

    def event(self) -> CudaEvent:
        return CudaEvent(self.driver, self._stream)

    def close(self) -> None:
        self._stream = None


class CudaEvent:
    """A mark on a stream."""

    def __init__(self, driver: Any, stream: Any) -> None:
        self._event = driver.Event()
        self._stream = stream

    def record(self) -> None:
        self._event.record(self._stream)

    def synchronize(self) -> None:
        self._event.synchronize()

    def milliseconds_since(self, earlier: CudaEvent) -> float:
        return float(self._event.time_since(earlier._event))


class BindingBuffer:
    """Memory of one input or output: page-locked on the host, and on the device, of the same size.

    It grows when a shape needs more bytes and is reused while a shape fits.
    """

    def __init__(self, stream: Stream) -> None:
        self._driver = stream.driver
        self._stream = stream
        self._host: Any = None
        self._device: Any = None
        self._capacity = 0
        self.array: NDArray[Any] = np.empty(0, np.uint8)

    def fit(self, shape: tuple[int, ...], dtype: str) -> None:
        """Make ``array`` (host) and ``address`` (device) hold `shape` of `dtype`.

        Raises:
            ExecutionError: out of memory, with the bytes asked for.
        """
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self.reserve(count)
        self.array = self._host[:count].view(dtype).reshape(shape)

    def reserve(self, count: int) -> int:
        """Make room for so many bytes; returns the device address.

        Raises:
            ExecutionError: out of memory, with the bytes asked for.
        """
        wanted = max(1, count)
        if wanted > self._capacity:
            self.free()
            try:
                self._host = self._driver.pagelocked_empty(wanted, np.uint8)
                self._device = self._driver.mem_alloc(wanted)
            except self._driver.Error as error:
                self.free()
                raise ExecutionError(
                    f"{wanted} bytes of page-locked and GPU memory can't be had: {error}", "use a smaller batch"
                ) from error
            self._capacity = wanted
        return self.address

    @property
    def address(self) -> int:
        """Device pointer."""
        return int(self._device)

    def upload(self) -> None:
        """Copy host to device, ordered on the stream."""
        if self.array.nbytes:
            self._driver.memcpy_htod_async(self._device, self.array, self._stream.pycuda)

    def download(self) -> None:
        """Copy device to host, ordered on the stream."""
        if self.array.nbytes:
            self._driver.memcpy_dtoh_async(self.array, self._device, self._stream.pycuda)

    def fill(self, byte: int) -> None:
        """Set every byte on the device, ordered on the stream."""
        if self.array.nbytes:
            self._driver.memset_d8_async(self._device, byte, self.array.nbytes, self._stream.pycuda)

    def free(self) -> None:
        self.array = np.empty(0, np.uint8)
        if self._device is not None:
            self._device.free()
        if self._host is not None:
            self._host.base.free()
        self._host, self._device, self._capacity = None, None, 0
