"""Programs (.pt2) that run code when torch loads them, and ordinary ones."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import json
import logging
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="a program needs torch")

from tests.support.messages import refused  # noqa: E402
from tests.support.processes import run_process  # noqa: E402
from trtbatch.errors import ModelError, UsageError  # noqa: E402
from trtbatch.exporter.models import load_model  # noqa: E402
from trtbatch.exporter.program import check_expression, load_program  # noqa: E402

pytestmark = pytest.mark.torch

Members = dict[str, bytes]
Craft = Callable[[Members, str], None]

MODEL = "models/model.json"
INPUTS = "data/sample_inputs/model.pt"


class Touches:
    """Unpickles to the value of `result`, and creates the file `marker`."""

    def __init__(self, marker: str, result: str) -> None:
        self.code = f"__import__('pathlib').Path({marker!r}).touch() or {result}"

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (self.code,)


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@functools.cache
def ordinary() -> Members:
    """Members of a small convolutional program."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 5))
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(net.eval(), (torch.randn(2, 3, 4, 4),), dynamic_shapes=(batch,))
    whole = io.BytesIO()
    torch.export.save(program, whole)
    with zipfile.ZipFile(whole) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(path: Path, change: Callable[[Members], None] = lambda members: None, compression: int = 0) -> Path:
    """Write the program, with some of its members changed."""
    members = dict(ordinary())
    change(members)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"net/{name}", data)
    return path


def edited(members: Members, name: str, edit: Callable[[Any], None]) -> None:
    data = json.loads(members[name])
    edit(data)
    members[name] = json.dumps(data).encode()


