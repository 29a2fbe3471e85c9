"""torch → ONNX with the proof; torch is needed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="export needs torch")
onnx = pytest.importorskip("onnx")

from tests.support.messages import refused  # noqa: E402
from tests.support.processes import run_process  # noqa: E402
from trtbatch.core.store import load  # noqa: E402
from trtbatch.exporter import exporters  # noqa: E402
from trtbatch.onnx_graph.run import OnnxReference  # noqa: E402

pytestmark = pytest.mark.torch

Cli = Callable[..., Any]


def exported(folder: Path, name: str) -> Any:
    return load(folder / "engines" / name, "onnx").sidecar


def dims(path: Path) -> dict[str, list[str | int]]:
    graph = onnx.load(path).graph
    return {
        info.name: [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in (*graph.input, *graph.output)
    }


@pytest.mark.slow
def test_resnet18_dynamic_as_typed(cli: Cli, folder: Path) -> None:
    result = cli("export", "resnet18", "--dynamic")
    assert result.exit_code == 0, result.output
    path = folder / "engines" / "resnet18_dynamic.onnx"
    assert dims(path) == {"input": ["batch_size", 3, 224, 224], "output": ["batch_size", 1000]}
    model = onnx.load(path)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [17]
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"BatchNormalization", "Shape", "Constant", "Gather"}, "constants are folded"
    sidecar = exported(folder, "resnet18_dynamic.onnx")
    assert sidecar.preprocessing.resize == 256
    assert sidecar.preprocessing.crop == (224, 224)
    assert sidecar.classes[281] == "tabby"
    assert len(sidecar.classes) == 1000
    assert sidecar.model.exporter == "torchscript"
    assert sidecar.model.opset == 17
    assert sorted(path.name for path in (folder / "engines").iterdir()) == [
        "resnet18_dynamic.onnx",
        "resnet18_dynamic.onnx.json",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_both_exporters_prove_a_dynamic_batch(cli: Cli, folder: Path, exporter: str) -> None:
    result = cli("export", "tests.support.zoo:small", "--dynamic", "--exporter", exporter, "--input-shape", "3,16,16")
    assert result.exit_code == 0, result.output
    path = folder / "engines" / "small_dynamic.onnx"
    assert dims(path) == {"input": ["batch_size", 3, 16, 16], "output": ["batch_size", 5]}
    assert OnnxReference(path)({"input": np.zeros((11, 3, 16, 16), np.float32)})["output"].shape == (11, 5)
    assert exported(folder, "small_dynamic.onnx").model.opset == (17 if exporter == "torchscript" else 18)
    assert not list((folder / "engines").glob("*.data"))


def test_a_static_export_has_its_batch_everywhere(cli: Cli, folder: Path) -> None:
    assert cli("export", "tests.support.zoo:small", "--static", "--input-shape", "3x16x16").exit_code == 0
    assert dims(folder / "engines" / "small.onnx") == {"input": [1, 3, 16, 16], "output": [1, 5]}
    assert cli("export", "tests.support.zoo:small", "--static", "--batch", 4, "--input-shape", "3,16,16").exit_code == 0
    assert dims(folder / "engines" / "small.onnx") == {"input": [4, 3, 16, 16], "output": [4, 5]}
    assert exported(folder, "small.onnx").inputs[0].fixed_batch == 4


def test_the_batch_axis_is_dynamic_unless_static_is_asked_for(cli: Cli, folder: Path) -> None:
    for options in ((), ("--dynamic",)):
        assert cli("export", "tests.support.zoo:small", *options, "--input-shape", "3,16,16").exit_code == 0
        assert [path.name for path in (folder / "engines").glob("*.onnx")] == ["small_dynamic.onnx"]
    assert dims(folder / "engines" / "small_dynamic.onnx")["input"] == ["batch_size", 3, 16, 16]
    refused(cli("export", "resnet18", "--batch", 4), 2, "--batch 4 is for a static export", "--static --batch 4")


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (
            "reshaped",
            ("in the exported model: node /Reshape (Reshape) has the constant [2, 8, -1]", "no output follows"),
        ),
        ("one", ("(Reshape) has the constant [1, 8]", "torch runs it at batch 1 only", "zoo.py, line", ".view(1, 8)")),
        ("eight", ("(Reshape) has the constant [8, 8]", "torch runs it at batch 8 only")),
        (
            "token",
            ("(Concat) has the constant of shape [2, 1, 4]", "torch runs it at batch 2 only", "self.token.expand"),
        ),
        ("untracked", ("at batch 1, row 0 of output differs from torch",)),
    ],
)
def test_a_baked_batch_fails_and_leaves_nothing(cli: Cli, folder: Path, factory: str, told: tuple[str, ...]) -> None:
    result = cli("export", f"tests.support.zoo:{factory}", "--dynamic", "--input-shape", "3,8,8")
    assert result.exit_code == 1
    for words in told:
        assert words in result.output, result.output
    assert "Traceback" not in result.output
    assert list((folder / "engines").iterdir()) == []


def test_a_model_of_one_batch_size_is_exported_for_that(cli: Cli, folder: Path) -> None:
    result = cli("export", "tests.support.zoo:eight", "--static", "--batch", 8, "--input-shape", "3,8,8")
    assert result.exit_code == 0, result.output
    assert dims(folder / "engines" / "eight.onnx") == {"input": [8, 3, 8, 8], "output": [8, 5]}
    assert exported(folder, "eight.onnx").outputs[0].fixed_batch == 8


@pytest.mark.slow
def test_dynamo_refuses_a_baked_batch_too(cli: Cli, folder: Path) -> None:
    result = cli("export", "tests.support.zoo:untracked", "--dynamic", "--input-shape", "3,8,8", "--exporter", "dynamo")
    assert result.exit_code in (0, 1)
    if result.exit_code == 0:  # dynamo can keep x.shape[0] symbolic: then it is right at every batch
        path = folder / "engines" / "untracked_dynamic.onnx"
        assert OnnxReference(path)({"input": np.ones((5, 3, 8, 8), np.float32)})["output"].tolist() == [[960.0]] * 5


def test_tracer_warnings_are_shown(cli: Cli) -> None:
    result = cli("export", "tests.support.zoo:untracked", "--dynamic", "--input-shape", "3,8,8")
    assert "warning: torch: Converting a tensor to a Python" in result.output


@pytest.mark.slow
def test_several_inputs_and_outputs_by_name(cli: Cli, folder: Path) -> None:
    for factory, exporter in (("two_in", "torchscript"), ("two_in_tensors", "torchscript"), ("two_in", "dynamo")):
        result = cli("export", f"tests.support.zoo:{factory}", "--dynamic", "--exporter", exporter)
        assert result.exit_code == 0, result.output
        path = folder / "engines" / f"{factory}_dynamic.onnx"
        shapes = dims(path)
        assert shapes["image"] == ["batch_size", 3, 8, 8]
        assert shapes["ids"][0] == "batch_size"
        assert set(shapes) == {"image", "ids", "sum", "ids_out"}, "an output may not be called like an input"
        specs = {spec.name: spec for spec in load(path, "onnx").sidecar.inputs}
        assert specs["ids"].value_range is not None
        low, high = specs["ids"].value_range
        assert 10 <= low <= high < 90
    again = cli("export", "tests.support.zoo:two_in", "--dynamic", "--input-names", "a,b", "--output-names", "c,d")
    assert again.exit_code == 0, again.output
    assert set(dims(folder / "engines" / "two_in_dynamic.onnx")) == {"a", "b", "c", "d"}
    clash = cli("export", "tests.support.zoo:two_in", "--dynamic", "--output-names", "ids,d")
    assert clash.exit_code == 2
    assert "gives 'ids', an input's name" in clash.output


def test_the_batch_axis_is_found_wherever_it_is(cli: Cli, folder: Path) -> None:
    result = cli("export", "tests.support.zoo:batch_second", "--dynamic")
    assert result.exit_code == 0, result.output
    assert dims(folder / "engines" / "batch_second_dynamic.onnx") == {
        "input": [6, "batch_size", 3],
        "output": [6, "batch_size", 3],
    }


@pytest.mark.slow
def test_an_exported_program_is_exported(cli: Cli, folder: Path) -> None:
    from tests.support.zoo import Small

    program = torch.export.export(
        Small().eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, folder / "small.pt2")
    for exporter in ("torchscript", "dynamo"):
        result = cli("export", "small.pt2", "--dynamic", "--exporter", exporter)
        assert result.exit_code == 0, result.output
        assert dims(folder / "engines" / "small_dynamic.onnx")["input"] == ["batch_size", 3, 8, 8]
    fixed = torch.export.export(Small().eval(), (torch.randn(2, 3, 8, 8),))
    torch.export.save(fixed, folder / "fixed.pt2")
    result = cli("export", "fixed.pt2", "--dynamic")
    assert result.exit_code == 1
    assert "itself fails in torch at batch" in result.output


def test_weights_over_the_limit_lie_beside_and_are_found_from_anywhere(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporters, "EXTERNAL_ABOVE", 50_000)
    assert cli("export", "tests.support.zoo:wide", "--dynamic", "--input-shape", "3,16,16").exit_code == 0
    assert sorted(path.name for path in (folder / "engines").iterdir()) == [
        "wide_dynamic.onnx",
        "wide_dynamic.onnx.data",
        "wide_dynamic.onnx.json",
    ]
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    onnx_file = folder / "engines" / "wide_dynamic.onnx"
    for line in (("--max", 4), ("--static", 2)):
        result = cli("build", onnx_file, *line, "--backend", "onnxruntime")
        assert result.exit_code == 0, result.output
        monkeypatch.chdir(folder)
        assert (
            cli("bench", next((elsewhere / "engines").glob("*.ort.onnx")), "--batch", 2, "--iterations", 3).exit_code
            == 0
        )
        monkeypatch.chdir(elsewhere)
        for file in (elsewhere / "engines").iterdir():
            file.unlink()
    (folder / "engines" / "wide_dynamic.onnx.data").write_bytes(b"short")
    result = cli("build", onnx_file)
    assert result.exit_code == 1
    assert "truncated" in result.output


@pytest.mark.parametrize(
    ("output", "code", "told"),
    [
        ("x", 2, "--output x doesn't end in .onnx"),
        ("folder.onnx", 2, "folder.onnx is a folder"),
        ("file/x.onnx", 1, "--output file/x.onnx can't be written: file: File exists"),
        ("new/x.onnx", 1, "--output new/x.onnx can't be written: .: Read-only file system"),
        (None, 1, ".: Read-only file system"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_before_the_model_is_loaded(
    cli: Cli,
    folder: Path,
    closed: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    output: str | None,
    code: int,
    told: str,
) -> None:
    monkeypatch.setattr("trtbatch.exporter.export.load_model", None)
    (folder / "folder.onnx").mkdir()
    (folder / "file").write_text("")
    closed(folder)
    result = cli("export", "resnet18", "--dynamic", *(() if output is None else ("--output", output)))
    refused(result, code, told, *(("elsewhere with --output",) if code == 1 else ()))
    assert sorted(path.name for path in folder.iterdir()) == ["file", "folder.onnx"], "nothing new"


@pytest.mark.parametrize("where", ["traced", "saved"])
def test_a_full_disk_names_the_file_that_is_not_written(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Writing into an open file names nothing; torch wraps what it met in an error of its own."""

    def full(*_: object, **options: object) -> None:
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if where == "traced":
            raise RuntimeError("torch's advice") from error
        raise error

    monkeypatch.setattr(*((torch.onnx, "export") if where == "traced" else (onnx, "save")), full)
    result = cli(
        "export", "tests.support.zoo:small", "--exporter", "dynamo", "--input-shape", "3,16,16", "--output", "y.onnx"
    )
    refused(result, 1, "error: y.onnx: No space left on device", "write elsewhere with --output")
    assert list(folder.iterdir()) == []


