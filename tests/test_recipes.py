"""Every command of docs/recipes.md, as it stands there, on a small model in ONNX Runtime."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_process
from trtbatch import optional

PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
RECIPES = {text.splitlines()[0]: text for text in PAGE.split("\n## ")[1:]}


def small(line: str, photos: Path) -> list[str]:
    """The command for a model that builds in a second, with this machine's kind of engine."""
    replaced = {"export resnet18": "export tests.zoo:photos", "resnet18_": "photos_", ".engine": ".ort.onnx"}
    for old, new in replaced.items():
        line = line.replace(old, new)
    return [str(photos) if word == "PHOTOS" else word.replace("TRAFFIC", "traffic") for word in shlex.split(line)[1:]]


@pytest.mark.parametrize("title", RECIPES)
def test_every_command_of_a_recipe_runs(title: str, tmp_path: Path, photos: Path) -> None:
    lines = re.findall(r"^    (trtbatch .+)$", RECIPES[title], re.MULTILINE)
    assert len(lines) >= 3
    (tmp_path / "traffic.csv").write_text("batch,count\n1,100\n5,20\n32,3\n")
    for line in lines:
        if "--ray" in line and not optional.is_installed("ray"):
            pytest.skip("ray isn't installed")
        if "deploy triton" in line and not optional.is_installed("tritonclient"):
            continue
        done = run_process(*small(line, photos), cwd=tmp_path)
        allowed = (0, 1) if "--fail-if-slower" in line else (0,)  # two runs here may well differ
        assert done.returncode in allowed, (line, done.stdout, done.stderr)
        assert "error:" not in done.stderr
