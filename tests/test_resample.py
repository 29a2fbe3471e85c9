"""The matrices against Pillow itself: the same pixels, for every filter and size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from trtbatch.photographs import resample
from trtbatch.photographs.resample import (
    FRACTION_BITS,
    LOW_BITS,
    MOST_PRODUCT,
    Side,
    most_taps,
    rows_first,
    side,
    sides,
    spans,
)
from trtbatch.preprocessing import Preprocessing

FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
SIZES = st.one_of(st.integers(1, 300), st.sampled_from([512, 777, 1024, 1500]))

Pixels = NDArray[np.uint8]


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height * 10_000 + width).integers(0, 256, (height, width, 3), np.uint8)


def pillow(pixels: Pixels, height: int, width: int, interpolation: str) -> Pixels:
    """Pillow's resize, columns first whatever its version: each of the two alone has but one pass."""
    kind = Image.Resampling[interpolation.upper()]
    across = Image.fromarray(pixels).resize((width, pixels.shape[0]), kind)
    return np.asarray(across.resize((width, height), kind))


def matrix(made: Side, size: int) -> NDArray[np.float32]:
    """``(n, size)``: the coefficients of a side, all of them."""
    lines = len(made.taps) // 2
    values = made.taps[:lines].astype(np.float64) * (1 << LOW_BITS) + made.taps[lines:]
    found = np.zeros((lines, made.first + size + made.taps.shape[1]))
    at = made.first + made.starts[:lines].astype(int) + np.arange(made.taps.shape[1])
    np.put_along_axis(found, at, values / (1 << FRACTION_BITS), axis=1)
    assert not found[:, size:].any()
    np.testing.assert_array_equal(made.starts[:lines], made.starts[lines:])
    return found[:, :size].astype(np.float32)


def matrices(recipe: Preprocessing, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rows, columns = sides(recipe, height, width)
    return matrix(rows, height), matrix(columns, width)


def whole(size: int, new_size: int, kind: str) -> NDArray[np.float32]:
    return matrix(side(size, new_size, new_size, kind), size)


def in_integers(matrix: NDArray[np.float32], pixels: Pixels) -> Pixels:
    """The product over the first axis, in Pillow's own arithmetic: float64 holds its integers exactly."""
    sums = np.tensordot(matrix.astype(np.float64) * (1 << FRACTION_BITS), pixels.astype(np.float64), (1, 0))
    found: Pixels = np.clip((sums.astype(np.int64) + (1 << FRACTION_BITS - 1)) >> FRACTION_BITS, 0, 255).astype(
        np.uint8
    )
    return found


def in_floats(matrix: NDArray[np.float32], pixels: Pixels) -> Pixels:
    sums = np.tensordot(matrix, pixels.astype(np.float32), (1, 0))
    found: Pixels = np.clip(np.floor(sums + np.float32(0.5)), 0, 255).astype(np.uint8)
    return found


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, st.integers(1, 300), st.integers(1, 300), st.sampled_from(FILTERS))
@example(1, 1, 224, 224, "lanczos")
@example(600, 1200, 100, 200, "bilinear")
def test_both_passes_give_pillows_pixels(height: int, width: int, new_height: int, new_width: int, kind: str) -> None:
    """In integers exactly; in float32 within 1, where a sum lies so near a half that its rounding decides."""
    pixels = noise(height, width)
    rows = whole(height, new_height, kind)
    columns = whole(width, new_width, kind)
    wanted = pillow(pixels, new_height, new_width, kind)
    between = in_integers(columns, pixels.swapaxes(0, 1)).swapaxes(0, 1)
    np.testing.assert_array_equal(in_integers(rows, between), wanted)
    across = in_floats(columns, pixels.swapaxes(0, 1)).swapaxes(0, 1)
    assert np.abs(across.astype(int) - between.astype(int)).max() <= 1
    assert np.abs(in_floats(rows, between).astype(int) - wanted.astype(int)).max() <= 1


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(1, 200), st.integers(1, 200), st.integers(1, 200), st.sampled_from(FILTERS))
@example(300, 300, 300, 224, 224, "bicubic")
@example(20, 31, 20, 33, 16, "bilinear")
def test_the_matrices_of_a_recipe_resize_and_crop(
    height: int, width: int, resize: int, crop_height: int, crop_width: int, kind: str
) -> None:
    if max(height, width) > 30 * min(height, width):
        return  # Pillow makes the whole resized image first, however long
    recipe = Preprocessing(resize, (crop_height, crop_width), interpolation=kind)  # type: ignore[arg-type]
    pixels = noise(height, width)
    rows, columns = matrices(recipe, height, width)
    assert rows.shape == (crop_height, height) and columns.shape == (crop_width, width)
    assert rows.dtype == columns.dtype == np.float32
    if rows_first(recipe, height, width):
        found = in_integers(columns, in_integers(rows, pixels).swapaxes(0, 1)).swapaxes(0, 1)
    else:
        found = in_integers(rows, in_integers(columns, pixels.swapaxes(0, 1)).swapaxes(0, 1))
    np.testing.assert_array_equal(found, recipe.pixels(Image.fromarray(pixels)))


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (4096, 1), (1, 4096), (3, 3), (256, 256), (4000, 3000)])
@pytest.mark.parametrize("kind", FILTERS)
def test_a_side_needs_no_more_than_its_lines_are_made_of(size: tuple[int, int], kind: str) -> None:
    recipe = Preprocessing(256, (224, 224), interpolation=kind)  # type: ignore[arg-type]
    for made, all_of_it in zip(sides(recipe, *size), matrices(recipe, *size)):
        used = np.flatnonzero(all_of_it.any(axis=0))
        assert made.first <= used[0] <= made.first + 1 and made.end - 1 <= used[-1] + 1 <= made.end
        assert not made.taps.flags.writeable and not made.starts.flags.writeable
        assert made.taps.shape[1] <= most_taps(recipe, max(size))
    rows, columns = sides(Preprocessing(256, (224, 224)), 500, 375)
    assert rows.end - rows.first < 335 and (columns.first, columns.end) == (23, 352)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6000), st.integers(1, 6000), st.integers(1, 400), st.sampled_from(FILTERS))
