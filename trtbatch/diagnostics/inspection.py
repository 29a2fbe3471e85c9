"""What is in a file: an ONNX model's size and shape, an engine's sidecar beside what the engine itself says."""

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

__all__ = ["Difference", "EngineReport", "Layer", "OnnxReport", "inspect_engine", "inspect_onnx"]

UNTOLD = "—"
"""Stands for what one side doesn't tell, such as ONNX Runtime the profiles."""


@dataclass(frozen=True)
class OnnxReport:
    """What an ONNX file says of itself.

    Args:
        parameters: elements of all weights.
        macs: multiply-accumulates of convolutions and matrix products for one sample; None where a shape isn't
            known.
        bytes_moved: inputs, weights and outputs of every operator, each once, for one sample: an upper bound,
            since fused operators keep what lies between them.
        dynamic: whether a batch axis is open *and* nothing was found that fixes it.
        fixed_by: the nodes and constants that probably fix it.
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


@dataclass(frozen=True)
class Difference:
    """A fact, as the sidecar has it and as the engine says it; `same` where they agree."""

    what: str
    sidecar: str
    engine: str

    @property
    def same(self) -> bool:
        return self.sidecar == self.engine or UNTOLD in (self.sidecar, self.engine)


@dataclass(frozen=True)
class Layer:
    """One layer of an engine, as its inspector tells it; precision and tactic where the build kept them."""

    name: str
    kind: str
    precision: str
    tactic: str


@dataclass(frozen=True)
class EngineReport:
    """An engine's sidecar beside what the engine itself says.

    Args:
        damaged: what is wrong with the file, where it isn't the one that the sidecar describes.
        unopened: why the engine can't be asked here; None where it was.
        layers: in order; empty where the backend tells none.
        precisions: share of the layers that compute in each precision.
    """

    path: str
    sidecar: Sidecar
    facts: tuple[Difference, ...]
    damaged: str | None
    unopened: str | None
    layers: tuple[Layer, ...]
    precisions: dict[str, float]


def inspect_onnx(path: Path) -> OnnxReport:
    """Read an ONNX file, its weights aside.

    Raises:
        ArtifactError: not an ONNX file, or a damaged one.
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
    """Multiply-accumulates and bytes moved at batch 1, with every shape that follows from the inputs' resolved."""
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
        # Of float16 the CPU's folding would make float32.
        if not external and onnx.TensorProto.FLOAT16 not in kinds:
            single = folder / "single.onnx"
            onnx.save(model, str(single))
            model = load_onnx(fold(single, folder))
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # whatever stops the inference: the figures are then unknown
        return None, None
    return macs_of(model), bytes_moved(model)


def inspect_engine(path: Path) -> EngineReport:
    """Read an engine's sidecar and, where it can be opened here, ask the engine itself.

    Raises:
        ArtifactError: no such engine, or no sidecar.
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
        "profiles": ", ".join(map(str, sidecar.profiles)),
    }
    if "activation_bytes" in sidecar.build:
        expected["device memory"] = f"{sidecar.build['activation_bytes']:,} bytes of activations"
    names = dict.fromkeys((*expected, *told.facts))
    facts = tuple(Difference(name, expected.get(name, UNTOLD), told.facts.get(name, UNTOLD)) for name in names)
    return facts, tuple(Layer(*layer) for layer in told.layers)


def _shown(spec: TensorSpec) -> str:
    """An open axis as engines tell it: only that it is open."""
    return f"({', '.join(str(size) if isinstance(size, int) else '?' for size in spec.shape)}) {spec.dtype}"
