"""Load a ``.pt2`` program without running code that its file holds.

``torch.export.load`` runs code from the file at many places. It unpickles sample inputs, weights, constants and
objects, evaluates expressions with sympy and guards with Python, imports modules that a tree spec names, writes names
of the graph into Python source, and calls whatever an operator's name leads to. The checks here accept what an
ordinary program needs and refuse the rest. Every string of the program's JSON goes through a rule of its field in
torch's schema, and a field without a rule holds a plain name.

torch then gets the values that were checked, and neither the path nor its own fallbacks, which unpickle. Operators of
torch are trusted to keep to their tensors; a program may still take much memory or time.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import io
import json
import math
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from trtbatch.errors import ModelError
from trtbatch.exporter.weights import first_line
from trtbatch.util import optional

__all__ = ["check_expression", "load_program"]

_TRUST = "pass `trust_code` if you made this file yourself"

_MEMBERS = re.compile(
    r"models/model\.json|data/sample_inputs/model\.pt|archive_format|archive_version|byteorder|\.data/\w+|extra/.+"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)",
    re.ASCII,
)

_CODE = {
    "data/constants/custom_obj_": "is a custom object, which torch unpickles",
    "data/constants/opaque_obj_": "is an opaque object, which torch unpickles",
    "data/weights/model.pt": "is a pickle, as torch 2.8 and earlier wrote it",
    "data/constants/model.pt": "is a pickle, as torch 2.8 and earlier wrote it",
    "data/aotinductor/": "is compiled code, which torch loads",
}
"""Members that are code, by the beginning of their names."""


class _RefusedError(Exception):
    """An entry that runs code, or that isn't known not to."""

    def __init__(self, entry: str, why: str, fix: str = f"save it again without it, or {_TRUST}") -> None:
        super().__init__(f"{entry} {why}")
        self.fix = fix


def load_program(path: Path, trust_code: bool = False) -> Any:
    """Return the ``ExportedProgram`` of a ``.pt2`` file.

    Args:
        path: of a file that ``torch.export.save`` wrote.
        trust_code: load it as torch does, with the code that it holds.

    Raises:
        ModelError: an entry of the file would run code, or isn't known not to.
        Exception: whatever torch raises for a damaged file.
    """
    torch = optional.require("torch", "load a .pt2 program")
    data = path.read_bytes()  # once: a file that changes while it is checked would be another one when it is loaded
    try:
        return torch.export.load(io.BytesIO(data)) if trust_code else _load(data)
    except _RefusedError as refused:
        raise ModelError(f"{path}: {refused}", refused.fix) from refused


def _load(data: bytes) -> Any:
    torch = optional.require("torch", "load a .pt2 program")
    try:
        from torch._export.serde import schema
        from torch._export.serde.serialize import ExportedProgramDeserializer, _dict_to_dataclass
        from torch.export.pt2_archive import PT2ArchiveReader
        from torch.export.pt2_archive._package import _load_constants, _load_state_dict
    except ImportError as error:
        why = f"can't be checked with torch {torch.__version__}"
        raise _RefusedError("the program", why, f"install torch 2.14, or {_TRUST}") from error
    try:
        reader = PT2ArchiveReader(io.BytesIO(data))
    except RuntimeError as error:
        if b"serialized_exported_program.json" not in data:
            raise
        why = "is of torch 2.7 or earlier, whose weights are pickles"
        raise _RefusedError(
            "serialized_exported_program.json", why, f"export and save it again with this torch, or {_TRUST}"
        ) from error
    _check_members(reader, len(data))
    for folder, prefix in (("weights", "weight_"), ("constants", "tensor_")):
        _check_payloads(schema.PayloadConfig, reader, folder, prefix)
    program = json.loads(reader.read_string("models/model.json"))
    _check(schema.ExportedProgram, program, "models/model.json")
    # torch pastes a string that is an input into the source of a guard. No sample input is a string either.
    if any("as_string" in each for each in program["graph_module"]["graph"]["inputs"]):
        raise _RefusedError("models/model.json", "takes a string as an input")
    inputs = _sample_inputs("data/sample_inputs/model.pt", reader.read_bytes("data/sample_inputs/model.pt"))
    return ExportedProgramDeserializer().deserialize(
        _dict_to_dataclass(schema.ExportedProgram, program),
        _load_state_dict(reader, "model"),
        _load_constants(reader, "model"),
        inputs,  # a tuple, which torch takes as it is: bytes it would unpickle
    )


