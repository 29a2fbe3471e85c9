"""The matrices against Pillow itself: in its integer arithmetic they give its pixels, for every filter and size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from trtbatch.core.preprocessing import Preprocessing
from trtbatch.images.resample import FRACTION_BITS, matrices, matrix, rows_first

FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
SIZES = st.one_of(st.integers(1, 300), st.sampled_from([512, 777, 1024, 1500]))

Pixels = NDArray[np.uint8]


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height * 10_000 + width).integers(0, 256, (height, width, 3), np.uint8)


def product(factors: NDArray[np.float32], pixels: Pixels) -> Pixels:
    """Multiply from the left as Pillow does, which float64 holds exactly, and round half up to 8 bits."""
    sums = np.tensordot(factors.astype(np.float64) * (1 << FRACTION_BITS), pixels.astype(np.float64), (1, 0))
    levels = (sums.astype(np.int64) + (1 << FRACTION_BITS - 1)) >> FRACTION_BITS
    found: Pixels = np.clip(levels, 0, 255).astype(np.uint8)
    return found


def product_of_columns(factors: NDArray[np.float32], pixels: Pixels) -> Pixels:
    found: Pixels = product(factors, pixels.swapaxes(0, 1)).swapaxes(0, 1)
    return found


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(1, 300), st.sampled_from(FILTERS))
@example(1, 1, 224, "lanczos")
@example(4096, 3, 1, "bicubic")
@example(3, 2, 900, "bilinear")
def test_one_pass_gives_pillows_pixels(height: int, width: int, new_height: int, kind: str) -> None:
    pixels = noise(height, width)
    wanted = Image.fromarray(pixels).resize((width, new_height), Image.Resampling[kind.upper()])
    np.testing.assert_array_equal(product(matrix(height, new_height, new_height, kind), pixels), np.asarray(wanted))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(1, 200), st.integers(1, 200), st.integers(1, 200), st.sampled_from(FILTERS))
@example(300, 300, 300, 224, 224, "bicubic")
@example(20, 31, 20, 33, 16, "bilinear")
@example(900, 40, 30, 40, 17, "lanczos")
def test_the_matrices_of_a_recipe_resize_and_crop(
    height: int, width: int, resize: int, crop_height: int, crop_width: int, kind: Any
) -> None:
    if max(height, width) > 30 * min(height, width):
        return  # Pillow makes the whole resized image first, however long
    recipe = Preprocessing(resize, (crop_height, crop_width), interpolation=kind)
    pixels = noise(height, width)
    rows, columns = matrices(recipe, height, width)
    assert rows.shape == (crop_height, height)
    assert columns.shape == (crop_width, width)
    assert rows.dtype == columns.dtype == np.float32
    if rows_first(recipe, height, width):
        found = product_of_columns(columns, product(rows, pixels))
    else:
        found = product(rows, product_of_columns(columns, pixels))
    np.testing.assert_array_equal(found, recipe.pixels(Image.fromarray(pixels)))


def test_a_side_that_keeps_its_size_is_only_cropped_and_padded() -> None:
    rows, columns = matrices(Preprocessing(10, (6, 20)), 10, 10)
    np.testing.assert_array_equal(rows, np.eye(10)[2:8])
    np.testing.assert_array_equal(columns[5:15], np.eye(10))
    assert not columns[:5].any()
    assert not columns[15:].any()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4096), st.integers(1, 1000), st.sampled_from(FILTERS))
@example(4, 19, "lanczos")
@example(14, 13, "bicubic")
def test_rounding_between_the_passes_moves_a_result_by_less_than_one(size: int, new_size: int, kind: str) -> None:
    """Half of a line's absolute coefficients: the bound that the preprocessor relies on."""
    assert 0.5 * np.abs(matrix(size, new_size, new_size, kind)).sum(axis=1).max() < 0.8


def test_a_matrix_is_made_once_and_is_not_written_to() -> None:
    made = matrix(375, 256, 224, "bilinear")
    assert made is matrix(375, 256, 224, "bilinear")
    assert not made.flags.writeable


def test_which_images_have_their_rows_resized_first(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Preprocessing(256, (224, 224))
    monkeypatch.setattr("PIL.__version__", "13.0.0")
    assert rows_first(recipe, 2100, 1000)
    assert not any(rows_first(recipe, *size) for size in ((1900, 1000), (1000, 2100), (210, 100), (600, 256)))
    monkeypatch.setattr("PIL.__version__", "12.3.0")
    assert not rows_first(recipe, 2100, 1000)