def test_no_line_has_more_taps_than_there_is_room_for(height: int, width: int, resize: int, kind: str) -> None:
    recipe = Preprocessing(resize, (7, 5), interpolation=kind)  # type: ignore[arg-type]
    if max(height, width) > 30 * min(height, width):
        return
    for made in sides(recipe, height, width):
        assert made.taps.shape[1] <= most_taps(recipe, max(height, width))
        assert (np.abs(made.taps[: len(made.taps) // 2]) <= 2048).all()
        assert (np.abs(made.taps) <= 2048).all() and (made.taps == np.rint(made.taps)).all()


def test_a_side_that_is_not_resized_is_only_cropped() -> None:
    rows, columns = matrices(Preprocessing(10, (6, 20)), 10, 10)
    np.testing.assert_array_equal(rows, np.eye(10, dtype=np.float32)[2:8])
    np.testing.assert_array_equal(columns[5:15], np.eye(10, dtype=np.float32))
    assert not columns[:5].any() and not columns[15:].any()


def test_coefficients_are_multiples_of_a_power_of_two_and_sum_to_one() -> None:
    for kind in FILTERS:
        for size, new_size in ((500, 256), (100, 256), (4096, 31), (7, 5)):
            fixed = whole(size, new_size, kind).astype(np.float64) * (1 << FRACTION_BITS)
            np.testing.assert_array_equal(fixed, np.rint(fixed))
            assert np.abs(fixed.sum(axis=1) - (1 << FRACTION_BITS)).max() <= np.count_nonzero(fixed, axis=1).max() / 2


def test_the_same_side_is_made_once() -> None:
    recipe = Preprocessing(256, (224, 224))
    assert sides(recipe, 375, 500)[0] is sides(recipe, 375, 501)[0]


def test_which_photographs_pillow_turns_round(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Preprocessing(256, (224, 224))
    monkeypatch.setattr(resample, "_turns_round", lambda: True)
    assert rows_first(recipe, 2100, 1000)
    assert not any(rows_first(recipe, *size) for size in ((1900, 1000), (1000, 2100), (210, 100), (600, 256)))
    assert not rows_first(Preprocessing(256, (224, 224), interpolation="nearest"), 2100, 1000)
    monkeypatch.setattr(resample, "_turns_round", lambda: False)
    assert not rows_first(recipe, 2100, 1000)


@pytest.mark.parametrize(
    ("version", "turns"), [("12.3.0", False), ("13.0.0", True), ("13.1.0.dev0", True), (None, False)]
)
def test_the_release_decides_the_order(monkeypatch: pytest.MonkeyPatch, version: str | None, turns: bool) -> None:
    monkeypatch.setattr("trtbatch.optional.version", lambda package: version)
    resample._turns_round.cache_clear()
    try:
        assert resample._turns_round() is turns
    finally:
        resample._turns_round.cache_clear()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=12),
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from(FILTERS),
)
def test_sides_made_together_are_those_made_alone(
    sizes: list[tuple[int, int]], resize: int, crop: int, kind: str
) -> None:
    recipe = Preprocessing(resize, (crop, crop + 3), interpolation=kind)  # type: ignore[arg-type]
    together: list[Side] = []
    alone: list[Side] = []
    resample.forget()
    resample.keep(recipe, [*sizes, (0, 5)])
    for size in sizes:
        together += sides(recipe, *size)
    for size in sizes:
        resample.forget()
        alone += sides(recipe, *size)
    for found, wanted in zip(together, alone):
        assert (found.first, found.end) == (wanted.first, wanted.end)
        np.testing.assert_array_equal(found.starts, wanted.starts)
        np.testing.assert_array_equal(found.taps, wanted.taps)
        assert not found.taps.flags.writeable and found.taps.base is None, "nothing else is kept for its sake"


def test_sides_that_were_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (100, 200, 300)
    monkeypatch.setattr(resample, "KEPT", sum(side(size, 50, 50, "bilinear").bytes for size in sizes))
    resample.forget()
    one, two, _ = (side(size, 50, 50, "bilinear") for size in sizes)
    assert side(100, 50, 50, "bilinear") is one
    side(400, 50, 50, "bilinear")
    assert side(100, 50, 50, "bilinear") is one and side(200, 50, 50, "bilinear") is not two


def test_no_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="0×5 has no pixels"):
        sides(Preprocessing(256, (224, 224)), 5, 0)


def quotients(integers: tuple[int, ...], crop: int) -> list[list[int]]:
    """Coefficients in units of 2⁻²², rounded half up, of each line and each pixel that is needed."""
    size, new_size, shift, pixels, before, behind = integers
    reach, found = 2 * max(size, new_size), []
    for line in range(crop):
        centre = (2 * line + 1) * size - shift
        parts = [max(0, reach - abs((2 * pixel + 1) * new_size - centre)) for pixel in range(pixels)]
        parts = parts if before < line < behind else [0] * pixels
        whole = max(sum(parts), 1)
        assert 2 * whole < MOST_PRODUCT
        found.append([((part << FRACTION_BITS + 1) + whole) // (2 * whole) for part in parts])
    return found


@settings(deadline=None, max_examples=150)
@given(height=SIZES, width=SIZES, resize=st.integers(1, 60), crop=st.tuples(st.integers(1, 50), st.integers(1, 50)))
@example(375, 500, 256, (224, 224))
@example(4000, 3000, 256, (224, 224))
@example(1, 1, 40, (48, 30))
def test_a_span_stands_for_the_taps_of_its_side(height: int, width: int, resize: int, crop: tuple[int, int]) -> None:
    recipe = Preprocessing(resize, crop)
    for span, made, lines in zip(spans(recipe, height, width), sides(recipe, height, width), crop):
        assert (span.first, span.end) == (made.first, made.end) and span.fits
        values = made.taps[:lines].astype(np.int64) * (1 << LOW_BITS) + made.taps[lines:].astype(np.int64)
        found = np.zeros((lines, span.end - span.first + made.taps.shape[1]), np.int64)
        np.put_along_axis(found, made.starts[:lines].astype(int) + np.arange(made.taps.shape[1]), values, axis=1)
        np.testing.assert_array_equal(found[:, : span.end - span.first], quotients(span.integers, lines))


def test_what_32_bits_do_not_hold_is_told() -> None:
    recipe = Preprocessing(256, (224, 224))
    assert all(span.fits for span in spans(recipe, 4096, 4096))
    assert not all(span.fits for span in spans(recipe, 1, 1 << 20))
    assert not all(span.fits for span in spans(recipe, 1 << 17, 1 << 17))
    with pytest.raises(ValueError, match="no pixels"):
        spans(recipe, 0, 5)


def test_strips_that_become_very_long_are_not_computed() -> None:
    recipe = Preprocessing(256, (224, 224))
    for height, width in ((1, 4095), (2, 8190)):
        assert all(span.fits for span in spans(recipe, height, width))
    for height, width in ((1, 4097), (2, 8200), (5000, 1), (8, 40_000)):
        assert not all(span.fits for span in spans(recipe, height, width))
