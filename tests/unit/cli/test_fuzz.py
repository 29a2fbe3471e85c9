"""Two thousand mutated files: never a traceback, a crash or a hang; always two lines and exit code 1 or 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import models
from tests.support.mutations import Mutation, altered, fuzzed, mutated, mutations, run_mutated
from tests.support.processes import ROOT
from trtbatch.util.files import sidecar_path


@pytest.fixture
def samples(folder: Path) -> Path:
    np.save(folder / "x.npy", np.zeros((2, 3, 8, 8), np.float32))
    return folder / "x.npy"


@pytest.mark.slow
@fuzzed(140)
@given(changes=mutations)
def test_mutated_sidecars(engine: Path, samples: Path, changes: list[Mutation]) -> None:
    beside = sidecar_path(engine)
    with altered(beside, mutated(beside.read_bytes(), changes)):
        run_mutated("infer", engine, "--input", samples)


@pytest.mark.slow
@fuzzed(100)
@given(data=st.data())
def test_sidecars_with_other_values(engine: Path, samples: Path, data: st.DataObject) -> None:
    """Well-formed JSON, one value of it exchanged for another."""
    beside = sidecar_path(engine)
    record = json.loads(beside.read_bytes())
    holder, key = data.draw(st.sampled_from(list(places(record))))
    holder[key] = data.draw(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(allow_nan=False),
            st.text(max_size=5),
            st.lists(st.integers(-3, 300), max_size=5),
            st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
        )
    )
    with altered(beside, json.dumps(record).encode()):
        run_mutated("infer", engine, "--input", samples)
        run_mutated("inspect", engine)


def places(value: Any) -> Any:
    """Every (container, key) of a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places(value[key])


@pytest.mark.slow
@fuzzed(120)
@given(changes=mutations)
def test_mutated_onnx_files(folder: Path, changes: list[Mutation]) -> None:
    path = folder / "m.onnx"
    path.write_bytes(mutated(original(folder), changes))
    run_mutated("build", path, "--max", 3)


def original(folder: Path) -> bytes:
    keep = folder / "original"
    if not keep.exists():
        keep.write_bytes(models.classifier(folder / "o.onnx").read_bytes())
    return keep.read_bytes()


@pytest.mark.slow
@fuzzed(100)
@given(changes=mutations)
def test_mutated_engines(engine: Path, samples: Path, changes: list[Mutation]) -> None:
    with altered(engine, mutated(engine.read_bytes(), changes)):
        run_mutated("infer", engine, "--input", samples)


def test_nothing_unpickles_what_the_user_did_not_name() -> None:
    """No pickle in the package: arrays are read with ``allow_pickle=False``, weights with ``weights_only=True``."""
    package = ROOT / "trtbatch"
    for file in package.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "import pickle" not in text, file
        assert "allow_pickle=True" not in text, file
        assert text.count("np.load(") == text.count("allow_pickle=False") - text.count("write_array("), file
        assert text.count("torch.load(") == text.count("weights_only=True)"), file
