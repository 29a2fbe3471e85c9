"""The package's functions: their examples, their names and what they return."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import trtbatch
from tests.support import models
from tests.support.processes import child_environment
from tests.support.results import timed
from trtbatch.core.store import load
from trtbatch.errors import TrtbatchError, UsageError

FUNCTIONS = [name for name in trtbatch.__all__ if inspect.isfunction(getattr(trtbatch, name))]

NET = """
import torch

def net():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 5))
"""


@pytest.fixture
def examples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A folder with what the examples name, and their variables."""
    monkeypatch.syspath_prepend(str(folder))
    models.classifier(folder / "model.onnx")
    trtbatch.build("model.onnx", min=1, opt=4, max=8, backend="onnxruntime")
    (folder / "traffic.csv").write_text("batch,count\n1,100\n8,10\n")
    images = np.zeros((20, 3, 8, 8), np.float32)
    return {"trtbatch": trtbatch, "images": images, "result": timed(lambda batch: 1.0 + batch, [1, 2, 3, 4])}


def test_every_function_has_an_example_and_names_its_parameters() -> None:
    for name in FUNCTIONS:
        function = getattr(trtbatch, name)
        told = inspect.getdoc(function) or ""
        assert ">>> " in told, name
        for parameter in inspect.signature(function).parameters:
            assert f"    {parameter}: " in told, (name, parameter)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.torch] * (name == "export")) for name in FUNCTIONS]
)
def test_the_example_runs(name: str, examples: dict[str, Any], folder: Path) -> None:
    (folder / "mymodels.py").write_text(NET)
    finder, flags = doctest.DocTestFinder(recurse=False), doctest.NORMALIZE_WHITESPACE
    (test,) = finder.find(getattr(trtbatch, name), name, globs=examples)
    told: list[str] = []
    doctest.DocTestRunner(optionflags=flags).run(test, out=told.append)
    assert told == [], "".join(told)


