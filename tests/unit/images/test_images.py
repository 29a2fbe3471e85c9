"""Reading images: what is opened, what is refused, and that both readers give each image its row."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from PIL import Image

import trtbatch
from benchmarks.images import broken, write_image
from tests.support import models
from tests.support.labels import PREPROCESSING
from tests.support.messages import refused
from tests.support.processes import child_environment
from tests.support.sidecars import change_sidecar
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import InputError
from trtbatch.images.host import Loaded, Skipped, open_image, read_ahead, read_bytes, sample
from trtbatch.ray import Predictor
from trtbatch.util.files import sidecar_path
from trtbatch.util.serialization import encode

Cli = Callable[..., Any]
Array = NDArray[Any]


def picture(height: int = 61, width: int = 90, mode: str = "RGB") -> Image.Image:
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (9, 12, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


# What is opened.


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "1", "LA", "CMYK"])
def test_every_mode_becomes_colors_of_8_bits(mode: str) -> None:
    image = picture(mode="L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image, np.uint16) * 257)
    pixels = np.asarray(Preprocessing.rgb(open_image(encoded(image, "TIFF" if mode == "CMYK" else "PNG"))))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (61, 90, 3)
    if mode == "I;16":
        assert np.array_equal(pixels, np.asarray(picture(mode="L").convert("RGB"))), "the upper 8 bits"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not an image"),
        (b"\xff\xd8\xff", "not an image"),
        (b"some text, called photo.jpg", "not an image"),
        (encoded(picture(375, 500))[:3000], "truncated"),
        (encoded(picture(), "EPS"), "not an image"),
        (broken(encoded(picture()), 4), "limit"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "no known white"),
    ],
)
def test_what_cannot_be_used_says_why(data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_image(data)


@pytest.mark.process
def test_special_files_are_passed_over_by_name(photo_engine: Path, folder: Path, photos: Path) -> None:
    """In a process of its own, which a pipe would hold for ever; SIGTERM ends it in any case."""
    odd = folder / "odd"
    odd.mkdir()
    (odd / "good.png").write_bytes((photos / "rocket.jpg").read_bytes())
    os.mkfifo(odd / "pipe.jpg")
    os.symlink("/dev/zero", odd / "zero.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(odd / "socket.jpg"))
        line = [sys.executable, "-m", "trtbatch", "infer", str(photo_engine), "--input", str(odd), "--output", "p.csv"]
        done = subprocess.run(
            line, check=False, cwd=folder, capture_output=True, text=True, timeout=60, env=child_environment()
        )
        alone = subprocess.run(
            [*line[:5], "--input", str(odd / "pipe.jpg")],
            check=False,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            env=child_environment(),
        )
    assert done.returncode == 1, done.stderr
    for words in ("pipe.jpg", "socket.jpg", "zero.jpg"):
        assert f"skipped {words}: a pipe, a socket or a device, not a file" in done.stderr
    rows = csv.reader((folder / "p.csv").read_text().splitlines())
    assert [row[0] for row in rows] == ["file", "good.png"]
    assert alone.returncode == 1
    assert "a pipe, a socket or a device, not a file" in alone.stderr


@pytest.mark.slow
@pytest.mark.process
def test_sigterm_ends_a_run_that_reads(photo_engine: Path, folder: Path) -> None:
    many = folder / "many"
    many.mkdir()
    data = encoded(picture(2000, 2000))
    for index in range(400):
        (many / f"{index:03}.jpg").write_bytes(data)
    line = [sys.executable, "-m", "trtbatch", "infer", str(photo_engine), "--input", "many", "--output", "p.csv"]
    with subprocess.Popen(line, cwd=folder, stderr=subprocess.PIPE, text=True, env=child_environment()) as process:
        while not list(folder.glob("*p.csv*")) + list(folder.glob(".trtbatch*")):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    assert not (folder / "p.csv").exists()


@pytest.mark.process
def test_no_program_is_run_for_a_file(photo_engine: Path, folder: Path) -> None:
    """PostScript by another name, with a program called as Ghostscript on the path."""
    programs, odd = folder / "bin", folder / "odd"
    for made in (programs, odd):
        made.mkdir()
    for name in ("gs", "gswin64c", "djpeg"):
        (programs / name).write_text(f"#!/bin/sh\ntouch '{folder / 'ran'}'\n")
        (programs / name).chmod(0o755)
    (odd / "picture.jpg").write_bytes(encoded(picture(), "EPS"))
    (odd / "good.jpg").write_bytes(encoded(picture()))
    done = subprocess.run(
        [sys.executable, "-m", "trtbatch", "infer", str(photo_engine), "--input", "odd"],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env=child_environment() | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
    )
    assert done.returncode == 1
    assert not (folder / "ran").exists()
    assert "skipped picture.jpg: not an image of a format that is read" in done.stderr


def test_the_size_of_a_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.jpg").write_bytes(bytes(1000))
    assert read_bytes(tmp_path / "x.jpg") == bytes(1000)
    monkeypatch.setattr("trtbatch.images.host.MAX_BYTES", 999)
    with pytest.raises(InputError, match="1000 bytes are over the limit of 999"):
        read_bytes(tmp_path / "x.jpg")
    with pytest.raises(InputError, match="No such file"):
        read_bytes(tmp_path / "y.jpg")


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 97])
def test_reading_ahead_keeps_the_order_and_names_what_fails(count: int) -> None:
    def make(content: Any) -> int:
        if content % 7 == 3:
            raise InputError(f"{content} is odd", "mend it")
        return 2 * int(content)

    found = list(read_ahead(range(count), [str(index) for index in range(count)], make, 3))
    wanted = [
        Skipped(str(index), f"{index} is odd") if index % 7 == 3 else Loaded(str(index), 2 * index)
        for index in range(count)
    ]
    assert found == wanted


# DALI.

SPEC = TensorSpec("input", "float32", ("batch_size", 3, 32, 48))
RECIPES = [
    Preprocessing(40, (32, 48)),
    Preprocessing(60, (32, 48), interpolation="bicubic"),
    Preprocessing(60, (32, 48), interpolation="lanczos"),
    Preprocessing(20, (32, 48)),
]


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def varied() -> list[bytes]:
    """JPEG files of many sizes, kinds and orientations, PNG files among them."""
    files = [encoded(picture(height, width)) for height, width in ((61, 90), (1, 1), (200, 3), (333, 250), (64, 64))]
    files += [encoded(picture(80 + index, 120), exif=exif(index)) for index in range(1, 9)]
    files += [encoded(picture(mode=mode)) for mode in ("L", "CMYK")]
    files += [encoded(picture(70, 95), progressive=True), encoded(picture(50, 75), keep_rgb=True)]
    files += [encoded(picture(51, 77), "PNG"), encoded(picture(mode="RGBA"), "WEBP"), encoded(picture(mode="P"), "GIF")]
    return files


def by_dali(recipe: Preprocessing, files: Sequence[Any], batch: int = 4, spec: TensorSpec = SPEC) -> dict[int, Any]:
    """The sample of each file, or why there is none."""
    dali = pytest.importorskip("trtbatch.images.dali")
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    reader = dali.DaliReader(recipe, spec, batch)
    found: dict[int, Any] = {}
    names = [str(index) for index in range(len(files))]
    for made in reader.batches(read_ahead(files, names, reader.load, 2), iter([batch] * (len(files) + 1))):
        rows = np.zeros([batch, *map(int, spec.shape[1:])], spec.dtype)
        made.write(rows)
        found |= {int(name): row for name, row in zip(made.names, rows)}
        found |= {int(item.name): item.reason for item in made.skipped}
    reader.close()
    assert sorted(found) == list(range(len(files)))
    return found


def distance(recipe: Preprocessing, one: Array, other: Array) -> float:
    """Mean difference of two samples, in units of 1/255."""
    return float((np.abs(one - other) * 255 * np.asarray(recipe.std)[:, None, None]).mean())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.interpolation}-{recipe.resize}")
def test_dali_gives_nearly_pillows_samples(recipe: Preprocessing) -> None:
    files = varied()
    found = by_dali(recipe, files)
    host = [sample(file, SPEC, recipe) for file in files]
    assert max(distance(recipe, found[index], host[index]) for index in range(len(files))) <= 1
    swapped = dict(found) | {3: found[4], 4: found[3]}
    assert max(distance(recipe, swapped[index], host[index]) for index in (3, 4)) > 1, "two swapped images are seen"


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_dali_gives_bytes_where_the_model_takes_them(layout: Any) -> None:
    recipe = Preprocessing(40, (32, 48), fused=layout)
    spec = TensorSpec("input", "uint8", ("batch_size", 32, 48, 3) if layout == "NHWC" else ("batch_size", 3, 32, 48))
    files = varied()[:8]
    for index, row in by_dali(recipe, files, spec=spec).items():
        difference = np.abs(row.astype(int) - sample(files[index], spec, recipe).astype(int))
        assert difference.mean() <= 1


def undecodable(data: bytes) -> bytes:
    """Counts of codes in the first Huffman table that no table has: DALI refuses it when it decodes."""
    at = data.index(b"\xff\xc4")
    return data[: at + 5] + b"\xff" * 16 + data[at + 21 :]


def test_a_broken_image_costs_nothing_but_itself() -> None:
    from trtbatch.images.dali import jpeg_size

    files: list[bytes] = [encoded(picture(60 + index, 90)) for index in range(30)]
    bad = {5: broken(files[5], 0), 6: broken(files[6], 1), 7: b"", 8: broken(files[8], 3), 20: broken(files[20], 4)}
    bad |= {13: undecodable(files[13]), 27: undecodable(files[27])}
    assert [jpeg_size(bad[index]) is not None for index in sorted(bad)] == [
        False,
        False,
        False,
        False,
        True,
        False,
        True,
    ]
    found = by_dali(RECIPES[0], [bad.get(index, file) for index, file in enumerate(files)])
    assert {index for index, made in found.items() if isinstance(made, str)} == set(bad)
    for index, file in enumerate(files):
        if index not in bad:
            assert distance(RECIPES[0], found[index], sample(file, SPEC, RECIPES[0])) <= 1


def test_folders_without_a_jpeg_file_and_empty_ones() -> None:
    files = [encoded(picture(40 + index, 50), "PNG") for index in range(11)]
    found = by_dali(RECIPES[0], files)
    assert all(np.array_equal(found[index], sample(file, SPEC, RECIPES[0])) for index, file in enumerate(files))
    assert by_dali(RECIPES[0], []) == {}


@pytest.mark.parametrize("recipe", [*RECIPES, Preprocessing(33, (32, 48)), Preprocessing(256, (224, 224))])
def test_the_headers_give_the_sizes_that_dalis_operators_compute(recipe: Preprocessing) -> None:
    """What the reader feeds and what Triton's pipeline computes are the same."""
    dali = pytest.importorskip("nvidia.dali", reason="needs DALI")
    from trtbatch.images.dali import INPUT, jpeg_size, pipeline

    files = [file for file in varied() if jpeg_size(file) is not None]
    files += [encoded(picture(*size)) for size in ((7, 61), (61, 8), (225, 224), (300, 301), (33, 47))]
    spec = TensorSpec("input", "float32", ("batch_size", 3, *recipe.crop))
    computing = dali.Pipeline.deserialize(pipeline(recipe, spec, len(files)).serialize())
    computing.feed_input(INPUT, [np.frombuffer(file, np.uint8) for file in files])
    (wanted,) = computing.run()
    found = by_dali(recipe, files, spec=spec)
    for index in range(len(files)):
        np.testing.assert_array_equal(found[index], np.asarray(wanted[index]))


