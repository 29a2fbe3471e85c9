"""Results → table, JSON, CSV. Measures nothing."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from trtbatch.bench import BenchResult
from trtbatch.comparison import OutputResult
from trtbatch.files import atomic_file
from trtbatch.records import encode
from trtbatch.rows import named_rows
from trtbatch.verify import VerifyResult

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["bench_table", "footnotes", "verify_table", "write_csv", "write_json", "write_verdict"]

_NUMBERS = re.compile(r"\[[-+0-9.eE,\s]+\]")

CSV_FIELDS = (
    "batch",
    "mode",
    "samples_per_s",
    "ms_per_batch",
    "ms_per_sample",
    "speedup",
    "speedup_over",
    "cv",
    "noise",
    "iterations",
    "stable",
)


def bench_table(result: BenchResult, brief: bool = False) -> Table:
    """The table of a benchmark: one line per batch size and mode, times in ms; `brief` for narrow terminals."""
    from rich.table import Table

    where = result.device.get("gpu") or result.device.get("cpu") or "unknown device"
    title = f"{result.model.name} · {result.backend} {result.precision} · {where} · weights: {result.model.weights}"
    table = Table(title=title.replace("[", "\\["), title_justify="left", title_style="bold", caption_justify="left")
    percentiles = list(result.batches[0].summary.percentiles)[-1 if brief else 0 :]
    base = {row.speedup_over for row in result.batches}
    over = f"× batch {base.pop()}" if len(base) == 1 else "speed-up"
    several = len({row.mode for row in result.batches}) > 1
    for name in ("batch", *(("mode",) if several else ()), "samples/s", "ms/batch", *percentiles):
        table.add_column(name, justify="left" if name == "mode" else "right", no_wrap=True)
    for name in ("ms/sample", over, *(() if brief else ("CV", "runs")), "verdict"):
        table.add_column(name, justify="left" if name == "verdict" else "right", no_wrap=True)
    for row in result.batches:
        summary = row.summary
        table.add_row(
            str(row.batch),
            *((row.mode,) if several else ()),
            f"{row.samples_per_s:,.0f}" if row.samples_per_s >= 100 else f"{row.samples_per_s:.3g}",
            f"{summary.median:.3f}",
            *(f"{summary.percentiles[name]:.3f}" for name in percentiles),
            f"{row.ms_per_sample:.4f}",
            f"{row.speedup:.2f}",
            *(() if brief else (f"{summary.cv:.1%}", str(summary.iterations))),
            "stable" if summary.stable else "[yellow]unstable[/yellow]",
        )
    return table


def verify_table(result: VerifyResult, brief: bool = False) -> Table:
    """The table of a verification: one line per batch size and output, with its worst sample."""
    from rich.table import Table

    title = f"{result.engine} · {result.backend} {result.precision} · weights: {result.weights}"
    table = Table(title=title.replace("[", "\\["), title_justify="left", title_style="bold")
    left = ("output", "verdict")
    columns = ("max abs", "max rel", "L2 rel", "cosine", "top-1", "NaN/Inf")
    shown = [columns.index(name) for name in (("L2 rel", "top-1") if brief else columns)]
    for name in ("batch", "output", *(columns[index] for index in shown), "limit", "verdict"):
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    for output in result.outputs:
        worst = _worst(output)
        name = output.output.replace("[", "\\[")
        table.add_row(str(output.batch), name, *(worst[index] for index in shown), output.limit, _verdict(output))
    return table


def _worst(output: OutputResult) -> list[str]:
    """The largest errors over the samples, the smallest cosine, the agreement of the best class."""
    if not output.rows:
        return ["", "", "", "", "", ""]
    largest = [max(float(getattr(row, name)) for row in output.rows) for name in ("max_abs", "max_rel", "l2_rel")]
    strange = sum(row.nan for row in output.rows), sum(row.inf for row in output.rows)
    return [
        *(f"{value:.1e}" for value in largest),
        f"{min(float(row.cosine) for row in output.rows):.6f}",
        "" if output.top1_agreement is None else f"{output.top1_agreement:.1%}",
        f"{strange[0]}/{strange[1]}",
    ]


def _verdict(output: OutputResult) -> str:
    if output.passed:
        return "[green]right[/]"
    if output.shape != output.reference_shape:
        return f"[red]WRONG: shape {output.shape}, not {output.reference_shape}[/]"
    bad = [row.sample for row in output.rows if not row.passed]
    return f"[red]WRONG: {named_rows(bad)}[/]"


def write_verdict(result: VerifyResult, path: Path) -> None:
    """Everything that was compared, sample by sample."""
    with atomic_file(path) as made:
        made.write_text(json.dumps(encode(result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def footnotes(result: BenchResult) -> list[str]:
    """What the columns mean, which shapes ran, and what to do about unstable lines."""
    modes = [f"{mode}: {what}" for mode, what in result.timed.items()]
    lines = [*modes, "ms/batch is the median; samples/s = batch / median."]
    for row in (result.batches[0], *result.batches[-1:]):
        shapes = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in row.shapes.items())
        lines.append(f"executed at batch {row.batch}: {shapes}")
    if result.accuracy is not None:
        lines.append(f"accuracy: {result.accuracy}")
    few = min(row.summary.iterations for row in result.batches)
    largest = max((float(name[1:]) for name in result.batches[0].summary.percentiles), default=0.0)
    if largest < 100 and few * (100 - largest) < 100:
        more = "--min-time" if result.settings.get("iterations") is None else "--iterations"
        lines.append(f"{few} runs are too few for p{largest:g} to be more than the maximum: raise {more}.")
    unstable = [str(row.batch) for row in result.batches if not row.summary.stable]
    if unstable:
        lines.append(
            f"unstable at batch {', '.join(dict.fromkeys(unstable))}: the median is known to worse than 1 %, "
            "or it drifts; stop other programs, or raise --min-time."
        )
    return lines


def write_json(result: BenchResult, path: Path) -> None:
    """Everything, raw samples and environment included."""
    with atomic_file(path) as made:
        text = json.dumps(encode(result), indent=1, ensure_ascii=False)
        made.write_text(_NUMBERS.sub(_one_line, text) + "\n", encoding="utf-8")


def _one_line(numbers: re.Match[str]) -> str:
    """A list of numbers on one line, instead of thousands."""
    return re.sub(r"\s+", "", numbers[0])


def write_csv(result: BenchResult, path: Path) -> None:
    """One line per batch size and mode."""
    percentiles = list(result.batches[0].summary.percentiles)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*CSV_FIELDS, *(f"ms_{name}" for name in percentiles)])
    for row in result.batches:
        summary = row.summary
        values = (
            row.batch,
            row.mode,
            f"{row.samples_per_s:.6g}",
            f"{summary.median:.6g}",
            f"{row.ms_per_sample:.6g}",
            f"{row.speedup:.6g}",
            row.speedup_over,
            f"{summary.cv:.4g}",
            f"{summary.noise:.4g}",
            summary.iterations,
            summary.stable,
        )
        writer.writerow([*values, *(f"{value:.6g}" for value in summary.percentiles.values())])
    with atomic_file(path) as made:
        made.write_text(text.getvalue(), encoding="utf-8")
