"""Exit codes: 0 for success, 1 for a failure, 2 for a request that can't be carried out, 3 for a gate undecided.

Each line is run in a folder with ``small.onnx`` and its engine ``engines/small.ort.onnx`` for batch 1 to 4, results of
bench (``b.json`` is 20 % slower than ``a.json``, ``few.json`` has 10 runs), and files that are damaged.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import models
from tests.support.command_line import CommandLine
from tests.support.golden import Golden
from tests.support.results import write_result

ROOT = Path(__file__).resolve().parents[2]

LINES = (
    "--version",
    "--help",
    "--nonsense",
    "nonsense",
    "export",
    "export no_such_module:net",
    "export resnet18 --dynamic --static",
    "export resnet18 --dynamic --batch 2",
    "export resnet18 --layout NCHW",
    "export resnet18 --batch 0",
    "export-preprocessor small.onnx",
    "export-preprocessor missing.onnx",
    "export-preprocessor engines/small.ort.onnx --max-size 0",
    "build small.onnx --max 4 --backend onnxruntime --output made/x.ort.onnx",
    "build missing.onnx",
    "build damaged.onnx",
    "build small.onnx --min 4 --max 2",
    "build small.onnx --static 0",
    "build small.onnx --static 2 --max 4",
    "build small.onnx --profile 1:2",
    "build small.onnx --max-profiles 2",
    "build small.onnx --profiles auto --opt 2",
    "build small.onnx --backend nonsense",
    "build small.onnx --precision fp64",
    "build small.onnx --tolerance nan",
    "build small.onnx --layout NCHW",
    "build small.onnx --shape input",
    "build small.onnx --workspace much",
    "build small.onnx --batch 1,x --backend onnxruntime",
    "build small.onnx --timing-cache t --no-timing-cache",
    "build fixed.onnx --max 4 --backend onnxruntime --output made/f.ort.onnx",
    "infer engines/small.ort.onnx --input random --count 2",
    "infer engines/small.ort.onnx",
    "infer missing.ort.onnx --input random",
    "infer engines/small.ort.onnx --input missing",
    "infer engines/small.ort.onnx --input images",
    "infer engines/small.ort.onnx --input images --strict",
    "infer engines/small.ort.onnx --input wrong_shape.npy",
    "infer engines/small.ort.onnx --input random --count 2 --batch 0",
    "infer engines/small.ort.onnx --input random --count 0",
    "infer engines/small.ort.onnx --input random --count 2 --output x.txt",
    "infer engines/small.ort.onnx --input random --count 2 --format jsonl",
    "infer engines/small.ort.onnx --input random --count 2 --reader nonsense",
    "infer engines/small.ort.onnx --input random --ray local",
    "bench engines/small.ort.onnx --iterations 1 --warmup 0",
    "bench missing.ort.onnx",
    "bench damaged.ort.onnx",
    "bench engines/small.ort.onnx --batch 5",
    "bench engines/small.ort.onnx --batch x",
    "bench engines/small.ort.onnx --mode nonsense",
    "bench engines/small.ort.onnx --profile 9",
    "bench engines/small.ort.onnx --percentile 0",
    "bench engines/small.ort.onnx --max-noise 2",
    "bench engines/small.ort.onnx --iterations 1 --min-time 1",
    "bench engines/small.ort.onnx --time-out 0.1",
    "bench engines/small.ort.onnx --against small.onnx --profile 0",
    "bench engines/small.ort.onnx --json x.csv",
    "tune engines/small.ort.onnx",
    "tune engines/small.ort.onnx --latency 1us --batch 1 --min-time 0.01 --no-save",
    "tune engines/small.ort.onnx --latency soon",
    "tune engines/small.ort.onnx --latency 1ms --max-throughput",
    "tune engines/small.ort.onnx --max-batch-search --batch 1",
    "tune engines/small.ort.onnx --max-throughput --streams 0",
    "plan engines/small.ort.onnx",
    "plan engines/small.ort.onnx --traffic missing.csv",
    "plan engines/small.ort.onnx --traffic a.json",
    "verify engines/small.ort.onnx",
    "verify engines/small.ort.onnx --batch 5",
    "verify engines/small.ort.onnx --rtol nan",
    "verify engines/small.ort.onnx --against missing.onnx",
    "verify damaged.ort.onnx",
    "compare a.json b.json",
    "compare a.json b.json --fail-if-slower 5%",
    "compare b.json a.json --fail-if-slower 5%",
    "compare a.json few.json --fail-if-slower 5%",
    "compare a.json b.json --fail-if-slower 5",
    "compare a.json missing.json",
    "compare a.json",
    "report a.json b.json",
    "report missing.json",
    "report traffic.csv",
    "report",
    "inspect small.onnx",
    "inspect engines/small.ort.onnx",
    "inspect damaged.onnx",
    "inspect missing.onnx",
    "inspect engines/small.ort.onnx --open",
    "deploy",
    "deploy triton engines/small.ort.onnx",
    "deploy triton engines/small.ort.onnx --repository made/m --max-queue-delay soon",
)
"""``trtbatch`` is left out."""


@pytest.fixture(scope="module")
def folder(built: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    target = tmp_path_factory.mktemp("codes") / "folder"
    shutil.copytree(built.folder, target)
    engine = target / "engines" / "small.ort.onnx"
    (target / "damaged.onnx").write_bytes(b"no graph")
    (target / "damaged.ort.onnx").write_bytes(engine.read_bytes()[:-100])
    shutil.copy(f"{engine}.json", target / "damaged.ort.onnx.json")
    (target / "traffic.csv").write_text("batch,count\n1,5\n")
    np.save(target / "wrong_shape.npy", np.zeros((2, 3, 9, 9), np.float32))
    (target / "images").mkdir()
    Image.new("RGB", (12, 12)).save(target / "images" / "grey.png")
    (target / "images" / "unusable.png").write_bytes(b"no image")
    write_result(target / "a.json", {1: 1.0})
    write_result(target / "b.json", {1: 1.2})
    write_result(target / "few.json", {1: 1.2}, runs=10)
    models.classifier(target / "fixed.onnx", batch=2)
    return CommandLine(target)


def test_the_lines(golden: Golden) -> None:
    golden.check_names(LINES)


@pytest.mark.parametrize("line", LINES)
def test_the_exit_code(line: str, folder: CommandLine, golden: Golden) -> None:
    if line.startswith("export no_such"):
        pytest.importorskip("torch", reason="export needs torch")
    code, _ = folder.run(*shlex.split(line))
    golden.check(line, code)


@pytest.mark.slow
@pytest.mark.process
def test_a_process_ends_with_the_same_code(folder: CommandLine) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    for line in ("compare a.json few.json --fail-if-slower 5%", "compare a.json missing.json", "compare"):
        command = [sys.executable, "-m", "trtbatch", *line.split()]
        done = subprocess.run(command, check=False, cwd=folder.folder, env=environment, capture_output=True, timeout=60)
        assert done.returncode == folder.run(*line.split())[0]
