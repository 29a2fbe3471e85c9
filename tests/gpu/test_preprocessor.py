"""The preprocessor's engine: Pillow's pixels, in their row of the model's input, whatever is in flight."""

from __future__ import annotations

import json
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from scripts.photos import copy_photos
from scripts.preprocessor_table import photograph, sizes
from tests import models
from tests.conftest import run_process
from trtbatch import artifacts
from trtbatch.artifacts import FileRecord, ModelRecord, Sidecar, TensorSpec, load
from trtbatch.backends import open_engine, open_preprocessor
from trtbatch.backends.tensorrt.buffers import Device
from trtbatch.backends.tensorrt.engine import TensorRTSession
from trtbatch.backends.tensorrt.preprocess import TensorRTPreprocessor
from trtbatch.errors import ArtifactError, ExecutionError
from trtbatch.photographs import decoders
from trtbatch.photographs.preprocessor import describe, pixels_of
from trtbatch.photographs.record import PreprocessorRecord
from trtbatch.preprocessing import Preprocessing

RECIPE = Preprocessing(resize=40, crop=(32, 32))
"""A sample is 12,288 bytes: rows lie where TensorRT wants addresses."""

ODD = Preprocessing(resize=40, crop=(29, 31))
"""A sample is 10,788 bytes: most rows don't."""


CUBIC = Preprocessing(resize=40, crop=(32, 32), interpolation="bicubic")
"""Its taps come from the host."""


def write(folder: Path, recipe: Preprocessing, name: str) -> Path:
    """``NAME.onnx``, a classifier of what the recipe makes, with its sidecar."""
    room = folder / "made"
    room.mkdir()
    height, width = recipe.crop
    made = models.classifier(room / f"{name}.onnx", size=height)
    if width != height:
        model = onnx.load(str(made))
        model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = width
        onnx.save(model, str(made))
    spec = TensorSpec("input", "float32", ("batch_size", 3, height, width))
    sidecar = Sidecar(
        kind="onnx",
        artifact=artifacts.record_file(made),
        inputs=(spec,),
        outputs=(TensorSpec("output", "float32", ("batch_size", 5)),),
        model=ModelRecord(name, "of the test"),
        preprocessing=recipe,
        created=artifacts.now(),
    )
    artifacts.publish(made, folder / f"{name}.onnx", sidecar)
    room.rmdir()
    return folder / f"{name}.onnx"


