"""``verify``: against references, row by row, and what it says of wrong engines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.support import models
from tests.support.arrays import read_npz
from tests.support.messages import refused
from trtbatch.core.rows import Limit, compare, named_rows, valid_only
from trtbatch.verification import verify as verify_module
from trtbatch.verification.verify import VerifyRequest, plan_verify

Cli = Callable[..., Any]


def test_a_right_engine_passes_at_every_corner(cli: Cli, engine: Path, folder: Path) -> None:
    result = cli("verify", "--json", "v.json")
    assert result.exit_code == 0, result.output
    assert "right: every sample of small.ort.onnx was looked at, batch 1, 4, 8" in result.output
    data = json.loads((folder / "v.json").read_text())
    assert data["passed"]
    assert data["findings"] == []
    assert len(data["checks"]) == 6
    assert [(entry["batch"], len(entry["rows"])) for entry in data["outputs"]] == [(1, 1), (4, 4), (8, 8)]
    for entry in data["outputs"]:
        assert entry["top1_agreement"] == 1.0
        assert entry["limit"] == "1e-04"
        for row in entry["rows"]:
            assert row["passed"]
            assert row["l2_rel"] < 1e-5
            assert row["cosine"] > 0.999999
            assert row["nan"] == 0


def test_a_plan_says_where_each_value_came_from_and_opens_nothing(
    engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "open_engine", lambda artifact, device: pytest.fail("the engine was opened"))
    plan = plan_verify(VerifyRequest(None))
    assert plan.artifact.path.name == engine.name
    assert plan.batches == (1, 4, 8)
    assert plan.reference is not None
    assert plan.pool["input"].shape == (9, 3, 8, 8)
    assert plan.limit is None
    assert plan.origins == {
        "engine": "the newest in engines/ that runs here",
        "batches": "min, opt and max of every profile",
        "reference": "the ONNX file that the sidecar names",
        "samples": "random, seed 42",
        "limit": "the outputs' dtypes and the engine's precision",
    }
    np.save(folder / "x.npy", np.zeros((3, 3, 8, 8), np.float32))
    plan = plan_verify(VerifyRequest(engine, "none", [2], "x.npy", rtol=0.1))
    assert plan.batches == (2,)
    assert plan.reference is None
    assert plan.limit == Limit(0.0, 0.1, None)
    assert set(plan.origins.values()) == {"given"}
    plan = plan_verify(VerifyRequest(engine, "none", [4], "x.npy", seed=7))
    assert plan.origins["samples"] == "given; the other 2 random, seed 7"
    assert [bool(row.any()) for row in plan.pool["input"]] == [False, False, False, True, True]
    np.savez(folder / "s.npz", input=np.zeros((4, 3, 8, 8), np.float32), output=np.zeros((4, 5), np.float32))
    plan = plan_verify(VerifyRequest(engine, "s.npz", [4]))
    assert plan.origins["samples"] == "the saved outputs' own inputs; the other 1 random, seed 42"


def test_the_articles_bug_is_named_in_plain_words(cli: Cli, folder: Path) -> None:
    models.first_row_only(folder / "m.onnx")
    assert cli("build", "m.onnx", "--max", 8, "--no-verify").exit_code == 0
    result = cli("verify", "--batch", 8, "--against", "none")
    assert result.exit_code == 1
    assert "wrong: batch 8, output: rows 1–7 are all zero" in result.output
    assert "WRONG" in result.output
    assert "Traceback" not in result.output


def test_a_reshape_that_fixes_the_batch_is_named(cli: Cli, folder: Path) -> None:
    models.reshaped_to(folder / "m.onnx", 1)
    models.reshaped_to(folder / "right.onnx", 4)
    assert cli("build", "right.onnx", "--static", 4).exit_code == 0
    refused(cli("build", "m.onnx", "--max", 8, "--no-verify"), 1, "node /flatten/Reshape (Reshape)")


def test_an_engine_that_differs_from_its_reference_is_found_row_by_row(cli: Cli, engine: Path, folder: Path) -> None:
    samples = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)
    np.save(folder / "x.npy", samples)
    assert cli("infer", "--input", "x.npy", "--output", "saved.npz").exit_code == 0
    assert cli("verify", "--against", "saved.npz", "--input", "x.npy", "--batch", "1,8").exit_code == 0
    saved = read_npz(folder / "saved.npz")["output"]
    saved[2] += 0.5
    saved[5, 0] = np.nan
    np.savez(folder / "other.npz", output=saved)
    result = cli("verify", "--against", "other.npz", "--input", "x.npy", "--batch", "2,8", "--json", "v.json")
    assert result.exit_code == 1
    assert "WRONG: rows 2, 5" in result.output
    data = json.loads((folder / "v.json").read_text())
    assert data["outputs"][0]["passed"]
    assert not data["outputs"][1]["passed"]
    rows = data["outputs"][1]["rows"]
    assert [row["sample"] for row in rows if not row["passed"]] == [2, 5]
    assert rows[5]["max_abs"] == "inf"
    assert data["findings"] == [], "alone it is consistent"


def test_rtol_and_atol_replace_the_limit(cli: Cli, engine: Path, folder: Path) -> None:
    assert cli("infer", "--input", "random", "--count", 4, "--output", "s.npz").exit_code == 0
    saved = read_npz(folder / "s.npz")["output"]
    np.savez(folder / "s.npz", output=saved + np.float32(0.01))
    line = ("verify", "--against", "s.npz", "--input", "random", "--seed", 42, "--batch", 4)
    assert cli(*line).exit_code == 1
    assert cli(*line, "--atol", 0.02).exit_code == 0
    assert cli(*line, "--atol", 0.005, "--rtol", 0).exit_code == 1


@pytest.mark.torch
def test_photographs_can_be_the_samples(cli: Cli, folder: Path, photos: Path) -> None:
    assert cli("export", "tests.support.zoo:photos", "--dynamic").exit_code == 0
    assert cli("build", "--max", 4, "--opt", 4).exit_code == 0
    result = cli("verify", "--input", photos, "--against", "torch")
    assert result.exit_code == 0, result.output
    assert "reference: torch" in result.output
    assert "tests.support.zoo:photos" in result.output


@pytest.mark.torch
def test_torch_is_the_model_that_was_exported(cli: Cli, folder: Path) -> None:
    line = ("export", "squeezenet1_1", "--dynamic", "--weights", "random", "--seed", 5, "--input-shape", "3,64,64")
    assert cli(*line).exit_code == 0
    assert cli("build", "--max", 2).exit_code == 0
    assert cli("verify", "--against", "torch").exit_code == 0
    assert cli("export", "tests.support.zoo:two_in", "--dynamic").exit_code == 0
    assert cli("build", "--max", 3).exit_code == 0
    assert cli("verify", "--against", "torch").exit_code == 0


def test_the_onnx_file_is_found_by_its_hash_wherever_the_engine_lies(cli: Cli, folder: Path) -> None:
    (folder / "models").mkdir()
    path = models.classifier(folder / "models/m.onnx")
    assert cli("build", path, "--max", 4).exit_code == 0
    assert "reference: ONNX Runtime" in cli("verify").output
    content = path.read_bytes()
    models.classifier(path, size=4)
    result = cli("verify")
    assert result.exit_code == 0
    assert "no reference:" in result.output
    assert "SHA-256 differs" in result.output
    refused(cli("verify", "--against", "onnxruntime"), 1, "is not the file that m.ort.onnx was built from")
    path.unlink()
    refused(cli("verify", "--against", "onnxruntime"), 1, "m.onnx, from which m.ort.onnx was built, isn't in")
    (folder / "engines/m.onnx").write_bytes(content)
    assert cli("verify", "--against", "onnxruntime").exit_code == 0


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("--against", "tensorflow"), 2, "--against tensorflow: no such reference"),
        (("--against", "none.npz"), 2, "none.npz: no such file"),
        (("--against", "torch"), 1, "doesn't say which torch model"),
        (("--batch", "9"), 2, "batch 9 is outside every profile"),
        (("--input", "none/"), 2, "no such file, folder or match"),
        (("--device", "1"), 2, "--device 1 names a GPU"),
    ],
)
def test_wrong_words(cli: Cli, engine: Path, args: tuple[str, ...], code: int, told: str) -> None:
    refused(cli("verify", *args), code, told)


def test_saved_outputs_without_inputs_ask_for_them(cli: Cli, engine: Path, folder: Path) -> None:
    np.savez(folder / "s.npz", output=np.zeros((2, 5), np.float32))
    refused(cli("verify", "--against", "s.npz", "--batch", 2), 2, "hold no inputs", "--input")
    refused(cli("verify", "--against", "s.npz", "--input", "random"), 2, "fewer than batch 8")
    np.savez(folder / "s.npz", something=np.zeros((2, 5)))
    refused(cli("verify", "--against", "s.npz", "--input", "random"), 1, "none of the outputs output")
    (folder / "s.npz").write_bytes(b"PK")
    refused(cli("verify", "--against", "s.npz", "--input", "random"), 1, "can't be read")


def test_comparisons_are_those_of_their_definitions() -> None:
    reference = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [1.0, 2.0]])
    rows = np.array([[3.0, 3.0], [0.0, 2.0], [0.0, 0.0], [np.nan, np.inf]])
    found = compare(rows, reference, Limit(0.25), class_scores=True)
    assert found.max_abs.tolist() == [1.0, 2.0, 0.0, np.inf]
    assert found.max_rel.tolist() == [0.25, np.inf, 0.0, np.inf]
    assert found.l2_rel[:3].tolist() == pytest.approx([0.2, np.sqrt(5.0), 0.0])
    assert found.cosine[:3].tolist() == pytest.approx([21 / (5 * np.sqrt(18)), 0.0, 1.0])
    assert found.top1 is not None
    assert found.top1.tolist()[:2] == [False, False]
    assert found.nan.tolist() == [0, 0, 0, 1]
    assert found.inf.tolist() == [0, 0, 0, 1]
    assert found.passed.tolist() == [True, False, True, False]
    close = compare(rows, reference, Limit(0.0, rtol=0.0, atol=1.0))
    assert close.passed.tolist() == [True, False, True, False]


def test_integers_beyond_the_precision_of_floats_are_told_apart() -> None:
    found = compare(np.array([[2**62 + 1]], np.int64), np.array([[2**62]], np.int64), Limit(0.0))
    assert found.passed.tolist() == [False]


def test_rows_have_names() -> None:
    assert [named_rows(rows) for rows in ([], [0], [1, 2, 3], [0, 2, 3])] == [
        "elements",
        "row 0",
        "rows 1–3",
        "rows 0, 2, 3",
    ]


def test_only_valid_detections_are_kept() -> None:
    from trtbatch.core.tensors import TensorSpec

    specs = (
        TensorSpec("n", "int32", ("batch_size", 1)),
        TensorSpec("boxes", "float32", ("batch_size", 3, 2), counted_by="n"),
    )
    boxes = np.arange(12, dtype=np.float32).reshape(2, 3, 2) + 1
    kept = valid_only({"n": np.array([[1], [3]]), "boxes": boxes}, specs)["boxes"]
    assert kept[0].tolist() == [[1, 2], [0, 0], [0, 0]]
    assert np.array_equal(kept[1], boxes[1])


def test_few_samples_are_joined_by_random_ones(cli: Cli, folder: Path) -> None:
    """One sample in turn would make every row alike, and every leak invisible."""
    models.leaking(folder / "m.onnx")
    assert cli("build", "m.onnx", "--max", 8, "--no-verify").exit_code == 0
    np.save(folder / "one.npy", np.ones((1, 6), np.float32))
    result = cli("verify", "--input", "one.npy")
    assert result.exit_code == 1
    assert "8 random ones are added" in result.output
    assert "differ from the same samples run alone" in result.output


@pytest.mark.torch
def test_saved_rows_are_compared_with_their_own_samples(cli: Cli, folder: Path, photos: Path) -> None:
    import shutil

    assert cli("export", "tests.support.zoo:photos", "--dynamic").exit_code == 0
    assert cli("build", "--max", 8, "--opt", 8).exit_code == 0
    shutil.copytree(photos, folder / "in")
    (folder / "in/b.jpg").write_text("no image")
    assert cli("infer", "--input", "in", "--output", "s.npz").exit_code == 1
    assert cli("verify", "--against", "s.npz", "--input", "in").exit_code == 0, "the unusable one is passed over alike"
    (folder / "in/astronaut.png").unlink()
    refused(
        cli("verify", "--against", "s.npz", "--input", "in"), 1, "row 0 of the saved", "astronaut.png", "camera.png"
    )
    saved = read_npz(folder / "s.npz")["output"]
    np.savez(folder / "t.npz", output=saved[:8], input=np.zeros((3, 3, 16, 16), np.float32))
    refused(cli("verify", "--against", "t.npz"), 1, "the numbers of samples differ")
    np.savez(folder / "t.npz", output=np.float32(3))
    refused(cli("verify", "--against", "t.npz", "--input", photos), 1, "output has shape (), and no rows")


def test_infer_and_verify_draw_the_same_random_samples(cli: Cli, engine: Path, folder: Path) -> None:
    assert cli("infer", "--input", "random", "--count", 8, "--output", "s.npz").exit_code == 0
    assert cli("verify", "--against", "s.npz", "--input", "random").exit_code == 0
    assert cli("verify", "--against", "s.npz", "--input", "random", "--seed", 1).exit_code == 1


def test_outputs_that_a_reference_lacks_are_said_to_be(cli: Cli, folder: Path) -> None:
    models.passed_through(folder / "m.onnx")
    assert cli("build", "m.onnx", "--max", 4).exit_code == 0
    assert cli("infer", "--input", "random", "--count", 4, "--output", "s.npz").exit_code == 0
    np.savez(folder / "t.npz", same=read_npz(folder / "s.npz")["same"])
    result = cli("verify", "--against", "t.npz", "--input", "random")
    assert result.exit_code == 0
    assert "holds no 'negated': that output is not compared" in result.output


def test_what_is_read_is_not_written(cli: Cli, engine: Path, folder: Path) -> None:
    np.save(folder / "x.json", np.zeros((2, 3, 8, 8), np.float32))
    refused(cli("verify", "--input", "x.json", "--json", "x.json"), 2, "named twice")
    refused(cli("verify", "--json", "small.onnx"), 2, "small.onnx doesn't end in .json")
    refused(cli("verify", "--rtol", "inf"), 2, "--rtol inf lets everything pass")


def test_the_newest_engine_that_takes_the_batches_is_taken(cli: Cli, engine: Path, folder: Path) -> None:
    assert cli("build", "small.onnx", "--static", 2).exit_code == 0
    assert "engines/small.ort.onnx" in cli("verify", "--batch", "1,8").output
    assert "engines/small_b2.ort.onnx" in cli("verify", "--batch", 2).output
    refused(cli("bench", "--batch", 9), 2, "batch 9 is outside every profile of small_b2.ort.onnx")


def test_rows_of_nan_are_told_and_so_is_a_reference_of_one_batch(cli: Callable[..., Any], engine: Path) -> None:
    np.save("nan.npy", np.full((8, 3, 8, 8), np.nan, np.float32))
    done = cli("verify", engine, "--input", "nan.npy", "--batch", 4)
    assert "output, batch 4: 4 of 4 rows hold NaN or infinities, as the reference's do" in " ".join(done.output.split())
    done = cli("infer", engine, "--input", "nan.npy", "--batch", 4, "--output", "p.csv")
    assert "the scores of 8 of 8 samples are NaN" in done.output
    model = onnx.load("small.onnx")
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, "fixed.onnx")
    done = cli("verify", engine, "--against", "fixed.onnx", "--batch", 1)
    assert done.exit_code == 2
    assert "fixed.onnx has a fixed batch of 4, and can't be given 1" in done.output
    assert cli("verify", engine, "--against", "fixed.onnx", "--batch", 4).exit_code == 0
