"""Inspect a file: an ONNX model's size and shapes, or an engine's sidecar next to what the engine itself reports."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtbatch.backends import open_engine
from trtbatch.core import store
from trtbatch.core.sidecar import Artifact, Sidecar
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import ArtifactError, TrtbatchError, UsageError
from trtbatch.onnx_graph.read import FixedBatch, fixed_batch_nodes, load_onnx, opset_of, read_specs
from trtbatch.onnx_graph.run import fold
from trtbatch.onnx_graph.workload import bytes_moved, macs_of
from trtbatch.util import files, optional
from trtbatch.util.notebook import html_table

__all__ = ["Difference", "EngineReport", "Layer", "OnnxReport", "inspect_engine", "inspect_onnx"]

UNTOLD = "—"
"""Stands for a fact that one side doesn't report, like ONNX Runtime the profiles."""


@dataclass(frozen=True)
class OnnxReport:
    """Contents of an ONNX file.

    Args:
        parameters: number of elements of all weights.
        macs: multiply-accumulates of convolutions and matrix products for one sample; None if a shape is unknown.
        bytes_moved: inputs, weights and outputs of every operator, each once, for one sample; an upper bound, since
            fused operators don't store what lies between them. None if a shape is unknown.
        dynamic: whether a batch axis is open *and* nothing was found that fixes it.
        fixed_by: nodes and constants that probably fix it.
    """

    path: str
    opset: int
    producer: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    macs: int | None
    bytes_moved: int | None
    operators: dict[str, int]
    dynamic: bool
    fixed_by: tuple[FixedBatch, ...]
    sidecar: Sidecar | None

    def __repr__(self) -> str:
        batch = "dynamic" if self.dynamic else "fixed"
        return f"OnnxReport({self.path!r}, batch {batch}, {', '.join(map(str, self.inputs))})"

    def _repr_html_(self) -> str:
        rows = [["input", str(spec)] for spec in self.inputs] + [["output", str(spec)] for spec in self.outputs]
        rows += [["batch", "dynamic" if self.dynamic else "fixed"], ["parameters", f"{self.parameters:,}"]]
        return html_table(self.path, ["", ""], rows)


@dataclass(frozen=True)
class Difference:
    """Fact as the sidecar records it and as the engine reports it."""

    what: str
    sidecar: str
    engine: str

    @property
    def same(self) -> bool:
        """Return whether both agree, or only one side reports the fact."""
        return self.sidecar == self.engine or UNTOLD in (self.sidecar, self.engine)


@dataclass(frozen=True)
class Layer:
    """Layer of an engine as its inspector reports it; precision and tactic only if the build kept them."""

    name: str
    kind: str
    precision: str
    tactic: str


@dataclass(frozen=True)
class EngineReport:
    """Engine's sidecar next to what the engine itself reports.

    Args:
        damaged: how the file differs from the one that the sidecar describes; None if it doesn't.
        unopened: why the engine can't be opened here; None if it was.
        layers: layers in order; empty if the backend reports none.
        precisions: share of the layers that compute in each precision.
    """

    path: str
    sidecar: Sidecar
    facts: tuple[Difference, ...]
    damaged: str | None
    unopened: str | None
    layers: tuple[Layer, ...]
    precisions: dict[str, float]

    def __repr__(self) -> str:
        differing = [fact.what for fact in self.facts if not fact.same]
        state = self.damaged or (f"differs in {', '.join(differing)}" if differing else "as its sidecar says")
        return f"EngineReport({self.path!r}, {state})"

    def _repr_html_(self) -> str:
        rows = [[fact.what, fact.sidecar, fact.engine] for fact in self.facts]
        return html_table(self.path, ["", "sidecar", "engine"], rows)


