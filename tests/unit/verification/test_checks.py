from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import models
from trtbatch.backends.onnxruntime import OnnxRuntimeSession
from trtbatch.core.batches import Profile
from trtbatch.core.rows import random_inputs, row_errors, rows_of, tolerance, wrong_rows
from trtbatch.core.sidecar import EngineRecord, FileRecord, ModelRecord, Sidecar
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import RowsError
from trtbatch.onnx_graph.read import load_onnx, read_specs
from trtbatch.verification.checks import RowChecker


def checker(
    path: Path, smallest: int = 1, wrap: Callable[[Any], Any] = lambda session: session, pool: Any = None
) -> RowChecker:
    import onnxruntime

    inputs, outputs = read_specs(load_onnx(path), path.name)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    file, model = FileRecord(path.name, "", 0), ModelRecord("m", "of the test")
    record = EngineRecord("onnxruntime", (Profile(1, 1, 64),))
    sidecar = Sidecar("engine", file, inputs, outputs, model, engine=record)
    bound = wrap(OnnxRuntimeSession(session, sidecar, path.name))
    return RowChecker(bound, inputs, outputs, precision="fp32", smallest=smallest, largest=8, pool=pool)


@pytest.mark.parametrize("make", [models.classifier, models.two_inputs, models.batch_last])
def test_a_right_model_passes_at_every_batch(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    check = checker(make(tmp_path / "m.onnx"))
    assert [check.check(batch) for batch in (1, 2, 3, 7, 8)] == [[]] * 5


def test_the_bug_that_began_it_is_named(tmp_path: Path) -> None:
    check = checker(models.first_row_only(tmp_path / "m.onnx"))
    assert check.check(1) == []
    findings = check.check(8)
    assert findings[0].check == "batch = singles"
    assert findings[0].rows == (1, 2, 3, 4, 5, 6, 7)
    assert "rows 1–7 are all zero: the batch axis is probably fixed" in findings[0].message
    with pytest.raises(RowsError, match=r"m\.engine gives wrong rows: batch 8, output: rows 1–7 are all zero"):
        check.require(8, "m.engine", "mend it")


def test_leaking_rows_are_found(tmp_path: Path) -> None:
    findings = checker(models.leaking(tmp_path / "m.onnx")).check(4)
    assert findings[0].rows == (0, 1, 2, 3)
    assert "rows 0–3 differ from the same samples run alone" in findings[0].message


def test_with_a_smallest_batch_above_one_singles_are_copies(tmp_path: Path) -> None:
    assert checker(models.classifier(tmp_path / "m.onnx"), smallest=4).check(8) == []
    assert checker(models.leaking(tmp_path / "l.onnx"), smallest=4).check(8) != []


class Unwritten:
    """A session over a real model that then loses what it wrote into some rows: what a short copy does."""

    def __init__(self, inner: OnnxRuntimeSession, rows: slice) -> None:
        self._inner, self._rows = inner, rows
        self._pattern: int | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def poison(self, pattern: int) -> None:
        self._pattern = pattern
        self._inner.poison(pattern)

    def fetch(self) -> dict[str, np.ndarray[Any, Any]]:
        outputs = self._inner.fetch()
        if self._pattern is not None:
            outputs["output"][self._rows].view(np.uint8).fill(self._pattern)
            self._pattern = None
        return outputs


def test_rows_that_are_never_written_are_found_by_two_poisons(tmp_path: Path) -> None:
    check = checker(models.classifier(tmp_path / "m.onnx"), wrap=lambda session: Unwritten(session, slice(2, 5)))
    findings = check.check(8)
    assert [(finding.check, finding.rows) for finding in findings] == [("written", (2, 3, 4))]
    assert (
        findings[0].message
        == "rows 2–4 were never written: the buffers, or the batch inside the model, are smaller than the batch"
    )


def test_an_output_that_equals_one_poison_is_not_called_unwritten(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Cast", ["input"], ["output"], name="/cast", to=TensorProto.UINT8)]
    path = models.save(
        tmp_path / "m.onnx",
        nodes,
        {"input": ["batch_size", 2]},
        {"output": ["batch_size", 2]},
        dtypes={"output": TensorProto.UINT8},
    )
    check = checker(path, pool={"input": np.full((9, 2), 255.0, np.float32)})
    assert check.check(8) == []


def test_row_errors_are_relative_to_each_row() -> None:
    reference = np.array([[3.0, 4.0], [300.0, 400.0], [0.0, 0.0], [0.0, 0.0], [np.nan, 1.0], [1.0, 1.0], [np.inf, 1.0]])
    rows = np.array([[3.0, 4.5], [300.0, 400.5], [0.0, 0.0], [0.0, 1e-9], [np.nan, 1.0], [np.nan, 1.0], [np.inf, 1.0]])
    assert row_errors(rows, reference).tolist() == pytest.approx([0.1, 0.001, 0, np.inf, 0, np.inf, 0])


def test_integers_are_compared_exactly() -> None:
    reference = np.array([[2**62 + 1], [5]], np.int64)
    bad, _ = wrong_rows(np.array([[2**62], [5]], np.int64), reference, tolerance("int64"))
    assert bad.tolist() == [0]


def test_the_tolerance_follows_type_and_precision() -> None:
    assert tolerance("int64", "tf32") == 0
    assert tolerance("bool") == 0
    assert tolerance("float32") == 1e-4
    assert tolerance("float32", "tf32") == 2e-3
    assert tolerance("float64", "fp32") == 1e-9
    assert tolerance("float32", "int8") > tolerance("float32", "fp16")
    assert tolerance("float64") < tolerance("float32") < tolerance("float16") < tolerance("bfloat16")


def test_rows_follow_the_batch_axis() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    assert rows_of(array, TensorSpec("x", "int64", (2, "batch_size", 4), 1)).tolist()[1] == [4, 5, 6, 7, 16, 17, 18, 19]
    with pytest.raises(ValueError, match="no batch axis"):
        rows_of(array, TensorSpec("x", "int64", (2, 3, 4), None))


def test_random_inputs_stay_in_their_range() -> None:
    specs = (
        TensorSpec("ids", "int64", ("batch_size", 50), 0, (3, 9)),
        TensorSpec("image", "float16", ("batch_size", 4)),
        TensorSpec("bytes", "uint8", ("batch_size", 400)),
        TensorSpec("mask", "bool", ("batch_size", 50)),
        TensorSpec("mystery", "int32", ("batch_size", 50)),
    )
    drawn = random_inputs(specs, 3, seed=0)
    assert {name: (array.dtype.name, array.shape[0]) for name, array in drawn.items()} == {
        spec.name: (spec.dtype, 3) for spec in specs
    }
    assert set(drawn["ids"].ravel().tolist()) == set(range(3, 10))
    assert drawn["bytes"].max() > 200
    assert set(drawn["mask"].ravel().tolist()) == {False, True}
    assert set(drawn["mystery"].ravel().tolist()) == {0, 1}
    assert not np.array_equal(drawn["image"][0], drawn["image"][1])
    again = random_inputs(specs, 3, seed=0)
    assert all(np.array_equal(drawn[name], again[name]) for name in drawn)
