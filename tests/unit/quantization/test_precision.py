"""Precision end to end on the CPU: ModelOpt converts, ONNX Runtime runs what came out, float32 is the oracle."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.support import models
from tests.support.arrays import read_npz
from tests.support.messages import refused
from tests.support.processes import child_environment
from trtbatch.backends import open_engine
from trtbatch.builder import candidates
from trtbatch.builder.request import foreign
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.rows import row_errors
from trtbatch.core.sidecar import Artifact
from trtbatch.core.store import load
from trtbatch.core.tensors import TensorSpec
from trtbatch.onnx_graph.dtypes import kinds, products, scales
from trtbatch.onnx_graph.run import OnnxReference
from trtbatch.quantization import converter, modelopt_worker, precision
from trtbatch.quantization.converter import MODELOPT_PYTHON
from trtbatch.quantization.precision import ConversionRequest, convert
from trtbatch.runtime.sources import ImageSource, Sample
from trtbatch.util import optional

Cli = Callable[..., Any]

X = np.random.default_rng(3).standard_normal((6, 3, 8, 8)).astype(np.float32)


_DONE: dict[str, tuple[bytes, dict[str, bytes]]] = {}
"""What ModelOpt said and wrote, by the digest of all that it was given."""


@pytest.fixture(autouse=True)
def the_same_is_not_converted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen tests begin with the same conversion: they are given what ModelOpt wrote.

    It is imported once, here, where no test has changed the environment of its process: that takes longer than to
    convert.
    """
    own, path = converter.run_converter, os.environ.get("PYTHONPATH")

    def run(line: list[str], cwd: Path, environment: dict[str, str], log: Path) -> tuple[int, bytes]:
        given = {path: content(path) for path in sorted(cwd.rglob("*")) if path.is_file()}
        said = [line[0], *(environment.get(name) for name in ("PYTHONPATH", MODELOPT_PYTHON)), *given.values()]
        key = hashlib.sha256(repr(said).replace(str(cwd), "").encode()).hexdigest()
        if key not in _DONE:
            if (
                line[0] == sys.executable
                and MODELOPT_PYTHON not in environment
                and os.environ.get("PYTHONPATH") == path
            ):
                with log.open("a") as stream, redirect_stdout(stream), redirect_stderr(stream):  # as its own process
                    output = json.dumps(modelopt_worker.answer(json.loads(Path(line[-1]).read_text()))).encode()
                code = 0
                for name in ("modelopt.onnx", "modelopt.onnx.autocast"):  # they hold on to that stream
                    logging.getLogger(name).handlers.clear()
            else:
                code, output = own(line, cwd, environment, log)
            if b'"converted"' not in output:
                return code, output
            made = {str(path.relative_to(cwd)): path for path in cwd.rglob("*") if path.is_file() and path not in given}
            _DONE[key] = output, {name: path.read_bytes() for name, path in made.items()}
        output, files = _DONE[key]
        for name, data in files.items():
            (cwd / name).write_bytes(data)
        return 0, output

    monkeypatch.setattr(converter, "run_converter", run)


def content(path: Path) -> bytes:
    """A file's bytes; of an archive those in it, without the time at which it was written."""
    if path.suffix != ".npz":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"".join(name.encode() + archive.read(name) for name in archive.namelist())


@pytest.fixture
def model(folder: Path) -> Path:
    """``m.onnx``, the small classifier, in the working directory, and an empty ``engines/``."""
    (folder / "engines").mkdir()
    return models.classifier(folder / "m.onnx")


def build(cli: Cli, *options: object) -> Any:
    return cli("build", "m.onnx", "--max", 8, "--opt", 4, "--backend", "onnxruntime", *options)


def errors(engine: Path, onnx_file: Path, samples: np.ndarray[Any, Any] = X) -> float:
    """Largest relative error of a row, engine file against float32, both run by ONNX Runtime."""
    wanted = OnnxReference(onnx_file)({"input": samples.astype(np.float32)})["output"]
    return float(row_errors(OnnxReference(engine)({"input": samples})["output"].astype(np.float32), wanted).max())


