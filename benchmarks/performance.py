"""Measure one engine with measured profiles against engines built for one batch size, and against the hardware.

    python -m benchmarks.performance build [--model resnet18] [--precision fp16] [--only NAME,...]
                                        [--auto-options='--own-kernels --tries 3']
    python -m benchmarks.performance measure [--rounds 12] [--json FILE]

``build`` makes these engines in ``engines/`` from ``engines/MODEL_dynamic.onnx``, each without a timing cache:

* ``auto``: ``--profiles auto --max 32`` and the ``--auto-options``
* ``one``: 1:16:32; ``wide``: 1:64:64; ``bN``: ``--static N``

``measure`` takes every ratio in one run, with the engines in turns. Needs a GPU that nothing else uses.

This file contains the bare loop of graph launches and the bare copies.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.summary import write
from trtbatch.backends import open_engine
from trtbatch.backends.base import Engine
from trtbatch.backends.tensorrt.session import TensorRTSession
from trtbatch.benchmark.loops import Loop, Taken, latency_loop, mode_loop, throughput_loop
from trtbatch.core.rows import random_inputs, tolerance, wrong_rows
from trtbatch.core.sidecar import Artifact
from trtbatch.core.store import ENGINES, load
from trtbatch.errors import RowsError
from trtbatch.util import environment

STATIC = (1, 2, 4, 8, 16, 24, 32)
NAMES = ("one", "auto", "wide", *(f"b{batch}" for batch in STATIC))
MEMORY = {"auto_over_one_in_use": "without the CUDA context", "auto_over_one_process": "of the process"}
SECONDS = 0.08
"""Seconds of each engine's turn in a round."""


def options(name: str) -> tuple[str, ...]:
    """Return the options of ``trtbatch build`` for one of the engines."""
    if name == "auto":
        return "--profiles", "auto", "--max", "32"
    if name == "one":
        return "--min", "1", "--opt", "16", "--max", "32"
    if name == "wide":
        return "--min", "1", "--opt", "64", "--max", "64"
    return "--static", name[1:]


def build_all(model: str, precision: str, names: Sequence[str], extra: Sequence[str]) -> None:
    """Build the named engines; `extra` holds more options for ``auto``."""
    for name in names:
        line = [sys.executable, "-m", "trtbatch", "build", f"engines/{model}_dynamic.onnx", "--precision", precision]
        more: tuple[str, ...] = tuple(extra) if name == "auto" else ()
        if name != "auto":
            more = (*more, "--no-verify")  # ``measure`` compares their rows with those of auto
        line += [*options(name), "--no-timing-cache", *more, "--output", f"engines/{name}.engine"]
        done = subprocess.run(line, check=False, capture_output=True, text=True)
        print(f"== {name}\n{done.stdout}{done.stderr}", flush=True)
        done.check_returncode()


