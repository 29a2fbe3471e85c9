"""Images through DALI into an engine on the GPU: the host reader's samples, in order, whatever else is there."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import trtbatch
from benchmarks.images import broken, write_image
from tests.support.processes import run_process
from tests.support.recipes import write_classifier
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.readers import image_input
from trtbatch.core.store import load
from trtbatch.images.dali import DaliReader, jpeg_size
from trtbatch.images.host import read_ahead, sample
from trtbatch.runtime.infer import InferRequest, infer

pytest.importorskip("nvidia.dali", reason="needs DALI")

RECIPES = {
    "plain": Preprocessing(resize=40, crop=(32, 32)),
    "wide": Preprocessing(resize=36, crop=(29, 31), interpolation="bicubic"),
    "padded": Preprocessing(resize=20, crop=(32, 32)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of all recipes, and a folder ``images`` of 60 JPEG files and three others."""
    made = tmp_path_factory.mktemp("images")
    for name, recipe in RECIPES.items():
        write_classifier(made, recipe, name)
        done = run_process("build", f"{name}.onnx", "--max", 16, "--opt", 16, "--output", f"{name}.engine", cwd=made)
        assert done.returncode == 0, done.stderr
    (made / "images").mkdir()
    for index in range(60):
        write_image(made / "images" / f"{index:06d}.jpg")
    for index, mode in enumerate(("RGBA", "L", "P")):
        write_image(made / f"{100 + index:06d}.jpg")
        with Image.open(made / f"{100 + index:06d}.jpg") as image:
            image.convert(mode).save(made / "images" / f"x{mode}.png")
    return made


def outputs(engine: Path, images: Path, reader: str, target: Path) -> tuple[list[str], np.ndarray]:
    result = infer(InferRequest(engine, str(images), batch=16, output=target, reader=reader))
    assert result.reader == reader
    with np.load(target) as kept:
        return kept["file"].tolist(), kept["output"]


@pytest.mark.parametrize("name", RECIPES)
def test_both_readers_give_each_image_its_row(folder: Path, tmp_path: Path, name: str) -> None:
    engine = folder / f"{name}.engine"
    names, host = outputs(engine, folder / "images", "host", tmp_path / "host.npz")
    others, dali = outputs(engine, folder / "images", "dali", tmp_path / "dali.npz")
    assert names == others
    assert len(names) == 63
    assert not np.array_equal(host, dali), "two decoders"
    distances = np.linalg.norm(dali[:, None] - host[None], axis=2)
    assert (distances.argmin(1) == np.arange(63)).all(), "each row is nearest to its own image"
    print(
        f"{name}: largest distance of a row {distances.diagonal().max():.2e}, of another image's "
        f"{distances[~np.eye(63, dtype=bool)].min():.2e}"
    )


def test_samples_differ_little_on_the_gpu(folder: Path) -> None:
    """In pixels: the mean of each image is within one level."""
    spec, recipe = image_input(load(folder / "plain.engine", "engine").sidecar)
    files = sorted((folder / "images").glob("*.jpg"))
    reader = DaliReader(recipe, spec, 16, 0)
    scale = 255 * np.asarray(recipe.std)[:, None, None]
    means = []
    names = [str(index) for index in range(len(files))]
    for batch in reader.batches(read_ahead(files, names, reader.load), iter([16] * 9)):
        assert batch.samples is not None
        for name, row in zip(batch.names, batch.rows):
            assert isinstance(row, int), "a plain JPEG file goes through DALI"
            made = np.asarray(batch.samples[row].as_cpu())
            means.append(np.abs((made - sample(files[int(name)], spec, recipe)) * scale).mean())
    reader.close()
    print(f"mean difference {np.mean(means):.3f} of 255, at most {max(means):.3f}")
    assert len(means) == 60
    assert max(means) <= 1


def test_every_orientation_that_exif_states(folder: Path) -> None:
    with Image.open(folder / "images" / "000001.jpg") as image:
        image.load()
    files = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=95, exif=exif)
        files.append(stream.getvalue())
    with trtbatch.load(folder / "plain.engine") as engine:
        host, dali = (engine.run_images(files, reader)[0]["output"] for reader in ("host", "dali"))
    distances = np.linalg.norm(dali[:, None] - host[None], axis=2)
    assert (distances.argmin(1) == np.arange(8)).all()


def test_broken_files_are_named_and_the_rest_is_right(folder: Path, tmp_path: Path) -> None:
    """Those that the check keeps from DALI, and one that DALI itself can't decode."""
    images = tmp_path / "images"
    images.mkdir()
    for file in sorted((folder / "images").glob("*.jpg")):
        os.link(file, images / file.name)
    bad = []
    for kind in range(5):
        target = images / f"{10 * kind + 3:06d}.jpg"
        data = target.read_bytes()
        target.unlink()
        target.write_bytes(broken(data, kind))
        bad.append(target.name)
    undecodable = images / "000055.jpg"
    data = undecodable.read_bytes()
    at = data.index(b"\xff\xc4")  # the first Huffman table: counts that no code has
    undecodable.unlink()
    undecodable.write_bytes(data[: at + 5] + b"\xff" * 16 + data[at + 21 :])
    assert jpeg_size(undecodable.read_bytes()) is not None
    result = infer(
        InferRequest(folder / "plain.engine", str(images), batch=8, output=tmp_path / "p.npz", reader="dali")
    )
    assert [item.name for item in result.skipped] == [*bad, undecodable.name]
    assert result.samples == 54
    names, host = outputs(folder / "plain.engine", folder / "images", "host", tmp_path / "host.npz")
    with np.load(tmp_path / "p.npz") as kept:
        for name, row in zip(kept["file"].tolist(), kept["output"]):
            assert np.linalg.norm(host - row, axis=1).argmin() == names.index(name)


def test_predict_uses_both_readers_again_and_again(folder: Path) -> None:
    files = sorted((folder / "images").iterdir())
    with trtbatch.load(folder / "plain.engine") as engine:
        for _ in range(3):
            host, dali = (engine.run_images(files, reader) for reader in ("host", "dali"))
            assert host[1] == dali[1] == {}
            np.testing.assert_allclose(host[0]["output"], dali[0]["output"], atol=0.05)
        assert engine.run_images([b"nothing"], "dali")[1] == {0: "not an image of a format that is read"}
        assert len(engine.predict(files[:3], reader="dali")) == 3


def test_engines_of_bytes(folder: Path, tmp_path: Path) -> None:
    for layout in ("NHWC", "NCHW"):
        target = tmp_path / f"{layout}.engine"
        line = (
            "build",
            folder / "plain.onnx",
            "--fuse-preprocess",
            "--layout",
            layout,
            "--max",
            16,
            "--output",
            target,
        )
        done = run_process(*line, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        names, host = outputs(target, folder / "images", "host", tmp_path / "host.npz")
        _, dali = outputs(target, folder / "images", "dali", tmp_path / "dali.npz")
        distances = np.linalg.norm(dali[:, None] - host[None], axis=2)
        assert (distances.argmin(1) == np.arange(len(names))).all()
