"""One photograph, wherever it comes from, as a sample of a model's input; what can't be used says why."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray

from trtbatch.errors import InputError, UsageError
from trtbatch.names import shortened
from trtbatch.preprocessing import Preprocessing

if TYPE_CHECKING:  # which would bring artifacts into every process that decodes
    from trtbatch.artifacts import Sidecar, TensorSpec

__all__ = ["ImageLike", "Skipped", "image_input", "open_image", "plain", "stacked", "unusable"]

Array = NDArray[Any]

ImageLike = Union[str, "os.PathLike[str]", bytes, Array, Any]
"""A path, an encoded file, pixels ``(H, W, 3)`` or ``(H, W)`` uint8, or a Pillow image."""

_FIX = "mend it, or leave it out"


@dataclass(frozen=True)
class Skipped:
    """An input that can't be used, and why; the rest goes on."""

    name: str
    reason: str


def image_input(sidecar: Sidecar) -> tuple[TensorSpec, Preprocessing]:
    """The one input that takes photographs, and how they are prepared for it.

    Raises:
        UsageError: the model has several inputs, or no preprocessing recorded.
    """
    if len(sidecar.inputs) != 1:
        names = ", ".join(spec.name for spec in sidecar.inputs)
        raise UsageError(
            f"{sidecar.model.name} has {len(sidecar.inputs)} inputs ({names}); images can feed a model with one",
            "give arrays, each by its input's name",
        )
    if sidecar.preprocessing is None:
        raise UsageError(
            f"{sidecar.model.name} has no preprocessing recorded for images",
            "give arrays, or export with a ModelSpec that has preprocessing",
        )
    return sidecar.inputs[0], sidecar.preprocessing


def stacked(images: Sequence[Array], spec: TensorSpec, preprocessing: Preprocessing) -> Array:
    """Resized and cropped images, ``(H, W, 3)`` uint8 each, as the batch that the input takes.

    They stay bytes where scale, mean and deviation are part of the model.
    """
    if preprocessing.fused is None:
        samples: list[Array] = [preprocessing.normalise(pixels) for pixels in images]
    else:
        samples = [pixels if preprocessing.fused == "NHWC" else pixels.transpose(2, 0, 1) for pixels in images]
    rows = np.stack(samples, axis=spec.batch_axis or 0)
    keeps = rows.dtype.kind != "f" or not spec.dtype.startswith("float")
    return rows if keeps else rows.astype(spec.dtype, copy=False)


def open_image(source: ImageLike) -> Any:
    """The Pillow image of a path, of encoded bytes, of pixels, or of itself.

    Raises:
        InputError: it can't be read, has no known white, or is over Pillow's limit of pixels.
    """
    from PIL import Image

    # Pillow only warns between its limit and twice that; here the limit holds as it is.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    try:
        image = _opened(source)
        reason = unusable(image)
        if reason is not None:
            raise InputError(reason, _FIX)
        image.load()
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their format makes them
        raise InputError(plain(error), _FIX) from error
    return image


def _opened(source: ImageLike) -> Any:
    from PIL import Image

    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        grey, colour = source.ndim == 2, source.ndim == 3 and source.shape[2] == 3
        if source.dtype != np.uint8 or not (grey or colour) or 0 in source.shape:
            raise InputError(
                f"an array {source.dtype} {source.shape} is no image", "give pixels (H, W, 3) or (H, W) uint8"
            )
        return Image.fromarray(np.ascontiguousarray(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return Image.open(io.BytesIO(source))
    return Image.open(os.fspath(source))


def unusable(image: Any) -> str | None:
    """Why a Pillow image, opened and not yet decoded, can't be used; None where it can."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        return f"{image.width}×{image.height} is over the limit of {limit} pixels"
    if image.mode in ("I", "F"):
        return f"its pixels ({image.mode}, 32 bits) have no known white: save it in 8 bits"
    return None


def plain(error: Exception) -> str:
    """What Pillow or numpy raised on a file, on one line, in words for its owner."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image that Pillow can read"
    text = str(getattr(error, "strerror", None) or error).strip()
    if "pickle" in text:  # numpy's advice is the opposite of ours
        return "not an array file, or one of Python objects"
    return shortened(text) or type(error).__name__