def medians(loops: dict[str, Loop], rounds: int, seconds: float = SECONDS) -> dict[str, list[float]]:
    """Return the median ms of each loop in each round; the loops take turns, in alternating order."""
    sizes = {}
    for name, loop in loops.items():
        loop.take(20)
        sizes[name] = max(3, int(seconds * 1e3 / max(float(np.median(loop.take(5).ms)) * loop.window, 1e-3)))
    found: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(rounds):
        for name in list(loops)[:: 1 if turn % 2 == 0 else -1]:
            loops[name].take(max(3, sizes[name] // 4))
            found[name].append(float(np.median(loops[name].take(sizes[name]).ms)))
    return found


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median over the rounds of the ratio in each."""
    return float(np.median(np.asarray(over) / np.asarray(under)))


class Bench:
    """Sessions of the engines, each opened once."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self._sessions: dict[str, TensorRTSession] = {}
        self._engines: dict[str, Engine] = {}
        self.artifacts: dict[str, Artifact] = {}

    def session(self, name: str) -> TensorRTSession:
        """Return the session of an engine, which is opened on first use."""
        if name not in self._sessions:
            self.artifacts[name] = load(self._folder / f"{name}.engine", "engine")
            engine = self._stack.enter_context(open_engine(self.artifacts[name]))
            self._engines[name] = engine
            session = self._stack.enter_context(engine.session())
            assert isinstance(session, TensorRTSession)
            self._sessions[name] = session
        return self._sessions[name]

    def another(self, name: str) -> TensorRTSession:
        """Return one more session of an engine."""
        self.session(name)
        made = self._stack.enter_context(self._engines[name].session())
        assert isinstance(made, TensorRTSession)
        return made

    def inputs(self, name: str, batch: int) -> dict[str, Any]:
        """Return random inputs of a batch."""
        self.session(name)
        return random_inputs(self.artifacts[name].sidecar.inputs, batch, seed=0)

    def graph(self, name: str, batch: int) -> Loop:
        """Return the loop of graph launches at a batch size."""
        session = self.session(name)
        session.bind(self.inputs(name, batch))
        return mode_loop(session.modes()["graph"])

    def require_same_rows(self, names: Sequence[str], batch: int) -> None:
        """Raise RowsError if engines give different rows for the same samples, since their times would mean nothing."""
        outputs = {}
        for name in names:
            session = self.session(name)
            session.bind(self.inputs(name, batch))
            session.run()
            outputs[name] = session.fetch()
        limit = tolerance("float32", self.artifacts[names[0]].sidecar.precision.name)
        for name in names[1:]:
            for output, rows in outputs[names[0]].items():
                wrong, errors = wrong_rows(outputs[name][output], rows, 2 * limit)  # each may be off by the limit
                if wrong.size:
                    raise RowsError(
                        f"{name} and {names[0]} differ at batch {batch} by {errors.max():.1e}", "build again"
                    )

    def filled(self, session: TensorRTSession, name: str, batch: int) -> Any:
        """Return a slot of a session, filled with a batch."""
        slot = session.slot()
        for key, array in slot.prepare(batch).items():
            array[...] = self.inputs(name, batch)[key]
        return slot


def profiles(bench: Bench, rounds: int) -> list[dict[str, Any]]:
    """Return the GPU time per batch of ``auto``, of ``one``, and of the engine built for that batch size."""
    rows = []
    for batch in STATIC:
        if not (ENGINES / f"b{batch}.engine").is_file():
            print(f"b{batch}.engine isn't there: batch {batch} is left out", flush=True)
            continue
        bench.require_same_rows(("auto", f"b{batch}", "one"), batch)
        found = medians({name: bench.graph(name, batch) for name in ("auto", f"b{batch}", "one")}, rounds)
        auto, static, one = found.values()
        rows.append(
            {
                "batch": batch,
                "auto_ms": float(np.median(auto)),
                "static_ms": float(np.median(static)),
                "one_ms": float(np.median(one)),
                "auto_over_static": ratio(auto, static),
                "auto_over_one": ratio(auto, one),
            }
        )
        print(rows[-1], flush=True)
    return rows


def bare_graph(bench: Bench, batch: int) -> Loop:
    """Return a loop of ``cuGraphLaunch`` between events, two in flight, on a graph captured here."""
    import pycuda.driver as cuda
    from cuda.bindings import driver

    session = bench.session("auto")
    slot, stream = bench.filled(session, "auto", batch), session.contexts.computing.pycuda
    slot.run()
    handle, context = stream.handle, slot.now.context
    slot.activate(slot.now)
    context.execute_async_v3(handle)
    stream.synchronize()
    native, mode = driver.CUstream(handle), driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    driver.cuStreamBeginCapture(native, mode)
    context.execute_async_v3(handle)
    graph = driver.cuStreamEndCapture(native)[1]
    executable = driver.cuGraphInstantiate(graph, 0)[1]

    def take(count: int) -> Taken:
        marks = [(cuda.Event(), cuda.Event()) for _ in range(count)]
        for index, (begin, end) in enumerate(marks):
            if index >= 2:
                marks[index - 2][1].synchronize()
            begin.record(stream)
            driver.cuGraphLaunch(executable, native)
            end.record(stream)
        stream.synchronize()
        return Taken(np.array([end.time_since(begin) for begin, end in marks]))

    return Loop("bare", "one cuGraphLaunch between two events", take)


def against_bare(bench: Bench, rounds: int) -> list[dict[str, Any]]:
    """Return the time of the graph mode over that of the bare loop."""
    rows = []
    for batch in (1, 32):
        ours = bench.graph("auto", batch)
        found = medians({"graph": ours, "bare": bare_graph(bench, batch)}, rounds)
        rows.append({"batch": batch, "graph_over_bare": ratio(found["graph"], found["bare"])})
        print(rows[-1], flush=True)
    return rows


def latency(bench: Bench, rounds: int) -> dict[str, Any]:
    """Return the latency at batch 1 over GPU time plus the two copies, each timed alone in the same rounds."""
    slot = bench.filled(bench.session("auto"), "auto", 1)
    slot.run()
    loop = latency_loop(slot)
    graph = bench.graph("auto", 1)
    found: dict[str, list[float]] = {"latency": [], "gpu": [], "h2d": [], "d2h": []}
    for _ in range(rounds):
        loop.take(100)
        found["latency"].append(float(np.median(loop.take(600).ms)))
        parts = [slot.parts() for _ in range(200)]
        for name in ("h2d", "d2h"):
            found[name].append(float(np.median([part[name] for part in parts])))
        graph.take(100)
        found["gpu"].append(float(np.median(graph.take(600).ms)))
    whole = np.asarray(found["gpu"]) + found["h2d"] + found["d2h"]
    row = {name: float(np.median(values)) for name, values in found.items()}
    return {**row, "latency_over_parts": ratio(found["latency"], whole.tolist())}


def copy_ms(session: TensorRTSession, count: int) -> float:
    """Return the median ms of a bare copy of `count` page-locked bytes to the GPU."""
    import pycuda.driver as cuda

    host, device = cuda.pagelocked_empty(count, np.uint8), cuda.mem_alloc(count)
    stream = session.contexts.uploading.pycuda
    times = []
    for _ in range(60):
        begin, end = cuda.Event(), cuda.Event()
        begin.record(stream)
        cuda.memcpy_htod_async(device, host, stream)
        end.record(stream)
        end.synchronize()
        times.append(end.time_since(begin))
    device.free()
    host.base.free()
    return float(np.median(times[10:]))


def throughput(bench: Bench, rounds: int) -> dict[str, Any]:
    """Return the throughput at batch 64 against the slower of a bare copy and compute alone, in the same rounds."""
    batch, session = 64, bench.session("wide")
    bench.require_same_rows(("auto", "wide"), 32)
    count = sum(array.nbytes for array in bench.inputs("wide", batch).values())
    lanes = [bench.filled(session, "wide", batch) for _ in range(session.in_flight)]
    pipe = throughput_loop(lanes)
    graph = bench.graph("wide", batch)
    found: dict[str, list[float]] = {"pipeline": [], "gpu": [], "copy": []}
    for _ in range(rounds):
        found["pipeline"].append(float(np.median(pipe.take(20).ms)))
        graph.take(20)
        found["gpu"].append(float(np.median(graph.take(150).ms)))
        found["copy"].append(copy_ms(session, count))
    bound = np.maximum(found["gpu"], found["copy"]).tolist()
    row = {name: float(np.median(values)) for name, values in found.items()}
    return {
        "batch": batch,
        **{f"{name}_ms": value for name, value in row.items()},
        "samples_per_s": batch / row["pipeline"] * 1e3,
        "of_the_bound": ratio(bound, found["pipeline"]),
        "copy_gb_per_s": count / row["copy"] / 1e6,
    }


def two_streams(bench: Bench, rounds: int) -> dict[str, Any]:
    """Return the throughput of two sessions on their own streams over that of one, at batch 1."""
    first, second = bench.session("auto"), bench.another("auto")
    single = [bench.filled(first, "auto", 1) for _ in range(first.in_flight)]
    both = [bench.filled(session, "auto", 1) for _ in range(first.in_flight) for session in (first, second)]
    found = medians({"one": throughput_loop(single), "two": throughput_loop(both)}, rounds)
    return {
        "one_ms": float(np.median(found["one"])),
        "two_ms": float(np.median(found["two"])),
        "two_over_one_samples_per_s": ratio(found["one"], found["two"]),
    }


_MEMORY = """
import json, sys
from pathlib import Path
from trtbatch.core.store import load
from trtbatch.backends import open_engine
from trtbatch.backends.tensorrt.buffers import Device
from trtbatch.util.environment import ask_nvml
from trtbatch.core.rows import random_inputs
def used():
    return ask_nvml(lambda nvml: int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(0)).used)) or 0
before = used()
device = Device(0)
empty = device.free_memory()
artifact = load(Path(sys.argv[1]), "engine")
with open_engine(artifact) as engine, engine.session() as session:
    loaded = device.free_memory()
    for batch in (1, 2, 4, 8, 16, 24, 32):
        session.bind(random_inputs(artifact.sidecar.inputs, batch, seed=0))
        for mode in session.modes().values():
            mode.launch()
            session.fetch()
    print(json.dumps({"loaded": empty - loaded, "in_use": empty - device.free_memory(),
                      "process": used() - before, "activations": engine.activation_bytes,
                      "contexts": len(session.contexts)}))
"""


def memory() -> dict[str, Any]:
    """Return the device memory in use, in bytes, after every batch size ran in every mode.

    Each engine runs in its own process. ``process`` is what the GPU holds for the whole process, ``in_use`` the same
    without the CUDA context.
    """
    found = {}
    for name in ("one", "auto"):
        line = [sys.executable, "-c", _MEMORY, str(ENGINES / f"{name}.engine")]
        found[name] = json.loads(
            subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        )
    ratios = {
        f"auto_over_one_{name}": found["auto"][name] / found["one"][name]
        for name in ("in_use", "process")
        if found["one"][name]
    }
    return {**found, **ratios}


def builds(bench: Bench) -> dict[str, Any]:
    """Return build times and engine sizes from the sidecars."""
    there = [name for name in NAMES if (ENGINES / f"{name}.engine").is_file()]
    seconds = {
        name: load(ENGINES / f"{name}.engine", "engine").sidecar.build.details["build_seconds"] for name in there
    }
    sizes = {name: load(ENGINES / f"{name}.engine", "engine").sidecar.artifact.bytes for name in ("one", "auto")}
    return {"seconds": seconds, "bytes": sizes, "auto_over_one": seconds["auto"] / seconds["one"]}


def measure_all(rounds: int) -> dict[str, Any]:
    """Return all figures; a step that fails is recorded as failed."""
    with ExitStack() as stack:
        bench = Bench(stack, ENGINES)
        steps: dict[str, Callable[[], Any]] = {
            "profiles": lambda: profiles(bench, rounds),
            "graph": lambda: against_bare(bench, rounds),
            "latency": lambda: latency(bench, rounds),
            "throughput": lambda: throughput(bench, rounds),
            "streams": lambda: two_streams(bench, rounds),
            "builds": lambda: builds(bench),
            "memory": memory,
        }
        found: dict[str, Any] = {}
        for name, step in steps.items():
            began = time.perf_counter()
            try:
                found[name] = step()
            except Exception as error:  # keep the figures of the other steps
                found[name] = {"failed": f"{type(error).__name__}: {error}"}
            print(name, f"{time.perf_counter() - began:.0f} s", flush=True)
        auto = bench.artifacts["auto"].sidecar
        head = {
            "model": auto.model.name,
            "precision": auto.precision.name,
            "device": auto.build.device,
            "tools": auto.build.tools,
        }
        return head | found


def markdown(data: dict[str, Any]) -> str:
    """Return the tables of the figures."""
    lines = [
        "| batch | auto, ms | built for it, ms | 1:16:32, ms | auto / built for it | auto / 1:16:32 |",
        f"|{'---:|' * 6}",
    ]
    for row in data["profiles"]:
        times = " | ".join(f"{row[name]:.4f}" for name in ("auto_ms", "static_ms", "one_ms"))
        lines.append(f"| {row['batch']} | {times} | {row['auto_over_static']:.3f} | {row['auto_over_one']:.3f} |")
    bare = ", ".join(f"{row['graph_over_bare']:.3f} (batch {row['batch']})" for row in data["graph"])
    late, pipe, streams = data["latency"], data["throughput"], data["streams"]
    copies = late["h2d"] + late["d2h"]
    figures = [
        ("graph / bare loop of graph launches", bare),
        (
            "latency at batch 1 / (GPU time + copies)",
            f"{late['latency_over_parts']:.3f} ({late['latency']:.4f} ms; {late['gpu']:.4f} + {copies:.4f})",
        ),
        (
            "throughput at batch 64 / the smaller of copying and computing",
            f"{pipe['of_the_bound']:.3f} ({pipe['samples_per_s']:,.0f} samples/s; {pipe['copy_gb_per_s']:.1f} GB/s)",
        ),
        ("two sessions / one, batch 1, samples/s", f"{streams['two_over_one_samples_per_s']:.2f}"),
        *(
            (f"device memory, auto / one profile ({words})", f"{data['memory'][name]:.2f}")
            for name, words in MEMORY.items()
            if name in data["memory"]
        ),
        ("build time, auto / one profile", f"{data['builds']['auto_over_one']:.2f}"),
    ]
    return "\n".join(
        [*lines, "", "| what | reached |", "|---|---:|", *(f"| {what} | {value} |" for what, value in figures)]
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "measure"))
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--auto-options", default="", help="more options for building auto")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.what == "build":
        build_all(given.model, given.precision, given.only.split(","), given.auto_options.split())
        return
    data = {
        "script": "benchmarks/performance.py",
        **measure_all(given.rounds),
        "environment": environment.describe(),
    }
    if given.json is not None:
        write(given.json, data)
    print(markdown(data))


if __name__ == "__main__":
    main()
