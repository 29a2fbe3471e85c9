"""A model folder for Triton, read back with Triton's own protobuf definitions."""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.support import models
from tests.support.messages import refused
from tests.support.sidecars import change_sidecar
from trtbatch.core.batches import Profile, pick_profile
from trtbatch.core.profiles import Measured
from trtbatch.core.sidecar import EngineRecord, FileRecord, Interval, ModelRecord, Sidecar, Tuned
from trtbatch.core.tensors import TensorSpec
from trtbatch.deployment import triton
from trtbatch.deployment.triton import TritonRequest
from trtbatch.deployment.tritonbatching import batching, parse_delay, preferred_sizes
from trtbatch.errors import UsageError
from trtbatch.onnx_graph.run import OnnxReference
from trtbatch.util.files import sidecar_path

pytest.importorskip("tritonclient.grpc", reason="Triton's protobuf definitions (tritonclient[grpc]) aren't installed")

Cli = Callable[..., Any]
CLASSES = ["ant", "bee", "cat", "dog", "giant\nelk"]


def read(path: Path) -> Any:
    from tritonclient.grpc import model_config_pb2

    text_format = importlib.import_module("google.protobuf.text_format")
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def type_name(number: int) -> str:
    from tritonclient.grpc import model_config_pb2

    return str(model_config_pb2.DataType.Name(number))


def sidecar(**values: Any) -> Sidecar:
    """A TensorRT engine's, as a build with measured profiles leaves it."""
    times = {1: 0.158, 2: 0.170, 4: 0.201, 8: 0.237, 16: 0.303, 24: 0.430, 32: 0.462}
    profiles = tuple(Profile(1, size, size) for size in (1, 8, 32))
    given: dict[str, Any] = {
        "kind": "engine",
        "artifact": FileRecord("x.engine", "0", 1),
        "inputs": (TensorSpec("input", "float32", ("batch_size", 3, 8, 8)),),
        "outputs": (TensorSpec("output", "float32", ("batch_size", 5)),),
        "model": ModelRecord("net", "random"),
    }
    record: dict[str, Any] = {"backend": "tensorrt", "profiles": profiles}
    for name, value in values.items():
        (record if name in ("profiles", "table", "tuned") else given)[name] = value
    if "table" not in values:
        holding = ((size, pick_profile(record["profiles"], size)) for size in times)
        record["table"] = tuple(Measured(size, index, times[size]) for size, index in holding if index is not None)
    return Sidecar(**given, engine=EngineRecord(**record))


def config_of(made: Sidecar, **values: Any) -> Any:
    return triton.model_config(made, "net", TritonRequest(None, Path("repository"), **values))


