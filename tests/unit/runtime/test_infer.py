"""Sources, sinks and the stream between them; on ONNX Runtime."""

from __future__ import annotations

import csv
import json
import re
import shutil
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from PIL import Image

from scripts.photos import PHOTOS
from tests.support import models
from tests.support.arrays import read_npz
from tests.support.labels import CLASSES, PREPROCESSING
from tests.support.messages import refused
from tests.support.processes import run_with_file_limit
from tests.support.sidecars import change_sidecar
from trtbatch.core.store import load
from trtbatch.errors import UsageError
from trtbatch.images.host import CHUNK, Skipped
from trtbatch.onnx_graph.run import OnnxReference
from trtbatch.runtime.infer import InferRequest, InferResult, infer, plan_infer
from trtbatch.runtime.sinks import best_classes, open_sink, top_predictions
from trtbatch.runtime.sources import open_source

Cli = Callable[..., Any]


def oracle(folder: Path, samples: Any) -> Any:
    return OnnxReference(folder / "small.onnx")({"input": np.asarray(samples, np.float32)})["output"]


def test_ten_photographs_at_batch_four_run_as_4_4_2(cli: Cli, photo_engine: Path, folder: Path, photos: Path) -> None:
    result = cli("infer", "--input", photos, "--batch", 4, "--output", "p.npz")
    assert result.exit_code == 0, result.output
    assert "executed batches: 4×2 2" in result.output
    found = read_npz(folder / "p.npz")
    assert found["file"].tolist() == list(PHOTOS)
    expected = oracle(folder, [PREPROCESSING(Image.open(photos / name)) for name in PHOTOS])
    np.testing.assert_allclose(found["output"], expected, rtol=1e-4, atol=1e-6)


def test_a_static_engine_pads_the_last_batch_and_trims_it(cli: Cli, folder: Path) -> None:
    models.classifier(folder / "small.onnx")
    assert cli("build", "small.onnx", "--static", 4).exit_code == 0
    samples = np.random.default_rng(0).standard_normal((10, 3, 8, 8)).astype(np.float32)
    np.save(folder / "x.npy", samples)
    result = cli("infer", "--input", "x.npy", "--output", "y.npz")
    assert result.exit_code == 0, result.output
    assert "10 samples" in result.output
    assert "executed batches: 4×3" in result.output
    found = read_npz(folder / "y.npz")
    assert found["file"].tolist() == [f"x.npy[{i}]" for i in range(10)]
    np.testing.assert_allclose(found["output"], oracle(folder, samples), rtol=1e-4, atol=1e-6)


def test_auto_is_the_profiles_opt(cli: Cli, engine: Path) -> None:
    result = cli("infer", "--input", "random", "--count", 9)
    assert "executed batches: 4×2 1" in result.output
    refused(
        cli("infer", "--input", "random", "--batch", 2_000_000),
        2,
        "--batch '2000000' is not a batch size",
        "from 1 to 1000000",
    )
    refused(cli("infer", "--input", "random", "--batch", "x"), 2, "--batch 'x'")


def test_a_batch_over_every_profile_runs_in_pieces(cli: Cli, engine: Path, folder: Path) -> None:
    samples = np.random.default_rng(3).standard_normal((45, 3, 8, 8)).astype(np.float32)
    np.save(folder / "x.npy", samples)
    result = cli("infer", "--input", "x.npy", "--batch", 20, "--output", "y.npz")
    assert result.exit_code == 0, result.output
    assert "batch 20 is larger than every profile of small.ort.onnx: it runs as 8, 8, 4" in result.output
    assert "executed batches: 8×4 4×2 5" in result.output, "twice 20, and a rest of 5 that needs no splitting"
    found = read_npz(folder / "y.npz")
    assert found["file"].tolist() == [f"x.npy[{i}]" for i in range(45)]
    np.testing.assert_allclose(found["output"], oracle(folder, samples), rtol=1e-4, atol=1e-6)
    assert "8 (12 times), 4" in cli("infer", "--input", "x.npy", "--batch", 100).output


def test_a_batch_under_or_between_profiles_stays_an_error(cli: Cli, folder: Path) -> None:
    models.classifier(folder / "small.onnx")
    assert cli("build", "small.onnx", "--profile", "2:2:3", "--profile", "6:6:8").exit_code == 0
    for batch in (1, 5):
        refused(cli("infer", "--input", "random", "--batch", batch), 2, f"batch {batch} is outside every profile")
    result = cli("infer", "--input", "random", "--batch", 19, "--count", 20)
    assert result.exit_code == 0, result.output
    assert "20 samples" in result.output


