"""Turn an image into the model's input as in training: resize, centre crop, scale, normalise.

The arithmetic is that of ``torchvision.transforms._presets.ImageClassification`` on a Pillow image, so that
a machine without torch makes the same input; the tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # opening an image must not need the ONNX tools
    from PIL.Image import Image

__all__ = ["Preprocessing", "orientation_of"]

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