def test_all_names_are_there_and_no_others() -> None:
    assert len(trtbatch.__all__) <= 18
    for name in trtbatch.__all__:
        assert getattr(trtbatch, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = trtbatch.nonsense


def test_functions_can_be_imported_by_name() -> None:
    from trtbatch import build, export

    assert callable(build)
    assert callable(export)


def test_batches_are_numbers_or_text(examples: dict[str, Any], folder: Path) -> None:
    found = trtbatch.verify("engines/model.ort.onnx", batches="1,2,4,8")
    assert found.batches == (1, 2, 4, 8)
    assert trtbatch.verify("engines/model.ort.onnx", batches=[2]).batches == (2,)


def test_profiles_are_text_or_objects(examples: dict[str, Any], folder: Path) -> None:
    (one,) = load(folder / "engines/model.ort.onnx", "engine").sidecar.engine.profiles
    made = trtbatch.build("model.onnx", profiles=["1:1:1", one], backend="onnxruntime", output=folder / "two.ort.onnx")
    assert list(map(str, made.sidecar.engine.profiles)) == ["1:1:1", "1:4:8"]
    with pytest.raises(UsageError, match="say the same thing twice"):
        trtbatch.build("model.onnx", static=4, max=8)


def test_wrong_rows_are_a_result_and_its_words(examples: dict[str, Any], folder: Path) -> None:
    models.first_row_only(folder / "wrong.onnx")
    trtbatch.build("wrong.onnx", max=8, backend="onnxruntime", verify=False)
    found = trtbatch.verify("engines/wrong.ort.onnx", batches=[4])
    assert repr(found) == "VerifyResult('wrong.ort.onnx', WRONG at batch 4)"
    assert "rows 1–3 are all zero" in found._repr_html_()


def test_tables_of_notebooks_are_escaped_html(examples: dict[str, Any], folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    model.graph.output[0].name = model.graph.node[-1].output[0] = "<b>"
    onnx.save(model, folder / "odd.onnx")
    shown = trtbatch.inspect("odd.onnx")._repr_html_()  # type: ignore[union-attr]
    assert "&lt;b&gt;" in shown
    assert "<b>" not in shown
    result = trtbatch.bench("engines/model.ort.onnx", batches=[1], iterations=3)
    for found in (
        result,
        trtbatch.compare(result, result),
        trtbatch.report([result]),
        trtbatch.inspect("engines/model.ort.onnx"),
        trtbatch.infer("engines/model.ort.onnx", input="random", count=2),
        trtbatch.plan("engines/model.ort.onnx", traffic="traffic.csv"),
        load(folder / "engines/model.ort.onnx", "engine"),
    ):
        assert found._repr_html_().startswith("<table>"), found  # type: ignore[union-attr]
        assert repr(found).startswith(type(found).__name__ + "("), found


ENGINE = "engines/model.ort.onnx"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: trtbatch.bench(ENGINE, batches=[]), "`batches` names no batch size"),
        (lambda: trtbatch.bench(ENGINE, batches=[0]), "`batches=[0]` is not a batch size; give 1 to 1000000"),
        (lambda: trtbatch.bench(ENGINE, batches="1,2,..."), "batch list '1,2,...'"),
        (lambda: trtbatch.bench(ENGINE, iterations=0), "`iterations=0` is out of range; give 1 or more"),
        (lambda: trtbatch.bench(ENGINE, min_time=float("nan")), "`min_time=nan` is out of range"),
        (lambda: trtbatch.infer(ENGINE, input="random", count=-5), "`count=-5` is out of range; give 1 or more"),
        (lambda: trtbatch.infer(ENGINE, input="random", batch=0), "`batch=0` is out of range"),
        (lambda: trtbatch.infer(ENGINE, input="random", seed=-1), "`seed=-1` is out of range; give 0 to 4294967295"),
        (lambda: trtbatch.verify(ENGINE, rtol=float("inf")), "`rtol` inf lets everything pass"),
        (lambda: trtbatch.verify(ENGINE, atol=-1), "`atol` -1 lets nothing pass; give a finite number from 0 on"),
        (lambda: trtbatch.build("model.onnx", tolerance=-1), "`tolerance=-1` lets nothing pass"),
        (lambda: trtbatch.bench(ENGINE, percentiles=[200]), "`percentiles=200` is out of range; give 0 to 100"),
        (lambda: trtbatch.verify(ENGINE, batches=""), "batch list '' has an empty part"),
        (lambda: trtbatch.tune(ENGINE, max_batch_search=True, batches=4), "`max_batch_search` tries every batch size"),
        (
            lambda: trtbatch.tune(ENGINE, max_batch_search=True, streams=[2]),
            "`max_batch_search` has one batch in memory at a time; leave out `streams`",
        ),
        (
            lambda: trtbatch.tune(ENGINE, max_batch_search=True, latency_ms=5),
            "`latency_ms` and `max_batch_search` are two questions; ask one after the other",
        ),
        (lambda: trtbatch.build("model.onnx", opt_level=6), "`opt_level=6` is out of range; give 0 to 5"),
        (lambda: trtbatch.build("model.onnx", profiles="1:x"), "'1:x' is not a profile"),
        (lambda: trtbatch.build("model.onnx", static=0), "`static=0` is not a batch size"),
        (lambda: trtbatch.deploy_triton(ENGINE, repository="m", version=0), "`version=0` is out of range"),
        (lambda: trtbatch.report([]), "there are no results to report"),
        (
            lambda: trtbatch.load("model.onnx"),
            "model.onnx is an ONNX file, not an engine; make an engine of it: `trtbatch.build('model.onnx')`",
        ),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(
    call: Callable[[], Any], told: str, examples: dict[str, Any], folder: Path
) -> None:
    with pytest.raises(TrtbatchError, match=re.escape(told)):
        call()


def test_the_largest_batch_is_searched_for_from_the_front_door(examples: dict[str, Any], folder: Path) -> None:
    before = load(folder / ENGINE, "engine").sidecar
    found = trtbatch.tune(ENGINE, max_batch_search=True)
    assert (found.batch, found.most, found.bound, found.engine) == (8, 8, "profile", "model.ort.onnx")
    assert found.origins == {"engine": "given", "batches": "all that a profile holds"}
    assert load(folder / ENGINE, "engine").sidecar == before, "nothing is saved"


def test_one_batch_size_and_one_profile_need_no_list(examples: dict[str, Any]) -> None:
    assert trtbatch.verify(ENGINE, batches=4).batches == (4,)
    made = trtbatch.build("model.onnx", profiles="2:4:8", backend="onnxruntime", output="one.ort.onnx")
    assert list(map(str, made.sidecar.engine.profiles)) == ["2:4:8"]


@pytest.mark.torch
@pytest.mark.process
def test_the_library_leaves_the_process_as_it_was(folder: Path) -> None:
    """Descriptors, filters of warnings, the path of modules, handlers of signals."""
    (folder / "mymodels.py").write_text(NET)
    code = """
import os, signal, sys, warnings
sys.path.insert(0, os.getcwd())
import trtbatch
def state():
    handlers = signal.getsignal(signal.SIGTERM), sys.unraisablehook, sys.getswitchinterval()
    return list(sys.path), list(warnings.filters), *handlers
before, os.dup2 = state(), None
trtbatch.export("mymodels:net", input_shape=(3, 8, 8))
trtbatch.build(min=1, opt=4, max=8, backend="onnxruntime")
trtbatch.bench(iterations=3)
trtbatch.infer(input="random", count=5)
assert state()[:1] == before[:1], "sys.path"
assert state()[2:] == before[2:], "handlers"
assert [each for each in state()[1] if each not in before[1] and "trtbatch" in str(each)] == []
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=child_environment(), timeout=120
    )
    assert done.returncode == 0, done.stderr
