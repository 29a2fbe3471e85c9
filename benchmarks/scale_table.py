"""Measure how much faster several GPUs predict than one, with ``infer --ray``.

    python -m benchmarks.scale_table ENGINE [--actors 2] [--samples 16384] [--batch 128] [--rounds 3] [--json FILE]
    python -m benchmarks.scale_table run ENGINE INPUT --actors K     # one of the runs, for the other

First writes arrays of random samples, 1,024 per file. Then one actor and ``--actors`` of them predict all samples, in
turns, each run in its own process; each actor has a GPU if the engine is TensorRT's. The rate of K actors counts from
the K-th block of results to the last one, which leaves out Ray's start and the loading of engines.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.performance import ratio
from benchmarks.summary import write
from trtbatch.core.rows import random_inputs
from trtbatch.core.sidecar import Sidecar
from trtbatch.core.store import load
from trtbatch.deployment.scale import RayRequest, infer_with_ray
from trtbatch.util import environment

ROWS_OF_A_FILE = 1024


def write_samples(folder: Path, sidecar: Sidecar, count: int) -> None:
    """Write ``.npy`` files of samples of the one input."""
    folder.mkdir(parents=True, exist_ok=True)
    name = sidecar.inputs[0].name
    for number, first in enumerate(range(0, count, ROWS_OF_A_FILE)):
        rows = random_inputs(sidecar.inputs, min(ROWS_OF_A_FILE, count - first), seed=number)[name]
        np.save(folder / f"{number:05d}.npy", rows)


def steady_rate(marks: Sequence[tuple[float, int]], actors: int) -> float:
    """Return the rows/s from mark number `actors` to the last, of marks ``(seconds, rows done)``.

    The first results of several actors arrive together. A rate from the first mark on would count the others' rows
    without their time.

    Raises:
        ValueError: there is no later mark, or no time between the two.
    """
    if len(marks) <= actors or marks[-1][0] <= marks[actors - 1][0]:
        raise ValueError(f"{len(marks)} blocks of results are too few for a rate: give more --samples")
    (begun, before), (ended, after) = marks[actors - 1], marks[-1]
    return (after - before) / (ended - begun)


def run(engine: Path, folder: str, actors: int, batch: int) -> dict[str, Any]:
    """Run one prediction with Ray; return its rate and its counts."""
    marks: list[tuple[float, int]] = []
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        request = RayRequest(
            engine,
            folder,
            output,
            batch=batch,
            concurrency=actors,
            topk=1,
            progress=lambda done, total: marks.append((time.perf_counter(), done)),
        )
        result = infer_with_ray(request)
    return {
        "actors": actors,
        "rows": result.rows,
        "failed": result.failed,
        "rows_per_s": steady_rate(marks, actors),
        "seconds": time.perf_counter() - begun,
    }


def in_a_process(engine: Path, folder: Path, actors: int, batch: int) -> dict[str, Any]:
    """Run one prediction in its own process."""
    line = [sys.executable, "-m", "benchmarks.scale_table", "run", engine, folder, "--actors", actors, "--batch", batch]
    root = str(Path(__file__).resolve().parent.parent)
    around = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([str(word) for word in line], check=False, capture_output=True, text=True, env=around)
    if done.returncode:
        raise RuntimeError(f"{actors} actors ended with {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of all runs."""
    sidecar = load(given.engine, "engine").sidecar
    folder = Path(tempfile.mkdtemp(prefix="samples-", dir=Path.cwd()))
    try:
        write_samples(folder, sidecar, given.samples)
        found: dict[int, list[dict[str, Any]]] = {1: [], given.actors: []}
        for turn in range(given.rounds):
            for actors in sorted(found, reverse=bool(turn % 2)):
                found[actors].append(in_a_process(given.engine, folder, actors, given.batch))
                print(found[actors][-1], flush=True)
    finally:
        shutil.rmtree(folder)
    rates = {actors: [each["rows_per_s"] for each in runs] for actors, runs in found.items()}
    return {
        "script": "benchmarks/scale_table.py",
        "model": sidecar.model.name,
        "precision": sidecar.precision.name,
        "device": sidecar.build.device,
        "tools": sidecar.build.tools,
        "batch": given.batch,
        "samples": given.samples,
        "actors": given.actors,
        "several_over_one": ratio(rates[given.actors], rates[1]),
        "environment": environment.describe(),
        "rounds": {str(actors): runs for actors, runs in found.items()},
    }


def markdown(data: dict[str, Any]) -> str:
    """Return the table with a line for each number of actors."""
    lines = ["| actors | samples/s | / one |", "|---:|---:|---:|"]
    for actors, runs in data["rounds"].items():
        over = 1.0 if actors == "1" else data["several_over_one"]
        lines.append(f"| {actors} | {statistics.median(each['rows_per_s'] for each in runs):,.0f} | {over:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", help="or `run`")
    parser.add_argument("others", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--samples", type=int, default=16_384)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.engine == "run":
        engine, folder = given.others
        print(json.dumps(run(Path(engine), folder, given.actors, given.batch)))
        return
    given.engine = Path(given.engine)
    data = measure(given)
    if given.json is not None:
        write(given.json, data)
    print(markdown(data))


if __name__ == "__main__":
    main()
