"""Engines in many threads, next to other contexts, at many sizes: rows are right, memory is flat, errors are errors."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

import trtbatch
from tests.support import models
from tests.support.gpu_memory import held_memory
from tests.support.neighbours import neighbour
from tests.support.processes import child_environment, run_process
from tests.support.sidecars import change_sidecar
from trtbatch.backends import open_engine
from trtbatch.backends.tensorrt import buffers, compat, contexts, graphs
from trtbatch.backends.tensorrt.buffers import device_count
from trtbatch.backends.tensorrt.session import TensorRTSession
from trtbatch.core.rows import random_inputs, row_errors
from trtbatch.core.sidecar import Artifact
from trtbatch.core.store import load
from trtbatch.errors import ExecutionError
from trtbatch.onnx_graph.run import OnnxReference

LIMIT = 2e-3

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``m.onnx`` and ``m.engine``, profiles 1:8:16 and 17:32:64."""
    made = tmp_path_factory.mktemp("threads")
    models.classifier(made / "m.onnx")
    line = ("build", "m.onnx", "--profile", "1:8:16", "--profile", "17:32:64", "--output", "m.engine")
    done = run_process(*line, cwd=made)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def given(folder: Path) -> list[tuple[Any, Any]]:
    """Batches of 1 to 64 samples, and what ONNX Runtime makes of each."""
    oracle, spec = OnnxReference(folder / "m.onnx"), load(folder / "m.engine", "engine").sidecar.inputs
    inputs = [random_inputs(spec, 1 + index, seed=index)["input"] for index in range(64)]
    return [(each, oracle({"input": each})["output"]) for each in inputs]


def require(engine: trtbatch.LoadedEngine, pair: tuple[Any, Any]) -> None:
    assert row_errors(engine(pair[0]), pair[1]).max() < LIMIT


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Run `work` in new threads at once; each ends before this returns, and an error of one is raised."""
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(work, number) for number in range(count)]:
            done.result()


@pytest.mark.parametrize("shared", [True, False])
def test_sixteen_threads_make_500_calls_each(folder: Path, given: list[tuple[Any, Any]], shared: bool) -> None:
    path = folder / "m.engine"

    def calls(engine: trtbatch.LoadedEngine, seed: int) -> None:
        for index in np.random.default_rng(seed).integers(0, len(given), 500):
            require(engine, given[index])

    def own(seed: int) -> None:
        with trtbatch.load(path) as engine:
            calls(engine, seed)

    def all_threads() -> None:
        if shared:
            with trtbatch.load(path, sessions=4) as engine:
                in_threads(lambda seed: calls(engine, seed), 16)
        else:
            in_threads(own, 16)

    for _ in range(2):
        all_threads()  # the driver keeps memory of the most graphs that there were at once
    held = held_memory()
    all_threads()
    assert held_memory() - held <= MEGABYTE


def test_a_thread_may_open_what_another_uses_and_a_third_closes(folder: Path, given: list[tuple[Any, Any]]) -> None:
    made: list[trtbatch.LoadedEngine] = []
    in_threads(lambda _: made.append(trtbatch.load(folder / "m.engine")), 1)
    in_threads(lambda _: require(made[0], given[4]), 1)
    in_threads(lambda _: made[0].close(), 1)


def test_the_context_of_the_thread_is_left_as_it_was(folder: Path, given: list[tuple[Any, Any]]) -> None:
    from cuda.bindings import driver

    for before in (int(driver.cuCtxGetCurrent()[1]), int(driver.cuDevicePrimaryCtxRetain(0)[1])):
        driver.cuCtxSetCurrent(driver.CUcontext(before))
        with trtbatch.load(folder / "m.engine") as engine:
            assert int(driver.cuCtxGetCurrent()[1]) == before
            require(engine, given[0])
            assert int(driver.cuCtxGetCurrent()[1]) == before
        assert int(driver.cuCtxGetCurrent()[1]) == before
    driver.cuCtxSetCurrent(driver.CUcontext(0))
    driver.cuDevicePrimaryCtxRelease(0)


def test_engines_of_two_gpus_take_turns(folder: Path, given: list[tuple[Any, Any]]) -> None:
    if device_count() < 2:
        pytest.skip("there is one GPU here")
    with trtbatch.load(folder / "m.engine") as first, trtbatch.load(folder / "m.engine", device=1) as second:
        for index in (0, 7, 20, 63, 7):
            require(first, given[index])
            require(second, given[index])


STEPS = [
    (buffers.BindingBuffer, "__init__"),
    (buffers.Stream, "__init__"),
    (buffers.CudaEvent, "__init__"),
    (contexts.Contexts, "__init__"),
    (compat, "make_logger"),
    (compat, "dtype_name"),
]


@pytest.mark.parametrize(("owner", "name"), STEPS)
def test_an_error_while_an_engine_is_opened_is_an_error(
    folder: Path, given: list[tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """In a thread that ends at once: pycuda would abort the process if a context were left on its stack."""

    def fail(*args: Any, **options: Any) -> None:
        raise ExecutionError("injected", "leave it out")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        for _ in range(3):
            with pytest.raises(ExecutionError, match="injected"):
                in_threads(lambda _: trtbatch.load(folder / "m.engine").close(), 1)
    with trtbatch.load(folder / "m.engine") as engine:
        require(engine, given[3])


def test_a_stripped_engine_without_its_weights_does_not_end_the_process(folder: Path, tmp_path: Path) -> None:
    """As an actor of Ray opens one: in a thread, whose end must not abort the process."""
    code = (
        "import sys, threading, trtbatch\n"
        "def work():\n"
        "    try:\n"
        "        trtbatch.load(sys.argv[1])\n"
        "    except trtbatch.TrtbatchError as error:\n"
        "        print('refused:', error.problem)\n"
        "for _ in range(2):\n"
        "    each = threading.Thread(target=work); each.start(); each.join()\n"
    )
    damaged = tmp_path / "m.engine"
    for suffix in ("", ".json"):
        damaged.with_name(f"m.engine{suffix}").write_bytes((folder / f"m.engine{suffix}").read_bytes())
    change_sidecar(damaged, build={"options": {"strip_weights": True}})
    done = subprocess.run(
        [sys.executable, "-c", code, str(damaged)],
        check=False,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout.count("refused: ")) == (0, 2), done.stderr


def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the captures, in a list of one number."""
    count, real = [0], graphs.CudaGraph

    def counting(*args: Any) -> Any:
        count[0] += 1
        return real(*args)

    monkeypatch.setattr("trtbatch.backends.tensorrt.contexts.CudaGraph", counting)
    return count


