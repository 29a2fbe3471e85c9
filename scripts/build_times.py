"""How long an engine with several profiles takes to build, and whether a faster way gives as fast an engine.

    python scripts/build_times.py ONNX [--precision fp16] [--batch 1,2,4,8,16,32] [--ways one,plain,...] [--json FILE]

Every way starts without a timing cache. Needs a GPU that nothing else uses. The ways:

* one: a single profile, opt in the middle; threads: the same with eight threads for the builder.
* plain: a profile for each batch, tuned one after the other.
* parallel: the same, each profile first tuned in a process of its own, all at once.
* cached: the same again, with the timing cache that plain or parallel has left.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from trtbatch import environment
from trtbatch.artifacts import Artifact, load
from trtbatch.batches import Profile, parse_batches
from trtbatch.build import BuildRequest, build
from trtbatch.profiles import auto_profiles


def request(way: str, onnx: Path, precision: str, batches: list[int], folder: Path) -> BuildRequest:
    """What a way builds; the timing cache of `plain` and `parallel` is kept for `cached`."""
    several = auto_profiles(batches, min(batches))
    middle = Profile(min(batches), sorted(batches)[len(batches) * 2 // 3], max(batches))
    cache = folder / "times.timing"
    if way in ("plain", "parallel"):
        cache.unlink(missing_ok=True)
    return BuildRequest(
        onnx=onnx,
        precision=precision,
        profiles=(middle,) if way in ("one", "threads") else several,
        batches=tuple(batches),
        timing_cache=None if way in ("one", "threads") else cache,
        keep_timings=way not in ("one", "threads"),
        parallel_timing=way == "parallel",
        threads=8 if way == "threads" else None,
        output=folder / f"{way}.engine",
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line for each way: seconds, over those of ``one``, MiB, and the measured ms per batch."""
    batches = list(rows[0]["ms"])
    base = next((row["build_seconds"] for row in rows if row["way"] == "one"), None)
    head = ["way", "profiles", "build, s", "× one", "MiB", *(f"batch {batch}, ms" for batch in batches)]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for row in rows:
        times = [f"{row['ms'][batch]:.3f}" for batch in batches]
        over = "" if base is None else f"{row['build_seconds'] / base:.2f}"
        cells = [row["way"], str(row["profiles"]), f"{row['build_seconds']:.1f}", over, f"{row['mib']:.1f}", *times]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--batch", default="1,2,4,8,16,32")
    parser.add_argument("--ways", default="one,threads,plain,parallel,cached")
    parser.add_argument("--folder", type=Path, default=Path("engines/ways"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    source = load(options.onnx, "onnx")
    rows: list[dict[str, Any]] = []
    made: Artifact | None = None
    for way in options.ways.split(","):
        made = build(request(way, source.path, options.precision, parse_batches(options.batch), options.folder))
        sidecar = made.sidecar
        rows.append(
            {
                "way": way,
                "profiles": len(sidecar.profiles),
                "build_seconds": sidecar.build["build_seconds"],
                "mib": sidecar.artifact.bytes / 2**20,
                "ms": {str(row.batch): row.ms for row in sidecar.table},
            }
        )
        print(rows[-1], flush=True)
    print(markdown(rows))
    if options.json is not None and made is not None:
        result = {
            "script": "scripts/build_times.py",
            "model": source.sidecar.model.name,
            "precision": options.precision,
            "device": made.sidecar.device,
            "tools": made.sidecar.tools,
            "environment": environment.describe(),
            "gpu": environment.gpu_state(),
            "rows": rows,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
