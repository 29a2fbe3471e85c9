"""Turn results into tables, JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtbatch.benchmark.bench import THROTTLED, BatchResult, BenchResult
from trtbatch.benchmark.paired import PairedResult, ProfileLine, ProfilesResult
from trtbatch.benchmark.run import EngineUnderTest
from trtbatch.core.rows import named_rows
from trtbatch.core.sidecar import ModelRecord
from trtbatch.reporting.series import rate
from trtbatch.util.files import atomic_file
from trtbatch.util.jsonfile import write_record
from trtbatch.util.statistics import DRIFT_LIMIT, ENQUEUE_LIMIT, MEMORY_LIMIT, MIN_ROUNDS, NOISE_LIMIT, SAME_LIMIT
from trtbatch.verification.comparison import OutputResult
from trtbatch.verification.verify import VerifyResult

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "bench_table",
    "footnotes",
    "paired_notes",
    "paired_table",
    "parts_table",
    "profiles_notes",
    "profiles_table",
    "verify_table",
    "write_csv",
    "write_json",
    "write_verdict",
]

AnyBench = BenchResult | PairedResult | ProfilesResult


_LEFT = frozenset({"mode", "bound", "verdict", "output", "A is"})
"""Columns of words, which are aligned left."""

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

CSV_LATER_FIELDS = ("profile", "verdict", "bound", "enqueue_ms", "h2d_ms", "gpu_ms", "d2h_ms", "drift", "bad")
"""Fields after the percentiles, added later, so that programs that read columns by number still work."""


def _table(title: str, columns: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title=title.replace("[", "\\["), title_justify="left", title_style="bold", caption_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=True)
    return table


def _title(model: ModelRecord, backend: str, precision: str, device: dict[str, str]) -> str:
    where = device.get("gpu") or device.get("cpu") or "unknown device"
    return f"{model.name} · {backend} {precision} · {where} · weights: {model.weights}"


def bench_table(result: BenchResult, brief: bool = False) -> Table:
    """Return the table of a benchmark: one line per batch size and mode, times in ms; `brief` for narrow terminals."""
    percentiles = list(result.batches[0].summary.percentiles)[-1 if brief else 0 :]
    base = {row.speedup_over for row in result.batches}
    over = f"× batch {base.pop()}" if len(base) == 1 else "speed-up"
    several = len({row.mode for row in result.batches}) > 1
    narrow = brief and several
    shown = {
        "batch": True,
        "mode": several,
        "profile": not brief and len(result.profiles) > 1,
        "samples/s": True,
        "ms/batch": True,
        **dict.fromkeys(percentiles, True),
        "ms/sample": not narrow,
        over: not narrow,
        "CV": not brief,
        "runs": not brief,
        "bound": not brief and any(row.bound is not None for row in result.batches),
        "verdict": True,
    }
    columns = [name for name, wanted in shown.items() if wanted]
    table = _table(_title(result.model, result.backend, result.precision, result.device), columns)
    for row in result.batches:
        cells = _cells(row, over)
        table.add_row(*(cells[name] for name in columns))
    return table


def _cells(row: BatchResult, over: str) -> dict[str, str]:
    """Return one line of the table, by column."""
    summary = row.summary
    return {
        "batch": str(row.batch),
        "mode": row.mode,
        "profile": str(row.profile),
        "samples/s": rate(row.samples_per_s),
        "ms/batch": f"{summary.median:.3f}",
        **{name: f"{value:.3f}" for name, value in summary.percentiles.items()},
        "ms/sample": f"{row.ms_per_sample:.4f}",
        over: f"{row.speedup:.2f}",
        "CV": f"{summary.cv:.1%}",
        "runs": str(summary.iterations),
        "bound": row.bound or "",
        "verdict": "stable" if _is_stable(row) else f"[yellow]{row.verdict or 'unstable'}[/yellow]",
    }


def _is_stable(row: BatchResult) -> bool:
    return row.summary.stable and row.verdict != THROTTLED


def parts_table(result: BenchResult) -> Table | None:
    """Return a table of ms for copies and compute, each run alone, next to the mode's time; None without such times."""
    rows = [row for row in result.batches if row.parts_ms]
    if not rows:
        return None
    several = len({row.mode for row in rows}) > 1
    table = _table("", ("batch", *(("mode",) if several else ()), "h2d", "gpu", "d2h", "sum", "ms/batch"))
    for row in rows:
        parts = [row.parts_ms[name] for name in ("h2d", "gpu", "d2h")]
        times = (*parts, sum(parts), row.summary.median)
        table.add_row(str(row.batch), *((row.mode,) if several else ()), *(f"{value:.3f}" for value in times))
    return table


