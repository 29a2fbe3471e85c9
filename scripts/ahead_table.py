"""What it costs to decode photographs in processes and pass them on, against processes that decode and drop them.

    python scripts/ahead_table.py [--photos 1000] [--folder DIR] [--size 500x375] [--workers N] [--rounds 7]
                                  [--json FILE]

The photographs are those of ``scripts/folder_table.py``, made first where they are missing. In turns:

- *alone*: processes that decode them, and drop the pixels;
- *parts, alone*: the same, and of each no more than the crop needs, where libjpeg-turbo is there that can do it;
- *ahead*: as ``infer`` has a folder decoded for a preprocessor on a GPU; what comes is released at once.

The clock runs from a fifth of the photographs on, when processes have started, to the last one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.decode_run import decode, decode_parts, tasks
from scripts.decode_table import RECIPE
from scripts.folder_table import make_folder, spread
from scripts.performance import ratio
from trtbatch import environment, optional
from trtbatch.photographs.arena import Arena
from trtbatch.photographs.decoders import packed_ahead, packed_team
from trtbatch.photographs.images import Skipped
from trtbatch.photographs.operands import MAX_SIZE, Packing, operands
from trtbatch.photographs.parts import part_decoder

Bytes = NDArray[np.uint8]

LIBRARIES = ("pillow", "simplejpeg", "turbojpeg")
SKIPPED = 5
"""One in so many photographs isn't timed: the first."""


class Taker:
    """Takes photographs as a preprocessor on a GPU does, and does nothing with them."""

    recipe = RECIPE
    max_size = MAX_SIZE

    def __init__(self) -> None:
        self.arena = Arena(lambda count: np.empty(count, np.uint8))
        self._packing = Packing(self)
        self.beside = self._packing.bytes

    def prepare(self, pixels: Bytes, beside: Bytes) -> None:
        given = operands(self.recipe, pixels, self.max_size)
        self._packing.fill(beside, given.rows, given.columns)

    def laid(self, memory: Bytes, at: int, *numbers: int) -> None:
        """Nothing is left to do."""

    def lock(self, memory: Bytes) -> Callable[[], None]:
        """There is no GPU to lock it for."""
        return lambda: None


def rate(counts: Iterable[int], total: int) -> float:
    """Photographs a second, told how many have come, time after time."""
    come, first, begun, ended = 0, 0, 0.0, 0.0
    for count in counts:
        come += count
        ended = time.perf_counter()
        if not begun and SKIPPED * come >= total:
            first, begun = come, ended
    if come != total:
        raise RuntimeError(f"{come} of {total} photographs have come")
    return (total - first) / (ended - begun)


def alone(files: Sequence[Path], workers: int, work: Callable[[Sequence[Path]], int] = decode) -> float:
    given = tasks(files)
    with ProcessPoolExecutor(workers) as pool:
        counts = (len(task) for task, _ in zip(given, pool.map(work, given)))
        return rate(counts, len(files))


def ahead(files: Sequence[Path], workers: int) -> float:
    taker = Taker()
    names = [file.name for file in files]
    team = packed_team(taker.recipe, taker.max_size, workers)
    with closing(packed_ahead(files, names, taker, workers, team=team)) as items:

        def counts() -> Iterator[int]:
            for item in items:
                if isinstance(item, Skipped):
                    raise RuntimeError(f"{item.name}: {item.reason}")
                item.release()
                yield 1

        return rate(counts(), len(files))


def measure(files: Sequence[Path], workers: int, rounds: int) -> dict[str, list[float]]:
    """Of each way its rates, in rounds of alternating order; the first round, which warms up, isn't counted."""
    ways: dict[str, Callable[[Sequence[Path], int], float]]
    ways = {"alone": alone, "parts, alone": partial(alone, work=decode_parts), "ahead": ahead}
    if part_decoder() is None:
        del ways["parts, alone"]
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
            speed = ways[name](files, workers)
            if turn:
                found[name].append(speed)
    return found


def markdown(rounds: dict[str, list[float]]) -> str:
    """A line for each way: photographs a second, and over those of decoding alone."""
    lines = ["| way | images/s | / alone |", "|---|---:|---:|"]
    for name, speeds in rounds.items():
        lines.append(f"| {name} | {spread(speeds)} | {ratio(speeds, rounds['alone']):.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="of the photographs [default: photographs-SIZE]")
    parser.add_argument("--size", default="500x375")
    parser.add_argument("--workers", type=int, default=environment.describe()["cores"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    width, height = (int(part) for part in given.size.split("x"))
    folder = given.folder or Path(f"photographs-{given.size}")
    files = make_folder(folder, given.photos, width, height)
    rounds = measure(files, given.workers, given.rounds)
    print(markdown(rounds))
    if given.json is not None:
        result: dict[str, Any] = {
            "script": "scripts/ahead_table.py",
            "size": given.size,
            "photos": given.photos,
            "mean_bytes": statistics.mean(file.stat().st_size for file in files),
            "workers": given.workers,
            "libraries": {name: optional.version(name) for name in LIBRARIES},
            "figures": {name: ratio(speeds, rounds["alone"]) for name, speeds in rounds.items()},
            "load_average": os.getloadavg(),
            "environment": environment.describe(),
            "rounds": rounds,
        }
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
