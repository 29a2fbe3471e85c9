"""``trtbatch.load`` on tensors that lie on the GPU: bound where they lie, outputs left there."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

import trtbatch
from tests.support import models
from tests.support.gpu_memory import held_memory
from tests.support.processes import run_process
from trtbatch.backends.tensorrt.buffers import Device
from trtbatch.errors import InputError, UsageError
from trtbatch.onnx_graph.run import OnnxReference
from trtbatch.runtime.dlpack import CUDA, DeviceArray


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``m.onnx`` and ``m.engine``, profile 1:8:8."""
    made = tmp_path_factory.mktemp("api")
    models.classifier(made / "m.onnx")
    done = run_process("build", "m.onnx", "--opt", 8, "--max", 8, "--output", "m.engine", cwd=made)
    assert done.returncode == 0, done.stderr
    return made


def on_gpu(array: NDArray[Any], offset: int = 0) -> DeviceArray:
    """A tensor on GPU 0, so many bytes from where memory begins."""
    device = Device()
    memory, stream = device.memory(array.nbytes + offset), device.stream()
    with device.entered():
        device.upload(memory.address + offset, array, stream)
        stream.synchronize()
    return DeviceArray(memory.address + offset, array.shape, str(array.dtype), memory)


def to_host(tensor: DeviceArray) -> NDArray[Any]:
    device = Device()
    stream, found = device.stream(), np.empty(tensor.shape, tensor.dtype)
    with device.entered():
        device.copies([(found, tensor.address)]).down(stream)
        stream.synchronize()
    return found


def samples(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).standard_normal((count, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 7, 8, 20])
@pytest.mark.parametrize("offset", [0, 4])
def test_outputs_stay_on_the_gpu_and_are_those_of_the_reference(folder: Path, count: int, offset: int) -> None:
    """At 20 it runs in pieces, whose outputs begin where TensorRT takes none; so does the input with an offset."""
    given = samples(count)
    wanted = OnnxReference(folder / "m.onnx")({"input": given})["output"]
    with trtbatch.load(folder / "m.engine") as engine:
        found = engine(on_gpu(given, offset))
        assert isinstance(found, DeviceArray)
        assert found.__dlpack_device__() == (CUDA, 0)
        assert to_host(found) == pytest.approx(wanted, abs=2e-3)
        again = engine(given)
        assert isinstance(again, np.ndarray)
        assert again == pytest.approx(wanted, abs=2e-3)
        del found


def test_one_engine_feeds_another_through_dlpack(folder: Path, tmp_path: Path) -> None:
    """What one returns is the other's input: the scores of the classifier, put through a second model."""
    models.save(
        tmp_path / "next.onnx",
        [helper.make_node("Mul", ["input", "two"], ["output"], name="/double")],
        {"input": ["batch_size", 5]},
        {"output": ["batch_size", 5]},
        {"two": np.array(2, np.float32)},
    )
    done = run_process("build", "next.onnx", "--opt", 8, "--max", 8, "--output", "next.engine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    given = samples(8)
    with trtbatch.load(folder / "m.engine") as first, trtbatch.load(tmp_path / "next.engine") as second:
        between = first(on_gpu(given))
        last = second(between)
        assert to_host(last) == pytest.approx(2 * to_host(between), rel=1e-6)
        del between, last


def test_torch_takes_what_is_returned(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    given = samples(8)
    with trtbatch.load(folder / "m.engine") as engine:
        found = torch.from_dlpack(engine(torch.from_numpy(given).cuda()))
        wanted = OnnxReference(folder / "m.onnx")({"input": given})["output"]
        assert found.is_cuda
        assert found.cpu().numpy() == pytest.approx(wanted, abs=2e-3)
        del found


def test_what_can_not_be_bound_says_why(folder: Path) -> None:
    with trtbatch.load(folder / "m.engine") as engine:
        with pytest.raises(InputError, match="float64"):
            engine(on_gpu(samples(2).astype(np.float64)))
        with pytest.raises(InputError, match="shape"):
            engine(on_gpu(samples(2)[:, :2].copy()))
        with pytest.raises(InputError, match="input is uint8 and the engine takes float32; normalise it"):
            engine(on_gpu(np.zeros((2, 3, 8, 8), np.uint8)))
        with pytest.raises(InputError, match="inputs x given"):
            engine({"x": on_gpu(samples(2))})
        elsewhere = DeviceArray(256, (2, 3, 8, 8), "float32", None, (CUDA, 1))
        with pytest.raises(InputError, match=r"input lies on device \(2, 1\), the engine's GPU is 0"):
            engine(elsewhere)
        tensor = on_gpu(samples(2))
    with pytest.raises(UsageError, match="is closed"):
        engine(tensor)


def test_a_batch_is_not_padded_on_the_gpu(folder: Path, tmp_path: Path) -> None:
    done = run_process("build", folder / "m.onnx", "--profile", "2:8:8", "--output", "two.engine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with trtbatch.load(tmp_path / "two.engine") as engine:
        single = on_gpu(samples(1))
        with pytest.raises(InputError, match="batch 1 would have to be padded on the GPU; give 2 samples"):
            engine(single)
        del single


def test_an_output_frees_its_memory_when_nobody_shares_it(folder: Path) -> None:
    many = np.zeros((40_000, 3, 8, 8), np.float32)
    with trtbatch.load(folder / "m.engine") as engine:
        given = on_gpu(many)
        engine(given)
        held = held_memory()
        for _ in range(50):  # 800 kB each
            engine(given)
        assert held_memory() - held <= 1 << 20


@pytest.mark.parametrize("sessions", [1, 4])
def test_threads_share_an_engine_and_get_what_one_thread_gets(folder: Path, sessions: int) -> None:
    """8 threads × 1000 calls, bit for bit; each thread starts with no context and ends with none."""
    given = [samples(1 + number % 20) for number in range(40)]
    with trtbatch.load(folder / "m.engine", sessions=sessions) as engine:
        expected = [engine(each) for each in given]
        wrong: list[int] = []

        def work(seed: int) -> None:
            for number in np.random.default_rng(seed).integers(0, len(given), 1000):
                if not np.array_equal(engine(given[number]), expected[number]):
                    wrong.append(int(number))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def dropped(engine: trtbatch.LoadedEngine, tensor: DeviceArray) -> None:
    """Call the engine, and drop the output in this thread."""
    engine(tensor)


def test_outputs_on_the_gpu_are_dropped_by_other_threads(folder: Path) -> None:
    given = np.zeros((40_000, 3, 8, 8), np.float32)
    with trtbatch.load(folder / "m.engine") as engine:
        tensor = on_gpu(given)
        engine(tensor)
        held = held_memory()
        with ThreadPoolExecutor(4) as pool:
            for call in [pool.submit(dropped, engine, tensor) for _ in range(200)]:  # 800 kB each
                call.result()
        assert held_memory() - held <= 1 << 20
