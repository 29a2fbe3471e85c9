"""A preprocessor as a TensorRT engine: built for photographs of any size, and tried on some before it appears."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch import artifacts, files
from trtbatch.artifacts import Artifact, ModelRecord, Sidecar, TensorSpec
from trtbatch.backends import choose_builder, open_preprocessor
from trtbatch.backends.base import BuildPlan, Built, Range
from trtbatch.batches import Profile
from trtbatch.building.request import BuildRequest, builder_settings, refuse_target
from trtbatch.errors import RowsError, UsageError
from trtbatch.photographs.operands import GROUP, GROUP_SIDE, Packing, square
from trtbatch.photographs.preprocessor import SUFFIX, OnnxPreprocessor, differences
from trtbatch.photographs.record import OUTPUT, PreprocessorRecord

__all__ = ["ENGINE_SUFFIX", "build_preprocessor", "is_preprocessor", "ranges_of", "specs_of"]

ENGINE_SUFFIX = ".pre.engine"

OPT_LEVEL = 2
"""TensorRT's builder optimization level, unless asked otherwise: its own, 3, takes longer, and gained nothing."""

OPT_SHARE = 1.5
"""Rows and columns of the small photographs that kernels are chosen for, as a multiple of the crop: what the crop needs
of 500×375 pixels."""

_USED = {
    *("onnx", "backend", "workspace", "opt_level", "timing_cache", "keep_timings", "own_kernels", "timing_iterations"),
    *("output", "options", "device", "progress"),
}
"""Fields of a build's request that mean something here."""


def is_preprocessor(path: Path | None) -> bool:
    """Whether a file is called as ``export-preprocessor`` calls its own."""
    return path is not None and path.name.endswith(SUFFIX)


def build_preprocessor(request: BuildRequest) -> Artifact:
    """Build the engine of a ``.pre.onnx`` file; it appears only when it has given Pillow's pixels.

    Raises:
        UsageError: an option that is for models, or ONNX Runtime, which runs the file as it is.
        ArtifactError: no preprocessor, or a damaged one.
        BuildError: TensorRT can't build it.
        RowsError: it gives other pixels than Pillow.
    """
    assert request.onnx is not None
    _refuse_options(request)
    level = OPT_LEVEL if request.opt_level is None else request.opt_level
    builder = choose_builder(request.backend)
    if builder.name == "onnxruntime":
        problem = f"{request.onnx} is built with TensorRT alone; on the CPU ONNX Runtime uses the ONNX file itself"
        raise UsageError(problem, f"use it as it is: trtbatch infer --input PHOTOS/ --preprocessor {request.onnx}")
    builder.refuse(None, request.options, request.device)
    with OnnxPreprocessor(request.onnx) as preprocessor:
        record = preprocessor.record
    target = request.output or request.onnx.with_name(request.onnx.name.removesuffix(SUFFIX) + ENGINE_SUFFIX)
    refuse_target(target, request.onnx, builder.suffix)
    inputs, output = specs_of(record)
    with files.scratch(target) as folder:
        plan = BuildPlan(
            onnx=request.onnx,
            name=target.name,
            inputs=inputs,
            outputs=(output,),
            profiles=(Profile(1, 1, 1),),
            ranges=ranges_of(record),
            **builder_settings(request, target.parent) | {"opt_level": level},
        )
        began = time.perf_counter()
        built = builder.build(plan, folder, request.progress)
        seconds = time.perf_counter() - began
        sidecar = _sidecar(record, request.onnx, built, {"build_seconds": round(seconds, 3)})
        request.progress("running it on photographs of several sizes", None)
        _prove(Artifact(built.file, sidecar), record, request.device)
        return artifacts.publish(built.file, target, sidecar)


def _refuse_options(request: BuildRequest) -> None:
    """Raise where an option for models is given.

    Raises:
        UsageError: naming it.
    """
    plain = BuildRequest()
    given = [each.name for each in fields(request) if getattr(request, each.name) != getattr(plain, each.name)]
    strange = [name for name in given if name not in _USED]
    if strange:
        words = {"profiles": "a profile", "batches": "--batch", "shapes": "--shape", "verify": "--no-verify"}
        option = words.get(strange[0], f"--{strange[0].replace('_', '-')}")
        raise UsageError(f"{request.onnx} is a preprocessor, which {option} means nothing to", "leave it out")


def specs_of(record: PreprocessorRecord) -> tuple[tuple[TensorSpec, ...], TensorSpec]:
    """Inputs and output of the ONNX file and the engine."""
    inputs = (
        TensorSpec("image", "uint8", ("count", "side", "side", 3), None),
        TensorSpec("positions", "int32", (1, 1, 1, "side"), None),
        *(
            TensorSpec(name, kind.name, ("count", *shape), None)
            for name, (shape, kind) in Packing(record).arrays.items()
        ),
    )
    return inputs, TensorSpec(OUTPUT, record.output.dtype, ("count", *record.output.shape[1:]), None)


def ranges_of(record: PreprocessorRecord) -> tuple[dict[str, Range], ...]:
    """Of each profile, the shapes that the engine takes, by open input: the least, those that it is tuned for, and the
    largest. Small photographs come in groups, larger ones alone (:func:`trtbatch.photographs.operands.profile_of`)."""
    most, usual = record.max_size, round(OPT_SHARE * max(record.recipe.crop))
    small = min(most, GROUP_SIDE)
    found = [_ranges(record, GROUP, square(usual, usual, small), small)]
    if most > small:
        found.append(_ranges(record, 1, min(most, 2 * small), most))
    return tuple(found)


def _ranges(record: PreprocessorRecord, count: int, usual: int, most: int) -> dict[str, Range]:
    least, mean, largest = ((n, side, side, 3) for n, side in ((1, 1), (count, usual), (count, most)))
    packing = Packing(record)
    alone, group = packing.shapes(1), packing.shapes(count)
    return {
        "image": Range(least, mean, largest),
        "positions": Range((1, 1, 1, 1), (1, 1, 1, usual), (1, 1, 1, most)),
        **{name: Range(alone[name], group[name], group[name]) for name in packing.arrays},
    }


def _sidecar(record: PreprocessorRecord, source: Path, built: Built, facts: dict[str, Any]) -> Sidecar:
    inputs, output = specs_of(record)
    return Sidecar(
        kind="preprocessor",
        artifact=artifacts.record_file(built.file),
        inputs=inputs,
        outputs=(output,),
        model=ModelRecord(record.source.file, "none"),
        source=artifacts.record_file(source),
        source_path=source.name,
        backend="tensorrt",
        preprocessing=record.recipe,
        build=facts | {"max_size": record.max_size},
        tools=built.tools,
        device=built.device,
        created=artifacts.now(),
    )


def _prove(artifact: Artifact, record: PreprocessorRecord, device: int) -> None:
    """Run it on noise of several sizes.

    Raises:
        RowsError: a pixel is more than 1 of 255 from Pillow's.
    """
    with open_preprocessor(artifact, device) as preprocessor:
        preprocessor.open()
        try:

            def run(pixels: NDArray[np.uint8], out: NDArray[Any]) -> None:
                out[...] = preprocessor.sample(pixels)

            for words in differences(record, run):
                raise RowsError(f"{artifact.path.name}: {words}", "build it again, or infer with --no-preprocessor")
        finally:
            preprocessor.close()
