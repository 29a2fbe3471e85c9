"""Build and run engines with ONNX Runtime on the CPU, the backend for machines without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import (
    BuilderOptions,
    BuildPlan,
    Built,
    Description,
    Mode,
    Progress,
    batch_of,
    conform,
    option_flag,
)
from trtbatch.core.batches import refuse_no_profile, refuse_outside
from trtbatch.core.sidecar import Artifact, Sidecar
from trtbatch.core.tensors import TensorSpec, numpy_dtype
from trtbatch.errors import ArtifactError, BuildError, ExecutionError, PrecisionError, UsageError
from trtbatch.onnx_graph.run import open_session, reason_of
from trtbatch.util import environment, optional

__all__ = [
    "OnnxRuntimeBuilder",
    "OnnxRuntimeEngine",
    "OnnxRuntimeSession",
    "OnnxRuntimeSlot",
]

Array = NDArray[Any]


class OnnxRuntimeBuilder:
    """Builder that writes the graph-optimised model as the artifact.

    The optimisation level is *extended*, the highest whose result runs on any CPU. Loading the artifact adds the layout
    optimisations of the CPU at hand.
    """

    name: Literal["onnxruntime"] = "onnxruntime"
    suffix = ".ort.onnx"
    typed_alone = False

    def refuse(self, precision: str | None, options: BuilderOptions, device: int) -> None:
        """Raise for unsupported requests; see :class:`trtbatch.backends.base.Builder`."""
        if precision not in (None, "fp32", "fp16", "int8"):
            raise PrecisionError(
                f"ONNX Runtime on the CPU computes nothing in {precision}",
                "pass `precision='fp32'`, fp16 or int8, or build on a machine with an NVIDIA GPU",
            )
        for name in options.asked:
            raise UsageError(
                f"{option_flag(name)} is an option of TensorRT, and this builds for ONNX Runtime", "leave it out"
            )

    def build(self, plan: BuildPlan, folder: Path, progress: Progress) -> Built:
        """Write the engine; see :class:`trtbatch.backends.base.Builder`."""
        ort = optional.require("onnxruntime", "build on the CPU")
        file = folder / plan.name
        weights = folder / f"{plan.name}.data"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(file)
        if plan.external_weights:
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights.name)
        progress("optimising the graph", None)
        try:
            open_session(plan.onnx, options)
        except ArtifactError as error:
            raise BuildError(error.problem, "check the ONNX file: export it again") from error
        if not file.is_file():
            raise BuildError(f"ONNX Runtime wrote no optimised model of {plan.onnx}", "check the disk's free space")
        companions = (weights,) if weights.is_file() else ()
        tools = {"onnxruntime": ort.__version__}
        return Built(file, companions, plan.inputs, plan.outputs, "fp32", tools, {"cpu": environment.cpu_name()})


class OnnxRuntimeEngine:
    """A loaded artifact; it accepts only batches of its sidecar's profiles, as TensorRT would."""

    def __init__(self, artifact: Artifact) -> None:
        self.sidecar = artifact.sidecar
        self._path = artifact.path
        self._session: Any = open_session(artifact.path, self._options())
        self._refuse_strange_tensors()

    def _options(self) -> Any:
        """Return options with every optimisation, except those of the layout for float16.

        The layout optimisations end the process on a vision transformer in float16 (ONNX Runtime 1.23.2; not 1.24.4),
        and gain nothing where the CPU computes in float32 anyway.
        """
        ort = optional.require("onnxruntime", "run ONNX files")
        options = ort.SessionOptions()
        if self.sidecar.precision.name == "fp16":
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        return options

    def session(self, cuda_graphs: bool = True) -> OnnxRuntimeSession:
        """Return a session; see :class:`trtbatch.backends.base.Engine`."""
        return OnnxRuntimeSession(self._session, self.sidecar, self._path.name)

    def _refuse_strange_tensors(self) -> None:
        own = [node.name for node in (*self._session.get_inputs(), *self._session.get_outputs())]
        known = [spec.name for spec in (*self.sidecar.inputs, *self.sidecar.outputs)]
        if sorted(own) != sorted(known):
            here, there = (", ".join(sorted(each)) for each in (own, known))
            raise ArtifactError(f"{self._path} has the tensors {here}, its sidecar {there}", "run: `trtbatch.build()`")

    def entered(self) -> AbstractContextManager[object]:
        """Return a context that does nothing: ONNX Runtime runs in any thread."""
        return nullcontext()

    def describe(self) -> Description:
        """Return tensors and layers; see :class:`trtbatch.backends.base.Engine`."""
        sides = (("input", self._session.get_inputs()), ("output", self._session.get_outputs()))
        facts = {f"{side} {node.name}": _tensor(node) for side, nodes in sides for node in nodes}
        onnx = optional.require("onnx", "read ONNX files")
        graph = onnx.load(str(self._path), load_external_data=False).graph
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        layers = (
            (node.name or node.output[0], node.op_type, _computes_in(onnx, node, types), "") for node in graph.node
        )
        return Description(facts, tuple(layers))

    def close(self) -> None:
        """Free the engine; see :class:`trtbatch.backends.base.Engine`."""
        self._session = None

    def __enter__(self) -> OnnxRuntimeEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _computes_in(onnx: Any, node: Any, types: Mapping[str, int]) -> str:
    """Return the precision of a convolution or matrix product: int8 by its operator, else by its factors' type.

    A product whose factors come from a Cast or a DequantizeLinear computes in float32, because ONNX Runtime has no
    kernel of the file's own type there.
    """
    if node.op_type.startswith(("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul")):
        return "int8"
    if not any(word in node.op_type for word in ("Conv", "Gemm", "MatMul")):
        return ""
    return "fp16" if any(types.get(name) == onnx.TensorProto.FLOAT16 for name in node.input) else "fp32"


