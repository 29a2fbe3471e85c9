"""Provide GPU memory, streams and events through pycuda, which only this file imports.

The device's primary context is used, never one of our own, so that torch can live in the same process. ``close()`` or
``free()`` frees every object here, in reverse order of creation. The context is popped last, because pycuda aborts at
exit otherwise.
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
    """Return the number of GPUs that the CUDA driver sees."""
    return int(_driver().Device.count())


def refuse_device(index: int) -> None:
    """Raise where there is no such GPU.

    Raises:
        UsageError: the message gives the number of GPUs.
    """
    count = device_count()
    if not 0 <= index < count:
        there = "1 GPU" if count == 1 else f"{count} GPUs"
        raise UsageError(f"`device={index}`: this machine has {there}, numbered from 0", f"pass `device={count - 1}`")


def device_facts(index: int = 0) -> dict[str, str]:
    """Return name, compute capability, memory and driver of a GPU, without making a context."""
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
    """A GPU whose primary context is current in this thread until ``close()``."""

    def __init__(self, index: int = 0) -> None:
        refuse_device(index)
        self.index = index
        self._driver = _driver()
        self._context: Any = self._driver.Device(index).retain_primary_context()
        self._context.push()
        atexit.register(self.close)

    def stream(self) -> Stream:
        """Return a new stream."""
        return Stream(self._driver)

    def memory(self, count: int) -> DeviceMemory:
        """Return new GPU memory of `count` bytes."""
        return DeviceMemory(self._driver, count)

    def upload(self, target: int, array: NDArray[Any], stream: Stream) -> None:
        """Copy an array's bytes to the GPU, ordered on the stream."""
        self._driver.memcpy_htod_async(target, array, stream.pycuda)

    def copy(self, target: int, source: int, count: int, stream: Stream) -> None:
        """Copy `count` bytes on the GPU, ordered on the stream."""
        self._driver.memcpy_dtod_async(target, source, count, stream.pycuda)

    def buffer(self) -> BindingBuffer:
        """Return the buffer of a binding, empty as yet."""
        return BindingBuffer(self._driver)

    def copies(self, pairs: Sequence[tuple[NDArray[Any], int]]) -> Copies:
        """Return the copies between these host arrays and device addresses."""
        return Copies(self._driver, pairs)

    @property
    def cache_bytes(self) -> int:
        """Return the size of the GPU's L2 cache in bytes."""
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
        """Make the context current in this thread too, until :meth:`leave_thread` in the same thread."""
        self._context.push()

    def leave_thread(self) -> None:
        """Undo :meth:`enter_thread`, in the same thread."""
        # pycuda aborts the process where a thread ends with a context on its stack.
        self._context.pop()

    def free_memory(self) -> int:
        """Return the number of free bytes on the GPU now."""
        return int(self._driver.mem_get_info()[0])

    def close(self) -> None:
        """Pop the context; every object on the GPU must be freed before."""
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
        """Return the stream as pycuda's object."""
        return self._stream

    @property
    def handle(self) -> int:
        """Return the ``cudaStream_t``, which TensorRT takes."""
        return int(self._stream.handle)

    def synchronize(self) -> None:
        """Wait for all work on the stream."""
        _checked(self.driver, self._stream.synchronize)

    def event(self, timed: bool = True, blocking: bool = False) -> CudaEvent:
        """Return a new event on this stream.

        Args:
            timed: whether the event can measure time; an untimed one costs less.
            blocking: whether a thread that waits for the event sleeps; that frees its core and takes some microseconds
                longer.
        """
        return CudaEvent(self.driver, self._stream, timed, blocking)

    def wait_for(self, event: CudaEvent) -> None:
        """Start later work on the stream only after the event."""
        self._stream.wait_for_event(event.pycuda)

    def close(self) -> None:
        """Free the stream."""
        self._stream = None


def _checked(driver: Any, wait: Callable[[], Any]) -> Any:
    """Call a function that waits for the GPU, and convert a fault that the GPU reports.

    Raises:
        ExecutionError: the GPU reports a fault; the message holds the driver's words.
    """
    try:
        return wait()
    except driver.Error as error:
        raise ExecutionError(f"the GPU reports: {error}", "check the inputs; a fault here ends the context") from error


class CudaEvent:
    """An event on a stream."""

    def __init__(self, driver: Any, stream: Any, timed: bool = True, blocking: bool = False) -> None:
        self._driver = driver
        flags = driver.event_flags
        self._event = driver.Event((not timed) * flags.DISABLE_TIMING | blocking * flags.BLOCKING_SYNC)
        self._stream = stream

    @property
    def pycuda(self) -> Any:
        """Return the event as pycuda's object."""
        return self._event

    def record(self) -> None:
        """Record the event; see :class:`trtbatch.backends.base.Event`."""
        self._event.record(self._stream)

    def synchronize(self) -> None:
        """Wait for the event; see :class:`trtbatch.backends.base.Event`."""
        _checked(self._driver, self._event.synchronize)

    def milliseconds_since(self, earlier: CudaEvent) -> float:
        """Return the time since another event, ms; see :class:`trtbatch.backends.base.Event`."""
        return float(self._event.time_since(earlier._event))


class DeviceMemory:
    """A block of GPU memory, freed by :meth:`free`.

    Raises:
        ExecutionError: out of memory; the message gives the bytes requested.
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
        """Return the device pointer."""
        return int(self._device)

    def fill(self, byte: int, stream: Stream) -> None:
        """Set every byte, ordered on the stream."""
        self._driver.memset_d8_async(self._device, byte, self.bytes, stream.pycuda)

    def free(self) -> None:
        """Free the memory; a second call does nothing."""
        if self._device is not None:
            self._device.free()
            self._device = None


class Copies:
    """Copies between host arrays and device addresses, prepared so that a call only puts them on a stream."""

    def __init__(self, driver: Any, pairs: Sequence[tuple[NDArray[Any], int]]) -> None:
        self._upload = driver.memcpy_htod_async
        self._download = driver.memcpy_dtoh_async
        self._pairs = [(array, address) for array, address in pairs if array.nbytes]

    def up(self, stream: Stream) -> None:
        """Copy from host to device, ordered on the stream."""
        for array, address in self._pairs:
            self._upload(address, array, stream.pycuda)

    def down(self, stream: Stream) -> None:
        """Copy from device to host, ordered on the stream."""
        for array, address in self._pairs:
            self._download(array, address, stream.pycuda)


class BindingBuffer:
    """Memory of one input or output, of the same size on the host (page-locked) and on the device.

    The memory grows when a shape needs more bytes. A smaller shape reuses its first bytes.
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
            ExecutionError: out of memory; the message gives the bytes requested.
        """
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self.reserve(count)
        self.array = self._host[:count].view(dtype).reshape(shape)

    def holds(self, count: int) -> bool:
        """Return whether `count` bytes fit without new memory at another address."""
        return max(1, count) <= self._capacity

    def reserve(self, count: int) -> int:
        """Make room for `count` bytes, and return the device address.

        Raises:
            ExecutionError: out of memory; the message gives the bytes requested.
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
        """Return the device pointer."""
        return int(self._device)

    def fill(self, byte: int, count: int, stream: Stream) -> None:
        """Set the first `count` bytes on the device, ordered on the stream."""
        if count:
            self._driver.memset_d8_async(self._device, byte, count, stream.pycuda)

    def free(self) -> None:
        """Free the memory; the buffer can grow again."""
        self.array = np.empty(0, np.uint8)
        if self._device is not None:
            self._device.free()
        if self._host is not None:
            self._host.base.free()
        self._host, self._device, self._capacity = None, None, 0
