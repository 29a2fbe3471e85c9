"""Decode a folder of photographs once, and say how fast: to RGB pixels, which are dropped.

    python scripts/decode_run.py FOLDER {threads|processes} [--count N] [--workers N]

Prints JSON. The rate is that of decoding: threads or processes have started before the clock.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trtbatch import environment
from trtbatch.photographs.decoding import read_pixels

FILES_PER_TASK = 16


def decode(files: Sequence[Path]) -> int:
    """Decode them one after the other, and drop the pixels; their bytes."""
    return sum(read_pixels(file).nbytes for file in files)


def tasks(files: Sequence[Path]) -> list[Sequence[Path]]:
    return [files[first : first + FILES_PER_TASK] for first in range(0, len(files), FILES_PER_TASK)]


def decoding(files: Sequence[Path], threads: int) -> dict[str, Any]:
    with ThreadPoolExecutor(threads) as pool:
        begun = time.perf_counter()
        decoded = sum(pool.map(decode, tasks(files)))
        seconds = time.perf_counter() - begun
    return {"images_per_s": len(files) / seconds, "seconds": seconds, "bytes": decoded, "threads": threads}


def decoding_processes(files: Sequence[Path], workers: int) -> dict[str, Any]:
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(decode, [files[:1]] * 8 * workers))  # all of them are there, and have imported what they use
        begun = time.perf_counter()
        decoded = sum(pool.map(decode, tasks(files)))
        seconds = time.perf_counter() - begun
    return {"images_per_s": len(files) / seconds, "seconds": seconds, "bytes": decoded, "processes": workers}


WAYS = {"threads": decoding, "processes": decoding_processes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--count", type=int)
    parser.add_argument("--workers", type=int, default=environment.describe()["cores"])
    given = parser.parse_args()
    files = sorted(path for path in given.folder.iterdir() if not path.name.startswith("."))[: given.count]
    print(json.dumps(WAYS[given.way](files, given.workers)))


if __name__ == "__main__":
    main()
