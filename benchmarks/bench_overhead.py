"""Measure what the ``bench`` loops add to a bare loop: both run on one session, in turns, in one process.

    python -m benchmarks.bench_overhead ENGINE [--batch 1,32] [--rounds 10] [--calls 400] [--output FILE]

This file contains the bare loops: ``execute_v2`` with a clock around each call, and ``execute_async_v3`` and
``cuGraphLaunch`` between two events, two launches in flight. Needs a GPU. Prints a table; the JSON holds its figures.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.summary import write
from trtbatch.backends import open_engine
from trtbatch.backends.tensorrt.graphs import CudaGraph
from trtbatch.backends.tensorrt.session import TensorRTSession
from trtbatch.backends.tensorrt.slots import TensorRTSlot
from trtbatch.benchmark.bench import measure
from trtbatch.core.batches import parse_batches
from trtbatch.core.rows import random_inputs
from trtbatch.core.store import load
from trtbatch.util import environment


def bare_execute_v2(session: TensorRTSession, slot: TensorRTSlot, calls: int) -> float:
    """Return the median ms of a bare loop over ``execute_v2``."""
    slot.enqueue()  # sets the slot's shapes in the context
    execute, bindings = slot.now.context.execute_v2, slot.now.pointers
    times = []
    for _ in range(calls):
        begun = time.perf_counter()
        execute(bindings)
        times.append(time.perf_counter() - begun)
    return float(np.median(times)) * 1e3


def bare_async(session: TensorRTSession, slot: TensorRTSlot, calls: int) -> float:
    """Return the median ms between events around ``execute_async_v3``."""
    slot.enqueue()  # sets the slot's shapes and addresses in the context
    stream = session.contexts.computing.pycuda
    enqueue, handle = slot.now.context.execute_async_v3, stream.handle
    return between_events(stream, lambda: enqueue(handle), calls)


def bare_graph(session: TensorRTSession, slot: TensorRTSlot, calls: int) -> float:
    """Return the median ms between events around ``cuGraphLaunch``, of the graph that the slot captured."""
    from cuda.bindings import driver

    slot.launch(capture=True)
    stream = session.contexts.computing.pycuda
    graph = session.contexts.graphs.find(slot.now.key, slot.now.number, "kernels")
    if not isinstance(graph, CudaGraph):
        raise SystemExit("the engine runs without CUDA graphs")
    executable = graph.executable
    launch, handle = driver.cuGraphLaunch, driver.CUstream(stream.handle)
    return between_events(stream, lambda: launch(executable, handle), calls)


def between_events(stream: Any, launch: Callable[[], Any], calls: int) -> float:
    """Return the median ms between pycuda's events around each launch, with two launches in flight."""
    import pycuda.driver as cuda

    marks = [(cuda.Event(), cuda.Event()) for _ in range(calls)]
    for index, (begin, end) in enumerate(marks):
        if index >= 2:
            marks[index - 2][1].synchronize()
        begin.record(stream)
        launch()
        end.record(stream)
    stream.synchronize()
    return float(np.median([end.time_since(begin) for begin, end in marks]))


BARE = {"execute_v2": bare_execute_v2, "async": bare_async, "graph": bare_graph}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table: medians over the rounds, and the median of the rounds' ratios."""
    lines = ["| batch | mode | bare loop, ms | bench, ms | ratio |", "|---:|---|---:|---:|---:|"]
    for row in rows:
        lines.append(
            f"| {row['batch']} | {row['mode']} | {row['bare_ms']:.4f} | {row['bench_ms']:.4f} | {row['ratio']:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    artifact = load(options.engine, "engine")
    rows: list[dict[str, Any]] = []
    with open_engine(artifact) as engine, engine.entered(), engine.session() as session:
        if not isinstance(session, TensorRTSession):
            raise SystemExit("give it an engine of TensorRT")
        slot = session.slot()
        for batch in parse_batches(options.batch):
            inputs = random_inputs(artifact.sidecar.inputs, batch, seed=0)
            session.bind(inputs)
            for key, array in slot.prepare(batch).items():
                array[...] = inputs[key]
            slot.run()
            for name, bare in BARE.items():
                mode = session.modes()[name]
                measure(mode, options.calls, 1.0, 500.0)
                rounds = []
                for turn in range(options.rounds):
                    first = bare(session, slot, options.calls) if turn % 2 == 0 else None  # alternate the order
                    ours = float(np.median(measure(mode, options.calls, 1.0, 0.0)))
                    rounds.append((bare(session, slot, options.calls) if first is None else first, ours))
                ratio = float(np.median([ours / theirs for theirs, ours in rounds]))
                bare_ms, bench_ms = (float(value) for value in np.median(rounds, axis=0))
                rows.append({"batch": batch, "mode": name, "bare_ms": bare_ms, "bench_ms": bench_ms, "ratio": ratio})
    print(markdown(rows))
    if options.output is not None:
        result = {
            "script": "benchmarks/bench_overhead.py",
            "engine": artifact.path.name,
            "device": artifact.sidecar.build.device,
            "environment": environment.describe(),
            "rows": rows,
        }
        write(options.output, result)


if __name__ == "__main__":
    main()
