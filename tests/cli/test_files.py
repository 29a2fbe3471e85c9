"""The files that commands write: fields, nesting and types of JSON, columns, names of arrays."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import models
from tests.support.command_line import CommandLine
from tests.support.golden import Golden, fields
from tests.support.results import write_result

ENGINE = "engines/small.ort.onnx"
QUICK = ("--min-time", 0.2)

NAMES = (
    *("sidecar of export", "sidecar of build", "sidecar after tune and plan", "preprocessor"),
    *("bench --json", "bench --csv", "bench --against --json", "bench --against --csv"),
    *("bench --compare-profiles --json", "bench --compare-profiles --csv"),
    *("verify --json", "compare --json", "plan --json", "tune --json", "tune --max-batch-search --json"),
    *("doctor --json", "inspect --json of ONNX", "inspect --json of an engine", "inspect --json of a preprocessor"),
    *("infer .csv", "infer .jsonl", "infer .npz", "infer --trace", "report --markdown", "deploy triton"),
)
"""Entries of the golden file, each checked by a test below."""


def test_the_entries(golden: Golden) -> None:
    golden.check_names(NAMES)


@pytest.mark.torch
def test_sidecar_of_export(tmp_path: Path, golden: Golden) -> None:
    lines = (
        "from torch import nn",
        "def net():",
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))",
    )
    (tmp_path / "frozen_outside.py").write_text("\n".join(lines))
    trtbatch = CommandLine(tmp_path)
    trtbatch.succeed("export", "frozen_outside:net", "--dynamic", "--input-shape", "3,8,8", "--output", "x.onnx")
    golden.check("sidecar of export", fields(trtbatch.read("x.onnx.json")))


def test_sidecars_of_engines(built: CommandLine, golden: Golden) -> None:
    """What tune and plan keep is removed again: the engine is other tests' too."""
    before = built.read(f"{ENGINE}.json")
    golden.check("sidecar of build", fields(before))
    (built.folder / "traffic.csv").write_text("batch,count\n1,5\n2,3\n")
    built.succeed("tune", ENGINE, "--max-throughput", "--batch", 2, *QUICK, "--json", "tune.json")
    built.succeed("plan", ENGINE, "--traffic", "traffic.csv", "--from-table", "--json", "plan.json")
    after = fields(built.read(f"{ENGINE}.json"))
    golden.check("sidecar after tune and plan", {name: after["engine"][name] for name in ("tuned", "planned")})
    golden.check("tune --json", fields(built.read("tune.json")))
    golden.check("plan --json", fields(built.read("plan.json")))
    (built.folder / f"{ENGINE}.json").write_text(json.dumps(before))


def test_largest_batch(built: CommandLine, golden: Golden) -> None:
    built.succeed("tune", ENGINE, "--max-batch-search", "--json", "largest.json")
    golden.check("tune --max-batch-search --json", fields(built.read("largest.json")))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bench", ("--batch", "1,2", "--mode", "run,throughput", "--iterations", 30)),
        ("bench --against", ("--against", ENGINE, "--min-time", 0.01)),
        ("bench --compare-profiles", ("--compare-profiles", "--min-time", 0.01)),
    ],
)
def test_results_of_bench(name: str, options: tuple[Any, ...], built: CommandLine, golden: Golden) -> None:
    built.succeed("bench", ENGINE, *options, "--warmup", 0, "--json", "bench.json", "--csv", "bench.csv")
    golden.check(f"{name} --json", fields(built.read("bench.json")))
    golden.check(f"{name} --csv", header(built.folder / "bench.csv"))


def test_result_of_verify(built: CommandLine, tmp_path: Path, golden: Golden) -> None:
    """One description of a right engine's result and of a wrong one's, in which there are findings."""
    built.succeed("verify", ENGINE, "--batch", "1,2", "--json", "verify.json")
    wrong = CommandLine(tmp_path)
    models.first_row_only(tmp_path / "x.onnx")
    wrong.succeed("build", "x.onnx", "--backend", "onnxruntime", "--no-verify", "--output", "x.ort.onnx")
    assert wrong.run("verify", "x.ort.onnx", "--against", "none", "--json", "verify.json")[0] == 1
    golden.check("verify --json", fields(built.read("verify.json"), wrong.read("verify.json")))


