"""Measure what an input of bytes gains over one of floats: GPU time, and samples/s from host memory.

    python -m benchmarks.bytes_table build [--model resnet18] [--calibration DIR] [--inputs float32,NHWC,NCHW]
                                        [--jobs 1]
    python -m benchmarks.bytes_table measure [--rounds 10] [--inputs float32,NHWC,NCHW] [--json FILE]

``build`` makes engines with one profile 1:128:128 from ``engines/MODEL_dynamic.onnx``: fp16 and int8, each with a
float32 input and with uint8 images in both layouts. ``measure`` compares the rows, then takes every ratio in one run
with the engines in turns. Needs a GPU that nothing else uses.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.performance import Bench, copy_ms, medians, ratio
from benchmarks.summary import write
from trtbatch.benchmark.loops import throughput_loop
from trtbatch.core.rows import tolerance, wrong_rows
from trtbatch.core.store import ENGINES
from trtbatch.errors import RowsError
from trtbatch.onnx_graph.fusing import unfused_inputs
from trtbatch.util import environment

BATCH = 128
PRECISIONS = ("fp16", "int8")
LAYOUTS: dict[str, tuple[str, ...]] = {
    "float32": (),
    "NHWC": ("--fuse-preprocess", "--layout", "NHWC"),
    "NCHW": ("--fuse-preprocess", "--layout", "NCHW"),
}


def names(inputs: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return (engine, precision, input) of each engine."""
    return [(f"{precision}-{layout}", precision, layout) for precision in PRECISIONS for layout in inputs]


def build_all(model: str, calibration: str | None, inputs: Sequence[str], jobs: int) -> None:
    """Build all engines, `jobs` at once."""

    def build_one(name: str, precision: str, layout: str) -> None:
        line = [sys.executable, "-m", "trtbatch", "build", f"engines/{model}_dynamic.onnx", "--precision", precision]
        line += [*LAYOUTS[layout], "--opt", str(BATCH), "--max", str(BATCH), "--output", f"engines/{name}.engine"]
        if precision == "int8" and calibration is not None:
            line += ["--calibration", calibration]
        done = subprocess.run(line, check=False, capture_output=True, text=True)
        print(f"== {name}\n{done.stdout}{done.stderr}", flush=True)
        done.check_returncode()

    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(lambda each: build_one(*each), names(inputs)):
            pass


def require_same_rows(bench: Bench, precision: str, layouts: Sequence[str]) -> None:
    """Raise if bytes and the floats that they stand for give different rows.

    Raises:
        RowsError: names the engine.
    """
    plain, batch = f"{precision}-float32", 32
    session = bench.session(plain)
    for layout in layouts:
        name = f"{precision}-{layout}"
        inputs = bench.inputs(name, batch)
        floats = unfused_inputs(inputs, bench.artifacts[name].sidecar.preprocessing)
        rows = []
        for each, given in ((session, floats), (bench.session(name), inputs)):
            each.bind(given)
            each.run()
            rows.append(next(iter(each.fetch().values())))
        wrong, errors = wrong_rows(rows[1], rows[0], 2 * tolerance("float32", precision))
        if wrong.size:
            raise RowsError(f"{name} differs from {plain} by {errors.max():.1e}", "build again")


def measure_all(rounds: int, inputs: Sequence[str]) -> dict[str, Any]:
    """Return the figures of all engines, after checking their rows."""
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        bench = Bench(stack, ENGINES)
        for precision in PRECISIONS:
            require_same_rows(bench, precision, [each for each in inputs if each != "float32"])
            own = [name for name, kind, _ in names(inputs) if kind == precision]
            gpu = medians({name: bench.graph(name, BATCH) for name in own}, rounds)
            pipes = {}
            for name in own:
                session = bench.session(name)
                lanes = [bench.filled(session, name, BATCH) for _ in range(session.in_flight)]
                pipes[name] = throughput_loop(lanes)
            host = medians(pipes, rounds, seconds=0.2)
            count = sum(array.nbytes for array in bench.inputs(f"{precision}-float32", BATCH).values())
            copy = copy_ms(bench.session(f"{precision}-float32"), count)
            plain = gpu[f"{precision}-float32"]
            for name in own:
                rows.append(
                    {
                        "engine": name,
                        "gpu_ms": float(np.median(gpu[name])),
                        "gpu_over_float32": ratio(gpu[name], plain),
                        "samples_per_s": BATCH / float(np.median(host[name])) * 1e3,
                        "of_gpu_samples_per_s_float32": ratio(plain, host[name]),
                        "of_float32_upload_ceiling": copy / float(np.median(host[name])),
                    }
                )
        sidecar = bench.artifacts["fp16-float32"].sidecar
        return {
            "model": sidecar.model.name,
            "batch": BATCH,
            "device": sidecar.build.device,
            "tools": sidecar.build.tools,
            "rows": rows,
        }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of the figures."""
    head = (
        "engine",
        "GPU, ms",
        "/ float32 input",
        "samples/s from the host",
        "of the GPU's, float32",
        "/ upload ceiling",
    )
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for row in rows:
        lines.append(
            f"| {row['engine']} | {row['gpu_ms']:.4f} | {row['gpu_over_float32']:.3f} | {row['samples_per_s']:,.0f} | "
            f"{row['of_gpu_samples_per_s_float32']:.3f} | {row['of_float32_upload_ceiling']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "measure"))
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--calibration")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--inputs", default=",".join(LAYOUTS), help="float32, and layouts of uint8")
    parser.add_argument("--jobs", type=int, default=1, help="engines built at once")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.what == "build":
        build_all(given.model, given.calibration, given.inputs.split(","), given.jobs)
        return
    data = {"script": "benchmarks/bytes_table.py", **measure_all(given.rounds, given.inputs.split(","))}
    data["environment"] = environment.describe()
    if given.json is not None:
        write(given.json, data)
    print(markdown(data["rows"]))


if __name__ == "__main__":
    main()
