"""The pure parts of the TensorRT backend; the rest is tested on a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from trtbatch.backends.tensorrt import compat


@pytest.mark.parametrize(
    ("version", "opset"),
    [("8.2.5", 13), ("8.4.1", 17), ("8.6.0", 17), ("8.6.1.6", 17), ("9.3.0", 19), ("10.0.1", 20), ("10.1.0", None)],
)
def test_the_newest_opset_of_each_release(version: str, opset: int | None) -> None:
    assert compat.max_opset(version) == opset


def test_an_unknown_version_is_left_to_the_parser() -> None:
    assert compat.max_opset("11.5.0") is None and compat.max_opset("next") is None


def test_the_bindings_list_is_one_profile_after_the_other_where_an_engine_counts_bindings() -> None:
    old = SimpleNamespace(num_bindings=6, num_io_tensors=2, get_tensor_name=["output", "input"].__getitem__)
    assert compat.bindings(old, ["input", "output"], [7, 8], 0) == [8, 7, 0, 0, 0, 0]
    assert compat.bindings(old, ["input", "output"], [7, 8], 2) == [0, 0, 0, 0, 8, 7]
    new = SimpleNamespace(num_io_tensors=2)
    assert compat.bindings(new, ["input", "output"], [7, 8], 2) == [7, 8]


@pytest.mark.parametrize(("name", "dtype"), [("FLOAT", "float32"), ("HALF", "float16"), ("INT64", "int64")])
def test_data_types_have_numpys_names(name: str, dtype: str) -> None:
    assert compat.dtype_name(SimpleNamespace(name=name)) == dtype