def test_the_best_classes_are_those_of_a_whole_sort() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 9, (200, 30)).astype(np.float32)  # full of equals
    scores[50:60, 3] = np.nan
    scores[60:70] = 1
    scores[70:72, 1:] = np.nan
    expected = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :5]
    with np.errstate(invalid="ignore"):
        found = top_predictions(scores, 5, None)
    assert [[p.index for p in row] for row in found] == expected.tolist()


def test_the_summary_tells_what_bounds_the_run(cli: Cli, engine: Path, folder: Path) -> None:
    line = re.search(r"^bound by .*$", cli("infer", "--input", "random", "--count", 40).output, re.MULTILINE)
    assert line is not None
    assert all(word in line[0] for word in ("reading", "computing", "writing", " %"))
    result = InferResult("x", "onnxruntime", "random", busy={"reading": 0.21, "computing": 0.97, "writing": 0.02})
    assert result.bound == "bound by computing (busy 97 %; reading 21 %, writing 2 %)"
    result.busy["computing"] = 0.3
    assert result.bound == "bound by no stage alone (computing 30 %, reading 21 %, writing 2 %)"


def test_a_trace_is_written_where_it_harms_nothing(cli: Cli, engine: Path, folder: Path) -> None:
    result = cli("infer", "--input", "random", "--count", 9, "--trace", "t.json", "--no-cuda-graph")
    assert result.exit_code == 0
    assert "t.json" in result.output
    names = [event["name"] for event in json.loads((folder / "t.json").read_text())["traceEvents"]]
    assert names.count("read") == 9
    assert names.count("compute") == names.count("sink") == 3
    np.save(folder / "x.npy", np.zeros((1, 3, 8, 8), np.float32))
    (folder / "x.npy").rename(folder / "x.json")
    refused(cli("infer", "--input", "x.json", "--trace", "x.json"), 2, "named twice")
    refused(cli("infer", "--input", "random", "--trace", "t.txt"), 2, "doesn't end in .json")
    refused(cli("infer", "--input", "random", "--trace", f"{engine}.json"), 2, "the sidecar of one")
    refused(cli("infer", "--input", "random", "--output", "a.jsonl", "--trace", "a.jsonl"), 2, "doesn't end in .json")
    (folder / "t.json").unlink()
    np.save(folder / "bad.npy", np.full((1, 3, 8, 8), 0.1))
    assert cli("infer", "--input", "bad.npy", "--trace", "t.json").exit_code == 1
    assert not (folder / "t.json").exists()
    assert not list(folder.glob(".trtbatch*"))


