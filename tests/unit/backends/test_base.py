from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trtbatch.backends.base import batch_of, conform, refuse_integers
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import InputError

Array = np.ndarray[Any, Any]
FLOAT = TensorSpec("x", "float32", ("batch_size", 2))


def test_what_fits_is_shared_and_what_is_strided_is_copied() -> None:
    array = np.ones((4, 2), np.float32)
    assert conform(array, FLOAT) is array
    for other in (np.asfortranarray(np.arange(8, dtype=np.float32).reshape(4, 2)), np.ones((8, 2), np.float32)[::2]):
        made = conform(other, FLOAT)
        assert made.flags.c_contiguous
        assert np.array_equal(made, other)
    expanded = np.broadcast_to(np.array([1, 2], np.float32), (4, 2))
    assert conform(expanded, FLOAT).strides == (8, 4)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([1, 2], np.uint8), "float32"),
        (np.array([1.5, -0.0, np.nan, np.inf], np.float64), "float32"),
        (np.array([1, -1], np.int32), "int64"),
        (np.array([2**31 - 1, -(2**31)], np.int64), "int32"),
        (np.array([1.0, -0.0], np.float32), "int64"),
        (np.array([True, False]), "float32"),
    ],
)
def test_a_cast_that_keeps_every_value_is_made(array: Array, dtype: str) -> None:
    made = conform(array, TensorSpec("x", dtype, (len(array),)))
    assert made.dtype == dtype
    assert np.array_equal(made.astype(np.float64), array.astype(np.float64), equal_nan=True)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([0.1], np.float64), "float32"),
        (np.array([1e300], np.float64), "float32"),
        (np.array([2**31], np.int64), "int32"),
        (np.array([2**63], np.uint64), "int64"),
        (np.array([-1], np.int8), "uint8"),
        (np.array([0.5], np.float32), "int32"),
        (np.array([np.nan], np.float32), "int32"),
        (np.array([2], np.int32), "bool"),
        (np.array([2**24 + 1], np.int32), "float32"),
    ],
)
def test_a_lossy_cast_is_refused(array: Array, dtype: str) -> None:
    with pytest.raises(InputError, match="would change values"):
        conform(array, TensorSpec("x", dtype, (1,)))


def test_the_batch_is_read_off_every_input() -> None:
    specs = [FLOAT, TensorSpec("y", "float32", (3, "batch_size"), 1), TensorSpec("c", "float32", (1,), None)]
    good = {"x": np.ones((5, 2)), "y": np.ones((3, 5)), "c": np.ones(1)}
    assert batch_of(good, specs) == 5
    for change, told in (
        ({"y": np.ones((3, 4))}, r"disagree on the batch size: \{'x': 5, 'y': 4\}"),
        ({"x": np.ones((5, 3))}, r"wanted \('batch_size', 2\)"),
        ({"x": np.ones(5)}, "has shape"),
        ({"z": np.ones(5)}, "wanted"),
    ):
        with pytest.raises(InputError, match=told):
            batch_of(good | change, specs)
    with pytest.raises(InputError, match="given"):
        batch_of({"x": np.ones((5, 2))}, specs)


IMAGES = {
    "NCHW": TensorSpec("x", "float32", ("batch_size", 3, 8, 6)),
    "NHWC": TensorSpec("x", "float32", ("batch_size", 8, 6, 3)),
}


@pytest.mark.parametrize(
    ("wanted", "shape", "fix"),
    [
        ("NCHW", (5, 8, 6, 3), "its layout is NHWC and the engine's NCHW: transpose it, array.transpose(0, 3, 1, 2)"),
        ("NHWC", (5, 3, 8, 6), "its layout is NCHW and the engine's NHWC: transpose it, array.transpose(0, 2, 3, 1)"),
        ("NCHW", (3, 8, 6), "add the batch axis: array[None]"),
        ("NHWC", (8, 6, 3), "add the batch axis: array[None]"),
        ("NCHW", (5, 3, 8, 7), "make axis 3 6"),
        ("NCHW", (5, 3, 6, 8), "make axis 2 8"),
        ("NCHW", (8, 6), "reshape it"),
    ],
)
def test_the_fix_of_a_shape_says_what_to_do_with_it(wanted: str, shape: tuple[int, ...], fix: str) -> None:
    with pytest.raises(InputError) as caught:
        batch_of({"x": np.ones(shape)}, [IMAGES[wanted]])
    assert caught.value.fix == fix
    assert str(shape) in caught.value.problem


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64"])
def test_integers_are_no_floats(dtype: str) -> None:
    with pytest.raises(InputError, match=f"a.npy: x is {dtype} and the engine takes float32") as caught:
        refuse_integers(dtype, FLOAT, "a.npy")
    words = ("normalise", "engine.predict", "`fuse_preprocess`") if dtype == "uint8" else ("array.astype('float32')",)
    assert all(word in caught.value.fix for word in words)
    for fine in ("float64", "float32", "float16", "bool"):
        refuse_integers(fine, FLOAT)
    refuse_integers(dtype, TensorSpec("x", "int32", ("batch_size",)))