@pytest.mark.modelopt
def test_fp16_is_converted_built_verified_and_recorded(cli: Cli, folder: Path, model: Path) -> None:
    result = build(cli, "--precision", "fp16")
    assert result.exit_code == 0, result.output
    assert "its speed isn't fp16's" in result.output
    assert "off by" in result.output
    engine, typed = folder / "engines/m.fp16.ort.onnx", folder / "engines/m.fp16.onnx"
    assert kinds(onnx.load(str(typed))) == {"fp16"}
    assert 0 < errors(typed, model) < 2e-3
    assert errors(engine, model) < 2e-3
    sidecar = load(engine, "engine").sidecar
    assert (sidecar.precision.asked, sidecar.precision.realized) == ("fp16", "fp16")
    assert sidecar.source is not None
    assert sidecar.source.file == "m.onnx"
    assert sidecar.source.converted == load(typed, "onnx").sidecar.artifact
    assert sidecar.precision.accuracy is not None
    assert 0 < sidecar.precision.accuracy.l2_rel < 2e-3
    assert sidecar.precision.accuracy.reference == "m.onnx"
    assert sidecar.precision.accuracy.top1 is not None
    assert sidecar.conversion is not None
    assert sidecar.conversion.tools["modelopt"]
    assert [spec.dtype for spec in (*sidecar.inputs, *sidecar.outputs)] == ["float32", "float32"]
    result = cli("verify", engine)
    assert result.exit_code == 0, result.output
    assert "m.onnx" in result.output, result.output
    result = cli("bench", engine, "--batch", 1, "--iterations", 5, "--json", "r.json")
    assert "accuracy: off by" in result.output
    assert json.loads((folder / "r.json").read_text())["accuracy"]["reference"] == "m.onnx"
    assert "converted to fp16 by modelopt" in cli("inspect", engine).output.replace("  ", " ")


@pytest.mark.modelopt
def test_a_conversion_is_used_again_by_hash(cli: Cli, folder: Path, model: Path) -> None:
    assert build(cli, "--precision", "fp16").exit_code == 0
    typed = folder / "engines/m.fp16.onnx"
    first = typed.stat().st_mtime_ns
    again = build(cli, "--precision", "fp16")
    assert "converted before" in again.output
    assert typed.stat().st_mtime_ns == first
    assert "converted before" not in build(cli, "--precision", "fp16", "--io-precision", "fp16").output
    assert "converted before" in build(cli, "--precision", "fp16", "--io-precision", "fp16").output
    typed.write_bytes(typed.read_bytes()[:-10])
    shutil.copy(models.classifier(folder / "other.onnx", size=16), model)
    assert "converted before" not in build(cli, "--precision", "fp16", "--shape", "input=3,16,16").output


def test_a_file_that_is_no_conversion_is_never_replaced(cli: Cli, folder: Path, model: Path) -> None:
    own = models.classifier(folder / "engines/m.fp16.onnx")
    before = own.read_bytes()
    refused(build(cli, "--precision", "fp16"), 2, "m.fp16.onnx is in the way", "--output")
    assert own.read_bytes() == before


@pytest.mark.modelopt
def test_int8_from_real_samples(cli: Cli, folder: Path, model: Path) -> None:
    np.savez(folder / "calib.npz", input=np.random.default_rng(9).standard_normal((40, 3, 8, 8)).astype(np.float32))
    result = build(cli, "--precision", "int8", "--calibration", "calib.npz", "--calibration-method", "max")
    assert result.exit_code == 0, result.output
    assert "RANDOM" not in result.output
    typed = onnx.load(str(folder / "engines/m.int8.onnx"))
    assert kinds(typed) == {"int8"}
    assert typed.opset_import[0].version == 17
    values = [numpy_helper.to_array(tensor) for tensor in scales(typed)]
    assert values
    assert all(value.dtype == np.float32 and (value > 0).all() for value in values)
    (conv,) = (node for node in typed.graph.node if node.op_type == "Conv")
    assert {each.name: list(each.ints) for each in conv.attribute}["kernel_shape"] == [3, 3]  # weights tell it no more
    assert 1e-4 < errors(folder / "engines/m.int8.onnx", model) < 0.1
    sidecar = load(folder / "engines/m.int8.ort.onnx", "engine").sidecar
    assert sidecar.conversion is not None
    assert sidecar.conversion.calibration == "40 samples of calib.npz"
    assert sidecar.precision.accuracy is not None
    assert "samples of calib.npz" in sidecar.precision.accuracy.samples
    assert sidecar.conversion.method == "max"


@pytest.mark.modelopt
def test_random_calibration_is_a_loud_warning_that_stays(cli: Cli, folder: Path, model: Path) -> None:
    result = build(cli, "--precision", "int8", "--calibration", 7)
    assert result.exit_code == 0, result.output
    assert "warning: RANDOM CALIBRATION: the ranges of int8 come from 7 random samples" in result.output
    for command in (["bench", "--batch", 1, "--iterations", 3], ["infer", "--input", "random"], ["verify"]):
        assert "warning: calibration: 7 random samples (seed 0)" in cli(*command).output


