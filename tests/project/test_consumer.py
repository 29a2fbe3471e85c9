"""The C++ program of docs/recipes.md, where there is what it is compiled against."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import ROOT

SOURCE = ROOT / "examples" / "consumer.cpp"

GONE = ("bindingIsInput", "getNbBindings", "enqueueV2", "getBindingDimensions", "destroy()", "kEXPLICIT_BATCH")
"""Names that TensorRT 10 or 11 has no more."""


def compiler(*args: object) -> subprocess.CompletedProcess[str]:
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
    line = ["g++", "-std=c++17", "-I", str(cuda), *map(str, args)]
    return subprocess.run(line, check=False, capture_output=True, text=True, timeout=300)


@pytest.mark.process
@pytest.mark.gpu
def test_it_compiles(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    needs = tmp_path / "needs.cpp"
    headers = re.findall(r"^#include <(?:NvInfer|cuda|nlohmann).*>$", SOURCE.read_text(), re.MULTILINE)
    assert len(headers) == 3
    needs.write_text("\n".join(headers))
    missing = compiler("-fsyntax-only", needs)
    if missing.returncode:
        pytest.skip(missing.stderr.splitlines()[0])
    done = compiler("-fsyntax-only", "-Wall", "-Wextra", "-Wno-deprecated-declarations", SOURCE)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr


def test_it_names_nothing_that_releases_have_lost() -> None:
    text = SOURCE.read_text()
    assert not [name for name in GONE if name in text]
    assert len(text.splitlines()) < 160, "docs/recipes.md says how long it is"