def graph(edit: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda data: edit(data["graph_module"]["graph"])


def sample_inputs(members: Members, marker: str) -> None:
    members[INPUTS] = saved(Touches(marker, "((__import__('torch').zeros(2, 3, 4, 4),), {})"))


def legacy_constants(members: Members, marker: str) -> None:
    members["data/constants/model.pt"] = saved(Touches(marker, "{}"))


def pickled_weight(members: Members, marker: str) -> None:
    name = "data/weights/model_weights_config.json"
    first = next(iter(json.loads(members[name])["config"]))
    edited(members, name, lambda data: data["config"][first].update(path_name="weight_9", use_pickle=True))
    weight = "__import__('torch').nn.Parameter(__import__('torch').zeros(4, 3, 3, 3))"
    members["data/weights/weight_9"] = saved(Touches(marker, weight))


def constant(members: Members, path: str, data: bytes) -> None:
    meta = {"path_name": path, "is_param": False, "use_pickle": True, "tensor_meta": None}
    edited(members, "data/constants/model_constants_config.json", lambda config: config["config"].update(c=meta))
    members[f"data/constants/{path}"] = data


def custom_object(members: Members, marker: str) -> None:
    constant(members, "custom_obj_0", b"")


def opaque_object(members: Members, marker: str) -> None:
    constant(members, "opaque_obj_0", pickle.dumps(Touches(marker, "__import__('torch').zeros(1)")))


def expression(members: Members, marker: str) -> None:
    def edit(data: Any) -> None:
        size = next(iter(data["sym_int_values"].values()), None) or data["tensor_values"]["input"]["sizes"][0]
        size["as_expr"]["expr_str"] = Touches(marker, size["as_expr"]["expr_str"]).code

    edited(members, MODEL, graph(edit))


FIVE = [
    (sample_inputs, f"{INPUTS} holds sample inputs that only unpickling could load"),
    (legacy_constants, "data/constants/model.pt is a pickle"),
    (pickled_weight, "data/weights/weight_9 (0.weight) is a pickle"),
    (custom_object, "data/constants/custom_obj_0 is a custom object"),
    (opaque_object, "data/constants/opaque_obj_0 is an opaque object"),
    (expression, "expr_str (\"__import__('pathlib')"),
]
"""The ways in which torch says that it unpickles or evaluates."""


def guard(members: Members, marker: str) -> None:
    edited(members, MODEL, lambda data: data["guards_code"].append(Touches(marker, "True").code))


def input_name(members: Members, marker: str) -> None:
    """torch writes the names of inputs into the head of a function."""
    name = json.dumps(f"input=open({marker!r}, 'w')").encode()
    for before, after in ((b'{"name": "input"}', b'{"name": %s}'), (b'"input": {"dtype"', b'%s: {"dtype"')):
        assert before in members[MODEL]
        members[MODEL] = members[MODEL].replace(before, after % name)


def signature(edit: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda data: edit(data["graph_module"]["module_call_graph"][0]["signature"])


def argument_name(members: Members, marker: str) -> None:
    names = ["input", f"more=open({marker!r}, 'w')"]
    edited(members, MODEL, signature(lambda data: data.update(forward_arg_names=names)))


def parameter_name(members: Members, marker: str) -> None:
    """torch makes ``getattr(self, "0")`` of the name."""
    name = json.dumps(f'0"), open("{marker}", "w"), ("').encode()
    for member in (MODEL, "data/weights/model_weights_config.json"):
        members[member] = members[member].replace(b'"0.weight"', name)


def tree_spec(members: Members, marker: str) -> None:
    """torch imports the module of an enum."""
    Path(marker).with_name("made_of_enums.py").write_text(f"open({marker!r}, 'w').close()")
    key = {"__enum__": True, "fqn": "made_of_enums:Key", "name": "A"}
    spec = [1, {"type": "builtins.dict", "context": json.dumps([key]), "children_spec": []}]
    edited(members, MODEL, signature(lambda data: data.update(out_spec=json.dumps(spec))))


def file_operator(members: Members, marker: str) -> None:
    """An operator of torch that creates a file."""
    inputs = {"filename": {"as_string": marker}, "shared": {"as_bool": True}, "size": {"as_int": 4}}
    node = {
        "target": "torch.ops.aten.from_file.default",
        "inputs": [{"name": name, "arg": value, "kind": 1} for name, value in inputs.items()],
        "outputs": [{"as_tensor": {"name": "file"}}],
        "metadata": {},
    }

    def edit(data: Any) -> None:
        data["nodes"].insert(0, node)
        data["tensor_values"]["file"] = {
            **data["tensor_values"]["relu"],
            "sizes": [{"as_int": 4}],
            "strides": [{"as_int": 1}],
        }

    edited(members, MODEL, graph(edit))


MORE = [
    (guard, "guards_code[0] (\"__import__('pathlib')"),
    (input_name, '("input=open('),
    (argument_name, 'forward_arg_names[1] ("more=open('),
    (parameter_name, """isn't a path of plain names"""),
    (tree_spec, "isn't a path of plain names"),
    (file_operator, "target ('torch.ops.aten.from_file.default') isn't one of torch's operators on tensors"),
]
"""Further ways."""


@pytest.fixture
def marker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(folder))
    return folder / "marker"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the code that torch runs opens one
@pytest.mark.parametrize(("craft", "told"), [*FIVE, *MORE])
def test_a_program_that_runs_code_is_refused(
    folder: Path, marker: Path, craft: Craft, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder / "x.pt2", lambda members: craft(members, str(marker)))
    with pytest.raises(ModelError) as error:
        load_model(str(path))
    assert told in error.value.problem, error.value
    assert str(path) in error.value.problem, error.value
    assert "`trust_code`" in error.value.fix
    assert not marker.exists()
    # The control: torch runs it. Custom objects are unpickled in C++; that torch hands over their bytes is enough.
    if craft is custom_object:
        monkeypatch.setattr("torch._C._pickle_load_obj", lambda data: marker.touch())
    with contextlib.suppress(Exception):
        torch.export.load(path).module()(torch.zeros(2, 3, 4, 4))
    gc.collect()
    assert marker.exists(), "torch doesn't run it: this test proves nothing"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the code that torch runs opens one
@pytest.mark.parametrize("craft", [pickled_weight, opaque_object, expression, guard])
def test_trusted_code_runs(folder: Path, marker: Path, craft: Craft) -> None:
    path = write(folder / "x.pt2", lambda members: craft(members, str(marker)))
    assert load_model(str(path), trust_code=True).run(3)["output"].shape == (3, 5)
    assert marker.exists()


class Convolutional(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        self.head = torch.nn.Linear(8, 5)
        self.scale = torch.full((8,), 0.5)  # a constant

    def forward(self, x: Any) -> Any:
        larger = torch.nn.functional.interpolate(x, scale_factor=1.5)
        return {"scores": self.head(self.features(larger).mean((2, 3)) * self.scale)}


class Transformer(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
        self.layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: Any, shift: Any) -> Any:
        with torch.no_grad():  # a graph in the graph
            moved = x + shift
        return self.layer(self.attention(moved, moved, moved)[0]).reshape(x.shape[0], -1), moved


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("module", "shapes"), [(Convolutional, {"x": (3, 8, 8)}), (Transformer, {"x": (6, 16), "shift": (6, 16)})]
)
def test_ordinary_programs_load_and_run_at_any_batch(
    folder: Path, module: Any, shapes: dict[str, tuple[int, ...]], strict: bool
) -> None:
    net = module().eval()
    axes = {name: {0: torch.export.Dim("batch", max=64)} for name in shapes}
    example = {name: torch.randn(2, *shape) for name, shape in shapes.items()}
    program = torch.export.export(net, (), example, dynamic_shapes=axes, strict=strict)
    torch.export.save(program, folder / "x.pt2", extra_files={"notes/read me.txt": "anything"})
    torch.export.save(program.run_decompositions(), folder / "decomposed.pt2")
    for name in ("x.pt2", "decomposed.pt2"):
        model = load_model(name)
        for batch in (1, 2, 3, 7):
            inputs = {name: torch.randn(batch, *shape) for name, shape in shapes.items()}
            with torch.no_grad():
                told = net(**inputs)
            told = told.values() if isinstance(told, dict) else told
            for found, expected in zip(model.call(inputs, "here").values(), told, strict=True):
                np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_guards_on_shapes_stay(folder: Path) -> None:
    class Halved(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return x.reshape(2, -1) + (1 if x.shape[0] % 2 == 0 and x.shape[0] * 1.5 > 3 else 0)

    shapes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(
        Halved(), (torch.randn(8),), dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=False
    )
    torch.export.save(program, folder / "x.pt2")
    with zipfile.ZipFile(folder / "x.pt2") as archive:
        assert json.loads(archive.read(f"x/{MODEL}"))["guards_code"], "without guards this proves nothing"
    module = load_program(folder / "x.pt2").module()
    assert module(torch.zeros(6)).tolist() == [[1] * 3] * 2
    with pytest.raises(AssertionError, match="Guard failed"):
        module(torch.zeros(7))


@pytest.mark.parametrize(
    "text",
    [
        "s27",
        "2*s27",
        "Max(1, s0)",
        "s27//2",
        "s0**2 + 3*u1",
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(2), FloorDiv(Symbol('s77', integer=True), Integer(-3)))",
        "FloatPow(ToFloat(Symbol('s53', integer=True)), Float('0.5', precision=53))",
        "Pow(Symbol('s0', integer=True), Integer(2))",
        "Eq(Mod(s0, 2), 0) & (s0 >= 4)",
        "L['x'].size()[0] % 2 == 0 and not 3 < L['args'][1].size()[2]",
        "(3 % (36*math.trunc(1.5*torch.sym_float(L['x'].size()[2])))) != 0",
    ],
)
def test_expressions_of_shapes(text: str) -> None:
    check_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('x')",
        "s0.__class__",
        "L['x'].numpy()",
        "L['x'].size.__call__()",
        "torch.os.mkdir('x')",
        "(lambda: 1)()",
        "[s0 for s0 in (1,)]",
        "(s0, s0)",
        "'s0'",
        "Symbol('__import__')",
        "Add('print(1)', 2)",
        "Symbol(name='print(1)')",
        "Max(*s0)",
        "open(s0)",
        "eval(s0)",
        "s0 if s0 else 1",
        "(s0 := 1)",
        "s0[s0](1)",
        "9**9**9",
        "((9**64)**64)**64",
        "Pow(Pow(9, 64), 64)",
        "Pow(9, e=1024)",
        "PowByNatural(9, 99999999)",
        "LShift(1, 10000000000)",
        "2**s0",
        "Float(1, 1000000000)",
        "Float('1', precision=1000000000)",
        f"{10**30} + s0",
        "s0 # comment",
        "s0\n+ 1",
        "s0!",
        "s0 +",
        "(" * 500 + "s0" + ")" * 500,
        "",
    ],
)
def test_whatever_else_is_no_expression(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(has|is|doesn't|raises|calls|needs)"):
        check_expression(text)


def retargeted(target: str) -> Callable[[Members], None]:
    return lambda members: edited(members, MODEL, graph(lambda data: data["nodes"][1].update(target=target)))


@pytest.mark.parametrize(
    "target",
    [
        *("torch.os.system", "torch.ops.load_library", "torch.hub.load", "_operator.methodcaller", "math.prod"),
        *("torch.ops.aten.relu.default.__call__", "torch.ops.aten.__class__.mro", "torch.ops.aten.save.default"),
        *("torch.ops.torchvision.write_file.default", "torch.ops.mylib.relu.default", "#mine:relu"),
        *("torch.ops.higher_order.with_effects", "torch.ops.higher_order.triton_kernel_wrapper_functional"),
    ],
)
def test_targets_other_than_operators_on_tensors(folder: Path, target: str) -> None:
    path = write(folder / "x.pt2", retargeted(target))
    with pytest.raises(ModelError, match="isn't one of torch's operators on tensors"):
        load_program(path)


def odd_input(members: Members) -> None:
    edited(members, MODEL, graph(lambda data: data["inputs"].append({"as_string": "' or open('x') or '"})))


def number_that_is_text(members: Members) -> None:
    edited(members, MODEL, lambda data: data.update(range_constraints={"s0": {"min_val": "print(1)", "max_val": None}}))


def nested_inputs(members: Members) -> None:
    members[INPUTS] = saved((({"a']": torch.zeros(2)},), {}))


def torchscript_inputs(members: Members) -> None:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), stream)
    members[INPUTS] = stream.getvalue()