def test_weights_from_a_file(cli: Cli, folder: Path) -> None:
    from torchvision import models

    torch.manual_seed(3)
    ten = models.get_model("squeezenet1_1", num_classes=10)
    torch.save({"state_dict": {f"module.{key}": value for key, value in ten.state_dict().items()}}, folder / "ten.pth")
    result = cli("export", "squeezenet1_1", "--dynamic", "--weights", "ten.pth", "--input-shape", "3,64,64")
    assert result.exit_code == 0, result.output
    sidecar = exported(folder, "squeezenet1_1_dynamic.onnx")
    assert sidecar.model.weights == "file ten.pth"
    assert sidecar.classes is None
    assert sidecar.outputs[0].shape == ("batch_size", 10)
    image = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        wanted = ten.eval()(image).numpy()
    found = OnnxReference(folder / "engines" / "squeezenet1_1_dynamic.onnx")({"input": image.numpy()})["output"]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
    result = cli("export", "alexnet", "--weights", "ten.pth")
    assert result.exit_code == 1
    assert "are not alexnet's" in result.output


@pytest.mark.slow
def test_random_weights_follow_the_seed_and_are_never_silent(cli: Cli, folder: Path) -> None:
    hashes = []
    for seed in (0, 0, 1):
        assert (
            cli("export", "squeezenet1_1", "--weights", "random", "--seed", seed, "--input-shape", "3,64,64").exit_code
            == 0
        )
        hashes.append(exported(folder, "squeezenet1_1_dynamic.onnx").artifact.sha256)
    assert hashes[0] == hashes[1] != hashes[2]
    assert "warning: weights: random (seed 1)" in cli("build", "engines/squeezenet1_1_dynamic.onnx").output


