"""Show a comparison of two results, in the terminal or as Markdown, with the notes that readers need."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from trtbatch.reporting.regression import Change, Comparison, ResultFile
from trtbatch.reporting.summary import escaped, markdown_table
from trtbatch.reporting.unpaired import BLOCK_RUNS, MIN_BLOCKS
from trtbatch.util.files import atomic_file
from trtbatch.util.serialization import encode
from trtbatch.util.statistics import SAME_LIMIT

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "FEWEST_RUNS",
    "UNJUDGED",
    "comparison_markdown",
    "comparison_notes",
    "comparison_table",
    "conclusion",
    "warnings",
    "write_comparison",
]

UNJUDGED = 3
"""Exit code where no line fails a limit and some can't be judged: neither a pass nor a failure."""

FEWEST_RUNS = MIN_BLOCKS * BLOCK_RUNS
"""Fewest runs of each side with which a line can be judged."""

_COLOURS = {"FASTER": "green", "SLOWER": "red", "UNCLEAR": "yellow", "SAME": "bold"}


def comparison_table(comparison: Comparison) -> Table:
    """Return a table of both times, B's time over A's with its interval, and the verdict on B."""
    from rich.markup import escape
    from rich.table import Table

    columns = _columns(comparison)
    made = Table(title="\n".join(escape(line) for line in _sides(comparison)), title_justify="left", title_style="bold")
    for name in columns:
        made.add_column(name, justify="left" if name in ("mode", "B is") else "right", no_wrap=True)
    for line in comparison.lines:
        cells = _cells(line) | {"B is": f"[{_COLOURS[line.verdict]}]{_verdict(line)}[/]"}
        made.add_row(*(cells[name] if name == "B is" else escape(cells[name]) for name in columns))
    return made


def comparison_markdown(comparison: Comparison) -> str:
    """Return the table, the conclusion, the warnings and the notes in Markdown."""
    columns = _columns(comparison)
    rows = [[_cells(line)[name] for name in columns] for line in comparison.lines]
    told = [*(f"warning: {text}" for text in warnings(comparison)), *comparison_notes(comparison)]
    return "\n".join(
        [
            f"### {escaped(conclusion(comparison))}",
            "",
            *(f"- {escaped(side)}" for side in _sides(comparison)),
            "",
            *markdown_table(columns, rows),
            "",
            *(f"- {escaped(text)}" for text in told),
            "",
        ]
    )


def _columns(comparison: Comparison) -> list[str]:
    several = len({line.mode for line in comparison.lines}) > 1
    return ["batch", *(("mode",) if several else ()), "A: ms/batch", "B: ms/batch", "B / A", "95 % interval", "B is"]


def _cells(line: Change) -> dict[str, str]:
    return {
        "batch": str(line.batch),
        "mode": line.mode,
        "A: ms/batch": f"{line.ms_a:.3f}",
        "B: ms/batch": f"{line.ms_b:.3f}",
        "B / A": f"{line.ratio:.3f}",
        "95 % interval": f"{line.low:.3f}–{line.high:.3f}" if isfinite(line.high) else "too few runs",
        "B is": _verdict(line),
    }


def _verdict(line: Change) -> str:
    return f"{line.verdict}, fails" if line.fails else line.verdict


def _sides(comparison: Comparison) -> list[str]:
    def told(name: str, run: ResultFile) -> str:
        measured = f", {run.created.partition('.')[0].replace('T', ' ')}" if run.created else ""
        return f"{name}: {run.file} ({run.engine}, {run.backend} {run.precision}, {run.device}{measured})"

    return [told("A", comparison.a), told("B", comparison.b)]


def conclusion(comparison: Comparison) -> str:
    """Return the verdicts on B in one line, and whether B fails."""
    counted = [
        f"{verdict} at {_batches([line for line in comparison.lines if line.verdict == verdict])}"
        for verdict in _COLOURS
        if any(line.verdict == verdict for line in comparison.lines)
    ]
    told = f"B is {', '.join(counted)}"
    if comparison.limit is None:
        return told
    if not comparison.failures and comparison.unjudged:
        return f"{told}; not judged at {_batches(comparison.unjudged)}: fewer than {FEWEST_RUNS} runs"
    if not comparison.failures:
        return f"{told}; passes: nowhere surely slower by more than {_percent(comparison.limit)}"
    worst = max(comparison.failures, key=lambda line: line.ratio)
    return (
        f"{told}; fails: slower by more than {_percent(comparison.limit)} at {_batches(comparison.failures)}, most at "
        f"batch {worst.batch} ({worst.mode}): {_percent(worst.ratio - 1)}"
    )


def _batches(lines: tuple[Change, ...] | list[Change]) -> str:
    by_mode: dict[str, list[str]] = {}
    for line in lines:
        by_mode.setdefault(line.mode, []).append(str(line.batch))
    return "batch " + "; ".join(f"{', '.join(batches)} ({mode})" for mode, batches in by_mode.items())


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def warnings(comparison: Comparison) -> list[str]:
    """Return warnings of what wasn't compared, what differed or was unstable, and slowdowns that may be noise."""
    told = []
    for name, other, only in (("A", "B", comparison.only_a), ("B", "A", comparison.only_b)):
        if only:
            told.append(f"in {name} only, not in {other}: {', '.join(only)}")
    told += [f"the runs differ in {text}" if ": " in text else text for text in comparison.differences]
    for name, unstable in (("A", comparison.unstable_a), ("B", comparison.unstable_b)):
        if unstable:
            told.append(f"{name} wasn't stable at {', '.join(unstable)}: stop other programs, or measure longer")
    if comparison.unjudged:
        told.append(
            f"{_batches(comparison.unjudged)}: can't be judged with fewer than {FEWEST_RUNS} runs: measure longer"
        )
    if comparison.limit is not None:
        limit = comparison.limit
        unsure = [line for line in comparison.lines if line.ratio > 1 + limit and line.judged and not line.fails]
        if unsure:
            told.append(f"{_batches(unsure)}: the median is over the limit, but may be by chance: measure longer")
    return told


def comparison_notes(comparison: Comparison) -> list[str]:
    """Return notes on how the verdicts are found, and on what they can't show."""
    told = [
        f"B / A is the ratio of the medians of all runs, below 1 where B is faster. B is SAME where the 95 % interval "
        f"lies within 1 ± {SAME_LIMIT * 100:g} %, FASTER where it lies below 1, SLOWER where it lies above, else "
        f"UNCLEAR, as with fewer than {FEWEST_RUNS} runs.",
        "The interval is from the medians of blocks of consecutive runs (sectioning), so that neighbours may be alike. "
        "It knows what varied within the two runs, not what differs from one to the next (heat, clocks, other "
        "programs): for differences of a few per cent time both engines in turns, in one run of bench.",
    ]
    if comparison.limit is not None:
        told.append(
            f"A line fails where B / A is over {1 + comparison.limit:g} and its whole interval above 1. One of fewer "
            f"than {FEWEST_RUNS} runs neither fails nor passes: where none fails, the exit code is {UNJUDGED}. What is "
            "in one file only fails nothing."
        )
    return told


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the whole comparison as JSON."""
    with atomic_file(path) as made:
        text = json.dumps(encode(comparison), indent=1, ensure_ascii=False)
        made.write_text(text + "\n", encoding="utf-8")