def compressed_inputs(members: Members) -> None:
    with zipfile.ZipFile(io.BytesIO(saved(((torch.zeros(10000),), {})))) as source:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target:
            for name in source.namelist():
                target.writestr(name, source.read(name))
    members[INPUTS] = stream.getvalue()


def borrowed_path(members: Members) -> None:
    name = "data/constants/model_constants_config.json"
    meta = {"path_name": "../sample_inputs/model.pt", "is_param": False, "use_pickle": False, "tensor_meta": None}
    edited(members, name, lambda data: data["config"].update(c=meta))


def class_path(members: Members) -> None:
    members[MODEL] = members[MODEL].replace(b'"0.weight"', b'"__class__.weight"')


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (odd_input, "takes a string as an input"),
        (number_that_is_text, "range_constraints/s0/min_val is str, not int"),
        (nested_inputs, "sample inputs other than tensors"),
        (torchscript_inputs, "holds sample inputs that only unpickling could load"),
        (compressed_inputs, f"{INPUTS} unpack to"),
        (borrowed_path, "'../sample_inputs/model.pt') isn't a plain name"),
        (class_path, "isn't a path of plain names"),
        (lambda members: members.update({"data/aotinductor/model/x.so": b""}), "x.so is compiled code"),
        (lambda members: members.update({"data/constants/x.so": b""}), "data/constants/x.so is no part of a program"),
        (lambda members: members.update({"models/other.json": b"{}"}), "models/other.json is no part of a program"),
        (lambda members: members.update({"models/../x": b""}), "models/../x is no part of a program"),
        (lambda members: members.update({"MODELS/model.json": b""}), "MODELS/model.json is no part of a program"),
    ],
)
def test_what_no_ordinary_program_holds(folder: Path, change: Callable[[Members], None], told: str) -> None:
    path = write(folder / "x.pt2", change)
    with pytest.raises(ModelError) as error:
        load_program(path)
    assert told in error.value.problem, error.value