def test_an_onnx_engine_becomes_a_model_folder(cli: Cli, engine: Path, folder: Path) -> None:
    change_sidecar(engine, classes=CLASSES)
    result = cli("deploy", "triton", "--repository", "models", "--instances", 2, "--max-queue-delay", "500us")
    assert result.exit_code == 0, result.output
    assert "models/small" in result.output
    assert "tritonserver --model-repository=" in result.output
    made = folder / "models" / "small"
    assert sorted(path.relative_to(made).as_posix() for path in made.rglob("*")) == [
        "1", "1/model.onnx", "config.pbtxt", "labels.txt",
    ]  # fmt: skip
    assert [path.name for path in (folder / "models").iterdir()] == ["small"], "no scratch folder is left"
    config = read(made / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("small", "onnxruntime", 8)
    (given,), (out,) = config.input, config.output
    assert (given.name, type_name(given.data_type), list(given.dims)) == ("input", "TYPE_FP32", [3, 8, 8])
    assert (out.name, type_name(out.data_type), list(out.dims)) == ("output", "TYPE_FP32", [5])
    assert out.label_filename == "labels.txt"
    assert (made / "labels.txt").read_text() == "ant\nbee\ncat\ndog\ngiant elk\n"
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 4, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    (group,) = config.instance_group
    assert (group.count, group.kind == group.KIND_CPU, list(group.profile)) == (2, True, [])
    assert list(config.version_policy.specific.versions) == [1]
    assert not config.optimization.HasField("cuda")
    assert [(each.name, each.batch_size) for each in config.model_warmup] == [
        ("batch 2", 2), ("batch 4", 4), ("batch 8", 8),
    ]  # fmt: skip
    samples = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    served, expected = (OnnxReference(path)({"input": samples}) for path in (made / "1" / "model.onnx", engine))
    np.testing.assert_array_equal(served["output"], expected["output"])
    assert os.stat(made).st_mode & 0o777 == os.stat(folder).st_mode & 0o777 | 0o055, "others may read it"


def test_a_tensorrt_engine_has_profiles_graphs_and_warm_up() -> None:
    config = config_of(sidecar(), instances=2, version=7, max_queue_delay=2000)
    assert (config.backend, config.max_batch_size) == ("tensorrt", 32)
    (group,) = config.instance_group
    assert (group.count, group.kind, list(group.profile)) == (2, group.KIND_GPU, ["0", "1", "2"])
    cuda = config.optimization.cuda
    assert cuda.graphs
    assert [spec.batch_size for spec in cuda.graph_spec] == [1, 2, 4, 8, 16, 24, 32]
    assert all(list(spec.input["input"].dim) == [3, 8, 8] for spec in cuda.graph_spec)
    assert list(config.version_policy.specific.versions) == [7]
    preferred = list(config.dynamic_batching.preferred_batch_size)
    assert preferred == [each.batch_size for each in config.model_warmup] == [2, 4, 8, 16, 24, 32]
    (data,) = config.model_warmup[0].inputs.values()
    assert (type_name(data.data_type), list(data.dims), data.random_data) == ("TYPE_FP32", [3, 8, 8], True)


def test_preferred_are_the_sizes_that_gain() -> None:
    def sizes(**times: float) -> list[int]:
        rows = tuple(Measured(int(size[1:]), 0, ms) for size, ms in times.items())
        return preferred_sizes(sidecar(table=rows, profiles=(Profile(1, 16, 64),)))

    assert sizes(b1=1, b2=1.1, b4=1.3, b8=2.0) == [2, 4, 8]
    assert sizes(b1=1, b4=4.1, b8=2.6) == [8], "four singles are faster than one 4"
    assert sizes(b1=1, b8=2, b16=3.96, b32=7.8) == [8, 32], "16 gains 1 % a sample, 32 more"
    assert sizes(b1=1, b8=8.1) == [], "nothing gains: any batch will do"
    assert preferred_sizes(sidecar(table=(), profiles=(Profile(1, 12, 40),))) == [2, 4, 8, 12, 16, 32, 40]
    assert preferred_sizes(sidecar(table=(), profiles=(Profile(1, 1, 1),))) == []


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("float64", "TYPE_FP64"), ("float16", "TYPE_FP16"), ("bfloat16", "TYPE_BF16"), ("bool", "TYPE_BOOL"),
        ("uint8", "TYPE_UINT8"), ("int8", "TYPE_INT8"), ("uint16", "TYPE_UINT16"), ("int16", "TYPE_INT16"),
        ("uint32", "TYPE_UINT32"), ("int32", "TYPE_INT32"), ("uint64", "TYPE_UINT64"), ("int64", "TYPE_INT64"),
    ],
)  # fmt: skip
def test_every_type_has_its_name(dtype: str, name: str) -> None:
    specs = (TensorSpec("x", dtype, ("N", 7)),)
    config = config_of(sidecar(inputs=specs, outputs=(TensorSpec("y", dtype, ("N",)),)))
    assert type_name(config.input[0].data_type) == type_name(config.output[0].data_type) == name
    data = config.model_warmup[0].inputs["x"]
    assert data.random_data == dtype.startswith("float")
    assert data.zero_data != data.random_data


