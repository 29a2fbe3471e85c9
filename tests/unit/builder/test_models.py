"""Models that break tools: what build, infer and verify make of each, on ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from tests.support import models
from tests.support.arrays import read_npz
from tests.support.messages import nothing_left, refused
from trtbatch.core.store import load
from trtbatch.onnx_graph.run import OnnxReference

Cli = Callable[..., Any]


def built(cli: Cli, path: Path, *args: object) -> Any:
    """Build with ``--max 8`` (or `args`), and the sidecar."""
    result = cli("build", path, *(args or ("--max", 8)))
    assert result.exit_code == 0, result.output
    return load(path.parent / "engines" / f"{path.stem}.ort.onnx", "engine").sidecar


@pytest.mark.parametrize(("rows", "wrong_at"), [(1, "3"), (8, "1"), (8, "3")])
def test_a_constant_in_a_reshape_fails_wherever_it_is_not_the_batch(
    cli: Cli, folder: Path, rows: int, wrong_at: str
) -> None:
    path = models.reshaped_to(folder / "m.onnx", rows)
    refused(cli("build", path, "--profile", f"{wrong_at}:{wrong_at}:8"), 1, f"has the constant [{rows}, 12]")
    assert nothing_left(folder)


def test_rows_that_leak_through_a_folded_batch(cli: Cli, folder: Path) -> None:
    path = models.folded(folder / "m.onnx")
    refused(cli("build", path, "--max", 8), 1, "differ from the same samples run alone")
    assert cli("build", path, "--max", 8, "--no-verify").exit_code == 0
    result = cli("verify", "--batch", "1,3")
    assert result.exit_code == 1
    assert "batch 3, output: rows 0–2 differ from the same samples run alone" in result.output
    assert cli("verify", "--batch", 1).exit_code == 0
    # Against its own ONNX file it agrees: only the checks without a reference see it.
    verdict = cli("verify", "--batch", 3, "--json", "v.json")
    data = json.loads((folder / "v.json").read_text())
    assert verdict.exit_code == 1
    assert not data["passed"]
    assert data["outputs"][0]["passed"]


def test_a_leak_that_singles_do_not_show_is_found_by_changing_the_neighbours(cli: Cli, folder: Path) -> None:
    """At min = max = 4 a "single" is a batch of four copies, which the mean of the batch leaves alone."""
    path = models.leaking(folder / "m.onnx")
    assert cli("build", path, "--static", 4, "--no-verify").exit_code == 0
    result = cli("verify")
    assert result.exit_code == 1
    assert "differ from the same samples run alone" in result.output


def test_an_image_with_a_fixed_companion_takes_it_as_a_constant(cli: Cli, folder: Path) -> None:
    sidecar = built(cli, models.two_inputs(folder / "m.onnx", "batch_size", 1))
    assert [spec.batch_axis for spec in sidecar.inputs] == [0, None]
    left = np.arange(20, dtype=np.float32).reshape(5, 4)
    np.savez(folder / "x.npz", left=left, right=np.ones((1, 4), np.float32))
    assert cli("infer", "--input", "x.npz", "--output", "y.npz").exit_code == 0
    assert np.array_equal(read_npz(folder / "y.npz")["output"], left - 1)


@pytest.mark.parametrize("second", ["2*batch_size", "m"])
def test_batch_axes_of_two_names_are_refused_naming_both(cli: Cli, folder: Path, second: str) -> None:
    models.two_inputs(folder / "m.onnx", "batch_size", second)
    refused(cli("build", "m.onnx"), 2, "'left' (batch_size)", f"'right' ({second})")


def test_names_decide_and_not_the_order(cli: Cli, folder: Path) -> None:
    built(cli, models.shuffled(folder / "m.onnx"))
    a, b = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    np.savez(folder / "x.npz", a=a, b=b)
    assert cli("infer", "--input", "x.npz", "--output", "y.npz").exit_code == 0
    found = read_npz(folder / "y.npz")
    assert np.array_equal(found["difference"], a - b)
    assert np.array_equal(found["doubled"], b + b)


def test_wide_integers_are_exact(cli: Cli, folder: Path) -> None:
    built(cli, models.wide_ids(folder / "m.onnx"))
    ids = np.array([[2**31, 2**40 + 1, 2**62 - 1]] * 3, np.int64)
    mask = np.array([[1, 1, 1], [0, 1, 0], [1, 0, 1]], np.int64)
    np.savez(folder / "x.npz", ids=ids, mask=mask)
    assert cli("infer", "--input", "x.npz", "--output", "y.npz").exit_code == 0
    assert np.array_equal(read_npz(folder / "y.npz")["output"], ids * mask)


@pytest.mark.parametrize(("dtype", "name"), [(TensorProto.DOUBLE, "float64"), (TensorProto.FLOAT16, "float16")])
def test_other_floats_keep_their_type(cli: Cli, folder: Path, dtype: int, name: str) -> None:
    sidecar = built(cli, models.negated(folder / "m.onnx", dtype))
    assert sidecar.inputs[0].dtype == sidecar.outputs[0].dtype == name
    array = np.random.default_rng(0).standard_normal((3, 4)).astype(name)
    np.save(folder / "x.npy", array)
    assert cli("infer", "--input", "x.npy", "--output", "y.npz").exit_code == 0
    assert np.array_equal(read_npz(folder / "y.npz")["output"], -array)
    assert cli("verify").exit_code == 0


def test_outputs_that_are_no_rows_are_recognised_and_left_out(cli: Cli, folder: Path) -> None:
    path = models.summarised(folder / "m.onnx")
    sidecar = built(cli, path)
    assert {spec.name: spec.batch_axis for spec in sidecar.outputs} == {
        "rows": 0,
        "mean": None,
        "total": None,
        "constant": None,
    }
    assert "output total () float32 doesn't follow the batch" in cli("build", path, "--max", 8).output
    np.save(folder / "x.npy", np.ones((5, 4), np.float32))
    result = cli("infer", "--input", "x.npy", "--batch", 2, "--output", "y.npz")
    assert result.exit_code == 0
    assert "output 'mean' has no batch axis" in result.output
    assert set(read_npz(folder / "y.npz")) == {"file", "rows"}
    assert cli("verify", "--batch", "1,2,8").exit_code == 0, "they are compared with the reference whole"


def test_lengths_that_the_data_decides(cli: Cli, folder: Path) -> None:
    path = models.nonzero_twice(folder / "m.onnx")
    sidecar = built(cli, path)
    assert [spec.batch_axis for spec in sidecar.outputs] == [0, None, None]
    assert cli("verify", "--batch", "1,3,8").exit_code == 0
    np.save(folder / "none.npy", np.full((3, 4), -1, np.float32))
    result = cli("verify", "--input", "none.npy", "--batch", 3, "--json", "v.json")
    assert result.exit_code == 0, result.output
    shapes = {entry["output"]: entry["shape"] for entry in json.loads((folder / "v.json").read_text())["outputs"]}
    assert shapes == {"rows": [3, 4], "where_positive": [2, 0], "where_large": [2, 0]}


def test_of_padded_detections_only_the_valid_are_compared(cli: Cli, folder: Path) -> None:
    path = models.detector(folder / "m.onnx")
    sidecar = built(cli, path)
    assert [(spec.name, spec.counted_by) for spec in sidecar.outputs] == [
        ("num_detections", None),
        ("boxes", "num_detections"),
    ]
    assert cli("verify", "--batch", "1,2,8").exit_code == 0
    samples = np.random.default_rng(0).standard_normal((4, 9, 3)).astype(np.float32)
    run = OnnxReference(path)
    together, alone = run({"input": samples}), run({"input": samples[:1]})
    assert not np.allclose(together["boxes"][0], alone["boxes"][0]), "the padding differs, or this proves nothing"


def test_selections_of_a_suppression(cli: Cli, folder: Path) -> None:
    sidecar = built(cli, models.suppressed(folder / "m.onnx"))
    assert {spec.name: spec.batch_axis for spec in sidecar.outputs} == {"selected": None, "best": 0}
    assert cli("verify", "--batch", "1,3").exit_code == 0


def test_an_output_that_is_the_input(cli: Cli, folder: Path) -> None:
    built(cli, models.passed_through(folder / "m.onnx"))
    assert cli("verify").exit_code == 0
    array = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    np.save(folder / "x.npy", array)
    assert cli("infer", "--input", "x.npy", "--batch", 2, "--output", "y.npz").exit_code == 0
    found = read_npz(folder / "y.npz")
    assert np.array_equal(found["same"], array)
    assert np.array_equal(found["negated"], -array)


def test_external_weights_from_another_folder(
    cli: Cli, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = models.external(folder / "m.onnx")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    result = cli("build", path, "--max", 4)
    assert result.exit_code == 0, result.output
    assert cli("verify").exit_code == 0


def test_external_weights_may_not_leave_their_folder(cli: Cli, folder: Path) -> None:
    import onnx

    (folder / "inner").mkdir()
    path = models.external(folder / "inner/m.onnx")
    (folder / "inner/m.onnx.data").rename(folder / "secret")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    path.write_bytes(model.SerializeToString())
    refused(cli("build", path), 1, "'../secret', outside the model's folder")
    absolute = str(folder / "secret")
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = absolute
    path.write_bytes(model.SerializeToString())
    refused(cli("build", path), 1, "outside the model's folder")
    assert nothing_left(folder)


@pytest.mark.parametrize("shape", [("batch_size",), ("batch_size", 0), ("batch_size", 3, 0, 2)])
def test_one_dimension_and_none_at_all(cli: Cli, folder: Path, shape: tuple[int | str, ...]) -> None:
    built(cli, models.negated(folder / "m.onnx", shape=shape))
    array = np.zeros((5, *(int(size) for size in shape[1:])), np.float32) + 1
    np.save(folder / "x.npy", array)
    result = cli("infer", "--input", "x.npy", "--batch", 2, "--output", "y.npz")
    assert result.exit_code == 0, result.output
    assert np.array_equal(read_npz(folder / "y.npz")["output"], -array)
    assert cli("verify").exit_code == 0


def test_odd_names_go_all_the_way(cli: Cli, folder: Path) -> None:
    sidecar = built(cli, models.oddly_named(folder / "m.onnx"))
    assert [spec.name for spec in (*sidecar.inputs, *sidecar.outputs)] == ["bild/größe:0", "出力/scores:0"]
    array = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    arrays: Any = {"bild_größe:0": array}
    np.savez(folder / "x.npz", **arrays)
    assert cli("infer", "--input", "x.npz", "--output", "y.npz").exit_code == 0
    assert np.array_equal(read_npz(folder / "y.npz")["出力_scores:0"], -array)
    assert cli("infer", "--input", "x.npz", "--output", "y.csv").exit_code == 0
    assert "出力/scores:0" in cli("verify").output
    assert cli("verify").exit_code == 0
