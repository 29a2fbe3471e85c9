"""torch → ONNX, and the proof that the batch axis of the result is dynamic.

:mod:`trtbatch.exporter.export_validation` has the proof; the file appears only when it has passed. Tracing uses a batch
of 2, because exporters specialise on 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trtbatch.core import store
from trtbatch.core.sidecar import Artifact, BuildRecord, ModelRecord, Sidecar
from trtbatch.core.store import ENGINES
from trtbatch.core.tensors import BATCH_AXIS, TensorSpec
from trtbatch.errors import ModelError, UsageError
from trtbatch.exporter.export_validation import VALIDATED_BATCHES, Reference, hard_coded_batch, validate_export
from trtbatch.exporter.exporters import Exporter, Trace, choose_exporter, refuse_opset
from trtbatch.exporter.models import load_model
from trtbatch.exporter.torchmodel import TorchModel
from trtbatch.onnx_graph.fusing import SUFFIXES, Layout, refuse_unfusable, write_fused
from trtbatch.util import files, optional

__all__ = ["ExportRequest", "export"]

TRACE_BATCH = 2


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how.

    Args:
        model: torchvision name, ``package.module:factory`` or ``.pt2`` file.
        dynamic: whether the batch axis is open.
        batch: the batch size of a static export; None is 1.
        input_shape: of one sample; None takes the model's own.
        opset: None is 17 for torchscript, which TensorRT 8.6 reads, and 18 for dynamo, the least it writes.
        exporter: None is torchscript while torch carries it, else dynamo.
        weights: ``auto``, ``pretrained``, ``random`` or a file.
        input_dtype: ``uint8`` makes the preprocessing's arithmetic part of the model.
        layout: of uint8 images; None is ``NHWC``, as they are decoded.
        output: None is ``engines/NAME_dynamic.onnx`` or ``engines/NAME.onnx``.
        trust_code: load a ``.pt2`` file as torch does, with the code that it may hold.
    """

    model: str
    dynamic: bool = True
    batch: int | None = None
    input_shape: tuple[int, ...] | None = None
    opset: int | None = None
    exporter: Exporter | None = None
    weights: str = "auto"
    seed: int = 0
    input_names: Sequence[str] = ()
    output_names: Sequence[str] = ()
    input_dtype: Literal["float32", "uint8"] = "float32"
    layout: Layout | None = None
    output: Path | None = None
    trust_code: bool = False

    @property
    def axis(self) -> int | str:
        """Size or name of the batch axis in the exported file."""
        return BATCH_AXIS if self.dynamic else self.batch or 1


def export(request: ExportRequest) -> Artifact:
    """Export a model; the artifact appears only when its proof has passed.

    Raises:
        UsageError: unknown model, impossible options, or an opset that the TensorRT in reach can't read.
        ModelError: the model can't be made or run.
        ExportError: the exporter failed, or rows of the exported file are wrong.
        TrtbatchError, OSError: the folder can't be written; nothing was downloaded.
    """
    _refuse_contradictions(request)
    _refuse_output(request.output)
    exporter = choose_exporter(request.exporter)
    opset = request.opset if request.opset is not None else (17 if exporter == "torchscript" else 18)
    refuse_opset(opset, exporter)
    model = load_model(request.model, request.weights, request.seed, request.input_shape, request.trust_code)
    suffix = "_dynamic" if request.dynamic else ""
    layout = request.layout or "NHWC"
    suffix += SUFFIXES[layout] if request.input_dtype == "uint8" else ""
    target = request.output or ENGINES / f"{_file_stem(model.name)}{suffix}.onnx"
    inputs = _input_specs(model, request)
    with files.scratch(target) as folder:
        made = folder / target.name
        reference = _run_torch(model, request, Trace(model, exporter, opset, inputs, ()), folder)
        outputs = _output_specs(model, reference, request, inputs)
        _refuse_mismatch(model, inputs, outputs)
        trace = Trace(model, exporter, opset, inputs, outputs)
        companions = trace.write(TRACE_BATCH if request.dynamic else request.batch or 1, made)
        validate_export(trace, made, reference)
        sidecar = Sidecar(
            kind="onnx",
            artifact=store.record_file(made),
            companions=tuple(store.record_file(path) for path in companions),
            inputs=inputs,
            outputs=outputs,
            model=ModelRecord(
                model.name,
                model.weights,
                exporter,
                opset,
                request.seed,
                origin=request.model,
                weights_option=_same_weights(model, request.weights),
                input_shape=request.input_shape,
            ),
            preprocessing=model.preprocessing,
            classes=model.classes,
            build=BuildRecord(
                {name: found for name in ("torch", "torchvision", "onnx") if (found := optional.version(name))},
                created=store.now(),
            ),
        )
        if request.input_dtype == "uint8":
            refuse_unfusable(sidecar, model.name)
            room = folder / "fused"
            room.mkdir()
            made, sidecar, companions = write_fused(made, sidecar, layout, room / target.name)
        return store.publish(made, target, sidecar, companions)


def _refuse_output(output: Path | None) -> None:
    """Raise before weights are downloaded where the file can't be written.

    Raises:
        UsageError: its name isn't that of an ONNX file.
        TrtbatchError, OSError: its folder can't be written.
    """
    if output is None:
        files.probe(ENGINES / "model.onnx")
        return
    if output.suffix != ".onnx":
        raise UsageError(f"`output={str(output)!r}` doesn't end in .onnx", f"write {output}.onnx")
    files.refuse_unwritable(output, "`output`")


