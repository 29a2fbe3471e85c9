"""Predict a folder of photographs once, and say how fast and in how much memory.

    python scripts/folder_run.py ENGINE FOLDER [--count N] [--batch 128] [--preprocessor FILE]

Prints JSON. The rate is that of ``infer``: from the first read to the last row written, the engine being loaded. The
predictions go to a CSV file, as they would in use. Memory is that of this process, which therefore predicts once.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trtbatch.infer import InferRequest, InferResult, infer


def memory(status: str, name: str) -> int:
    """Bytes of a line of ``/proc/self/status``, as ``VmHWM:  1932 kB``.

    Raises:
        ValueError: there is no such line.
    """
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise ValueError(f"/proc/self/status has no {name}")


def own_memory(name: str) -> int:
    # Not getrusage: its maximum is inherited from the process that started this one.
    return memory(Path("/proc/self/status").read_text(encoding="ascii", errors="replace"), name)


EVERY = 8
"""Batches from one look at the memory to the next: a look takes as long as some photographs."""


class Watch:
    """What the process holds after each eighth batch, and how many threads it had after the first."""

    def __init__(self) -> None:
        self.resident: list[int] = []
        self.threads = 0
        self._batches = 0

    def __call__(self, done: int, total: int) -> None:
        self._batches += 1
        if self._batches % EVERY != 1 and done < total:
            return
        self.resident.append(own_memory("VmRSS"))
        self.threads = self.threads or threading.active_count()


def report(result: InferResult, watch: Watch) -> dict[str, Any]:
    return {
        "images_per_s": result.samples / result.seconds,
        "samples": result.samples,
        "seconds": result.seconds,
        "executed": {str(size): times for size, times in sorted(result.executed.items())},
        "busy": result.busy,
        "bound": result.bound,
        "threads": watch.threads,
        # Linux adds up what its cores counted: either may be some pages behind.
        "peak_bytes": max(own_memory("VmHWM"), *watch.resident),
        "first_bytes": watch.resident[0],
        "last_bytes": watch.resident[-1],
        "growth_bytes": watch.resident[-1] - watch.resident[0],
        "late_growth_bytes": watch.resident[-1] - watch.resident[len(watch.resident) // 2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("folder")
    parser.add_argument("--count", type=int)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--preprocessor", type=Path)
    given = parser.parse_args()
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        request = InferRequest(
            given.engine,
            given.folder,
            batch=given.batch,
            count=given.count,
            output=Path(folder) / "predictions.csv",
            strict=True,
            preprocessor=given.preprocessor,
            progress=watch,
        )
        result = infer(request)
    print(json.dumps(report(result, watch)))


if __name__ == "__main__":
    main()
