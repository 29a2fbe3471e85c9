"""Help and import need none of the heavy packages: proven where importing them raises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import COMMANDS, ROOT, run_bare


@pytest.mark.process
def test_the_refusal_works(tmp_path: Path) -> None:
    assert "No module named 'onnxruntime'" in run_bare("import onnxruntime", tmp_path).stderr


@pytest.mark.process
def test_the_package_and_every_module_import_without_heavy_packages(tmp_path: Path) -> None:
    code = """
import trtbatch
names = [m.name for m in pkgutil.walk_packages(trtbatch.__path__, "trtbatch.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names))
for name in trtbatch.__all__:
    getattr(trtbatch, name)
"""
    done = run_bare(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 30


@pytest.mark.process
def test_every_help_works_without_heavy_packages(tmp_path: Path) -> None:
    """In one process, because each process takes a second."""
    lines = ["", *COMMANDS, "deploy"]
    code = f"""
from typer.testing import CliRunner
from trtbatch.cli.app import app
for line in {lines}:
    done = CliRunner().invoke(app, [*line.split(), "--help"])
    print(done.exit_code, " ".join(done.output.split()[:2]))
"""
    done = run_bare(code, tmp_path)
    assert done.stdout.splitlines() == ["0 Usage: trtbatch"] * len(lines), done.stdout + done.stderr


@pytest.mark.process
def test_version(tmp_path: Path) -> None:
    done = run_bare("sys.argv = ['trtbatch', '--version']; runpy.run_module('trtbatch', run_name='__main__')", tmp_path)
    import trtbatch

    assert done.stdout.strip() == f"trtbatch {trtbatch.__version__}"


@pytest.mark.process
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("export resnet18", "torch is needed to export a model, and isn't installed"),
        ("build x.onnx", "onnx is needed to read ONNX files, and isn't installed"),
    ],
)
def test_a_missing_package_names_the_extra_that_brings_it(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "x.onnx").write_bytes(b"")
    done = run_bare(
        f"sys.argv = ['trtbatch', *'{line}'.split()]; runpy.run_module('trtbatch', run_name='__main__')", tmp_path
    )
    assert done.returncode == 1
    assert told in done.stderr
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.process
def test_an_import_error_inside_an_installed_package_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import a_module_that_is_not_there")
    code = "from trtbatch.util import optional; optional.require('torch', 'export a model')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert "torch is installed but doesn't import: No module named 'a_module_that_is_not_there'" in done.stderr