def _refuse_mismatch(model: TorchModel, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Raise where a spec's preprocessing or class names don't fit its tensors.

    Raises:
        ModelError: with both sizes.
    """
    recipe, image = model.preprocessing, inputs[0].shape
    if recipe is not None and len(inputs) == 1 and image[-2:] != recipe.crop:
        raise ModelError(
            f"{model.name}: its preprocessing crops to {recipe.crop}, its input is {image}", "make them agree"
        )
    scores = outputs[0].shape
    if model.classes is not None and len(scores) == 2 and scores[1] != len(model.classes):
        raise ModelError(
            f"{model.name} has {len(model.classes)} class names and {scores[1]} scores", "give a name for each score"
        )


def _refuse_contradictions(request: ExportRequest) -> None:
    """Raise where arguments exclude each other.

    Raises:
        UsageError: naming them.
    """
    if request.dynamic and request.batch is not None:
        raise UsageError(
            f"`batch={request.batch}` is for a static export; a dynamic one takes any batch",
            f"leave out `batch`, or pass `dynamic=False, batch={request.batch}`",
        )
    if request.layout is not None and request.input_dtype != "uint8":
        raise UsageError("`layout` is that of uint8 images", "pass `input_dtype='uint8'` with it")


def _same_weights(model: TorchModel, asked: str) -> str:
    """Return the ``--weights`` that gets the same numbers again: what ``auto`` came to, for a torchvision model."""
    label = model.weights.partition(" ")[0]
    return label if asked == "auto" and label in ("random", "pretrained") else asked


def _file_stem(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def _input_specs(model: TorchModel, request: ExportRequest) -> tuple[TensorSpec, ...]:
    """Specs from two calls of the example: an axis that follows the batch size is the batch axis."""
    few, many = model.example(2), model.example(3)
    names = _renamed(list(few), request.input_names, "input")
    specs = []
    for name, a, b in zip(names, few.values(), many.values()):
        value_range = None
        if not a.is_floating_point() and a.numel() and a.dtype is not optional.require("torch", "export").bool:
            value_range = (int(a.min()), int(a.max()))
        specs.append(_spec(name, a.numpy(), b.numpy(), request, value_range))
    if request.dynamic and all(spec.batch_axis is None for spec in specs):
        raise UsageError(f"no input of {model.name} follows the batch size", "give example inputs as a function of it")
    return tuple(specs)


def _run_torch(model: TorchModel, request: ExportRequest, trace: Trace, folder: Path) -> Reference:
    """Return torch's own outputs at every batch of the proof.

    Raises:
        ExportError: the model runs at some batch sizes only; the node that fixes them is named.
        ModelError: it runs at none.
    """
    if not request.dynamic:
        batch = request.batch or 1
        return {batch: model.run(batch)}
    try:
        return {batch: model.run(batch) for batch in VALIDATED_BATCHES}
    except ModelError as error:
        raise hard_coded_batch(trace, error, folder) or error from error


def _output_specs(
    model: TorchModel, reference: Reference, request: ExportRequest, inputs: tuple[TensorSpec, ...]
) -> tuple[TensorSpec, ...]:
    few, many = _at_two_and_three(model, reference)
    names = _renamed(list(few), request.output_names, "output")
    taken = {spec.name for spec in inputs} & set(names)
    if taken and request.output_names:
        raise UsageError(
            f"`output_names` gives {sorted(taken)[0]!r}, an input's name", "give outputs names of their own"
        )
    names = [f"{name}_out" if name in taken else name for name in names]
    return tuple(_spec(name, a, b, request, None) for name, a, b in zip(names, few.values(), many.values()))


def _at_two_and_three(model: TorchModel, reference: Reference) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the outputs at batch 2 and 3; of a model that runs at one batch only, with the first axis resized."""
    try:
        return reference.get(2) or model.run(2), reference.get(3) or model.run(3)
    except ModelError:
        (batch, only), *_ = reference.items()
        few, many = (
            {
                name: np.resize(array, (size, *array.shape[1:])) if array.shape[:1] == (batch,) else array
                for name, array in only.items()
            }
            for size in (2, 3)
        )
        return few, many


def _renamed(own: list[str], given: Sequence[str], what: str) -> list[str]:
    if not given:
        return own
    if len(given) != len(own) or len(set(given)) != len(given):
        raise UsageError(
            f"--{what}-names gives {', '.join(given)}; the model has {len(own)} {what}s ({', '.join(own)})",
            f"give {len(own)} different names, in this order",
        )
    return list(given)


def _spec(
    name: str, few: NDArray[Any], many: NDArray[Any], request: ExportRequest, value_range: tuple[int, int] | None
) -> TensorSpec:
    """Return the spec of a tensor seen at batch 2 and 3."""
    moved = [axis for axis, (a, b) in enumerate(zip(few.shape, many.shape)) if (a, b) == (2, 3)]
    others = [axis for axis, (a, b) in enumerate(zip(few.shape, many.shape)) if a != b and axis not in moved[:1]]
    if others:
        raise UsageError(
            f"{name} has shape {few.shape} at batch 2 and {many.shape} at batch 3: one axis must follow the batch",
            "wrap the model so that one axis is the batch and the others are fixed",
        )
    axis = moved[0] if moved else None
    shape = tuple(request.axis if index == axis else length for index, length in enumerate(few.shape))
    return TensorSpec(name, few.dtype.name, shape, axis, value_range)
