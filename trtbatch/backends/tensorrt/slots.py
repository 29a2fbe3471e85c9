"""Run one batch in flight on TensorRT: its buffers, what is prepared per batch size, and its launch.

A slot works out shapes, addresses and copies when it first meets a batch size. Later calls only look up a dictionary.
:meth:`TensorRTSlot.run` uploads, computes and downloads a single batch as one CUDA graph on one stream.
:meth:`TensorRTSlot.submit` is for pipelines: it uses three streams, ordered by events, so that the copies of one batch
overlap the computing of another.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.tensorrt import compat
from trtbatch.backends.tensorrt.buffers import Copies, CudaEvent, Device, entering
from trtbatch.backends.tensorrt.contexts import Contexts
from trtbatch.backends.tensorrt.graphs import Closable, ShapesKey
from trtbatch.backends.tensorrt.protocols import ExecutionContext
from trtbatch.core.tensors import TensorSpec, numpy_dtype
from trtbatch.errors import ExecutionError
from trtbatch.util import optional

__all__ = ["Prepared", "TensorRTSlot", "bytes_of"]

Array = NDArray[Any]

MOST_SEEN = 256
"""Batch sizes that a slot remembers; more indicate a loop over all sizes."""

_numbers = itertools.count()


@dataclass(eq=False)
class Prepared:
    """One batch size in one slot, ready to be launched.

    Args:
        context: the execution context of `profile`.
        shapes: of the inputs, as the context takes them.
        addresses: of every binding, as TensorRT takes them.
        inputs, outputs: host memory; of the outputs only those whose shape doesn't depend on the data.
        later: specs of the outputs whose shape depends on the data.
        pointers: the list that ``execute_v2`` takes.
        number: unique number, for the cache of graphs.
    """

    profile: int
    context: ExecutionContext
    shapes: dict[str, tuple[int, ...]]
    addresses: dict[str, int]
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    later: tuple[TensorSpec, ...]
    uploads: Copies
    downloads: Copies
    pointers: list[int]
    number: int = field(default_factory=lambda: next(_numbers))

    @functools.cached_property
    def key(self) -> ShapesKey:
        """Return what contexts with graphs are found by."""
        return self.profile, tuple(self.shapes.items())


class TensorRTSlot:
    """Buffers for one batch in flight; made by its session, and freed with it. Two threads must not use it at once.

    Args:
        contexts: the execution contexts of the session.
        spins: whether :meth:`wait` keeps a core busy.
    """

    def __init__(self, contexts: Contexts, spins: bool = True) -> None:
        self._contexts = contexts
        self._specs = (*contexts.inputs, *contexts.outputs)
        self.device: Device = contexts.device
        self._buffers = {spec.name: self.device.buffer(spec.name in contexts.on_host) for spec in self._specs}
        self._seen: dict[tuple[int | None, int], Prepared] = {}
        self._now: Prepared | None = None
        self._uploaded = contexts.uploading.event(timed=False)
        self._computed = contexts.computing.event(timed=False)
        self._done = contexts.downloading.event(timed=False, blocking=not spins)
        self._shapes: dict[str, tuple[int, ...]] = {}
        """Shapes, as the last run reported them, of the outputs whose shape depends on the data."""

    @property
    def now(self) -> Prepared:
        """Return what was prepared last.

        Raises:
            ExecutionError: no batch was prepared, or its memory is gone.
        """
        if self._now is None:
            raise ExecutionError("no batch is prepared", "prepare one again: the last could not have its memory")
        return self._now

    @entering
    def prepare(self, batch: int) -> dict[str, Array]:
        """Return the inputs' memory; see :class:`trtbatch.backends.base.Slot`."""
        return self._take(batch).inputs

    def _take(self, batch: int) -> Prepared:
        key = (self._contexts.forced, batch)
        prepared = self._seen.get(key)
        if prepared is None:
            prepared = self._prepared(batch)
            self._seen[key] = prepared
        self._now = prepared
        return prepared

    def _prepared(self, batch: int) -> Prepared:
        contexts = self._contexts
        profile = contexts.pick(batch)
        context = contexts.context(profile)
        shapes = {spec.name: tuple(int(size) for size in spec.at(batch)) for spec in contexts.inputs}
        contexts.set_shapes(context, shapes)
        found = {spec.name: tuple(int(size) for size in context.get_tensor_shape(spec.name)) for spec in self._specs}
        # After a run TensorRT reports the shape that the data had then, so an output that was open once stays open.
        contexts.open_outputs.update(name for name, shape in found.items() if min(shape, default=0) < 0)
        known = [spec for spec in self._specs if spec.name not in contexts.open_outputs]
        later = tuple(spec for spec in self._specs if spec.name in contexts.open_outputs)
        if later:
            contexts.run_without_graphs("the shape of an output depends on the data")
        sizes = {spec.name: bytes_of(spec, found[spec.name]) for spec in known}
        sizes |= {spec.name: int(context.get_max_output_size(spec.name)) for spec in later}
        if not all(self._buffers[name].holds(size) for name, size in sizes.items()):
            self.forget()  # addresses change, and everything prepared so far holds the old ones
        while len(self._seen) >= MOST_SEEN:
            self._drop(self._seen.pop(next(iter(self._seen))))
        for name, size in sizes.items():
            self._buffers[name].reserve(size)
        for spec in known:
            self._buffers[spec.name].fit(found[spec.name], spec.dtype)
        arrays = {spec.name: self._buffers[spec.name].array for spec in known}
        addresses = {name: buffer.address for name, buffer in self._buffers.items()}
        inputs = {spec.name: arrays[spec.name] for spec in contexts.inputs}
        outputs = {spec.name: arrays[spec.name] for spec in contexts.outputs if spec.name in arrays}
        return Prepared(
            profile=profile,
            context=context,
            shapes=shapes,
            addresses=addresses,
            inputs=inputs,
            outputs=outputs,
            later=later,
            uploads=self._copies(inputs),
            downloads=self._copies(outputs),
            pointers=compat.bindings(contexts.cuda_engine, addresses, profile),
        )

    def _copies(self, arrays: Mapping[str, Array]) -> Copies:
        """Return the copies of bindings that are on the device."""
        pairs = ((array, self._buffers[name]) for name, array in arrays.items())
        return self.device.copies([(array, buffer.address) for array, buffer in pairs if not buffer.on_host])

    def forget(self) -> None:
        """Drop everything prepared, and its graphs."""
        for prepared in self._seen.values():
            self._drop(prepared)
        self._seen.clear()
        self._now = None

    def _drop(self, prepared: Prepared) -> None:
        self._contexts.graphs.drop(prepared.number)
        self._contexts.deactivate(prepared.profile, prepared)

    @entering
    def activate(self, prepared: Prepared) -> None:
        """Give the context this batch's shapes and addresses, where another slot or size used it last.

        Raises:
            ExecutionError: TensorRT refuses a shape.
        """
        contexts = self._contexts
        if contexts.is_active(prepared.profile, prepared):
            return
        context = prepared.context
        contexts.set_shapes(context, prepared.shapes)
        if prepared.later:
            # With such outputs TensorRT 8.6.0 runs the previous shapes, unless the output shapes are queried first.
            for spec in contexts.outputs:
                context.get_tensor_shape(spec.name)
        for spec in prepared.later:
            self._allocate_later(context, spec)
        contexts.set_addresses(context, {name: self._buffers[name].address for name in prepared.addresses})
        contexts.set_active(prepared.profile, prepared)

    def _allocate_later(self, context: ExecutionContext, spec: TensorSpec) -> None:
        """Set the allocator of an output whose shape depends on the data: TensorRT calls it for memory as it runs."""
        buffer = self._buffers[spec.name]

        def notify(shape: tuple[int, ...]) -> None:
            self._shapes[spec.name] = shape

        def reserve(count: int) -> int:
            try:
                return buffer.reserve(count)
            except ExecutionError as error:  # must not pass through TensorRT's own frames
                self._contexts.failure = error
                return 0

        allocator = compat.make_output_allocator(optional.require("tensorrt", "run engines"), reserve, notify)
        self._contexts.keep(context, spec.name, allocator)  # TensorRT keeps no reference
        context.set_output_allocator(spec.name, allocator)

    @entering
    def enqueue(self) -> None:
        """Put the kernels on the computing stream, without a graph."""
        prepared = self.now
        self.activate(prepared)
        self._contexts.enqueue(prepared.context)

    @entering
    def launch(self, capture: bool = False) -> bool:
        """Put the kernels on the computing stream, as a graph where possible; return whether it is one.

        Args:
            capture: whether to capture the graph now where there is none yet.
        """
        graph = self._graph("kernels", self._contexts.enqueue, capture)
        if graph is None:
            self.enqueue()
        else:
            graph.launch()
        return graph is not None

    @property
    def may_be_graph(self) -> bool:
        """Return whether what was prepared last can be launched as a graph, as far as is known."""
        return self._contexts.uses_graphs and not self._contexts.graphs.refused(self.now.key)

    @entering
    def run(self) -> dict[str, Array]:
        """Run the batch as one graph where possible; see :class:`trtbatch.backends.base.Slot`."""
        prepared, stream = self.now, self._contexts.computing
        graph = self._graph("whole", self._all_on_one)
        if graph is None:
            self.activate(prepared)
            self._all_on_one(prepared.context)
        else:
            graph.launch()
        stream.synchronize()
        return prepared.outputs if not prepared.later else self._with_later(prepared)

    def _all_on_one(self, context: ExecutionContext) -> None:
        prepared, stream = self.now, self._contexts.computing
        prepared.uploads.up(stream)
        self._contexts.enqueue(context)
        prepared.downloads.down(stream)

    def _graph(self, what: str, enqueue: Callable[[ExecutionContext], None], capture: bool = False) -> Closable | None:
        """Return the graph of what `enqueue` does with a context, or None where the batch is better launched without.

        Args:
            what: name of the work.
            enqueue: puts the work on the computing stream.
            capture: whether to capture the graph now where there is none yet.
        """
        if not self.may_be_graph:
            return None
        prepared, graphs = self.now, self._contexts.graphs
        graph = graphs.find(prepared.key, prepared.number, what)
        if graph is None and (graphs.wants(prepared.key) or capture):
            return self._contexts.capture(prepared.key, prepared.addresses, prepared.number, what, enqueue)
        return graph

    @entering
    def warm(self, batch: int) -> None:
        """Capture the graph of this batch size in advance; see :class:`trtbatch.backends.base.Slot`."""
        prepared, contexts = self._take(batch), self._contexts
        if prepared.later:  # the memory that the outputs need depends on the data
            return
        for name, array in prepared.inputs.items():
            self._buffers[name].fill(0, array.nbytes, contexts.computing)  # inputs may be indices into a table
        self._graph("kernels", contexts.enqueue, capture=True)
        contexts.computing.synchronize()

    @entering
    def submit(self) -> None:
        """Start the batch; see :class:`trtbatch.backends.base.Slot`."""
        self.now.uploads.up(self._contexts.uploading)
        self._uploaded.record()
        self.submit_after([self._uploaded])

    def row_address(self, name: str, index: int) -> int:
        """Return the GPU address of a sample, at any batch size, of an input whose first axis is the batch."""
        row = self.now.inputs[name][:1].nbytes
        return self._buffers[name].address + index * row

    @entering
    def submit_after(self, events: Sequence[CudaEvent]) -> None:
        """Start the batch as :meth:`submit` does, but with inputs that are on the GPU after these events."""
        prepared, contexts = self.now, self._contexts
        for event in events:
            contexts.computing.wait_for(event)
        self.launch()
        self._computed.record()
        contexts.downloading.wait_for(self._computed)
        prepared.downloads.down(contexts.downloading)
        self._done.record()

    @entering
    def wait(self) -> dict[str, Array]:
        """Wait for the outputs; see :class:`trtbatch.backends.base.Slot`."""
        self._done.synchronize()
        return self.now.outputs if not self.now.later else self._with_later(self.now)

    def _with_later(self, prepared: Prepared) -> dict[str, Array]:
        """Return all outputs, including those whose shape only the run reported."""
        stream = self._contexts.computing
        stream.synchronize()
        arrays = dict(prepared.outputs)
        for spec in prepared.later:
            buffer = self._buffers[spec.name]
            if spec.name not in self._shapes:
                raise ExecutionError(f"TensorRT reported no shape for {spec.name}", "build the engine again")
            buffer.fit(self._shapes[spec.name], spec.dtype)
            arrays[spec.name] = buffer.array
            self._copies({spec.name: buffer.array}).down(stream)
        stream.synchronize()
        return {spec.name: arrays[spec.name] for spec in self._contexts.outputs}

    @entering
    def upload(self) -> None:
        """Copy the inputs to the GPU, and wait."""
        self.now.uploads.up(self._contexts.computing)
        self._contexts.computing.synchronize()

    @entering
    def download(self) -> dict[str, Array]:
        """Copy the outputs of the last run to the host, and return their memory."""
        prepared = self.now
        prepared.downloads.down(self._contexts.computing)
        self._contexts.computing.synchronize()
        return self._with_later(prepared) if prepared.later else prepared.outputs

    @entering
    def poison(self, pattern: int) -> None:
        """Fill the device memory of the outputs with a byte."""
        stream = self._contexts.computing
        for spec in self._contexts.outputs:
            buffer = self._buffers[spec.name]
            array = self.now.outputs.get(spec.name, buffer.array)
            buffer.fill(pattern, array.nbytes, stream)
        stream.synchronize()

    @entering
    def parts(self) -> dict[str, float]:
        """Return the times of copies and compute; see :class:`trtbatch.backends.base.Slot`."""
        stream, prepared = self._contexts.computing, self.now
        self.launch(capture=True)  # keeps the capture of the graph out of the timing
        stream.synchronize()
        marks = [stream.event() for _ in range(4)]
        marks[0].record()
        prepared.uploads.up(stream)
        marks[1].record()
        self.launch()
        marks[2].record()
        prepared.downloads.down(stream)
        marks[3].record()
        stream.synchronize()
        times = (later.milliseconds_since(earlier) for earlier, later in itertools.pairwise(marks))
        return dict(zip(("h2d", "gpu", "d2h"), times))

    @entering
    def free(self) -> None:
        """Free the buffers, and drop everything prepared."""
        self.forget()
        for buffer in self._buffers.values():
            buffer.free()
        for event in (self._uploaded, self._computed, self._done):
            event.free()


def bytes_of(spec: TensorSpec, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor of this shape."""
    return int(np.prod(shape, dtype=np.int64)) * numpy_dtype(spec.dtype).itemsize
