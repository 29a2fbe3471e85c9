"""Run NVIDIA ModelOpt on an ONNX file in another process, in this environment or another one.

ModelOpt pins its own onnx and ONNX Runtime, takes seconds to import, and rewrites its source file; what it is given
is a copy.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.core.sidecar import Artifact, Conversion
from trtbatch.errors import MissingPackageError, PrecisionError
from trtbatch.onnx_graph.read import external_files, load_onnx
from trtbatch.util import optional

__all__ = ["LARGEST", "MODELOPT_PYTHON", "run_modelopt"]

Array = NDArray[Any]

MODELOPT_PYTHON = "TRTBATCH_MODELOPT_PYTHON"
"""Environment variable: an interpreter that has nvidia-modelopt[onnx], where this one hasn't."""

LARGEST = 2**31 - 2**20
"""Bytes of a protobuf file, less some: larger models keep their weights next to them."""


def _interpreter() -> tuple[str, dict[str, str]]:
    """Return the Python that has ModelOpt, and the environment to run it in.

    Raises:
        MissingPackageError: there is none; both ways to get one are named.
    """
    named = os.environ.get(MODELOPT_PYTHON)
    if named:
        path = shutil.which(named)
        if path is None:
            raise MissingPackageError(f"{MODELOPT_PYTHON}={named}: no such program", "name a Python with ModelOpt")
        # Another environment: what this one has on its path must not get in there.
        return os.path.abspath(path), {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if not optional.is_installed("modelopt"):
        raise MissingPackageError(
            "nvidia-modelopt is needed to convert ONNX files to another precision, and isn't installed", _INSTALL
        )
    return sys.executable, dict(os.environ)


_INSTALL = (
    f"pip install 'trtbatch[precision]' (in a clone: '.[precision]'), or let {MODELOPT_PYTHON} name a Python that has "
    "nvidia-modelopt[onnx]"
)


def run_modelopt(
    source: Artifact, wanted: Conversion, samples: Mapping[str, Array], folder: Path
) -> tuple[Path, dict[str, str]]:
    """Return the converted file as ModelOpt wrote it, in `folder`, and what wrote it.

    Raises:
        MissingPackageError: the interpreter has no ModelOpt.
        PrecisionError: with the last words of ModelOpt.
    """
    python, environment = _interpreter()
    work = folder.resolve() / "modelopt"
    work.mkdir()
    for name in (source.path.name, *external_files(load_onnx(source.path))):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source.path.parent / name, work / name)  # it writes next to its source
    _write_npz(work / "calibration.npz", samples)
    made = work / "converted.onnx"
    order = {
        "source": str(work / source.path.name),
        "output": str(made),
        "precision": wanted.precision,
        "rest": wanted.rest,
        "keep_io": wanted.io is None or wanted.precision != wanted.io,
        "exclude_nodes": [f"^{re.escape(name)}$" for name in wanted.kept],
        "calibration": str(work / "calibration.npz"),
        "method": wanted.method,
        "largest": LARGEST,
    }
    file = work / "request.json"
    file.write_text(json.dumps(order), encoding="utf-8")
    log = folder / "modelopt.log"
    code, output = run_converter(
        [python, str(Path(__file__).with_name("modelopt_worker.py")), str(file)], work, environment, log
    )
    answer = _answer(output)
    if "missing" in answer:
        raise MissingPackageError(f"{python} has no module {answer['missing']!r}, which ModelOpt needs", _INSTALL)
    if "converted" not in answer or not made.is_file():
        said = answer.get("failed") or _last_line(log) or f"it ended with exit code {code} and gave no reason"
        raise PrecisionError(
            f"ModelOpt can't convert {source.path.name} to {wanted.precision}: {said}",
            f"leave the part that it names in float32 (`keep_fp32`), or check its installation: {python} -c 'import "
            "modelopt.onnx'",
        )
    return made, answer["converted"]


def run_converter(line: Sequence[str], cwd: Path, environment: Mapping[str, str], log: Path) -> tuple[int, bytes]:
    """Exit code and output of a process that ends when this one does: its standard input then closes."""
    pipe = subprocess.PIPE
    with (
        log.open("wb") as stderr,
        subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=stderr, cwd=cwd, env=dict(environment)) as process,
    ):
        assert process.stdout is not None
        try:
            output = process.stdout.read()
        except BaseException:
            process.kill()
            raise
    return process.returncode, output


def _write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """``numpy.savez`` for any names: its own arguments can't be in the way."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def _answer(output: bytes) -> dict[str, Any]:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""