def profiles_table(result: ProfilesResult, brief: bool = False) -> Table:
    """Return the table of a comparison of profiles: ms per batch on each profile that holds the batch.

    With `brief`, the columns of the single profiles are left out where profiles differ.
    """
    several = len({line.mode for line in result.lines}) > 1
    profiles = (
        []
        if brief and _profiles_differ(result)
        else [f"{index} ({profile})" for index, profile in enumerate(result.profiles)]
    )
    verdicts = ("fastest", "ms/batch", "widest", "costs", "verdict") if _profiles_differ(result) else ()
    columns = ("batch", *(("mode",) if several else ()), *profiles, *verdicts)
    table = _table(_title(result.model, result.backend, result.precision, result.device), columns)
    for line in result.lines:
        table.add_row(
            str(line.batch),
            *((line.mode,) if several else ()),
            *(f"{line.ms[str(index)]:.3f}" if str(index) in line.ms else "" for index in range(len(profiles))),
            *(_fastest(line) if verdicts else ()),
        )
    return table


def _profiles_differ(result: ProfilesResult) -> bool:
    """Return whether one profile can be faster than another; on ONNX Runtime none can."""
    return any(line.fastest is not None for line in result.lines)


def _fastest(line: ProfileLine) -> tuple[str, ...]:
    if line.fastest is None or line.relative is None:
        return ("",) * 5
    return (
        str(line.fastest),
        f"{line.ms[str(line.fastest)]:.3f}",
        str(line.widest),
        _percent(line.relative.ratio),
        "" if line.widest == line.fastest else line.relative.verdict,
    )


def paired_table(result: PairedResult) -> Table:
    """Return the table of a paired comparison: ms per batch, A's time over B's with its interval, the verdict on A."""
    several = len({line.mode for line in result.lines}) > 1
    columns = ("batch", *(("mode",) if several else ()), "A: ms/batch", "B: ms/batch", "A / B", "95 % interval", "A is")
    sides = (f"{name}: {side.engine} ({side.backend} {side.precision})" for name, side in _sides(result))
    table = _table(" · ".join(sides), columns)
    colours = {"FASTER": "green", "SLOWER": "red", "UNCLEAR": "yellow", "SAME": "bold"}
    for line in result.lines:
        relative = line.relative
        table.add_row(
            str(line.batch),
            *((line.mode,) if several else ()),
            f"{line.ms_a:.3f}",
            f"{line.ms_b:.3f}",
            f"{relative.ratio:.3f}",
            f"{relative.low:.3f}–{relative.high:.3f}",
            f"[{colours[relative.verdict]}]{relative.verdict}[/]",
        )
    return table


def _sides(result: PairedResult) -> tuple[tuple[str, EngineUnderTest], ...]:
    return ("A", result.a), ("B", result.b)


def _percent(ratio: float) -> str:
    return f"{(ratio - 1) * 100:+.1f} %"


def verify_table(result: VerifyResult, brief: bool = False) -> Table:
    """Return the table of a verification: one line per batch size and output, with its worst figures."""
    title = f"{result.engine} · {result.backend} {result.precision} · weights: {result.weights}"
    columns = ("max abs", "max rel", "L2 rel", "cosine", "top-1", "NaN/Inf")
    shown = [columns.index(name) for name in (("L2 rel", "top-1") if brief else columns)]
    table = _table(title, ("batch", "output", *(columns[index] for index in shown), "limit", "verdict"))
    for output in result.outputs:
        worst = _worst(output)
        name = output.output.replace("[", "\\[")
        table.add_row(str(output.batch), name, *(worst[index] for index in shown), output.limit, _verdict(output))
    return table


def _worst(output: OutputResult) -> list[str]:
    """Return the largest errors, the smallest cosine, the agreement of the best class, and counts of NaN and Inf."""
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
    """Write everything that was compared, sample by sample, as JSON."""
    write_record(result, path)