def test_one_number_a_sample_is_reshaped() -> None:
    (out,) = config_of(sidecar(outputs=(TensorSpec("best", "int64", ("N",)),))).output
    assert list(out.dims) == [1]
    assert out.HasField("reshape")
    assert list(out.reshape.shape) == []


def test_int64_and_float16_engines_are_written(cli: Cli, folder: Path) -> None:
    models.wide_ids(folder / "ids.onnx")
    models.negated(folder / "half.onnx", TensorProto.FLOAT16)
    for name, kind in (("ids", "TYPE_INT64"), ("half", "TYPE_FP16")):
        assert cli("build", f"{name}.onnx", "--backend", "onnxruntime").exit_code == 0
        result = cli("deploy", "triton", f"engines/{name}.ort.onnx", "--repository", "models")
        assert result.exit_code == 0, result.output
        config = read(folder / "models" / name / "config.pbtxt")
        assert {type_name(each.data_type) for each in (*config.input, *config.output)} == {kind}


def test_weights_beside_the_model_travel_with_it(cli: Cli, folder: Path) -> None:
    models.external(folder / "big.onnx")
    assert cli("build", "big.onnx", "--backend", "onnxruntime").exit_code == 0
    result = cli("deploy", "triton", "--repository", "models")
    assert result.exit_code == 0, result.output
    OnnxReference(folder / "models" / "big" / "1" / "model.onnx")


def test_a_fixed_batch_is_served_whole(cli: Cli, folder: Path) -> None:
    models.classifier(folder / "small.onnx")
    assert cli("build", "small.onnx", "--static", 4, "--backend", "onnxruntime").exit_code == 0
    result = cli("deploy", "triton", "--repository", "models")
    assert result.exit_code == 0, result.output
    assert "the engine holds batch 4 alone" in result.output
    config = read(folder / "models" / "small" / "config.pbtxt")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [4, 3, 8, 8]
    assert list(config.output[0].dims) == [4, 5]
    assert [(each.batch_size, list(each.inputs["input"].dims)) for each in config.model_warmup] == [(1, [4, 3, 8, 8])]


def test_a_fixed_tensorrt_engine_captures_its_one_size() -> None:
    made = sidecar(
        inputs=(TensorSpec("input", "float32", (4, 3, 8, 8)),),
        outputs=(TensorSpec("output", "float32", (4, 5)),),
        profiles=(Profile(4, 4, 4),),
        table=(),
    )
    (spec,) = config_of(made).optimization.cuda.graph_spec
    assert spec.batch_size == 0
    assert list(spec.input["input"].dim) == [4, 3, 8, 8]


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        (models.batch_last, (), "the batch is axis 1 of input 'input', not 0"),
        (models.summarised, ("--no-verify",), "output 'mean' has no batch axis"),
        (models.nonzero_twice, (), "the shape of output 'where_positive' depends on the data"),
        (models.classifier, ("--min", 2), "no profile holds batch 1, which it may send"),
        (models.classifier, ("--profile", "1:2:2", "--profile", "5:6:8"), "no profile holds batch 3–4"),
    ],
)
def test_what_triton_cannot_serve_is_refused(
    cli: Cli, folder: Path, make: Callable[[Path], Path], options: tuple[object, ...], reason: str
) -> None:
    make(folder / "m.onnx")
    assert cli("build", "m.onnx", "--backend", "onnxruntime", *options).exit_code == 0
    refused(cli("deploy", "triton", "--repository", "models"), 1, f"Triton can't serve m.ort.onnx: {reason}")
    assert not (folder / "models").exists()


def test_an_engine_without_its_weights_is_refused(cli: Cli, engine: Path) -> None:
    change_sidecar(engine, build={"options": {"strip_weights": True}})
    refused(cli("deploy", "triton", "--repository", "models"), 1, "it holds no weights")


