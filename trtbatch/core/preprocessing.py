"""Turn an image into the model's input as in training: resize, centre crop, scale, normalise.

The arithmetic is that of ``torchvision.transforms._presets.ImageClassification`` on a Pillow image, so that
a machine without torch makes the same input; the tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from trtbatch.errors import UsageError
from trtbatch.util import optional

if TYPE_CHECKING:  # opening an image must not need the ONNX tools
    from PIL.Image import Image

    from trtbatch.core.sidecar import Sidecar
    from trtbatch.core.tensors import TensorSpec

__all__ = ["READERS", "Preprocessing", "choose_reader", "image_input", "orientation_of", "refuse_reader"]

READERS = ("auto", "host", "dali")
"""Names of what can read images; ``auto`` chooses."""

_ORIENTATION = 0x0112
"""EXIF's tag of the camera's orientation."""


def orientation_of(image: Image) -> int:
    """Return the camera's orientation from EXIF, 1 to 8; 1, upright, where EXIF has none."""
    value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) else 1


@dataclass(frozen=True)
class Preprocessing:
    """Recipe that turns an image into one sample of the model's input, ``(3, H, W)`` float32.

    Args:
        resize: pixels of the shorter side after resizing; the other side keeps the aspect ratio.
        crop: ``(H, W)`` pixels cut from the centre; a smaller image is padded with black.
        mean, std: per channel, in units of the 0…1 range.
        interpolation: Pillow's resampling filter, always antialiased.
        fused: layout of the uint8 images that the model takes, where scale, mean and deviation are part of the model.
    """

    resize: int
    crop: tuple[int, int]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    fused: Literal["NHWC", "NCHW"] | None = None

    def __post_init__(self) -> None:
        if self.resize < 1 or min(self.crop) < 1 or any(value <= 0 for value in self.std):
            raise ValueError(f"preprocessing needs positive sizes and deviations, not {self}")

    def __call__(self, image: Image) -> NDArray[Any]:
        """Return the sample of a Pillow image of any mode and size: ``(3, H, W)`` float32, or uint8 as `fused` says."""
        return self.from_pixels(self.pixels(image))

    def from_pixels(self, pixels: NDArray[np.uint8], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the samples of resized and cropped images ``(…, H, W, 3)``: normalised, or uint8 as `fused` says.

        Args:
            pixels: uint8 images.
            out: array that receives the samples, in its own dtype.
        """
        if self.fused is None:
            return self.normalise(pixels, out)
        planes = pixels if self.fused == "NHWC" else np.moveaxis(pixels, -1, -3)
        if out is None:
            return np.ascontiguousarray(planes)
        np.copyto(out, planes)
        return out

    def normalise_batch(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Convert the uint8 images ``(N, …)`` that a fused model takes to ``(N, 3, H, W)`` float32."""
        pixels = images if self.fused == "NHWC" else np.moveaxis(images, 1, -1)
        return np.stack([self.normalise(each) for each in pixels])

    @staticmethod
    def rgb(image: Image) -> Image:
        """Return the image as 8-bit RGB, turned upright by its EXIF orientation."""
        from PIL import Image as PillowImage
        from PIL import ImageOps

        if orientation_of(image) != 1:  # exif_transpose copies even an upright image
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow's convert would clip every value over 255 to white
            image = PillowImage.fromarray((np.asarray(image, np.uint16) >> 8).astype(np.uint8))
        return image if image.mode == "RGB" else image.convert("RGB")

    def pixels(self, image: Image) -> NDArray[np.uint8]:
        """Return the resized and cropped image, ``(H, W, 3)`` uint8."""
        from PIL import Image as PillowImage

        image = self.rgb(image)
        width, height = self.resized(*image.size)
        if (width, height) != image.size:
            image = image.resize((width, height), PillowImage.Resampling[self.interpolation.upper()])
        rows, columns = self.crop
        # Python's round, to even, is what torchvision's center_crop uses, also for the padding.
        top, left = round((height - rows) / 2.0), round((width - columns) / 2.0)
        if width < columns or height < rows:
            pad_left, pad_top = max(columns - width, 0) // 2, max(rows - height, 0) // 2
            canvas = PillowImage.new("RGB", (max(width, columns), max(height, rows)))
            canvas.paste(image, (pad_left, pad_top))
            image = canvas
            top, left = round((image.size[1] - rows) / 2.0), round((image.size[0] - columns) / 2.0)
        return np.asarray(image.crop((left, top, left + columns, top + rows)))

    def normalise(self, pixels: NDArray[np.uint8], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Convert pixels ``(…, H, W, 3)`` uint8 to samples ``(…, 3, H, W)`` in float32, or in `out` and its dtype."""
        planes = np.moveaxis(pixels, -1, -3)
        samples = np.empty(planes.shape, np.float32) if out is None else out
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        values = samples if samples.dtype == np.float32 else np.empty(planes.shape, np.float32)
        np.copyto(values, planes)
        values /= np.float32(255)
        values -= mean
        values /= std
        if values is not samples:
            samples[...] = values
        return samples

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height after resizing, before the crop."""
        short, long = sorted((width, height))
        new_long = max(1, int(self.resize * long / short))
        return (self.resize, new_long) if width <= height else (new_long, self.resize)


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
