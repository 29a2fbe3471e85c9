"""Manage the execution contexts of a session: one per profile, with their memory, streams and CUDA graphs.

A context is made when its profile is first needed, because switching the profile of a context costs milliseconds. All
contexts compute on one stream, one after the other, so that they share one block of memory of the largest profile's
size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from trtbatch.backends.tensorrt.buffers import DeviceMemory, Stream
from trtbatch.backends.tensorrt.deserialized import DeserializedEngine
from trtbatch.backends.tensorrt.graphs import Closable, CudaGraph, GraphCache, Shaped, ShapesKey
from trtbatch.backends.tensorrt.protocols import CudaEngine, ExecutionContext, OutputAllocator
from trtbatch.core.batches import refuse_outside
from trtbatch.errors import ExecutionError
from trtbatch.util.log import note

__all__ = ["Contexts"]


class Contexts:
    """Make, bind and launch the execution contexts of a session; call it with the GPU's context current.

    Args:
        engine: the engine of the contexts.
        cuda_graphs: whether launches are captured as CUDA graphs.
    """

    def __init__(self, engine: DeserializedEngine, cuda_graphs: bool = True) -> None:
        self._engine = engine
        self._exit = ExitStack()  # undone in reverse order, even where a step fails
        self.device = engine.device
        self.inputs = engine.sidecar.inputs
        self.outputs = engine.sidecar.outputs
        self.on_host = engine.on_host
        """Names of the bindings that TensorRT reads or writes in the host's memory."""
        self.forced: int | None = None
        """Index of the profile that runs every batch; None where each batch runs on its fastest."""
        self.uses_graphs = cuda_graphs
        if self.on_host:
            self.run_without_graphs("TensorRT reads or writes a tensor in the host's memory")
        self.graphs = GraphCache()
        self.open_outputs: set[str] = set()
        """Names of the outputs whose shape depends on the data, as TensorRT reported before the first run."""
        self.failure: ExecutionError | None = None
        """Error in a callback from TensorRT, kept because TensorRT must not see it."""
        self._contexts: dict[int, ExecutionContext] = {}
        self._active: dict[int, object] = {}
        self._allocators: dict[tuple[int, str], OutputAllocator] = {}
        self.activations: DeviceMemory | None = None
        """Memory that all contexts compute in; None until the first context is made."""
        try:
            self.computing, self.uploading, self.downloading = (self._stream() for _ in range(3))
        except BaseException:
            self.close()
            raise

    def _stream(self) -> Stream:
        made = self.device.stream()
        self._exit.callback(made.free)
        return made

    @property
    def cuda_engine(self) -> CudaEngine:
        """Return TensorRT's engine object."""
        return self._engine.cuda_engine

    def pick(self, batch: int) -> int:
        """Return the index of the profile that runs a batch now.

        Raises:
            ProfileError: no profile holds the batch, or the forced one doesn't.
        """
        sidecar, forced = self._engine.sidecar, self.forced
        allowed = sidecar.engine.profiles if forced is None else (sidecar.engine.profiles[forced],)
        refuse_outside(allowed, [batch], self._engine.path.name)
        found = sidecar.engine.profile_for(batch) if forced is None else forced
        assert found is not None, "refuse_outside raises where no profile fits"
        return found

    def context(self, profile: int) -> ExecutionContext:
        """Return the execution context of a profile.

        Raises:
            ExecutionError: out of memory, or TensorRT makes no context.
        """
        if profile not in self._contexts:
            self._contexts[profile] = self._made(profile)
        return self._contexts[profile]

    def _made(self, profile: int) -> ExecutionContext:
        if self.activations is None:
            self.activations = self.device.memory(self._engine.activation_bytes)
        return self._engine.context(profile, self.computing, self.activations)

    def set_shapes(self, context: ExecutionContext, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Give a context its input shapes.

        Raises:
            ExecutionError: TensorRT refuses a shape.
        """
        self._engine.set_shapes(context, shapes)
        for profile, known in self._contexts.items():
            if known is context:
                self._active[profile] = None  # until its addresses are set too

    def set_addresses(self, context: ExecutionContext, addresses: Mapping[str, int]) -> None:
        """Give a context the addresses of its bindings.

        Raises:
            ExecutionError: TensorRT refuses an address.
        """
        self._engine.set_addresses(context, addresses)

    def is_active(self, profile: int, owner: object) -> bool:
        """Return whether the context of a profile has the shapes and addresses of this owner now."""
        return self._active.get(profile) is owner

    def set_active(self, profile: int, owner: object) -> None:
        """Record whose shapes and addresses the context of a profile has."""
        self._active[profile] = owner

    def deactivate(self, profile: int, owner: object) -> None:
        """Forget the owner of a context's shapes and addresses, where it is `owner`."""
        if self.is_active(profile, owner):
            self._active[profile] = None

    def __len__(self) -> int:
        """Return the number of profiles that have a context."""
        return len(self._contexts)

    def keep(self, context: ExecutionContext, name: str, allocator: OutputAllocator) -> None:
        """Hold an output allocator as long as its context."""
        self._allocators[id(context), name] = allocator

    def enqueue(self, context: ExecutionContext) -> None:
        """Put a context's work on the computing stream.

        Raises:
            ExecutionError: TensorRT refuses.
        """
        self._engine.forget_complaints()
        done = context.execute_async_v3(self.computing.handle)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if not done:
            raise ExecutionError(f"execute_async_v3 failed: {self._engine.complaint()}", "build the engine again")

    def capture(
        self,
        key: ShapesKey,
        addresses: Mapping[str, int],
        number: int,
        what: str,
        enqueue: Callable[[ExecutionContext], None],
    ) -> Closable | None:
        """Return the graph of what `enqueue` does with a context; None where that can't be captured.

        The graph is captured from a context that never has other shapes, because the graph also uses what a context
        keeps on the GPU for its shapes (TensorRT's developer guide, "CUDA Graphs"). The work runs once before its
        capture.

        Args:
            key: profile and shapes.
            addresses: of the bindings.
            number: of the prepared batch, which the addresses belong to.
            what: name of the work.
            enqueue: puts the work on the computing stream.
        """
        try:
            shaped = self.graphs.shaped(key) or self._shaped(key)
            self.set_addresses(shaped.context, addresses)
            enqueue(shaped.context)
            self.computing.synchronize()
            graph = CudaGraph(self.computing, lambda: enqueue(shaped.context))
        except ExecutionError as error:
            if self.graphs.refuse(key):
                shapes = ", ".join(f"{name} {shape}" for name, shape in key[1])
                note(f"{self._engine.path.name} runs {shapes} without a CUDA graph: {error.problem}")
            return None
        shaped.graphs[number, what] = graph
        return graph

    def run_without_graphs(self, why: str) -> None:
        """Launch kernel by kernel from now on, and log the reason once."""
        if self.uses_graphs:
            self.uses_graphs = False
            note(f"{self._engine.path.name} runs without CUDA graphs: {why}")

    def _shaped(self, key: ShapesKey) -> Shaped:
        """Return a new context that keeps these shapes, in place of another where there are too many."""
        profile, shapes = key
        context = self._made(profile)
        self.set_shapes(context, dict(shapes))
        if self.graphs.is_full:
            self.computing.synchronize()  # the graphs of the size that gives way may still run
        return self.graphs.add(key, context)

    def clear(self) -> None:
        """Wait for the GPU, then drop graphs, contexts and what they hold."""
        with ExitStack() as steps:  # runs every step, in reverse order
            for kept in (self._active, self._contexts, self._allocators):
                steps.callback(kept.clear)
            steps.callback(self.graphs.close)
            for stream in (self.uploading, self.computing, self.downloading):
                steps.callback(stream.synchronize)

    def close(self) -> None:
        """Free the activations and the streams; call :meth:`clear` first."""
        with self._exit:
            if self.activations is not None:
                self._exit.callback(self.activations.free)