def test_result_of_compare(tmp_path: Path, golden: Golden) -> None:
    trtbatch = CommandLine(tmp_path)
    write_result(tmp_path / "a.json", {1: 1.0, 2: 1.5})
    write_result(tmp_path / "b.json", {1: 1.0, 4: 2.0}, stable=False)
    trtbatch.succeed("compare", "a.json", "b.json", "--json", "compare.json")
    trtbatch.succeed("compare", "b.json", "a.json", "--json", "turned.json")
    golden.check("compare --json", fields(trtbatch.read("compare.json"), trtbatch.read("turned.json")))


def test_report(tmp_path: Path, golden: Golden) -> None:
    write_result(tmp_path / "a.json", {1: 1.0, 2: 1.5})
    CommandLine(tmp_path).succeed("report", "a.json", "--markdown", "a.md")
    table = [line for line in (tmp_path / "a.md").read_text().splitlines() if line.startswith("|")]
    golden.check("report --markdown", [cell.strip() for cell in table[0].strip("|").split("|")])


@pytest.mark.slow
def test_doctor(built: CommandLine, golden: Golden) -> None:
    _, stdout = built.run("doctor", "--json")
    found = json.loads(stdout)
    here = {"driver", "driver_cuda", "nvcc", "cuda_h", "trtexec"}  # left out where there is none
    facts = sorted(set(found["facts"]) - here)
    golden.check("doctor --json", {"checks[]": fields(*found["checks"]), "facts": facts})


def test_preprocessor_and_inspect(built: CommandLine, golden: Golden) -> None:
    built.succeed("export-preprocessor", ENGINE, "--max-size", 64, "--output", "small.pre.onnx")
    golden.check("preprocessor", metadata(built.folder / "small.pre.onnx"))
    inspected = {"of ONNX": "small.onnx", "of an engine": ENGINE, "of a preprocessor": "small.pre.onnx"}
    for what, file in inspected.items():
        report = fields(json.loads(built.succeed("inspect", "--json", file)))
        if what == "of an engine":
            report.pop("sidecar")  # the file's own
        golden.check(f"inspect --json {what}", report)


def test_predictions(built: CommandLine, golden: Golden) -> None:
    for kind in ("csv", "jsonl", "npz"):
        built.succeed("infer", ENGINE, "--input", "random", "--count", 3, "--topk", 2, "--output", f"out.{kind}")
    golden.check("infer .csv", header(built.folder / "out.csv"))
    lines = (built.folder / "out.jsonl").read_text().splitlines()
    golden.check("infer .jsonl", fields(*map(json.loads, lines)))
    with np.load(built.folder / "out.npz") as arrays:
        found = {name: f"{arrays[name].dtype.kind} {list(arrays[name].shape)}" for name in arrays.files}
    golden.check("infer .npz", found)


def test_trace(built: CommandLine, golden: Golden) -> None:
    built.succeed("infer", ENGINE, "--input", "random", "--count", 3, "--trace", "trace.json")
    events = built.read("trace.json")["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    named: dict[str, set[str]] = {}
    for span in spans:
        named.setdefault(span["name"], set()).update(span["args"])
    described = {name: sorted(arguments) for name, arguments in sorted(named.items())}
    golden.check("infer --trace", {"spans": described, "events[]": fields(*spans[:1])})


def test_model_folder_of_triton(built: CommandLine, golden: Golden) -> None:
    pytest.importorskip("tritonclient.grpc", reason="deploy triton needs tritonclient")
    built.succeed("deploy", "triton", ENGINE, "--repository", "models")
    models = built.folder / "models"
    golden.check("deploy triton", sorted(str(path.relative_to(models)) for path in models.rglob("*") if path.is_file()))


def header(path: Path) -> str:
    """First line of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return ",".join(next(csv.reader(file)))


def metadata(path: Path) -> dict[str, Any]:
    """Metadata of an ONNX file: fields of its JSON values."""
    import onnx

    return {entry.key: fields(json.loads(entry.value)) for entry in onnx.load(str(path)).metadata_props}
