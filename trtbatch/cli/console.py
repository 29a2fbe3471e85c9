"""Provide what the subcommands share: consoles, notes, warnings, progress, and parsers of sizes and lists."""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtbatch.cli.wording import as_typed
from trtbatch.errors import TrtbatchError, UsageError
from trtbatch.util.log import LOGGER
from trtbatch.util.text import written

if TYPE_CHECKING:  # importing Rich takes longer than --help may take
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

__all__ = [
    "STATE",
    "Debug",
    "Device",
    "EngineFile",
    "err",
    "fitting",
    "out",
    "parse_bytes",
    "parse_names",
    "parse_shape",
    "plain",
    "show_error",
    "show_notes",
    "show_progress",
    "size",
]


@dataclass
class _State:
    debug: bool = False
    signal: int | None = None
    ended: bool = False
    """Whether the command has ended; from then on its interrupt may go."""
    console: Console | None = None
    """Console of the running progress bar; messages printed on it go above the bar."""


STATE = _State()


def _set_debug(value: bool) -> bool:
    STATE.debug = value
    return value


Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show the traceback of an error.")]


EngineFile = Annotated[
    Path | None, typer.Argument(metavar="[ENGINE]", help="\\[default: the newest in engines/ that runs here]")
]

Device = Annotated[int, typer.Option("--device", min=0, metavar="N", help="Number of the GPU.")]


def out() -> Console:
    """Return the console for results, on standard output; in a pipe or a file, tables keep their full width."""
    from rich.console import Console

    stream = sys.stdout or io.StringIO()  # None where the caller closed it
    wide = not stream.isatty()
    return Console(file=stream, width=160 if wide else None, highlight=False, soft_wrap=wide, emoji=False)


def err() -> Console:
    """Return the console for everything but results, on standard error."""
    from rich.console import Console

    if STATE.console is not None:
        return STATE.console
    return Console(file=sys.stderr or io.StringIO(), highlight=False, soft_wrap=True, emoji=False)


def show_error(error: TrtbatchError) -> None:
    """Print an error in two lines: problem and fix."""
    console = err()
    console.print(f"[bold red]error:[/] {plain(as_typed(error.problem))}")
    console.print(f"[bold]fix:[/] {plain(as_typed(error.fix))}")


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def plain(text: str) -> str:
    """Return text as one line that Rich prints literally, without terminal codes or invalid characters."""
    from rich.markup import escape

    return escape(" ".join(written(_COLOURS.sub("", text)).split()))


def fitting(console: Console, *tables: Table) -> Table:
    """Return the first table that fits the console, of tables from fullest to briefest; the last where none fits."""
    from rich.measure import Measurement

    free = console.options.update(width=1000)
    fit = (table for table in tables if Measurement.get(console, free, table).maximum <= console.width)
    return next(fit, tables[-1])


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        label = "[bold yellow]warning:[/]" if record.levelno >= logging.WARNING else "[dim]note:[/]"
        err().print(f"{label} {plain(as_typed(record.getMessage()))}")


@contextmanager
def show_notes() -> Iterator[None]:
    """Show notes and warnings of the stages on standard error."""
    handler = _Handler()
    before = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before)


@contextmanager
def show_progress(*texts: str) -> Iterator[tuple[Progress, Callable[[str, float | None], None]]]:
    """Show a spinner with a description, the share done where it is known, and the elapsed time.

    Outside a terminal, print a line every :data:`EVERY` seconds instead.

    Args:
        texts: templates of further columns.
    """
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console, columns = err(), map(TextColumn, texts)
    bars = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), *columns)
    with Progress(*bars, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None, rate="")
        STATE.console = bar.console
        lines = _Lines(console)

        def report(words: str, share: float | None) -> None:
            bar.update(task, description=escape(words), total=None if share is None else 1.0, completed=share or 0.0)
            if not console.is_terminal:
                lines.tell(words, share)

        try:
            yield bar, report
        finally:
            lines.close()
            STATE.console = None


EVERY = 10.0
"""Seconds between two lines of progress outside a terminal: rare enough for a log, but a sign of life."""


class _Lines:
    """Print the current activity as a line every :data:`EVERY` seconds: ``40 s: batch 8, 1 in flight``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = time.monotonic()
        self._words = ""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def tell(self, words: str, share: float | None) -> None:
        """Set the line to print. The first call starts the thread, so a command without progress has none."""
        self._words = words if share is None else f"{words}, {share:.0%}"
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(EVERY):
            seconds = time.monotonic() - self._begun
            try:
                self._console.print(f"[dim]{seconds:.0f} s:[/] {plain(self._words)}")
            except (OSError, ValueError):  # standard error is closed
                return

    def close(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(text: str) -> int:
    """Parse a size, ``4GiB``, ``512MB`` or ``1000``, into bytes.

    Raises:
        UsageError: the text isn't a size of 1 byte or more.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmg]i?)?b?", text.strip().lower(), re.ASCII)
    value = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if value <= 0:
        raise UsageError(f"{text!r} is not a size", "write it like 4GiB, 512MB or 1000000: 1 byte or more")
    return value


def parse_shape(text: str) -> tuple[int, ...]:
    """Parse a shape, ``3,224,224`` or ``3x224x224``.

    Raises:
        UsageError: the text isn't a shape of positive sizes.
    """
    parts = re.split(r"[,x×]", text.strip())
    if not all(re.fullmatch(r"[0-9]{1,9}", part.strip(), re.ASCII) and int(part) > 0 for part in parts):
        raise UsageError(f"{text!r} is not a shape", "write it like 3,224,224 (one sample, without the batch)")
    return tuple(int(part) for part in parts)


def parse_names(text: str | None) -> tuple[str, ...]:
    """Parse a list of names, ``a,b,c``."""
    return () if not text else tuple(name.strip() for name in text.split(",") if name.strip())


def size(count: int) -> str:
    """Format a number of bytes for people."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
