"""torch's two exporters: which one, what each of them wants, what it says, and the tidied file it leaves."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trtbatch.core.tensors import BATCH_AXIS, TensorSpec
from trtbatch.errors import ExportError, MissingPackageError, UsageError
from trtbatch.exporter.torchmodel import TorchModel, flatten_outputs
from trtbatch.onnx_graph.read import load_onnx, opset_of
from trtbatch.util import optional
from trtbatch.util.foreign import foreign_output
from trtbatch.util.log import note, warn

__all__ = ["EXTERNAL_ABOVE", "Exporter", "Trace", "choose_exporter", "refuse_opset"]

EXTERNAL_ABOVE = 2**31 - 2**24
"""Bytes of weights above which they go to a file next to the model: protobuf's limit is 2 GiB, less the graph."""

Exporter = Literal["torchscript", "dynamo"]


def choose_exporter(asked: Exporter | None) -> Exporter:
    """Return the exporter asked for, or torchscript while torch carries it.

    Raises:
        UsageError: torchscript was asked for and this torch has only dynamo.
    """
    import inspect

    torch = optional.require("torch", "export a model")
    carried = "dynamic_axes" in inspect.signature(torch.onnx.export).parameters and hasattr(torch.onnx, "utils")
    if asked == "torchscript" and not carried:
        raise UsageError(
            f"torch {torch.__version__} no longer has the torchscript exporter", "pass `exporter='dynamo'`"
        )
    return asked or ("torchscript" if carried else "dynamo")


def refuse_opset(opset: int, exporter: Exporter) -> None:
    """Raise where this opset is too old, or too new for the TensorRT in reach.

    Raises:
        UsageError: naming the opset and the TensorRT version.
    """
    from trtbatch.backends.tensorrt import compat

    if opset < 13:
        raise UsageError(f"opset {opset} is older than this program reads", "pass `opset=17`")
    if exporter == "dynamo" and opset < 18:
        raise UsageError(f"the dynamo exporter writes opset 18 and later, not {opset}", "pass `exporter='torchscript'`")
    newest = int(optional.require("onnx", "export a model").defs.onnx_opset_version())
    if opset > newest:
        raise UsageError(f"opset {opset} doesn't exist; the newest that onnx here knows is {newest}", "pass `opset=17`")
    installed = tensorrt_version()
    read = compat.max_opset(installed) if installed else None
    if read is not None and opset > read:
        raise UsageError(
            f"opset {opset} is too new for TensorRT {installed}, which reads up to {read}",
            f"pass `opset={read}, exporter='torchscript'`, or install a newer TensorRT",
        )


def tensorrt_version() -> str | None:
    """Version of the TensorRT in reach: by its metadata, else (a bare folder on the path) by importing it."""
    version = optional.version("tensorrt")
    if version is None and optional.is_installed("tensorrt"):
        try:
            version = str(optional.require("tensorrt", "know its version").__version__)
        except MissingPackageError:
            return None
    return version


@dataclass(frozen=True)
class Trace:
    """One way of exporting a model: exporter, opset, and the tensors as they are to be named."""

    model: TorchModel
    exporter: Exporter
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def write(self, batch: int, made: Path) -> tuple[Path, ...]:
        """Export at this batch size to `made`; returns the files next to it.

        Raises:
            ExportError: the exporter failed, or wrote something else than it was asked for.
        """
        traced = made.with_name("traced.onnx")
        _run_exporter(self, batch, traced)
        return _finish(self, traced, made)


def _run_exporter(trace: Trace, batch: int, path: Path) -> None:
    torch = optional.require("torch", "export a model")
    model, inputs, outputs = trace.model, trace.inputs, trace.outputs
    example = model.example(batch)
    keywords = list(example) if model.by_keyword else None
    module = model.module if keywords is None else _positional(model.module, keywords)
    options: dict[str, Any] = {"input_names": [spec.name for spec in inputs], "verbose": False}
    options["output_names"] = [spec.name for spec in outputs]
    specs = (*inputs, *outputs)
    dynamic = [{spec.batch_axis: BATCH_AXIS} if BATCH_AXIS in spec.shape else {} for spec in specs]
    if trace.exporter == "torchscript":
        axes = {spec.name: axis for spec, axis in zip(specs, dynamic) if axis}
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
            with (
                torch.no_grad(),
                _no_fast_attention(torch),
                foreign_output(1),  # both exporters print pages when they fail, torchscript's from C++
                foreign_output(2),
            ):
                torch.onnx.export(module, tuple(example.values()), str(path), opset_version=trace.opset, **options)
        except Exception as error:
            cause = error.__cause__ or error
            if isinstance(cause, OSError):  # such as a full disk: the caller, who knows the file's name, reports it
                raise cause from None
            raise _exporter_failed(cause, trace.exporter) from error
    _show(caught)


@contextlib.contextmanager
def _no_fast_attention(torch: Any) -> Iterator[None]:
    """Attention as its ordinary operators: its fused inference path is one that no exporter knows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _takes_varargs(module: Any) -> bool:
    import inspect

    parameters = inspect.signature(module.forward).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)


def _positional(module: Any, names: list[str]) -> Any:
    """Return a module that takes the named inputs by position and returns a tuple, for exporters that want both."""
    torch = optional.require("torch", "export a model")

    class Positional(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *tensors: Any) -> Any:
            return tuple(flatten_outputs(self.model(**dict(zip(names, tensors)))).values())

    return Positional().eval()


def _exporter_failed(cause: BaseException, exporter: Exporter) -> ExportError:
    """Return the exporter's own words, those of its cause: torch wraps the reason in advice."""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    telling = [line for line in lines if "pecializ" in line or "constraint" in line.lower() or "guard" in line.lower()]
    reason = " ".join((telling or lines)[:2])[:500] or type(cause).__name__
    fix = "make the model take any batch (no constant in view, reshape, expand)" if telling else "see the traceback"
    return ExportError(f"the {exporter} exporter failed: {reason}", fix)


def _show(caught: list[warnings.WarningMessage]) -> None:
    """Tracer warnings and the like, once each; deprecations are about torch, not about the model."""
    hidden = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
    messages = [str(item.message).strip() for item in caught if not issubclass(item.category, hidden)]
    for message in dict.fromkeys(messages):
        warn(f"torch: {' '.join(message.split())[:400]}")


def _finish(trace: Trace, traced: Path, made: Path) -> tuple[Path, ...]:
    """Name the axes, and write one file, or two where the weights are too large for one.

    Constants are folded by the exporters themselves. onnxscript's optimizer on top of torchscript's is not used:
    resnet18 came out of it slower on TensorRT 8.6.0.
    """
    onnx = optional.require("onnx", "write ONNX files")
    model = load_onnx(traced, weights=True)
    written = opset_of(model)
    if written != trace.opset:
        raise ExportError(
            f"the {trace.exporter} exporter wrote opset {written}, not {trace.opset}",
            f"pass `opset={written}`, or `exporter='torchscript'`",
        )
    kept = {info.name for info in model.graph.input}
    unused = [spec.name for spec in trace.inputs if spec.name not in kept]
    if unused:
        raise ExportError(f"the model makes no use of its input {unused[0]!r}", "leave it out of the example inputs")
    specs = {spec.name: spec for spec in (*trace.inputs, *trace.outputs)}
    for info in (*model.graph.input, *model.graph.output):
        spec = specs.get(info.name)
        if spec is None:
            raise ExportError(
                f"the {trace.exporter} exporter added {info.name!r}", "see the traceback, or use the other `exporter`"
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
