"""Define the command ``trtbatch inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from trtbatch.cli.console import Debug, err, out, plain, size
from trtbatch.cli.wording import as_typed

__all__ = ["command"]


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX file, an engine or a preprocessor.")],
    layers: Annotated[bool, typer.Option("--layers", help="Every layer, with precision and tactic.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    open_: Annotated[
        bool, typer.Option("--open", help="Show an ONNX graph in netron, on this machine only (127.0.0.1).")
    ] = False,
    debug: Debug = False,
) -> None:
    """Say what is in an ONNX file, an engine or a preprocessor, and where its sidecar says something else.

    The exit code is 1 where the sidecar and the engine differ.
    """
    import trtbatch
    from trtbatch.core.hints import build_line
    from trtbatch.core.sidecar import Artifact
    from trtbatch.diagnostics.inspection import EngineReport
    from trtbatch.diagnostics.preprocessor_report import PreprocessorReport
    from trtbatch.errors import ArtifactError, UsageError
    from trtbatch.util.serialization import encode

    report: Any = trtbatch.inspect(file)
    engine, preprocessor = isinstance(report, EngineReport), isinstance(report, PreprocessorReport)
    if open_ and engine:
        raise UsageError(f"--open shows ONNX graphs, and {file} is an engine", "name the ONNX file")
    if json_:
        print(json.dumps(encode(report), indent=1, ensure_ascii=False))
    elif preprocessor:
        _show_preprocessor(report)
    elif engine:
        _show_engine(report, layers)
    else:
        _show_onnx(report)
    if open_:
        _open(file)
    if preprocessor and report.damaged is not None:
        raise ArtifactError(report.damaged, f"build it again: trtbatch build {report.sidecar.source.file}")
    if preprocessor:
        return
    again = f"build it again: {as_typed(build_line(Artifact(file, report.sidecar)))}" if engine else ""
    if engine and report.damaged is not None:
        raise ArtifactError(report.damaged, again)
    if engine and not all(fact.same for fact in report.facts):
        err().print(f"[bold red]WRONG[/]: the sidecar and the engine differ; {plain(again)}", soft_wrap=True)
        raise typer.Exit(1)


def _show_onnx(report: Any) -> None:
    console = out()
    console.print(f"[bold]{plain(report.path)}[/]  opset {report.opset}, by {plain(report.producer or 'unknown')}")
    for label, specs in (("input", report.inputs), ("output", report.outputs)):
        for spec in specs:
            console.print(f"  {label:10}{spec}", markup=False)
    if report.dynamic:
        batch = "[green]dynamic[/]: open, and nothing found that fixes it (export proves it by running)"
    elif report.fixed_by:
        batch = "[red]open by name only[/]"
    else:
        batch = "fixed"
    console.print(f"  batch     {batch}")
    for culprit in report.fixed_by:
        console.print(f"            probably fixed by {culprit}", markup=False)
    console.print(f"  weights   {report.parameters:,} parameters")
    console.print(f"  work      {_count(report.macs)} multiply-accumulates a sample")
    console.print(f"  traffic   {'unknown' if report.bytes_moved is None else size(report.bytes_moved)} moved a sample")
    operators = ", ".join(f"{name} {count}" for name, count in report.operators.items())
    console.print(f"  operators {operators}", markup=False)
    if report.sidecar is not None:
        console.print(f"  model     {report.sidecar.model.name}, weights: {report.sidecar.model.weights}", markup=False)
        if report.sidecar.conversion is not None:
            console.print(f"  converted {_conversion(report.sidecar.conversion)}", markup=False)


def _show_preprocessor(report: Any) -> None:
    console, sidecar, recipe = out(), report.sidecar, report.recipe
    kind = f"opset {report.opset}" if sidecar is None else sidecar.engine.backend
    console.print(f"[bold]{plain(report.path)}[/]  {size(Path(report.path).stat().st_size)}, {kind}")
    crop = "×".join(map(str, recipe.crop[::-1]))
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (recipe.mean, recipe.std))
    lines = [
        ("is", "a preprocessor: it makes one sample of a model's input of an image"),
        ("for", report.model),
        ("recipe", f"shorter side {recipe.resize}, {recipe.interpolation}, crop {crop}"),
        ("values", f"mean {mean}, std {std}" if recipe.fused is None else f"bytes, {recipe.fused}: the model scales"),
        *(("input", str(spec)) for spec in report.inputs),
        ("sizes", f"1×1 to {report.max_size}×{report.max_size}; Pillow resizes larger images"),
        ("output", str(report.output)),
    ]
    if sidecar is not None:
        where = sidecar.build.device.get("gpu", "unknown")
        tools = " ".join(f"{name} {version}" for name, version in sidecar.build.tools.items())
        lines.append(("source", sidecar.source.file))
        lines.append(("made", f"{sidecar.build.created} on {where} ({tools})"))
    lines.append(("use", f"trtbatch infer ENGINE --input IMAGES/ --preprocessor {report.path}"))
    for label, text in lines:
        console.print(f"  {label:10}{text}", markup=False)


def _layers(sidecar: Any) -> str:
    """Return the shares of the layers' precisions, as recorded by the build; empty where none are recorded."""
    shares = ", ".join(f"{share:.0%} {name}" for name, share in sidecar.precision.layers.items())
    return f" (layers when it was built: {shares})" if shares else ""