def footnotes(result: BenchResult) -> list[str]:
    """Return notes on the columns, the executed shapes, the bounds, and what to do about unstable lines."""
    lines = [*_timed(result), "ms/batch is the median; samples/s = batch / median."]
    for row in {row.batch: row for row in (result.batches[0], result.batches[-1])}.values():
        shapes = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in row.shapes.items())
        lines.append(f"executed at batch {row.batch}: {shapes}")
    if result.accuracy is not None:
        lines.append(f"accuracy: {result.accuracy}")
    lines += [*_profile_origins(result), *_bounds(result), *_few(result), *_clocks(result), *_unstable(result)]
    return lines


def _timed(result: AnyBench) -> list[str]:
    return [f"{mode}: {what}" for mode, what in result.timed.items()]


def _profile_origins(result: BenchResult | PairedResult) -> list[str]:
    """Return how the profiles were chosen, unless the request or the engine left no choice."""
    found = {"profile": result.origins.get("profile"), "profile of B": result.origins.get("profile_b")}
    return [f"{name}: {origin}" for name, origin in found.items() if origin not in (None, "given", "the only one")]


def _bounds(result: BenchResult) -> list[str]:
    """Return the bounds of the lines, each with its threshold."""
    rules = {
        "enqueue-bound": f"the CPU's median time of a launch is over {ENQUEUE_LIMIT:g} × the GPU's: "
        "try `modes=['graph']`, or larger batches",
        "copy-bound": "the larger of h2d and d2h takes at least as long as gpu: move fewer bytes (uint8 inputs), or "
        "overlap the copies (`modes=['throughput']`)",
        "memory-bound": f"moving what the products read and write takes over {MEMORY_LIMIT:g} × the GPU's time at the "
        "full bandwidth of its memory: narrower types, or fewer bytes between layers",
        "compute-bound": f"none of these: launches take up to {ENQUEUE_LIMIT:g} × the GPU's time, copies less than gpu",
    }
    lines = []
    for bound, rule in rules.items():
        rows = [row for row in result.batches if row.bound == bound]
        if rows:
            lines.append(f"{bound} ({_named(rows)}): {rule}")
    if any(row.parts_ms for row in result.batches):
        lines.append("h2d, gpu, d2h: medians of a batch's upload, compute and download, each after the other")
    return lines


def _few(result: BenchResult) -> list[str]:
    few = min(row.summary.iterations for row in result.batches)
    largest = max((float(name[1:]) for name in result.batches[0].summary.percentiles), default=0.0)
    if largest >= 100 or few * (100 - largest) >= 100:
        return []
    more = "`min_time`" if result.settings.get("iterations") is None else "`iterations`"
    return [f"{few} runs are too few for p{largest:g} to be more than the maximum: raise {more}."]


def _clocks(result: BenchResult) -> list[str]:
    """Return notes on lines with bad samples: they were left out, or kept where more than half are bad."""
    lines = []
    for row in result.batches:
        if row.bad:
            count = sum(end - first for first, end in row.bad)
            what = "more than half, so that all are in its figures" if row.verdict == THROTTLED else "left out"
            lines.append(
                f"batch {row.batch}, {row.mode}: {count} of {len(row.samples_ms)} runs are bad "
                f"({'; '.join(row.faults)}): {what}"
            )
    return lines


def _unstable(result: BenchResult) -> list[str]:
    """Return what was wanted and what was reached, where lines aren't stable."""
    rows = [row for row in result.batches if not _is_stable(row)]
    if not rows:
        return []
    settings = result.settings
    wanted = f"wanted: the median to {float(settings.get('max_noise', NOISE_LIMIT)) * 100:g} %, and a drift of at most "
    wanted += f"{DRIFT_LIMIT * 100:g} %"
    if settings.get("iterations") is not None:
        wanted, more = f"{wanted}, in {settings['iterations']} runs", "`iterations`"
    else:
        wanted, more = f"{wanted}, within {float(settings.get('time_out_s', 0)):g} s", "`min_time` or `time_out`"
    reached = [
        f"batch {row.batch}, {row.mode}: {row.summary.noise_words}, drift {row.summary.drift * 100:+.1f} %"
        for row in rows
    ]
    return [
        f"unstable at {_named(rows)}; {wanted}; reached: {'; '.join(reached)}. Stop other programs, or raise {more}."
    ]


