"""Define the command ``trtbatch build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from trtbatch.cli.console import Debug, Device, out, parse_bytes, parse_shape, plain, show_progress, size
from trtbatch.cli.wording import as_typed

__all__ = ["command"]

_PRECISION = "Precision"
_ENGINE = "TensorRT engines"


def command(
    onnx: Annotated[
        Path | None, typer.Argument(metavar="[ONNX]", help="\\[default: the newest in engines/ that fits]")
    ] = None,
    min_: Annotated[int | None, typer.Option("--min", help="Smallest batch of the profile. \\[default: 1]")] = None,
    opt: Annotated[
        int | None, typer.Option("--opt", help="Batch that the profile is tuned for. \\[default: 16]")
    ] = None,
    max_: Annotated[int | None, typer.Option("--max", help="Largest batch of the profile. \\[default: 32]")] = None,
    static: Annotated[int | None, typer.Option(metavar="N", help="One fixed batch size instead.")] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(metavar="MIN:OPT:MAX", help="A profile in one word; may be given several times."),
    ] = None,
    profiles: Annotated[
        Literal["auto"] | None,
        typer.Option(help="auto: a profile for each batch size of --batch, each tuned for it, the fastest looked up."),
    ] = None,
    max_profiles: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="Largest number of profiles with --profiles auto. \\[default: 8]"),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Batch sizes of interest: each must have a profile, and is timed. \\[default: powers of two]",
        ),
    ] = None,
    backend: Annotated[
        Literal["auto", "tensorrt", "onnxruntime"],
        typer.Option(help="auto: TensorRT where there is a GPU, else ONNX Runtime on the CPU."),
    ] = "auto",
    workspace: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory for TensorRT's tactics, like 4GiB. \\[default: TensorRT's]"),
    ] = None,
    opt_level: Annotated[
        int | None, typer.Option(min=0, max=5, help="TensorRT's builder optimization level. \\[default: TensorRT's]")
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Read where usable, and written after the build. \\[default: next to the engine, by GPU and version]",
        ),
    ] = None,
    no_timing_cache: Annotated[
        bool, typer.Option("--no-timing-cache", help="Time every tactic anew, and keep no times.")
    ] = False,
    own_kernels: Annotated[
        bool,
        typer.Option("--own-kernels", help="Try TensorRT's own tactics alone, not cuDNN's and cuBLAS's (gone in 11)."),
    ] = False,
    timing_iterations: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Runs that a tactic's time is averaged over. \\[default: TensorRT's, 1]"),
    ] = None,
    tries: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Build so often and keep the fastest: no two builds are alike."),
    ] = 1,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=C,H,W", help="Sizes of an input's open axes other than the batch."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Check the rows before the engine appears.")
    ] = True,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="fp32|tf32|fp16|bf16|int8|fp8|best",
            help="What products compute in; best: the fastest within --tolerance. \\[default: the file's; TF32]",
            rich_help_panel=_PRECISION,
        ),
    ] = None,
    io_precision: Annotated[
        Literal["fp16"] | None,
        typer.Option(help="Type of inputs and outputs. \\[default: as they are]", rich_help_panel=_PRECISION),
    ] = None,
    fuse_preprocess: Annotated[
        bool,
        typer.Option("--fuse-preprocess", help="Take uint8 images: scale, mean and deviation become the first nodes."),
    ] = False,
    layout: Annotated[
        Literal["NHWC", "NCHW"] | None, typer.Option(help="Of uint8 images. \\[default: NHWC, as they are decoded]")
    ] = None,
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE|OP",
            help="Nodes (patterns too) or operators that stay float32; may be given several times.",
            rich_help_panel=_PRECISION,
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|GLOB|FILE|N",
            help="Samples for ranges and accuracy, as for infer, or a number of random ones. \\[default: 64 random]",
            rich_help_panel=_PRECISION,
        ),
    ] = None,
    calibration_method: Annotated[
        Literal["entropy", "max"] | None,
        typer.Option(
            help="How the ranges of int8 and fp8 are chosen. \\[default: entropy]", rich_help_panel=_PRECISION
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="T",
            help="Largest L2 error of a row. \\[default: the precision's; best: 0.01]",
            rich_help_panel=_PRECISION,
        ),
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Runs on later TensorRT releases too.", rich_help_panel=_ENGINE)
    ] = False,
    hardware_compatible: Annotated[
        bool,
        typer.Option(
            "--hardware-compatible", help="Runs on every GPU from compute capability 8.0 on.", rich_help_panel=_ENGINE
        ),
    ] = False,
    aux_streams: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Streams for layers next to the main one.", rich_help_panel=_ENGINE),
    ] = None,
    sparsity: Annotated[
        bool, typer.Option("--sparsity", help="Use 2:4 sparse weights as such.", rich_help_panel=_ENGINE)
    ] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Weights can be exchanged.", rich_help_panel=_ENGINE)] = False,
    strip_weights: Annotated[
        bool,
        typer.Option(
            "--strip-weights",
            help="No weights in the engine; opening it takes the ONNX file's.",
            rich_help_panel=_ENGINE,
        ),
    ] = False,
    weight_streaming: Annotated[
        bool,
        typer.Option(
            "--weight-streaming", help="Weights that don't fit on the GPU are streamed.", rich_help_panel=_ENGINE
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="PATH", help="\\[default: engines/NAME.engine or engines/NAME.ort.onnx]")
    ] = None,
    device: Device = 0,
    debug: Debug = False,
) -> None:
    """Build an engine from an ONNX file, and check its rows at min, opt and max.

    The file appears complete or not at all.
    """
    import trtbatch
    from trtbatch.errors import UsageError

    if no_timing_cache and timing_cache is not None:
        raise UsageError("--timing-cache and --no-timing-cache contradict each other", "give one of them")
    if layout is not None and not fuse_preprocess:
        raise UsageError("--layout is that of uint8 images", "pass --fuse-preprocess with it")
    if profiles == "auto" and profile:
        raise UsageError("--profiles auto chooses what --profile says", "give one of them")
    with show_progress() as (_, report):
        artifact = trtbatch.build(
            onnx,
            min=min_,
            opt=opt,
            max=max_,
            static=static,
            profiles=profiles or profile or (),
            max_profiles=max_profiles,
            batches=() if batch is None else batch,
            backend=backend,
            precision=precision,
            io_precision=io_precision,
            keep_fp32=keep_fp32 or (),
            calibration=calibration,
            calibration_method=calibration_method,
            tolerance=tolerance,
            fuse_preprocess=(layout or "NHWC") if fuse_preprocess else None,
            shapes=dict(_shape(text) for text in shape or []),
            verify=verify,
            tries=tries,
            workspace=None if workspace is None else parse_bytes(workspace),
            opt_level=opt_level,
            timing_cache=timing_cache,
            keep_timings=not no_timing_cache,
            own_kernels=own_kernels,
            timing_iterations=timing_iterations,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            aux_streams=aux_streams,
            sparsity=sparsity,
            refit=refit,
            strip_weights=strip_weights,
            weight_streaming=weight_streaming,
            output=output,
            device=device,
            progress=report,
        )
    if artifact.sidecar.kind == "preprocessor":
        _show_preprocessor(artifact)
    else:
        _show(artifact)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    from trtbatch.errors import UsageError

    name, equals, sizes = text.rpartition("=")
    if not equals or not name:
        raise UsageError(f"--shape {text!r} names no input", "write it like --shape input=3,224,224")
    return name, parse_shape(sizes)


def _show(artifact: Any) -> None:
    sidecar = artifact.sidecar
    facts = sidecar.build.details
    console = out()
    console.print(
        f"[bold]{plain(str(artifact.path))}[/]  {size(sidecar.artifact.bytes)}, built in {facts['build_seconds']:.1f} s"
    )
    where = sidecar.build.device.get("gpu") or sidecar.build.device.get("cpu", "")
    tools = " ".join(f"{name} {version}" for name, version in sidecar.build.tools.items())
    for line in (*_candidates(facts.get("candidates", [])), *_tries(facts.get("tries", []))):
        console.print(as_typed(f"  {line}"), markup=False)
    lines = [
        ("backend", f"{sidecar.engine.backend} {sidecar.precision.realized} on {where} ({tools})"),
        ("profiles", _profile_words(sidecar.engine.profiles)),
        *(("input", str(spec)) for spec in sidecar.inputs),
        *(("output", str(spec)) for spec in sidecar.outputs),
        ("weights", sidecar.model.weights),
        ("memory", _memory(facts)),
        ("checked", _checked(facts)),
        *((("times", _times(sidecar)),) if sidecar.engine.table else ()),
        *((("accuracy", str(sidecar.precision.accuracy)),) if sidecar.precision.accuracy else ()),
        *((("layers", _shares(sidecar.precision.layers)),) if sidecar.precision.layers else ()),
        *((("options", ", ".join(sidecar.build.options)),) if sidecar.build.options else ()),
    ]
    for label, text in lines:
        console.print(f"  {label:9}{text}", markup=False)


def _show_preprocessor(artifact: Any) -> None:
    sidecar, console = artifact.sidecar, out()
    seconds, most = sidecar.build.details["build_seconds"], sidecar.build.details["max_size"]
    console.print(f"[bold]{plain(str(artifact.path))}[/]  {size(sidecar.artifact.bytes)}, built in {seconds:.1f} s")
    console.print(f"  backend  tensorrt on {sidecar.build.device.get('gpu', '')}", markup=False)
    console.print(f"  for      {sidecar.model.name}", markup=False)
    console.print(f"  input    images of up to {most}×{most}; Pillow resizes larger ones", markup=False)
    console.print(f"  output   {sidecar.outputs[0]}", markup=False)
    console.print("  checked  no pixel is more than 1 of 255 from Pillow's")


def _profile_words(profiles: Any) -> str:
    if len(profiles) == 1:
        return f"min {profiles[0].min}, opt {profiles[0].opt}, max {profiles[0].max}"
    return f"{', '.join(map(str, profiles))} (min:opt:max)"


def _times(sidecar: Any) -> str:
    """Return the time of each measured batch, with its profile where there are several.

    ``trtbatch inspect`` shows the whole table.
    """
    several = len(sidecar.engine.profiles) > 1
    rows = (
        f"{row.batch}: {row.ms:.3f}" + (f" on {sidecar.engine.profiles[row.profile]}" if several else "")
        for row in sidecar.engine.table
    )
    return f"ms at batch {', '.join(rows)}"


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{share:.0%} {name}" for name, share in shares.items()) + " (of those that tell)"


def _candidates(tried: list[dict[str, Any]]) -> list[str]:
    """Return a line for each precision that ``best`` tried."""
    lines = []
    for each in tried:
        if each.get("refused") is not None:
            lines.append(f"{each['precision']:5} out: {each['refused']}")
            continue
        times = ", ".join(f"{ms:.3f} ms at batch {batch}" for batch, ms in each["ms"].items())
        accuracy = each.get("accuracy")
        error = "" if accuracy is None else f", off by {float(accuracy['l2_rel']):.1e}"
        lines.append(f"{each['precision']:5} {times}{error}")
    return lines


def _tries(tries: list[dict[str, Any]]) -> list[str]:
    """Return a line for each of several builds."""
    lines = []
    for number, each in enumerate(tries, 1):
        times = ", ".join(f"{batch}: {ms:.3f}" for batch, ms in each["ms"].items())
        refused = each.get("refused")
        lines.append(f"build {number}  " + (f"ms at batch {times}" if refused is None else f"out: {refused}"))
    return lines


def _checked(facts: dict[str, Any]) -> str:
    ran = ", ".join(map(str, facts["ran_at"]))
    return f"rows right at batch {ran}" if facts["rows_checked_at"] else f"ran at batch {ran}; rows NOT checked"


def _memory(facts: dict[str, Any]) -> str:
    if "peak_device_bytes_estimate" in facts:
        return (
            f"{size(facts['peak_device_bytes_estimate'])} on the GPU at the largest batch "
            f"(weights, {size(facts['activation_bytes'])} activations, {size(facts['binding_bytes'])} bindings)"
        )
    return f"{size(facts['peak_host_bytes'])} at the most while building and checking, on the host"
