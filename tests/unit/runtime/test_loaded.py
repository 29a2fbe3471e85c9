"""An engine as a function: any batch size, any library's tensors, against ONNX Runtime on the same file."""

from __future__ import annotations

import gc
import os
import re
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

import trtbatch
from scripts.photos import PHOTOS
from tests.support import models
from tests.support.labels import CLASSES, PREPROCESSING
from tests.support.sidecars import change_sidecar
from trtbatch.backends.onnxruntime import OnnxRuntimeSession, OnnxRuntimeSlot
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import ExecutionError, InputError, UsageError
from trtbatch.onnx_graph.run import OnnxReference
from trtbatch.runtime import dlpack
from trtbatch.util.serialization import encode

Cli = Callable[..., Any]


def images(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def oracle(folder: Path, samples: Any) -> Any:
    return OnnxReference(folder / "small.onnx")({"input": np.asarray(samples, np.float32)})["output"]


def built(cli: Cli, folder: Path, make: Callable[[Path], Path], *options: object) -> Path:
    make(folder / "m.onnx")
    assert cli("build", "m.onnx", "--backend", "onnxruntime", *options).exit_code == 0
    return folder / "engines" / "m.ort.onnx"


@pytest.mark.parametrize("count", [1, 3, 8, 9, 21, 100])
def test_any_batch_size_gives_the_rows_of_the_reference(engine: Path, folder: Path, count: int) -> None:
    with trtbatch.load(engine) as loaded:
        found = loaded(images(count))
    np.testing.assert_allclose(found, oracle(folder, images(count)), rtol=1e-4, atol=1e-6)


def test_too_few_samples_are_padded_and_the_padding_is_trimmed(cli: Cli, folder: Path) -> None:
    models.classifier(folder / "small.onnx")
    assert cli("build", "small.onnx", "--profile", "3:3:4", "--profile", "6:6:8").exit_code == 0
    with trtbatch.load(str(folder / "engines" / "small.ort.onnx")) as loaded:
        for count in (1, 5, 7, 9, 19):
            found = loaded(images(count, count))
            assert found.shape == (count, 5)
            np.testing.assert_allclose(found, oracle(folder, images(count, count)), rtol=1e-4, atol=1e-6)


def test_no_path_is_the_newest_engine_and_no_samples_are_no_rows(engine: Path) -> None:
    with trtbatch.load() as loaded:
        assert loaded.sidecar.model.name == "small"
        found = loaded(images(0))
    assert found.shape == (0, 5)
    assert found.dtype == np.float32


def test_inputs_by_name_and_outputs_by_name(cli: Cli, folder: Path) -> None:
    a, b = (np.random.default_rng(seed).standard_normal((20, 4)).astype(np.float32) for seed in (1, 2))
    with trtbatch.load(built(cli, folder, models.shuffled, "--max", 8)) as loaded:
        for found in (loaded(a=a, b=b), loaded({"b": b, "a": a})):
            assert list(found) == ["doubled", "difference"]
            np.testing.assert_allclose(found["difference"], a - b, rtol=1e-6)
            np.testing.assert_allclose(found["doubled"], 2 * b, rtol=1e-6)
        with pytest.raises(InputError, match="has the inputs b, a, and one array is given"):
            loaded(a)
        with pytest.raises(InputError, match=r"inputs a given"):
            loaded(a=a)
        with pytest.raises(InputError, match="both by position and by name"):
            loaded({"a": a}, b=b)
        with pytest.raises(InputError, match="disagree on the batch size"):
            loaded(a=a, b=b[:3])


def test_a_batch_axis_that_is_not_the_first_is_cut_and_joined_along_it(cli: Cli, folder: Path) -> None:
    array = np.random.default_rng(0).standard_normal((4, 21)).astype(np.float32)
    with trtbatch.load(built(cli, folder, models.batch_last, "--min", 2, "--max", 8)) as loaded:
        np.testing.assert_array_equal(loaded(array), -array)
        np.testing.assert_array_equal(loaded(array[:, :1]), -array[:, :1])


def test_outputs_that_are_no_rows_come_whole_or_not_at_all(cli: Cli, folder: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    path = built(cli, folder, models.summarised, "--max", 8, "--no-verify")
    with trtbatch.load(path) as loaded:
        np.testing.assert_allclose(loaded(rows[:8])["total"], rows[:8].sum(), rtol=1e-4)
        with pytest.raises(InputError, match="batch 9 must run in pieces or padded, and output 'mean'"):
            loaded(rows)


def test_what_is_returned_is_the_callers(engine: Path) -> None:
    with trtbatch.load(engine) as loaded:
        first = loaded(images(4, 1))
        kept = first.copy()
        loaded(images(4, 2))
        np.testing.assert_array_equal(first, kept)
    loaded.close()
    np.testing.assert_array_equal(first, kept)
    with pytest.raises(UsageError, match=r"small\.ort\.onnx is closed"):
        loaded(images(1))


def test_a_cast_that_would_change_values_is_refused(engine: Path) -> None:
    with trtbatch.load(engine) as loaded:
        loaded(np.ones((2, 3, 8, 8)))  # float64, and exact in float32
        with pytest.raises(InputError, match="the cast would change values"):
            loaded(np.full((2, 3, 8, 8), 0.1))


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_integers_for_an_input_of_floats_are_refused(engine: Path, dtype: str) -> None:
    import torch

    samples = np.full((2, 3, 8, 8), 200, dtype)
    told = f"input is {dtype} and the engine takes float32"
    with trtbatch.load(engine) as loaded:
        for given in (samples, torch.from_numpy(samples), samples.tolist() if dtype == "int64" else samples):
            with pytest.raises(InputError, match=told):
                loaded(given)
        with pytest.raises(InputError, match=told) as caught:
            loaded(samples.transpose(0, 2, 3, 1))  # the type is the worse of the two
    fix = ("normalise it", "engine.predict", "`fuse_preprocess`") if dtype == "uint8" else ("astype('float32')",)
    assert all(words in caught.value.fix for words in fix)


def test_an_array_of_the_other_layout_is_to_be_transposed(engine: Path, folder: Path) -> None:
    nhwc = images(5).transpose(0, 2, 3, 1)
    with trtbatch.load(engine) as loaded:
        with pytest.raises(InputError, match=r"its layout is NHWC .*: transpose it, array\.transpose\(0, 3, 1, 2\)"):
            loaded(nhwc)
        np.testing.assert_allclose(loaded(nhwc.transpose(0, 3, 1, 2)), oracle(folder, images(5)), rtol=1e-4, atol=1e-6)


def test_files_go_to_predict(engine: Path) -> None:
    with trtbatch.load(engine) as loaded:
        for given, what in (
            ("cat.jpg", "cat.jpg"),
            (Path("cat.jpg"), "cat.jpg"),
            (["cat.jpg", "dog.jpg"], "cat.jpg"),
            ([Path("cat.jpg")], "cat.jpg"),
            (b"\xff\xd8", "encoded files"),
            ([None], "of NoneType objects"),
        ):
            with pytest.raises(InputError) as caught:
                loaded(given)
            assert caught.value.problem == f"small.ort.onnx is called with arrays, and input is {what}"
            assert caught.value.fix == "images go to engine.predict([path, …])"
        with pytest.raises(InputError, match=r"input is no array: .*; give rows of one shape"):
            loaded([[1.0], [1.0, 2.0]])


@pytest.mark.parametrize("sessions", [1, 3])
def test_threads_share_an_engine_and_get_what_one_thread_gets(engine: Path, sessions: int) -> None:
    with trtbatch.load(engine, sessions=sessions) as loaded:
        given = [images(1 + index % 20, seed=index) for index in range(40)]
        expected = [loaded(each) for each in given]
        with ThreadPoolExecutor(8) as pool:
            turns = [number for turn in range(10) for number in np.random.default_rng(turn).permutation(len(given))]
            for number, found in zip(turns, pool.map(lambda number: loaded(given[number]), turns)):
                np.testing.assert_array_equal(found, expected[number])


def test_as_many_calls_run_at_once_as_there_are_sessions(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call waits for the others to have begun: with a session fewer they never would."""
    for sessions in (1, 3):
        meeting = threading.Barrier(sessions, timeout=20)
        running, most = [0], [0]
        run = OnnxRuntimeSession.run

        def together(session: OnnxRuntimeSession, run: Any = run, meeting: Any = meeting) -> None:
            running[0] += 1  # noqa: B023
            most[0] = max(most[0], running[0])  # noqa: B023
            meeting.wait()
            run(session)
            running[0] -= 1  # noqa: B023

        with trtbatch.load(engine, sessions=sessions) as loaded, monkeypatch.context() as patch:
            patch.setattr(OnnxRuntimeSession, "run", together)
            with ThreadPoolExecutor(6) as pool:
                list(pool.map(lambda index: loaded(images(2, seed=index)), range(6)))
        assert most == [sessions]


def test_any_thread_closes_it_once_calls_have_ended(engine: Path) -> None:
    loaded = trtbatch.load(engine, sessions=2)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(loaded, images(8, seed=index)) for index in range(200)]
        for closing in [pool.submit(loaded.close) for _ in range(3)]:
            closing.result()
        ends = [call.exception() for call in calls]
    assert all(end is None or (isinstance(end, UsageError) and end.problem.endswith("is closed")) for end in ends)
    assert repr(loaded).endswith("2 sessions, closed)")
    with pytest.raises(UsageError, match="is closed; load it again"):
        loaded(images(1))
    with pytest.raises(UsageError, match="sessions=0 is not a number of sessions; give 1 to 64"):
        trtbatch.load(engine, sessions=0)


def test_what_is_loaded_says_what_it_is(engine: Path) -> None:
    with trtbatch.load(engine) as loaded:
        assert re.fullmatch(r"LoadedEngine\('small', fp32, profiles 1:4:8, on .+\)", repr(loaded))


# Tensors of other libraries.


@pytest.mark.torch
def test_a_torch_tensor_is_read_where_it_lies(engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    addresses: list[int] = []
    bind = OnnxRuntimeSession.bind

    def noted(self: OnnxRuntimeSession, inputs: Mapping[str, Any]) -> None:
        bind(self, inputs)
        addresses.append(self.bound()["input"].ctypes.data)

    monkeypatch.setattr(OnnxRuntimeSession, "bind", noted)
    tensor = torch.from_numpy(images(20))
    with trtbatch.load(engine) as loaded:
        found = loaded(tensor)
    row = 3 * 8 * 8 * 4
    assert addresses == [tensor.data_ptr(), tensor.data_ptr() + 8 * row, tensor.data_ptr() + 16 * row]
    np.testing.assert_allclose(found, oracle(folder, images(20)), rtol=1e-4, atol=1e-6)
    assert isinstance(found, torch.Tensor), "tensors in, tensors out"


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
def test_what_goes_in_as_a_tensor_comes_out_as_one(cli: Cli, folder: Path, dtype: str) -> None:
    import torch

    path = built(
        cli,
        folder,
        lambda path: models.negated(path, getattr(TensorProto, {"float32": "FLOAT"}.get(dtype, dtype.upper()))),
        "--max",
        8,
    )
    array = np.arange(12).reshape(3, 4).astype(dtype)
    with trtbatch.load(path) as loaded:
        tensor, plain = loaded(torch.from_numpy(array)), loaded(array)
        assert isinstance(plain, np.ndarray)
        assert tensor.dtype == torch.from_numpy(array).dtype
        np.testing.assert_array_equal(tensor.numpy(), plain)
        by_name = loaded.run({"input": torch.from_numpy(array)})
        assert torch.equal(by_name["output"], tensor)


@pytest.mark.torch
def test_tensors_that_cannot_be_shared_say_why(engine: Path) -> None:
    import torch

    with trtbatch.load(engine) as loaded:
        with pytest.raises(InputError, match=r"input can't be shared: .*detach"):
            loaded(torch.zeros(1, 3, 8, 8, requires_grad=True))
        with pytest.raises(InputError, match="input can't be shared"):
            loaded(torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16))
        strided = torch.from_numpy(images(2)).transpose(2, 3)
        np.testing.assert_array_equal(loaded(strided), loaded(np.ascontiguousarray(strided.numpy())))


class OnGpu:
    """What says that it lies on a GPU."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, 0

    def __dlpack__(self, *, stream: Any = None) -> Any:
        raise AssertionError("nobody may ask for it")


def test_a_gpu_tensor_for_an_engine_on_the_cpu_is_refused(engine: Path) -> None:
    with trtbatch.load(engine) as loaded, pytest.raises(InputError, match=r"lies on a GPU, and small\.ort\.onnx runs"):
        loaded(OnGpu())


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "uint8", "bool"])
def test_capsules_keep_type_shape_and_address(dtype: str) -> None:
    import torch

    array = np.arange(6).reshape(2, 3).astype(dtype)
    made = dlpack.DeviceArray(array.ctypes.data, (2, 3), dtype, array, (dlpack.CPU, 0))
    np.testing.assert_array_equal(torch.from_dlpack(made).numpy(), array)
    assert np.shares_memory(np.from_dlpack(made), array)
    spec = TensorSpec("x", dtype, ("N", 3))
    borrowed = dlpack.shared(torch.from_numpy(array), spec)
    assert (borrowed.address, borrowed.shape, borrowed.dtype) == (array.ctypes.data, (2, 3), dtype)
    owner = weakref.ref(array)
    unused = made.__dlpack__()
    del made, array, borrowed
    gc.collect()
    assert owner() is not None, "a capsule keeps what owns the memory"
    del unused
    gc.collect()
    assert owner() is None, "a capsule that nobody took is given up with it"


def test_a_device_array_is_not_copied() -> None:
    array = np.zeros((2, 3), np.float32)
    made = dlpack.DeviceArray(array.ctypes.data, (2, 3), "float32", array, (dlpack.CPU, 0))
    with pytest.raises(BufferError):
        made.__dlpack__(copy=True)


# Images.


def test_predict_takes_paths_images_bytes_and_pixels(photo_engine: Path, folder: Path, photos: Path) -> None:
    files = [photos / name for name in PHOTOS[:4]]
    with Image.open(files[3]) as image:
        pixels = np.asarray(image.convert("RGB"))
    given: Sequence[Any] = [str(files[0]), Image.open(files[1]), files[2].read_bytes(), pixels]
    expected = oracle(folder, [PREPROCESSING(Image.open(file)) for file in files])
    with trtbatch.load(photo_engine) as loaded:
        found = loaded.predict(given, topk=2)
        assert loaded.predict([]) == []
        assert sorted(each.index for each in loaded.predict(given[:1], topk=99)[0]) == list(range(5))
        for bad in (0, -1, 1.5):
            with pytest.raises(UsageError, match=f"topk={bad} is no number of classes; give a whole number, 1 or more"):
                loaded.predict(given, topk=bad)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="takes a list of images"):
            loaded.predict(os.fspath(files[0]))
        with pytest.raises(InputError, match="image 1: not an image of a format that is read"):
            loaded.predict([files[0], b"nothing"])
        broken = folder / "broken.jpg"
        broken.write_bytes(files[0].read_bytes()[:100])
        for path in (broken, str(broken), folder / "none.jpg"):
            with pytest.raises(InputError, match=re.escape(f"image 1 ({path}): ")):
                loaded.predict([files[0], path])
        with pytest.raises(InputError, match=r"image 0: an array float32 .* is no image"):
            loaded.predict([images(1)[0]])
    assert [len(row) for row in found] == [2] * 4
    assert [row[0].index for row in found] == expected.argmax(axis=1).tolist()
    assert found[0][0].name == CLASSES[found[0][0].index]
    assert 0 < found[0][0].score <= 1


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_a_model_that_takes_bytes_is_given_bytes(cli: Cli, folder: Path, photos: Path, layout: str) -> None:
    shape = ("batch_size", 8, 8, 3) if layout == "NHWC" else ("batch_size", 3, 8, 8)
    path = built(cli, folder, lambda file: models.save(
        file,
        [helper.make_node("Cast", ["input"], ["wide"], to=TensorProto.FLOAT),
         helper.make_node("ReduceMax", ["wide"], ["rows"], axes=[1], keepdims=0),
         helper.make_node("Flatten", ["rows"], ["output"])],
        {"input": shape}, {"output": ["batch_size", 24 if layout == "NHWC" else 64]},
        dtypes={"input": TensorProto.UINT8},
    ), "--max", 4)  # fmt: skip
    recipe = Preprocessing(10, (8, 8), fused="NHWC" if layout == "NHWC" else "NCHW")
    change_sidecar(path, preprocessing=encode(recipe))
    samples = np.stack([recipe(Image.open(photos / name)) for name in PHOTOS])
    expected = OnnxReference(folder / "m.onnx")({"input": samples})["output"]
    with trtbatch.load(path) as loaded:
        found = loaded.predict([photos / name for name in PHOTOS], topk=1)
    assert [row[0].index for row in found] == expected.argmax(axis=1).tolist()
    pictures = np.empty(len(PHOTOS), dtype=object)
    pictures[:] = [(photos / name).read_bytes() for name in PHOTOS]
    assert trtbatch.ray.Predictor(path)({"bytes": pictures})["index"].tolist() == expected.argmax(axis=1).tolist()


