"""What each thread did when: spans in Chrome's trace-event format, for chrome://tracing and Perfetto.

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
        """What is known of it only now."""

    def __enter__(self) -> Span: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Recorder(Protocol):
    """Takes spans from any thread."""

    def span(self, name: str, **args: Value) -> Span:
        """A span to be entered; `args` are shown with it."""

    def record(
        self, name: str, begun: int, ended: int, args: dict[str, Value], thread: tuple[int, str] | None = None
    ) -> None:
        """A span between two readings of ``time.perf_counter_ns``.

        Args:
            thread: number and name of the one that it happened in, where that isn't the calling one; of a thread of
                another process, too, whose clock is the same.
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
"""Records nothing, at the cost of a call."""


class TraceFile:
    """Writes each span as it ends, so that memory doesn't grow with their number; safe from any thread."""

    def __init__(self, stream: TextIO, process: str) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._named: set[int] = set()
        first = {"ph": "M", "name": "process_name", "pid": self._pid, "args": {"name": process}}
        stream.write('{"displayTimeUnit": "ms", "traceEvents": [\n' + json.dumps(first))

    def span(self, name: str, **args: Value) -> Span:
        return _TimedSpan(self, name, dict(args))

    def record(
        self, name: str, begun: int, ended: int, args: dict[str, Value], thread: tuple[int, str] | None = None
    ) -> None:
        """As :meth:`Recorder.record`."""
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
        """Close the list; nothing may be recorded any more."""
        self._write("\n]}\n")

    def _write(self, text: str) -> None:
        """Spans end wherever work is done: that it was this file that couldn't be written is known here alone."""
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
    """A recorder into a file, which appears when the block ends well; one that records nothing for None.

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
