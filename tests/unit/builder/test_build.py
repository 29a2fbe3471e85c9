"""ONNX → engine on ONNX Runtime: profiles, foreign files, wrong rows, nothing half-written."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support import models
from tests.support.arrays import read_npz
from tests.support.messages import nothing_left, refused
from tests.support.processes import child_environment, run_process, run_with_file_limit
from trtbatch.backends import open_engine
from trtbatch.builder.request import foreign
from trtbatch.core.rows import random_inputs, row_errors
from trtbatch.core.sidecar import BuildRecord, SourceRecord
from trtbatch.core.store import load, record_file
from trtbatch.errors import ProfileError
from trtbatch.onnx_graph.run import OnnxReference
from trtbatch.util.files import sidecar_path
from trtbatch.util.serialization import encode

Cli = Callable[..., Any]


def test_the_profile_reaches_the_sidecar_and_the_terminal(cli: Cli, folder: Path) -> None:
    path = models.classifier(folder / "m.onnx")
    result = cli("build", path, "--min", 2, "--opt", 4, "--max", 9)
    assert result.exit_code == 0, result.output
    artifact = load(folder / "engines/m.ort.onnx", "engine")
    sidecar = artifact.sidecar
    assert [(p.min, p.opt, p.max) for p in sidecar.engine.profiles] == [(2, 4, 9)]
    assert sidecar.engine.backend == "onnxruntime"
    assert sidecar.precision.realized == "fp32"
    assert sidecar.inputs[0].shape == ("batch_size", 3, 8, 8)
    assert sidecar.outputs[0].shape == ("batch_size", 5)
    assert sidecar.source == SourceRecord.of(record_file(path), "../m.onnx")
    assert sidecar.artifact == record_file(artifact.path)
    assert sidecar.build.details["rows_checked_at"] == [2, 4, 9]
    assert sidecar.build.details["build_seconds"] > 0
    assert sidecar.build.details["peak_host_bytes"] > 10**6
    assert sidecar.build.tools["onnxruntime"]
    assert sidecar.build.device["cpu"]
    for words in ("min 2, opt 4, max 9", "input (batch_size, 3, 8, 8) float32", "KiB, built in", "at the most while"):
        assert words in result.output, result.output
    assert "note: backend: ONNX Runtime on the CPU" in result.output


def test_the_engine_gives_the_models_own_rows_inside_its_profile_only(engine: Path, folder: Path) -> None:
    oracle = OnnxReference(folder / "small.onnx")
    artifact = load(engine, "engine")
    with open_engine(artifact) as opened, opened.session() as session:
        for batch in (8, 1, 5, 3, 8):
            inputs = random_inputs(artifact.sidecar.inputs, batch, seed=batch)
            session.bind(inputs)
            session.run()
            assert row_errors(session.fetch()["output"], oracle(inputs)["output"]).max() < 1e-5
        with pytest.raises(ProfileError, match="batch 9 is outside every profile"):
            session.bind(random_inputs(artifact.sidecar.inputs, 9, seed=0))


def test_several_profiles_are_checked_at_every_corner(cli: Cli, folder: Path) -> None:
    models.classifier(folder / "m.onnx")
    result = cli("build", "m.onnx", "--profile", "1:1:2", "--profile", "8:16:24")
    assert result.exit_code == 0, result.output
    assert load(folder / "engines/m.ort.onnx", "engine").sidecar.build.details["rows_checked_at"] == [1, 2, 8, 16, 24]
    refused(cli("bench", "--batch", "2,4"), 2, "batch 4 is outside every profile", "(1:1:2, 8:16:24)")


def test_defaults_are_one_sixteen_thirty_two(cli: Cli, folder: Path) -> None:
    models.classifier(folder / "m.onnx")
    assert cli("build", "m.onnx").exit_code == 0
    assert str(load(folder / "engines/m.ort.onnx", "engine").sidecar.engine.profiles[0]) == "1:16:32"
    assert cli("build", "m.onnx", "--max", 8).exit_code == 0
    assert str(load(folder / "engines/m.ort.onnx", "engine").sidecar.engine.profiles[0]) == "1:8:8"


def test_static_fixes_an_open_batch(cli: Cli, folder: Path) -> None:
    models.classifier(folder / "m_dynamic.onnx")
    result = cli("build", "m_dynamic.onnx", "--static", 4)
    assert result.exit_code == 0, result.output
    sidecar = load(folder / "engines/m_b4.ort.onnx", "engine").sidecar
    assert sidecar.inputs[0].shape == (4, 3, 8, 8)
    assert str(sidecar.engine.profiles[0]) == "4:4:4"
    graph = onnx.load(folder / "engines/m_b4.ort.onnx").graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4


def test_a_fixed_model_needs_no_profile_and_takes_no_other(cli: Cli, folder: Path) -> None:
    models.classifier(folder / "m.onnx", batch=4)
    assert cli("build", "m.onnx").exit_code == 0
    assert str(load(folder / "engines/m.ort.onnx", "engine").sidecar.engine.profiles[0]) == "4:4:4"
    refused(cli("build", "m.onnx", "--max", 8), 2, "fixed batch of 4", "--dynamic")
    refused(cli("build", "m.onnx", "--static", 8), 2, "fixed batch of 4, not 8")


def test_shape_sets_the_other_open_axes(cli: Cli, folder: Path) -> None:
    models.classifier(folder / "m.onnx", size="side")
    refused(cli("build", "m.onnx"), 2, "axes side, side of input 'input' are open", "--shape input=3,224,224")
    result = cli("build", "m.onnx", "--shape", "input=3,12,20")
    assert result.exit_code == 0, result.output
    assert load(folder / "engines/m.ort.onnx", "engine").sidecar.inputs[0].shape == ("batch_size", 3, 12, 20)
    refused(cli("build", "m.onnx", "--shape", "input=4,12,20"), 2, "doesn't fit")
    refused(cli("build", "m.onnx", "--shape", "inptu=3,12,20"), 2, "--shape input=")
    refused(cli("build", "m.onnx", "--shape", "3,12,20"), 2, "names no input")
    refused(cli("build", "m.onnx", "--shape", "input=3,12,20", "--shape", "x=1"), 2, "names 'x'; the inputs are input")


def test_the_batch_axes_of_all_inputs_are_checked_jointly(cli: Cli, folder: Path) -> None:
    models.two_inputs(folder / "same.onnx")
    assert cli("build", "same.onnx", "--max", 4).exit_code == 0
    models.two_inputs(folder / "names.onnx", "n", "m")
    refused(cli("build", "names.onnx"), 2, "'left' (n)", "'right' (m)")
    graph = helper.make_graph(
        [helper.make_node("Neg", ["left"], ["output"]), helper.make_node("Neg", ["right"], ["other"])],
        "two",
        [
            helper.make_tensor_value_info("left", TensorProto.FLOAT, [2, 4]),
            helper.make_tensor_value_info("right", TensorProto.FLOAT, [3, 4]),
        ],
        [
            helper.make_tensor_value_info("output", TensorProto.FLOAT, [2, 4]),
            helper.make_tensor_value_info("other", TensorProto.FLOAT, [3, 4]),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "f.onnx")
    refused(cli("build", "f.onnx"), 2, "inputs 'left' and 'right' have batches 2 and 3")


def test_a_batch_axis_that_is_not_the_first(cli: Cli, folder: Path) -> None:
    models.batch_last(folder / "m.onnx")
    assert cli("build", "m.onnx", "--max", 8).exit_code == 0
    sidecar = load(folder / "engines/m.ort.onnx", "engine").sidecar
    assert sidecar.inputs[0].batch_axis == 1
    assert sidecar.inputs[0].shape == (4, "batch_size")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--min", 4, "--opt", 2, "--max", 8), "profile 4:2:8 is impossible: min 4, opt 2, max 8"),
        (("--min", 0), "min 0"),
        (("--profile", "1:2"), "'1:2'"),
        (("--profile", "1:2:x"), "'1:2:x'"),
        (("--static", 0), "--static 0"),
        (("--static", 4, "--max", 8), "--static and --min/--opt/--max"),
        (("--workspace", "lots"), "'lots' is not a size"),
    ],
)
def test_impossible_profiles_are_usage_errors(cli: Cli, folder: Path, args: tuple[object, ...], told: str) -> None:
    models.classifier(folder / "m.onnx")
    refused(cli("build", "m.onnx", *args), 2, told)
    assert nothing_left(folder)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (models.leaking, "differ from the same samples run alone"),
        (models.first_row_only, "are all zero"),
        (lambda path: models.reshaped_to(path, 1), "node /flatten/Reshape (Reshape) has the constant [1, 12]"),
        (lambda path: models.reshaped_to(path, 8), "node /flatten/Reshape (Reshape) has the constant [8, 12]"),
    ],
)
def test_wrong_rows_give_no_engine(cli: Cli, folder: Path, model: Callable[[Path], Path], told: str) -> None:
    result = cli("build", model(folder / "m.onnx"), "--max", 8)
    refused(result, 1, told)
    assert nothing_left(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["engines", "m.onnx"]


def test_damaged_files_are_refused(cli: Cli, folder: Path) -> None:
    (folder / "not.onnx").write_bytes(b"this is not an ONNX file")
    refused(cli("build", "not.onnx"), 1, "not.onnx is not")
    (folder / "empty.onnx").write_bytes(b"")
    refused(cli("build", "empty.onnx"), 1, "empty.onnx is not")
    whole = models.classifier(folder / "m.onnx").read_bytes()
    (folder / "half.onnx").write_bytes(whole[: len(whole) // 2])
    refused(cli("build", "half.onnx"), 1, "half.onnx")
    refused(cli("build", "missing.onnx"), 1, "missing.onnx doesn't exist")
    refused(cli("build", folder), 1, "is a folder")
    assert nothing_left(folder)


def test_an_operator_that_the_backend_lacks_is_named(cli: Cli, folder: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Unheard", ["input"], ["output"], name="/odd", domain="com.example")],
        "odd",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 4])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "odd.onnx")
    refused(cli("build", "odd.onnx"), 1, "Unheard")
    assert nothing_left(folder)


@pytest.mark.torch
def test_a_changed_or_truncated_onnx_file_is_told_before_it_is_built(cli: Cli, folder: Path) -> None:
    assert cli("export", "tests.support.zoo:small", "--dynamic", "--input-shape", "3,8,8").exit_code == 0
    path = folder / "engines/small_dynamic.onnx"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    refused(cli("build"), 1, "is truncated", "trtbatch export")
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(cli("build"), 1, "SHA-256 differs")
    path.with_name("small_dynamic.onnx.json").write_text("{")
    refused(cli("build", path), 1, "small_dynamic.onnx.json is damaged")


def test_no_artifact_yet_names_the_command(cli: Cli, folder: Path) -> None:
    refused(cli("build"), 1, "no ONNX file in engines/", "trtbatch export resnet18 --dynamic")
    refused(cli("build", "--max", 8), 1, "no dynamic ONNX file in engines/")


def exported(path: Path, created: str, batch: int | str = "batch_size") -> None:
    """A classifier's ONNX file with a sidecar, as an export of that time leaves it."""
    path.parent.mkdir(exist_ok=True)
    models.classifier(path, batch=batch)
    sidecar_path(path).write_text(
        json.dumps(encode(replace(foreign(path).sidecar, build=BuildRecord(created=created))))
    )