def test_no_module_hides_a_public_function() -> None:
    """Importing ``trtbatch/x.py`` sets ``trtbatch.x``, whatever the package gives under that name."""
    package = Path(trtbatch.__file__).parent
    assert [name for name in trtbatch.__all__ if (package / f"{name}.py").exists()] == []


def test_predict_needs_preprocessing(engine: Path) -> None:
    with trtbatch.load(engine) as loaded, pytest.raises(UsageError, match="small has no preprocessing recorded"):
        loaded.predict(["x.jpg"])


def test_all_batches_in_flight_are_waited_for_after_an_error(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their memory is written until then, and the next call uses it again."""
    monkeypatch.setattr(OnnxRuntimeSession, "in_flight", 3)
    submitted, waited = [0], [0]
    submit, wait = OnnxRuntimeSlot.submit, OnnxRuntimeSlot.wait

    def counted(slot: OnnxRuntimeSlot) -> None:
        submitted[0] += 1
        submit(slot)

    def failing(slot: OnnxRuntimeSlot) -> dict[str, Any]:
        waited[0] += 1
        wait(slot)
        raise ExecutionError(f"batch {waited[0]} failed", "try again")

    with trtbatch.load(engine) as opened, monkeypatch.context() as patch:
        patch.setattr(OnnxRuntimeSlot, "submit", counted)
        patch.setattr(OnnxRuntimeSlot, "wait", failing)
        with pytest.raises(ExecutionError):
            opened(np.zeros((40, 3, 8, 8), np.float32))  # five batches of 8
        assert submitted == waited == [3]
