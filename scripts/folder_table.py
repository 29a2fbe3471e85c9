"""How fast a folder of photographs is predicted, against decoding it alone, and against a DataLoader.

    python scripts/folder_table.py ENGINE [--preprocessor FILE] [--photos 10000] [--folder DIR] [--size 500x375]
                                   [--workers N] [--batch 128] [--rounds 3] [--epochs 3] [--baseline-python PYTHON]
                                   [--json FILE]

JPEG files of photograph-like content are made first, where they are missing: sizes around ``--size``, lying and
standing, quality 90, no two alike. Then, in turns:

- *folder*: ``infer`` over all of them; *few*, over a tenth of them, for the memory;
- *decoding*: the same files to RGB pixels in threads, 16 files a task, and nothing else; *decoding_processes*: the same
  in as many processes, started before the clock; *decoding_parts*: these, and of each file no more than the crop needs,
  where libjpeg-turbo is there that can do it;
- *dataloader*: torchvision's transforms in a DataLoader, of ``--baseline-python``, its best epoch. Nothing computes
  behind it, so that it is an upper bound of that way: with a model to feed it can't be faster.

Each has a process of its own, and two seconds before it in which nothing runs.

Last, per photograph and without decoding: Pillow's resize and crop on one core against the preprocessor, which on a GPU
has several in flight. Without
``--workers``, decoding has as many threads as ``infer`` reads with, and the DataLoader a process for each core.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.decode_table import QUALITY, photograph
from scripts.performance import ratio
from scripts.test_summary import machine
from trtbatch import environment
from trtbatch.artifacts import load
from trtbatch.backends import open_preprocessor
from trtbatch.errors import UsageError
from trtbatch.photographs.arena import aligned
from trtbatch.photographs.images import image_input
from trtbatch.photographs.parts import part_decoder
from trtbatch.photographs.preprocessor import SUFFIX, OnnxPreprocessor
from trtbatch.preprocessing import Preprocessing
from trtbatch.records import encode
from trtbatch.sources import ImageSource

Pixels = NDArray[np.uint8]
Size = tuple[int, int]
"""Height and width."""

Rounds = dict[str, list[dict[str, Any]]]
"""Of each way, what it said in each round."""

SCRIPTS = Path(__file__).resolve().parent
SOURCES = 256
"""Pictures that the photographs are cut out of: to draw one takes several times as long as to encode one."""

SPREAD = 0.2
"""How far a side may be from the size asked for."""

STANDING = 1 / 3
"""Share of photographs that are turned by a quarter."""

REST = 2.0
"""Seconds before each way."""

SIZES: tuple[Size, ...] = ((375, 500), (500, 375), (1080, 1920), (3024, 4032))
SECONDS = 0.2
"""Of each size's turn in a round."""

IN_FLIGHT = 64
"""Rows that samples are written to in turn."""


# Making the folder.


@dataclass(frozen=True)
class Cut:
    """The part of a picture that is a photograph, in pixels."""

    source: int
    left: int
    top: int
    width: int
    height: int


def side(width: int, height: int) -> int:
    """Of a picture, which is square: room for the largest photograph, and to move it."""
    return round((1 + 1.5 * SPREAD) * max(width, height))


def cut(index: int, width: int, height: int) -> Cut:
    """The same for a number whatever the count."""
    generator = np.random.default_rng(index)
    sides = [round(length * generator.uniform(1 - SPREAD, 1 + SPREAD)) for length in (width, height)]
    if generator.random() < STANDING:
        sides.reverse()
    left, top = (int(generator.integers(0, side(width, height) - length + 1)) for length in sides)
    return Cut(index % SOURCES, left, top, *sides)


def file_name(index: int) -> str:
    return f"{index:06d}.jpg"


def make_of(folder: Path, width: int, height: int, indices: Sequence[int]) -> None:
    """Write the photographs of one picture."""
    length = side(width, height)
    picture = Image.fromarray(photograph(indices[0] % SOURCES, length, length))
    for index in indices:
        part = cut(index, width, height)
        made = picture.crop((part.left, part.top, part.left + part.width, part.top + part.height))
        unfinished = folder / f".{file_name(index)}"
        made.save(unfinished, "JPEG", quality=QUALITY)
        unfinished.replace(folder / file_name(index))


