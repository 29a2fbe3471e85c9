"""Measure how long building an engine with several profiles takes, and whether faster ways give as fast an engine.

    python -m benchmarks.build_times ONNX [--precision fp16] [--batch 1,2,4,8,16,32] [--ways one,own,...] [--json FILE]

Every way but the last starts without a timing cache. Needs a GPU that nothing else uses. The ways:

* one: a single profile, with opt in the middle; own: the same without the tactics of cuDNN and cuBLAS; own8: like own,
  with each tactic's time averaged over eight runs; level2: like one, at builder optimization level 2.
* several: a profile for each batch, built in the fastest of these ways that is nowhere more than 2 % slower than one.
* cached: like several, with the timing cache that it left.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.summary import write
from trtbatch.builder.build import BuildRequest, build
from trtbatch.core.batches import Profile, parse_batches
from trtbatch.core.profiles import auto_profiles
from trtbatch.core.sidecar import Artifact
from trtbatch.core.store import load
from trtbatch.util import environment

OPTIONS: dict[str, dict[str, Any]] = {
    "one": {},
    "own": {"own_kernels": True},
    "own8": {"own_kernels": True, "timing_iterations": 8},
    "level2": {"opt_level": 2},
}
"""Ways to build the single profile."""


def request(
    way: str, options: dict[str, Any], onnx: Path, precision: str, batches: list[int], folder: Path
) -> BuildRequest:
    """Return the build request of a way."""
    several = way not in OPTIONS
    middle = Profile(min(batches), sorted(batches)[len(batches) * 2 // 3], max(batches))
    cache = folder / "times.timing"
    if way == "several":
        cache.unlink(missing_ok=True)
    return BuildRequest(
        onnx=onnx,
        precision=precision,
        profiles=auto_profiles(batches, min(batches)) if several else (middle,),
        batches=tuple(batches),
        timing_cache=cache if several else None,
        keep_timings=several,
        output=folder / f"{way}.engine",
        **options,
    )


def fastest_way(rows: list[dict[str, Any]]) -> str:
    """Return the quickest way to build a single profile that is nowhere more than 2 % slower than ``one``."""
    base = rows[0]["ms"]
    as_fast = [row for row in rows if all(row["ms"][batch] <= 1.02 * ms for batch, ms in base.items())]
    return str(min(as_fast, key=lambda row: float(row["build_seconds"]))["way"])


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return a line for each way: build time in s and relative to ``one``, MiB, and the measured ms per batch."""
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
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--batch", default="1,2,4,8,16,32")
    parser.add_argument("--ways", default="one,own,level2,several,cached")
    parser.add_argument("--folder", type=Path, default=Path("engines/ways"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    source = load(options.onnx, "onnx")
    rows: list[dict[str, Any]] = []
    made: Artifact | None = None
    batches, chosen = parse_batches(options.batch), "one"
    for way in options.ways.split(","):
        if way == "several":
            chosen = fastest_way(rows)
        how = OPTIONS[way if way in OPTIONS else chosen]
        made = build(request(way, how, source.path, options.precision, batches, options.folder))
        sidecar = made.sidecar
        rows.append(
            {
                "way": way,
                "profiles": len(sidecar.engine.profiles),
                "build_seconds": sidecar.build.details["build_seconds"],
                "mib": sidecar.artifact.bytes / 2**20,
                "ms": {str(row.batch): row.ms for row in sidecar.engine.table},
            }
        )
        print(rows[-1], flush=True)
    print(markdown(rows), f"\nseveral and cached are built like {chosen}")
    if options.json is not None and made is not None:
        result = {
            "script": "benchmarks/build_times.py",
            "model": source.sidecar.model.name,
            "precision": options.precision,
            "several_like": chosen,
            "device": made.sidecar.build.device,
            "tools": made.sidecar.build.tools,
            "environment": environment.describe(),
            "rows": rows,
        }
        write(options.json, result)


if __name__ == "__main__":
    main()