def test_the_newest_that_can_be_built_for_a_static_batch_is_taken(cli: Cli, folder: Path) -> None:
    exported(folder / "engines/open.onnx", "2026-01-01")
    exported(folder / "engines/four.onnx", "2026-01-02", 4)
    exported(folder / "engines/eight.onnx", "2026-01-03", 8)
    for static, name in ((4, "four"), (3, "open"), (8, "eight")):
        result = cli("build", "--static", static)
        assert result.exit_code == 0, result.output
        assert f"the newest that fits: engines/{name}.onnx" in result.output, result.output
        found = load(folder / f"engines/{name}_b{static}.ort.onnx", "engine").sidecar
        assert found.inputs[0].shape == (static, 3, 8, 8)
    (folder / "engines/open.onnx").unlink()
    refused(cli("build", "--static", 3), 2, "eight.onnx has a fixed batch of 8, not 3", "pass --static 8")


def test_tensorrt_without_a_gpu_is_refused_by_name(cli: Cli, folder: Path) -> None:
    from trtbatch.backends import tensorrt

    if tensorrt.obstacle() is None:
        pytest.skip("TensorRT runs here")
    models.classifier(folder / "m.onnx")
    refused(cli("build", "m.onnx", "--backend", "tensorrt"), 1, "--backend tensorrt can't run here")
    assert nothing_left(folder)