def make_folder(folder: Path, count: int, width: int, height: int) -> list[Path]:
    """The photographs in `folder`, made where they are missing.

    Raises:
        UsageError: other files in there would be predicted too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    foreign = sorted(there - {file_name(index) for index in range(max(count, len(there)))})
    if foreign:
        raise UsageError(f"{folder} holds {foreign[0]}, which is none of the photographs made here", "name another")
    missing = [index for index in range(count) if file_name(index) not in there]
    groups = [[index for index in missing if index % SOURCES == source] for source in range(SOURCES)]
    with ProcessPoolExecutor(environment.describe()["cores"]) as pool:
        for _ in pool.map(partial(make_of, folder, width, height), filter(None, groups)):
            pass
    return [folder / file_name(index) for index in range(count)]


# The ways, each with its own rate.


def told(line: Sequence[str | Path | int], env: dict[str, str] | None = None) -> dict[str, Any]:
    """The JSON object on the last line that a process prints.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    done = subprocess.run([str(part) for part in line], capture_output=True, text=True, env=env)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"{Path(str(line[1])).name} ended with {done.returncode}: {said[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def predicted(given: argparse.Namespace, count: int) -> dict[str, Any]:
    line = [sys.executable, SCRIPTS / "folder_run.py", given.engine, given.folder]
    line += ["--count", count, "--batch", given.batch]
    if given.preprocessor is not None:
        line += ["--preprocessor", given.preprocessor]
    found = told(line)
    if found["samples"] != count:
        raise RuntimeError(f"{found['samples']} of {count} photographs were predicted")
    return found


def decoded(given: argparse.Namespace, recipe: Preprocessing, way: str, workers: int) -> dict[str, Any]:
    line = [sys.executable, SCRIPTS / "decode_run.py", given.folder, way, "--count", given.photos]
    return told([*line, "--workers", workers, "--recipe", json.dumps(encode(recipe))])


def loaded(given: argparse.Namespace, recipe: Preprocessing, workers: int) -> dict[str, Any]:
    line = [given.baseline_python, SCRIPTS / "dataloader_baseline.py", given.folder, "--count", given.photos]
    line += ["--workers", workers, "--batch", given.batch, "--resize", recipe.resize, "--crop", recipe.crop[0]]
    line += ["--epochs", given.epochs]
    env = dict(os.environ)
    if shutil.which(given.baseline_python) != sys.executable:  # another Python has libraries of its own
        for name in ("PYTHONPATH", "LD_LIBRARY_PATH"):
            env.pop(name, None)
    return told(line, env)


def in_turns(
    ways: dict[str, Callable[[], dict[str, Any]]], rounds: int, rest: float = 0.0
) -> tuple[Rounds, dict[str, str]]:
    """What each way said in each round, in alternating order, and why one that failed did: it is left out then.

    Args:
        rest: seconds before each, so that none finds the processors hotter than another does.
    """
    found: Rounds = {name: [] for name in ways}
    failed: dict[str, str] = {}
    for turn in range(rounds):
        for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
            if name in failed:
                continue
            time.sleep(rest)
            try:
                found[name].append(ways[name]())
            except Exception as error:  # the other figures are still worth having
                failed[name] = f"{type(error).__name__}: {error}"
            print(name, failed.get(name) or f"{found[name][-1]['images_per_s']:,.0f} images/s", flush=True)
    return {name: said for name, said in found.items() if name not in failed}, failed


# One photograph.


def median_ms(work: Callable[[], object]) -> float:
    """Of several calls; the first, which warms up, says how many."""
    times: list[float] = []
    work()
    end = time.perf_counter() + SECONDS
    while len(times) < 5 or time.perf_counter() < end:
        begun = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


def pillow_ms(recipe: Preprocessing, sizes: Sequence[Size], rounds: int) -> Iterator[dict[Size, float]]:
    """In each round, the ms of Pillow's resize and crop on one core."""
    pictures = {size: Image.fromarray(photograph(0, size[1], size[0])) for size in sizes}
    for _ in range(rounds):
        yield {size: median_ms(partial(recipe.pixels, picture)) for size, picture in pictures.items()}


def preprocessor_ms(path: Path, sizes: Sequence[Size], rounds: int) -> Iterator[dict[Size, float]]:
    """In each round, the ms of one photograph's sample: in ONNX Runtime of one thread, on a GPU of many in flight."""
    pictures = {size: photograph(0, size[1], size[0]) for size in sizes}
    if not path.name.endswith(SUFFIX):
        yield from engine_ms(path, pictures, rounds)
        return
    with OnnxPreprocessor(path, threads=1) as preprocess:
        spec = preprocess.record.output
        out = np.empty([int(length) for length in spec.shape], spec.dtype)
        for _ in range(rounds):
            yield {size: median_ms(partial(preprocess, pixels, out)) for size, pixels in pictures.items()}