@pytest.mark.modelopt
def test_what_is_kept_in_float32_stays_there(cli: Cli, folder: Path, model: Path) -> None:
    graph = onnx.load(str(model))
    for name, stays in (("Gemm", "/head"), ("/conv", "/conv"), ("/he*", "/head")):
        assert precision.kept_nodes(graph, [name], "m.onnx") == {stays}
    assert build(cli, "--precision", "fp16", "--keep-fp32", "/he*").exit_code == 0
    conversion = load(folder / "engines/m.fp16.onnx", "onnx").sidecar.conversion
    assert conversion is not None
    assert conversion.stayed == ("/head",)
    refused(build(cli, "--precision", "fp16", "--keep-fp32", "Gem"), 2, "--keep-fp32 Gem: m.onnx has no such", "Gemm")
    everything = build(cli, "--precision", "fp16", "--keep-fp32", "Gemm", "--keep-fp32", "Conv")
    refused(everything, 1, "--keep-fp32 keeps every product of m.onnx in float32", "keep less")


@pytest.mark.modelopt
def test_inputs_and_outputs_keep_their_types_unless_told(cli: Cli, folder: Path, model: Path) -> None:
    assert build(cli, "--precision", "fp16", "--io-precision", "fp16").exit_code == 0
    sidecar = load(folder / "engines/m.fp16.ort.onnx", "engine").sidecar
    assert [spec.dtype for spec in (*sidecar.inputs, *sidecar.outputs)] == ["float16", "float16"]
    np.save(folder / "x.npy", X.astype(np.float16))
    assert cli("infer", "--input", "x.npy", "--output", "y.npz").exit_code == 0
    found = read_npz(folder / "y.npz")["output"]
    wanted = OnnxReference(model)({"input": X})["output"]
    assert found.dtype == np.float16
    assert row_errors(found.astype(np.float32), wanted).max() < 1e-2
    assert cli("verify").exit_code == 0


@pytest.mark.modelopt
def test_best_takes_the_fastest_within_the_tolerance(cli: Cli, folder: Path, model: Path) -> None:
    result = build(cli, "--precision", "best")
    assert result.exit_code == 0, result.output
    for line in ("tf32  out: ONNX Runtime on the CPU computes nothing in tf32", "int8  out: not tried without real"):
        assert line in result.output
    sidecar = load(folder / "engines/m.best.ort.onnx", "engine").sidecar
    tried = {each["precision"]: each for each in sidecar.build.details["candidates"]}
    assert sidecar.precision.asked == "best"
    assert sidecar.build.details["tolerance"] == 1e-2
    assert tried["fp32"]["ms"]["4"] > 0
    assert tried["fp16"]["ms"]["4"] > 0
    timed = {name: each["ms"]["4"] for name, each in tried.items() if "ms" in each}
    assert sidecar.precision.realized == min(timed, key=lambda name: timed[name])
    strict = build(cli, "--precision", "best", "--tolerance", 1e-5)
    assert strict.exit_code == 0
    assert "fp16  out: " in strict.output
    assert "(limit 1e-05)" in strict.output
    assert load(folder / "engines/m.best.ort.onnx", "engine").sidecar.precision.realized == "fp32"


@pytest.mark.modelopt
@pytest.mark.parametrize(
    ("options", "again"),
    [
        (("--batch", "2,4"), False),
        (("--batch", "2"), True),
        ((), True),
    ],
)
def test_best_goes_by_the_builds_times_where_it_has_those_of_every_opt(
    cli: Cli, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], again: bool
) -> None:
    """One profile on ONNX Runtime has no table, but of the sizes that are named."""
    timed: list[str] = []

    def opened(artifact: Artifact, *args: Any) -> Any:
        timed.append(artifact.path.name)
        return open_engine(artifact, *args)

    monkeypatch.setattr(candidates, "open_engine", opened)
    assert build(cli, "--precision", "best", *options).exit_code == 0
    sidecar = load(folder / "engines/m.best.ort.onnx", "engine").sidecar
    tried = {each["precision"]: each["ms"] for each in sidecar.build.details["candidates"] if "ms" in each}
    assert set(tried) == {"fp32", "fp16"}
    assert all(set(ms) == {"4"} for ms in tried.values())
    assert len(timed) == (2 if again else 0)
    if not again:
        assert tried[sidecar.precision.realized]["4"] == sidecar.engine.times[4]
    assert sidecar.precision.realized == min(tried, key=lambda name: tried[name]["4"])


