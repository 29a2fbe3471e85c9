"""GPU memory, streams and events through pycuda. The only file that imports it.

The device's primary context is used, never one of our own, so that torch can live in the same process.
Whatever is made here is freed by ``close()`` or ``free()``, in reverse order; the context is popped last
(pycuda aborts at exit otherwise).
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.errors import ExecutionError, MissingPackageError, UsageError
from trtbatch.util import optional

__all__ = [
    "BindingBuffer",
    "Copies",
    "CudaEvent",
    "Device",
    "DeviceMemory",
    "Stream",
    "device_count",
    "device_facts",
    "refuse_device",
]


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
        raise UsageError(f"`device={index}`: this machine has {there}, numbered from 0", f"pass `device={count - 1}`")


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
        self.index = index
        self._driver = _driver()
        self._context: Any = self._driver.Device(index).retain_primary_context()
        self._context.push()
        atexit.register(self.close)

    def stream(self) -> Stream:
        return Stream(self._driver)

    def memory(self, count: int) -> DeviceMemory:
        """So many bytes of GPU memory."""
        return DeviceMemory(self._driver, count)

    def upload(self, target: int, array: NDArray[Any], stream: Stream) -> None:
        """Copy an array's bytes to the GPU, ordered on the stream."""
        self._driver.memcpy_htod_async(target, array, stream.pycuda)

    def copy(self, target: int, source: int, count: int, stream: Stream) -> None:
        """Copy bytes on the GPU, ordered on the stream."""
        self._driver.memcpy_dtod_async(target, source, count, stream.pycuda)

    def buffer(self) -> BindingBuffer:
        return BindingBuffer(self._driver)

    def copies(self, pairs: Sequence[tuple[NDArray[Any], int]]) -> Copies:
        return Copies(self._driver, pairs)

    @property
    def cache_bytes(self) -> int:
        """Size of the GPU's L2 cache."""
        attribute = self._driver.device_attribute.L2_CACHE_SIZE
        return int(self._driver.Device(self.index).get_attribute(attribute))

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make the context current in this thread for the block."""
        self.enter_thread()
        try:
            yield
        finally:
            self.leave_thread()

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
        _checked(self.driver, self._stream.synchronize)

    def event(self, timed: bool = True, blocking: bool = False) -> CudaEvent:
        """An event on this stream.

        Args:
            timed: one that isn't costs less.
            blocking: whether who waits for it leaves his core to others, and goes on some microseconds later for that.
        """
        return CudaEvent(self.driver, self._stream, timed, blocking)

    def wait_for(self, event: CudaEvent) -> None:
        """Let what is put on the stream from now on begin after the event."""
        self._stream.wait_for_event(event.pycuda)

    def close(self) -> None:
        self._stream = None


def _checked(driver: Any, wait: Callable[[], Any]) -> Any:
    """Wait, or ask; a fault of the GPU that shows meanwhile is ours to tell.

    Raises:
        ExecutionError: with the driver's words.
    """
    try:
        return wait()
    except driver.Error as error:
        raise ExecutionError(f"the GPU reports: {error}", "check the inputs; a fault here ends the context") from error


class CudaEvent:
    """A mark on a stream."""

    def __init__(self, driver: Any, stream: Any, timed: bool = True, blocking: bool = False) -> None:
        self._driver = driver
        flags = driver.event_flags
        self._event = driver.Event((not timed) * flags.DISABLE_TIMING | blocking * flags.BLOCKING_SYNC)
        self._stream = stream

    @property
    def pycuda(self) -> Any:
        """pycuda's own event."""
        return self._event

    def record(self) -> None:
        self._event.record(self._stream)

    def synchronize(self) -> None:
        _checked(self._driver, self._event.synchronize)

    def milliseconds_since(self, earlier: CudaEvent) -> float:
        return float(self._event.time_since(earlier._event))


class DeviceMemory:
    """A block of GPU memory, freed by :meth:`free`.

    Raises:
        ExecutionError: out of memory, with the bytes asked for.
    """

    def __init__(self, driver: Any, count: int) -> None:
        self._driver = driver
        self.bytes = max(1, count)
        try:
            self._device: Any = driver.mem_alloc(self.bytes)
        except driver.Error as error:
            raise ExecutionError(
                f"{self.bytes} bytes of GPU memory can't be had: {error}",
                "free GPU memory (nvidia-smi shows who holds it), or build with a smaller `max`",
            ) from error

    @property
    def address(self) -> int:
        """Device pointer."""
        return int(self._device)

    def fill(self, byte: int, stream: Stream) -> None:
        """Set every byte, ordered on the stream."""
        self._driver.memset_d8_async(self._device, byte, self.bytes, stream.pycuda)

    def free(self) -> None:
        if self._device is not None:
            self._device.free()
            self._device = None


class Copies:
    """Copies between host arrays and device addresses, as one thing to put on a stream; nothing is looked up."""

    def __init__(self, driver: Any, pairs: Sequence[tuple[NDArray[Any], int]]) -> None:
        self._upload = driver.memcpy_htod_async
        self._download = driver.memcpy_dtoh_async
        self._pairs = [(array, address) for array, address in pairs if array.nbytes]

    def up(self, stream: Stream) -> None:
        """Host to device, ordered on the stream."""
        for array, address in self._pairs:
            self._upload(address, array, stream.pycuda)

    def down(self, stream: Stream) -> None:
        """Device to host, ordered on the stream."""
        for array, address in self._pairs:
            self._download(array, address, stream.pycuda)


class BindingBuffer:
    """Memory of one input or output: page-locked on the host, and on the device, of the same size.

    It grows when a shape needs more bytes and is reused while a shape fits: a smaller shape lies in its first bytes.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver
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

    def holds(self, count: int) -> bool:
        """Whether so many bytes fit without other memory, at another address."""
        return max(1, count) <= self._capacity

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

    def fill(self, byte: int, count: int, stream: Stream) -> None:
        """Set the first bytes on the device, ordered on the stream."""
        if count:
            self._driver.memset_d8_async(self._device, byte, count, stream.pycuda)

    def free(self) -> None:
        self.array = np.empty(0, np.uint8)
        if self._device is not None:
            self._device.free()
        if self._host is not None:
            self._host.base.free()
        self._host, self._device, self._capacity = None, None, 0
