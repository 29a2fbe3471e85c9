"""Fill rows of a model's input on the GPU with the samples that a preprocessor's engine makes of images.

The preprocessor takes one image at a time. The image's pixels and matrices are copied to page-locked memory and
uploaded, the engine runs, and the sample is copied to its row. One stream orders all of this, so the host waits only
for the previous upload.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.tensorrt.buffers import CudaEvent, entering
from trtbatch.backends.tensorrt.deserialized import DeserializedEngine
from trtbatch.backends.tensorrt.slots import bytes_of
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import ExecutionError

__all__ = ["TensorRTPreprocessor"]

Array = NDArray[Any]


class Network(Protocol):
    """Inputs and output of a preprocessor, as in :class:`trtbatch.images.preprocessor.PreprocessorRecord`."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def output(self) -> TensorSpec: ...
    def feeds(self, pixels: NDArray[np.uint8]) -> dict[str, Array]: ...


class TensorRTPreprocessor:
    """Run the engine of a preprocessor; two threads must not use it at once.

    Args:
        engine: freed by :meth:`free`.
        record: description of the network that the engine was built from.
    """

    def __init__(self, engine: DeserializedEngine, record: Network) -> None:
        self._engine = engine
        self.record = record
        self._runner: _Runner | None = None

    def open(self) -> None:
        """Make the stream, the execution context and the buffers.

        Raises:
            ExecutionError: out of GPU memory.
        """
        self._runner = _Runner(self._engine, self.record)

    def __call__(self, pixels: NDArray[np.uint8], address: int) -> None:
        """Put the sample of an image ``(H, W, 3)`` uint8 at a device address; the pixels may be reused at once.

        Raises:
            InputError: the pixels aren't those of a color image.
            ExecutionError: out of memory, or TensorRT failed.
        """
        self._opened.run(pixels, address)

    def sample(self, pixels: NDArray[np.uint8]) -> Array:
        """Return the sample of an image on the host, without a batch axis; errors as for a call."""
        self._opened.run(pixels)
        return self._opened.download()

    def events(self) -> list[CudaEvent]:
        """Return new events for :meth:`done`."""
        return [self._opened.stream.event(timed=False)]

    def done(self, events: Sequence[CudaEvent]) -> None:
        """Record the events after all work requested so far."""
        for event in events:
            event.record()

    @property
    def _opened(self) -> _Runner:
        if self._runner is None:
            raise ExecutionError("the preprocessor isn't open", "call open() before")
        return self._runner

    def close(self) -> None:
        """Wait for the GPU, and free what :meth:`open` made."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def free(self) -> None:
        """Free the engine."""
        self._engine.close()

    def __enter__(self) -> TensorRTPreprocessor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free()


class _Runner:
    """An execution context with its stream and buffers."""

    def __init__(self, engine: DeserializedEngine, record: Network) -> None:
        self._engine, self._record, self.device = engine, record, engine.device
        device = self.device
        with device.entered(), ExitStack() as steps:
            self.stream = device.stream()
            steps.callback(self.stream.free)
            self._buffers = {spec.name: device.buffer() for spec in record.inputs}
            for buffer in self._buffers.values():
                steps.callback(buffer.free)
            self._sample = device.memory(bytes_of(record.output, tuple(map(int, record.output.shape))))
            steps.callback(self._sample.free)
            activations = device.memory(engine.activation_bytes)
            steps.callback(activations.free)
            self._context = engine.context(0, self.stream, activations)
            self._uploaded = self.stream.event(timed=False, blocking=True)  # decoding needs the cores
            steps.callback(self._drop)
            steps.callback(self.stream.synchronize)
            self._steps = steps.pop_all()

    @entering
    def close(self) -> None:
        """Wait for the GPU, and free everything."""
        self._steps.close()  # in reverse order, so it waits for the stream first

    @entering
    def run(self, pixels: NDArray[np.uint8], address: int | None = None) -> None:
        """Put the work for an image on the stream; the sample goes to the runner's own memory, then to `address`."""
        feeds = self._record.feeds(pixels)
        self._uploaded.synchronize()  # now the page-locked memory is free again
        if not all(self._buffers[name].holds(array.nbytes) for name, array in feeds.items()):
            self.stream.synchronize()  # growing a buffer frees memory that the engine may still read
        for name, array in feeds.items():
            buffer = self._buffers[name]
            buffer.fit(array.shape, array.dtype.name)
            np.copyto(buffer.array, array)
            self.device.upload(buffer.address, buffer.array, self.stream)
        self._uploaded.record()
        self._engine.set_shapes(self._context, {name: array.shape for name, array in feeds.items()})
        addresses = {name: buffer.address for name, buffer in self._buffers.items()}
        self._engine.set_addresses(self._context, {**addresses, self._record.output.name: self._sample.address})
        self._engine.forget_complaints()
        if not self._context.execute_async_v3(self.stream.handle):
            raise ExecutionError(f"the preprocessor failed: {self._engine.complaint()}", "build it again")
        if address is not None:  # as a copy: TensorRT needs output addresses at multiples of 256, rows may have others
            self.device.copy(address, self._sample.address, self._sample.bytes, self.stream)

    @entering
    def download(self) -> Array:
        """Wait for the sample, and return it."""
        spec = self._record.output
        found = np.empty([int(size) for size in spec.shape[1:]], spec.dtype)
        self.device.copies([(found, self._sample.address)]).down(self.stream)
        self.stream.synchronize()
        return found

    def _drop(self) -> None:
        """Drop the context and the event, so that TensorRT and pycuda free them while the CUDA context is current."""
        del self._context, self._uploaded