def test_files_are_read_by_dali_and_by_python_where_it_can_not(tmp_path: Path) -> None:
    dali = pytest.importorskip("trtbatch.images.dali")
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    files = [tmp_path / f"{index:03}.jpg" for index in range(100)]
    for index, file in enumerate(files):
        file.write_bytes(encoded(picture(40 + index, 50)) if index % 9 else encoded(picture(40 + index, 50), "PNG"))
    files[70].unlink()
    files[20].write_bytes(b"")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg"))
    odd.write_bytes(files[1].read_bytes())
    reader = dali.DaliReader(RECIPES[0], SPEC, 8)
    for given, are_regular in ((files, True), (files, False), ([*files[:9], odd], True)):
        names = [file.name for file in given]
        found, skipped = [], []
        for batch in reader.batches(reader.read_files(given, names, are_regular), iter([8] * 20)):
            rows = np.zeros((8, 3, 32, 48), np.float32)
            batch.write(rows)
            skipped += batch.skipped
            for name, row in zip(batch.names, rows):
                found.append(name)
                wanted = sample(given[names.index(name)], SPEC, RECIPES[0])
                assert distance(RECIPES[0], row, wanted) <= 1
        assert {item.name for item in skipped} == {"020.jpg", "070.jpg"} & set(names)
        assert found == [name for name in names if name not in ("020.jpg", "070.jpg")]
    reader.close()