def _check_members(reader: Any, held: int) -> None:
    names = reader.get_file_names()
    for name in names:
        why = _code(name)
        if why or not _MEMBERS.fullmatch(name):
            raise _RefusedError(name, why or "is no part of a program that is known here")
    if len(set(names)) < len(names):  # which of them is read depends on the reader
        raise _RefusedError("its table of contents", "names a member twice", "save it again with torch.export.save")
    _check_size("its members", reader.archive_file, held)


def _code(member: str) -> str | None:
    return next((why for beginning, why in _CODE.items() if member.startswith(beginning)), None)


def _check_size(entry: str, archive: Any, held: int) -> None:
    """Refuse members that are larger than the file of `held` bytes: torch doesn't compress, a zip bomb does."""
    unpacked = sum(archive.get_record_size(name) for name in archive.get_all_records())
    if unpacked > held:
        raise _RefusedError(entry, f"unpack to {unpacked} bytes from {held}", "save it again with torch.export.save")


def _check_payloads(kind: Any, reader: Any, folder: str, prefix: str) -> None:
    entry = f"data/{folder}/model_{folder}_config.json"
    config = json.loads(reader.read_string(entry))
    _check(kind, config, entry)
    for name, meta in config["config"].items():
        member = f"data/{folder}/{meta['path_name']}"
        why = _code(member) or ("is a pickle (use_pickle): a tensor subclass" if meta["use_pickle"] else None)
        if why or not meta["path_name"].startswith(prefix):
            raise _RefusedError(f"{member} ({name})", why or "is no tensor")


def _sample_inputs(entry: str, data: bytes) -> tuple[Any, ...] | None:
    """Return the tensors that the program was exported with, by position and by keyword."""
    torch = optional.require("torch", "load a .pt2 program")
    if not data:
        return None
    fix = f"save it again with tensors as its example inputs, or {_TRUST}"
    try:
        _check_size(entry, torch._C.PyTorchFileReader(io.BytesIO(data)), len(data))  # noqa: SLF001
        loaded = torch.load(io.BytesIO(data), weights_only=True)
    except _RefusedError:
        raise
    except Exception as error:  # torch itself unpickles after any error whatever
        why = f"holds sample inputs that only unpickling could load ({type(error).__name__})"
        raise _RefusedError(entry, why, fix) from error
    match loaded:
        case (tuple() as args, dict() as kwargs):
            # torch writes names of inputs, and keys inside them, into the source of guards.
            if all(isinstance(each, torch.Tensor) for each in (*args, *kwargs.values())) and all(map(_is_name, kwargs)):
                return args, kwargs
    raise _RefusedError(entry, "holds sample inputs other than tensors", fix)


# Strings of the JSON, each by its field in torch's schema

Rule = Callable[[str], None]


def _refuse(why: str) -> NoReturn:
    raise ValueError(why)


def _is_name(text: object) -> bool:
    return isinstance(text, str) and text.isascii() and text.isidentifier()


def _check_name(text: str) -> None:
    if text and not _is_name(text):
        _refuse("isn't a plain name, and torch writes names into source that it runs")


def _check_path(text: str) -> None:
    """Names of submodules and parameters: also "0" and "my-block", which become ``getattr(…, "my-block")``."""
    if not re.fullmatch(r"[\w\-.@]*", text, re.ASCII) or re.search(r"(^|\.)__\w*__(\.|$)", text):
        _refuse("isn't a path of plain names, and torch writes it into source that it runs")


def _accept(text: str) -> None:
    """Accept text that torch only keeps, or writes into source as a literal (``repr``)."""


_SYMBOLIC = re.compile(
    r"_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_)|math\.trunc"
    r"|torch\.sym_(not|int|float|ite|max|min|sqrt)"
    r"|torch\.ops\.aten\.(_assert_scalar|sym_constrain_range|sym_constrain_range_for_size)\.default"
    r"|torch\.ops\.higher_order\.(cond|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.ops\.torchvision\.(nms|roi_align|roi_pool|ps_roi_align|ps_roi_pool|deform_conv2d)\.default"
)
"""Targets that are known one by one. torchvision's other operators read and write files."""