def test_a_file_where_the_folder_should_be(cli: Cli, folder: Path) -> None:
    models.classifier(folder / "m.onnx")
    (folder / "engines").write_text("in the way")
    refused(cli("build", "m.onnx"), 1, "engines")
    (folder / "x.ort.onnx").mkdir()
    refused(cli("build", "m.onnx", "--output", "x.ort.onnx"), 2, "x.ort.onnx")
    refused(cli("build", "m.onnx", "--output", "m.onnx"), 2, "is the ONNX file itself")


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="needs a folder that refuses")
def test_a_folder_that_cannot_be_written(cli: Cli, folder: Path) -> None:
    models.classifier(folder / "m.onnx")
    target = Path("/sys/x.ort.onnx")  # refuses root too
    refused(cli("build", "m.onnx", "--output", target), 1, "/sys: ", "--output")


@pytest.mark.process
def test_a_full_disk_is_one_line(folder: Path) -> None:
    models.classifier(folder / "m.onnx")
    done = run_with_file_limit(600, "build", "m.onnx", cwd=folder)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"^error: .+\nfix: .+\n$", done.stderr, re.MULTILINE)
    assert nothing_left(folder)


def test_building_again_replaces_the_engine_whole(cli: Cli, folder: Path) -> None:
    models.classifier(folder / "m.onnx")
    for largest in (4, 8):
        assert cli("build", "m.onnx", "--max", largest).exit_code == 0
    assert sorted(path.name for path in (folder / "engines").iterdir()) == ["m.ort.onnx", "m.ort.onnx.json"]
    assert load(folder / "engines/m.ort.onnx", "engine").sidecar.engine.profiles[0].max == 8