def test_sizes_at_random_are_captured_once(
    folder: Path, given: list[tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    count, draw = captured(monkeypatch), np.random.default_rng(0)
    with trtbatch.load(folder / "m.engine") as engine:
        for index in draw.integers(0, 64, 600):
            require(engine, given[index])
        before = count[0]
        assert before > 60
        for index in draw.integers(0, 64, 600):
            require(engine, given[index])
        assert count[0] - before <= 0.05 * 600


def test_a_capture_that_fails_costs_that_size_its_graph_alone(
    folder: Path, given: list[tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = graphs.CudaGraph

    def sometimes(stream: Any, enqueue: Any) -> Any:
        if failing:
            raise ExecutionError("the capture was invalidated", "leave it out")
        return real(stream, enqueue)

    monkeypatch.setattr("trtbatch.backends.tensorrt.contexts.CudaGraph", sometimes)
    with open_engine(load(folder / "m.engine", "engine")) as engine, engine.session() as session:
        assert isinstance(session, TensorRTSession)
        for failing, index in ((True, 3), (False, 4), (False, 3)):
            for _ in range(3):
                session.bind({"input": given[index][0]})
                for mode in session.modes().values():
                    if mode.name != "graph" or not failing:
                        mode.launch()
                slot = session.slot()
                slot.prepare(1 + index)["input"][...] = given[index][0]
                assert row_errors(slot.run()["output"], given[index][1]).max() < LIMIT
            session.bind({"input": given[index][0]})
            assert ("graph" in session.modes()) == (index == 4)


def test_another_user_of_the_default_stream_may_be_busy_while_sizes_are_captured(
    folder: Path, given: list[tuple[Any, Any]], tmp_path: Path
) -> None:
    """torch, or its libraries: they allocate, compute and wait on the legacy stream all the while."""
    beside, ended, failed, rounds = neighbour(tmp_path), threading.Event(), [], [0]

    def busy() -> None:
        try:
            while not ended.is_set():
                held = beside.take()
                assert beside.mean(held) == 1.0
                beside.give(held)
                rounds[0] += 1
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(3):
            with trtbatch.load(folder / "m.engine") as engine:
                for pair in [*given, *given]:
                    require(engine, pair)
    finally:
        ended.set()
        thread.join()
    print(f"next to {beside.name}: {rounds[0]} rounds")
    assert not failed, failed
    assert rounds[0] > 10


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    """An engine of three outputs of different sizes."""
    made = tmp_path_factory.mktemp("several")
    nodes = [
        helper.make_node("Neg", ["input"], ["negated"], name="/neg"),
        helper.make_node("Concat", ["input", "negated", "input"], ["wide"], name="/wide", axis=1),
        helper.make_node("ReduceSum", ["wide", "axis"], ["narrow"], name="/narrow", keepdims=1),
    ]
    onnx = models.save(
        made / "m.onnx",
        nodes,
        {"input": ["batch_size", 300]},
        {"narrow": ["batch_size", 1], "wide": ["batch_size", 900], "negated": ["batch_size", 300]},
        {"axis": np.array([1], np.int64)},
    )
    done = run_process("build", onnx, "--max", 8, "--output", "m.engine", cwd=made)
    assert done.returncode == 0, done.stderr
    return onnx, load(made / "m.engine", "engine")


def test_outputs_are_right_in_every_mode_whatever_order_the_sidecar_has(several: tuple[Path, Artifact]) -> None:
    onnx, artifact = several
    oracle = OnnxReference(onnx)
    for turn in (1, -1):
        sidecar = replace(artifact.sidecar, outputs=artifact.sidecar.outputs[::turn])
        with open_engine(Artifact(artifact.path, sidecar)) as engine, engine.session() as session:
            for batch in (1, 8, 3):
                inputs = random_inputs(sidecar.inputs, batch, seed=batch)
                expected = oracle(inputs)
                session.bind(inputs)
                for mode in session.modes().values():
                    session.poison(0xFF)
                    mode.launch()
                    found = session.fetch()
                    for name, array in expected.items():
                        assert row_errors(found[name].reshape(batch, -1), array.reshape(batch, -1)).max() < LIMIT, (
                            mode.name
                        )