@pytest.mark.parametrize("count", [8, 11])
def test_files_with_a_long_header_or_something_behind_their_end_are_dalis(tmp_path: Path, count: int) -> None:
    """Whether a batch is a whole block of files, or the end of a folder."""
    dali = pytest.importorskip("trtbatch.images.dali")
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    files = [tmp_path / f"{index:03}.jpg" for index in range(count)]
    for index, file in enumerate(files):
        comment: Any = {"comment": b"x" * 3000} if index == 3 else {}
        data = encoded(picture(40 + index, 50), **comment)
        file.write_bytes(data + b"\0" * 100 * (index == 4))
    reader = dali.DaliReader(RECIPES[0], SPEC, 8)
    given = 0
    for batch in reader.batches(reader.read_files(files, [file.name for file in files]), iter([8] * 2)):
        rows = np.zeros((8, 3, 32, 48), np.float32)
        batch.write(rows)
        given += len(batch.encoded)
        for name, row in zip(batch.names, rows):
            assert distance(RECIPES[0], row, sample(tmp_path / name, SPEC, RECIPES[0])) <= 1
    reader.close()
    assert given == count


def test_a_folder_is_read_in_batches_of_several_sizes(tmp_path: Path) -> None:
    dali = pytest.importorskip("trtbatch.images.dali")
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    files = [tmp_path / f"{index:03}.jpg" for index in range(60)]
    for index, file in enumerate(files):
        file.write_bytes(encoded(picture(40 + index, 50)))
    names = [file.name for file in files]
    reader, found = dali.DaliReader(RECIPES[0], SPEC, 8), list[tuple[int, bool]]()
    left = iter(names)
    for batch in reader.batches(reader.read_files(files, names), itertools.cycle((8, 8, 3))):
        rows = np.zeros((8, 3, 32, 48), np.float32)
        batch.write(rows)
        found.append((len(batch.names), isinstance(batch.fed[0], list)))
        for name, row in zip(batch.names, rows):
            assert name == next(left)
            assert distance(RECIPES[0], row, sample(tmp_path / name, SPEC, RECIPES[0])) <= 1
    reader.close()
    assert [count for count, _ in found] == [8, 8, 3] * 3 + [3], "3 of the next 8 are left"
    assert [each for _, each in found[:3]] == [False, False, True], "whole blocks are given to DALI as they are"