def test_versions_stand_side_by_side_and_none_is_replaced_unasked(cli: Cli, engine: Path, folder: Path) -> None:
    def deploy(*options: object) -> Any:
        return cli("deploy", "triton", "--repository", "models", "--name", "net", *options)

    made = folder / "models" / "net"
    assert deploy().exit_code == 0
    refused(deploy(), 2, "models/net/1 is there already")
    assert deploy("--version", 2).exit_code == 0
    assert sorted(path.name for path in made.iterdir()) == ["1", "2", "config.pbtxt"]
    assert list(read(made / "config.pbtxt").version_policy.specific.versions) == [2]
    (made / "1" / "model.onnx").write_bytes(b"old")
    assert deploy("--force").exit_code == 0
    assert (made / "1" / "model.onnx").read_bytes() == (folder / "small.onnx").read_bytes()
    assert list(read(made / "config.pbtxt").version_policy.specific.versions) == [1]
    (folder / "models" / "other").mkdir()
    refused(cli("deploy", "triton", "--repository", "models", "--name", "other", "--force"), 2, "isn't a model")
    refused(cli("deploy", "triton", "--repository", "models", "--name", "a/b"), 2, "--name a/b is no name of a model")


def tuned(batch: int = 8, streams: int = 2, budget: float | None = 10.0, high: float = 4.0) -> Tuned:
    latency = Interval(3.0, 2.5, high)
    return Tuned("asked", batch, streams, 0, 99.0, latency, Interval(1e3, 9e2, 2e3), budget_ms=budget)


def test_what_was_tuned_decides_and_what_is_asked_for_comes_first() -> None:
    made = sidecar(tuned=tuned())
    config = config_of(made)
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 4, 8], "none above the tuned one"
    assert config.dynamic_batching.max_queue_delay_microseconds == 3000, "half of 10 − 4 ms"
    assert config.instance_group[0].count == 2
    assert config.max_batch_size == 32
    assert batching(made).tuned == ("batch 8 as the largest preferred one", "2 instances", "a queue delay of 3 ms")
    config = config_of(made, instances=1, max_queue_delay=700)
    assert config.dynamic_batching.max_queue_delay_microseconds == 700
    assert config.instance_group[0].count == 1
    assert batching(made, 1, 700).tuned == ("batch 8 as the largest preferred one",)


def test_a_tuned_size_that_was_not_measured_is_preferred_warmed_up_and_captured() -> None:
    config = config_of(sidecar(tuned=tuned(batch=12)))
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 4, 8, 12]
    assert [each.batch_size for each in config.model_warmup] == [2, 4, 8, 12]
    assert 12 in [spec.batch_size for spec in config.optimization.cuda.graph_spec]
    alone = config_of(sidecar(tuned=tuned(batch=1))).dynamic_batching
    assert list(alone.preferred_batch_size) == [1]
    assert alone.max_queue_delay_microseconds == 0
    assert list(config_of(sidecar(tuned=tuned(batch=64))).dynamic_batching.preferred_batch_size)[-1] == 32


@pytest.mark.parametrize(
    ("budget", "high", "delay"),
    [
        (10.0, 4.0, 3000),
        (100.0, 4.0, 3000),  # no longer than a batch takes
        (10.0, 9.5, 250),
        (10.0, 10.5, 0),
        (7.0, float("inf"), 2000),  # no upper end: the value itself
        (None, 4.0, 2000),  # tuned for throughput
    ],
)
def test_the_delay_is_what_the_budget_leaves(budget: float | None, high: float, delay: int) -> None:
    found = batching(sidecar(tuned=tuned(budget=budget, high=high)))
    assert found.delay == delay
    assert any("queue delay" in words for words in found.tuned) == (budget is not None)


def test_an_engine_of_one_size_takes_the_streams_alone() -> None:
    specs = {"inputs": (TensorSpec("input", "float32", (4, 3)),), "outputs": (TensorSpec("output", "float32", (4, 5)),)}
    found = batching(sidecar(**specs, profiles=(Profile(4, 4, 4),), table=(), tuned=tuned(batch=4)))
    assert (found.sizes, found.instances, found.tuned) == ((), 2, ("2 instances",))


