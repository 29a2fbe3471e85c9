"""The preprocessor's engine: Pillow's pixels within one level, in their row of the model's input."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from scripts.photos import copy_photos
from tests.support.processes import run_process
from tests.support.recipes import write_classifier
from trtbatch.backends import open_engine
from trtbatch.backends.tensorrt.buffers import Device
from trtbatch.backends.tensorrt.preprocess import TensorRTPreprocessor
from trtbatch.backends.tensorrt.session import TensorRTSession
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.sidecar import FileRecord
from trtbatch.core.store import load
from trtbatch.errors import ArtifactError, ExecutionError
from trtbatch.images.preprocessor import PreprocessorRecord, describe, open_preprocessor, pixels_of

Pixels = NDArray[np.uint8]

RECIPES = {
    "even": Preprocessing(resize=40, crop=(32, 32)),
    "odd": Preprocessing(resize=40, crop=(29, 31)),
    "lanczos": Preprocessing(resize=40, crop=(32, 32), interpolation="lanczos"),
}
"""A sample of ``odd`` is 10,788 bytes: most rows don't lie at multiples of 256, where TensorRT wants addresses."""

SIZES = (
    *((375, 500), (1, 1), (500, 375), (1, 90), (90, 1), (40, 40), (32, 32), (31, 57), (2, 3), (1200, 80), (80, 1200)),
    *((224, 224), (2160, 3840), (41, 39), (4096, 40), (40, 4096), (4096, 4096), (5000, 300), (375, 500)),
)
"""Heights and widths, small after large; the one of 5000 rows is larger than the engine takes."""


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def pillow(recipe: Preprocessing, pixels: Pixels) -> Pixels:
    return recipe.pixels(Image.fromarray(pixels))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and preprocessors of all recipes: ``even.engine``, ``even.pre.engine``, ``odd.…``."""
    made = tmp_path_factory.mktemp("preprocessor")
    for name, recipe in RECIPES.items():
        write_classifier(made, recipe, name)

    def build(name: str) -> None:
        for line in (
            ("build", f"{name}.onnx", "--max", 8, "--opt", 8, "--opt-level", 2, "--output", f"{name}.engine"),
            ("export-preprocessor", f"{name}.engine", "--output", f"{name}.pre.onnx"),
            ("build", f"{name}.pre.onnx"),
        ):
            done = run_process(*line, cwd=made)
            print(done.stdout, done.stderr)
            assert done.returncode == 0, done.stderr
        assert "images of up to 4096×4096" in done.stdout

    with ThreadPoolExecutor() as pool:
        list(pool.map(build, RECIPES))
    return made


def opened(folder: Path, name: str) -> tuple[TensorRTPreprocessor, PreprocessorRecord]:
    artifact = load(folder / f"{name}.pre.engine", "preprocessor")
    return open_preprocessor(artifact), describe(load(folder / f"{name}.onnx", "onnx").sidecar)


@pytest.mark.parametrize("name", RECIPES)
def test_images_of_all_sizes_have_pillows_pixels_within_one_level(folder: Path, name: str) -> None:
    """One after the other, through buffers that grow and are used again."""
    preprocessor, record = opened(folder, name)
    worst, equal, count = 0.0, 0, 0
    with preprocessor:
        preprocessor.open()
        for seed, size in enumerate(SIZES):
            pixels = noise(*size, seed)
            off = np.abs(pixels_of(record, preprocessor.sample(pixels)) - pillow(record.recipe, pixels))
            worst, equal, count = max(worst, float(off.max())), equal + int((off < 0.01).sum()), count + off.size
        preprocessor.close()
    print(f"largest difference {worst:.3f} of 255; {equal / count:.2%} of {count} values are the same")
    assert worst < 1.001


@pytest.mark.parametrize("name", RECIPES)
def test_rows_are_filled_at_their_addresses_without_waiting(folder: Path, name: str) -> None:
    """All images are called for before the first is waited for, from pixels that are overwritten at once."""
    preprocessor, record = opened(folder, name)
    shots = [noise(30 + 37 * (index % 7), 300 - 13 * index, index) for index in range(16)]
    with preprocessor:
        preprocessor.open()
        device = Device()
        stream = device.stream()
        samples = np.empty((len(shots), *map(int, record.output.shape[1:])), record.output.dtype)
        memory = device.memory(samples.nbytes)
        events = preprocessor.events()
        for index, pixels in enumerate(shots):
            lent = pixels.copy()
            preprocessor(lent, memory.address + index * samples[0].nbytes)
            lent[...] = 0
        preprocessor.done(events)
        for event in events:
            stream.wait_for(event)
        with device.entered():
            device.copies([(samples, memory.address)]).down(stream)
        stream.synchronize()
        memory.free()
        stream.free()
        preprocessor.close()
    for pixels, sample in zip(shots, samples):
        assert np.abs(pixels_of(record, sample) - pillow(record.recipe, pixels)).max() < 1.001


@pytest.mark.parametrize("name", ["even", "odd"])
def test_slots_run_on_rows_that_were_filled_on_the_gpu(folder: Path, name: str) -> None:
    """Sixteen images go into two slots, then the model runs on them: each row is that of its image."""
    preprocessor, record = opened(folder, name)
    shots = [noise(30 + 11 * index, 200 - 7 * index, index) for index in range(16)]
    with open_engine(load(folder / f"{name}.engine", "engine")) as engine, engine.session() as session, preprocessor:
        assert isinstance(session, TensorRTSession)
        slots = [session.slot(), session.slot()]
        preprocessor.open()
        for slot, first in zip(slots, (0, 8)):
            slot.prepare(8)
            for index in range(8):
                preprocessor(shots[first + index], slot.row_address("input", index))
            events = preprocessor.events()
            preprocessor.done(events)
            slot.submit_after(events)
        found = np.concatenate([slot.wait()["output"].copy() for slot in slots])
        samples = np.stack([preprocessor.sample(shot) for shot in shots])
        wanted = []
        for part in (samples[:8], samples[8:]):
            session.bind({"input": part})
            session.run()
            wanted.append(session.fetch()["output"])
        preprocessor.close()
    assert found == pytest.approx(np.concatenate(wanted), abs=1e-4)
    assert len({row.tobytes() for row in found.round(4)}) == 16
    for shot, sample in zip(shots, samples):
        assert np.abs(pixels_of(record, sample) - pillow(record.recipe, shot)).max() < 1.001


def test_it_opens_again_and_in_another_thread(folder: Path) -> None:
    preprocessor, record = opened(folder, "even")
    pixels, found = noise(50, 70), list[Any]()

    def use() -> None:
        preprocessor.open()
        try:
            found.append(preprocessor.sample(pixels))
        finally:
            preprocessor.close()

    with preprocessor:
        with pytest.raises(ExecutionError, match="isn't open"):
            preprocessor.sample(pixels)
        use()
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert len(found) == 2
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(pixels_of(record, found[0]) - pillow(record.recipe, pixels)).max() < 1.001


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_infer_predicts_as_with_the_host_reader(folder: Path, tmp_path: Path, batch: int) -> None:
    shots = tmp_path / "photos"
    copy_photos(shots)
    for index in range(40):
        Image.fromarray(noise(30 + 7 * (index % 5), 90 - index, index)).save(shots / f"p{index:02}.jpg")
    (shots / "p17.jpg").write_bytes((shots / "p17.jpg").read_bytes()[:700])
    (shots / "p20.jpg").write_bytes(b"")
    line = ("infer", folder / "even.engine", "--input", shots, "--batch", batch)
    own = ("--preprocessor", folder / "even.pre.engine", "--output", "gpu.npz", "--trace", "trace.json")
    done = run_process(*line, *own, cwd=tmp_path)
    print(done.stdout, done.stderr)
    assert done.returncode == 1
    assert "2 of 50 inputs were skipped" in done.stderr
    assert "even.pre.engine" in done.stderr
    other = run_process(*line, "--reader", "host", "--output", "host.npz", cwd=tmp_path)
    assert other.returncode == 1
    assert "preprocessor" not in other.stderr
    with np.load(tmp_path / "gpu.npz") as gpu, np.load(tmp_path / "host.npz") as host:
        assert list(gpu) == list(host)
        assert len(gpu["file"]) == 48
        for key in gpu:
            if gpu[key].dtype.kind == "f":
                off = np.linalg.norm(gpu[key] - host[key], axis=-1) / np.linalg.norm(host[key], axis=-1)
                print(f"{key}: off by {off.max():.2e} at most (L2, relative)")
                assert gpu[key].shape[0] == 48
                assert off.max() < 0.02
            elif key == "file":
                assert (gpu[key] == host[key]).all()
    spans = {event["name"] for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {"preprocess", "submit", "wait", "sink"} <= spans


def test_infer_uses_one_only_when_it_is_named(folder: Path, tmp_path: Path) -> None:
    shots = tmp_path / "photos"
    copy_photos(shots)
    done = run_process("infer", folder / "even.engine", "--input", shots, "--reader", "host", cwd=tmp_path)
    assert done.returncode == 0
    assert "pre.engine" not in done.stderr


def test_a_preprocessor_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    shots = tmp_path / "photos"
    copy_photos(shots)
    line = ("infer", folder / "odd.engine", "--input", shots, "--preprocessor", folder / "even.pre.engine")
    done = run_process(*line, cwd=tmp_path)
    assert done.returncode == 2
    assert "differs from that of odd.engine" in done.stderr


def test_a_damaged_one_is_named(folder: Path, tmp_path: Path) -> None:
    for suffix in ("", ".json"):
        (tmp_path / f"even.pre.engine{suffix}").write_bytes((folder / f"even.pre.engine{suffix}").read_bytes())
    data = bytearray((tmp_path / "even.pre.engine").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "even.pre.engine").write_bytes(data)
    shots = tmp_path / "photos"
    copy_photos(shots)
    line = ("infer", folder / "even.engine", "--input", shots, "--preprocessor", "even.pre.engine")
    done = run_process(*line, cwd=tmp_path)
    assert done.returncode == 1
    assert "even.pre.engine is not the file" in done.stderr


def test_it_is_for_this_gpu_and_tensorrt_alone(folder: Path) -> None:
    artifact = load(folder / "even.pre.engine", "preprocessor")
    foreign = replace(artifact.sidecar, build=replace(artifact.sidecar.build, tools={"tensorrt": "1.2.3"}))
    assert isinstance(foreign.artifact, FileRecord)
    with pytest.raises(ArtifactError, match=r"built with TensorRT 1\.2\.3"):
        open_preprocessor(replace(artifact, sidecar=foreign))
