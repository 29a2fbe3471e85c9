"""What verify, build and bench say of engines that are right, and of engines that are wrong in a known way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import CommandLine
from tests.support.golden import Golden
from tests.support.wrong_rows import MODELS

BUILD = ("build", "x.onnx", "--min", 1, "--opt", 4, "--max", 4, "--backend", "onnxruntime")


def test_the_models(golden: Golden) -> None:
    golden.check_names(list(MODELS))


@pytest.mark.parametrize("name", MODELS)
def test_the_verdict(name: str, tmp_path: Path, golden: Golden) -> None:
    trtbatch = CommandLine(tmp_path)
    MODELS[name](tmp_path / "x.onnx")
    MODELS["right"](tmp_path / "right.onnx")
    build, _ = trtbatch.run(*BUILD, "--output", "checked.ort.onnx")
    assert (tmp_path / "checked.ort.onnx").exists() == (build == 0)
    trtbatch.succeed(*BUILD, "--no-verify", "--output", "x.ort.onnx")
    alone, _ = trtbatch.run("verify", "x.ort.onnx", "--against", "none", "--json", "alone.json")
    against, _ = trtbatch.run("verify", "x.ort.onnx", "--against", "right.onnx", "--json", "against.json")
    bench, _ = trtbatch.run("bench", "x.ort.onnx", "--batch", 4, "--iterations", 1, "--warmup", 0, "--json", "b.json")
    assert (tmp_path / "b.json").exists() == (bench == 0)
    result = trtbatch.read("alone.json")
    golden.check(
        name,
        {
            "exit codes": f"build {build}, bench {bench}, verify {alone}, verify --against right.onnx {against}",
            "passed": result["passed"],
            "findings": [_finding(each) for each in result["findings"]],
            "against right.onnx": [_output(each) for each in trtbatch.read("against.json")["outputs"]],
        },
    )


def test_a_batch_beyond_the_profile_is_not_verified(tmp_path: Path) -> None:
    trtbatch = CommandLine(tmp_path)
    MODELS["right"](tmp_path / "x.onnx")
    trtbatch.succeed(*BUILD, "--output", "x.ort.onnx")
    assert trtbatch.run("verify", "x.ort.onnx", "--batch", 5)[0] != 0


def _finding(finding: dict[str, Any]) -> str:
    """``batch 4, output: permuted, rows 1 2 3``."""
    rows = " ".join(map(str, finding["rows"]))
    return f"batch {finding['batch']}, {finding['output']}: {finding['check']}, rows {rows}"


def _output(output: dict[str, Any]) -> str:
    """``batch 4, output: right, wrong, wrong, wrong; passed False``, a word for each row."""
    rows = [each["passed"] for each in sorted(output["rows"], key=lambda each: int(each["sample"]))]
    words = ", ".join("right" if passed else "wrong" for passed in rows)
    return f"batch {output['batch']}, {output['output']}: {words}; passed {output['passed']}"