def engine_ms(path: Path, pictures: dict[Size, Pixels], rounds: int) -> Iterator[dict[Size, float]]:
    """The same of a preprocessor's engine: wall time of many, upload from page-locked memory included, by their number.

    The coefficients of a size are made once, as for a folder of photographs of one camera.
    """
    with open_preprocessor(load(path, "preprocessor")) as preprocessor, ExitStack() as stack:
        preprocessor.open()
        stack.callback(preprocessor.close)
        spec = preprocessor.record.output
        row = int(np.prod([int(size) for size in spec.shape])) * np.dtype(spec.dtype).itemsize
        rows = preprocessor.device.memory(IN_FLIGHT * row)
        stack.callback(rows.free)
        given = {}
        for size, pixels in pictures.items():
            block = preprocessor.arena.take(aligned(pixels.size) + preprocessor.beside)
            there = block[: pixels.size].reshape(pixels.shape)
            there[...] = pixels
            given[size] = preprocessor.prepare(there, block[aligned(pixels.size) :][: preprocessor.beside])

        def run(size: Size, count: int) -> float:
            begun = time.perf_counter()
            for index in range(count):
                preprocessor(given[size], rows.address + index % IN_FLIGHT * row)
            preprocessor.settle()
            return (time.perf_counter() - begun) / count

        for _ in range(rounds):
            found = {}
            for size in pictures:
                each = run(size, 32)
                found[size] = 1e3 * statistics.median(run(size, max(32, int(SECONDS / each / 5))) for _ in range(5))
            yield found


def one_photograph(recipe: Preprocessing, path: Path | None, rounds: int, sizes: Sequence[Size]) -> list[Any]:
    """Of each size, Pillow's ms and those of the preprocessor, in turns."""
    both: Iterator[tuple[dict[Size, float], dict[Size, float] | None]]
    if path is None:
        both = zip(pillow_ms(recipe, sizes, rounds), [None] * rounds)
    else:
        both = zip(pillow_ms(recipe, sizes, rounds), preprocessor_ms(path, sizes, rounds))
    taken = list(both)
    rows = []
    for size in sizes:
        row: dict[str, Any] = {"height": size[0], "width": size[1]}
        row["rounds_pillow_ms"] = [pillow[size] for pillow, _ in taken]
        row["pillow_ms"] = statistics.median(row["rounds_pillow_ms"])
        if path is not None:
            row["rounds_preprocessor_ms"] = [ours[size] for _, ours in taken if ours is not None]
            row["preprocessor_ms"] = statistics.median(row["rounds_preprocessor_ms"])
            row["pillow_over_preprocessor"] = ratio(row["rounds_pillow_ms"], row["rounds_preprocessor_ms"])
        rows.append(row)
    return rows


# Figures.


def values(rounds: Rounds, name: str, key: str) -> list[float]:
    return [float(said[key]) for said in rounds[name]]


def figures(rounds: Rounds) -> dict[str, float]:
    """Medians over the rounds of the ratios in each, of the ways that ended."""
    wanted = {
        "folder_over_decoding": ("folder", "decoding", "images_per_s"),
        "folder_over_decoding_processes": ("folder", "decoding_processes", "images_per_s"),
        "folder_over_decoding_parts": ("folder", "decoding_parts", "images_per_s"),
        "folder_over_dataloader": ("folder", "dataloader", "images_per_s"),
        "memory_all_over_few": ("folder", "few", "peak_bytes"),
    }
    return {
        name: ratio(values(rounds, over, key), values(rounds, under, key))
        for name, (over, under, key) in wanted.items()
        if over in rounds and under in rounds
    }


def spread(found: Sequence[float], digits: int = 0) -> str:
    """``7,900 (7,810 to 7,950)``: median, least and most."""
    median, least, most = (f"{value:,.{digits}f}" for value in (statistics.median(found), min(found), max(found)))
    return f"{median} ({least} to {most})"