def test_odd_archives(folder: Path) -> None:
    with pytest.raises(ModelError, match="its members unpack to"):
        load_program(write(folder / "x.pt2", lambda members: members.update({"extra/x": bytes(10**6)}), 8))
    path = write(folder / "x.pt2")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(f"net/{MODEL}", b"{}")
    with pytest.raises(ModelError, match="names a member twice"):
        load_program(path)
    path = folder / "old.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_exported_program.json", "{}")
    with pytest.raises(ModelError, match=r"is of torch 2\.7 or earlier"):
        load_program(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="is not an exported program of torch"):
        load_model(str(path))


def test_an_older_program_behind_a_newer_one_is_not_loaded(folder: Path, marker: Path) -> None:
    """torch falls back to the older format, found by another zip reader, where its own fails."""
    path = write(folder / "x.pt2")
    old = io.BytesIO()
    with zipfile.ZipFile(old, "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_exported_program.json", ordinary()[MODEL])
        for kind in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{kind}.pt", saved(Touches(str(marker), "{}")))
    path.write_bytes(path.read_bytes() + old.getvalue())
    with pytest.raises(ModelError, match=r"is of torch 2\.7 or earlier"):
        load_model(str(path))
    assert not marker.exists()
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert marker.exists(), "torch doesn't run it: this test proves nothing"


