"""The real Python bindings of TensorRT, without its libraries: what they offer, and what our code uses of them.

The bindings are ordinary wheels. They import as soon as shared libraries of the right names export the few
entry points that they link to; stubs of those are compiled here. Nothing of TensorRT runs: the classes, methods,
signatures and enum members that the bindings declare are all that is asked.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Inventory = dict[str, dict[str, str]]
"""Docstrings by class and member; functions and classes of the module itself under ``""``."""

FILES = (
    "__init__.py",
    "builder.py",
    "compat.py",
    "contexts.py",
    "deserialized.py",
    "engine.py",
    "preprocess.py",
    "session.py",
    "slots.py",
    "worker.py",
)

CLASSES = {
    "ModuleType": "module",
    "NetworkBuilder": "Builder",
    "NetworkDefinition": "INetworkDefinition",
    "BuilderConfig": "IBuilderConfig",
    "CudaEngine": "ICudaEngine",
    "ExecutionContext": "IExecutionContext",
    "ParserError": "ParserError",
    "Runtime": "Runtime",
    "TimingCache": "ITimingCache",
    "NetworkLayer": "ILayer",
}
"""Our protocols by name, and the class of TensorRT that each stands for."""

FIELDS = {
    "self._trt": "module",
    "self._config": "IBuilderConfig",
    "self._builder": "Builder",
    "self._runtime": "Runtime",
    "self._deserialized": "ICudaEngine",
    "self.cuda_engine": "ICudaEngine",
    "self._engine.cuda_engine": "ICudaEngine",
    "prepared.context": "IExecutionContext",
    "self._context": "IExecutionContext",
    "contexts.cuda_engine": "ICudaEngine",
}

TABLES = ("_TYPES", "_TYPE_FLAGS", "_OPTION_FLAGS")
"""Of compat.py: names of enum members by our own words."""


def download(requirement: str, folder: Path) -> str | None:
    """Install a wheel, by itself, into `folder`; what pip says where there is none for this Python."""
    line = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--target"]
    done = subprocess.run([*line, str(folder), requirement], check=False, capture_output=True, text=True, timeout=300)
    if done.returncode == 0:
        return None
    return next((text for text in done.stderr.splitlines() if text.startswith("ERROR")), done.stderr[-300:])


def stub_libraries(bindings: Path, folder: Path) -> None:
    """Compile a library for each NVIDIA one that the bindings need, exporting all symbols that they lack."""
    wanted = subprocess.run(["readelf", "-d", bindings], capture_output=True, text=True, check=True).stdout
    missing = subprocess.run(
        ["nm", "-D", "--undefined-only", bindings], capture_output=True, text=True, check=True
    ).stdout
    own = [line.split()[-1] for line in missing.splitlines() if " U " in line and "@" not in line]
    theirs = [name for name in own if re.search(r"nvuff|nvcaffe|INTERNAL|PluginRegistry|NvOnnx|LibNvInfer", name)]
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in theirs), encoding="utf-8")
    for library in re.findall(r"\[(libnv[^\]]+)\]", wanted):
        line = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(folder / library), str(source)]
        subprocess.run(line, check=True, capture_output=True)


_TAKE_STOCK = """
import importlib, inspect, json, sys
trt = importlib.import_module(sys.argv[1])
stock = {"": {name: getattr(value, "__doc__", "") or "" for name, value in vars(trt).items()}}
for name, value in vars(trt).items():
    if inspect.isclass(value):
        stock[name] = {member: (getattr(value, member).__doc__ or "") for member in dir(value)}