def _check_target(text: str) -> None:
    """Accept operators on tensors: torch looks up any other name too (``torch.os.system``), and calls it."""
    torch = optional.require("torch", "load a .pt2 program")
    aten = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", text, re.ASCII)
    if aten:
        overload = getattr(getattr(torch.ops.aten, aten[1], None), aten[2], None)
        if isinstance(overload, torch._ops.OpOverload) and aten[1] != "from_file":  # it opens a file by its name  # noqa: SLF001
            schema = overload._schema  # aten::save(t item, str filename) and its like have no tensor  # noqa: SLF001
            if any("Tensor" in str(each.type) for each in (*schema.arguments, *schema.returns)):
                return
    if not _SYMBOLIC.fullmatch(text):
        _refuse("isn't one of torch's operators on tensors, and torch calls what it names")


_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def _check_spec(text: str) -> None:
    """Accept the tree of an input or output: torch imports the modules that other kinds of context name."""
    _, spec = json.loads(text)
    nodes = [spec]
    for node in nodes:
        keys = json.loads(node["context"] or "null")
        if node["type"] not in _CONTAINERS or not isinstance(keys, list | None):
            _refuse(f"is a {node['type']}, and torch imports what such a tree names")
        for key in keys or ():
            _check_path(str(key))
        nodes += node["children_spec"]


_SYMBOL = re.compile(r"(s|u|zf|zuf|ps)\d+", re.ASCII)

_POWERS = frozenset(("Pow", "PowByNatural", "FloatPow", "LShift", "RShift", "RoundDecimal"))

_NAMES = _POWERS | {
    *("Symbol", "Integer", "Float", "Rational", "true", "false", "oo", "int_oo"),
    *("Add", "Mul", "Mod", "Max", "Min", "Abs", "floor", "ceiling", "And", "Or", "Not"),
    *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality"),
    *("LessThan", "GreaterThan", "StrictLessThan", "StrictGreaterThan"),
    # The rest of torch.utils._sympy.functions.
    *("FloorDiv", "CeilDiv", "CleanDiv", "IntTrueDiv", "FloatTrueDiv", "PythonMod", "ModularIndexing", "Where"),
    *("CeilToInt", "FloorToInt", "TruncToInt", "TruncToFloat", "RoundToInt", "ToFloat", "Identity"),
    "IsNonOverlappingAndDenseIndicator",
    # Of guards, which torch's PythonPrinter writes.
    *("L", "math", "torch", "max", "min", "abs"),
}

_ATTRIBUTES = re.compile(
    r"math\.(trunc|floor|ceil|sqrt|log2|inf)|torch\._?sym_(float|int|max|min|not|ite|sqrt)"
    r"|.*\.(size|stride|storage_offset)"
)

_NODES = (
    *(
        ast.Expression,
        ast.Load,
        ast.Call,
        ast.keyword,
        ast.Constant,
        ast.Name,
        ast.BinOp,
        ast.UnaryOp,
        ast.Compare,
    ),
    *(ast.BoolOp, ast.And, ast.Or, ast.unaryop, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow),
    *(ast.BitAnd, ast.BitOr, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Subscript, ast.Attribute),
)


@functools.lru_cache(4096)  # a program repeats the few expressions of its shapes in every tensor
def check_expression(text: str) -> None:
    """Accept arithmetic on shapes, of which sympy evaluates some as Python, and Python executes the guards.

    That of a tensor's shape is ``Mul(Integer(2), Symbol('s27', integer=True))``, that of a guard
    ``L['x'].size()[0] % 2 == 0``.

    Raises:
        ValueError: anything else, or a power whose size isn't bounded.
    """
    # sympy changes the text before it parses it, by line breaks, "!", "^" and "lambda" among others.
    if not re.fullmatch(r"[\w .,+\-*/%()<>=!&|~'\[\]]*", text, re.ASCII):
        _refuse("has characters that no expression of shapes needs")
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"doesn't parse: {first_line(error)}") from error
    texts = {id(constant) for node in nodes if (constant := _text(node))}
    for node in nodes:
        if not isinstance(node, _NODES):
            _refuse(f"has a {type(node).__name__}")
        match node:
            case ast.Name(id=name) if name not in _NAMES and not _SYMBOL.fullmatch(name):
                _refuse(f"has the name {name}")
            case ast.Attribute() if not _ATTRIBUTES.fullmatch(ast.unparse(node)):
                _refuse(f"has the attribute {node.attr}")
            case ast.Constant() if id(node) not in texts and _size(node) > 2**63:
                _refuse(f"has the constant {node.value!r:.40}")
            case ast.BinOp(left=base, op=ast.Pow(), right=power):
                _check_power(base, power)
            case ast.Call(func=ast.Name(id=name), args=[base, power], keywords=[]) if name in _POWERS:
                _check_power(base, power)
            case ast.Call(func=ast.Name(id="Symbol" | "Float"), args=[_], keywords=keywords):
                if any(_size(each.value) > 1024 for each in keywords):
                    _refuse(f"has {ast.unparse(node)}")
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name not in _POWERS | {"Symbol", "Float"}:
                pass
            case ast.Call() if node.keywords or not isinstance(node.func, ast.Attribute):
                _refuse(f"has {ast.unparse(node)}")


