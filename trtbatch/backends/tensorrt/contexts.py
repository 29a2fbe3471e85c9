"""The execution contexts of a session: one per profile, their memory, streams and CUDA graphs.

A context is made when its profile is first needed: switching the profile of one costs milliseconds. All of them
compute on one stream, one after the other, so that one block of memory, of the largest profile's size, serves
them all.
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
"""Contexts of one batch size each that graphs are captured from; each holds some megabytes on the GPU."""


class Contexts:
    """Make, bind and launch the execution contexts of a session; used and closed in the thread that made them.

    Args:
        cuda_graphs: whether launches are captured as CUDA graphs.
    """

    def __init__(self, engine: DeserializedEngine, cuda_graphs: bool = True) -> None:
        self._engine = engine
        self._exit = ExitStack()  # undone from the end, whatever fails on the way
        self.device = engine.device
        self.inputs = engine.sidecar.inputs
        self.outputs = engine.sidecar.outputs
        self.forced: int | None = None
        """The profile that runs every batch; None where the fastest that holds it does."""
        self.uses_graphs = cuda_graphs
        self.graphs = GraphCache()
        self.open_outputs: set[str] = set()
        """Names of the outputs whose shape depends on the data, as TensorRT told them before the first run."""
        self.failure: ExecutionError | None = None
        """What went wrong in a call from TensorRT, which must not see it."""
        self._contexts: dict[int, Any] = {}
        self._graph_contexts: dict[tuple[int, tuple[tuple[str, tuple[int, ...]], ...]], Any] = {}
        self._active: dict[int, object] = {}
        self._allocators: dict[tuple[int, str], Any] = {}
        self.activations: DeviceMemory | None = None
        """What all contexts compute in; None until the first is made."""
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
        """The engine as TensorRT has it."""
        return self._engine.cuda_engine

    def pick(self, batch: int) -> int:
        """The profile that runs a batch now.

        Raises:
            ProfileError: none does.
        """
        sidecar, forced = self._engine.sidecar, self.forced
        allowed = sidecar.profiles if forced is None else (sidecar.profiles[forced],)
        refuse_outside(allowed, [batch], self._engine.path.name)
        found = sidecar.profile_for(batch) if forced is None else forced
        assert found is not None, "refuse_outside raises where no profile fits"
        return found

    def context(self, profile: int) -> Any:
        """The execution context of a profile.

        Raises:
            ExecutionError: out of memory, or TensorRT makes none.
        """
        if profile not in self._contexts:
            self._contexts[profile] = self._made(profile)
        return self._contexts[profile]

    def graph_context(self, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """A context of a profile for these shapes alone, for graphs to be captured from.

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
            ExecutionError: TensorRT refuses one.
        """
        self._engine.set_shapes(context, shapes)
        for profile, known in self._contexts.items():
            if known is context:
                self._active[profile] = None  # until its addresses are set too

    def set_addresses(self, context: Any, addresses: Mapping[str, int]) -> None:
        """Tell a context where its bindings are on the GPU.

        Raises:
            ExecutionError: TensorRT refuses one.
        """
        self._engine.set_addresses(context, addresses)

    def is_active(self, profile: int, owner: object) -> bool:
        """Whether the context of a profile has the shapes and addresses of this owner now."""
        return self._active.get(profile) is owner

    def set_active(self, profile: int, owner: object) -> None:
        """Record whose shapes and addresses the context of a profile has."""
        self._active[profile] = owner

    def deactivate(self, profile: int, owner: object) -> None:
        """Forget the owner of a context's shapes and addresses, where it is this one."""
        if self.is_active(profile, owner):
            self._active[profile] = None

    def __len__(self) -> int:
        """Return how many profiles have a context."""
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
        """A graph of what is put on the computing stream.

        Raises:
            ExecutionError: it can't be captured.
        """
        return CudaGraph(self.computing, enqueue)

    def run_without_graphs(self, why: str) -> None:
        """From now on launch kernel by kernel; said once."""
        if self.uses_graphs:
            self.uses_graphs = False
            note(f"{self._engine.path.name} runs without CUDA graphs: {why}")

    def clear(self) -> None:
        """Wait for the GPU, then drop graphs, contexts and what they hold."""
        with ExitStack() as steps:  # runs all of them, from the last one up
            for kept in (self._active, self._contexts, self._graph_contexts, self._allocators):
                steps.callback(kept.clear)
            steps.callback(self.graphs.close)
            for stream in (self.uploading, self.computing, self.downloading):
                steps.callback(stream.synchronize)

    def close(self) -> None:
        """Free the activations and the streams, and leave the GPU's context, after :meth:`clear`."""
        with self._exit:
            if self.activations is not None:
                self._exit.callback(self.activations.free)