def markdown(data: dict[str, Any]) -> str:
    """The figures: what, reached, and what it was made of; what couldn't be taken is left out."""
    rounds, reached = data["rounds"], data["figures"]
    rates = {name: f"{spread(values(rounds, name, 'images_per_s'))} images/s" for name in rounds}
    lines = ["| what | reached | raw figures |", "|---|---:|---|"]
    for name, what, kind in (
        ("decoding", "decoding alone", "threads"),
        ("decoding_processes", "decoding alone", "processes"),
        ("decoding_parts", "decoding alone, no more than the crop needs,", "processes"),
        ("dataloader", "DataLoader", "workers"),
    ):
        if f"folder_over_{name}" in reached:
            under = f"{what} on {rounds[name][0][kind]} {kind}"
            raw = f"{rates['folder']}; {rates[name]}"
            lines.append(f"| folder / {under} | {reached[f'folder_over_{name}']:.2f} | {raw} |")
    if "memory_all_over_few" in reached:
        counts = [f"{rounds[name][0]['samples']:,}" for name in ("folder", "few")]
        peaks = [spread([each / 2**20 for each in values(rounds, name, "peak_bytes")]) for name in ("folder", "few")]
        growth, late = (
            spread([each / 2**20 for each in values(rounds, "folder", key)], 1)
            for key in ("growth_bytes", "late_growth_bytes")
        )
        raw = f"{peaks[0]} MiB; {peaks[1]} MiB; more after the first batch {growth}, in the second half {late} MiB"
        what = f"host memory at most, {counts[0]} photographs / {counts[1]}"
        lines.append(f"| {what} | {reached['memory_all_over_few']:.3f} | {raw} |")
    for row in data["photograph"]:
        raw = f"{spread(row['rounds_pillow_ms'], 3)} ms"
        over = "–"
        if "preprocessor_ms" in row:
            over, raw = (
                f"{row['pillow_over_preprocessor']:.1f}",
                f"{raw}; {spread(row['rounds_preprocessor_ms'], 3)} ms",
            )
        lines.append(f"| Pillow on one core / preprocessor, {row['width']}×{row['height']} | {over} | {raw} |")
    bounds = [f"folder: {rounds['folder'][-1]['bound']}"] if "folder" in rounds else []
    return "\n".join([*lines, "", *bounds, *(f"{name} failed: {why}" for name, why in data["failed"].items())])


def reading_threads(spec: Any, recipe: Preprocessing) -> int:
    """As many as ``infer`` reads a folder with."""
    return ImageSource([], [], spec, recipe).workers


def measure(given: argparse.Namespace) -> dict[str, Any]:
    width, height = (int(part) for part in given.size.split("x"))
    sidecar = load(given.engine, "engine").sidecar
    spec, recipe = image_input(sidecar)
    begun = time.perf_counter()
    files = make_folder(given.folder, given.photos, width, height)
    print(f"{len(files)} photographs in {given.folder}, {time.perf_counter() - begun:.1f} s", flush=True)
    threads = given.workers or reading_threads(spec, recipe)
    workers = given.workers or environment.describe()["cores"]
    decoded(given, recipe, "threads", threads)  # from here on the files are in the system's memory
    ways = {
        "folder": lambda: predicted(given, len(files)),
        "few": lambda: predicted(given, max(1, len(files) // 10)),
        "decoding": lambda: decoded(given, recipe, "threads", threads),
        "decoding_processes": lambda: decoded(given, recipe, "processes", threads),
        "decoding_parts": lambda: decoded(given, recipe, "parts", threads),
        "dataloader": lambda: loaded(given, recipe, workers),
    }
    if part_decoder() is None:
        del ways["decoding_parts"]
    rounds, failed = in_turns(ways, given.rounds, REST)
    try:
        photographs = one_photograph(recipe, given.preprocessor, given.rounds, SIZES)
    except Exception as error:
        failed["preprocessor"] = f"{type(error).__name__}: {error}"
        photographs = one_photograph(recipe, None, given.rounds, SIZES)
    return {
        "script": "scripts/folder_table.py",
        "model": sidecar.model.name,
        "precision": sidecar.precision,
        "tools": sidecar.tools,
        "preprocessor": None if given.preprocessor is None else given.preprocessor.name,
        "photos": len(files),
        "size": given.size,
        "mean_bytes": statistics.mean(file.stat().st_size for file in files),
        "batch": given.batch,
        "figures": figures(rounds),
        "photograph": photographs,
        "failed": failed,
        "load_average": os.getloadavg(),
        **machine(),  # not the one that built the engine
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--preprocessor", type=Path)
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="of the photographs [default: photographs-SIZE]")
    parser.add_argument("--size", default="500x375")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of the DataLoader in each round")
    parser.add_argument("--baseline-python", default=sys.executable)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.folder = given.folder or Path(f"photographs-{given.size}")
    data = measure(given)
    if given.json is not None:
        given.json.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(markdown(data))
    sys.exit(1 if data["failed"] else 0)


if __name__ == "__main__":
    main()