@pytest.mark.slow
def test_images_of_the_host_reader_at_the_end_are_waited_for(tmp_path: Path) -> None:
    dali = pytest.importorskip("trtbatch.images.dali")
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    files = [tmp_path / f"{index:03}.png" for index in range(60)]
    for index, file in enumerate(files):
        file.write_bytes(encoded(picture(400, 300 + index), "PNG"))
    reader = dali.DaliReader(RECIPES[0], SPEC, 8)
    names = [file.name for file in files]
    found = [name for batch in reader.batches(reader.read_files(files, names), iter([8] * 20)) for name in batch.names]
    reader.close()
    assert found == names


def test_a_reader_is_used_again_also_after_an_unfinished_run() -> None:
    dali = pytest.importorskip("trtbatch.images.dali")
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    reader = dali.DaliReader(RECIPES[0], SPEC, 4)
    files = [encoded(picture(40 + index, 50)) for index in range(40)]
    for wanted in (1, 10, 3, 10):
        loaded = (Loaded(str(index), reader.load(file)) for index, file in enumerate(files))
        names = []
        for index, batch in enumerate(reader.batches(loaded, iter([4] * 10))):
            names += batch.names
            if index + 1 == wanted:
                break
        assert names == [str(index) for index in range(4 * wanted)]
    reader.close()
    reader.close()