def test_outputs_that_cannot_be_written_are_told_by_their_option_before_anything_runs(
    cli: Cli, engine: Path, folder: Path, closed: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtbatch.runtime.infer.open_source", None)
    closed(folder)
    for option, name in (("--trace", "t.json"), ("--output", "o.csv")):
        below = f"small.onnx/{name}"
        told = (f"{option} {below} can't be written: small.onnx: File exists", f"write elsewhere with {option}")
        refused(cli("infer", "--input", "random", option, below), 1, *told)
        told = (f"{option} new/{name} can't be written: .: Read-only file system", f"write elsewhere with {option}")
        refused(cli("infer", "--input", "random", option, f"new/{name}"), 1, *told)
    assert sorted(path.name for path in folder.iterdir()) == ["engines", "small.onnx"]


@pytest.mark.process
def test_a_trace_that_the_disk_does_not_hold_is_told_by_its_option(engine: Path, folder: Path) -> None:
    """Spans are written while a row of the output is: the trace is named all the same."""
    line = "infer --input random --count 500 --batch 1 --topk 1 --trace t.json --output o.csv"
    done = run_with_file_limit(30000, *line.split(), cwd=folder)
    assert done.returncode == 1, done.stderr
    assert "\nerror: t.json: File too large\n" in done.stderr
    assert done.stderr.endswith("write elsewhere with --trace\n")
    assert sorted(path.name for path in folder.iterdir()) == ["engines", "small.onnx"]


def test_csv_and_json_lines_hold_the_best_classes(cli: Cli, photo_engine: Path, folder: Path, photos: Path) -> None:
    for name in ("p.csv", "p.jsonl"):
        assert cli("infer", "--input", photos, "--output", name, "--topk", 3).exit_code == 0
    scores = oracle(folder, [PREPROCESSING(Image.open(photos / name)) for name in PHOTOS]).astype(np.float64)
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    with (folder / "p.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    lines = [json.loads(line) for line in (folder / "p.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == [line["file"] for line in lines] == list(PHOTOS)
    for row, line, share in zip(rows, lines, shares):
        best = share.argsort()[::-1][:3]
        assert [int(row[f"index_{rank}"]) for rank in (1, 2, 3)] == best.tolist()
        assert [row[f"class_{rank}"] for rank in (1, 2, 3)] == [CLASSES[i] for i in best]
        assert [float(row[f"score_{rank}"]) for rank in (1, 2, 3)] == pytest.approx(share[best], rel=1e-3)
        assert [entry["class"] for entry in line["top"]] == [CLASSES[i] for i in best]


def broken_images(photos: Path, target: Path) -> Path:
    """Two good photographs among seven that can't be used."""
    target.mkdir()
    shutil.copy(photos / "chelsea.png", target / "a.png")
    (target / "b.jpg").write_text("not an image")
    (target / "c.jpg").write_bytes(b"")
    (target / "d.png").write_bytes((photos / "coffee.png").read_bytes()[:2000])
    header = struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(b"")]
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    (target / "e.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    Image.new("1", (10_000, 10_000)).save(target / "f.png")  # over Pillow's limit, where it only warns
    (target / "g.jpg").symlink_to(target / "nowhere")
    shutil.copy(photos / "rocket.jpg", target / "z.jpg")
    (target / ".hidden.jpg").write_text("left alone")
    (target / "notes.txt").write_text("left alone")
    return target


@pytest.mark.filterwarnings("ignore:Image size")  # as the command has it
def test_unusable_images_are_named_and_the_rest_goes_on(
    cli: Cli, photo_engine: Path, folder: Path, photos: Path
) -> None:
    target = broken_images(photos, folder / "mixed")
    result = cli("infer", "--input", target, "--output", "p.csv")
    assert result.exit_code == 1
    for words in (
        "skipped b.jpg: not an image",
        "skipped c.jpg: not an image",
        "skipped d.png: ",
        "skipped e.png: Image size (3600000000 pixels) exceeds limit",
        "skipped f.png: 10000×10000 is over the limit of",
        "skipped g.jpg: No such file",
        "6 of 8 inputs were skipped",
        "2 samples",
    ):
        assert words in result.output, result.output
    assert "hidden" not in result.output
    assert "notes" not in result.output
    with (folder / "p.csv").open() as stream:
        assert [row["file"] for row in csv.DictReader(stream)] == ["a.png", "z.jpg"]
    refused(cli("infer", "--input", target, "--output", "q.csv", "--strict"), 1, "b.jpg: not an image", "--strict")
    assert not (folder / "q.csv").exists()


def test_a_folder_of_unusable_images_only_ends_well_formed(
    cli: Cli, photo_engine: Path, folder: Path, photos: Path
) -> None:
    (folder / "bad").mkdir()
    (folder / "bad/a.jpg").write_text("no")
    result = cli("infer", "--input", "bad", "--output", "p.npz")
    assert result.exit_code == 1
    assert "1 of 1 inputs were skipped" in result.output
    assert read_npz(folder / "p.npz")["file"].shape == (0,)


def test_globs_and_single_files(cli: Cli, photo_engine: Path, photos: Path) -> None:
    assert "3 samples" in cli("infer", "--input", f"{photos}/*.jpg").output
    assert "1 sample " in cli("infer", "--input", photos / "rocket.jpg").output
    assert "4 samples" in cli("infer", "--input", photos, "--count", 4).output


@pytest.mark.parametrize(
    ("make", "code", "told"),
    [
        (lambda f: (f / "none").mkdir(), 1, "none holds no images"),
        (lambda f: None, 2, "--input none: no such file, folder or match"),
    ],
)
def test_nothing_to_read(
    cli: Cli, photo_engine: Path, folder: Path, make: Callable[[Path], None], code: int, told: str
) -> None:
    make(folder)
    refused(cli("infer", "--input", "none"), code, told)


def test_images_for_a_model_without_preprocessing(cli: Cli, engine: Path, photos: Path) -> None:
    refused(cli("infer", "--input", photos), 2, "small has no preprocessing recorded", "FILE.npz")


def test_arrays_are_checked_before_they_run(cli: Cli, engine: Path, folder: Path) -> None:
    good = np.random.default_rng(1).standard_normal((5, 3, 8, 8))
    np.save(folder / "wide.npy", good)
    refused(
        cli("infer", "--input", "wide.npy"), 1, "wide.npy: input is float64", "would change values", "astype('float32')"
    )
    np.save(folder / "same.npy", good.astype(np.float32).astype(np.float64))
    assert cli("infer", "--input", "same.npy").exit_code == 0
    np.save(folder / "shape.npy", good[:, :, :4].astype(np.float32))
    refused(cli("infer", "--input", "shape.npy"), 1, "(5, 3, 4, 8)", "float32 (N, 3, 8, 8)")
    np.save(folder / "nhwc.npy", good.transpose(0, 2, 3, 1).astype(np.float32))
    refused(cli("infer", "--input", "nhwc.npy"), 1, "(5, 8, 8, 3)", "transpose it, array.transpose(0, 3, 1, 2)")
    np.save(folder / "bytes.npy", np.full((5, 3, 8, 8), 200, np.uint8))
    for command in ("infer", "verify"):
        told = "bytes.npy: input is uint8 and the engine takes float32"
        refused(cli(command, "--input", "bytes.npy"), 1, told, "normalise it", "--fuse-preprocess")
    np.save(folder / "text.npy", np.array(["a"]))
    refused(cli("infer", "--input", "text.npy"), 1, "text.npy")
    np.save(folder / "object.npy", np.array([object()]), allow_pickle=True)
    refused(
        cli("infer", "--input", "object.npy"), 1, "object.npy can't be read: it holds Python objects", "save numbers"
    )
    np.savez(folder / "object.npz", x=np.array([object()]))
    refused(
        cli("infer", "--input", "object.npz"), 1, "object.npz can't be read: it holds Python objects", "numpy.stack"
    )
    (folder / "text.npy").write_text("hello")
    refused(cli("infer", "--input", "text.npy"), 1, "text.npy can't be read: not an array file")
    refused(cli("verify", "--input", "wide.npy"), 1, "wide.npy: input is float64", "would change values")
    (folder / "cut.npy").write_bytes((folder / "same.npy").read_bytes()[:200])
    refused(cli("infer", "--input", "cut.npy"), 1, "cut.npy can't be read")
    (folder / "cut.npz").write_bytes(b"PK\x03\x04 no")
    refused(cli("infer", "--input", "cut.npz"), 1, "cut.npz")
    np.savez(folder / "other.npz", a=good.astype(np.float32), b=good)
    refused(cli("infer", "--input", "other.npz"), 1, "no array 'input'; it has a, b")
    np.save(folder / "both.npy", np.full((5, 8, 8, 3), 200, np.uint8))
    refused(cli("infer", "--input", "both.npy"), 1, "uint8 (5, 8, 8, 3)", "array.transpose(0, 3, 1, 2); and normalise")
    np.savez(folder / "more.npz", input=good.astype(np.float32), label=np.arange(5))
    done = cli("infer", "--input", "more.npz")
    assert done.exit_code == 0
    assert "more.npz: no input of the model, and left out: label" in done.output


def test_fortran_ordered_and_strided_arrays_are_right(cli: Cli, engine: Path, folder: Path) -> None:
    samples = np.random.default_rng(2).standard_normal((6, 3, 8, 8)).astype(np.float32)
    np.save(folder / "f.npy", np.asfortranarray(samples))
    assert cli("infer", "--input", "f.npy", "--output", "f.npz").exit_code == 0
    np.testing.assert_allclose(read_npz(folder / "f.npz")["output"], oracle(folder, samples), rtol=1e-4, atol=1e-6)


def test_several_inputs_come_from_an_npz_by_name(cli: Cli, folder: Path) -> None:
    models.two_inputs(folder / "m.onnx")
    assert cli("build", "m.onnx", "--max", 4).exit_code == 0
    left = np.arange(20, dtype=np.float32).reshape(5, 4)
    np.savez(folder / "x.npz", right=left * 3, left=left)
    assert cli("infer", "--input", "x.npz", "--output", "y.npz").exit_code == 0
    assert np.array_equal(read_npz(folder / "y.npz")["output"], left * -2)
    np.savez(folder / "x.npz", right=left[:3], left=left)
    refused(cli("infer", "--input", "x.npz"), 1, "left 5, right 3")
    np.save(folder / "x.npy", left)
    refused(cli("infer", "--input", "x.npy"), 2, "the model has 2 inputs (left, right)")


def test_a_batch_axis_that_is_not_the_first_is_put_back(cli: Cli, folder: Path) -> None:
    models.batch_last(folder / "m.onnx")
    assert cli("build", "m.onnx", "--max", 4).exit_code == 0
    array = np.arange(20, dtype=np.float32).reshape(4, 5)
    np.save(folder / "x.npy", array)
    assert cli("infer", "--input", "x.npy", "--batch", 2, "--output", "y.npz").exit_code == 0
    assert np.array_equal(read_npz(folder / "y.npz")["output"], -array.T), "one row a sample, the batch first"


def test_random_samples_depend_on_seed_and_index_only(cli: Cli, engine: Path, folder: Path) -> None:
    for name, args in {"a": ("--count", 3), "b": ("--count", 7), "c": ("--count", 3, "--seed", 1)}.items():
        assert cli("infer", "--input", "random", "--output", f"{name}.npz", *args).exit_code == 0
    a, b, c = (read_npz(folder / f"{name}.npz")["output"] for name in "abc")
    np.testing.assert_allclose(a, b[:3], rtol=1e-5)
    assert not np.allclose(a, c)


def test_a_sink_without_a_format_and_a_bad_topk(cli: Cli, engine: Path) -> None:
    refused(cli("infer", "--input", "random", "--output", "p.txt"), 2, "no format for '.txt'")
    for topk in (0, -1):
        with pytest.raises(UsageError, match=f"topk={topk} is no number of classes"):
            infer(InferRequest(engine, "random", topk=topk))
    assert cli("infer", "--input", "random", "--count", 1, "--topk", 99, "--output", "all.csv").exit_code == 0
    assert Path("all.csv").read_text().partition("\n")[0].count("class_") == 5
    result = cli("infer", "--input", "random", "--topk", 0)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert cli("infer").exit_code == 2


def test_top_predictions_keep_probabilities_and_soften_logits() -> None:
    shares = np.array([[0.1, 0.7, 0.2]])
    assert [(p.index, p.name, p.score) for p in top_predictions(shares, 2, ["a", "b", "c"])[0]] == [
        (1, "b", 0.7),
        (2, "c", 0.2),
    ]
    logits = np.array([[0.0, np.log(3.0)]], np.float32)
    assert [p.score for p in top_predictions(logits, 5, None)[0]] == pytest.approx([0.75, 0.25])


def test_a_failed_block_leaves_no_file(engine: Path, folder: Path) -> None:
    sidecar = load(engine, "engine").sidecar
    for name in ("p.npz", "p.csv", "p.jsonl"):
        with pytest.raises(KeyError), open_sink(folder / name, sidecar) as sink:  # noqa: PT012
            sink.write(["x"], {"output": np.ones((1, 5), np.float32)}, None)
            raise KeyError
        assert not list(folder.glob("p.*"))
        assert not list(folder.glob(".trtbatch*"))


def test_json_lines_have_no_nan(engine: Path, folder: Path) -> None:
    with open_sink(folder / "p.jsonl", load(engine, "engine").sidecar) as sink:
        sink.write(["x"], {"output": np.array([[1, np.nan, np.inf, -np.inf, 0]], np.float32)}, None)
    line = json.loads((folder / "p.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {"file": "x", "outputs": {"output": [1.0, "nan", "inf", "-inf", 0.0]}}


def test_images_are_read_a_bounded_distance_ahead(photo_engine: Path, folder: Path) -> None:
    (folder / "many").mkdir()
    for index in range(200):
        Image.new("RGB", (64, 64), (index, 0, 0)).save(folder / f"many/{index:03}.png")
    source: Any = open_source(str(folder / "many"), load(photo_engine, "engine").sidecar)
    source.workers = 2
    opened: list[Any] = []
    for index, item in enumerate(source.loaded(opened.append)):
        assert item.name == f"{index:03}.png"
        assert len(opened) <= index + CHUNK * (2 * source.workers + 1)
    assert len(opened) == 200


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_samples(cli: Cli, engine: Path, folder: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        assert cli("infer", "--input", "random", "--count", count, "--output", "p.npz").exit_code == 0
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(50)
    few, many = peak(200), peak(2000)
    assert many < few + 1_000_000, "1,800 more inputs are 1.4 MB, and their names 0.2 MB"


@pytest.mark.filterwarnings("ignore:Image size")  # as the command has it
def test_skipped_items_keep_their_place(photo_engine: Path, folder: Path, photos: Path) -> None:
    target = broken_images(photos, folder / "mixed")
    items = list(open_source(str(target), load(photo_engine, "engine").sidecar))
    assert [item.name for item in items] == ["a.png", "b.jpg", "c.jpg", "d.png", "e.png", "f.png", "g.jpg", "z.jpg"]
    assert [isinstance(item, Skipped) for item in items] == [False, *[True] * 6, False]


def test_a_file_of_that_very_name_comes_before_a_pattern(
    cli: Cli, photo_engine: Path, folder: Path, photos: Path
) -> None:
    odd = folder / "im [1] ü"
    odd.mkdir()
    shutil.copy(photos / "rocket.jpg", odd / "img[1].jpg")
    shutil.copy(photos / "rocket.jpg", odd / "img1.jpg")
    for text in (odd / "img[1].jpg", f"{odd}/*[[]1].jpg", f"{odd}/*"):
        result = cli("infer", "--input", text, "--output", "p.jsonl")
        assert result.exit_code == 0, result.output
        assert "img[1].jpg" in (folder / "p.jsonl").read_text()
    assert "2 samples" in result.output


def test_a_name_that_is_not_utf8_is_kept_in_every_format(
    cli: Cli, photo_engine: Path, folder: Path, photos: Path
) -> None:
    import os

    (folder / "in").mkdir()
    try:
        shutil.copy(photos / "rocket.jpg", os.fsdecode(os.fsencode(folder / "in") + b"/a\xff.jpg"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    for name in ("p.csv", "p.jsonl", "p.npz"):
        result = cli("infer", "--input", "in", "--output", name)
        assert result.exit_code == 0, result.output
    assert json.loads((folder / "p.jsonl").read_text())["file"] == r"a\xff.jpg"
    assert (folder / "p.csv").read_text().splitlines()[1].startswith(r"a\xff.jpg,")
    (name,) = read_npz(folder / "p.npz")["file"].tolist()
    assert name == "a\udcff.jpg"
    assert (folder / "in" / name).is_file()


def test_other_outputs_are_not_dropped_in_silence(engine: Path, folder: Path, caplog: Any) -> None:
    sidecar = load(engine, "engine").sidecar
    outputs = {"output": np.array([[1.0, np.nan]], np.float32), "depth": np.ones((1, 2), np.float32)}
    top = best_classes(outputs["output"], 2, None)
    with open_sink(folder / "p.jsonl", sidecar) as sink:
        sink.write(["x"], outputs, top)
    line = json.loads((folder / "p.jsonl").read_text(), parse_constant=pytest.fail)
    assert line["outputs"] == {"depth": [1.0, 1.0]}
    assert line["top"][0]["score"] == "nan"
    with open_sink(folder / "p.csv", sidecar) as sink:
        sink.write(["x"], outputs, top)
    assert "not depth" in caplog.text


def test_no_samples_still_make_a_csv(cli: Cli, engine: Path, folder: Path) -> None:
    np.save(folder / "x.npy", np.zeros((0, 3, 8, 8), np.float32))
    assert cli("infer", "--input", "x.npy", "--output", "p.csv").exit_code == 0
    assert (folder / "p.csv").read_text().strip() == "file"


def test_wide_pixels_are_scaled_or_refused(cli: Cli, photo_engine: Path, folder: Path, photos: Path) -> None:
    (folder / "in").mkdir()
    grey = np.asarray(Image.open(photos / "camera.png"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "in/a.png")
    Image.fromarray(grey.astype(np.float32) / 255).save(folder / "in/b.tiff")
    assert np.array_equal(PREPROCESSING(Image.open(folder / "in/a.png")), PREPROCESSING(Image.fromarray(grey)))
    result = cli("infer", "--input", "in")
    assert result.exit_code == 1
    assert "skipped b.tiff: its pixels (F, 32 bits)" in result.output


def test_brackets_in_paths_are_letters(cli: Cli, engine: Path, folder: Path) -> None:
    result = cli("infer", "--input", "random", "--count", 2, "--output", "a[red].csv")
    assert result.exit_code == 0
    assert "a[red].csv" in result.output
    assert cli("infer", "--input", "random", "--count", 2, "--output", "a[/b].csv").exit_code == 0
    assert cli("build", "small.onnx", "--output", "c[/b].ort.onnx").exit_code == 0
    assert (folder / "a[/b].csv").is_file()
    assert (folder / "c[/b].ort.onnx").is_file()


@pytest.mark.torch
def test_images_for_a_model_of_two_inputs_say_so(cli: Cli, folder: Path, photos: Path) -> None:
    assert cli("export", "tests.support.zoo:two_in", "--dynamic").exit_code == 0
    assert cli("build", "--max", 2).exit_code == 0
    refused(cli("infer", "--input", photos), 2, "two_in has 2 inputs (image, ids); images can feed a model with one")


def test_a_plan_says_what_runs_and_where_it_came_from(cli: Cli, photo_engine: Path, photos: Path) -> None:
    given = plan_infer(InferRequest(photo_engine, str(photos), batch=20, reader="host"))
    assert given.sizes == (8, 8, 4)
    assert given.reader == "host"
    assert given.origins == {"engine": "given", "batch": "given", "reader": "given"}
    found = plan_infer(InferRequest(None, str(photos)))
    assert found.artifact.path.name == photo_engine.name
    assert found.origins["engine"] == "the newest in engines/ that runs here"
    assert found.origins["batch"] == "the largest opt of the profiles"
    assert found.origins["reader"] == "auto"
    assert found.sizes == (found.artifact.sidecar.engine.best_batch,)
    with pytest.raises(FrozenInstanceError):
        found.sizes = (1,)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "batch 4: the largest opt of the profiles"),
        ({"table": [{"batch": 8, "profile": 0, "ms": 1.0}]}, "batch 8: the least time per sample in the build's table"),
    ],
)
def test_a_run_says_where_its_batch_size_came_from(cli: Cli, engine: Path, fields: dict[str, Any], told: str) -> None:
    change_sidecar(engine, engine=fields)
    assert told in cli("infer", "--input", "random", "--count", 3).output
    assert "batch 2: " not in cli("infer", "--input", "random", "--count", 3, "--batch", 2).output


def test_outputs_whose_names_meet_in_a_file_are_all_there(cli: Cli, folder: Path) -> None:
    """``head/a`` and ``head_a``, an output called ``file``, and one with its batch axis last."""
    nodes = [
        helper.make_node("Neg", ["input"], ["head/a"], name="/neg"),
        helper.make_node("Neg", ["head/a"], ["head_a"], name="/back"),
        helper.make_node("Add", ["input", "input"], ["file"], name="/double"),
        helper.make_node("Transpose", ["input"], ["turned"], name="/turn", perm=[1, 0]),
    ]
    rows: models.Shape = ["batch_size", 4]
    outputs: dict[str, models.Shape] = {"head/a": rows, "head_a": rows, "file": rows, "turned": [4, "batch_size"]}
    models.save(folder / "m.onnx", nodes, {"input": rows}, outputs)
    assert cli("build", "m.onnx", "--max", 4).exit_code == 0
    samples = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    np.save("x.npy", samples)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = cli("infer", "--input", "x.npy", "--output", "o.npz")
    assert done.exit_code == 0, done.output
    found = read_npz(folder / "o.npz")
    assert found["file"].tolist() == [f"x.npy[{row}]" for row in range(3)]
    assert found["head_a"] == pytest.approx(samples)
    assert found["head_a_2"] == pytest.approx(-samples)
    assert found["file_2"] == pytest.approx(2 * samples)
    assert found["turned"] == pytest.approx(samples)
    for told in ("holds head/a as head_a_2", "holds file as file_2", "holds turned with its batch axis, 1, first"):
        assert f"note: the .npz {told}" in done.output
    done = cli("verify", "--against", "o.npz", "--input", "x.npy", "--batch", "1,3")
    assert done.exit_code == 0, done.output
    assert "isn't compared" not in done.output
    for name in ("head/a", "head_a", "file", "turned"):
        assert f"│ {name} " in done.output