def _conversion(conversion: Any) -> str:
    tools = " ".join(f"{name} {version}" for name, version in conversion.tools.items())
    method = f", ranges by {conversion.method}" if conversion.method else ""
    stayed = f", {len(conversion.stayed)} products in float32" if conversion.stayed else ""
    return f"to {conversion.precision} by {tools} with {conversion.calibration}{method}{stayed}"


def _count(value: int | None) -> str:
    if value is None:
        return "unknown (a shape isn't known):"
    for unit, scale in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return str(value)


def _show_engine(report: Any, layers: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = out()
    sidecar = report.sidecar
    console.print(f"[bold]{plain(report.path)}[/]  {size(Path(report.path).stat().st_size)}, {sidecar.engine.backend}")
    where = sidecar.build.device.get("gpu") or sidecar.build.device.get("cpu", "unknown")
    tools = " ".join(f"{name} {version}" for name, version in sidecar.build.tools.items())
    lines = [
        ("model", f"{sidecar.model.name}, weights: {sidecar.model.weights}"),
        ("source", sidecar.source.file if sidecar.source else "unknown"),
        ("made", f"{sidecar.build.created} on {where} ({tools})"),
        ("precision", f"asked {sidecar.precision.asked}, realized {sidecar.precision.realized}{_layers(sidecar)}"),
    ]
    if sidecar.precision.accuracy is not None:
        lines.append(("accuracy", str(sidecar.precision.accuracy)))
    if sidecar.conversion is not None:
        lines.append(("converted", _conversion(sidecar.conversion)))
    if sidecar.build.options:
        lines.append(("options", ", ".join(f"{name} {value}" for name, value in sidecar.build.options.items())))
    if sidecar.engine.tuned is not None:
        lines.append(("tuned", str(sidecar.engine.tuned)))
    if sidecar.engine.planned is not None:
        lines.append(("planned", str(sidecar.engine.planned)))
    for label, text in lines:
        console.print(f"  {label:10}{text}", markup=False)
    if sidecar.engine.table:
        console.print(_times(sidecar))
    if report.unopened is not None:
        console.print(f"  [yellow]not opened[/]: {escape(report.unopened)}; all this is the sidecar's word")
        for spec in (*sidecar.inputs, *sidecar.outputs):
            console.print(f"            {spec}", markup=False)
        return
    table = Table("", "sidecar", "engine")
    for fact in report.facts:
        style = "" if fact.same else "red"
        table.add_row(escape(fact.what), escape(fact.sidecar), escape(fact.engine), style=style)
    console.print(table)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in report.precisions.items())
    console.print(f"  layers    {len(report.layers)}{': ' + shares if shares else ''}")
    if layers:
        listing = Table("layer", "kind", "precision", "tactic")
        for layer in report.layers:
            listing.add_row(*(escape(text) for text in (layer.name, layer.kind, layer.precision, layer.tactic)))
        console.print(listing)


def _times(sidecar: Any) -> Any:
    """Return a table of the measured batch sizes: profile, time, and the extra time on the next best profile."""
    from rich.table import Table

    table = Table("batch", "profile", "ms", "ms/sample", "next best", title="times when it was built")
    for column in table.columns:
        column.justify = "right"
    profiles = sidecar.engine.profiles
    for row in sidecar.engine.table:
        others = sorted((time, index) for index, time in row.times.items() if int(index) != row.profile)
        next_best = f"+{row.loss:.1%} on {profiles[int(others[0][1])]}" if row.loss is not None else ""
        cells = (row.batch, profiles[row.profile], f"{row.ms:.4g}", f"{row.ms / row.batch:.4g}", next_best)
        table.add_row(*map(str, cells))
    return table


def _open(file: Path) -> None:
    from trtbatch.util import optional

    netron = optional.require("netron", "show a graph")
    address = netron.start(str(file), address=("127.0.0.1", 0))
    out().print(f"netron shows {file} at http://{address[0]}:{address[1]} (Ctrl-C ends it)")
    netron.wait()
