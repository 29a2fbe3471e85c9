"""GPU memory, streams and events through pycuda. The only file that imports it.

The device's primary context is used, never one of our own, so that torch can live in the same process.
Whatever is made here is freed by ``close()`` or ``free()``, in reverse order; the context is popped last
(pycuda aborts at exit otherwise).
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch import optional
from trtbatch.errors import ExecutionError, MissingPackageError, UsageError
from trtbatch.photographs.codec import Plane

__all__ = [
    "BindingBuffer",
    "Copies",
    "CudaEvent",
    "Device",
    "DeviceMemory",
    "PlaneCopies",
    "PlaneCopy",
    "Stream",
    "device_count",
    "device_facts",
    "refuse_device",
]


BATCHES_SINCE = 13000
"""Release of CUDA, as the driver tells it, from which on cuMemcpy3DBatchAsync has the form that is used here."""


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

    def plane_copy(self) -> PlaneCopy:
        return PlaneCopy(self._driver)

    def plane_copies(self, most: int) -> PlaneCopies | None:
        """Copies of up to so many planes in one call; None where the driver, or cuda-bindings, has none."""
        try:
            driver: Any = optional.require("cuda.bindings.driver", "copy in batches")
        except MissingPackageError:
            return None
        is_known = min(driver.CUDA_VERSION, self._driver.get_driver_version()) >= BATCHES_SINCE
        return PlaneCopies(driver, most) if is_known else None

    def upload(self, target: int, array: NDArray[Any], stream: Stream) -> None:
        """Copy an array's bytes to the GPU, ordered on the stream."""
        self._driver.memcpy_htod_async(target, array, stream.pycuda)

    def copy(self, target: int, source: int, count: int, stream: Stream) -> None:
        """Copy bytes on the GPU, ordered on the stream."""
        self._driver.memcpy_dtod_async(target, source, count, stream.pycuda)

    def buffer(self) -> BindingBuffer:
        return BindingBuffer(self._driver)

    def page_locked(self, count: int) -> NDArray[np.uint8]:
        """So many bytes of host memory from which copies run beside other work; for any thread.

        Raises:
            ExecutionError: they can't be had.
        """
        self.enter_thread()
        try:
            block: NDArray[np.uint8] = self._driver.pagelocked_empty(count, np.uint8)
        except self._driver.Error as error:
            raise ExecutionError(
                f"{count} bytes of page-locked memory can't be had: {error}", "free memory, or use a smaller batch"
            ) from error
        finally:
            self.leave_thread()
        return block

    def free_page_locked(self, block: NDArray[np.uint8]) -> None:
        """Free what :meth:`page_locked` gave; for any thread."""
        self.enter_thread()
        try:
            allocation: Any = block.base
            allocation.free()
        finally:
            self.leave_thread()

    def page_lock(self, memory: NDArray[np.uint8]) -> Callable[[], None]:
        """Let copies from whole pages of host memory run beside other work; for any thread.

        Returns:
            what undoes it, for any thread, before the memory goes.

        Raises:
            ExecutionError: it can't be done.
        """
        # Not pycuda's register_host_memory: it gives an array a second base, which ends the process (2026.1, numpy 2).
        try:
            driver: Any = optional.require("cuda.bindings.driver", "page-lock memory that is there")
        except MissingPackageError as error:
            raise ExecutionError(error.problem, error.fix) from error

        def call(function: Callable[..., tuple[Any]], *arguments: int) -> Any:
            self.enter_thread()
            try:
                return function(*arguments)[0]
            finally:
                self.leave_thread()

        address = int(memory.ctypes.data)
        answer = call(driver.cuMemHostRegister, address, memory.size, 0)
        if answer != driver.CUresult.CUDA_SUCCESS:
            raise ExecutionError(f"{memory.size} bytes can't be page-locked: {answer.name}", "free memory")

        def unlock() -> None:
            call(driver.cuMemHostUnregister, address)  # refused where the GPU failed before: told then

        return unlock

    def copies(self, pairs: Sequence[tuple[NDArray[Any], int]]) -> Copies:
        return Copies(self._driver, pairs)

    @property
    def cache_bytes(self) -> int:
        """Size of the GPU's L2 cache."""
        attribute = self._driver.device_attribute.L2_CACHE_SIZE
        return int(self._driver.Device(self.index).get_attribute(attribute))

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

    def has_come(self) -> bool:
        """Whether all that was on the stream before it is done; without waiting."""
        return bool(_checked(self._driver, self._event.query))

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
                "free GPU memory (nvidia-smi shows who holds it), or build with a smaller --max",
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


class PlaneCopy:
    """Copies the rows of a part of a photograph, as they lie in it, to the GPU."""

    def __init__(self, driver: Any) -> None:
        self._copy = driver.Memcpy2D()

    def up(self, pixels: NDArray[np.uint8], address: int, pitch: int, stream: Stream) -> None:
        """Host to device, ordered on the stream: pixels ``(H, W, 3)`` side by side, a row each `pitch` bytes."""
        self._copy.set_src_host(pixels)
        self._run(pixels.shape, pixels.strides[0], address, pitch, stream)

    def across(self, plane: Plane, address: int, pitch: int, stream: Stream) -> None:
        """Device to device, the same way."""
        self._copy.set_src_device(plane.address)
        self._run(plane.shape, plane.pitch, address, pitch, stream)

    def _run(self, shape: tuple[int, ...], from_pitch: int, address: int, pitch: int, stream: Stream) -> None:
        copy = self._copy
        copy.src_pitch = from_pitch
        copy.set_dst_device(address)
        copy.dst_pitch, copy.width_in_bytes = pitch, shape[1] * shape[2]
        copy.height = shape[0]
        copy(stream.pycuda)


class PlaneCopies:
    """Copies the rows of several planes to the GPU in one call: calls one by one let other threads take Python's lock
    each time, and wait for it.

    Args:
        driver: of cuda-bindings.
        most: planes of a call.
    """

    def __init__(self, driver: Any, most: int) -> None:
        self._driver = driver
        self._copies = [driver.CUDA_MEMCPY3D_BATCH_OP() for _ in range(most)]
        self._fields = []
        pointer = driver.CUmemcpy3DOperandType.CU_MEMCPY_OPERAND_TYPE_POINTER
        for copy in self._copies:
            copy.src.type = copy.dst.type = pointer
            copy.srcAccessOrder = driver.CUmemcpySrcAccessOrder.CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
            copy.extent.depth = 1
            self._fields.append((copy.src.op.ptr, copy.dst.op.ptr, copy.extent))

    def __call__(
        self, planes: Sequence[tuple[int, int, int, int]], address: int, step: int, pitch: int, stream: int
    ) -> None:
        """Copy each to its place, the first to `address`, ordered on the stream.

        Args:
            planes: address, bytes from row to row, rows and columns of each, on the GPU or in the host's memory.
            step: bytes from one's place to the next.
            pitch: bytes from row to row there.
            stream: its handle.

        Raises:
            ExecutionError: it can't be done.
        """
        for (start, row, height, width), (source, target, extent) in zip(planes, self._fields):
            source.ptr, source.rowLength, source.layerHeight = start, row, height
            target.ptr, target.rowLength, target.layerHeight = address, pitch, height
            extent.width, extent.height = 3 * width, height
            address += step
        count = len(planes)
        (answer,) = self._driver.cuMemcpy3DBatchAsync(count, self._copies[:count], 0, stream)
        if answer != self._driver.CUresult.CUDA_SUCCESS:
            raise ExecutionError(f"photographs can't be copied to the GPU: {answer.name}", "look at nvidia-smi")


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