print(json.dumps([trt.__version__, stock]))
"""


def take_stock(folder: Path, libraries: Path, module: str = "tensorrt_bindings") -> tuple[str, Inventory]:
    """Import the bindings in a process of their own; their version and inventory."""
    environment = os.environ | {"PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(libraries)}
    done = subprocess.run(
        [sys.executable, "-c", _TAKE_STOCK, module],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    version, inventory = json.loads(done.stdout.splitlines()[-1])
    return version, inventory


def ask(code: str, folder: Path, libraries: Path) -> object:
    """What code says that finds the bindings as ``trt`` and prints one line of JSON."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([str(folder), root, os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "LD_LIBRARY_PATH": str(libraries)}
    line = [sys.executable, "-c", f"import json, tensorrt_bindings as trt\n{code}"]
    done = subprocess.run(line, check=False, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class Use:
    """One use of a member in our code; `guarded` where the function asks first whether the object has it."""

    owner: str
    member: str
    where: str
    guarded: bool
    call: tuple[int, tuple[str, ...]] | None = None
    """Positional arguments and keywords, where it is called."""

    classes: tuple[str, ...] = ()
    """Those that the function asks the module for first: an argument may be a member of one."""

    def __str__(self) -> str:
        return f"{self.owner or 'tensorrt'}.{self.member} ({self.where})"


def uses(package: Path, inventory: Inventory) -> list[Use]:
    """Every use of a TensorRT object in the files that may touch one. Types follow from parameters, fields, calls.

    Args:
        inventory: whose docstrings tell what a method returns.
    """
    found: list[Use] = []
    for name in FILES:
        tree = ast.parse((package / name).read_text(encoding="utf-8"))
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                found += _Reader(function, name, inventory).read()
    return found


def all_questions(package: Path) -> set[str]:
    """Every name that the files ask a TensorRT object for."""
    trees = (ast.parse((package / name).read_text(encoding="utf-8")) for name in FILES)
    asked = {name for tree in trees for node in ast.walk(tree) for name in _asked_in(node)}
    tables = (ast.parse((package / "compat.py").read_text(encoding="utf-8"))).body
    for node in tables:  # flags that are asked for through a table
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and ast.unparse(node.targets[0]) in TABLES:
            asked |= {str(each.value) for each in node.value.values if isinstance(each, ast.Constant)}
    return asked


def _asked_in(node: ast.AST) -> set[str]:
    return questions(node) if isinstance(node, ast.FunctionDef) else set()


def questions(function: ast.AST) -> set[str]:
    """The names that a function asks for with ``hasattr`` or ``getattr``: constants, or tuples of them by name."""
    lists = {
        node.targets[0].id: [each.value for each in node.value.elts if isinstance(each, ast.Constant)]
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Tuple)
    }
    asked: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr"):
            if isinstance(node.args[1], ast.Constant):
                asked.add(str(node.args[1].value))
            else:
                asked |= {str(name) for names in lists.values() for name in names}
    return asked


