"""Manage the execution contexts of a session: one per profile, with their memory, streams and CUDA graphs.

A context is made when its profile is first needed, because switching the profile of a context costs milliseconds. All
contexts compute on one stream, one after the other, so that they share one block of memory of the largest profile's
size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from trtbatch.backends.tensorrt.buffers import DeviceMemory, Stream
from trtbatch.backends.tensorrt.deserialized import DeserializedEngine
from trtbatch.backends.tensorrt.graphs import CudaGraph, GraphCache
from trtbatch.core.batches import refuse_outside
from trtbatch.errors import ExecutionError
from trtbatch.util.log import note

__all__ = ["Contexts"]

MOST_GRAPH_CONTEXTS = 32
"""Most contexts, of one batch size each, that graphs are captured from; each holds some megabytes on the GPU."""


class Contexts:
    """Make, bind and launch the execution contexts of a session; use and close it in the thread that made it.

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
        self.forced: int | None = None
        """Index of the profile that runs every batch; None where each batch runs on its fastest."""
        self.uses_graphs = cuda_graphs
        self.graphs = GraphCache()
        self.open_outputs: set[str] = set()
        """Names of the outputs whose shape depends on the data, as TensorRT reported before the first run."""
        self.failure: ExecutionError | None = None
        """Error in a callback from TensorRT, kept because TensorRT must not see it."""
        self._contexts: dict[int, Any] = {}
        self._graph_contexts: dict[tuple[int, tuple[tuple[str, tuple[int, ...]], ...]], Any] = {}
        self._active: dict[int, object] = {}
        self._allocators: dict[tuple[int, str], Any] = {}
        self.activations: DeviceMemory | None = None
        """Memory that all contexts compute in; None until the first context is made."""
        engine.device.enter_thread()
        self._exit.callback(engine.device.leave_thread)
        try:
            self.computing, self.uploading, self.downloading = (self._stream() for _ in range(3))
            self._handle = self.computing.handle
        except BaseException:
            self.close()
            raise

    def _stream(self) -> Stream:
        made = self.device.stream()
        self._exit.callback(made.close)
        return made

    @property
    def cuda_engine(self) -> Any:
        """Return TensorRT's engine object."""
        return self._engine.cuda_engine

    def pick(self, batch: int) -> int:
        """Return the index of the profile that runs a batch now.

        Raises:
            ProfileError: no profile holds the batch, or the forced one doesn't.
        """
        sidecar, forced = self._engine.sidecar, self.forced
        allowed = sidecar.profiles if forced is None else (sidecar.profiles[forced],)
        refuse_outside(allowed, [batch], self._engine.path.name)
        found = sidecar.profile_for(batch) if forced is None else forced
        assert found is not None, "refuse_outside raises where no profile fits"
        return found

    def context(self, profile: int) -> Any:
        """Return the execution context of a profile.

        Raises:
            ExecutionError: out of memory, or TensorRT makes no context.
        """
        if profile not in self._contexts:
            self._contexts[profile] = self._made(profile)
        return self._contexts[profile]

    def graph_context(self, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """Return a context of a profile that only ever has these shapes, for the capture of graphs.

        Raises:
            ExecutionError: out of memory, or TensorRT refuses.
        """
        key = (profile, tuple(shapes.items()))
        if key not in self._graph_contexts:
            if len(self._graph_contexts) >= MOST_GRAPH_CONTEXTS:
                self.computing.synchronize()
                self.graphs.close()
                self._graph_contexts.clear()
            context = self._made(profile)
            self.set_shapes(context, shapes)
            self._graph_contexts[key] = context
        return self._graph_contexts[key]

    def _made(self, profile: int) -> Any:
        if self.activations is None:
            self.activations = self.device.memory(self._engine.activation_bytes)
        return self._engine.context(profile, self.computing, self.activations)

    def set_shapes(self, context: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Give a context its input shapes.

        Raises:
            ExecutionError: TensorRT refuses a shape.
        """
        self._engine.set_shapes(context, shapes)
        for profile, known in self._contexts.items():
            if known is context:
                self._active[profile] = None  # until its addresses are set too

    def set_addresses(self, context: Any, addresses: Mapping[str, int]) -> None:
        """Give a context the GPU addresses of its bindings.

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

    def keep(self, context: Any, name: str, allocator: Any) -> None:
        """Hold an output allocator as long as its context."""
        self._allocators[id(context), name] = allocator

    def enqueue(self, context: Any) -> None:
        """Put a context's work on the computing stream.

        Raises:
            ExecutionError: TensorRT refuses.
        """
        done = context.execute_async_v3(self._handle)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if not done:
            raise ExecutionError(f"execute_async_v3 failed: {self._engine.complaint()}", "build the engine again")

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph:
        """Return a graph of the work that `enqueue` puts on the computing stream.

        Raises:
            ExecutionError: the work can't be captured.
        """
        return CudaGraph(self.computing, enqueue)

    def run_without_graphs(self, why: str) -> None:
        """Launch kernel by kernel from now on, and log the reason once."""
        if self.uses_graphs:
            self.uses_graphs = False
            note(f"{self._engine.path.name} runs without CUDA graphs: {why}")

    def clear(self) -> None:
        """Wait for the GPU, then drop graphs, contexts and what they hold."""
        with ExitStack() as steps:  # runs every step, in reverse order
            for kept in (self._active, self._contexts, self._graph_contexts, self._allocators):
                steps.callback(kept.clear)
            steps.callback(self.graphs.close)
            for stream in (self.uploading, self.computing, self.downloading):
                steps.callback(stream.synchronize)

    def close(self) -> None:
        """Free the activations and the streams, and leave the GPU's context; call :meth:`clear` first."""
        with self._exit:
            if self.activations is not None:
                self._exit.callback(self.activations.free)
