"""Decode a folder of photographs once, and say how fast: to RGB pixels, which are dropped.

    python scripts/decode_run.py FOLDER {threads|processes|parts} [--count N] [--workers N] [--recipe JSON]

*threads* and *processes* decode whole photographs; *parts*, in processes, no more of each than a model's crop needs,
and doesn't look whether the rest of a file is as it should be. The recipe is a sidecar's ``preprocessing``.
Prints JSON. The rate is that of decoding: threads or processes have started before the clock.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.decode_table import RECIPE
from trtbatch import environment
from trtbatch.photographs.decoding import header, read_bytes, read_pixels
from trtbatch.photographs.operands import plan
from trtbatch.photographs.parts import Region, around, part_decoder
from trtbatch.preprocessing import Preprocessing
from trtbatch.records import decode as decode_record
from trtbatch.records import encode

FILES_PER_TASK = 16


def decode(files: Sequence[Path]) -> int:
    """Decode them one after the other, and drop the pixels; their bytes."""
    return sum(read_pixels(file).nbytes for file in files)


@lru_cache(maxsize=1024)
def region(recipe: Preprocessing, height: int, width: int) -> Region | None:
    """What the crop needs of a photograph."""
    planned = plan(recipe, height, width)
    return None if planned is None else around(planned.rows, planned.columns, height, width)


def decode_parts(files: Sequence[Path], recipe: Preprocessing = RECIPE) -> int:
    """The same of parts; of a photograph that has none, of the whole.

    Raises:
        RuntimeError: there is no libturbojpeg of version 3.
    """
    decoder = part_decoder()
    if decoder is None:
        raise RuntimeError("no libturbojpeg of version 3 was found")
    count, memory = 0, np.empty(0, np.uint8)
    for file in files:
        data = read_bytes(file)
        said = header(data)
        part = None if said is None else region(recipe, *said.size)
        if part is not None:
            if part.bytes > memory.size:
                memory = np.empty(part.bytes, np.uint8)
            if decoder(data, part, memory):
                count += part.bytes
                continue
        count += read_pixels(file).nbytes
    return count


def tasks(files: Sequence[Path]) -> list[Sequence[Path]]:
    return [files[first : first + FILES_PER_TASK] for first in range(0, len(files), FILES_PER_TASK)]


def decoding(files: Sequence[Path], threads: int) -> dict[str, Any]:
    with ThreadPoolExecutor(threads) as pool:
        begun = time.perf_counter()
        decoded = sum(pool.map(decode, tasks(files)))
        seconds = time.perf_counter() - begun
    return {"images_per_s": len(files) / seconds, "seconds": seconds, "bytes": decoded, "threads": threads}


def decoding_processes(
    files: Sequence[Path], workers: int, work: Callable[[Sequence[Path]], int] = decode
) -> dict[str, Any]:
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(work, [files[:1]] * 8 * workers))  # all of them are there, and have imported what they use
        begun = time.perf_counter()
        decoded = sum(pool.map(work, tasks(files)))
        seconds = time.perf_counter() - begun
    return {"images_per_s": len(files) / seconds, "seconds": seconds, "bytes": decoded, "processes": workers}


def decoding_parts(files: Sequence[Path], workers: int, recipe: Preprocessing = RECIPE) -> dict[str, Any]:
    return decoding_processes(files, workers, partial(decode_parts, recipe=recipe))


WAYS: dict[str, Callable[..., dict[str, Any]]] = {
    "threads": decoding,
    "processes": decoding_processes,
    "parts": decoding_parts,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--count", type=int)
    parser.add_argument("--workers", type=int, default=environment.describe()["cores"])
    parser.add_argument("--recipe", default=json.dumps(encode(RECIPE)))
    given = parser.parse_args()
    recipe = decode_record(Preprocessing, json.loads(given.recipe), "recipe")
    files = sorted(path for path in given.folder.iterdir() if not path.name.startswith("."))[: given.count]
    way = partial(decoding_parts, recipe=recipe) if given.way == "parts" else WAYS[given.way]
    print(json.dumps(way(files, given.workers)))


if __name__ == "__main__":
    main()