@pytest.fixture
def unreachable_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's folder of weights, which is empty; by a dead proxy there is no network."""
    monkeypatch.setenv("TORCH_HOME", str(folder / "cache"))
    for name in ("https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return folder / "cache" / "hub" / "checkpoints"


def test_unreachable_weights_are_random_with_a_loud_warning_or_an_error(
    cli: Cli, folder: Path, unreachable_weights: Path
) -> None:
    line = ("export", "squeezenet1_1", "--input-shape", "3,64,64")
    done = cli(*line)
    assert done.exit_code == 0, done.output
    assert "warning: RANDOM WEIGHTS" in done.stderr
    assert "squeezenet1_1-b8a52dc0.pth" in done.stderr
    assert "random (seed 0)" in done.stdout
    (folder / "engines" / "squeezenet1_1_dynamic.onnx").unlink()
    done = cli(*line, "--weights", "pretrained")
    assert done.exit_code == 1
    assert "error: pretrained weights of squeezenet1_1 can't be had" in done.stderr
    assert f"put squeezenet1_1-b8a52dc0.pth into {unreachable_weights}{os.sep}" in done.stderr


def test_cached_weights_are_taken(cli: Cli, unreachable_weights: Path) -> None:
    from torchvision import models

    state = models.get_model("squeezenet1_1").state_dict()
    unreachable_weights.mkdir(parents=True)
    torch.save(state, unreachable_weights / "squeezenet1_1-b8a52dc0.pth")
    done = cli("export", "squeezenet1_1", "--input-shape", "3,64,64", "--weights", "pretrained")
    assert done.exit_code == 0, done.output
    assert "weights pretrained (SqueezeNet1_1_Weights.IMAGENET1K_V1)" in done.stdout


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("photos/x.jpg", "photos/x.jpg is a file, and no model"),
        ("photos", "photos is a folder, and no model"),
        ("photos/y.jpg", "photos/y.jpg looks like a path, and no model"),
    ],
)
def test_paths_are_no_misspelt_names(cli: Callable[..., Any], folder: Path, model: str, told: str) -> None:
    (folder / "photos").mkdir()
    (folder / "photos/x.jpg").write_bytes(b"")
    (folder / "m.onnx").write_bytes(b"")
    refused(cli("export", model), 2, told, ".pt2 file, package.module:factory, or a torchvision name")
    refused(cli("export", "m.onnx"), 2, "m.onnx is an ONNX file: it is exported already", "trtbatch build m.onnx")


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("resnet19",), 2, "closest: resnet18, resnet152, resnet101"),
        (("tests.support.zoo:smal",), 2, "has no callable 'smal'; closest: small"),
        (("tests.support.zoo:no_function",), 2, "no callable"),
        (("no_such_module:f",), 2, "no module 'no_such_module'"),
        (("tests.support.zoo:not_a_module",), 1, "returned int, not an nn.Module"),
        (("tests.support.zoo:broken",), 1, "no such file: weights.bin"),
        (("tests.support.zoo:fails",), 1, "this model never runs"),
        (("nothing.pt2",), 2, "no such file"),
        (("resnet18", "--dynamic", "--batch", 2), 2, "--batch 2 is for a static export"),
        (("resnet18", "--dynamic", "--static"), 2, "--dynamic and --static contradict each other"),
        (("resnet18", "--static", "--dynamic", "--batch", 4), 2, "--dynamic and --static contradict each other"),
        (("resnet18", "--input-shape", "3,224"), 2, "3 channels"),
        (("resnet18", "--input-shape", "0,2,2"), 2, "is not a shape"),
        (("resnet18", "--weights", "nothing.pth"), 2, "no such file"),
        (("resnet18", "--opset", 9), 2, "opset 9 is older"),
        (("tests.support.zoo:small", "--input-names", "a,b"), 2, "the model has 1 inputs (input)"),
        (("tests.support.zoo:small", "--output", "small.engine"), 2, "doesn't end in .onnx"),
        (("tests.support.zoo:two_in", "--input-shape", "3,8,8"), 2, "brings its own example inputs"),
        (("tests.support.zoo:small", "--exporter", "dynamo", "--opset", 17), 2, "writes opset 18 and later, not 17"),
        (("tests.support.zoo:small", "--opset", 99), 2, "opset 99 doesn't exist"),
        (("tests.support.zoo:small", "--opset", 0), 2, "opset 0 is older"),
        ((":x",), 2, "':x' names no factory"),
        ((".zoo:small",), 2, "'.zoo:small' names no factory"),
        (("tests.support.zoo:listed",), 1, "example input 'x' is list, not a tensor"),
        (("tests.support.zoo:noisy_spec", "--dynamic"), 1, "gives another output each time, in torch"),
        (
            ("tests.support.zoo:noisy", "--dynamic", "--input-shape", "3,8,8"),
            1,
            "gives another output each time, in torch",
        ),
        (("tests.support.zoo:unused", "--dynamic"), 1, "makes no use of its input 'input1'"),
        (("tests.support.zoo:brain", "--dynamic"), 1, "brain itself fails in torch"),
        (("tests.support.zoo:divides", "--dynamic"), 1, "the spec's inputs(2) failed"),
        (("tests.support.zoo:leaves", "--dynamic"), 1, "ended the program (3)"),
        (("tests.support.zoo:cropped", "--dynamic"), 1, "its preprocessing crops to (16, 16)"),
        (("tests.support.zoo:unnamed", "--dynamic"), 1, "has 2 class names and 5 scores"),
        (("resnet18", "--seed", -1), 2, "--seed"),
        (("resnet18", "--nonsense"), 2, "No such option: --nonsense"),
        ((), 2, "Missing argument 'MODEL'"),
    ],
)
def test_wrong_words_get_a_line_of_problem_and_one_of_fix(
    cli: Cli, folder: Path, args: tuple[object, ...], code: int, told: str
) -> None:
    result = cli("export", *args)
    assert result.exit_code == code, result.output
    lines = result.output.strip().splitlines()
    assert lines[-2].startswith("error: "), result.output
    assert told in lines[-2], result.output
    assert lines[-1].startswith("fix: ")
    assert len(lines[-1]) > 6
    assert not list(folder.rglob("*.onnx"))


