"""Print the README's table: the V100 article's batch sizes on this machine's GPU.

    python -m benchmarks.article_table [ENGINE] [--json FILE]
    python -m benchmarks.article_table --from FILE

Times the engine (by default the newest in engines/) at the article's batch sizes and prints Markdown: the article's
time for a whole batch on a V100, this GPU's, and both per sample, in ms. With ``--from`` it prints the table of a saved
run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.summary import write
from trtbatch.benchmark.bench import BenchRequest, BenchResult, bench

ARTICLE_MS = {1: 1.57, 2: 1.67, 4: 1.78, 6: 2.67, 8: 2.81, 12: 3.83, 16: 4.80, 24: 6.43, 32: 8.65}
"""Time of resnet18 on a V100 by batch size, in ms per batch, from the article that this project began with."""


def summary(result: BenchResult) -> dict[str, Any]:
    """Return what ``--json`` writes: the figures of the table, and what they were measured on."""
    rows = [
        {
            "batch": row.batch,
            "ms": row.summary.median,
            "p99_ms": row.summary.percentiles["p99"],
            "ms_per_sample": row.ms_per_sample,
            "samples_per_s": row.samples_per_s,
        }
        for row in result.batches
    ]
    return {
        "script": "benchmarks/article_table.py",
        "article_ms": ARTICLE_MS,
        "model": result.model.name,
        "backend": result.backend,
        "precision": result.precision,
        "timed": result.timed,
        "device": result.device,
        "tools": result.tools,
        "environment": result.environment,
        "rows": rows,
    }


def markdown(data: Mapping[str, Any]) -> str:
    """Return the table, under a line that names what it was measured on."""
    device, environment, backend = data["device"], data["environment"], data["backend"]
    gpu = device.get("gpu") or device.get("cpu", "CPU")
    driver = f", driver {environment['driver']}" if environment.get("driver") else ""
    version = data["tools"].get(backend, "")
    lines = [
        f"{data['model']}, {backend} {version} {data['precision']}, {gpu}{driver}, commit {environment['commit']}",
        "",
        f"| batch | V100, article: ms/batch | ms/sample | {gpu}: ms/batch | p99 | ms/sample | samples/s |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in data["rows"]:
        batch, article = row["batch"], ARTICLE_MS[row["batch"]]
        lines.append(
            f"| {batch} | {article:.2f} | {article / batch:.2f} | {row['ms']:.3f} | {row['p99_ms']:.3f} "
            f"| {row['ms_per_sample']:.4f} | {row['samples_per_s']:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path, nargs="?")
    parser.add_argument("--json", type=Path, help="the figures, and what they were measured on")
    parser.add_argument("--from", dest="kept", type=Path, help="print the table of this result instead")
    options = parser.parse_args()
    if options.kept is not None:
        print(markdown(json.loads(options.kept.read_text(encoding="utf-8"))))
        return
    found = summary(bench(BenchRequest(options.engine, list(ARTICLE_MS))))
    print(markdown(found))
    if options.json is not None:
        write(options.json, found)


if __name__ == "__main__":
    main()
