"""The figures of predicting a folder of photographs: what is made, taken in turns, and worked out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts import decode_run, decode_table, folder_table
from scripts.decode_run import tasks
from scripts.folder_run import memory
from scripts.folder_table import cut, figures, in_turns, make_folder, markdown, side
from trtbatch.errors import UsageError
from trtbatch.photographs.operands import plan
from trtbatch.photographs.parts import part_decoder
from trtbatch.preprocessing import Preprocessing

RECIPE = Preprocessing(36, (32, 32))
SMALL = (40, 30)


def test_photographs_differ_lie_and_stand_and_stay_inside_their_picture() -> None:
    cuts = [cut(index, 500, 375) for index in range(10_000)]
    assert len(set(cuts)) == len(cuts)
    standing = sum(each.height > each.width for each in cuts) / len(cuts)
    assert 0.25 < standing < 0.55  # those that are nearly square may be either
    shapes = [sorted((each.width, each.height)) for each in cuts]
    assert np.allclose(np.mean(shapes, axis=0), (375, 500), rtol=0.05)
    assert all(each.left + each.width <= side(500, 375) for each in cuts)
    assert all(each.top + each.height <= side(500, 375) for each in cuts)
    assert min(min(each.left, each.top) for each in cuts) == 0


def test_a_folder_is_made_once_and_its_files_are_what_they_are_whatever_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_table, "SOURCES", 3)
    files = make_folder(tmp_path / "one", 8, *SMALL)
    data = [file.read_bytes() for file in files]
    assert len(set(data)) == 8
    assert files == sorted((tmp_path / "one").iterdir())
    for index, file in enumerate(files):
        part = cut(index, *SMALL)
        with Image.open(file) as image:
            assert image.format == "JPEG" and image.size == (part.width, part.height)
    files[5].unlink()
    times = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    assert make_folder(tmp_path / "one", 8, *SMALL) == files
    assert [file.read_bytes() for file in files] == data
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())
    assert [file.read_bytes() for file in make_folder(tmp_path / "two", 4, *SMALL)] == data[:4]
    assert len(make_folder(tmp_path / "one", 4, *SMALL)) == 4


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=r"holds holiday\.jpg"):
        make_folder(tmp_path, 2, *SMALL)


def test_every_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = tasks([Path(str(index)) for index in range(40)])
    assert [len(chunk) for chunk in chunks] == [16, 16, 8]
    assert [file for chunk in chunks for file in chunk] == [Path(str(index)) for index in range(40)]
    files = make_folder(tmp_path, 5, *SMALL)
    parts = [cut(index, *SMALL) for index in range(5)]
    count = sum(3 * part.width * part.height for part in parts)
    for name in ("threads", "processes"):
        found = decode_run.WAYS[name](files, 2)
        assert found["bytes"] == count
        assert found["images_per_s"] == pytest.approx(5 / found["seconds"])
    given = argparse.Namespace(folder=tmp_path, photos=4)
    for name in ("threads", "processes"):
        found = folder_table.decoded(given, RECIPE, name, 1)
        assert found["bytes"] == count - 3 * parts[4].width * parts[4].height and found[name] == 1


def test_of_a_photograph_no_more_is_decoded_than_the_crop_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("turbojpeg")
    files = make_folder(tmp_path, 3, 500, 375)
    whole = decode_run.decode(files)
    wanted = 0
    for file in files:
        with Image.open(file) as image:
            planned = plan(decode_table.RECIPE, image.height, image.width)
            assert planned is not None
            wanted += 3 * (planned.rows.end - planned.rows.first) * (planned.columns.end - planned.columns.first)
    found = decode_run.decode_parts(files)
    assert wanted < found < 0.8 * whole
    given = argparse.Namespace(folder=tmp_path, photos=3)
    assert folder_table.decoded(given, decode_table.RECIPE, "parts", 2)["bytes"] == found
    wide = Preprocessing(256, (256, 384), interpolation="bicubic")
    assert found < folder_table.decoded(given, wide, "parts", 2)["bytes"] <= whole
    Image.new("L", (500, 375)).save(tmp_path / "grey.png")
    assert decode_run.decode_parts([tmp_path / "grey.png"]) == 3 * 500 * 375, "no JPEG file: the whole"
    monkeypatch.setattr(decode_run, "part_decoder", lambda: None)
    with pytest.raises(RuntimeError, match="libturbojpeg"):
        decode_run.decode_parts(files)


def test_ways_have_their_turn_in_every_round_and_one_that_fails_is_left_out() -> None:
    order: list[str] = []

    def way(name: str) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            order.append(name)
            if name == "c":
                raise RuntimeError("no torch")
            return {"images_per_s": len(order)}

        return run

    rounds, failed = in_turns({name: way(name) for name in "abc"}, 3)
    assert order == [*"abc", *"ba", *"ab"]
    assert rounds == {"a": [{"images_per_s": n} for n in (1, 5, 6)], "b": [{"images_per_s": n} for n in (2, 4, 7)]}
    assert failed == {"c": "RuntimeError: no torch"}


def test_a_process_that_fails_is_told_with_its_last_line() -> None:
    told = folder_table.told([sys.executable, "-c", "print('loading'); print('{\"samples\": 3}')"])
    assert told == {"samples": 3}
    with pytest.raises(RuntimeError, match="ended with 1: ValueError: seven"):
        folder_table.told([sys.executable, "-c", "raise ValueError('seven')"])
    with pytest.raises(RuntimeError, match="ended with 3: it said nothing"):
        folder_table.told([sys.executable, "-c", "raise SystemExit(3)"])


def said(rate: float, peak: int = 0, samples: int = 1000) -> dict[str, Any]:
    shared = {"images_per_s": rate, "samples": samples, "threads": 8, "workers": 16, "bound": "bound by reading"}
    return shared | {"peak_bytes": peak, "growth_bytes": 2**20, "late_growth_bytes": 0}


def test_ratios_are_taken_in_each_round() -> None:
    rounds = {
        "folder": [said(90, 110), said(180, 110), said(50, 120)],
        "few": [said(1, 100), said(1, 110), said(1, 100)],
        "decoding": [said(100), said(200), said(200)],
    }
    assert figures(rounds) == {"folder_over_decoding": 0.9, "memory_all_over_few": 1.1}


def test_the_table_leaves_out_what_failed() -> None:
    rounds = {
        "folder": [said(900, 2**30, 10_000)],
        "few": [said(800, 2**29)],
        "decoding": [said(1000)],
        "dataloader": [said(450)],
    }
    row = {"height": 375, "width": 500, "rounds_pillow_ms": [2.0, 3.0, 2.5]}
    timed = {**row, "rounds_preprocessor_ms": [0.05], "pillow_over_preprocessor": 50.0, "preprocessor_ms": 0.05}
    data = {"rounds": rounds, "figures": figures(rounds), "photograph": [timed], "failed": {}}
    assert markdown(data).splitlines()[2:] == [
        "| folder / decoding alone on 8 threads | 0.90 | 900 (900 to 900) images/s; 1,000 (1,000 to 1,000) images/s |",
        "| folder / DataLoader on 16 workers | 2.00 | 900 (900 to 900) images/s; 450 (450 to 450) images/s |",
        "| host memory at most, 10,000 photographs / 1,000 | 2.000 | 1,024 (1,024 to 1,024) MiB; "
        "512 (512 to 512) MiB; more after the first batch 1.0 (1.0 to 1.0), in the second half 0.0 (0.0 to 0.0) MiB |",
        "| Pillow on one core / preprocessor, 500×375 | 50.0 | 2.500 (2.000 to 3.000) ms; 0.050 (0.050 to 0.050) ms |",
        "",
        "folder: bound by reading",
    ]
    del rounds["dataloader"]
    data = {"rounds": rounds, "figures": figures(rounds), "photograph": [row], "failed": {"dataloader": "no torch"}}
    lines = markdown(data).splitlines()
    assert not any("DataLoader" in line for line in lines)
    assert "| Pillow on one core / preprocessor, 500×375 | – | 2.500 (2.000 to 3.000) ms |" in lines
    assert lines[-1] == "dataloader failed: no torch"


def test_memory_is_read_from_what_the_system_says() -> None:
    status = "Name:\tpython\nVmHWM:\t    1932 kB\nVmRSS:\t     100 kB\n"
    assert memory(status, "VmHWM") == 1932 * 1024
    with pytest.raises(ValueError, match="no VmPeak"):
        memory(status, "VmPeak")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_small_folder_from_end_to_end(cli: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    for line in (
        ("export", "tests.zoo:photos", "--dynamic"),
        ("build", "--max", 4, "--backend", "onnxruntime"),
        ("export-preprocessor",),
    ):
        done = cli(*line)
        assert done.exit_code == 0, done.output
    monkeypatch.setattr(folder_table, "SECONDS", 0.0)
    monkeypatch.setattr(folder_table, "REST", 0.0)
    monkeypatch.setattr(folder_table, "SIZES", ((40, 30),))
    given = argparse.Namespace(
        engine=Path("engines/photos_dynamic.ort.onnx"),
        preprocessor=Path("engines/photos_dynamic.pre.onnx"),
        photos=20,
        folder=Path("photographs"),
        size="60x40",
        workers=2,
        batch=4,
        rounds=1,
        epochs=3,
        baseline_python=sys.executable,
    )
    data = json.loads(json.dumps(folder_table.measure(given)))
    assert data["failed"] == {}
    parts = {"folder_over_decoding_parts"} if part_decoder() else set()
    assert set(data["figures"]) == parts | {
        "folder_over_decoding",
        "folder_over_decoding_processes",
        "folder_over_dataloader",
        "memory_all_over_few",
    }
    (run,), (few,) = data["rounds"]["folder"], data["rounds"]["few"]
    assert run["executed"] == {"4": 5} and few["samples"] == 2
    assert run["peak_bytes"] >= run["last_bytes"] > 2**20
    (loaded,) = data["rounds"]["dataloader"]
    assert loaded["samples"] == 20 and len(loaded["epochs_s"]) == 2
    assert [row["height"] for row in data["photograph"]] == [40]
    assert len(markdown(data).splitlines()) == 9 + len(parts)