@pytest.mark.modelopt
def test_a_tolerance_that_is_not_kept_leaves_no_engine(cli: Cli, folder: Path, model: Path) -> None:
    refused(build(cli, "--precision", "int8", "--tolerance", 1e-6), 1, "differs from m.onnx", "the worst row", "1e-06")
    assert not (folder / "engines/m.int8.ort.onnx").exists()


@pytest.mark.modelopt
def test_a_model_of_fixed_batch_is_converted_in_whole_batches(cli: Cli, folder: Path) -> None:
    models.classifier(folder / "m.onnx", batch=4)
    result = cli("build", "m.onnx", "--backend", "onnxruntime", "--precision", "int8", "--calibration", 6)
    assert result.exit_code == 0, result.output
    assert "8 random samples" in result.output
    np.save(folder / "few.npy", X[:3])
    result = cli("build", "m.onnx", "--backend", "onnxruntime", "--precision", "int8", "--calibration", "few.npy")
    refused(result, 2, "few.npy has 3 samples, and the model a fixed batch of 4", "give more")
    models.classifier(folder / "large.onnx", batch=24)
    np.save("enough.npy", np.random.default_rng(0).standard_normal((30, 3, 8, 8)).astype(np.float32))
    line = ("build", "large.onnx", "--backend", "onnxruntime", "--precision", "fp16", "--calibration", "enough.npy")
    result = cli(*line)
    assert result.exit_code == 0, result.output  # AutoCast needs 16 samples, and a batch 24
    assert "24 samples of enough.npy" in result.output


@pytest.mark.modelopt
def test_values_that_float16_cannot_hold_stay_in_float32(cli: Cli, folder: Path) -> None:
    """AutoCast sees x·1e4 squared on the samples, and the engine is right where plain fp16 would be NaN."""
    models.overflowing(folder / "m.onnx")
    result = build(cli, "--precision", "fp16")
    assert result.exit_code == 0, result.output
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    assert errors(folder / "engines/m.fp16.onnx", folder / "m.onnx", x) < 2e-3


def test_an_overflow_is_refused_by_name_though_the_cpu_computes_in_float32(cli: Cli, folder: Path) -> None:
    models.overflowing(folder / "m.onnx", TensorProto.FLOAT16)
    refused(
        build(cli),
        1,
        "float16 overflows first at node /square/Mul (Mul), whose inputs reach",
        "--keep-fp32 /square/Mul",
    )
    assert not list(folder.glob("engines/*"))


@pytest.mark.modelopt
def test_an_overflow_on_the_samples_at_hand_is_found_and_its_fix_works(cli: Cli, folder: Path) -> None:
    """AutoCast looks at the first samples; those behind them reach what float16 doesn't hold."""
    models.overflowing(folder / "m.onnx", reach=1.0)
    samples = np.full((32, 8), 0.5, np.float32)
    samples[20:] = 1000.0
    np.save(folder / "x.npy", samples)
    np.save(folder / "few.npy", samples[:16])
    assert build(cli, "--precision", "fp16", "--calibration", "few.npy").exit_code == 0
    line = ("build", "m.onnx", "--max", 32, "--backend", "onnxruntime", "--precision", "fp16", "--calibration", "x.npy")
    failed = cli(*line)
    refused(failed, 1, "float16 overflows first at node /square/Mul (Mul), whose inputs reach 1e+03")
    fixed = cli(*line, "--keep-fp32", "/square/Mul", "--keep-fp32", "/mean/ReduceMean", "--keep-fp32", "/norm/Div")
    assert fixed.exit_code == 0, fixed.output