_TYPES = {"float": "float32", "double": "float64"}
"""ONNX Runtime's names of types where they differ from numpy's."""


def _tensor(node: Any) -> str:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    sizes = ", ".join(str(size) if isinstance(size, int) else "?" for size in node.shape)
    return f"({sizes}) {_TYPES.get(kind, kind)}"


class OnnxRuntimeSession:
    """Inputs and outputs bound by pointer (I/O binding); outputs of known shape are allocated once per shape."""

    in_flight = 1
    flush = None

    def __init__(self, session: Any, sidecar: Sidecar, name: str) -> None:
        self._session = session
        self._sidecar = sidecar
        self._name = name
        self._inputs = sidecar.inputs
        self._outputs = sidecar.outputs
        self._profile: int | None = None
        self._binding: Any = None
        self._held: dict[str, Array] = {}
        self._buffers: dict[str, Array] = {}

    def use_profile(self, profile: int | None) -> None:
        """Set the profile; see :class:`trtbatch.backends.base.Session`."""
        refuse_no_profile(self._sidecar.engine.profiles, profile, self._name)
        self._profile = profile

    def slot(self, spins: bool = True) -> OnnxRuntimeSlot:
        """Return a slot; see :class:`trtbatch.backends.base.Session`."""
        return OnnxRuntimeSlot(self._session, self._inputs, self._outputs, self._refuse)

    def _refuse(self, batch: int) -> None:
        profiles = self._sidecar.engine.profiles
        refuse_outside(profiles if self._profile is None else [profiles[self._profile]], [batch], self._name)

    def bind(self, inputs: Mapping[str, Array]) -> None:
        """Bind the inputs; see :class:`trtbatch.backends.base.Session`."""
        batch = batch_of(inputs, self._inputs)
        self._refuse(batch)
        binding = self._session.io_binding()
        self._held = {spec.name: conform(inputs[spec.name], spec) for spec in self._inputs}
        for name, array in self._held.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for spec in self._outputs:
            self._bind_output(binding, spec, batch)
        self._binding = binding

    def _bind_output(self, binding: Any, spec: TensorSpec, batch: int) -> None:
        shape = spec.at(batch)
        if not all(isinstance(size, int) for size in shape):
            self._buffers.pop(spec.name, None)
            binding.bind_output(spec.name, "cpu")  # ONNX Runtime allocates a shape that is known only after the run
            return
        buffer = self._buffers.get(spec.name)
        if buffer is None or buffer.shape != shape:
            buffer = np.empty([int(size) for size in shape], numpy_dtype(spec.dtype))
            self._buffers[spec.name] = buffer
        binding.bind_output(spec.name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)

    def run(self) -> None:
        """Run what is bound; see :class:`trtbatch.backends.base.Session`."""
        _run_bound(self._session, self._binding)

    def fetch(self) -> dict[str, Array]:
        """Return copies of the outputs; see :class:`trtbatch.backends.base.Session`."""
        results: Any = self._binding.copy_outputs_to_cpu() if len(self._buffers) < len(self._outputs) else None
        return {
            spec.name: self._buffers[spec.name].copy() if spec.name in self._buffers else np.asarray(results[index])
            for index, spec in enumerate(self._outputs)
        }

    def bound(self) -> dict[str, Array]:
        """Return the bound inputs; see :class:`trtbatch.backends.base.Session`."""
        return dict(self._held)

    def poison(self, pattern: int) -> None:
        """Fill the output buffers; see :class:`trtbatch.backends.base.Session`."""
        for buffer in self._buffers.values():
            buffer.reshape(-1).view(np.uint8).fill(pattern)

    def modes(self) -> dict[str, Mode]:
        """Return the one mode, ``run``; see :class:`trtbatch.backends.base.Session`."""
        return {"run": Mode("run", "InferenceSession.run with I/O binding, wall time per call", self.run)}

    def close(self) -> None:
        """Free the session's memory; see :class:`trtbatch.backends.base.Session`."""
        self._binding = None
        self._held, self._buffers = {}, {}

    def __enter__(self) -> OnnxRuntimeSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _run_bound(session: Any, binding: Any) -> None:
    """Run a session on what is bound.

    Raises:
        ExecutionError: ONNX Runtime failed.
    """
    try:
        session.run_with_iobinding(binding)
    except Exception as error:
        raise ExecutionError(f"ONNX Runtime failed: {reason_of(error)}", "check the model: export it again") from error