def test_the_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = write(folder / "x.pt2"), []
    read = Path.read_bytes

    def swap(self: Path) -> bytes:
        data = read(self)
        reads.append(self)
        self.write_bytes(b"another file")
        return data

    monkeypatch.setattr(Path, "read_bytes", swap)
    assert load_program(path).module()(torch.zeros(3, 3, 4, 4)).shape == (3, 5)
    assert reads == [path]


@pytest.mark.slow
@pytest.mark.process
def test_the_command_refuses_and_trusts(cli: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = folder / "marker"
    write(folder / "runs_code.pt2", lambda members: sample_inputs(members, str(marker)))
    refused(cli("export", "runs_code.pt2", "--dynamic"), 1, INPUTS, "--trust-code")
    assert not marker.exists()
    assert not list(folder.glob("engines/*"))
    # In a process: torch's warning about the fallback has a wrong format, which pytest's handler raises.
    result = run_process("export", "runs_code.pt2", "--dynamic", "--trust-code", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert marker.exists()
    assert (folder / "engines/runs_code_dynamic.onnx").exists()
    # The reference is the same file.
    assert cli("build", "--max", 4, "--backend", "onnxruntime").exit_code == 0
    marker.unlink()
    refused(cli("verify", "--against", "torch"), 1, INPUTS, "--trust-code")
    assert not marker.exists()
    monkeypatch.setattr(logging.root.manager, "disable", logging.WARNING)
    result = cli("verify", "--against", "torch", "--trust-code")
    assert result.exit_code == 0, result.output
    assert marker.exists()


@pytest.mark.parametrize("model", ["resnet18", "tests.support.zoo:small"])
def test_trust_is_for_programs(cli: Callable[..., Any], folder: Path, model: str) -> None:
    with pytest.raises(UsageError):
        load_model(model, trust_code=True)
    refused(
        cli("export", model, "--trust-code"), 2, f"--trust-code is for .pt2 files, and {model} isn't one", "leave out"
    )
