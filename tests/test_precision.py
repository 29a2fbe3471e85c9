"""Precision end to end on the CPU: ModelOpt converts, ONNX Runtime runs what came out, float32 is the oracle."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests import models
from tests.test_build import refused
from trtbatch import optional
from trtbatch.artifacts import load
from trtbatch.backends.onnxruntime import OnnxReference
from trtbatch.build import foreign
from trtbatch.precision import MODELOPT_PYTHON, ConversionRequest, convert
from trtbatch.rows import row_errors
from trtbatch.typedgraph import kinds, products, scales

Cli = Callable[..., Any]

pytestmark = pytest.mark.skipif(not optional.is_installed("modelopt"), reason="needs nvidia-modelopt")

X = np.random.default_rng(3).standard_normal((6, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def model(folder: Path) -> Path:
    """``m.onnx``, the small classifier, in the working directory, and an empty ``engines/``."""
    (folder / "engines").mkdir()
    return models.classifier(folder / "m.onnx")


def build(cli: Cli, *options: object) -> Any:
    return cli("build", "m.onnx", "--max", 8, "--opt", 4, "--backend", "onnxruntime", *options)


def errors(engine: Path, onnx_file: Path, samples: np.ndarray[Any, Any] = X) -> float:
    """Largest relative error of a row, engine file against float32, both run by ONNX Runtime."""
    wanted = OnnxReference(onnx_file)({"input": samples})["output"]
    return float(row_errors(OnnxReference(engine)({"input": samples})["output"].astype(np.float32), wanted).max())


def test_fp16_is_converted_built_verified_and_recorded(cli: Cli, folder: Path, model: Path) -> None:
    result = build(cli, "--precision", "fp16")
    assert result.exit_code == 0, result.output
    assert "the speed isn't" in result.output and "off by" in result.output
    engine, typed = folder / "engines/m.fp16.ort.onnx", folder / "engines/m.fp16.onnx"
    assert kinds(onnx.load(str(typed))) == {"fp16"}
    assert 0 < errors(typed, model) < 2e-3 and errors(engine, model) < 2e-3
    sidecar = load(engine, "engine").sidecar
    assert (sidecar.precision_asked, sidecar.precision_realised) == ("fp16", "fp16")
    assert sidecar.source is not None and sidecar.source.file == "m.onnx"
    assert sidecar.converted == load(typed, "onnx").sidecar.artifact
    assert sidecar.accuracy is not None and 0 < sidecar.accuracy.l2_rel < 2e-3
    assert sidecar.accuracy.reference == "m.onnx" and sidecar.accuracy.top1 is not None
    assert sidecar.conversion is not None and sidecar.conversion.tools["modelopt"]
    assert [spec.dtype for spec in (*sidecar.inputs, *sidecar.outputs)] == ["float32", "float32"]
    result = cli("verify", engine)
    assert result.exit_code == 0 and "m.onnx" in result.output, result.output
    result = cli("bench", engine, "--batch", 1, "--iterations", 5, "--json", "r.json")
    assert "accuracy: off by" in result.output
    assert json.loads((folder / "r.json").read_text())["accuracy"]["reference"] == "m.onnx"
    assert "converted to fp16 by modelopt" in cli("inspect", engine).output.replace("  ", " ")


def test_a_conversion_is_used_again_by_hash(cli: Cli, folder: Path, model: Path) -> None:
    assert build(cli, "--precision", "fp16").exit_code == 0
    typed = folder / "engines/m.fp16.onnx"
    first = typed.stat().st_mtime_ns
    again = build(cli, "--precision", "fp16")
    assert "converted before" in again.output and typed.stat().st_mtime_ns == first
    for changed in (["--keep-fp32", "Gemm"], ["--calibration", 3], ["--io-precision", "fp16"]):
        assert "converted before" not in build(cli, "--precision", "fp16", *changed).output
    assert "converted before" in build(cli, "--precision", "fp16", "--io-precision", "fp16").output
    shutil.copy(models.classifier(folder / "other.onnx", size=16), model)
    assert "converted before" not in build(cli, "--precision", "fp16", "--shape", "input=3,16,16").output
    typed.write_bytes(typed.read_bytes()[:-10])
    assert "converted before" not in build(cli, "--precision", "fp16").output


def test_a_file_that_is_no_conversion_is_never_replaced(cli: Cli, folder: Path, model: Path) -> None:
    own = models.classifier(folder / "engines/m.fp16.onnx")
    before = own.read_bytes()
    refused(build(cli, "--precision", "fp16"), 2, "m.fp16.onnx is in the way", "--output")
    assert own.read_bytes() == before


def test_int8_from_real_samples(cli: Cli, folder: Path, model: Path) -> None:
    np.savez(folder / "calib.npz", input=np.random.default_rng(9).standard_normal((40, 3, 8, 8)).astype(np.float32))
    result = build(cli, "--precision", "int8", "--calibration", "calib.npz", "--calibration-method", "max")
    assert result.exit_code == 0, result.output
    assert "RANDOM" not in result.output
    typed = onnx.load(str(folder / "engines/m.int8.onnx"))
    assert kinds(typed) == {"int8"} and typed.opset_import[0].version == 17
    values = [numpy_helper.to_array(tensor) for tensor in scales(typed)]
    assert values and all(value.dtype == np.float32 and (value > 0).all() for value in values)
    assert 1e-4 < errors(folder / "engines/m.int8.onnx", model) < 0.1
    sidecar = load(folder / "engines/m.int8.ort.onnx", "engine").sidecar
    assert sidecar.conversion is not None and sidecar.conversion.calibration == "40 samples of calib.npz"
    assert sidecar.accuracy is not None and "samples of calib.npz" in sidecar.accuracy.samples
    assert sidecar.conversion.method == "max"


def test_random_calibration_is_a_loud_warning_that_stays(cli: Cli, folder: Path, model: Path) -> None:
    result = build(cli, "--precision", "int8", "--calibration", 7)
    assert result.exit_code == 0, result.output
    assert "warning: RANDOM CALIBRATION: the ranges of int8 come from 7 random samples" in result.output
    for command in (["bench", "--batch", 1, "--iterations", 3], ["infer", "--input", "random"], ["verify"]):
        assert "warning: calibration: 7 random samples (seed 0)" in cli(*command).output


def test_what_is_kept_in_float32_stays_there(cli: Cli, folder: Path, model: Path) -> None:
    for name, stays in (("Gemm", "/head"), ("/conv", "/conv"), ("/he*", "/head")):
        assert build(cli, "--precision", "fp16", "--keep-fp32", name).exit_code == 0
        conversion = load(folder / "engines/m.fp16.onnx", "onnx").sidecar.conversion
        assert conversion is not None and conversion.stayed == (stays,)
    refused(build(cli, "--precision", "fp16", "--keep-fp32", "Gem"), 2, "--keep-fp32 Gem: m.onnx has no such", "Gemm")
    everything = build(cli, "--precision", "fp16", "--keep-fp32", "Gemm", "--keep-fp32", "Conv")
    refused(everything, 1, "has no product that ModelOpt changes: nothing of it computes in fp16")


def test_inputs_and_outputs_keep_their_types_unless_told(cli: Cli, folder: Path, model: Path) -> None:
    assert build(cli, "--precision", "fp16", "--io-precision", "fp16").exit_code == 0
    sidecar = load(folder / "engines/m.fp16.ort.onnx", "engine").sidecar
    assert [spec.dtype for spec in (*sidecar.inputs, *sidecar.outputs)] == ["float16", "float16"]
    np.save(folder / "x.npy", X.astype(np.float16))
    assert cli("infer", "--input", "x.npy", "--output", "y.npz").exit_code == 0
    found = np.load(folder / "y.npz")["output"]
    wanted = OnnxReference(model)({"input": X})["output"]
    assert found.dtype == np.float16 and row_errors(found.astype(np.float32), wanted).max() < 1e-2
    assert cli("verify").exit_code == 0


def test_best_takes_the_fastest_within_the_tolerance(cli: Cli, folder: Path, model: Path) -> None:
    result = build(cli, "--precision", "best")
    assert result.exit_code == 0, result.output
    for line in ("tf32  out: ONNX Runtime on the CPU computes nothing in tf32", "int8  out: not tried without real"):
        assert line in result.output
    sidecar = load(folder / "engines/m.best.ort.onnx", "engine").sidecar
    tried = {each["precision"]: each for each in sidecar.build["candidates"]}
    assert sidecar.precision_asked == "best" and sidecar.build["tolerance"] == 1e-2
    assert tried["fp32"]["ms"]["4"] > 0 and tried["fp16"]["ms"]["4"] > 0
    timed = {name: each["ms"]["4"] for name, each in tried.items() if "ms" in each}
    assert sidecar.precision_realised == min(timed, key=lambda name: timed[name])
    strict = build(cli, "--precision", "best", "--tolerance", 1e-5)
    assert strict.exit_code == 0 and "fp16  out: " in strict.output and "(limit 1e-05)" in strict.output
    assert load(folder / "engines/m.best.ort.onnx", "engine").sidecar.precision_realised == "fp32"


def test_a_tolerance_that_is_not_kept_leaves_no_engine(cli: Cli, folder: Path, model: Path) -> None:
    refused(build(cli, "--precision", "int8", "--tolerance", 1e-6), 1, "differs from m.onnx", "the worst row", "1e-06")
    assert not (folder / "engines/m.int8.ort.onnx").exists()


def test_a_model_of_fixed_batch_is_converted_in_whole_batches(cli: Cli, folder: Path) -> None:
    models.classifier(folder / "m.onnx", batch=4)
    result = cli("build", "m.onnx", "--backend", "onnxruntime", "--precision", "int8", "--calibration", 6)
    assert result.exit_code == 0, result.output
    assert "8 random samples" in result.output
    np.save(folder / "few.npy", X[:3])
    result = cli("build", "m.onnx", "--backend", "onnxruntime", "--precision", "int8", "--calibration", "few.npy")
    refused(result, 2, "few.npy has 3 samples, and the model a fixed batch of 4", "give more")


def test_values_that_float16_cannot_hold_stay_in_float32(cli: Cli, folder: Path) -> None:
    """AutoCast sees x·1e4 squared on the samples, and the engine is right where plain fp16 would be NaN."""
    models.overflowing(folder / "m.onnx")
    result = build(cli, "--precision", "fp16")
    assert result.exit_code == 0, result.output
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    assert errors(folder / "engines/m.fp16.onnx", folder / "m.onnx", x) < 2e-3


def test_an_overflow_in_a_half_precision_file_is_named(cli: Cli, folder: Path) -> None:
    models.overflowing(folder / "m.onnx", TensorProto.FLOAT16)
    result = build(cli)
    assert "/square/Mul (Mul)" in result.output and "overflow" in result.output
    assert "Traceback" not in result.output


def test_a_converted_file_can_be_named_and_is_held_against_its_source(cli: Cli, folder: Path, model: Path) -> None:
    assert build(cli, "--precision", "fp16").exit_code == 0
    result = cli("build", "engines/m.fp16.onnx", "--max", 4, "--backend", "onnxruntime")
    assert result.exit_code == 0 and "against m.onnx" in result.output, result.output
    refused(
        cli("build", "engines/m.fp16.onnx", "--backend", "onnxruntime", "--precision", "int8"), 2, "is in fp16 already"
    )
    model.unlink()
    result = cli("build", "engines/m.fp16.onnx", "--max", 4, "--backend", "onnxruntime")
    assert result.exit_code == 0 and "the accuracy is taken against itself" in result.output


def test_the_newest_onnx_is_never_a_conversion(cli: Cli, folder: Path) -> None:
    (folder / "engines").mkdir()
    models.classifier(folder / "engines/m.onnx")
    assert cli("build", "engines/m.onnx", "--backend", "onnxruntime", "--precision", "fp16").exit_code == 0
    refused(cli("build", "--backend", "onnxruntime"), 1, "no ONNX file in engines/")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--precision", "tf32"], "ONNX Runtime on the CPU computes nothing in tf32"),
        (["--precision", "bf16"], "ONNX Runtime on the CPU computes nothing in bf16"),
        (["--precision", "fp8"], "ONNX Runtime on the CPU computes nothing in fp8"),
        (["--precision", "half"], "--precision 'half' is none"),
        (["--calibration", "x"], "--calibration mean something for reduced precisions only"),
        (["--keep-fp32", "Conv", "--precision", "fp32"], "--keep-fp32 mean something for reduced precisions only"),
        (["--io-precision", "fp16"], "--io-precision fp16 goes with --precision fp16"),
        (["--tolerance", "0.1", "--no-verify"], "--tolerance is for the check that --no-verify leaves out"),
        (["--precision", "best", "--no-verify"], "--precision best needs the check"),
        (["--precision", "int8", "--calibration", "nowhere"], "nowhere: no such file"),
        (["--precision", "int8", "--calibration", "0"], "--calibration 0: not a number of samples"),
        (["--tolerance", "inf"], "lets everything pass"),
        (["--version-compatible"], "--version-compatible is an option of TensorRT"),
        (["--hardware-compatible"], "--hardware-compatible is an option of TensorRT"),
        (["--aux-streams", "0"], "--aux-streams is an option of TensorRT"),
        (["--sparsity"], "--sparsity is an option of TensorRT"),
        (["--refit"], "--refit is an option of TensorRT"),
        (["--strip-weights"], "--strip-weights is an option of TensorRT"),
        (["--weight-streaming"], "--weight-streaming is an option of TensorRT"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(cli: Cli, model: Path, options: list[str], told: str) -> None:
    result = build(cli, *options)
    refused(result, result.exit_code, told)
    assert result.exit_code in (1, 2)


def test_without_modelopt_both_ways_to_get_it_are_named(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "is_installed", lambda name: False)
    refused(build(cli, "--precision", "fp16"), 1, "nvidia-modelopt is needed", "[precision]", MODELOPT_PYTHON)
    monkeypatch.setenv(MODELOPT_PYTHON, "no-such-python")
    refused(build(cli, "--precision", "fp16"), 1, f"{MODELOPT_PYTHON}=no-such-python: no such program")


def test_modelopt_may_live_in_another_environment(
    cli: Cli, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter that is named runs it, whatever this environment has; this one's path doesn't get in there."""
    monkeypatch.setattr(optional, "is_installed", lambda name: False)
    (folder / "poison").mkdir()
    (folder / "poison" / "modelopt.py").write_text("raise ImportError('of another environment')")
    monkeypatch.setenv("PYTHONPATH", str(folder / "poison"))
    monkeypatch.setenv(MODELOPT_PYTHON, sys.executable)
    result = build(cli, "--precision", "fp16")
    assert result.exit_code == 0, result.output