def test_a_failed_build_leaves_the_old_engine(cli: Cli, folder: Path) -> None:
    models.classifier(folder / "m.onnx")
    assert cli("build", "m.onnx", "--max", 4).exit_code == 0
    before = record_file(folder / "engines/m.ort.onnx")
    models.leaking(folder / "m.onnx")
    assert cli("build", "m.onnx", "--max", 4).exit_code == 1
    assert record_file(folder / "engines/m.ort.onnx") == before
    assert cli("bench", "--batch", 1, "--iterations", 3).exit_code == 0


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing(folder: Path, number: signal.Signals) -> None:
    models.deep(folder / "deep.onnx")
    line = [sys.executable, "-m", "trtbatch", "build", "deep.onnx", "--max", "256", "--opt", "200"]
    process = subprocess.Popen(line, cwd=folder, stderr=subprocess.PIPE, text=True, env=child_environment())
    deadline = time.monotonic() + 60
    while not (folder / "engines").is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)  # the scratch folder is there from the first moment of the build
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], stderr
    assert "Traceback" not in stderr
    assert nothing_left(folder)


def test_a_sidecar_is_plain_json_with_what_it_was_made_from(engine: Path, folder: Path) -> None:
    data = json.loads(engine.with_name(engine.name + ".json").read_text())
    assert data["format_version"] == 1
    assert data["kind"] == "engine"
    assert data["source"]["file"] == "small.onnx"
    assert len(data["source"]["sha256"]) == 64
    assert data["engine"]["profiles"] == [{"min": 1, "opt": 4, "max": 8}]


@pytest.mark.process
def test_an_engine_made_elsewhere_runs_by_path(engine: Path, folder: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other")
    np.save(other / "x.npy", np.zeros((3, 3, 8, 8), np.float32))
    done = run_process("infer", engine, "--input", "x.npy", "--output", "y.npz", cwd=other)
    assert done.returncode == 0, done.stderr
    assert read_npz(other / "y.npz")["output"].shape == (3, 5)


@pytest.mark.torch
def test_nothing_else_is_replaced(cli: Cli, engine: Path, folder: Path) -> None:
    """An engine may replace an engine; a source, a sidecar, an exported model and an input are not its to replace."""
    from trtbatch.util.files import sidecar_path

    assert cli("export", "tests.support.zoo:small", "--dynamic", "--input-shape", "3,8,8").exit_code == 0
    exported = folder / "engines/small_dynamic.onnx"
    before = {path: path.read_bytes() for path in (folder / "engines").iterdir()}
    refused(cli("build", exported, "--output", sidecar_path(exported)), 2, "doesn't end in .ort.onnx")
    refused(cli("build", "small.onnx", "--output", exported), 2, "doesn't end in .ort.onnx")
    for name in ("x.json", "x.txt", "x.pt2", "other.onnx", "x.engine"):
        refused(cli("build", "small.onnx", "--output", name), 2, "doesn't end in .ort.onnx")
    refused(cli("bench", "--json", sidecar_path(engine)), 2, "is an artifact, or the sidecar of one")
    refused(cli("bench", "--json", engine), 2, "doesn't end in .json")
    refused(cli("bench", "--json", "same", "--csv", "same.csv"), 2, "same doesn't end in .json")
    np.save(folder / "x.npy", np.zeros((2, 3, 8, 8), np.float32))
    np.savez(folder / "z.npz", input=np.zeros((2, 3, 8, 8), np.float32))
    refused(cli("infer", engine, "--input", "z.npz", "--output", "z.npz"), 2, "named twice")
    assert {path: path.read_bytes() for path in (folder / "engines").iterdir()} == before


def test_options_of_tensorrt_alone_are_said_to_be_without_effect(cli: Cli, folder: Path) -> None:
    models.classifier(folder / "m.onnx")
    result = cli("build", "m.onnx", "--max", 4, "--workspace", "1GiB", "--opt-level", 3)
    assert result.exit_code == 0
    assert "--workspace, --opt-level have no effect on ONNX Runtime" in result.output


def test_a_name_that_is_no_text_is_a_damaged_file(cli: Callable[..., Any], folder: Path) -> None:
    path = models.classifier(folder / "m.onnx")
    path.write_bytes(path.read_bytes().replace(b"/head", b"\x80head"))
    refused(cli("build", path, "--backend", "onnxruntime"), 1, "m.onnx is damaged: the name b'\\x80head' is no text")
