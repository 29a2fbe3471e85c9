"""What the ``bench`` loops add to a bare loop: both on one session, in turn, in one run.

    python scripts/bench_overhead.py ENGINE [--batch 1,32] [--rounds 10] [--calls 400] [--output FILE]

The bare loops are written out here: ``execute_v2`` with a clock around each call, and ``execute_async_v3``
between two events, two launches in flight. Needs a GPU. Prints a table; the JSON holds every round's median.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trtbatch import environment
from trtbatch.artifacts import load
from trtbatch.backends import open_engine
from trtbatch.batches import parse_batches
from trtbatch.bench import measure
from trtbatch.rows import random_inputs


def bare_execute_v2(session: Any, calls: int) -> float:
    """Median ms of a bare loop over ``execute_v2``."""
    execute, bindings = session._active.execute_v2, session._bindings
    times = []
    for _ in range(calls):
        begun = time.perf_counter()
        execute(bindings)
        times.append(time.perf_counter() - begun)
    return float(np.median(times)) * 1e3


def bare_async(session: Any, calls: int) -> float:
    """Median ms between events around ``execute_async_v3``, two launches in flight."""
    import pycuda.driver as cuda

    stream = session._stream.pycuda
    enqueue, handle = session._active.execute_async_v3, stream.handle
    marks = [(cuda.Event(), cuda.Event()) for _ in range(calls)]
    for index, (begin, end) in enumerate(marks):
        if index >= 2:
            marks[index - 2][1].synchronize()
        begin.record(stream)
        enqueue(handle)
        end.record(stream)
    stream.synchronize()
    return float(np.median([end.time_since(begin) for begin, end in marks]))


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table: medians over the rounds, and the median of the rounds' ratios."""
    lines = ["| batch | mode | bare loop, ms | bench, ms | ratio |", "|---:|---|---:|---:|---:|"]
    for row in rows:
        lines.append(
            f"| {row['batch']} | {row['mode']} | {row['bare_ms']:.4f} | {row['bench_ms']:.4f} | {row['ratio']:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    artifact = load(options.engine, "engine")
    rows: list[dict[str, Any]] = []
    with open_engine(artifact) as engine, engine.session() as session:
        for batch in parse_batches(options.batch):
            session.bind(random_inputs(artifact.sidecar.inputs, batch, seed=0))
            for name, bare in (("execute_v2", bare_execute_v2), ("async", bare_async)):
                mode = session.modes()[name]
                measure(mode, options.calls, 1.0, 500.0)
                rounds = []
                for turn in range(options.rounds):
                    first = bare(session, options.calls) if turn % 2 == 0 else None  # each goes first in turn
                    ours = float(np.median(measure(mode, options.calls, 1.0, 0.0)))
                    rounds.append((bare(session, options.calls) if first is None else first, ours))
                ratio = float(np.median([ours / theirs for theirs, ours in rounds]))
                bare_ms, bench_ms = (float(value) for value in np.median(rounds, axis=0))
                rows.append(
                    {"batch": batch, "mode": name, "bare_ms": bare_ms, "bench_ms": bench_ms, "ratio": ratio}
                    | {"rounds_ms": rounds}
                )
    print(markdown(rows))
    if options.output is not None:
        result = {
            "script": "scripts/bench_overhead.py",
            "engine": artifact.path.name,
            "device": artifact.sidecar.device,
            "environment": environment.describe(),
            "gpu": environment.gpu_state(),
            "rows": rows,
        }
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