def test_modelopts_own_failure_is_one_line(
    cli: Cli, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "broken").mkdir()
    (folder / "broken" / "modelopt.py").write_text("raise ImportError('half installed')")
    monkeypatch.setenv("PYTHONPATH", str(folder / "broken"))
    refused(build(cli, "--precision", "fp16"), 1, "ModelOpt can't convert m.onnx to fp16", "half installed")


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_types_that_decide_alone_are_right_by_the_onnx_specification(folder: Path, kind: str) -> None:
    """For strongly typed networks the rest is fp16, scales too: ONNX Runtime has no such kernels that round right
    (1.24's QuantizeLinear of float16 cuts instead of rounding), onnx's own evaluator has."""
    (folder / "engines").mkdir()
    source = foreign(models.wide(folder / "n.onnx"))
    made = convert(source, ConversionRequest(kind, rest="fp16", calibration="16", folder=folder / "engines"))
    typed = onnx.load(str(made.path))
    assert kinds(typed) == {kind, "fp16"} and "/second" in products(typed)
    values = [numpy_helper.to_array(tensor) for tensor in scales(typed)]
    assert values and all(value.dtype == np.float16 and (value > 0).all() for value in values)
    x = np.random.default_rng(3).standard_normal((6, 32, 8, 8)).astype(np.float32)
    found = ReferenceEvaluator(typed).run(None, {"input": x})[0]
    wanted = OnnxReference(source.path)({"input": x})["output"]
    assert 1e-4 < row_errors(np.asarray(found, np.float32), wanted).max() < 0.1