@pytest.mark.parametrize(
    ("data", "plain"),
    [
        (encoded(picture()), True),
        (encoded(picture(), progressive=True), True),
        (encoded(picture(mode="L")), True),
        (encoded(picture(), exif=exif(6)), True),
        (encoded(picture()) + b"\0" * 100, True),
        (encoded(picture())[:-2], False),
        (encoded(picture(), keep_rgb=True), False),
        (encoded(picture(mode="CMYK")), False),
        (encoded(picture(), xmp=b"<x tiff:Orientation='6'/>"), False),
        (encoded(picture()).replace(b"\xff\xc0", b"\xff\xc9"), False),
        (encoded(picture(), "PNG"), False),
        (encoded(picture())[:100], False),
        (b"\xff\xd8\xff", False),
        (b"", False),
    ],
)
def test_which_files_dali_is_given(data: bytes, plain: bool) -> None:
    from trtbatch.images.dali import jpeg_size

    assert (jpeg_size(data) is not None) is plain
    assert (jpeg_size(memoryview(data)) is not None) is plain


# Both, from the command line and from Python.


@pytest.fixture
def images(folder: Path) -> Path:
    made = folder / "images"
    made.mkdir()
    for index in range(10):
        write_image(made / f"{index:06d}.jpg")
    return made


