"""Measure what ``infer``'s pipeline adds to a bare ``InferenceSession.run`` loop on the CPU, in turns, in one run.

    python -m benchmarks.pipeline_overhead ENGINE [--batch 32] [--batches 12] [--rounds 15] [--output FILE]

Both loops read one memory-mapped .npy file of random samples and use the same ONNX Runtime session, with its options
and threads. The bare loop passes slices of the map to the session and drops the outputs. Prints the medians and the
median of the rounds' ratios; the JSON holds the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.summary import write
from trtbatch.backends import open_engine
from trtbatch.core.store import load
from trtbatch.core.tensors import TensorSpec
from trtbatch.runtime.infer import InferRequest, InferResult, predict
from trtbatch.runtime.sinks import open_sink
from trtbatch.runtime.sources import ArraySource
from trtbatch.util import environment


def save_samples(path: Path, spec: TensorSpec, count: int) -> None:
    """Write seeded random samples through a memory map, since they may not fit in memory."""
    shape = tuple(int(size) for size in spec.at(count))
    made = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(spec.dtype), shape=shape)
    for index in range(count):
        made[index] = np.random.default_rng(index).standard_normal(shape[1:])
    made.flush()


def bare(session: Any, file: Path, name: str, batch: int) -> float:
    """Return the seconds of the simplest loop."""
    samples = np.load(file, mmap_mode="r")
    begun = time.perf_counter()
    for first in range(0, len(samples), batch):
        session.run(None, {name: samples[first : first + batch]})
    return time.perf_counter() - begun


def ours(engine: Any, file: Path, batch: int) -> InferResult:
    """Run the same samples through the pipeline; the result has its seconds and how busy its stages were."""
    source = ArraySource(file, engine.sidecar.inputs, None)
    result = InferResult("", "", "")
    with open_sink(None, engine.sidecar) as sink:
        predict(engine, source, sink, [batch], InferRequest(None, str(file)), result)
    return result


def measure(options: argparse.Namespace, file: Path) -> dict[str, Any]:
    """Return the figures of both loops."""
    artifact = load(options.engine, "engine")
    (spec,) = artifact.sidecar.inputs
    save_samples(file, spec, options.batch * options.batches)
    rounds: list[tuple[float, float]] = []
    with open_engine(artifact) as engine:
        opened: Any = engine
        session = opened._session  # noqa: SLF001
        bare(session, file, spec.name, options.batch)
        last = ours(engine, file, options.batch)
        for turn in range(options.rounds):
            first = bare(session, file, spec.name, options.batch) if turn % 2 == 0 else None  # alternate the order
            last = ours(engine, file, options.batch)
            theirs = bare(session, file, spec.name, options.batch) if first is None else first
            rounds.append((theirs, last.seconds))
    ratios = [mine / theirs for theirs, mine in rounds]
    bare_s, ours_s = (float(value) for value in np.median(rounds, axis=0))
    return {
        "script": "benchmarks/pipeline_overhead.py",
        "engine": artifact.path.name,
        "batch": options.batch,
        "batches": options.batches,
        "rounds": options.rounds,
        "bare_s": bare_s,
        "pipeline_s": ours_s,
        "ratio": float(np.median(ratios)),
        "ratio_quartiles": [float(value) for value in np.percentile(ratios, (25, 75))],
        "environment": environment.describe(),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder) / "samples.npy")
    low, high = result["ratio_quartiles"]
    print(f"bare loop {result['bare_s']:.3f} s, pipeline {result['pipeline_s']:.3f} s of {options.batches} batches")
    print(f"ratio {result['ratio']:.4f} (median of {options.rounds} rounds; quartiles {low:.4f} and {high:.4f})")
    if options.output is not None:
        write(options.output, result)


if __name__ == "__main__":
    main()