FACTORIES = """
from os.path import join as tinted
from collections import OrderedDict, defaultdict

def tiny(): ...
def small(): ...
class Net: ...
{more}
"""


def proposed(cli: Cli, folder: Path, name: str, attribute: str, source: str) -> list[str]:
    (folder / f"{name}.py").write_text(source)
    result = cli("export", f"{name}:{attribute}")
    assert result.exit_code == 2, result.output
    return [str(line) for line in result.output.strip().splitlines()[-2:]]


def test_what_a_module_defines_is_proposed_before_what_it_imports(cli: Cli, folder: Path) -> None:
    few = FACTORIES.format(more="")
    told = proposed(cli, folder, "few_factories", "nope", few)
    assert told[0] == "error: few_factories has no callable 'nope'; it defines: tiny, small, Net"
    told = proposed(cli, folder, "few_factories_too", "tinny", few)
    assert told[1] == "fix: name one of these, such as few_factories_too:tiny"
    told = proposed(cli, folder, "few_factories_three", "tintd", few)
    assert told[0].endswith("it defines: tiny, small, Net, tinted"), "an imported one that is near comes last"


def test_of_many_factories_the_nearest_are_proposed(cli: Cli, folder: Path) -> None:
    many = FACTORIES.format(more="\n".join(f"def model_{letter}(): ..." for letter in "abcdefghij"))
    told = proposed(cli, folder, "many_factories", "model_x", many)
    assert "; closest: model_" in told[0]
    assert told[0].count("model_") == 4
    assert "Ordered" not in told[0]


