"""Find the input of a model that takes images, and the reader that fills it."""

from __future__ import annotations

from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.sidecar import Sidecar
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import UsageError
from trtbatch.util import optional

__all__ = ["READERS", "choose_reader", "image_input", "refuse_reader"]

READERS = ("auto", "host", "dali")
"""Names of what can read images; ``auto`` chooses."""


def image_input(
    sidecar: Sidecar, instead: str = "give arrays (FILE.npy, or FILE.npz with each by its input's name), or "
) -> tuple[TensorSpec, Preprocessing]:
    """Return the one input that takes images, and its preprocessing.

    Args:
        sidecar: the sidecar of the model's artifact.
        instead: beginning of a fix that says what works without images; "" where nothing does.

    Raises:
        UsageError: the model has several inputs, no recorded preprocessing, or one whose samples the input doesn't
            take.
    """
    if sidecar.preprocessing is None:
        raise UsageError(
            f"{sidecar.model.name} has no preprocessing recorded for images",
            f"{instead}export with a ModelSpec that has preprocessing",
        )
    if len(sidecar.inputs) != 1:
        names = ", ".join(spec.name for spec in sidecar.inputs)
        raise UsageError(
            f"{sidecar.model.name} has {len(sidecar.inputs)} inputs ({names}); images can feed a model with one",
            f"{instead}export a model whose one input is the image",
        )
    spec, recipe = sidecar.inputs[0], sidecar.preprocessing
    made = (*recipe.crop, 3) if recipe.fused == "NHWC" else (3, *recipe.crop)
    if spec.batch_axis == 0 and not spec.fits((1, *made)):
        problem = f"the preprocessing of {sidecar.model.name} makes samples {made}, which its input {spec} doesn't take"
        raise UsageError(problem, "correct its crop, in the model's sidecar or its ModelSpec, and build again")
    return spec, recipe


def refuse_reader(wanted: str) -> None:
    """Raise where no reader has this name.

    Raises:
        UsageError: the fix lists the readers.
    """
    if wanted not in READERS:
        raise UsageError(f"`reader={wanted!r}` is no reader", f"pass {', '.join(READERS[:-1])} or {READERS[-1]}")


def choose_reader(wanted: str, sidecar: Sidecar) -> str:
    """Return ``host`` or ``dali`` for a model with one image input.

    Args:
        wanted: ``auto``, ``host`` or ``dali``.
        sidecar: the sidecar of the model's artifact.

    Raises:
        UsageError: DALI was requested and can't fill such an input, or there is no such reader.
        MissingPackageError: DALI was requested and isn't installed.
    """
    refuse_reader(wanted)
    spec, _ = image_input(sidecar)
    fits = spec.batch_axis == 0 and spec.dtype in ("float32", "float16", "uint8")
    if wanted == "dali":
        if not fits:
            raise UsageError(f"DALI doesn't fill the input {spec} of {sidecar.model.name}", "pass `reader='host'`")
        optional.require("nvidia.dali", "read images with DALI")
    if wanted == "auto":
        found = fits and sidecar.engine.backend == "tensorrt" and optional.is_installed("nvidia.dali")
        return "dali" if found else "host"
    return wanted