@pytest.mark.slow
def test_deploy_follows_tune_and_says_so(cli: Cli, engine: Path, folder: Path) -> None:
    first = cli("deploy", "triton", "--repository", "before")
    assert first.exit_code == 0
    assert "from tune" not in first.output
    search = ("--percentile", 50, "--batch", "2,4", "--streams", "1,2", "--min-time", 0.05)
    assert cli("tune", "--latency", "5s", *search).exit_code == 0
    chosen = json.loads(sidecar_path(engine).read_text())["engine"]["tuned"]
    assert chosen["budget_ms"] == 5000
    result = cli("deploy", "triton", "--repository", "models")
    assert result.exit_code == 0, result.output
    config = read(folder / "models" / "small" / "config.pbtxt")
    assert config.dynamic_batching.preferred_batch_size[-1] == chosen["batch"]
    assert config.instance_group[0].count == chosen["streams"]
    assert config.dynamic_batching.max_queue_delay_microseconds == round(chosen["latency_ms"]["value"] * 1e3)
    (line,) = [line for line in result.output.splitlines() if "from tune:" in line]
    assert f"batch {chosen['batch']} as the largest preferred one" in line
    assert "a queue delay of" in line


def operator_sets(path: Path) -> set[str]:
    model = onnx.load(str(path), load_external_data=False)
    return {entry.domain for entry in model.opset_import} | {node.domain for node in model.graph.node}


def test_what_onnx_runtime_made_of_the_model_is_not_served(cli: Cli, engine: Path, folder: Path) -> None:
    assert operator_sets(engine) > {""}, "the engine holds operators, or opsets, of ONNX Runtime's own"
    assert cli("deploy", "triton", "--repository", "models").exit_code == 0
    served = folder / "models" / "small" / "1" / "model.onnx"
    assert operator_sets(served) == {""}
    samples = np.random.default_rng(3).standard_normal((5, 3, 8, 8)).astype(np.float32)
    found, expected = (OnnxReference(path)({"input": samples})["output"] for path in (served, engine))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_served_file_has_the_engines_one_batch_size(cli: Cli, folder: Path) -> None:
    models.external(folder / "big.onnx")
    assert cli("build", "big.onnx", "--static", 4, "--backend", "onnxruntime").exit_code == 0
    assert cli("deploy", "triton", "--repository", "models").exit_code == 0
    served = folder / "models" / "big" / "1" / "model.onnx"
    (given,) = onnx.load(str(served), load_external_data=False).graph.input
    assert [dim.dim_value for dim in given.type.tensor_type.shape.dim] == [4, 3, 8, 8]
    samples = np.random.default_rng(3).standard_normal((4, 3, 8, 8)).astype(np.float32)
    found, expected = (OnnxReference(folder / path)({"input": samples})["output"] for path in (served, "big.onnx"))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_an_onnx_file_that_is_gone_or_changed_is_named(cli: Cli, engine: Path, folder: Path) -> None:
    source = folder / "small.onnx"
    source.write_bytes(source.read_bytes() + b"\x72\x01x")
    changed_file = "small.onnx is not the file that small.ort.onnx was built from (SHA-256 differs)"
    refused(cli("deploy", "triton", "--repository", "models"), 1, changed_file, "build the engine again")
    source.unlink()
    gone = "small.onnx, from which small.ort.onnx was built, isn't in engines/"
    refused(cli("deploy", "triton", "--repository", "models"), 1, gone, "put it there")
    assert not (folder / "models").exists()


def test_weights_that_are_gone_are_named(cli: Cli, folder: Path) -> None:
    models.external(folder / "big.onnx")
    assert cli("build", "big.onnx", "--backend", "onnxruntime").exit_code == 0
    (folder / "big.onnx.data").unlink()
    refused(cli("deploy", "triton", "--repository", "models"), 1, "big.onnx.data is missing; big.onnx needs it")