def inspect_onnx(path: Path) -> OnnxReport:
    """Read an ONNX file without its weights.

    Raises:
        ArtifactError: the file is no ONNX file, or is damaged.
    """
    model = load_onnx(path)
    try:
        inputs, outputs = read_specs(model, path.name)
    except UsageError as error:
        raise ArtifactError(error.problem, error.fix) from error
    is_open = any(spec.batch_axis is not None and spec.fixed_batch is None for spec in inputs)
    with tempfile.TemporaryDirectory(prefix="trtbatch-") as folder:
        fixed_by = tuple(fixed_batch_nodes(load_onnx(fold(path, Path(folder))))) if is_open else ()
        macs, moved = _work(path, model, inputs, Path(folder))
    beside = files.sidecar_path(path)
    return OnnxReport(
        path=str(path),
        opset=opset_of(model),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        inputs=inputs,
        outputs=outputs,
        parameters=sum(math.prod(tensor.dims) for tensor in model.graph.initializer),
        macs=macs,
        bytes_moved=moved,
        operators=dict(Counter(node.op_type for node in model.graph.node).most_common()),
        dynamic=is_open and not fixed_by,
        fixed_by=fixed_by,
        sidecar=store.load(path, "onnx").sidecar if beside.is_file() else None,
    )


def _work(path: Path, model: Any, inputs: Iterable[TensorSpec], folder: Path) -> tuple[int | None, int | None]:
    """Return multiply-accumulates and bytes moved at batch 1, with the shapes inferred from those of the inputs."""
    onnx = optional.require("onnx", "read ONNX files")
    specs = {spec.name: spec.at(1) for spec in inputs}
    if any(not isinstance(size, int) for shape in specs.values() for size in shape):
        return None, None
    for info in model.graph.input:
        for dim, size in zip(info.type.tensor_type.shape.dim, specs.get(info.name, ())):
            dim.dim_value = int(size)
    del model.graph.value_info[:]
    try:
        kinds = {tensor.data_type for tensor in model.graph.initializer}
        external = any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
        # Folding on the CPU would turn float16 into float32.
        if not external and onnx.TensorProto.FLOAT16 not in kinds:
            single = folder / "single.onnx"
            onnx.save(model, str(single))
            model = load_onnx(fold(single, folder))
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # shape inference can fail in many ways: the figures are then unknown
        return None, None
    return macs_of(model), bytes_moved(model)


def inspect_engine(path: Path) -> EngineReport:
    """Read an engine's sidecar and, if the engine can be opened here, query the engine itself.

    Raises:
        ArtifactError: there is no such engine, or no sidecar.
    """
    artifact = store.load(path, "engine")
    facts: tuple[Difference, ...] = ()
    layers: tuple[Layer, ...] = ()
    damaged = unopened = None
    try:
        store.check_file(artifact)
    except ArtifactError as error:
        damaged = unopened = error.problem
    else:
        try:
            facts, layers = _ask(artifact)
        except TrtbatchError as error:
            unopened = error.problem
    counts = Counter(layer.precision for layer in layers if layer.precision)
    total = sum(counts.values())
    shares = {name: count / total for name, count in counts.most_common()}
    return EngineReport(str(path), artifact.sidecar, facts, damaged, unopened, layers, shares)


def _ask(artifact: Artifact) -> tuple[tuple[Difference, ...], tuple[Layer, ...]]:
    sidecar = artifact.sidecar
    with open_engine(artifact) as engine:
        told = engine.describe()
    expected = {
        **{f"input {spec.name}": _shown(spec) for spec in sidecar.inputs},
        **{f"output {spec.name}": _shown(spec) for spec in sidecar.outputs},
        "profiles": ", ".join(map(str, sidecar.engine.profiles)),
    }
    if "activation_bytes" in sidecar.build.details:
        expected["device memory"] = f"{sidecar.build.details['activation_bytes']:,} bytes of activations"
    names = dict.fromkeys((*expected, *told.facts))
    facts = tuple(Difference(name, expected.get(name, UNTOLD), told.facts.get(name, UNTOLD)) for name in names)
    return facts, tuple(Layer(*layer) for layer in told.layers)


def _shown(spec: TensorSpec) -> str:
    """Return a spec as engines report it: open axes have no names, only ``?``."""
    return f"({', '.join(str(size) if isinstance(size, int) else '?' for size in spec.shape)}) {spec.dtype}"
