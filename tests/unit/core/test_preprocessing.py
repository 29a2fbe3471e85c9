from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.photos import PHOTOS
from trtbatch.core.preprocessing import Preprocessing

IMAGENET = Preprocessing(resize=256, crop=(224, 224))


@pytest.mark.torch
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("sizes", [(256, 224), (232, 224), (342, 299), (60, 100)])
def test_every_photograph_agrees_with_torchvisions_transform(
    photos: Path, sizes: tuple[int, int], interpolation: str
) -> None:
    import torch

    presets = pytest.importorskip("torchvision.transforms._presets")
    from torchvision.transforms import InterpolationMode

    resize, crop = sizes
    theirs = presets.ImageClassification(
        crop_size=crop, resize_size=resize, interpolation=InterpolationMode(interpolation)
    )
    ours = replace(IMAGENET, resize=resize, crop=(crop, crop), interpolation=interpolation)  # type: ignore[arg-type]
    for name in PHOTOS:
        image = Image.open(photos / name).convert("RGB")
        expected = theirs(image).numpy()
        found = ours(image)
        assert found.dtype == np.float32
        assert found.shape == (3, crop, crop)
        assert found.flags.c_contiguous
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6, err_msg=name)
    assert torch.is_tensor(theirs(image))


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (223, 225), (31, 57), (225, 224)])
def test_odd_sizes_agree_with_torchvision(size: tuple[int, int]) -> None:
    presets = pytest.importorskip("torchvision.transforms._presets")
    generator = np.random.default_rng(size[0])
    image = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), np.uint8))
    for resize, crop in ((20, 16), (16, 20), (17, 20)):
        expected = presets.ImageClassification(crop_size=crop, resize_size=resize)(image).numpy()
        found = replace(IMAGENET, resize=resize, crop=(crop, crop))(image)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_three_channels(mode: str) -> None:
    assert IMAGENET(Image.new(mode, (300, 280))).shape == (3, 224, 224)


def test_impossible_recipes_are_refused() -> None:
    for wrong in ({"resize": 0}, {"crop": (0, 4)}, {"std": (1.0, 0.0, 1.0)}):
        with pytest.raises(ValueError, match="positive"):
            replace(IMAGENET, **wrong)
