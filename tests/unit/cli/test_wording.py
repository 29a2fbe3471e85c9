"""Arguments in backticks, as the library writes them, and options, as the command line shows them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

import trtbatch
from tests.support import models
from tests.support.command_line import commands
from tests.support.processes import ROOT
from trtbatch.cli.wording import as_typed
from trtbatch.errors import InputError, ProfileError, TrtbatchError, UsageError

OTHERS = re.compile(r"trtbatch bench |pip install|ray start|--backend-config|\"git\"|--c\{|--c:")
"""Lines with options of other programs, and with the one that writes the results that report reads."""


@pytest.mark.parametrize(
    ("told", "typed"),
    [
        ("pass `max=40`, or leave out `verify=False`", "pass --max 40, or leave out --no-verify"),
        ("`profiles='auto'` and `profiles`", "--profiles auto and --profile"),
        ("`profiles=['1:1:1', '1:4:8']`", "--profile 1:1:1 --profile 1:4:8"),
        ("`shapes={'input': (3, 224, 224)}`", "--shape input=3,224,224"),
        ("`dynamic=False, batch=4`", "--static --batch 4"),
        ("`batches=[1, 2]` `modes=['async']`", "--batch 1,2 --mode async"),
        ("`input_shape=(3, HEIGHT, WIDTH)`", "--input-shape 3,HEIGHT,WIDTH"),
        ("`keep_fp32=['/a b']`", "--keep-fp32 '/a b'"),
        ("`latency_ms=5`", "--latency 5ms"),
        ("`trtbatch.build('a b.onnx', max=40, verify=False)`", "trtbatch build 'a b.onnx' --max 40 --no-verify"),
        ("`trtbatch.build(ONNX_FILE, keep_fp32=['/a b'])`", "trtbatch build ONNX_FILE --keep-fp32 '/a b'"),
        ("`trtbatch.build('A B.onnx')`", "trtbatch build 'A B.onnx'"),
        ("`trtbatch.build()`", "trtbatch build"),
        ("`trtbatch.deploy_triton(ENGINE, repository='models')`", "trtbatch deploy triton ENGINE --repository models"),
    ],
)
def test_arguments_become_options(told: str, typed: str) -> None:
    assert as_typed(told) == typed


@pytest.mark.parametrize(
    "text", ["a`b`c", "`nonsense`", "`x=1`", "`max=`", "`max=40", "`import os`", "`1`", "` max`", "``"]
)
def test_what_is_no_argument_stays(text: str) -> None:
    assert as_typed(text) == text


def test_every_option_that_is_told_exists() -> None:
    """Whatever stands in backticks below ``cli`` and is translated is an option of some command."""
    known = {
        option
        for command in commands().values()
        for each in command.params
        for option in (*each.opts, *each.secondary_opts)
    }
    known |= {"--debug", "--help"}
    for path in sorted((ROOT / "trtbatch").rglob("*.py")):
        if "cli" in path.parts or path.name == "__init__.py":
            continue
        literals = " ".join(re.findall(r'"(?:[^"\\]|\\.)*"', path.read_text(encoding="utf-8")))
        for token in re.findall(r"(?<!`)`([a-z_]+)(?:=[^`]*)?`(?!`)", literals):
            typed = as_typed(f"`{token}`")
            if typed.startswith("--"):
                assert typed in known, (path, token)


def test_no_module_below_the_command_line_names_an_option() -> None:
    found = []
    for path in sorted((ROOT / "trtbatch").rglob("*.py")):
        if "cli" in path.parts:
            continue
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        docs = {
            number
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        for number, line in enumerate(lines, 1):
            code = line.partition("  # ")[0]
            if number not in docs and re.search(r"--[a-z]", code) and not OTHERS.search(code):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    allowed = "trtbatch/reporting/page.py"  # a style sheet
    assert [line for line in found if not line.startswith(allowed)] == []


def test_an_error_names_arguments_that_work(folder: Path) -> None:
    models.classifier(folder / "m.onnx")
    trtbatch.build("m.onnx", min=1, opt=4, max=8, backend="onnxruntime")
    with pytest.raises(ProfileError) as caught:
        trtbatch.bench(batches=[40])
    assert "--" not in str(caught.value)
    assert caught.value.fix == "rebuild with `max=40`, or pass `batches=[8]`"
    trtbatch.bench(batches=[8], iterations=3)
    with pytest.raises(UsageError, match="`profiles='auto'` chooses what `opt` says"):
        trtbatch.build("m.onnx", profiles="auto", opt=4)
    np.save("x.npy", np.full((2, 3, 8, 8), 2, np.int64))
    with pytest.raises(InputError) as wrong:
        trtbatch.infer(input="x.npy")
    assert "--" not in str(wrong.value)
    assert isinstance(wrong.value, TrtbatchError)