RECIPES = {"even": RECIPE, "odd": ODD, "cubic": CUBIC}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and preprocessors of all recipes: ``even.engine``, ``even.pre.engine``, ``odd.…``."""
    made = tmp_path_factory.mktemp("preprocessor")
    for name, recipe in RECIPES.items():
        write(made, recipe, name)

    def build(name: str) -> None:
        for line in (
            ("build", f"{name}.onnx", "--max", 8, "--opt", 8, "--opt-level", 2, "--output", f"{name}.engine"),
            ("export-preprocessor", f"{name}.engine", "--output", f"{name}.pre.onnx"),
            ("build", f"{name}.pre.onnx"),
        ):
            done = run_process(*line, cwd=made)
            print(done.stdout, done.stderr)
            assert done.returncode == 0, done.stderr
        assert "photographs of up to 4096×4096" in done.stdout

    with ThreadPoolExecutor() as pool:
        list(pool.map(build, RECIPES))
    return made


def opened(folder: Path, name: str) -> tuple[TensorRTPreprocessor, PreprocessorRecord]:
    artifact = load(folder / f"{name}.pre.engine", "preprocessor")
    return open_preprocessor(artifact), describe(load(folder / f"{name}.onnx", "onnx").sidecar)


@pytest.mark.parametrize("name", RECIPES)
def test_photographs_of_all_sizes_have_pillows_pixels(folder: Path, name: str) -> None:
    """One by one, and in groups in which they are what the others aren't."""
    preprocessor, record = opened(folder, name)
    generator, recipe = np.random.default_rng(0), RECIPES[name]
    shapes = [*sizes(generator, 120, 4096), (40, 4096), (4096, 40), (4096, 4096)]
    worst, exact, count = 0.0, 0, 0
    with preprocessor:
        preprocessor.open()
        device, stream = preprocessor.device, preprocessor.device.stream()
        row = record.output
        sample = np.empty((len(shapes), *map(int, row.shape[1:])), row.dtype)
        memory, events = device.memory(sample.nbytes), preprocessor.events()
        shots = [photograph(generator, *shape) for shape in shapes]
        for index, pixels in enumerate(shots):
            given = preprocessor.prepare(pixels, np.empty(preprocessor.beside, np.uint8))
            preprocessor(given, memory.address + index * sample[0].nbytes)
        preprocessor.done(events)
        preprocessor.settle()
        device.copies([(sample, memory.address)]).down(stream)
        stream.synchronize()
        memory.free()
        stream.close()
        for index, pixels in enumerate(shots):
            alone = preprocessor.sample(pixels) if index % 5 == 0 else sample[index][None]
            for found in (pixels_of(record, alone), pixels_of(record, sample[index][None])):
                off = np.abs(found - recipe.pixels(Image.fromarray(pixels)))
                worst, exact, count = max(worst, float(off.max())), exact + int((off < 0.01).sum()), count + off.size
        preprocessor.close()
    print(f"largest difference {worst:.3f} of 255; {exact / count:.4%} of {count} values are the same")
    assert worst < 1.1


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", RECIPES)
def test_rows_are_filled_where_they_belong(
    folder: Path, name: str, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen photographs in flight into two slots, then the model on them: each row is that of its photograph."""
    if not together:
        monkeypatch.setattr(Device, "plane_copies", lambda device, most: None)
    preprocessor, record = opened(folder, name)
    generator = np.random.default_rng(1)
    shots = [photograph(generator, *size) for size in list(sizes(generator, 18, 700))[2:]]
    with (
        open_engine(load(folder / f"{name}.engine", "engine")) as engine,
        engine.session() as session,
        preprocessor,
    ):
        assert isinstance(session, TensorRTSession)
        slots = [session.slot(), session.slot()]
        preprocessor.open()
        if together and preprocessor.device.plane_copies(1) is None:
            pytest.skip("the driver has no copies in batches")
        found = []
        for slot, first in zip(slots, (0, 8)):
            slot.prepare(8)
            for index in range(8):
                given = preprocessor.prepare(shots[first + index], np.empty(preprocessor.beside, np.uint8))
                preprocessor(given, slot.row_address("input", index))
            events = preprocessor.events()
            preprocessor.done(events)
            slot.submit_after(events)
        for slot in slots:
            found.append(slot.wait()["output"].copy())
        samples = np.stack([record.recipe(Image.fromarray(shot)) for shot in shots])
        wanted = []
        for part in (samples[:8], samples[8:]):
            session.bind({"input": part})
            session.run()
            wanted.append(session.fetch()["output"])
        assert all((lane._copies is not None) is together for lane in preprocessor._lanes)
        preprocessor.close()
    assert np.concatenate(found) == pytest.approx(np.concatenate(wanted), abs=1e-4)
    assert len({row.tobytes() for row in np.concatenate(wanted).round(4)}) == 16


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_infer_fills_rows_on_the_gpu_and_predicts_the_same(folder: Path, tmp_path: Path, batch: int) -> None:
    shots = tmp_path / "photos"
    copy_photos(shots)
    for index in range(40):
        generator = np.random.default_rng(index)
        shape = (30 + 7 * (index % 5), 90 - index, 3)
        Image.fromarray(generator.integers(0, 256, shape, np.uint8)).save(shots / f"p{index:02}.jpg")
    (shots / "p17.jpg").write_bytes((shots / "p17.jpg").read_bytes()[:700])
    (shots / "p20.jpg").write_bytes(b"")
    line = ("infer", folder / "even.engine", "--input", shots, "--batch", batch)
    done = run_process(*line, "--output", "gpu.npz", "--trace", "trace.json", cwd=tmp_path)
    print(done.stdout, done.stderr)
    assert done.returncode == 1 and "2 of 50 inputs were skipped" in done.stderr
    assert "preprocessor:" in done.stderr and "even.pre.engine" in done.stderr
    other = run_process(*line, "--output", "pillow.npz", "--no-preprocessor", cwd=tmp_path)
    assert other.returncode == 1 and "preprocessor" not in other.stderr
    with np.load(tmp_path / "gpu.npz") as own, np.load(tmp_path / "pillow.npz") as pillow:
        assert list(own) == list(pillow)
        for key in own:
            if own[key].dtype.kind == "f":
                assert own[key].shape[0] == 48
                assert own[key] == pytest.approx(pillow[key], abs=1e-4)
            else:
                assert (own[key] == pillow[key]).all()
        assert len(own["file"]) == 48
    spans = {event["name"] for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {"read", "decode", "preprocess", "submit", "wait", "sink"} <= spans


def test_many_photographs_are_decoded_by_processes_with_the_same_predictions(folder: Path, tmp_path: Path) -> None:
    if (os.cpu_count() or 1) < decoders.LEAST_CORES:
        pytest.skip(f"fewer than {decoders.LEAST_CORES} cores")
    shots = tmp_path / "photos"
    shots.mkdir()
    count = decoders.LEAST_FILES + 100
    for index in range(count):
        generator = np.random.default_rng(index)
        shape = (60 + 7 * (index % 9), 90 - index % 40, 3)
        Image.fromarray(generator.integers(0, 256, shape, np.uint8)).save(shots / f"p{index:04}.jpg")
    (shots / "p0017.jpg").write_bytes(b"")
    found = {}
    for name, options in (("gpu", ()), ("pillow", ("--no-preprocessor",))):
        line = ("infer", folder / "even.engine", "--input", shots, "--batch", 8, *options)
        done = run_process(*line, "--output", f"{name}.npz", "--trace", f"{name}.json", cwd=tmp_path)
        print(done.stdout, done.stderr)
        assert done.returncode == 1 and f"1 of {count} inputs were skipped" in done.stderr
        assert "page-locked" not in done.stderr
        events = json.loads((tmp_path / f"{name}.json").read_text())["traceEvents"]
        threads = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
        assert any(thread.startswith("trtbatch-decode-") for thread in threads), threads
        with np.load(tmp_path / f"{name}.npz") as arrays:
            found[name] = {key: arrays[key] for key in arrays}
    for key, array in found["gpu"].items():
        assert len(array) == count - 1
        if array.dtype.kind == "f":
            assert array == pytest.approx(found["pillow"][key], abs=1e-4)
        else:
            assert (array == found["pillow"][key]).all()


def test_the_gpu_decodes_with_the_same_predictions(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.nvimgcodec", reason="needs nvImageCodec (extra gpu-decode)")
    shots = tmp_path / "photos"
    copy_photos(shots)
    for index in range(200):
        size = (300 + 7 * (index % 9), 260 - index % 40)
        exif = Image.Exif()
        exif[0x0112] = 1 + index % 8
        made = photograph(np.random.default_rng(index), *size)
        Image.fromarray(made).save(shots / f"p{index:04}.jpg", quality=95, subsampling=index % 3, exif=exif)
    whole = (shots / "p0017.jpg").read_bytes()
    (shots / "p0017.jpg").write_bytes(whole[: len(whole) // 2])
    found, counts = {}, {}
    for name, options in (("gpu", ("--gpu-decode",)), ("host", ())):
        line = ("infer", folder / "even.engine", "--input", shots, "--batch", 8, *options)
        done = run_process(*line, "--output", f"{name}.npz", "--trace", f"{name}.json", cwd=tmp_path)
        print(done.stdout, done.stderr)
        assert done.returncode == 1 and "p0017.jpg" in done.stderr and "decoded none" not in done.stderr
        events = json.loads((tmp_path / f"{name}.json").read_text())["traceEvents"]
        counts[name] = sum(event.get("args", {}).get("files", 0) for event in events if event["name"] == "decode")
        with np.load(tmp_path / f"{name}.npz") as arrays:
            found[name] = {key: arrays[key] for key in arrays}
    assert counts["gpu"] >= 199 and counts["host"] == 0
    assert (found["gpu"]["file"] == found["host"]["file"]).all()
    for key, array in found["gpu"].items():
        if array.dtype.kind == "f":
            host = found["host"][key]
            off = np.linalg.norm(array - host, axis=1) / np.linalg.norm(host, axis=1)
            print(f"{key}: off by {off.max():.2e} at most (L2, relative)")
            assert off.max() < 0.02  # a few of 255 in a pixel


def test_memory_is_page_locked_while_it_is_asked_for(folder: Path) -> None:
    preprocessor, _ = opened(folder, "even")
    with preprocessor:
        device = preprocessor.device
        block = np.frombuffer(mmap.mmap(-1, 1 << 20), np.uint8)
        unlock = device.page_lock(block)
        with pytest.raises(ExecutionError, match="can't be page-locked"):
            device.page_lock(block)
        block[:] = np.arange(block.size, dtype=np.uint32).astype(np.uint8)
        memory, stream, back = device.memory(block.size), device.stream(), np.zeros(block.size, np.uint8)
        try:
            device.copies([(block, memory.address)]).up(stream)
            device.copies([(back, memory.address)]).down(stream)
            stream.synchronize()
        finally:
            memory.free()
        assert (back == block).all()
        other = threading.Thread(target=unlock)
        other.start()
        other.join()
        device.page_lock(block)()  # it can be again


def test_a_preprocessor_of_another_model_is_refused_or_passed_over(folder: Path, tmp_path: Path) -> None:
    shots = tmp_path / "photos"
    copy_photos(shots)
    line = ("infer", folder / "odd.engine", "--input", shots, "--preprocessor")
    done = run_process(*line, folder / "even.pre.engine", cwd=tmp_path)
    assert done.returncode == 2 and "differs from that of odd.engine" in done.stderr
    done = run_process(*line[:-1], cwd=tmp_path)
    assert done.returncode == 0 and "odd.pre.engine" in done.stderr and "even.pre" not in done.stderr


def test_a_damaged_one_is_named(folder: Path, tmp_path: Path) -> None:
    for name in ("even.engine", "even.pre.engine"):
        for suffix in ("", ".json"):
            (tmp_path / f"{name}{suffix}").write_bytes((folder / f"{name}{suffix}").read_bytes())
    data = bytearray((tmp_path / "even.pre.engine").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "even.pre.engine").write_bytes(data)
    shots = tmp_path / "photos"
    copy_photos(shots)
    done = run_process("infer", "even.engine", "--input", shots, cwd=tmp_path)
    assert done.returncode == 1 and "even.pre.engine is not the file" in done.stderr


def test_one_for_this_gpu_and_tensorrt_alone(folder: Path, tmp_path: Path) -> None:
    artifact = load(folder / "even.pre.engine", "preprocessor")
    foreign = replace(artifact.sidecar, tools={"tensorrt": "1.2.3"})
    (tmp_path / "x.pre.engine").write_bytes(artifact.path.read_bytes())
    assert isinstance(foreign.artifact, FileRecord)
    with pytest.raises(ArtifactError, match=r"built with TensorRT 1\.2\.3"):
        open_preprocessor(replace(artifact, sidecar=foreign))