@pytest.mark.modelopt
def test_a_converted_file_can_be_named_and_is_held_against_its_source(cli: Cli, folder: Path, model: Path) -> None:
    assert build(cli, "--precision", "fp16").exit_code == 0
    result = cli("build", "engines/m.fp16.onnx", "--max", 4, "--backend", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert "against m.onnx" in result.output, result.output
    refused(
        cli("build", "engines/m.fp16.onnx", "--backend", "onnxruntime", "--precision", "int8"), 2, "is in fp16 already"
    )
    model.unlink()
    result = cli("build", "engines/m.fp16.onnx", "--max", 4, "--backend", "onnxruntime")
    assert result.exit_code == 0
    assert "the accuracy is taken against itself" in result.output


@pytest.mark.modelopt
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
        (["--precision", "half"], "--precision half is none"),
        (["--calibration", "x"], "--calibration goes with --precision fp16|bf16|int8|fp8|best"),
        (["--keep-fp32", "Conv", "--precision", "fp32"], "--keep-fp32 goes with --precision fp16|bf16|int8|fp8|best"),
        (["--io-precision", "fp16"], "--io-precision goes with --precision fp16|bf16|int8|fp8"),
        (["--calibration-method", "max", "--precision", "fp16"], "--calibration-method goes with --precision int8|fp8"),
        (["--tolerance", "0.1", "--no-verify"], "--tolerance is for the check that --no-verify leaves out"),
        (["--precision", "best", "--no-verify"], "--precision best needs the check"),
        (["--precision", "int8", "--calibration", "nowhere"], "--calibration nowhere: no such file"),
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


@pytest.mark.modelopt
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


@pytest.mark.modelopt
def test_modelopts_own_failure_is_one_line(
    cli: Cli, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "broken").mkdir()
    (folder / "broken" / "modelopt.py").write_text("raise ImportError('half installed')")
    monkeypatch.setenv("PYTHONPATH", str(folder / "broken"))
    refused(build(cli, "--precision", "fp16"), 1, "ModelOpt can't convert m.onnx to fp16", "half installed")


@pytest.mark.modelopt
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_types_that_decide_alone_are_right_by_the_onnx_specification(folder: Path, kind: str) -> None:
    """For strongly typed networks the rest is fp16, scales too: ONNX Runtime has no such kernels that round right
    (1.24's QuantizeLinear of float16 cuts instead of rounding), onnx's own evaluator has."""
    (folder / "engines").mkdir()
    source = foreign(models.wide(folder / "n.onnx"))
    made = convert(source, ConversionRequest(kind, rest="fp16", calibration="16", folder=folder / "engines"))
    typed = onnx.load(str(made.path))
    assert kinds(typed) == {kind, "fp16"}
    assert "/second" in products(typed)
    values = [numpy_helper.to_array(tensor) for tensor in scales(typed)]
    assert values
    assert all(value.dtype == np.float16 and (value > 0).all() for value in values)
    x = np.random.default_rng(3).standard_normal((6, 32, 8, 8)).astype(np.float32)
    found = ReferenceEvaluator(typed).run(None, {"input": x})[0]
    wanted = OnnxReference(source.path)({"input": x})["output"]
    assert 1e-4 < row_errors(np.asarray(found, np.float32), wanted).max() < 0.1


@pytest.mark.modelopt
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_what_is_kept_stays_float32_where_the_rest_is_half_precision(folder: Path, kind: str) -> None:
    (folder / "engines").mkdir()
    source = foreign(models.wide(folder / "n.onnx"))
    order = ConversionRequest(kind, rest="fp16", keep_fp32=("/second",), calibration="16", folder=folder / "engines")
    made = convert(source, order)
    computes = products(onnx.load(str(made.path)))
    assert computes["/second"] == "fp32"
    assert computes["/first"] == kind
    conversion = made.sidecar.conversion
    assert conversion is not None
    assert conversion.kept == ("/second",)
    assert "/second" in conversion.stayed


@pytest.mark.modelopt
def test_random_is_asked_for_and_not_read_out_of_a_name(cli: Cli, folder: Path, model: Path) -> None:
    np.save(folder / "random_photos.npy", X)
    result = build(cli, "--precision", "int8", "--calibration", "random_photos.npy")
    assert result.exit_code == 0, result.output
    assert "RANDOM" not in result.output, result.output
    assert "calibration: " not in cli("bench", "--batch", 1, "--iterations", 3).output
    assert "RANDOM" in build(cli, "--precision", "int8", "--calibration", "random").output
    assert "not tried without real samples" in build(cli, "--precision", "best", "--calibration", "random").output


@pytest.mark.modelopt
def test_half_inputs_go_with_every_conversion_and_images_are_cast(
    cli: Cli, folder: Path, model: Path, photos: Path
) -> None:
    spec = TensorSpec("input", "float16", ("batch_size", 3, 8, 8))
    first = next(iter(ImageSource(sorted(photos.iterdir())[:1], ["a"], spec, Preprocessing(8, (8, 8)))))
    assert isinstance(first, Sample)
    assert first.rows["input"].dtype == np.float16
    line = ["--precision", "int8", "--io-precision", "fp16", "--calibration", "8"]
    assert build(cli, *line).exit_code == 0
    sidecar = load(folder / "engines/m.int8.ort.onnx", "engine").sidecar
    assert [spec.dtype for spec in (*sidecar.inputs, *sidecar.outputs)] == ["float16", "float16"]
    assert errors(folder / "engines/m.int8.onnx", model, X.astype(np.float16)) < 0.1
    np.save(folder / "c.npy", X)
    assert build(cli, "--precision", "fp16", "--io-precision", "fp16", "--calibration", "c.npy").exit_code == 0


@pytest.mark.modelopt
def test_a_static_build_leaves_the_conversion_open(cli: Cli, folder: Path, model: Path) -> None:
    static = cli("build", "m.onnx", "--backend", "onnxruntime", "--precision", "fp16", "--static", 4)
    assert static.exit_code == 0, static.output
    assert load(folder / "engines/m.fp16.onnx", "onnx").sidecar.is_dynamic
    assert cli("build", "engines/m.fp16.onnx", "--max", 8, "--backend", "onnxruntime").exit_code == 0


def test_reduced_files_are_not_converted_again_or_called_float32(cli: Cli, folder: Path) -> None:
    models.overflowing(folder / "m.onnx", TensorProto.FLOAT16, reach=1.0)
    for name in ("fp32", "fp16", "int8"):
        refused(build(cli, "--precision", name), 2, "m.onnx holds fp16 already", "leave out --precision")
    result = build(cli)
    assert result.exit_code == 0, result.output
    assert "onnxruntime fp16" in result.output, result.output


@pytest.mark.modelopt
def test_names_that_are_in_the_way_of_others_are_not(cli: Cli, folder: Path) -> None:
    path = models.classifier(folder / "plain.onnx")
    renamed = onnx.load(str(path))
    renamed.graph.input[0].name = renamed.graph.node[0].input[0] = "file"
    onnx.save(renamed, str(folder / "m.onnx"))
    assert build(cli, "--precision", "fp16").exit_code == 0


@pytest.mark.modelopt
def test_weights_in_a_folder_of_their_own_are_converted_too(cli: Cli, folder: Path) -> None:
    path = models.classifier(folder / "plain.onnx")
    (folder / "sub").mkdir()
    whole = onnx.load(str(path))
    onnx.save(whole, str(folder / "m.onnx"), save_as_external_data=True, location="sub/w.bin", size_threshold=0)
    result = build(cli, "--precision", "fp16")
    assert result.exit_code == 0, result.output
    assert errors(folder / "engines/m.fp16.onnx", path) < 2e-3


def test_samples_that_are_not_finite_are_named(cli: Cli, folder: Path, model: Path) -> None:
    broken = X.copy()
    broken[2, 0, 0, 0] = np.nan
    np.save(folder / "c.npy", broken)
    refused(build(cli, "--precision", "int8", "--calibration", "c.npy"), 1, "c.npy[2] holds NaN or infinity")


@pytest.mark.modelopt
def test_a_conversion_is_not_converted(cli: Cli, folder: Path, model: Path) -> None:
    assert build(cli, "--precision", "fp16").exit_code == 0
    line = ("build", "engines/m.fp16.onnx", "--backend", "onnxruntime")
    for options in (["--precision", "fp16", "--keep-fp32", "Conv"], ["--precision", "best"]):
        refused(cli(*line, *options), 2, "m.fp16.onnx is in fp16 already", "name the float32 file")


@pytest.mark.process
def test_an_interpreter_without_modelopt_is_told_so(
    cli: Cli, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = folder / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    monkeypatch.setenv(MODELOPT_PYTHON, "bare/bin/python")  # relative paths are meant from here
    refused(build(cli, "--precision", "fp16"), 1, "has no module", "pip install")


@pytest.mark.process
@pytest.mark.modelopt
def test_the_worker_ends_with_its_parent(folder: Path, model: Path) -> None:
    line = [sys.executable, "-m", "trtbatch", "build", "m.onnx", "--precision", "fp16", "--backend", "onnxruntime"]
    parent = subprocess.Popen(line, cwd=folder, env=child_environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not workers_in(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers_in(folder)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while workers_in(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not workers_in(folder)


def workers_in(folder: Path) -> list[str]:
    """Command lines of ModelOpt workers that work in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if "modelopt_worker.py" in text and str(folder) in text:
            found.append(text)
    return found