def test_a_module_without_a_callable_of_its_own_says_what_it_imports(cli: Cli, folder: Path) -> None:
    told = proposed(cli, folder, "imports_alone", "joiner", "from os.path import join\n")
    assert told[0].endswith("has no callable 'joiner'; closest: join")
    told = proposed(cli, folder, "nothing_at_all", "f", "x = 1\n")
    assert told[0].endswith("has no callable 'f', and no other")
    assert "write a function there" in told[1]


def test_a_number_behind_static_is_told_where_it_goes(cli: Cli) -> None:
    for line, fix in (
        (("--static", 4), "fix: --static takes no value: write --static --batch 4; see "),
        (("--dynamic", "--static", 4), "fix: --static takes no value: write --dynamic, or --static --batch 4; see "),
    ):
        result = cli("export", "resnet18", *line)
        assert result.exit_code == 2, result.output
        assert result.output.strip().splitlines()[-1].startswith(fix), result.output


def test_an_opset_that_the_tensorrt_in_reach_cannot_read_names_both(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporters, "tensorrt_version", lambda: "8.6.1")
    result = cli("export", "tests.support.zoo:small", "--opset", 18)
    assert result.exit_code == 2
    assert "opset 18 is too new for TensorRT 8.6.1, which reads up to 17" in result.output
    monkeypatch.setattr(exporters, "tensorrt_version", lambda: "11.5.0")
    assert cli("export", "tests.support.zoo:small", "--opset", 18).exit_code == 0


