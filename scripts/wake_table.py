"""How long a thread waits for a core, while processes keep all of them busy, by how far these stand back.

    python scripts/wake_table.py [--nice 0,5,10] [--processes N] [--waits 600] [--rounds 3] [--json FILE]

The thread sleeps half a millisecond and works as long, again and again, as one does that passes on what the processes
make. How much later than asked it goes on is what it has waited. Needs a machine that nothing else keeps busy.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trtbatch import environment

SLEEP = 0.0005
"""Seconds; as long it works."""

BUSY = "import os, sys\nos.nice(int(sys.argv[1]))\nprint(flush=True)\nwhile True:\n    sum(range(10_000))"


def waits(nice: int, processes: int, count: int) -> list[float]:
    """Microseconds, of each time."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY, str(nice)], stdout=subprocess.PIPE) for _ in range(processes)]
    try:
        for process in busy:
            assert process.stdout is not None
            process.stdout.readline()  # it has begun
        found = []
        for _ in range(count):
            begun = time.perf_counter()
            time.sleep(SLEEP)
            woken = time.perf_counter()
            found.append((woken - begun - SLEEP) * 1e6)
            while time.perf_counter() < woken + SLEEP:
                pass
        return found
    finally:
        for process in busy:
            process.kill()
            process.communicate()


def measure(nices: Sequence[int], processes: int, count: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each, of all rounds together."""
    found: dict[int, list[float]] = {nice: [] for nice in nices}
    for turn in range(rounds):
        for nice in list(nices)[:: 1 if turn % 2 == 0 else -1]:
            found[nice] += waits(nice, processes, count)
    return [
        {
            "nice": nice,
            **{f"p{q}_us": float(np.percentile(values, q)) for q in (50, 90, 99)},
            "mean_us": np.mean(values),
        }
        for nice, values in found.items()
    ]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each."""
    lines = ["| nice | p50, µs | p99, µs | mean, µs |", "|---:|---:|---:|---:|"]
    for row in rows:
        lines.append(f"| {row['nice']} | {row['p50_us']:,.0f} | {row['p99_us']:,.0f} | {row['mean_us']:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nice", default="0,5,10")
    parser.add_argument("--processes", type=int, default=environment.describe()["cores"])
    parser.add_argument("--waits", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = measure([int(each) for each in given.nice.split(",")], given.processes, given.waits, given.rounds)
    print(markdown(rows))
    if given.json is not None:
        data = {"script": "scripts/wake_table.py", "processes": given.processes, "waits": given.waits * given.rounds}
        data |= {"rows": rows, "load_average": os.getloadavg(), "environment": environment.describe()}
        given.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
