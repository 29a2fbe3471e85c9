"""Throughput of a loaded engine that threads share, by its number of sessions.

    python -m benchmarks.sessions ENGINE [--sessions 1,2,4] [--threads 8] [--batch 1,8] [--calls 100] [--rounds 7]
                                  [--output FILE]

Every thread calls the engine with its own samples in the host's memory, one call after the other. The ways are timed
in turn within each round. Prints a table of the medians; the JSON holds the same figures.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import trtbatch
from benchmarks.summary import write
from trtbatch.core.batches import parse_batches
from trtbatch.core.rows import random_inputs
from trtbatch.util import environment


def calls_per_s(engine: trtbatch.LoadedEngine, pool: ThreadPoolExecutor, threads: int, batch: int, calls: int) -> float:
    """Return the calls per second of threads that call the engine at the same time."""
    given = [random_inputs(engine.sidecar.inputs, batch, seed=seed) for seed in range(threads)]

    def work(inputs: dict[str, Any]) -> None:
        for _ in range(calls):
            engine.run(inputs)

    begun = time.perf_counter()
    list(pool.map(work, given))
    return threads * calls / (time.perf_counter() - begun)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table: medians over the rounds, and the median of the rounds' ratios to one session."""
    lines = ["| batch | sessions | calls/s | samples/s | against one session |", "|---:|---:|---:|---:|---:|"]
    for row in rows:
        lines.append(
            f"| {row['batch']} | {row['sessions']} | {row['calls_per_s']:,.0f} | "
            f"{row['samples_per_s']:,.0f} | {row['ratio']:.2f} |"
        )
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time every number of sessions at every batch size."""
    counts, batches = parse_batches(options.sessions), parse_batches(options.batch)
    rows = []
    with ExitStack() as stack:
        engines = {n: stack.enter_context(trtbatch.load(options.engine, sessions=n)) for n in counts}
        pool = stack.enter_context(ThreadPoolExecutor(options.threads))
        for batch in batches:
            rates: dict[int, list[float]] = {count: [] for count in counts}
            for turn in range(options.rounds + 1):  # the first makes graphs and memory
                for count in counts if turn % 2 else counts[::-1]:
                    rate = calls_per_s(engines[count], pool, options.threads, batch, options.calls)
                    if turn:
                        rates[count].append(rate)
            for count in counts:
                ratio = float(np.median(np.divide(rates[count], rates[counts[0]])))
                median = float(np.median(rates[count]))
                row = {"batch": batch, "sessions": count, "calls_per_s": median, "samples_per_s": batch * median}
                rows.append({**row, "ratio": ratio})
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--sessions", default="1,2,4")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = measure(options)
    print(markdown(rows))
    if options.output is not None:
        with trtbatch.load(options.engine) as engine:
            device = engine.sidecar.build.device
        result = {
            "script": "benchmarks/sessions.py",
            "engine": options.engine.name,
            "threads": options.threads,
            "device": device,
            "environment": environment.describe(),
            "rows": rows,
        }
        write(options.output, result)


if __name__ == "__main__":
    main()
