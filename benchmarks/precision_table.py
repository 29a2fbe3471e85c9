"""Measure time and error of one model in several precisions in one run: fp32, TF32, fp16, int8 against fp32 on the CPU.

    python -m benchmarks.precision_table build MODEL [--precision fp32,tf32,fp16,int8] [--max 128]
                                            [--keep-fp32 NODE|OP …]
    python -m benchmarks.precision_table measure MODEL… [--batch 1,32,128] [--rounds 3] [--json FILE]
    python -m benchmarks.precision_table show FILE

``build`` doesn't export: ``engines/MODEL_dynamic.onnx`` must exist. It builds an engine for each precision, and
verifies every row at batch 1, 7 and 32 against ONNX Runtime on the float32 file. ``--keep-fp32`` applies to int8 only.
``measure`` times all engines of a model in turns, round after round (GPU time, as CUDA graphs), and prints a table.
``show`` prints the table of a saved run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.summary import write
from trtbatch.backends import open_engine
from trtbatch.benchmark.bench import measure
from trtbatch.builder.build import BuildRequest, build
from trtbatch.core.batches import Profile, parse_batches
from trtbatch.core.rows import random_inputs
from trtbatch.core.store import load
from trtbatch.errors import TrtbatchError
from trtbatch.util import environment
from trtbatch.verification.verify import VerifyRequest, VerifyResult, verify

VERIFIED = (1, 7, 32)
MODE = "graph"


def engine_of(model: str, precision: str) -> Path:
    """Return the path of the engine of a model in a precision."""
    return Path("engines") / f"{model}_dynamic.{precision}.engine"


def build_all(model: str, precisions: Sequence[str], largest: int, kept: Sequence[str]) -> int:
    """Build and verify; save the verdict next to each engine. Return how many precisions failed."""
    failures = 0
    for precision in precisions:
        request = BuildRequest(
            Path("engines") / f"{model}_dynamic.onnx",
            profiles=(Profile(1, 32, largest),),
            backend="tensorrt",
            precision=precision,
            keep_fp32=tuple(kept) if precision == "int8" else (),
        )
        try:
            artifact = build(request)
        except TrtbatchError as error:
            failures += 1
            print(model, precision, f"failed: {error.problem}", flush=True)
            continue
        verdict = verify(VerifyRequest(artifact.path, batches=VERIFIED))
        facts = worst(verdict) | {"build_seconds": artifact.sidecar.build.details["build_seconds"]}
        artifact.path.with_suffix(".verdict").write_text(json.dumps(facts))
        print(model, precision, facts, flush=True)
    return failures


def worst(verdict: VerifyResult) -> dict[str, Any]:
    """Return the largest error of any row of any batch, and the mean agreement of the top class."""
    rows = [row for output in verdict.outputs for row in output.rows]
    return {
        "passed": verdict.passed,
        "reference": verdict.reference,
        "rows": len(rows),
        "l2_rel": max(float(row.l2_rel) for row in rows),
        "top1": float(np.mean([bool(row.top1) for row in rows])),
    }


def time_model(model: str, precisions: Sequence[str], batches: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Return median ms at every batch, error and size of each engine. The engines take turns."""
    precisions = [name for name in precisions if engine_of(model, name).with_suffix(".verdict").is_file()]
    with ExitStack() as stack:
        sessions = {}
        artifacts = {name: load(engine_of(model, name), "engine") for name in precisions}
        for name, artifact in artifacts.items():
            engine = stack.enter_context(open_engine(artifact))
            sessions[name] = stack.enter_context(engine.session())
        medians: dict[str, dict[str, float]] = {name: {} for name in precisions}
        for batch in batches:
            times: dict[str, list[float]] = {name: [] for name in precisions}
            for turn in range(rounds):
                for name in precisions if turn % 2 == 0 else precisions[::-1]:
                    session, artifact = sessions[name], artifacts[name]
                    session.bind(random_inputs(artifact.sidecar.inputs, batch, seed=0))
                    samples = measure(session.modes()[MODE], None, 0.3, 150.0)
                    times[name].append(float(f"{np.median(samples):.5g}"))
            for name in precisions:
                medians[name][str(batch)] = float(np.median(times[name]))
    rows = []
    for name, artifact in artifacts.items():
        conversion, size = artifact.sidecar.conversion, artifact.sidecar.artifact.bytes
        rows.append(
            {"model": model, "precision": name, "ms": medians[name], "mib": round(size / 2**20, 1)}
            | json.loads(engine_of(model, name).with_suffix(".verdict").read_text())
            | {"keep_fp32": list(conversion.keep_fp32) if conversion else []}
        )
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return a line for each model and precision: time at each batch, and error and agreement of the verified rows."""
    batches = sorted({int(batch) for row in rows for batch in row["ms"]})
    heads = [*(f"batch {batch}: ms" for batch in batches), "images/s", "MiB", "error", "top-1"]
    lines = [f"| model | precision | {' | '.join(heads)} |", f"|---|---|{'---:|' * len(heads)}"]
    for row in rows:
        times = " | ".join(f"{row['ms'][str(batch)]:.3f}" for batch in batches)
        kept, rate = row["keep_fp32"], batches[-1] / row["ms"][str(batches[-1])] * 1e3
        name = row["precision"] + (f", `{' '.join(kept)}` in fp32" if kept else "")
        lines.append(
            f"| {row['model']} | {name} | {times} | {rate:,.0f} | {row['mib']:.1f} | {row['l2_rel']:.1e} "
            f"| {row['top1']:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build")
    building.add_argument("model")
    building.add_argument("--max", type=int, default=128)
    building.add_argument("--keep-fp32", nargs="*", default=[])
    measuring = commands.add_parser("measure")
    measuring.add_argument("model", nargs="+")
    measuring.add_argument("--batch", default="1,32,128")
    measuring.add_argument("--rounds", type=int, default=3)
    measuring.add_argument("--json", type=Path)
    for command in (building, measuring):
        command.add_argument("--precision", default="fp32,tf32,fp16,int8")
    commands.add_parser("show").add_argument("file", type=Path)
    options = parser.parse_args()
    if options.command == "show":
        print(markdown(json.loads(options.file.read_text(encoding="utf-8"))["rows"]))
        return
    precisions = options.precision.split(",")
    if options.command == "build":
        sys.exit(min(1, build_all(options.model, precisions, options.max, options.keep_fp32)))
    batches = parse_batches(options.batch)
    rows = [row for model in options.model for row in time_model(model, precisions, batches, options.rounds)]
    print(markdown(rows))
    if options.json is not None:
        sidecar = load(engine_of(options.model[0], precisions[0]), "engine").sidecar
        result = {
            "script": "benchmarks/precision_table.py",
            "timed": "one launch of a CUDA graph between two CUDA events on a busy stream, inputs on the GPU",
            "weights": sidecar.model.weights,
            "device": sidecar.build.device,
            "tools": sidecar.build.tools,
            "environment": environment.describe(),
            "rows": rows,
        }
        write(options.json, result)


if __name__ == "__main__":
    main()
