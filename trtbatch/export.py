"""torch → ONNX, and the proof that the batch axis of the result is dynamic.

The proof: ONNX Runtime runs the exported file at batches 1, 2, 3 and 7 and every row is compared with
torch's (tolerance: see :func:`trtbatch.verify.tolerance`). Only then does the file appear. Tracing uses a
batch of 2, because exporters specialise on 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from trtbatch import artifacts, optional
from trtbatch.artifacts import BATCH_AXIS, ENGINES, Artifact, ModelRecord, Sidecar, TensorSpec
from trtbatch.backends.onnxruntime import OnnxReference
from trtbatch.errors import ExecutionError, ExportError, MissingPackageError, TrtbatchError, UsageError
from trtbatch.inspection import fixed_batch_nodes, load_onnx, node_in_error, opset_of
from trtbatch.models import TorchModel, flatten_outputs, load_model
from trtbatch.notes import note, warn
from trtbatch.verify import rows_of, tolerance, wrong_rows

__all__ = ["EXTERNAL_ABOVE", "PROOF_BATCHES", "ExportRequest", "export"]

PROOF_BATCHES = (1, 2, 3, 7)
TRACE_BATCH = 2

EXTERNAL_ABOVE = 2**31 - 2**24
"""Bytes of weights above which they go to a file beside the model: protobuf's limit is 2 GiB, less the graph."""

