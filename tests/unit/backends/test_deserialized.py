"""What an engine reports of its bindings, against its sidecar. Real engines are tested on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trtbatch.backends.tensorrt.deserialized import Binding, differences
from trtbatch.core.batches import Profile
from trtbatch.core.sidecar import EngineRecord, FileRecord, ModelRecord, Sidecar
from trtbatch.core.tensors import TensorSpec

SIDECAR = Sidecar(
    kind="engine",
    artifact=FileRecord("m.engine", "", 0),
    inputs=(TensorSpec("input", "float32", ("batch_size", 3, 8)),),
    outputs=(
        TensorSpec("scores", "float32", ("batch_size", 5)),
        TensorSpec("found", "int32", ("batch_size", "entries"), 0),
    ),
    model=ModelRecord("m", "random"),
    engine=EngineRecord("tensorrt", (Profile(1, 4, 8),)),
)

BINDINGS = {
    "scores": Binding("scores", False, "float32", (-1, 5)),
    "found": Binding("found", False, "int32", (-1, -1)),
    "input": Binding("input", True, "float32", (-1, 3, 8)),
}


def found(**changed: Any) -> list[str]:
    """The differences where bindings are other than :data:`BINDINGS`; None leaves one out."""
    bindings = [changed.get(name, binding) for name, binding in BINDINGS.items()]
    return differences([binding for binding in bindings if binding is not None], SIDECAR)


def test_the_order_of_bindings_is_the_engines_own() -> None:
    assert found() == []


def test_a_profile_of_one_size_reports_that_size() -> None:
    assert found(input=Binding("input", True, "float32", (4, 3, 8))) == []


def test_a_tensor_in_the_hosts_memory_is_no_difference() -> None:
    assert found(found=replace(BINDINGS["found"], on_host=True)) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"scores": None}, "the engine has the outputs found, the sidecar found, scores"),
        ({"input": replace(BINDINGS["input"], name="x")}, "the engine has the inputs x, the sidecar input"),
        (
            {"scores": replace(BINDINGS["scores"], is_input=True)},
            "the engine has the inputs input, scores, the sidecar input",
        ),
        ({"input": replace(BINDINGS["input"], dtype="float16")}, "input input is float16, in the sidecar float32"),
        (
            {"scores": replace(BINDINGS["scores"], shape=(-1, 1000))},
            "output scores has shape (-1, 1000), in the sidecar ('batch_size', 5)",
        ),
        (
            {"scores": replace(BINDINGS["scores"], shape=(-1,))},
            "output scores has shape (-1,), in the sidecar ('batch_size', 5)",
        ),
        ({"input": replace(BINDINGS["input"], is_linear=False)}, "input input isn't laid out axis by axis"),
    ],
)
def test_what_would_be_read_out_of_bounds_is_told(changed: dict[str, Any], words: str) -> None:
    assert found(**changed)[0] == words