def _text(node: ast.AST) -> ast.Constant | None:
    """Return the text that `node` may hold: a symbol's name, a float's digits, an input's name."""
    match node:
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str() as text) as constant]):
            return constant if _SYMBOL.fullmatch(text) else None
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str() as text) as constant]):
            return constant if re.fullmatch(r"-?\d+(\.\d*)?(e[+-]?\d{1,3})?", text, re.ASCII) else None
        case ast.Subscript(slice=ast.Constant(value=str() as text) as constant):
            return constant if _is_name(text) else None
    return None


def _check_power(base: ast.expr, power: ast.expr) -> None:
    """Refuse what takes more than a moment to evaluate: ``9**9**9``."""
    match power:
        case ast.UnaryOp(operand=inner) | ast.Call(func=ast.Name(id="Integer"), args=[inner]):
            return _check_power(base, inner)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str() as number)]) if _text(power):
            return _check_power(base, ast.Constant(float(number)))
    nested = any(isinstance(node, ast.Pow) or getattr(node, "id", "") in _POWERS for node in ast.walk(base))
    if nested or _size(power) > 64:
        _refuse("has a power whose size isn't bounded")


def _size(node: ast.expr) -> float:
    """Magnitude of a number, and infinity for anything else."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return abs(number)
    return math.inf


_RULES: dict[str, Rule] = {
    "expr_str": check_expression,
    "guards_code": check_expression,
    "target": _check_target,
    "as_operator": _check_target,
    "in_spec": _check_spec,
    "out_spec": _check_spec,
    "fqn": _check_path,
    "parameter_name": _check_path,
    "buffer_name": _check_path,
    "tensor_constant_name": _check_path,
    "as_string": _accept,
    "as_strings": _accept,
    "metadata": _accept,  # stack traces and names of modules
    "torch_version": _accept,
}
_KEYS: dict[str, Rule] = {
    "range_constraints": check_expression,
    "config": _check_path,
    "treespec_namedtuple_fields": _check_path,
}


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _check(kind: Any, value: Any, where: str, field: str = "") -> None:
    """Refuse JSON that isn't of the schema's `kind`, and strings that their rule refuses.

    torch itself takes any JSON for any field: a number may be a string, which something evaluates later.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is not None:
            _check(args[0], value, where, field)
    elif origin is list and isinstance(value, list):
        for index, each in enumerate(value):
            _check(args[0], each, f"{where}[{index}]", field)
    elif origin is dict and isinstance(value, dict):
        for key, each in value.items():
            _judge(_KEYS.get(field, _check_name), key, where)
            _check(args[1], each, f"{where}/{key}", field)
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        fields = _fields(kind)
        for name in fields.keys() & value.keys():  # torch reads no others
            _check(fields[name], value[name], f"{where}/{name}", name)
    elif kind is str and isinstance(value, str):
        _judge(_RULES.get(field, _check_name), value, where)
    elif kind is float and (isinstance(value, int | float) or value in ("Infinity", "-Infinity", "NaN")):
        pass
    elif origin is not None or not issubclass(kind, int) or not isinstance(value, int):  # also enums and bool
        raise _RefusedError(where, f"is {type(value).__name__}, not {getattr(kind, '__name__', kind)}")


def _judge(rule: Rule, text: str, where: str) -> None:
    try:
        rule(text)
    except ValueError as error:
        raise _RefusedError(f"{where} ({text!r:.100})", str(error)) from error