Exporter = Literal["torchscript", "dynamo"]


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how.

    Args:
        model: torchvision name, ``package.module:factory`` or ``.pt2`` file.
        dynamic: whether the batch axis is open.
        batch: the batch size of a static export.
        input_shape: of one sample; None takes the model's own.
        opset: None is 17 for torchscript, which TensorRT 8.6 reads, and 18 for dynamo, the least it writes.
        exporter: None is torchscript while torch carries it, else dynamo.
        weights: ``auto``, ``pretrained``, ``random`` or a file.
        output: None is ``engines/NAME_dynamic.onnx`` or ``engines/NAME.onnx``.
    """

    model: str
    dynamic: bool = False
    batch: int = 1
    input_shape: tuple[int, ...] | None = None
    opset: int | None = None
    exporter: Exporter | None = None
    weights: str = "auto"
    seed: int = 0
    input_names: Sequence[str] = ()
    output_names: Sequence[str] = ()
    output: Path | None = None


def export(request: ExportRequest) -> Artifact:
    """Export a model; the artifact appears only when its proof has passed.

    Raises:
        UsageError: unknown model, impossible options, or an opset that the TensorRT in reach can't read.
        ModelError: the model can't be made or run.
        ExportError: the exporter failed, or rows of the exported file are wrong.
    """
    exporter = _exporter(request.exporter)
    opset = request.opset or (17 if exporter == "torchscript" else 18)
    _refuse_opset(opset)
    model = load_model(request.model, request.weights, request.seed, request.input_shape)
    batches = PROOF_BATCHES if request.dynamic else (request.batch,)
    reference = {batch: model.run(batch) for batch in batches}
    inputs = _input_specs(model, request)
    outputs = _output_specs(model, reference, request)
    suffix = "_dynamic" if request.dynamic else ""
    target = request.output or ENGINES / f"{_file_stem(model.name)}{suffix}.onnx"
    if target.suffix != ".onnx":
        raise UsageError(f"--output {target} doesn't end in .onnx", f"write {target.name}.onnx")
    with artifacts.scratch(target) as folder:
        made = folder / target.name
        trace_batch = TRACE_BATCH if request.dynamic else request.batch
        _run_exporter(model, folder / "traced.onnx", exporter, opset, trace_batch, inputs, outputs)
        companions = _finish(folder / "traced.onnx", made, opset, exporter, inputs, outputs)
        _prove(model, made, batches, reference, inputs, outputs)
        sidecar = Sidecar(
            kind="onnx",
            artifact=artifacts.record_file(made),
            companions=tuple(artifacts.record_file(path) for path in companions),
            inputs=inputs,
            outputs=outputs,
            model=ModelRecord(model.name, model.weights, exporter, opset, request.seed),
            preprocessing=model.preprocessing,
            classes=model.classes,
            tools={name: found for name in ("torch", "torchvision", "onnx") if (found := optional.version(name))},
            created=artifacts.now(),
        )
        return artifacts.publish(made, target, sidecar, companions)


def _file_stem(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def _exporter(asked: Exporter | None) -> Exporter:
    """The exporter asked for, or torchscript while torch carries it.

    Raises:
        UsageError: torchscript was asked for and this torch has only dynamo.
    """
    import inspect

    torch = optional.require("torch", "export a model")
    carried = "dynamic_axes" in inspect.signature(torch.onnx.export).parameters and hasattr(torch.onnx, "utils")
    if asked == "torchscript" and not carried:
        raise UsageError(f"torch {torch.__version__} no longer has the torchscript exporter", "pass --exporter dynamo")
    return asked or ("torchscript" if carried else "dynamo")


def _refuse_opset(opset: int) -> None:
    from trtbatch.backends.tensorrt import compat

    if opset < 13:
        raise UsageError(f"opset {opset} is older than this program reads", "pass --opset 17")
    installed = _tensorrt_version()
    newest = compat.max_opset(installed) if installed else None
    if newest is not None and opset > newest:
        raise UsageError(
            f"opset {opset} is too new for TensorRT {installed}, which reads up to {newest}",
            f"pass --opset {newest} --exporter torchscript, or install a newer TensorRT",
        )


def _tensorrt_version() -> str | None:
    """Version of the TensorRT in reach: by its metadata, else (a bare folder on the path) by importing it."""
    version = optional.version("tensorrt")
    if version is None and optional.is_installed("tensorrt"):
        try:
            version = str(optional.require("tensorrt", "know its version").__version__)
        except MissingPackageError:
            return None
    return version


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


def _output_specs(
    model: TorchModel, reference: dict[int, dict[str, NDArray[Any]]], request: ExportRequest
) -> tuple[TensorSpec, ...]:
    few = reference[2] if request.dynamic else model.run(2) if request.batch != 2 else reference[2]
    many = reference[3] if request.dynamic else model.run(3)
    names = _renamed(list(few), request.output_names, "output")
    return tuple(_spec(name, a, b, request, None) for name, a, b in zip(names, few.values(), many.values()))


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
    """The spec of a tensor seen at batch 2 and 3."""
    moved = [axis for axis, (a, b) in enumerate(zip(few.shape, many.shape)) if (a, b) == (2, 3)]
    others = [axis for axis, (a, b) in enumerate(zip(few.shape, many.shape)) if a != b and axis not in moved[:1]]
    if others:
        raise UsageError(
            f"{name} has shape {few.shape} at batch 2 and {many.shape} at batch 3: one axis must follow the batch",
            "wrap the model so that one axis is the batch and the others are fixed",
        )
    axis = moved[0] if moved else None
    size: int | str = BATCH_AXIS if request.dynamic else request.batch
    shape = tuple(size if index == axis else length for index, length in enumerate(few.shape))
    return TensorSpec(name, few.dtype.name, shape, axis, value_range)


def _run_exporter(
    model: TorchModel,
    path: Path,
    exporter: Exporter,
    opset: int,
    batch: int,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> None:
    torch = optional.require("torch", "export a model")
    example = model.example(batch)
    keywords = list(example) if model.by_keyword else None
    module = model.module if keywords is None else _positional(model.module, keywords)
    options: dict[str, Any] = {"input_names": [spec.name for spec in inputs], "verbose": False}
    options["output_names"] = [spec.name for spec in outputs]
    dynamic = [{spec.batch_axis: BATCH_AXIS} if BATCH_AXIS in spec.shape else {} for spec in (*inputs, *outputs)]
    if exporter == "torchscript":
        axes = {spec.name: axis for spec, axis in zip((*inputs, *outputs), dynamic) if axis}
        options |= {"dynamic_axes": axes, "do_constant_folding": True, "dynamo": False}
    else:
        optional.require("onnxscript", "export with dynamo")
        dim = torch.export.Dim(BATCH_AXIS, min=1)
        shapes = tuple(dict.fromkeys(each, dim) for each in dynamic[: len(inputs)])
        nested = keywords is not None or _takes_varargs(module)
        options |= {"dynamo": True, "dynamic_shapes": ((shapes,) if nested else shapes) if any(shapes) else None}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.no_grad():
                torch.onnx.export(module, tuple(example.values()), str(path), opset_version=opset, **options)
        except Exception as error:
            raise _exporter_failed(error, exporter) from error
    _show(caught)


def _takes_varargs(module: Any) -> bool:
    import inspect

    parameters = inspect.signature(module.forward).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)


def _positional(module: Any, names: list[str]) -> Any:
    """A module that takes the named inputs by position and returns a tuple, for exporters that want both."""
    torch = optional.require("torch", "export a model")

    class Positional(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *tensors: Any) -> Any:
            return tuple(flatten_outputs(self.model(**dict(zip(names, tensors)))).values())

    return Positional().eval()


def _exporter_failed(error: Exception, exporter: Exporter) -> TrtbatchError:
    """The exporter's own words, those of its cause first: torch wraps the reason in advice."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    telling = [line for line in lines if "pecializ" in line or "constraint" in line.lower() or "guard" in line.lower()]
    reason = " ".join((telling or lines)[:2])[:500] or type(error).__name__
    fix = "make the model take any batch (no constant in view, reshape, expand)" if telling else "see --debug"
    return ExportError(f"the {exporter} exporter failed: {reason}", fix)


