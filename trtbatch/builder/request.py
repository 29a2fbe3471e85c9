"""Define the build request, check it for contradictions, and find its ONNX file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trtbatch.backends import warn_of_random
from trtbatch.backends.base import Builder, BuilderOptions
from trtbatch.core import hints, store
from trtbatch.core.batches import Profile
from trtbatch.core.profiles import MAX_PROFILES, plan_auto
from trtbatch.core.sidecar import Artifact, ModelRecord, Sidecar
from trtbatch.errors import PrecisionError, UsageError
from trtbatch.onnx_graph.read import load_onnx, opset_of, read_specs
from trtbatch.quantization.precision import CONVERTED, PRECISIONS, QUANTIZED, is_random
from trtbatch.util import files
from trtbatch.util.log import note

__all__ = [
    "BuildRequest",
    "builder_settings",
    "choose_profiles",
    "foreign",
    "not_tried",
    "note_unused",
    "original_of",
    "refuse_conversion_of",
    "refuse_precision",
    "refuse_target",
    "refuse_tries",
    "refuse_values",
    "source_of",
    "stem_of",
]


@dataclass(frozen=True)
class BuildRequest:
    """Request to build an engine.

    Args:
        onnx: file to build; None takes the newest in ``engines/`` that fits.
        profiles: profiles of the batch axis; empty is 1:16:32 for a dynamic model.
        batches: batch sizes of interest: each must have a profile, and is timed on all that hold it; empty takes the
            powers of two.
        static: the one batch size to build for.
        backend: ``auto``, ``tensorrt`` or ``onnxruntime``.
        workspace: bytes that TensorRT's tactics may use; None is its own limit.
        opt_level: TensorRT's builder optimization level, 0 to 5.
        timing_cache: file to read if usable, and to write after the build; None is one in the engine's folder, named by
            GPU and TensorRT version.
        keep_timings: whether to use a timing cache at all.
        own_kernels: whether to leave out the tactics of cuDNN and cuBLAS.
        timing_iterations: runs over which the time of a tactic is averaged; None is TensorRT's own number.
        tries: number of builds, of which the fastest engine is kept.
        shapes: sizes of the axes other than the batch, by input.
        output: path of the engine; None is ``engines/NAME.engine`` (``engines/NAME.ort.onnx`` for ONNX Runtime).
        verify: whether to check the rows; the engine runs at min, opt and max either way.
        precision: one of :data:`trtbatch.quantization.precision.PRECISIONS`, or ``best``: the fastest within the
            tolerance; None leaves it to the file and the backend (TF32 on TensorRT).
        fuse_preprocess: layout of the uint8 images that the engine takes; None leaves its input as it is.
        io_precision: type of the inputs and outputs; None keeps theirs.
        keep_fp32: names of nodes or operators that stay in float32.
        calibration: folder, glob, ``.npy``, ``.npz``, or a number of random samples; sets the ranges of int8 and fp8,
            finds what fp16 can't hold, and measures the accuracy.
        calibration_method: how ranges are chosen; None is entropy.
        tolerance: largest L2-relative error of a row against the ONNX file; None is that of the precision.
        options: further properties of a TensorRT engine.
        device: number of the GPU.
        progress: called with each step and its progress (0 to 1, None if unknown).
    """

    onnx: Path | None = None
    profiles: tuple[Profile, ...] = ()
    batches: tuple[int, ...] = ()
    static: int | None = None
    backend: Literal["auto", "tensorrt", "onnxruntime"] = "auto"
    workspace: int | None = None
    opt_level: int | None = None
    timing_cache: Path | None = None
    keep_timings: bool = True
    own_kernels: bool = False
    timing_iterations: int | None = None
    tries: int = 1
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    output: Path | None = None
    verify: bool = True
    precision: str | None = None
    io_precision: Literal["fp16"] | None = None
    fuse_preprocess: Literal["NHWC", "NCHW"] | None = None
    keep_fp32: tuple[str, ...] = ()
    calibration: str | None = None
    calibration_method: Literal["entropy", "max"] | None = None
    tolerance: float | None = None
    options: BuilderOptions = field(default_factory=BuilderOptions)
    device: int = 0
    progress: Callable[[str, float | None], None] = lambda words, share: None


def choose_profiles(
    smallest: int | None,
    opt: int | None,
    largest: int | None,
    static: int | None,
    profiles: Literal["auto"] | Sequence[Profile | str],
    batches: Sequence[int],
    most: int | None = None,
) -> tuple[Profile, ...]:
    """Return the profiles of the batch axis that a build is asked for; none leaves them to the model.

    Args:
        smallest: smallest batch size of the one profile.
        opt: batch size that it is tuned for.
        largest: largest batch size of it.
        static: the one batch size to build for.
        profiles: profiles, or ``auto``: one for each batch size of interest.
        batches: batch sizes of interest.
        most: largest number of profiles that ``auto`` makes; None is :data:`trtbatch.core.profiles.MAX_PROFILES`.

    Raises:
        UsageError: the arguments contradict each other.
        ProfileError: a corner or a profile makes no sense.
    """
    if static is not None and static < 1:
        raise UsageError(f"`static={static}` is not a batch size", "give 1 or more")
    if profiles == "auto":
        given = [name for name, value in (("`opt`", opt), ("`static`", static)) if value]
        if given:
            raise UsageError(f"`profiles='auto'` chooses what {given[0]} says", "give one of them")
        return plan_auto(smallest, largest, batches, MAX_PROFILES if most is None else most)
    if most is not None:
        raise UsageError("`max_profiles` goes with `profiles='auto'`", "give both, or leave it out")
    corners = any(value is not None for value in (smallest, opt, largest))
    ways = [
        way for way, used in (("`static`", static), ("`min`/`opt`/`max`", corners), ("`profiles`", profiles)) if used
    ]
    if len(ways) > 1:
        raise UsageError(f"{' and '.join(ways)} say the same thing twice", "give one of them")
    several = [profiles] if isinstance(profiles, str) else profiles
    if corners:
        return (Profile.complete(smallest, opt, largest),)
    return tuple(dict.fromkeys(Profile.parse(each) if isinstance(each, str) else each for each in several))


def refuse_values(request: BuildRequest) -> None:
    """Raise if a precision is unknown, or a tolerance is negative or infinite.

    Raises:
        UsageError: naming it.
    """
    if request.precision is not None and request.precision not in (*PRECISIONS, "best"):
        raise UsageError(f"`precision={request.precision!r}` is none", f"pass one of {', '.join(PRECISIONS)}, best")
    if request.tolerance is not None and request.tolerance < 0:
        raise UsageError(f"`tolerance={request.tolerance}` lets nothing pass", "give a finite number from 0 on")
    if request.tolerance is not None and not math.isfinite(request.tolerance):
        raise UsageError(f"`tolerance={request.tolerance}` lets everything pass", "give a finite number from 0 on")


def builder_settings(request: BuildRequest, folder: Path) -> dict[str, Any]:
    """Return the builder settings of a request, as fields of :class:`trtbatch.backends.base.BuildPlan`.

    `folder` is that of the engine, where the timing cache lies.
    """
    return {
        "workspace": request.workspace,
        "opt_level": request.opt_level,
        "timing_cache": request.timing_cache,
        "cache_folder": folder if request.keep_timings else None,
        "own_kernels": request.own_kernels,
        "timing_iterations": request.timing_iterations,
        "device": request.device,
        "options": request.options,
    }


def note_unused(request: BuildRequest) -> None:
    """Log the given options that have no effect on ONNX Runtime."""
    given = {
        "`workspace`": request.workspace,
        "`opt_level`": request.opt_level,
        "`timing_cache`": request.timing_cache,
        "`keep_timings=False`": None if request.keep_timings else True,
        "`own_kernels`": request.own_kernels or None,
        "`timing_iterations`": request.timing_iterations,
        "`tries`": request.tries if request.tries > 1 else None,
    }
    names = [name for name, value in given.items() if value is not None]
    if names:
        note(f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} no effect on ONNX Runtime")


def refuse_tries(request: BuildRequest) -> None:
    """Raise if several builds are requested with an option that excludes them.

    Raises:
        UsageError: names the option.
    """
    if request.tries > 1 and request.timing_cache is not None:
        raise UsageError(
            f"`tries={request.tries}` times the tactics anew each time, which `timing_cache` spares", "give one of them"
        )
    if request.tries > 1 and request.precision == "best":
        raise UsageError("`tries` and `precision='best'` both build several engines", "give one of them")


def refuse_target(target: Path, source: Path, suffix: str) -> None:
    """Raise if the output path is the ONNX file itself, or has the wrong suffix.

    Raises:
        UsageError: names the suffix of this backend's engines.
    """
    if target.resolve() == source.resolve():
        raise UsageError(f"`output={str(target)!r}` is the ONNX file itself", "write elsewhere with `output`")
    if not target.name.endswith((suffix, ".plan") if suffix == ".engine" else suffix):
        raise UsageError(
            f"`output={str(target)!r}` doesn't end in {suffix}",
            f"write `output={str(target.with_name(target.stem + suffix))!r}`",
        )


def refuse_precision(request: BuildRequest, builder: Builder) -> None:
    """Raise if the precision options contradict each other, or the precision isn't available here.

    Raises:
        UsageError, PrecisionError: names the option.
    """
    name = request.precision
    builder.refuse(None if name == "best" else name, request.options, request.device)
    wanted = {
        "`io_precision`": (request.io_precision, CONVERTED),
        "`keep_fp32`": (request.keep_fp32, (*CONVERTED, "best")),
        "`calibration`": (request.calibration, (*CONVERTED, "best")),
        "`calibration_method`": (request.calibration_method, (*QUANTIZED, "best")),
    }
    for option, (value, goes_with) in wanted.items():
        if value and name not in goes_with:
            several = "|".join(goes_with)
            raise UsageError(f"{option} goes with `precision={several!r}`", "give both, or leave it out")
    if request.tolerance is not None and not request.verify:
        raise UsageError("`tolerance` is for the check that `verify=False` leaves out", "leave one of them out")
    if name == "best" and not request.verify:
        raise UsageError("`precision='best'` needs the check that `verify=False` leaves out", "leave one of them out")


def not_tried(name: str, request: BuildRequest, builder: Builder) -> str | None:
    """Return why ``--precision best`` skips a precision here, or None if it is tried."""
    try:
        builder.refuse(name, request.options, request.device)
    except PrecisionError as error:
        return error.problem
    if name in QUANTIZED and is_random(request.calibration):
        return "not tried without real samples: `calibration`"
    return None


def refuse_conversion_of(source: Artifact, request: BuildRequest) -> None:
    """Raise if a request asks to convert a file that is converted already.

    Raises:
        UsageError: names the options without effect.
    """
    conversion = source.sidecar.conversion
    own = conversion.precision if conversion is not None else ""
    asked = [f"`precision={request.precision!r}`"] if request.precision not in (None, own) else []
    asked += ["`keep_fp32`"] if request.keep_fp32 else []
    asked += ["`io_precision`"] if request.io_precision else []
    asked += ["`calibration_method`"] if request.calibration_method else []
    if asked:
        raise UsageError(
            f"{source.path.name} is in {own} already: {' and '.join(asked)} can't change it",
            "name the float32 file that it was made from",
        )


def source_of(request: BuildRequest) -> Artifact:
    """Return the ONNX artifact of a request: the named file, or the newest in ``engines/`` that fits."""
    path = request.onnx
    if path is None:
        dynamic = bool(request.profiles)
        artifact = store.newest(
            "onnx",
            lambda s: s.conversion is None and (s.is_dynamic or not dynamic),
            _wanted(request),
            prefer=lambda s: _can_be_static(s, request.static),  # if none can, the error comes from the newest
        )
        note(f"building the newest that fits: {artifact.path}")
    elif not files.sidecar_path(path).is_file():
        hints.refuse_other_file(path, "onnx")
        return foreign(path)
    else:
        artifact = store.load(path, "onnx")
    store.check_file(artifact)
    warn_of_random(artifact.sidecar)
    return artifact


def _can_be_static(sidecar: Sidecar, static: int | None) -> bool:
    """Return whether a file can be built for this one batch size: its batch is open, or fixed at that size."""
    sizes = {spec.fixed_batch for spec in sidecar.inputs if spec.batch_axis is not None}
    return static is None or sizes in ({None}, {static})


def _wanted(request: BuildRequest) -> str:
    return "dynamic ONNX file" if request.profiles else "ONNX file"


def foreign(path: Path) -> Artifact:
    """Return the artifact of an ONNX file that trtbatch didn't export; its specs are read from the file."""
    model = load_onnx(path)
    inputs, outputs = read_specs(model, path.name)
    note(f"{path} has no sidecar: inputs and outputs are read from the file; preprocessing and classes are unknown")
    record = ModelRecord(path.stem, f"of {path.name}", model.producer_name or None, opset_of(model))
    return Artifact(path, Sidecar("onnx", store.record_file(path), inputs, outputs, record))


def stem_of(onnx: Path, request: BuildRequest) -> str:
    """Return the stem of an engine's file name: that of the ONNX file, with batch size and precision."""
    stem = onnx.name.removesuffix(".onnx")
    if request.static is not None:
        stem = f"{stem.removesuffix('_dynamic')}_b{request.static}"
    named = request.precision is None or stem.endswith(f".{request.precision}")
    return stem if named else f"{stem}.{request.precision}"


def original_of(converted: Artifact) -> Artifact:
    """Return the float32 file of a converted one, or the converted one if the float32 file is gone."""
    source = converted.sidecar.source
    if source is not None and source.path is not None:
        path = converted.path.parent / source.path
        if path.is_file() and store.record_file(path).sha256 == source.sha256:
            return store.load(path, "onnx") if files.sidecar_path(path).is_file() else foreign(path)
    note(f"the float32 file of {converted.path} isn't there: the accuracy is taken against itself")
    return converted
