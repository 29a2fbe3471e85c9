"""Provide GPU memory, streams and events through pycuda, which only this file imports.

Everything lives in the GPU's primary context, which TensorRT and torch use too. The context is current only inside
:meth:`Device.entered`, in whichever thread that is, and the block leaves the thread's context as it was. Any thread
may free what another one made.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from types import ModuleType, TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.tensorrt.protocols import DeviceAllocation, PrimaryContext, PycudaEvent, PycudaStream
from trtbatch.core.tensors import numpy_dtype
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
    "entering",
    "refuse_device",
]

T = TypeVar("T")
P = ParamSpec("P")
S = TypeVar("S", bound="OnDevice")

NON_BLOCKING = 1
"""``CU_STREAM_NON_BLOCKING``. A blocking stream waits for the legacy default stream, where torch computes, and another
thread's work there would invalidate a capture."""


def _driver() -> ModuleType:
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


class _Open(threading.local):
    """Blocks that are open in this thread: the context of each, and what was current before; None inside another."""

    def __init__(self) -> None:
        self.blocks: list[tuple[int, Any]] = []


_open = _Open()


class _CurrentContext:
    """Make a GPU's primary context current in this thread for a block. Blocks nest.

    pycuda allocates in the context on top of a stack of its own, one stack a thread, so the context is pushed there. A
    thread that ends with a context on that stack aborts the process, so it is pushed for the block only.
    """

    def __init__(self, index: int) -> None:
        self._driver = _driver()
        self._cuda = optional.require("cuda.bindings.driver", "make the GPU's context current")
        # Retained once a process and never released, as torch does it: memory may outlive the engine that made it.
        self._context: PrimaryContext = self._driver.Device(index).retain_primary_context()
        self._handle = int(self._context.handle)
        self._nested = (self._handle, None)
        self.driver_error: type[Exception] = self._driver.Error

    def is_open(self) -> bool:
        """Return whether the innermost block of this thread is one of this context."""
        blocks = _open.blocks
        return bool(blocks) and blocks[-1][0] == self._handle

    def __enter__(self) -> None:
        blocks = _open.blocks
        if self.is_open():
            blocks.append(self._nested)
            return
        current = self._cuda.cuCtxGetCurrent()[1]
        try:
            self._context.push()
        except self._driver.Error as error:
            raise _fault(error) from error
        blocks.append((self._handle, current))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before = _open.blocks.pop()[1]
        if before is not None:
            self._context.pop()
            # pycuda puts back what lies below on its own stack, which torch.cuda.set_device doesn't change.
            if int(self._cuda.cuCtxGetCurrent()[1]) != int(before):
                self._cuda.cuCtxSetCurrent(before)
        if isinstance(error, self._driver.Error):
            raise _fault(error) from error


def _fault(error: BaseException) -> ExecutionError:
    return ExecutionError(f"the GPU reports: {error}", "check the inputs; a fault here ends the context")


_contexts: dict[int, _CurrentContext] = {}
_lock = threading.Lock()


def _context_of(index: int) -> _CurrentContext:
    with _lock:
        if index not in _contexts:
            _contexts[index] = _CurrentContext(index)
        return _contexts[index]


class Device:
    """A GPU, whose primary context is current inside :meth:`entered`."""

    def __init__(self, index: int = 0) -> None:
        refuse_device(index)
        self.index = index
        self.driver = _driver()
        self.context = _context_of(index)
        """The primary context, which is current inside ``with`` blocks."""

    def entered(self) -> AbstractContextManager[None]:
        """Make the GPU's context current in this thread for a block, and put back what was current before.

        Raises:
            ExecutionError: the block raised an error of the CUDA driver; the message holds the driver's words.
        """
        return self.context

    def stream(self) -> Stream:
        """Return a new stream."""
        return Stream(self)

    def memory(self, count: int) -> DeviceMemory:
        """Return new GPU memory of `count` bytes."""
        return DeviceMemory(self, count)

    def upload(self, target: int, array: NDArray[Any], stream: Stream) -> None:
        """Copy an array's bytes to the GPU, ordered on the stream."""
        self.driver.memcpy_htod_async(target, array, stream.pycuda)

    def copy(self, target: int, source: int, count: int, stream: Stream) -> None:
        """Copy `count` bytes on the GPU, ordered on the stream."""
        self.driver.memcpy_dtod_async(target, source, count, stream.pycuda)

    def buffer(self, on_host: bool = False) -> BindingBuffer:
        """Return the buffer of a binding, empty as yet; `on_host`: TensorRT reads and writes it on the host."""
        return BindingBuffer(self, on_host)

    def copies(self, pairs: Sequence[tuple[NDArray[Any], int]]) -> Copies:
        """Return the copies between these host arrays and device addresses."""
        return Copies(self.driver, pairs)

    @property
    def cache_bytes(self) -> int:
        """Return the size of the GPU's L2 cache in bytes."""
        attribute = self.driver.device_attribute.L2_CACHE_SIZE
        return int(self.driver.Device(self.index).get_attribute(attribute))