def _named(rows: Sequence[BatchResult]) -> str:
    """Format lines as ``batch 1, 2 (async), 4 (graph)``."""
    by_mode: dict[str, list[str]] = {}
    for row in rows:
        by_mode.setdefault(row.mode, []).append(str(row.batch))
    return "batch " + ", ".join(f"{', '.join(batches)} ({mode})" for mode, batches in by_mode.items())


def profiles_notes(result: ProfilesResult) -> list[str]:
    """Return notes on what the columns mean, and on rounds with unsteady GPU clocks."""
    return [
        *_timed(result),
        f"Each figure is the median of {result.settings['rounds']} rounds, the profiles in turns.",
        *_told_apart(result),
        *_bad_rounds(result),
    ]


def _told_apart(result: ProfilesResult) -> list[str]:
    if not _profiles_differ(result):
        return ["ONNX Runtime runs all profiles alike: what differs here is chance, and none is the fastest."]
    return [
        "widest: of the profiles that hold the batch, the one that holds the most batch sizes; costs: its time over "
        "the fastest one's, as a median of the rounds; " + _rule("it is"),
    ]


def paired_notes(result: PairedResult) -> list[str]:
    """Return notes on what the columns mean, and on rounds with unsteady GPU clocks."""
    return [
        *_timed(result),
        f"A / B is the median, over {result.settings['rounds']} rounds in turns, of A's median time over B's; "
        + _rule("A is"),
        *_profile_origins(result),
        *_bad_rounds(result),
    ]


def _rule(subject: str) -> str:
    return (
        f"{subject} SAME where the 95 % interval of the ratio lies within 1 ± {SAME_LIMIT * 100:g} %, FASTER where it "
        f"lies below 1, SLOWER where it lies above, else UNCLEAR, as with fewer than {MIN_ROUNDS} rounds."
    )


def _bad_rounds(result: PairedResult | ProfilesResult) -> list[str]:
    return [
        f"batch {line.batch}, {line.mode}: the GPU's clocks didn't hold in {len(line.bad)} of the rounds"
        for line in result.lines
        if line.bad
    ]


def write_json(result: AnyBench, path: Path) -> None:
    """Write everything as JSON, raw samples and environment included."""
    write_record(result, path)


def write_csv(result: AnyBench, path: Path) -> None:
    """Write one line per batch size and mode as CSV; for a comparison of profiles, also one per profile."""
    if isinstance(result, BenchResult):
        lines = _bench_lines(result)
    else:
        lines = _paired_lines(result) if isinstance(result, PairedResult) else _profile_lines(result)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    with atomic_file(path) as made:
        made.write_text(text.getvalue(), encoding="utf-8")


def _bench_lines(result: BenchResult) -> Iterable[Sequence[object]]:
    percentiles = [f"ms_{name}" for name in result.batches[0].summary.percentiles]
    yield [*CSV_FIELDS, *percentiles, *CSV_LATER_FIELDS]
    for row in result.batches:
        summary = row.summary
        yield (
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
            *(f"{value:.6g}" for value in summary.percentiles.values()),
            row.profile,
            row.verdict,
            row.bound or "",
            "" if row.enqueue_ms is None else f"{row.enqueue_ms:.6g}",
            *(f"{row.parts_ms[name]:.6g}" if row.parts_ms else "" for name in ("h2d", "gpu", "d2h")),
            f"{summary.drift:.4g}",
            sum(end - first for first, end in row.bad),
        )


def _paired_lines(result: PairedResult) -> Iterable[Sequence[object]]:
    yield "batch", "mode", "ms_a", "ms_b", "ratio", "low", "high", "rounds", "verdict"
    for line in result.lines:
        relative = line.relative
        times = (line.ms_a, line.ms_b, relative.ratio, relative.low, relative.high)
        yield line.batch, line.mode, *(f"{value:.6g}" for value in times), relative.rounds, relative.verdict


def _profile_lines(result: ProfilesResult) -> Iterable[Sequence[object]]:
    yield "batch", "mode", "profile", "range", "ms_per_batch", "over_fastest"
    for line in result.lines:
        for index, ms in line.ms.items():
            over = "" if line.fastest is None else f"{ms / line.ms[str(line.fastest)] - 1:.4g}"
            yield line.batch, line.mode, index, result.profiles[int(index)], f"{ms:.6g}", over