@dataclass
class _Bound:
    """One batch size of a slot: its binding, and the memory that the binding points to."""

    binding: Any
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    """Outputs whose shape is known before the run."""


class OnnxRuntimeSlot:
    """Memory for a batch, and one binding to it per batch size seen; ``submit`` runs to the end."""

    def __init__(
        self,
        session: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        refuse: Callable[[int], None],
    ) -> None:
        self._session = session
        self._inputs = inputs
        self._outputs = outputs
        self._refuse = refuse
        self._memory: dict[str, Array] = {}
        self._seen: dict[int, _Bound] = {}
        self._now: _Bound | None = None

    def prepare(self, batch: int) -> dict[str, Array]:
        """Return the inputs' memory; see :class:`trtbatch.backends.base.Slot`."""
        found = self._seen.get(batch)
        if found is None:
            self._refuse(batch)
            found = self._seen[batch] = self._bound(batch)
        self._now = found
        return found.inputs

    def _bound(self, batch: int) -> _Bound:
        binding = self._session.io_binding()
        known = [spec for spec in self._outputs if all(isinstance(size, int) for size in spec.at(batch))]
        inputs, outputs = ({spec.name: self._room(spec, batch) for spec in specs} for specs in (self._inputs, known))
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for spec in self._outputs:  # in the model's order, because copy_outputs_to_cpu returns results by position
            if spec.name in outputs:
                array = outputs[spec.name]
                binding.bind_output(spec.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            else:
                binding.bind_output(spec.name, "cpu")
        return _Bound(binding, inputs, outputs)

    def _room(self, spec: TensorSpec, batch: int) -> Array:
        """Return an array in the slot's memory; growing that memory discards the bindings of all batch sizes."""
        shape, dtype = [int(size) for size in spec.at(batch)], numpy_dtype(spec.dtype)
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        memory = self._memory.get(spec.name)
        if memory is None or memory.nbytes < count:
            memory = self._memory[spec.name] = np.empty(count, np.uint8)
            self._seen.clear()
        return memory[:count].view(dtype).reshape(shape)

    def warm(self, batch: int) -> None:
        """Do nothing: the extra cost of a first batch is in its run; see :class:`trtbatch.backends.base.Slot`."""

    def submit(self) -> None:
        """Run the batch to its end; see :class:`trtbatch.backends.base.Slot`."""
        assert self._now is not None, "prepare a batch first"
        _run_bound(self._session, self._now.binding)

    def wait(self) -> dict[str, Array]:
        """Return the outputs; see :class:`trtbatch.backends.base.Slot`."""
        assert self._now is not None, "prepare a batch first"
        if len(self._now.outputs) == len(self._outputs):
            return self._now.outputs
        results = self._now.binding.copy_outputs_to_cpu()
        return {spec.name: np.asarray(result) for spec, result in zip(self._outputs, results)}

    def run(self) -> dict[str, Array]:
        """Run the batch, and return the outputs; see :class:`trtbatch.backends.base.Slot`."""
        self.submit()
        return self.wait()

    def parts(self) -> dict[str, float]:
        """Return nothing: no copies are needed on the CPU; see :class:`trtbatch.backends.base.Slot`."""
        return {}