def test_a_factory_with_preprocessing_goes_all_the_way(cli: Cli, folder: Path, photos: Path) -> None:
    assert cli("export", "tests.support.zoo:photos", "--dynamic").exit_code == 0
    assert cli("build", "--max", 4, "--opt", 4).exit_code == 0
    result = cli("infer", "--input", photos, "--output", "p.jsonl", "--topk", 2)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (folder / "p.jsonl").read_text().splitlines()]
    assert len(lines) == 10
    assert all(entry["class"] in "abcde" for line in lines for entry in line["top"])


def test_attention_is_exported_by_its_ordinary_operators(cli: Cli, folder: Path) -> None:
    result = cli("export", "tests.support.zoo:attention", "--dynamic")
    assert result.exit_code == 0, result.output
    assert exported(folder, "attention_dynamic.onnx").outputs[0].shape == ("batch_size", 8)


def test_outputs_that_are_no_rows_go_all_the_way(cli: Cli, folder: Path) -> None:
    assert cli("export", "tests.support.zoo:constants", "--dynamic").exit_code == 0
    result = cli("build", "--max", 4)
    assert result.exit_code == 0, result.output
    assert cli("verify", "--against", "torch").exit_code == 0
    sidecar = load(folder / "engines/constants_dynamic.ort.onnx", "engine").sidecar
    assert {spec.name: spec.batch_axis for spec in sidecar.outputs} == {"rows": 0, "total": None, "doubled": None}


@pytest.mark.slow
@pytest.mark.process
def test_a_failing_exporter_prints_its_reason_and_no_pages(folder: Path) -> None:
    done = run_process("export", "tests.support.zoo:small", "--opset", 25, "--input-shape", "3,8,8", cwd=folder)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) <= 4, done.stderr


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_weights_from_a_file_go_into_the_network_that_they_were_trained_in(name: str) -> None:
    from torchvision import models

    from trtbatch.exporter.weights import blank

    module = blank(name)
    assert module.transform_input is True, "as torchvision builds it for its pretrained weights"
    assert set(module.state_dict()) == set(models.get_model(name, weights=None, init_weights=False).state_dict())


def test_a_baked_batch_is_named_with_dynamo_too(cli: Cli, folder: Path) -> None:
    result = cli("export", "tests.support.zoo:eight", "--dynamic", "--input-shape", "3,8,8", "--exporter", "dynamo")
    assert result.exit_code == 1
    assert "(Reshape) has the constant [8, 8]" in result.output


def test_dynamo_is_the_default_where_torch_has_no_torchscript(monkeypatch: pytest.MonkeyPatch) -> None:
    from trtbatch.errors import UsageError

    assert exporters.choose_exporter(None) == "torchscript"
    monkeypatch.setattr(torch.onnx, "export", lambda module, args, f, *, dynamic_shapes=None: None)
    assert exporters.choose_exporter(None) == exporters.choose_exporter("dynamo") == "dynamo"
    with pytest.raises(UsageError, match="no longer has the torchscript exporter"):
        exporters.choose_exporter("torchscript")
