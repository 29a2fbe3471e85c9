"""Make the Triton models that take encoded images: DALI's preprocessing, and its ensemble with the engine.

::

    DIR/NAME_images/config.pbtxt              the ensemble: encoded images in, the engine's outputs out
    DIR/NAME_preprocessing/config.pbtxt       derived from the engine's configuration
                           VERSION/model.dali the pipeline of :mod:`trtbatch.images.dali`, serialized
    DIR/NAME/                                 the engine (:mod:`trtbatch.deployment.triton`)

Triton's DALI backend (github.com/triton-inference-server/dali_backend) finds the pipeline's inputs by name and its
outputs by order. It makes the pipeline on the GPU of each instance, whatever GPU the pipeline was serialized for.
Ragged batching is a property of the model that batches: an ensemble has no batcher and ignores it
(github.com/triton-inference-server/server/issues/8653).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from trtbatch.core.readers import choose_reader, image_input
from trtbatch.core.sidecar import Artifact
from trtbatch.deployment.tritonbatching import one_size
from trtbatch.errors import ArtifactError, MissingPackageError, UsageError
from trtbatch.images import dali
from trtbatch.util import optional
from trtbatch.util.text import shortened

__all__ = ["PIPELINE", "ImageModels", "image_models", "image_names", "refuse_unprepared", "release_for"]

PIPELINE = "model.dali"
"""File name under which Triton's DALI backend looks for its pipeline."""

_Release = tuple[int, ...]

_RELEASES: tuple[tuple[str, _Release], ...] = (
    ("25.05", (1, 49, 0)),
    ("25.08", (1, 51, 2)),
    ("26.02", (1, 53, 0)),
    ("26.03", (2, 0, 0)),
    ("26.05", (2, 1, 0)),
    ("26.06", (2, 1, 1)),
)
"""Triton releases that came with another DALI release than the one before.

Source: the file DALI_VERSION in the branches rYY.MM of github.com/triton-inference-server/dali_backend.
"""


@dataclass(frozen=True)
class ImageModels:
    """Models in front of an engine: their configurations, the serialized pipeline, and a note on its release."""

    preprocessing: Any
    ensemble: Any
    pipeline: bytes
    release: str


def image_names(name: str) -> tuple[str, str]:
    """Return the names of DALI's model and of the ensemble, which clients send images to."""
    return f"{name}_preprocessing", f"{name}_images"


def refuse_unprepared(artifact: Artifact) -> None:
    """Refuse an engine that Triton can serve, but that DALI can't prepare images for.

    Raises:
        ArtifactError: the message gives the reason.
        MissingPackageError: DALI isn't installed.
    """
    sidecar, fix = artifact.sidecar, "leave out `from_images`"
    prefix = f"Triton can't serve {artifact.path.name} from images"
    try:
        choose_reader("dali", sidecar)
    except UsageError as error:
        raise ArtifactError(f"{prefix}: {error.problem}", fix) from error
    if one_size(sidecar) is not None:
        raise ArtifactError(
            f"{prefix}: it holds batch {one_size(sidecar)} alone, and Triton makes no whole batches of images",
            f"export it with `dynamic` and build it without `static`, or {fix}",
        )


def image_models(artifact: Artifact, engine: Any, version: int) -> ImageModels:
    """Return the models in front of an engine.

    Args:
        artifact: the engine.
        engine: the engine's configuration, a ``ModelConfig`` message.
        version: version of the models, and of the engine in the ensemble.

    Raises:
        MissingPackageError: DALI, or the GPU that it serializes the pipeline for, is missing.
    """
    on_gpu = artifact.sidecar.engine.backend == "tensorrt"
    spec, recipe = image_input(artifact.sidecar)
    try:
        pipeline = dali.serialize(recipe, spec, engine.max_batch_size, 0 if on_gpu else None)
    except RuntimeError as error:  # DALI's error where there is no GPU
        raise MissingPackageError(
            f"DALI can't serialize the pipeline here: {shortened(str(error))}",
            "run it on a machine with a GPU, or leave out `from_images`" if on_gpu else "leave out `from_images`",
        ) from error
    installed = str(optional.require("nvidia.dali", "serialize its pipeline").__version__)
    release = release_for(installed)
    preprocessing = _preprocessing(engine, version, on_gpu)
    preprocessing.parameters["dali_release"].string_value = installed
    preprocessing.parameters["triton_release"].string_value = release
    told = f"{PIPELINE} is of DALI {installed}, and needs a Triton with that DALI or a newer one: {release}"
    return ImageModels(preprocessing, _ensemble(engine, preprocessing, version), pipeline, told)


def release_for(installed: str) -> str:
    """Return in words which Triton releases come with a DALI release or a newer one."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", installed)
    wanted = tuple(int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    for triton, release in _RELEASES:
        if release >= wanted:
            return f"{triton} or newer"
    triton, release = _RELEASES[-1]
    return f"newer than {triton}, which has DALI {'.'.join(map(str, release))}; see the release notes of Triton"


def _preprocessing(engine: Any, version: int, on_gpu: bool) -> Any:
    """Return the configuration of DALI's model."""
    name, _ = image_names(engine.name)
    config = type(engine)(name=name, backend="dali", max_batch_size=engine.max_batch_size)
    config.version_policy.specific.versions.append(version)
    _describe_encoded(config.input.add(name=dali.INPUT, allow_ragged_batch=True))
    (given,) = engine.input
    config.output.add(name=given.name, data_type=given.data_type, dims=given.dims)
    # No delay: the engine's own batcher waits for others, and waiting twice would miss the tuned latency.
    config.dynamic_batching.SetInParent()
    # One instance, as the backend's README advises: each further one takes the same GPU memory again.
    group = config.instance_group.add(count=1)
    group.kind = group.KIND_GPU if on_gpu else group.KIND_CPU
    config.parameters["num_threads"].string_value = str(dali.THREADS)  # else the backend chooses a number
    return config


def _ensemble(engine: Any, preprocessing: Any, version: int) -> Any:
    """Return the configuration of the ensemble; its tensors are its input, the samples and the engine's outputs."""
    outputs = {output.name for output in engine.output}
    encoded = _free(dali.INPUT, outputs)
    samples = _free("samples", {*outputs, encoded})
    _, name = image_names(engine.name)
    config = type(engine)(name=name, platform="ensemble", max_batch_size=engine.max_batch_size, output=engine.output)
    config.version_policy.specific.versions.append(version)
    _describe_encoded(config.input.add(name=encoded))
    for output in config.output:
        output.ClearField("reshape")  # the engine's model reshapes already
    first, second = (
        config.ensemble_scheduling.step.add(model_name=model.name, model_version=version)
        for model in (preprocessing, engine)
    )
    first.input_map[dali.INPUT] = encoded
    first.output_map[preprocessing.output[0].name] = samples
    second.input_map[engine.input[0].name] = samples
    for name in sorted(outputs):
        second.output_map[name] = name
    return config


def _describe_encoded(message: Any) -> None:
    """Set the type and shape of encoded images: any number of bytes."""
    message.data_type = message.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name["TYPE_UINT8"].number
    message.dims.append(-1)


def _free(name: str, taken: Collection[str]) -> str:
    """Return `name`, with underscores appended while it is taken."""
    while name in taken:
        name += "_"
    return name