class _Reader:
    """The uses in one function, nested ones read by themselves with the outer's parameters in view."""

    def __init__(self, function: ast.FunctionDef, file: str, inventory: Inventory) -> None:
        self._function = function
        self._file = file
        self._inventory = inventory
        self._types: dict[str, str] = {}
        for argument in (*function.args.args, *function.args.kwonlyargs):
            if isinstance(argument.annotation, ast.Name) and argument.annotation.id in CLASSES:
                self._types[argument.arg] = CLASSES[argument.annotation.id]

    def read(self) -> list[Use]:
        asked = questions(self._function)
        for node in ast.walk(self._function):
            self._learn(node)
        classes = tuple(sorted(each for each in asked if each[:1].isupper() and not each.isupper()))
        called = {id(node.func): node for node in ast.walk(self._function) if isinstance(node, ast.Call)}
        found = []
        for node in ast.walk(self._function):
            if isinstance(node, ast.Attribute) and (owner := self._type(node.value)) is not None:
                call = called.get(id(node))
                shape = None if call is None else (len(call.args), tuple(key.arg or "" for key in call.keywords))
                where = f"{self._file}:{node.lineno}"
                name = "" if owner == "module" else owner
                guarded = node.attr in asked or owner.removeprefix("class:") in asked
                found.append(Use(name, node.attr, where, guarded, shape, classes))
        return found

    def _learn(self, node: ast.AST) -> None:
        """Types of what is assigned, and of ``trt = optional.require("tensorrt", …)``."""
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            if isinstance(node.target, ast.Name) and ast.unparse(node.annotation) in CLASSES:
                self._types[node.target.id] = CLASSES[ast.unparse(node.annotation)]
            return
        if not isinstance(node, ast.Assign):
            return
        pairs: Iterator[tuple[ast.expr, ast.expr]]
        target = node.targets[0]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = iter(zip(target.elts, node.value.elts))
        else:
            pairs = iter([(target, node.value)])
        for left, right in pairs:
            kind = self._type(right)
            if isinstance(left, ast.Name) and kind is not None:
                self._types[left.id] = kind

    def _type(self, node: ast.AST) -> str | None:
        """The class of an expression: ``module``, a class's name, ``class:NAME`` for the class itself, or None."""
        if isinstance(node, ast.Name):
            return self._types.get(node.id)
        if isinstance(node, ast.Attribute):
            if (field := FIELDS.get(ast.unparse(node))) is not None:
                return field
            owner = self._type(node.value)
            if owner == "module":
                return f"class:{node.attr}"
            return None
        if isinstance(node, ast.Call):
            return self._result(node)
        if isinstance(node, ast.IfExp):
            return self._type(node.body) or self._type(node.orelse)
        return None

    def _result(self, node: ast.Call) -> str | None:
        text = ast.unparse(node.func)
        if text == "optional.require" and isinstance(node.args[0], ast.Constant) and node.args[0].value == "tensorrt":
            return "module"
        if not isinstance(node.func, ast.Attribute):
            return None
        owner = self._type(node.func.value)
        if owner == "module":
            return node.func.attr
        if owner is None or owner.startswith("class:"):
            return None
        told = re.search(r"-> (?:[\w.]+\.)?(\w+)", self._inventory.get(owner, {}).get(node.func.attr, ""))
        return told[1] if told and told[1] in self._inventory else None


def complaint(use: Use, inventory: Inventory) -> str | None:
    """What keeps a use from working with these bindings; None where nothing does."""
    owner = use.owner.removeprefix("class:")
    members = inventory.get(owner)
    if members is None or use.member not in members:
        return None if use.guarded else f"{use}: not there"
    if use.call is None or any(name not in inventory[""] for name in use.classes):
        return None
    return _call_complaint(use, members[use.member])


def _call_complaint(use: Use, document: str) -> str | None:
    """Whether some overload in a pybind docstring takes these arguments."""
    overloads = re.findall(r"^\s*(?:\d+\. )?" + re.escape(use.member) + r"\((.*)\) -> ", document, re.MULTILINE)
    if not overloads or use.call is None:
        return None  # a class, or a docstring without a signature: nothing to hold the call against
    count, keywords = use.call
    for text in overloads:
        parameters = _split(text)
        if parameters and parameters[0].startswith("self") and not use.owner.startswith("class:"):
            parameters = parameters[1:]  # given by the call on an instance
        if any(parameter.startswith("*") for parameter in parameters):
            return None
        names = [parameter.partition(":")[0].strip() for parameter in parameters]
        needed = [name for name, parameter in zip(names, parameters) if "=" not in parameter]
        given = {*names[:count], *keywords}
        if count <= len(names) and set(keywords) <= set(names) and set(needed) <= given:
            return None
    return f"{use}: no overload takes {count} arguments and {keywords or 'no keywords'}: {overloads}"


def _split(text: str) -> list[str]:
    """Parameters of a signature, at the commas outside of brackets and quotes."""
    parts, depth = [""], 0
    for letter in re.sub(r"<[^<>]*(?:<[^<>]*>[^<>]*)*>", "x", text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]