def test_infer_with_either_reader(cli: Cli, photo_engine: Path, folder: Path, images: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    (images / "000005.jpg").write_bytes(b"text")
    rows = {}
    for reader, words in (("host", "read by Pillow"), ("dali", "read by DALI: pixels differ slightly")):
        result = cli(
            "infer", "--input", images, "--batch", 4, "--output", "p.npz", "--reader", reader, "--trace", "t.json"
        )
        assert result.exit_code == 1, result.output
        assert "skipped 000005.jpg: not an image" in result.output
        assert words in result.output
        assert f'"reader": "{reader}"' in (folder / "t.json").read_text()
        with np.load(folder / "p.npz") as kept:
            rows[reader] = kept["output"]
            assert kept["file"].tolist() == [f"{index:06d}.jpg" for index in range(10) if index != 5]
    assert not np.array_equal(rows["host"], rows["dali"])
    distances = np.linalg.norm(rows["dali"][:, None] - rows["host"][None], axis=2)
    assert (distances.argmin(1) == np.arange(9)).all()


def test_the_reader_is_the_hosts_unless_a_gpu_is_there(
    cli: Cli, photo_engine: Path, folder: Path, images: Path
) -> None:
    result = cli("infer", "--input", images)
    assert result.exit_code == 0
    assert "read by Pillow on the host" in result.output


def test_preprocessing_that_the_input_does_not_take(cli: Cli, photo_engine: Path, images: Path) -> None:
    beside = sidecar_path(photo_engine)
    data = json.loads(beside.read_text())
    data["preprocessing"]["crop"] = [6, 8]
    beside.write_text(json.dumps(data))
    for command in ("infer", "verify"):
        refused(cli(command, "--input", images), 2, "makes samples (3, 6, 8)", "correct its crop")


def test_normalized_samples_are_not_cut_to_integers(cli: Cli, folder: Path, images: Path) -> None:
    models.negated(folder / "m.onnx", dtype=TensorProto.INT32, shape=("batch_size", 3, 8, 8))
    assert cli("build", "m.onnx", "--max", 4, "--backend", "onnxruntime").exit_code == 0
    change_sidecar(folder / "engines" / "m.ort.onnx", preprocessing=encode(PREPROCESSING))
    refused(cli("infer", "--input", images, "--output", "p.npz"), 1, "the cast would change values")
    assert not (folder / "p.npz").exists()


def test_outputs_that_are_no_rows_are_not_put_together(cli: Cli, folder: Path, images: Path) -> None:
    """An output for the whole batch, of images that run in two batches or padded."""
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    models.whole_and_rows(folder / "m.onnx")
    assert cli("build", "m.onnx", "--max", 4, "--backend", "onnxruntime").exit_code == 0
    change_sidecar(folder / "engines" / "m.ort.onnx", preprocessing=encode(PREPROCESSING))
    with trtbatch.load(folder / "engines" / "m.ort.onnx") as engine:
        files = sorted(images.iterdir())
        for reader in ("host", "dali"):
            assert engine.run_images(files[:4], reader)[0]["rows"].shape == (4, 3, 8, 8)
            with pytest.raises(InputError, match="must run in pieces or padded"):
                engine.run_images(files[:5], reader)


def test_readers_that_do_not_fit(cli: Cli, photo_engine: Path, folder: Path, images: Path) -> None:
    np.save(folder / "x.npy", np.zeros((3, 3, 8, 8), np.float32))
    refused(cli("infer", "--input", "x.npy", "--reader", "dali"), 2, "is for images", "leave it out")
    refused(cli("infer", "--input", images, "--reader", "gpu"), 2, "--reader gpu", "auto, host or dali")


def test_dali_that_is_not_installed(
    cli: Cli, photo_engine: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    refused(cli("infer", "--input", images, "--reader", "dali"), 1, "nvidia.dali is needed", "trtbatch[dali]")


def test_predict_with_either_reader(photo_engine: Path, images: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    files: list[Any] = sorted(images.iterdir())
    given = [*files[:4], files[4].read_bytes(), Image.open(files[5]), b"nothing", *files[6:]]
    with trtbatch.load(photo_engine) as engine:
        for _ in range(2):
            host, dali = (engine.run_images(given, reader) for reader in ("host", "dali"))
            assert host[1] == dali[1] == {6: "not an image of a format that is read"}
            distances = np.linalg.norm(dali[0]["output"][:, None] - host[0]["output"][None], axis=2)
            assert (distances.argmin(1) == np.arange(10)).all()
        with pytest.raises(InputError, match="image 6: not an image"):
            engine.predict(given, reader="dali")
        assert engine.run_images([], "dali")[0]["output"].shape == (0, 5)


def test_a_pipelines_predictor_with_either_reader(photo_engine: Path, images: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    column = np.empty(4, dtype=object)
    column[:] = [*(file.read_bytes() for file in sorted(images.iterdir())[:3]), b"x"]
    scores = []
    for reader in ("host", "dali"):
        predictor = Predictor(photo_engine, reader=reader)
        found = predictor({"bytes": column})
        predictor.close()
        assert found["error"].tolist() == ["", "", "", "not an image of a format that is read"]
        scores.append(found["score"][:3])
    np.testing.assert_allclose(scores[0], scores[1], atol=0.02)


def test_the_recipe_is_that_of_the_engine(photo_engine: Path, images: Path) -> None:
    file = sorted(images.iterdir())[0]
    with trtbatch.load(photo_engine) as engine, Image.open(file) as image:
        wanted = engine(PREPROCESSING(image)[None])
        np.testing.assert_array_equal(engine.run_images([file])[0]["output"], wanted)