def test_a_repository_that_cannot_be_made_is_named_by_its_option(cli: Cli, engine: Path, folder: Path) -> None:
    (folder / "taken").write_text("")
    result = cli("deploy", "triton", "--repository", "taken")
    refused(result, 1, "taken: File exists", "write elsewhere with --repository")
    assert "--output" not in result.output


def test_a_failure_midway_leaves_nothing(cli: Cli, engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("trtbatch.deployment.triton.shutil.copyfile", full)
    assert cli("deploy", "triton", "--repository", "models").exit_code == 1
    assert list((folder / "models").iterdir()) == []


@pytest.mark.parametrize("replaced", [False, True])
def test_a_full_disk_names_the_file_that_is_not_written(
    cli: Cli, engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """As copying tells it: the file that is read comes first."""

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    line = ("deploy", "triton", "--repository", "models", "--force")
    assert not replaced or cli(*line).exit_code == 0
    monkeypatch.setattr("trtbatch.deployment.triton.shutil.copyfile", full)
    fix = "free disk space, or write elsewhere with --repository"
    refused(cli(*line), 1, "error: models/small/1/model.onnx: No space left on device", fix)


def test_a_damaged_engine_is_not_deployed(cli: Cli, engine: Path, folder: Path) -> None:
    engine.write_bytes(engine.read_bytes()[:-9])
    refused(cli("deploy", "triton", "--repository", "models"), 1, "truncated")
    assert not (folder / "models").exists()


class Absent:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "tritonclient":
            raise ModuleNotFoundError(f"No module named {name!r}", name="tritonclient")


def test_without_tritons_definitions_the_package_is_named(
    cli: Cli, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("tritonclient")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    told = "tritonclient is needed to write Triton's configuration, and isn't installed"
    refused(cli("deploy", "triton", "--repository", "models"), 1, told)


@pytest.mark.parametrize(("text", "delay"), [("2ms", 2000), ("500us", 500), ("0.01s", 10_000), ("0ms", 0)])
def test_delays(text: str, delay: int) -> None:
    assert parse_delay(text) == delay


@pytest.mark.parametrize("text", ["2", "", "-1ms", "2m", "1e3ms", "61s"])
def test_what_is_no_delay(text: str) -> None:
    with pytest.raises(UsageError, match="is not a delay"):
        parse_delay(text)


def test_another_version_says_which_are_served_no_longer_and_another_model_is_refused(
    cli: Cli, engine: Path, folder: Path
) -> None:
    line = ("deploy", "triton", engine, "--repository", "models", "--name", "net")
    for version in (2, 3):
        assert (done := cli(*line, "--version", version)).exit_code == 0, done.output
        assert ("version 2 of models/net stays where it is, and is served no longer" in done.output) == (version == 3)
    assert "versions 2, 3 of models/net stay where they are" in cli(*line, "--version", 4).output
    models.classifier(folder / "wide.onnx", size=12)
    assert cli("build", "wide.onnx", "--max", 8, "--backend", "onnxruntime").exit_code == 0
    before = (folder / "models/net/config.pbtxt").read_text()
    other = ("deploy", "triton", "engines/wide.ort.onnx", *line[3:], "--version", 5)
    done = cli(*other)
    assert done.exit_code == 2
    assert "models/net has other inputs than wide.ort.onnx" in done.output
    assert "--force to replace its configuration" in done.output
    assert (folder / "models/net/config.pbtxt").read_text() == before
    assert cli(*other, "--force").exit_code == 0
    assert cli("build", "small.onnx", "--max", 4, "--backend", "onnxruntime", "--output", "few.ort.onnx").exit_code == 0
    assert cli(*line, "--version", 6, "--force").exit_code == 0
    done = cli("deploy", "triton", "few.ort.onnx", *line[3:], "--version", 7)
    assert done.exit_code == 2
    assert "has a larger batch (8) than few.ort.onnx" in done.output
