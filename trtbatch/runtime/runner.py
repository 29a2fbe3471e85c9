"""Run batches of any size on one session: cut to the profiles, padded where that must be, put together again."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import Engine, Session, Slot, batch_of, conform, refuse_integers
from trtbatch.core.profiles import split_batch
from trtbatch.core.readers import choose_reader, image_input
from trtbatch.core.sidecar import Sidecar
from trtbatch.core.tensors import TensorSpec, numpy_dtype
from trtbatch.errors import ExecutionError, InputError
from trtbatch.images.dali import DaliReader, ImageBatch
from trtbatch.images.host import ImageLike, Loaded, Skipped, read_ahead, sample
from trtbatch.runtime.dlpack import CPU, CUDA, DeviceArray, Shared, device_of, host_array, shared
from trtbatch.runtime.feeds import FillableSlot, GpuWriter, RowWriting
from trtbatch.runtime.pipeline import executed_size

__all__ = ["DeviceSession", "Runner"]

Array = NDArray[Any]
T = TypeVar("T")


@runtime_checkable
class DeviceSession(Protocol):
    """A session that also runs on tensors of its GPU; see :class:`trtbatch.backends.base.Session`."""

    @property
    def gpu(self) -> int:
        """Return the index of the GPU."""

    @property
    def stream(self) -> int:
        """Return the handle of the computing stream, for the producers of inputs to order their work before."""

    def device_memory(self, count: int) -> Any:
        """Return memory of `count` bytes on the GPU: an object with ``address``, which frees it when it is dropped."""

    def run_at(self, addresses: Mapping[str, int], batch: int) -> None:
        """Run a batch that a profile holds on bindings at these addresses, inputs and outputs, and wait for the end."""


class Runner:
    """Run batches on one session, one at a time, in any thread.

    Args:
        engine: engine of the session.
        name: name of the artifact, for errors.
    """

    def __init__(self, engine: Engine, name: str, cuda_graphs: bool = True) -> None:
        self._engine = engine
        self._name = name
        self.sidecar: Sidecar = engine.sidecar
        self._splits: dict[int, list[int]] = {}
        self._slots: list[Slot] = []
        self._dali: DaliReader | None = None
        self._session: Session = engine.session(cuda_graphs=cuda_graphs)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a batch, by names: every input in, every output out.

        Raises:
            InputError, ExecutionError: as :class:`trtbatch.runtime.loaded.LoadedEngine`.
        """
        devices = {name: device_of(value) for name, value in inputs.items()}
        if any(device != (CPU, 0) for device in devices.values()):
            return dict(self._run_on_device(inputs, devices))
        arrays = {name: host_array(value, name) for name, value in inputs.items()}
        for name, array in arrays.items():
            _refuse_files(array, name, self._name)
        return dict(self._run_on_host(arrays))

    def run_images(self, images: Sequence[ImageLike], reader: str = "auto") -> tuple[dict[str, Array], dict[int, str]]:
        """Run images of any sizes, each prepared as the model's preprocessing says.

        Returns:
            The outputs of the images that could be used, in order, and the reason for each other, by its index.

        Raises:
            UsageError: the model takes no images, or there is no such reader.
            MissingPackageError: DALI was asked for, and isn't installed.
            ExecutionError: the engine failed.
        """
        prepare = self._by_dali if choose_reader(reader, self.sidecar) == "dali" else self._by_host
        unusable: dict[int, str] = {}
        parts = [dict(outputs) for outputs in prepare(images, unusable)]
        return (self._joined(parts) if parts else dict(self._nothing())), dict(sorted(unusable.items()))

    def _by_host(self, images: Sequence[ImageLike], unusable: dict[int, str]) -> Iterator[Mapping[str, Array]]:
        """Yield the outputs of images that Pillow prepares."""
        spec, preprocessing = image_input(self.sidecar)
        samples: list[Array] = []
        with closing(_numbered(images, lambda content: sample(content, spec, preprocessing))) as made:
            for each in made:
                if isinstance(each, Skipped):
                    unusable[int(each.name)] = each.reason
                else:
                    samples.append(each.value)
        if samples:
            yield self.run({spec.name: np.stack(samples, axis=spec.batch_axis or 0)})

    def _by_dali(self, images: Sequence[ImageLike], unusable: dict[int, str]) -> Iterator[Mapping[str, Array]]:
        """Yield the outputs of images that DALI prepares: on the engine's GPU, or on the host without one."""
        spec, preprocessing = image_input(self.sidecar)
        largest = max(profile.max for profile in self.sidecar.engine.profiles)
        if self._dali is None:
            gpu = self._session.gpu if isinstance(self._session, DeviceSession) else None
            self._dali = DaliReader(preprocessing, spec, largest, gpu)
        reader = self._dali
        self._refuse_whole_outputs(len(images) > largest, len(images))
        with closing(_numbered(images, reader.load)) as loaded, ExitStack() as steps:
            writer = None
            if isinstance(self._engine, RowWriting):
                writer = self._engine.row_writer()
                writer.open()
                steps.callback(writer.close)
            for batch in reader.batches(loaded, itertools.repeat(largest)):
                unusable.update((int(each.name), each.reason) for each in batch.skipped)
                if batch.names:
                    yield self._trimmed(self._run_images(batch, spec, writer), len(batch.names))

    def _run_images(self, batch: ImageBatch, spec: TensorSpec, writer: GpuWriter | None) -> Mapping[str, Array]:
        """Return the outputs of a batch, padding included, valid until the next one."""
        executed = self._executed(len(batch.names))
        self._refuse_whole_outputs(executed != len(batch.names), len(batch.names))
        if writer is None:
            rows = np.zeros([int(size) for size in spec.at(executed)], spec.dtype)
            batch.write(rows)
            return self.run({spec.name: rows})
        if not self._slots:
            self._slots.append(self._session.slot())
        slot = cast(FillableSlot, self._slots[0])
        slot.prepare(executed)
        address, second = (slot.row_address(spec.name, index) for index in (0, 1))
        batch.write_on_gpu(address, second - address, writer)
        event = writer.event()
        event.record()
        slot.submit_after([event])
        return slot.wait()

    def close(self) -> None:
        """Free the session."""
        self._slots.clear()
        with ExitStack() as steps:
            steps.callback(self._session.close)
            if self._dali is not None:
                steps.callback(self._dali.close)

    # How a batch is cut.

    def _split(self, batch: int) -> list[int]:
        """Return the numbers of samples to run one after the other; each fits a profile once padded."""
        if batch not in self._splits:
            record = self.sidecar.engine
            self._splits[batch] = split_batch(batch, record.profiles, record.times) if batch else []
        return self._splits[batch]

    def _executed(self, count: int) -> int:
        return executed_size(count, self.sidecar.engine.profiles)

    # In the host's memory.

    def _run_on_host(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        for spec in self.sidecar.inputs:
            if spec.name in inputs:
                refuse_integers(str(inputs[spec.name].dtype), spec)
        batch = batch_of(inputs, self.sidecar.inputs)
        arrays = {spec.name: conform(inputs[spec.name], spec) for spec in self.sidecar.inputs}
        sizes = self._split(batch)
        if not sizes:
            return self._nothing()
        padded = any(self._executed(size) != size for size in sizes)
        self._refuse_whole_outputs(len(sizes) > 1 or padded, batch)
        parts = [self._trimmed(outputs, size) for size, outputs in self._results(arrays, sizes)]
        return self._joined(parts)

    def _results(self, arrays: Mapping[str, Array], sizes: Sequence[int]) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yield the outputs of each piece, padding included, valid until the next is asked for."""
        if self._session.in_flight == 1:  # it reads inputs where they lie
            start = 0
            for size in sizes:
                self._session.bind(self._cut(arrays, start, size))
                self._session.run()
                yield size, self._session.fetch()
                start += size
        else:
            yield from self._flown(arrays, sizes)

    def _flown(self, arrays: Mapping[str, Array], sizes: Sequence[int]) -> Iterator[tuple[int, dict[str, Array]]]:
        """Pieces through page-locked memory, as many in flight as keep the device busy."""
        wanted = min(len(sizes), self._session.in_flight)
        self._slots += [self._session.slot() for _ in range(wanted - len(self._slots))]
        if len(sizes) == 1:
            self._fill(self._slots[0], arrays, 0, sizes[0])
            yield sizes[0], self._slots[0].run()
            return
        flying: deque[tuple[int, Slot]] = deque()
        try:
            start = 0
            for index, size in enumerate(sizes):
                if len(flying) == wanted:
                    done, slot = flying.popleft()
                    yield done, slot.wait()
                slot = self._slots[index % wanted]
                self._fill(slot, arrays, start, size)
                slot.submit()
                flying.append((size, slot))
                start += size
            while flying:
                done, slot = flying.popleft()
                yield done, slot.wait()
        finally:
            with ExitStack() as rest:  # after an error: the memory of all must be at rest before its next use
                for _, slot in flying:
                    rest.callback(slot.wait)

    def _fill(self, slot: Slot, arrays: Mapping[str, Array], start: int, size: int) -> None:
        executed = self._executed(size)
        room = slot.prepare(executed)
        for spec in self.sidecar.inputs:
            if spec.batch_axis is None:
                np.copyto(room[spec.name], arrays[spec.name])
                continue
            target = np.moveaxis(room[spec.name], spec.batch_axis, 0)
            rows = np.moveaxis(arrays[spec.name], spec.batch_axis, 0)
            target[:size] = rows[start : start + size]
            target[size:] = rows[start + size - 1]

    def _cut(self, arrays: Mapping[str, Array], start: int, size: int) -> dict[str, Array]:
        """Return the inputs of a piece: parts of the arrays, copied only where rows must be added."""
        executed = self._executed(size)
        found: dict[str, Array] = {}
        for spec in self.sidecar.inputs:
            array = arrays[spec.name]
            if spec.batch_axis is not None:
                rows = np.moveaxis(array, spec.batch_axis, 0)[start : start + size]
                if executed != size:
                    rows = np.concatenate([rows, np.repeat(rows[-1:], executed - size, axis=0)])
                array = np.moveaxis(rows, 0, spec.batch_axis)
            found[spec.name] = array
        return found

    def _trimmed(self, outputs: Mapping[str, Array], size: int) -> dict[str, Array]:
        """Return the outputs of a piece without padding, in memory of their own."""
        found: dict[str, Array] = {}
        for spec in self.sidecar.outputs:
            array = outputs[spec.name]
            if spec.batch_axis is not None and array.shape[spec.batch_axis] > size:
                array = array.take(np.arange(size), axis=spec.batch_axis)
            elif self._session.in_flight > 1:
                array = array.copy()
            found[spec.name] = array
        return found

    def _joined(self, parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        if len(parts) == 1:  # outputs that are no rows may be among these
            return dict(parts[0])
        return {
            spec.name: np.concatenate([part[spec.name] for part in parts], axis=spec.batch_axis or 0)
            for spec in self.sidecar.outputs
        }

    def _nothing(self) -> dict[str, Array]:
        """Return the outputs of no samples."""
        shapes = {spec.name: spec.at(0) for spec in self.sidecar.outputs}
        if any(spec.batch_axis is None for spec in self.sidecar.outputs) or any(
            isinstance(size, str) for shape in shapes.values() for size in shape
        ):
            raise InputError("there are no samples, and an output has no shape without any", "give at least one")
        return {
            spec.name: np.empty([int(size) for size in shapes[spec.name]], numpy_dtype(spec.dtype))
            for spec in self.sidecar.outputs
        }

    def _refuse_whole_outputs(self, cut: bool, batch: int) -> None:
        """Raise for outputs that aren't rows: pieces can't be joined, and padding can't be removed."""
        whole = [spec.name for spec in self.sidecar.outputs if spec.batch_axis is None]
        if cut and whole:
            fitting = ", ".join(map(str, self.sidecar.engine.profiles))
            raise InputError(
                f"batch {batch} must run in pieces or padded, and output {whole[0]!r} is not one row per sample",
                f"give a batch that a profile of {self._name} holds ({fitting})",
            )

    # On the GPU.

    def _run_on_device(self, inputs: Mapping[str, Any], devices: Mapping[str, tuple[int, int]]) -> Mapping[str, Any]:
        session = self._session
        name, device = next((name, each) for name, each in devices.items() if each != (CPU, 0))
        if self.sidecar.engine.backend != "tensorrt":
            raise InputError(f"{name} lies on a GPU, and {self._name} runs on the CPU", "give tensor.cpu()")
        if not isinstance(session, DeviceSession):
            raise InputError(f"{name} lies on a GPU; this release takes inputs from the host", "give tensor.cpu()")
        strangers = {other: each for other, each in devices.items() if each != (CUDA, session.gpu)}
        if strangers:
            other, device = next(iter(strangers.items()))
            where = "in the host's memory" if device == (CPU, 0) else f"on device {device}"
            raise InputError(f"{other} lies {where}, the engine's GPU is {session.gpu}", "move all inputs to that GPU")
        specs = self.sidecar.inputs
        unknown = {spec.name for spec in specs} ^ set(inputs)
        if unknown:
            batch_of(dict.fromkeys(inputs, np.empty(0)), specs)  # says which
        tensors = {spec.name: shared(inputs[spec.name], spec, session.stream) for spec in specs}
        return self._at_addresses(session, tensors)

    def _at_addresses(self, session: DeviceSession, tensors: Mapping[str, Shared]) -> dict[str, DeviceArray]:
        """Run pieces one after the other, each on its part of the inputs and of one block for each output."""
        sidecar = self.sidecar
        shapes: dict[str, Any] = {name: _Shape(tensor.shape) for name, tensor in tensors.items()}
        batch = batch_of(shapes, sidecar.inputs)
        sizes = self._split(batch)
        self._refuse_on_device(sizes, batch)
        made: dict[str, DeviceArray] = {}
        for spec in sidecar.outputs:
            shape = tuple(int(size) for size in spec.at(batch))
            memory = session.device_memory(_bytes(spec, shape))
            made[spec.name] = DeviceArray(memory.address, shape, spec.dtype, memory, (CUDA, session.gpu))
        places = {name: tensor.address for name, tensor in tensors.items()}
        places |= {name: array.address for name, array in made.items()}
        row_bytes = {
            spec.name: 0 if spec.batch_axis is None else _bytes(spec, spec.at(1))
            for spec in (*sidecar.inputs, *sidecar.outputs)
        }
        start = 0
        for size in sizes:
            session.run_at({name: place + start * row_bytes[name] for name, place in places.items()}, size)
            start += size
        return made

    def _refuse_on_device(self, sizes: Sequence[int], batch: int) -> None:
        """Raise for what would need a copy on the GPU: padding, and pieces of an axis that isn't the first."""
        specs = (*self.sidecar.inputs, *self.sidecar.outputs)
        later = [spec for spec in self.sidecar.outputs if any(isinstance(size, str) for size in spec.at(1))]
        if later:
            raise InputError(f"the shape of output {later[0].name!r} depends on the data", "give tensor.cpu()")
        short = [size for size in sizes if self._executed(size) != size]
        if not sizes or short:
            raise InputError(
                f"batch {batch} would have to be padded on the GPU",
                f"give {self._executed(short[0])} samples" if short else "give at least one sample",
            )
        self._refuse_whole_outputs(len(sizes) > 1, batch)
        inner = [spec.name for spec in specs if spec.batch_axis not in (None, 0)]
        if len(sizes) > 1 and inner:
            raise InputError(
                f"batch {batch} runs as {', '.join(map(str, sizes))}, and is not the first axis of {inner[0]}",
                f"give at most {max(sizes)} samples",
            )


def _refuse_files(array: Array, name: str, engine: str) -> None:
    """Raise for names of files, and other things that are no numbers.

    Raises:
        InputError: saying where images go.
    """
    if array.dtype.kind not in "USO":
        return
    first = next(iter(array.flat), None)
    if isinstance(first, (bytes, bytearray)):
        what = "encoded files"
    else:
        what = f"{first}" if isinstance(first, (str, os.PathLike)) else f"of {type(first).__name__} objects"
    raise InputError(f"{engine} is called with arrays, and {name} is {what}", "images go to engine.predict([path, …])")


class _Shape:
    """Stands for an array of which the shape alone is looked at."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape


def _bytes(spec: TensorSpec, shape: Sequence[int | str]) -> int:
    width = numpy_dtype(spec.dtype).itemsize
    if any(isinstance(size, str) for size in shape):
        raise ExecutionError(f"{spec} has an open axis", "build the engine again")
    return int(np.prod([int(size) for size in shape], dtype=np.int64)) * width


def _numbered(
    images: Sequence[ImageLike], make: Callable[[ImageLike], T]
) -> Generator[Loaded[T] | Skipped, None, None]:
    """Yield what threads make of images, in order; each one's name is its index."""
    return read_ahead(images, [str(index) for index in range(len(images))], make)
