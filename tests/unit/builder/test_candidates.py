"""An engine that is built several times: which build is kept, and what is said of the others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import models
from trtbatch.backends.onnxruntime import OnnxRuntimeBuilder
from trtbatch.builder.build import build_again
from trtbatch.builder.candidates import Try, fastest_try
from trtbatch.builder.request import BuildRequest, source_of
from trtbatch.errors import RowsError

Cli = Callable[..., Any]


def test_the_least_geometric_mean_wins() -> None:
    slow_at_one = Try(1.0, {"1": 0.11, "32": 1.0})
    slow_at_many = Try(1.0, {"1": 0.10, "32": 1.2})
    assert fastest_try([slow_at_one, slow_at_many]) == 0
    assert fastest_try([slow_at_many, slow_at_one]) == 1
    assert fastest_try([slow_at_many, slow_at_many]) == 0


def test_what_is_out_wins_only_where_all_are() -> None:
    out = Try(0.0, {}, "wrong rows")
    assert fastest_try([out, Try(1.0, {"1": 9.0})]) == 1
    assert fastest_try([out, out]) == 0


def test_each_build_is_measured_and_one_is_kept(folder: Path) -> None:
    """On ONNX Runtime's builder, whose engines are as real, though all alike."""
    path = models.classifier(folder / "m.onnx")
    request = BuildRequest(path, batches=(1, 4), tries=3)
    made = build_again(request, OnnxRuntimeBuilder(), source_of(request), folder / "m.ort.onnx", folder)
    tries = made.sidecar.build.details["tries"]
    assert len(tries) == 3
    assert all(set(each["ms"]) == {"1", "4"} for each in tries)
    kept = {str(row.batch): row.ms for row in made.sidecar.engine.table}
    index = [each["ms"] for each in tries].index(kept)
    assert made.path == folder / f"try{index + 1}" / "m.ort.onnx"
    assert made.path.is_file()
    times = [Try(each["build_seconds"], each["ms"]) for each in tries]
    assert fastest_try(times) == index


def test_where_every_build_is_wrong_the_last_says_why(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = models.reshaped_to(folder / "m.onnx", 1)
    request = BuildRequest(path, tries=2)
    with caplog.at_level(logging.WARNING), pytest.raises(RowsError):
        build_again(request, OnnxRuntimeBuilder(), source_of(request), folder / "m.ort.onnx", folder)
    assert "build 1 of 2 is out" in caplog.text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--timing-cache", "x.timing"), "--timing-cache spares"),
        (("--precision", "best"), "both build several engines"),
    ],
)
def test_what_excludes_it(cli: Cli, folder: Path, options: tuple[str, ...], told: str) -> None:
    done = cli("build", models.classifier(folder / "m.onnx"), "--backend", "onnxruntime", "--tries", 2, *options)
    assert done.exit_code == 2
    assert told in done.output


def test_on_onnx_runtime_it_has_no_effect(cli: Cli, folder: Path) -> None:
    done = cli("build", models.classifier(folder / "m.onnx"), "--backend", "onnxruntime", "--tries", 2)
    assert done.exit_code == 0
    assert "--tries has no effect on ONNX Runtime" in done.output