class OnDevice(Protocol):
    """What works on a GPU."""

    @property
    def device(self) -> Device: ...


def entering(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Make a method run with the context of its object's GPU current, whichever thread calls it."""

    @functools.wraps(method)
    def entered(self: S, /, *args: P.args, **options: P.kwargs) -> T:
        context = self.device.context
        if context.is_open():  # as in a loop of launches, where a block each would cost more than a microsecond
            try:
                return method(self, *args, **options)
            except context.driver_error as error:
                raise _fault(error) from error
        with context:
            return method(self, *args, **options)

    return entered


class _Owned(Generic[T]):
    """Something of pycuda's that is freed with its GPU's context current, in whichever thread drops it."""

    _made: T | None = None

    def __init__(self, device: Device, make: Callable[[], T]) -> None:
        self._device = device
        with device.entered():
            self._made = make()

    @property
    def pycuda(self) -> T:
        """Return pycuda's object."""
        assert self._made is not None, "used after it was freed"
        return self._made

    def free(self) -> None:
        """Free it; a second call does nothing."""
        made, self._made = self._made, None
        if made is not None:
            with self._device.entered():
                del made

    def __del__(self) -> None:
        if not sys.is_finalizing():
            with suppress(ExecutionError):  # after a fault, there is nothing left to free
                self.free()


class Stream(_Owned[PycudaStream]):
    """A CUDA stream that doesn't wait for the legacy default stream."""

    def __init__(self, device: Device) -> None:
        super().__init__(device, lambda: device.driver.Stream(NON_BLOCKING))
        self.handle = int(self.pycuda.handle)
        """The ``cudaStream_t``, which TensorRT takes."""

    def synchronize(self) -> None:
        """Wait for all work on the stream.

        Raises:
            ExecutionError: the GPU reports a fault.
        """
        with self._device.entered():
            self.pycuda.synchronize()

    def event(self, timed: bool = True, blocking: bool = False) -> CudaEvent:
        """Return a new event on this stream.

        Args:
            timed: whether the event can measure time; an untimed one costs less.
            blocking: whether a thread that waits for the event sleeps; that frees its core and takes some microseconds
                longer.
        """
        return CudaEvent(self._device, self, timed, blocking)

    def wait_for(self, event: CudaEvent) -> None:
        """Start later work on the stream only after the event."""
        self.pycuda.wait_for_event(event.pycuda)


class CudaEvent(_Owned[PycudaEvent]):
    """An event on a stream."""

    def __init__(self, device: Device, stream: Stream, timed: bool = True, blocking: bool = False) -> None:
        flags = device.driver.event_flags
        chosen = (not timed) * flags.DISABLE_TIMING | blocking * flags.BLOCKING_SYNC
        super().__init__(device, lambda: device.driver.Event(chosen))
        self._stream = stream

    def record(self) -> None:
        """Record the event; see :class:`trtbatch.backends.base.Event`."""
        self.pycuda.record(self._stream.pycuda)

    def synchronize(self) -> None:
        """Wait for the event; see :class:`trtbatch.backends.base.Event`."""
        with self._device.entered():
            self.pycuda.synchronize()

    def milliseconds_since(self, earlier: CudaEvent) -> float:
        """Return the time since another event, ms; see :class:`trtbatch.backends.base.Event`."""
        return float(self.pycuda.time_since(earlier.pycuda))


class DeviceMemory(_Owned[DeviceAllocation]):
    """A block of GPU memory, freed by :meth:`free` or with its last reference.

    Raises:
        ExecutionError: out of memory; the message gives the bytes requested.
    """

    def __init__(self, device: Device, count: int) -> None:
        self.bytes = max(1, count)

        def allocate() -> DeviceAllocation:
            try:
                made: DeviceAllocation = device.driver.mem_alloc(self.bytes)
            except device.driver.Error as error:
                raise ExecutionError(
                    f"{self.bytes} bytes of GPU memory can't be had: {error}",
                    "free GPU memory (nvidia-smi shows who holds it), or build with a smaller `max`",
                ) from error
            return made

        super().__init__(device, allocate)

    @property
    def address(self) -> int:
        """Return the device pointer."""
        return int(self.pycuda)

    def fill(self, byte: int, stream: Stream) -> None:
        """Set every byte, ordered on the stream."""
        self._device.driver.memset_d8_async(self.address, byte, self.bytes, stream.pycuda)


class Copies:
    """Copies between host arrays and device addresses, prepared so that a call only puts them on a stream."""

    def __init__(self, driver: ModuleType, pairs: Sequence[tuple[NDArray[Any], int]]) -> None:
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

    Args:
        device: the GPU.
        on_host: whether TensorRT takes the host's address, as of tensors that hold shapes; there is no other memory
            then.
    """

    def __init__(self, device: Device, on_host: bool = False) -> None:
        self.on_host = on_host
        self._device = device
        self._host: NDArray[np.uint8] | None = None
        self._memory: DeviceMemory | None = None
        self._capacity = 0
        self.array: NDArray[Any] = np.empty(0, np.uint8)

    def fit(self, shape: tuple[int, ...], dtype: str) -> None:
        """Make ``array`` (host) and ``address`` (device) hold `shape` of `dtype`.

        Raises:
            ExecutionError: out of memory; the message gives the bytes requested.
        """
        kind = numpy_dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        self.reserve(count)
        assert self._host is not None, "reserved above"
        self.array = self._host[:count].view(kind).reshape(shape)

    def holds(self, count: int) -> bool:
        """Return whether `count` bytes fit without new memory at another address."""
        return max(1, count) <= self._capacity

    def reserve(self, count: int) -> int:
        """Make room for `count` bytes, and return the address that TensorRT takes.

        Raises:
            ExecutionError: out of memory; the message gives the bytes requested.
        """
        wanted = max(1, count)
        if wanted > self._capacity:
            self.free()
            driver = self._device.driver
            with self._device.entered():
                try:
                    self._host = driver.pagelocked_empty(wanted, np.uint8)
                    self._memory = None if self.on_host else self._device.memory(wanted)
                except (driver.Error, ExecutionError) as error:
                    self.free()
                    raise ExecutionError(
                        f"{wanted} bytes of page-locked and GPU memory can't be had: {error}", "use a smaller batch"
                    ) from error
            self._capacity = wanted
        return self.address

    @property
    def address(self) -> int:
        """Return the device pointer, or the host's where TensorRT takes that."""
        if self._memory is not None:
            return self._memory.address
        assert self._host is not None, "reserve() comes first"
        return int(self._host.ctypes.data)

    def fill(self, byte: int, count: int, stream: Stream) -> None:
        """Set the first `count` bytes that TensorRT sees, ordered on the stream."""
        if self.on_host:
            self.array.view(np.uint8).fill(byte)
        elif count:
            self._device.driver.memset_d8_async(self.address, byte, count, stream.pycuda)

    def free(self) -> None:
        """Free the memory; the buffer can grow again."""
        self.array = np.empty(0, np.uint8)
        host, self._host = self._host, None
        memory, self._memory = self._memory, None
        self._capacity = 0
        with self._device.entered():
            if memory is not None:
                memory.free()
            if host is not None:
                host.base.free()  # type: ignore[union-attr]
