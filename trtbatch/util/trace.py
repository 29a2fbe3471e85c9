"""Record each thread's work as spans in Chrome's trace-event format, for chrome://tracing and Perfetto.

The format is Google's "Trace Event Format": an object with ``traceEvents``; a span is a complete event (``ph`` X)
with ``ts`` and ``dur`` in µs; a thread's name is a metadata event (``ph`` M).
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, TextIO

from trtbatch.errors import from_os_error
from trtbatch.util.files import atomic_file

__all__ = ["NO_TRACE", "Recorder", "Span", "TraceFile", "open_trace"]

Value = int | str


class Span(Protocol):
    """A stretch of time in one thread, from the block's begin to its end."""

    def add(self, **args: Value) -> None:
        """Add values that are known only now."""

    def __enter__(self) -> Span: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Recorder(Protocol):
    """Recorder of spans from any thread."""

    def span(self, name: str, **args: Value) -> Span:
        """Return a span to enter; `args` are shown with it."""

    def record(
        self, name: str, begun: int, ended: int, args: dict[str, Value], thread: tuple[int, str] | None = None
    ) -> None:
        """Record a span between two readings of ``time.perf_counter_ns``.

        Args:
            name: shown as the span's title.
            begun: first reading, ns.
            ended: second reading, ns.
            args: shown with the span.
            thread: number and name of the span's thread, where it isn't the calling one; it may belong to another
                process, whose clock is the same.
        """


class _NoSpan:
    __slots__ = ()

    def add(self, **args: Value) -> None:
        return

    def __enter__(self) -> _NoSpan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return


class _NoTrace:
    def __init__(self) -> None:
        self._span = _NoSpan()

    def span(self, name: str, **args: Value) -> Span:
        return self._span

    def record(
        self, name: str, begun: int, ended: int, args: dict[str, Value], thread: tuple[int, str] | None = None
    ) -> None:
        return


NO_TRACE: Recorder = _NoTrace()
"""Recorder that records nothing, at the cost of a call."""


class TraceFile:
    """Writer of a trace file, safe from any thread; it writes each span as it ends, so that memory doesn't grow."""

    def __init__(self, stream: TextIO, process: str) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._named: set[int] = set()
        first = {"ph": "M", "name": "process_name", "pid": self._pid, "args": {"name": process}}
        stream.write('{"displayTimeUnit": "ms", "traceEvents": [\n' + json.dumps(first))

    def span(self, name: str, **args: Value) -> Span:
        """Return a span to enter; see :class:`Recorder`."""
        return _TimedSpan(self, name, dict(args))

    def record(
        self, name: str, begun: int, ended: int, args: dict[str, Value], thread: tuple[int, str] | None = None
    ) -> None:
        """Record a span; see :meth:`Recorder.record`."""
        tid, label = thread or (threading.get_native_id(), threading.current_thread().name)
        times = {"ts": begun / 1000, "dur": (ended - begun) / 1000}
        text = json.dumps({"ph": "X", "name": name, "pid": self._pid, "tid": tid, **times, "args": args})
        with self._lock:
            if tid not in self._named:
                self._named.add(tid)
                named = {"ph": "M", "name": "thread_name", "pid": self._pid, "tid": tid, "args": {"name": label}}
                text = json.dumps(named) + ",\n" + text
            self._write(",\n" + text)

    def finish(self) -> None:
        """Close the list; nothing may be recorded afterwards."""
        self._write("\n]}\n")

    def _write(self, text: str) -> None:
        """Write, and name the trace file in an error: spans end anywhere, so only this method knows what failed."""
        try:
            self._stream.write(text)
        except OSError as error:
            error.filename = self._stream.name
            raise


class _TimedSpan:
    __slots__ = ("_args", "_begun", "_file", "_name")

    def __init__(self, file: TraceFile, name: str, args: dict[str, Value]) -> None:
        self._file = file
        self._name = name
        self._args = args
        self._begun = 0

    def add(self, **args: Value) -> None:
        self._args.update(args)

    def __enter__(self) -> _TimedSpan:
        self._begun = time.perf_counter_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.record(self._name, self._begun, time.perf_counter_ns(), self._args)


@contextmanager
def open_trace(path: Path | None, process: str = "trtbatch") -> Iterator[Recorder]:
    """Yield a recorder into a file that appears when the block succeeds; without a path it records nothing.

    Raises:
        TrtbatchError: the file can't be written.
    """
    if path is None:
        yield NO_TRACE
        return
    try:
        with atomic_file(path) as made, made.open("w", encoding="utf-8", errors="backslashreplace") as stream:
            file = TraceFile(stream, process)
            yield file
            file.finish()
    except OSError as error:
        if error.filename != str(path):
            raise
        raise from_os_error(error, "`trace`") from error
