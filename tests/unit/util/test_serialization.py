from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtbatch.core.sidecar import Sidecar
from trtbatch.util.serialization import RecordError, decode, encode


@dataclass(frozen=True)
class Inner:
    size: int
    ratio: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"]
    pair: tuple[int, int]
    many: tuple[Inner, ...] = ()
    axis: int | str | None = None
    file: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)


FULL = Outer("x", "a", (1, 2), (Inner(3), Inner(4, 0.5)), "batch", Path("a/b"), {"k": [1, None]})


def test_what_is_encoded_is_decoded() -> None:
    assert decode(Outer, encode(FULL)) == FULL
    assert "axis" not in encode(Outer("x", "a", (1, 2)))


def test_unknown_keys_are_ignored() -> None:
    assert decode(Inner, {"size": 3, "added_later": True}) == Inner(3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": 3}, "name is 3, not text"),
        ({"kind": "c"}, "not one of 'a', 'b'"),
        ({"pair": [1]}, "a list of 2"),
        ({"pair": 7}, "a list"),
        ({"many": [{"size": "3"}]}, 'size of entry 0 of many is "3", not a whole number'),
        ({"many": [{"size": True}]}, "size of entry 0 of many is true, not a whole number"),
        ({"many": [{}]}, "entry 0 of many lacks 'size'"),
        ({"axis": 1.5}, "axis is 1.5"),
        ({"file": 3}, "file is 3, not a path"),
        ({"facts": []}, "not an object"),
    ],
)
def test_a_wrong_value_is_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(RecordError) as caught:
        decode(Outer, encode(FULL) | change)
    assert told in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_any_json_is_a_sidecar_or_a_record_error(value: Any) -> None:
    with pytest.raises(RecordError):
        decode(Sidecar, value)


def test_none_survives_where_it_is_not_the_default() -> None:
    from trtbatch.core.tensors import TensorSpec

    spec = TensorSpec("total", "float32", (), None)
    assert decode(TensorSpec, encode(spec)) == spec