def _show(caught: list[warnings.WarningMessage]) -> None:
    """Tracer warnings and the like, once each; deprecations are about torch, not about the model."""
    hidden = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
    messages = [str(item.message).strip() for item in caught if not issubclass(item.category, hidden)]
    for message in dict.fromkeys(messages):
        warn(f"torch: {' '.join(message.split())[:400]}")


def _finish(
    traced: Path,
    made: Path,
    opset: int,
    exporter: Exporter,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> tuple[Path, ...]:
    """Name the axes, and write one file, or two where the weights are too large for one."""
    onnx = optional.require("onnx", "write ONNX files")
    model = load_onnx(traced, weights=True)
    written = opset_of(model)
    if written != opset:
        raise ExportError(
            f"the {exporter} exporter wrote opset {written}, not {opset}",
            f"pass --opset {written}, or --exporter torchscript",
        )
    specs = {spec.name: spec for spec in (*inputs, *outputs)}
    for info in (*model.graph.input, *model.graph.output):
        spec = specs.get(info.name)
        if spec is None:
            raise ExportError(
                f"the {exporter} exporter added {info.name!r}", "see --debug, or use the other --exporter"
            )
        if BATCH_AXIS in spec.shape:
            info.type.tensor_type.shape.dim[spec.batch_axis].dim_param = BATCH_AXIS
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size <= EXTERNAL_ABOVE:
        onnx.save(model, str(made))
        return ()
    beside = made.with_name(made.name + ".data")
    onnx.save(model, str(made), save_as_external_data=True, all_tensors_to_one_file=True, location=beside.name)
    note(f"the weights are {size / 1e9:.1f} GB, over the 2 GB of one ONNX file: they are in {beside.name}")
    return (beside,)


def _prove(
    model: TorchModel,
    made: Path,
    batches: Sequence[int],
    reference: dict[int, dict[str, NDArray[Any]]],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> None:
    """Run the file at every batch and compare each row with torch's.

    Raises:
        ExportError: naming the node and the constant that fix the batch, where they can be found.
    """
    run = OnnxReference(made)
    for batch in batches:
        example = [tensor.numpy() for tensor in model.example(batch).values()]
        expected = list(reference[batch].values())
        try:
            got = run({spec.name: array for spec, array in zip(inputs, example)})
        except ExecutionError as error:
            raise _disproved(made, f"at batch {batch} it fails: {error.problem}", error.problem) from error
        for spec, wanted in zip(outputs, expected):
            found = got[spec.name]
            if found.shape != wanted.shape:
                raise _disproved(made, f"at batch {batch}, {spec.name} has shape {found.shape}, not {wanted.shape}")
            limit = tolerance(wanted.dtype.name)
            rows, right = (found.reshape(1, -1), wanted.reshape(1, -1))
            if spec.batch_axis is not None:
                rows, right = rows_of(found, spec), rows_of(wanted, spec)
            bad, errors = wrong_rows(rows, right, limit)
            if bad.size:
                where = (
                    f"row {bad[0] + 1} of {spec.name} differs from torch by {errors[bad[0]]:.1e} (limit {limit:.0e})"
                )
                raise _disproved(made, f"at batch {batch}, {where}")


def _disproved(made: Path, what: str, message: str = "") -> ExportError:
    model = load_onnx(made)
    named = node_in_error(model, message)
    culprits = ([named] if named else []) + fixed_batch_nodes(model)
    fix = "make the model take its batch size from its input: x.shape[0] or -1 instead of a number"
    if not culprits:
        return ExportError(f"the exported model is not right at every batch: {what}", fix)
    return ExportError(f"the batch is fixed in the exported model: {culprits[0]}; {what}", fix)
