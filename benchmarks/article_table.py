"""The README's table: the batches of the V100 article beside this machine's GPU, in one command.

    python -m benchmarks.article_table [ENGINE] [--json FILE]
    python -m benchmarks.article_table --from FILE

Benchmarks the engine (the newest in engines/ by default) at the article's batch sizes and prints Markdown:
the article's time for a whole batch on a V100, this GPU's, and both per sample, in ms. With ``--from`` it prints
the table of a run that was kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from trtbatch.bench import BenchRequest, BenchResult, bench
from trtbatch.records import decode, encode

ARTICLE_MS = {1: 1.57, 2: 1.67, 4: 1.78, 6: 2.67, 8: 2.81, 12: 3.83, 16: 4.80, 24: 6.43, 32: 8.65}
"""resnet18 on a V100: ms for the whole batch, all time, as the article that this project began with gives them."""


def markdown(result: BenchResult) -> str:
    """The table, with what it was measured on above it."""
    gpu = result.device.get("gpu") or result.device.get("cpu", "CPU")
    driver = f", driver {result.environment['driver']}" if result.environment.get("driver") else ""
    version = result.tools.get(result.backend, "")
    lines = [
        f"{result.model.name}, {result.backend} {version} {result.precision}, {gpu}{driver}, "
        f"commit {result.environment['commit']}",
        "",
        f"| batch | V100, article: ms/batch | ms/sample | {gpu}: ms/batch | p99 | ms/sample | samples/s |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result.batches:
        article = ARTICLE_MS[row.batch]
        lines.append(
            f"| {row.batch} | {article:.2f} | {article / row.batch:.2f} | {row.summary.median:.3f} "
            f"| {row.summary.percentiles['p99']:.3f} | {row.ms_per_sample:.4f} | {row.samples_per_s:,.0f} |"
        )
    return "\n".join(lines)


def kept(path: Path) -> BenchResult:
    """The result that ``--json`` wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    del data["script"], data["article_ms"]
    return decode(BenchResult, data, path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path, nargs="?")
    parser.add_argument("--json", type=Path, help="everything, raw samples too")
    parser.add_argument("--from", dest="kept", type=Path, help="print the table of this result instead")
    options = parser.parse_args()
    if options.kept is not None:
        print(markdown(kept(options.kept)))
        return
    result = bench(BenchRequest(options.engine, list(ARTICLE_MS)))
    print(markdown(result))
    if options.json is not None:
        text = json.dumps({"script": "benchmarks/article_table.py", "article_ms": ARTICLE_MS, **encode(result)})
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
