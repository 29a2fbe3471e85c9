"""Measure how fast folders of JPEG files become predictions, with both readers, against their bounds.

    python -m benchmarks.images ENGINE [--images 10000] [--folder DIR] [--rounds 3] [--threads 2,3,4]
                                [--loads 0.75,0.9,1.0] [--host-images 3000] [--host-threads 8,16] [--json FILE]

First the folder is made: JPEG files of about 500×375 pixels, no two alike. Each way runs in its own process, two
seconds after the previous one, and the ways take turns.

- *dali*: a DALI pipeline in pipeline mode that reads, decodes, resizes, crops and normalizes the files and does nothing
  else, for each number of CPU threads and each share of the hardware decoder. Another pipeline runs first.
- *infer*: ``infer --reader dali`` on the folder, to a CSV file. *broken*: the same with every hundredth file broken.
  *few*: a tenth of the folder, to compare the memory.
- *threads*: only reading, decoding, resizing and cropping, by Pillow in a pool of threads, for each number of threads.
  *host*: ``infer --reader host`` on the same files.

Rates are those of whole runs, without loading the engine or making the pipelines. At the end the samples of both
readers are compared, image by image.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.summary import write
from scripts.photos import copy_photos
from trtbatch.core.readers import image_input
from trtbatch.core.store import load
from trtbatch.images.dali import DaliReader
from trtbatch.images.host import open_image, read_ahead, sample
from trtbatch.runtime.infer import InferRequest, infer
from trtbatch.util import environment, optional

BATCH, REST, WARM = 128, 2.0, 10
"""Images per batch; seconds between the ways; batches that another pipeline runs before a bare one is timed."""

EVERY = 100
"""One file of this many is broken."""

GENERATED = 1000
"""Generated images that the readers are compared on, in addition to the ten of scikit-image."""


# Making the folder.


def picture(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return an image with the spatial frequencies of a photograph: the sum of noise at several scales."""
    generator = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (2, 5, 12, 30, 80):
        noise = generator.integers(0, 256, (cells, cells + cells // 3, 3), np.uint8)
        layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(layer, np.float64) / np.sqrt(cells)
    total += generator.normal(0, 4, total.shape)
    low, high = total.min(), total.max()
    pixels: NDArray[np.uint8] = ((total - low) / (high - low) * 255).astype(np.uint8)
    return pixels


def write_image(path: Path) -> None:
    """Write the JPEG file that belongs to a name like ``000123.jpg``."""
    index = int(path.stem)
    generator = np.random.default_rng(index)
    width, height = (int(length * generator.uniform(0.8, 1.2)) for length in (500, 375))
    if index % 3 == 0:
        width, height = height, width
    Image.fromarray(picture(index, height, width)).save(path, "JPEG", quality=90)


def make_folder(folder: Path, count: int) -> list[Path]:
    """Return the images in `folder`; missing ones are made first."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{index:06d}.jpg" for index in range(count)]
    with ProcessPoolExecutor() as pool:
        list(pool.map(write_image, [file for file in files if not file.exists()], chunksize=16))
    return files


def broken(data: bytes, kind: int) -> bytes:
    """Return a JPEG file broken in one of five ways: truncated, text, empty, a PDF's start, or a header of 60,000²."""
    if kind == 4:
        at = data.index(b"\xff\xc0")
        return data[: at + 5] + (60000).to_bytes(2, "big") * 2 + data[at + 9 :]
    return (data[: len(data) // 2], b"some text", b"", b"%PDF-1.7\n" + data)[kind]


def make_broken(folder: Path, files: Sequence[Path]) -> list[str]:
    """Make a folder of the same files with every hundredth one broken; return the names of the broken files."""
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    for index, file in enumerate(files):
        target = folder / file.name
        target.unlink(missing_ok=True)
        if index % EVERY == EVERY // 2:
            target.write_bytes(broken(file.read_bytes(), len(names) % 5))
            names.append(file.name)
        else:
            os.link(file, target)
    return names


# The ways, each in its own process.


def bare_pipeline(folder: Path, count: int, threads: int, load_share: float) -> dict[str, Any]:
    """Measure a DALI pipeline as its users write it, without a consumer, from its first image to its last."""
    users_pipeline(folder, threads, load_share, WARM)  # loads what DALI loads on first use
    return {"images_per_s": count / users_pipeline(folder, threads, load_share, -(-count // BATCH))}


def users_pipeline(folder: Path, threads: int, load_share: float, batches: int) -> float:
    """Return the seconds that a new pipeline takes for a number of batches."""
    dali, fn, types = (optional.require(f"nvidia.dali{part}", "measure") for part in ("", ".fn", ".types"))
    made = dali.Pipeline(BATCH, threads, 0, prefetch_queue_depth=3)
    with made:
        encoded, _ = fn.readers.file(file_root=str(folder.parent), dir_filters=[folder.name], random_shuffle=False)
        images = fn.decoders.image(encoded, device="mixed", output_type=types.RGB, hw_decoder_load=load_share)
        resized = fn.resize(images, resize_shorter=256, interp_type=types.INTERP_TRIANGULAR, antialias=True)
        made.set_outputs(
            fn.crop_mirror_normalize(
                resized,
                crop=(224, 224),
                dtype=types.FLOAT,
                output_layout="CHW",
                mean=[123.675, 116.28, 103.53],
                std=[58.395, 57.12, 57.375],
            )
        )
    made.build()
    begun = time.perf_counter()
    for _ in range(batches):
        made.run()
    return time.perf_counter() - begun


def predict(engine: Path, folder: Path, count: int, reader: str, output: Path) -> dict[str, Any]:
    """Measure the prediction of a folder to a CSV file."""
    begun = time.perf_counter()
    result = infer(InferRequest(engine, str(folder), batch=BATCH, count=count, output=output, reader=reader))
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        "images_per_s": (result.samples + len(result.skipped)) / result.seconds,
        "samples": result.samples,
        "skipped": [item.name for item in result.skipped],
        "peak_mib": peak / 1024,
        "bound": result.bound,
        "whole_s": time.perf_counter() - begun,
    }


def pillow_in_threads(engine: Path, folder: Path, count: int, threads: int) -> dict[str, Any]:
    """Measure reading, decoding, resizing and cropping in threads, and nothing else."""
    _, recipe = image_input(load(engine, "engine").sidecar)
    files = sorted(folder.iterdir())[:count]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda file: recipe.pixels(open_image(file)), files[:64]))
        begun = time.perf_counter()
        for _ in pool.map(lambda file: recipe.pixels(open_image(file)).size, files):
            pass
        return {"images_per_s": count / (time.perf_counter() - begun)}


def compare_readers(engine: Path, folder: Path, count: int) -> dict[str, Any]:
    """Compare the samples of both readers, and the engine's outputs, on scikit-image's and generated images."""
    from trtbatch import load as load_engine

    spec, recipe = image_input(load(engine, "engine").sidecar)
    with tempfile.TemporaryDirectory() as photos:
        copy_photos(Path(photos))
        files = [*sorted(Path(photos).iterdir()), *sorted(folder.iterdir())[:count]]
        images = [file.read_bytes() for file in files]
    reader = DaliReader(recipe, spec, BATCH, None if optional.version("pycuda") is None else 0)
    numbers = [str(index) for index in range(len(images))]
    scale = 255 * np.asarray(recipe.std)[:, None, None]
    differences: list[float] = []
    for batch in reader.batches(read_ahead(images, numbers, reader.load), iter([BATCH] * len(images))):
        assert batch.samples is not None
        for name, row in zip(batch.names, batch.rows):
            made = np.asarray(batch.samples[row].as_cpu()) if isinstance(row, int) else row
            wanted = sample(images[int(name)], spec, recipe)
            differences.append(float(np.abs((made - wanted) * scale).mean()))
        assert not batch.skipped, batch.skipped
    reader.close()
    with load_engine(engine) as opened:
        outputs = [opened.run_images(images, reader=each)[0] for each in ("host", "dali")]
    first = opened.sidecar.outputs[0].name
    found, swapped = nearest(*(each[first] for each in outputs)), np.array(outputs[1][first])
    swapped[[0, 1]] = swapped[[1, 0]]
    return {
        "images": len(images),
        "mean_difference": statistics.fmean(differences),
        "p99_difference": float(np.percentile(differences, 99)),
        "max_difference": max(differences),
        "nearest_is_own": float(found.mean()),
        "nearest_is_own_with_two_swapped": float(nearest(outputs[0][first], swapped).mean()),
        "two_swapped_are_found": bool(not nearest(outputs[0][first], swapped)[:2].any()),
    }


def nearest(host: NDArray[Any], dali: NDArray[Any]) -> NDArray[np.bool_]:
    """Return for each row of DALI's reader whether the nearest host row, by L2 distance, is of the same image."""
    one, other = host.astype(np.float64), dali.astype(np.float64)
    squares = (other**2).sum(1)[:, None] + (one**2).sum(1)[None] - 2 * other @ one.T
    own: NDArray[np.bool_] = squares.argmin(1) == np.arange(len(other))
    return own


# Running all ways in turns.


def in_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run one way in its own process, after a pause."""
    time.sleep(REST)
    line = [sys.executable, "-m", "benchmarks.images", "--way", function.__name__, json.dumps([*map(str, arguments)])]
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{function.__name__} failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def run_way(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run the way of this name with arguments in text form."""
    paths = [Path(text) for text in arguments]
    if name == "bare_pipeline":
        return bare_pipeline(paths[0], int(arguments[1]), int(arguments[2]), float(arguments[3]))
    if name == "predict":
        return predict(paths[0], paths[1], int(arguments[2]), arguments[3], paths[4])
    if name == "pillow_in_threads":
        return pillow_in_threads(paths[0], paths[1], int(arguments[2]), int(arguments[3]))
    return compare_readers(paths[0], paths[1], int(arguments[2]))


def same_rows(clean: Path, other: Path, without: Sequence[str]) -> bool:
    """Return whether two CSV files agree in names and best class of all rows except those of some files."""
    with clean.open(newline="") as one, other.open(newline="") as two:
        wanted = [row for row in csv.reader(one) if row[0] not in without]
        found = list(csv.reader(two))
    return [row[0] for row in wanted] == [row[0] for row in found] and all(
        a[1:3] == b[1:3] for a, b in zip(wanted, found)
    )


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run all ways in turns; return their rates, and the figures for the documentation."""
    folder, engine = options.folder / "whole", options.engine
    files = make_folder(folder, options.images)
    names = make_broken(options.folder / "broken", files)
    ways: dict[str, list[dict[str, Any]]] = {}
    for turn in range(options.rounds):
        todo: list[tuple[str, Any]] = [
            (f"dali, {threads} threads, {share} hardware", (bare_pipeline, folder, options.images, threads, share))
            for threads in options.threads
            for share in options.loads
            if turn == 0 or (threads, share) in best(ways, options)
        ]
        todo += [
            ("infer", (predict, engine, folder, options.images, "dali", work / "whole.csv")),
            ("few", (predict, engine, folder, options.images // 10, "dali", work / "few.csv")),
            ("broken", (predict, engine, options.folder / "broken", options.images, "dali", work / "broken.csv")),
            *(
                (f"{count} threads", (pillow_in_threads, engine, folder, options.host_images, count))
                for count in options.host_threads
            ),
            ("host", (predict, engine, folder, options.host_images, "host", work / "host.csv")),
        ]
        for name, call in todo if turn % 2 == 0 else reversed(todo):
            ways.setdefault(name, []).append(in_process(*call))
            print(name, json.dumps(ways[name][-1])[:300], flush=True)
    readers = in_process(compare_readers, engine, folder, min(GENERATED, options.images))
    rates = {name: statistics.median(run["images_per_s"] for run in runs) for name, runs in ways.items()}
    fastest = max((name for name in ways if name.startswith("dali")), key=lambda name: rates[name])
    peaks = {name: statistics.median(run["peak_mib"] for run in ways[name]) for name in ("infer", "few")}
    return {
        "figures": {
            "infer_over_fastest_dali": rates["infer"] / rates[fastest],
            "fastest_dali": fastest,
            "infer_images_per_s": rates["infer"],
            "peak_mib_all": peaks["infer"],
            "peak_mib_tenth": peaks["few"],
            "broken_over_clean": rates["broken"] / rates["infer"],
            "broken_named": all(sorted(run["skipped"]) == names for run in ways["broken"]),
            "broken_rest_right": same_rows(work / "whole.csv", work / "broken.csv", names),
            "host_over_threads": {
                str(count): rates["host"] / rates[f"{count} threads"] for count in options.host_threads
            },
            "readers": readers,
        },
        "images_per_s": {name: [round(run["images_per_s"]) for run in runs] for name, runs in ways.items()},
        "bound": {name: ways[name][-1]["bound"] for name in ("infer", "broken", "host")},
        "whole_s": {name: [round(run["whole_s"], 2) for run in ways[name]] for name in ("infer", "broken", "host")},
    }


def spread(rates: Sequence[float]) -> str:
    """Return the median of rates, and their range."""
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"


def markdown(result: dict[str, Any]) -> str:
    """Return the table that the documentation shows."""
    figures, rates, readers = result["figures"], result["images_per_s"], result["figures"]["readers"]
    rows = [
        ("`infer --reader dali`, to a CSV file, images/s", spread(rates["infer"])),
        (
            f"DALI alone ({figures['fastest_dali'].removeprefix('dali, ')}), images/s",
            spread(rates[figures["fastest_dali"]]),
        ),
        ("infer / DALI alone", f"{figures['infer_over_fastest_dali']:.2f}"),
        ("with every hundredth file broken, images/s", spread(rates["broken"])),
        (
            f"host memory at most, {result['images']:,} images / a tenth of them, MiB",
            f"{figures['peak_mib_all']:,.0f} / {figures['peak_mib_tenth']:,.0f}",
        ),
        ("`infer --reader host`, images/s", spread(rates["host"])),
        *(
            (f"Pillow alone in {name}, images/s", spread(each))
            for name, each in rates.items()
            if name.endswith(" threads")
        ),
        (
            f"difference of the two readers' samples, {readers['images']:,} images, in 1/255: mean, 99th percentile",
            f"{readers['mean_difference']:.2f}, {readers['p99_difference']:.2f}",
        ),
        ("images whose nearest output of the other reader is their own", f"{100 * readers['nearest_is_own']:.1f} %"),
    ]
    return "\n".join(["| what | reached |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)])


def best(ways: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> list[tuple[int, float]]:
    """Return the three settings of DALI that were fastest in the first round; only these run again."""
    settings = [(threads, share) for threads in options.threads for share in options.loads]
    rate = {each: ways[f"dali, {each[0]} threads, {each[1]} hardware"][0]["images_per_s"] for each in settings}
    return sorted(settings, key=lambda each: -rate[each])[:3]


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] == ["--way"]:
        print(json.dumps(run_way(sys.argv[2], json.loads(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--host-images", type=int, default=3000)
    parser.add_argument("--folder", type=Path, default=Path("benchmark-images"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=lambda text: [int(each) for each in text.split(",")], default=[2, 3, 4])
    parser.add_argument(
        "--loads", type=lambda text: [float(each) for each in text.split(",")], default=[0.75, 0.9, 1.0]
    )
    parser.add_argument("--host-threads", type=lambda text: [int(each) for each in text.split(",")], default=[8, 16])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    try:
        result = {"script": "benchmarks/images.py", "images": options.images, "batch": BATCH, **measure(options, work)}
    finally:
        shutil.rmtree(work)
    described = environment.describe()
    libraries = {name: found for name in ("nvidia-dali-cuda130", "pillow") if (found := optional.version(name))}
    result["environment"] = {**described, "libraries": {**described["libraries"], **libraries}}
    result["device"] = load(options.engine, "engine").sidecar.build.device
    print(markdown(result))
    if options.json:
        write(options.json, result)


if __name__ == "__main__":
    main()
