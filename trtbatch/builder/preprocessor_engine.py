"""Build a preprocessor as a TensorRT engine, with one optimization profile over the height and width of its image."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path

from trtbatch.backends import choose_builder
from trtbatch.backends.base import BuildPlan, Built, Range
from trtbatch.builder.request import BuildRequest, builder_settings, refuse_target
from trtbatch.core import store
from trtbatch.core.batches import Profile
from trtbatch.core.hints import Placeholder, call
from trtbatch.core.sidecar import Artifact, BuildRecord, EngineRecord, ModelRecord, Sidecar, SourceRecord
from trtbatch.errors import RowsError, UsageError
from trtbatch.images.preprocessor import (
    SUFFIX,
    OnnxPreprocessor,
    PreprocessorRecord,
    find_difference,
    open_preprocessor,
)
from trtbatch.util import files

__all__ = ["ENGINE_SUFFIX", "build_preprocessor", "is_preprocessor", "size_ranges"]

ENGINE_SUFFIX = ".pre.engine"

_USUAL = (375, 500)
"""Height and width that kernels are tuned for: the most frequent size in ImageNet."""

_USED = {
    *("onnx", "backend", "workspace", "opt_level", "timing_cache", "keep_timings", "own_kernels", "timing_iterations"),
    *("output", "options", "device", "progress"),
}
"""Fields of a build request that apply to a preprocessor."""


def is_preprocessor(path: Path | None) -> bool:
    """Return whether a file has the suffix that ``export-preprocessor`` writes."""
    return path is not None and path.name.endswith(SUFFIX)


def build_preprocessor(request: BuildRequest) -> Artifact:
    """Build the engine of a ``.pre.onnx`` file and publish it once its pixels match Pillow's.

    Raises:
        UsageError: an option applies only to models, or TensorRT isn't available here.
        ArtifactError: the file is no preprocessor, or is damaged.
        BuildError: TensorRT can't build it.
        RowsError: a pixel differs from Pillow's by more than 1 of 255.
    """
    assert request.onnx is not None
    _refuse_options(request)
    builder = choose_builder(request.backend)
    if builder.name == "onnxruntime":
        problem = f"only TensorRT builds {request.onnx}; ONNX Runtime runs the file itself"
        raise UsageError(
            problem,
            "use it as it is: "
            + call("infer", Placeholder("ENGINE"), input=Placeholder("IMAGES"), preprocessor=request.onnx),
        )
    builder.refuse(None, request.options, request.device)
    record = OnnxPreprocessor(request.onnx).record
    target = request.output or request.onnx.with_name(request.onnx.name.removesuffix(SUFFIX) + ENGINE_SUFFIX)
    refuse_target(target, request.onnx, builder.suffix)
    with files.scratch(target) as folder:
        plan = BuildPlan(
            onnx=request.onnx,
            name=target.name,
            inputs=record.inputs,
            outputs=(record.output,),
            profiles=(Profile(1, 1, 1),),
            ranges=(size_ranges(record),),
            tf32=False,  # TF32 may add an error of 0.3 of 255, too much for lanczos (images/preprocessor.py)
            **builder_settings(request, target.parent),
        )
        began = time.perf_counter()
        built = builder.build(plan, folder, request.progress)
        sidecar = _sidecar(record, request.onnx, built, time.perf_counter() - began)
        request.progress("comparing its pixels with Pillow's", None)
        _compare(Artifact(built.file, sidecar), record, request.device)
        return store.publish(built.file, target, sidecar)


def _refuse_options(request: BuildRequest) -> None:
    plain = BuildRequest()
    given = [each.name for each in fields(request) if getattr(request, each.name) != getattr(plain, each.name)]
    strange = [name.replace("_", " ") for name in given if name not in _USED]
    if strange:
        raise UsageError(f"{request.onnx} is a preprocessor, to which {strange[0]} doesn't apply", "leave it out")


def size_ranges(record: PreprocessorRecord) -> dict[str, Range]:
    """Return the smallest, tuned and largest shape of each input."""
    most, (crop_height, crop_width) = record.max_size, record.recipe.crop
    sizes = (1, 1), (min(_USUAL[0], most), min(_USUAL[1], most)), (most, most)
    return {
        "image": Range(*((height, width, 3) for height, width in sizes)),
        "rows": Range(*((crop_height, height) for height, _ in sizes)),
        "columns": Range(*((crop_width, width) for _, width in sizes)),
    }


def _sidecar(record: PreprocessorRecord, source: Path, built: Built, seconds: float) -> Sidecar:
    return Sidecar(
        kind="preprocessor",
        artifact=store.record_file(built.file),
        inputs=record.inputs,
        outputs=(record.output,),
        model=ModelRecord(record.source.file, "none"),
        source=SourceRecord.of(store.record_file(source), source.name),
        preprocessing=record.recipe,
        build=BuildRecord(
            built.tools,
            built.device,
            store.now(),
            details={"build_seconds": round(seconds, 3), "max_size": record.max_size},
        ),
        engine=EngineRecord("tensorrt"),
    )


def _compare(artifact: Artifact, record: PreprocessorRecord, device: int) -> None:
    with open_preprocessor(artifact, device) as preprocessor:
        preprocessor.open()
        try:
            difference = find_difference(record, preprocessor.sample)
        finally:
            preprocessor.close()
    if difference is not None:
        raise RowsError(f"{artifact.path.name}: {difference}", "build it again, or infer without a preprocessor")
