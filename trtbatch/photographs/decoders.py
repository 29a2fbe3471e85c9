"""Photographs decoded by processes a bounded way ahead, in memory that they share with this one.

What Python does for a photograph beside decoding holds the interpreter's lock, and so threads of one process wait for
each other however many cores there are. Here each core has a process (:mod:`trtbatch.photographs.decoder_worker`) that
reads, decodes and prepares, and lays what it makes in a ring of memory; this process is told where, several photographs
at a time, in the thread that asks for them.

A process that ends (killed, out of memory on some file) is replaced. The file that it had begun is tried again, alone,
and left out only when another ends by it. Photographs too large for a ring are decoded in threads of this process.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, Union

import numpy as np
from numpy.typing import NDArray

from trtbatch import environment
from trtbatch.errors import ExecutionError
from trtbatch.notes import note, warn
from trtbatch.photographs.arena import Arena, aligned
from trtbatch.photographs.decoder_worker import (
    ANSWER,
    HEADER,
    ITEM,
    LAID,
    PRESSED,
    RELEASED,
    SKIPPED,
    TASK,
    Order,
    sample_shape,
    sample_type,
)
from trtbatch.photographs.images import Skipped
from trtbatch.photographs.pixels import MOST_BYTES, Budget, Photograph, Reader, release_all
from trtbatch.preprocessing import Preprocessing
from trtbatch.records import encode
from trtbatch.trace import NO_TRACE, Recorder

__all__ = ["PackedReader", "Team", "are_wanted", "packed_ahead", "packed_team", "sample_team", "samples_ahead"]

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
T = TypeVar("T")

LEAST_CORES = 4
"""From which on processes are faster than threads; with 2, they were slower."""

LEAST_FILES = 512
"""From which on starting processes pays."""

CHUNK = 16
"""Files of a task: what passing it on costs is shared by them."""

FIRST = 4
"""Files of each process's first task: the sooner there is something to give on."""

LAST = 3
"""Tasks, at the least, that are made for each process of the files that are left."""

TASKS = 2
"""That a process has at once: one that it does, and the next."""

AHEAD = 3
"""Tasks for each process, those counted that are done and wait for their turn."""

RING_BYTES = 32 << 20
"""Of one process's photographs."""

_SHARE = 8
"""One photograph has at most such a part of a ring: some are uploaded beside the next, and some room is lost at the
ring's end."""

_WHOLE_SHARE = 40
"""A photograph that is decoded in a ring has at most such a part of it: a group of sixteen may wait for its last while
the next sixteen are made, and some room is lost at the ring's end."""

_SAMPLE_SHARE = 4
"""The same of a sample, which is copied before the next is asked for."""

_PATIENCE = 20
"""Milliseconds after which a photograph that is waited for isn't to wait for room."""


def are_wanted(files: int, asked: bool | None = None) -> bool:
    """Whether so many photographs are decoded by processes, rather than by threads.

    Args:
        asked: decides where it can be done at all; None goes by the number of cores and files.
    """
    if os.name != "posix" or not sys.executable or _has_foreign_formats():
        return False
    enough = (os.cpu_count() or 1) >= LEAST_CORES and files >= LEAST_FILES
    return enough if asked is None else asked


def _has_foreign_formats() -> bool:
    """Whether this process has taught Pillow a format, which another process doesn't know."""
    from PIL import Image

    return any(not factory.__module__.startswith("PIL.") for factory, _ in Image.OPEN.values())


class PackedReader(Protocol):
    """A preprocessor, as far as it takes photographs from the host."""

    arena: Arena
    beside: int
    """Bytes that `prepare` uses."""

    @property
    def recipe(self) -> Preprocessing: ...

    @property
    def max_size(self) -> int: ...

    def prepare(self, pixels: Bytes, beside: Bytes) -> Any:
        """What it takes of a photograph ``(H, W, 3)`` uint8; for any thread."""

    def laid(self, memory: Bytes, at: int, side: int, height: int, width: int, pitch: int, offset: int) -> Any:
        """The same of a photograph that lies in memory, behind so many bytes, as a process lays it
        (:class:`trtbatch.photographs.decoder_worker.Place`)."""

    def lock(self, memory: Bytes) -> Callable[[], None]:
        """Let uploads from this memory run beside other work; what is returned undoes that, in any thread.

        Raises:
            ExecutionError: it can't be done.
        """


class Team:
    """Processes that have been started, and wait for work: they take as long to start as an engine takes to load.

    Args:
        order: that they follow.
        workers: how many.
    """

    def __init__(self, order: Order, workers: int) -> None:
        self.order = order
        self._text = json.dumps(encode(_with_pillows(order)))
        self._idle: deque[_Worker[Any]] = deque()
        self._started = 0
        self.can_be_locked = True
        """Whether it is worth trying to page-lock a ring."""
        try:
            for _ in range(workers):
                worker = self._start()
                if worker is None:
                    break
                self._idle.append(worker)
        except BaseException:
            self.close()
            raise

    def take(self) -> _Worker[Any] | None:
        """A process without work, started now where none waits; None, said, where none can be started."""
        return self._idle.popleft() if self._idle else self._start()

    def page_lock(self, lock: Callable[[Bytes], Callable[[], None]]) -> None:
        """Page-lock the rings of those that wait, before there is work for them: what else the GPU's driver is asked
        meanwhile waits for it."""
        self.can_be_locked = all(_page_locked(worker.ring, lock) for worker in self._idle)

    def _start(self) -> _Worker[Any] | None:
        try:
            worker: _Worker[Any] = _Worker(self.order, self._text, self._started)
        except OSError as error:
            warn(f"a process to decode photographs can't be started: {error.strerror}")
            return None
        self._started += 1
        return worker

    def close(self) -> None:
        """End those that nobody took."""
        with ExitStack() as steps:
            while self._idle:
                worker = self._idle.pop()
                steps.callback(worker.ring.close)
                steps.callback(worker.end)


def packed_team(recipe: Preprocessing, max_size: int, workers: int, ring: int = RING_BYTES) -> Team:
    """Processes for :func:`packed_ahead`, of a preprocessor with this recipe and size."""
    ring = aligned(ring if workers > 1 else 2 * ring)  # of one process there are two groups
    return Team(Order("packed", recipe, ring, ring // _SHARE, ring // _WHOLE_SHARE, max_size), workers)


def sample_team(recipe: Preprocessing, dtype: str, workers: int, ring: int = RING_BYTES) -> Team:
    """Processes for :func:`samples_ahead`, for an input of this type."""
    count = aligned(int(np.prod(sample_shape(recipe))) * sample_type(recipe, dtype).itemsize)
    ring = max(aligned(ring), min(_SAMPLE_SHARE * count, aligned(MOST_BYTES // workers)))
    return Team(Order("sample", recipe, ring, ring // _SAMPLE_SHARE, dtype=dtype), workers)


def packed_ahead(
    files: Sequence[Path],
    names: Sequence[str],
    preprocessor: PackedReader,
    workers: int,
    trace: Recorder = NO_TRACE,
    ring: int = RING_BYTES,
    team: Team | None = None,
) -> Generator[Photograph[Any] | Skipped, None, None]:
    """Photographs as a preprocessor takes them, in order, decoded by processes;
    :func:`trtbatch.photographs.pixels.read_ahead` does the same in threads. Closing the generator ends the processes.

    Args:
        workers: processes.
        trace: takes the spans ``read`` and ``decode`` of each file, in threads of their own.
        ring: bytes of one process's photographs, decoded and not released.
        team: of :func:`packed_team`, for this preprocessor; None starts the processes when the first photograph is
            asked for.
    """
    budget = Budget(MOST_BYTES)
    reader = Reader(preprocessor.prepare, preprocessor.beside, preprocessor.arena, budget, trace)

    def read(turn: int, file: Path, name: str) -> Photograph[Any] | Skipped:
        return reader(turn, [file], [name])[0]

    def start() -> Team:
        return team or packed_team(preprocessor.recipe, preprocessor.max_size, min(workers, len(files)), ring)

    return _ahead(_Job(start, files, names, preprocessor.laid, read, budget, workers, trace, preprocessor.lock))


def samples_ahead(
    files: Sequence[Path],
    names: Sequence[str],
    recipe: Preprocessing,
    dtype: str,
    read: Callable[[Path, str], Photograph[Array] | Skipped],
    workers: int,
    trace: Recorder = NO_TRACE,
    ring: int = RING_BYTES,
    team: Team | None = None,
) -> Generator[Photograph[Array] | Skipped, None, None]:
    """Samples of a recipe, in order, made by processes. Closing the generator ends these.

    Args:
        dtype: of the input that they are for.
        read: makes one here.
        trace: takes the span ``read`` of each file, in threads of their own.
        ring: bytes of one process's samples, made and not released; more where a sample is large.
        team: of :func:`sample_team`, for this recipe and type; None starts the processes when the first sample is asked
            for.
    """
    shape, kind = sample_shape(recipe), sample_type(recipe, dtype)

    def view(data: Bytes, at: int, *numbers: int) -> Array:
        found: Array = np.ndarray(shape, kind, data, at)
        return found

    def read_here(turn: int, file: Path, name: str) -> Photograph[Array] | Skipped:
        return read(file, name)

    def start() -> Team:
        return team or sample_team(recipe, dtype, min(workers, len(files)), ring)

    return _ahead(_Job(start, files, names, view, read_here, Budget(MOST_BYTES), workers, trace))


@dataclass
class _Job(Generic[T]):
    """What is to be done.

    Args:
        start: gives the processes.
        view: of a ring's photographs, the position in bytes, and the numbers of the item, makes what is had of it.
        read: reads a file here, in a thread; its turn is the number of the first file of its task.
        budget: that `read` goes by.
        lock: page-locks a ring.
    """

    start: Callable[[], Team]
    files: Sequence[Path]
    names: Sequence[str]
    view: Callable[..., T]
    read: Callable[[int, Path, str], Photograph[T] | Skipped]
    budget: Budget
    workers: int
    trace: Recorder
    lock: Callable[[Bytes], Callable[[], None]] | None = None
    paths: Sequence[bytes] = field(init=False)
    """Of the files, as they are passed on: made before there is other work."""

    def __post_init__(self) -> None:
        self.paths = list(map(os.fsencode, self.files))


class _Ring:
    """Memory of one process's photographs; it stays locked until the last of them is released.

    Raises:
        OSError: there is no memory.
    """

    def __init__(self, count: int) -> None:
        self.file = _shared(HEADER + count)
        try:
            self.bytes: Bytes = np.frombuffer(mmap.mmap(self.file, HEADER + count), np.uint8)
        except BaseException:
            os.close(self.file)
            raise
        self.data = self.bytes[HEADER:]
        self._counters = self.bytes[:16].view(np.uint64)
        self._lock = threading.Lock()
        self._held: deque[_Held[Any]] = deque()
        self._unlock: Callable[[], None] | None = None
        self._closing = False

    def hold(self, held: Sequence[_Held[Any]]) -> None:
        """The next photographs, in the order of their positions."""
        with self._lock:
            self._held.extend(held)

    def release(self, released: _Held[Any]) -> None:
        """One isn't needed any more; its memory is free when those before it are released too."""
        with self._lock:
            released.is_done = True
            held, end = self._held, -1
            while held and held[0].is_done:
                end = held.popleft().end
            if end >= 0:
                self._counters[RELEASED] = end
            ended = self._closing and not held
        if ended:
            self._finish()

    def press(self, number: int) -> None:
        """Photographs before this one aren't to wait for room."""
        self._counters[PRESSED] = number

    @property
    def is_locked(self) -> bool:
        return self._unlock is not None

    def lock(self, lock: Callable[[Bytes], Callable[[], None]]) -> None:
        """Page-lock it, in any thread, while it is used."""
        unlock = lock(self.bytes)
        with self._lock:
            is_needed = not self._closing or bool(self._held)
            if is_needed:
                self._unlock = unlock
        if not is_needed:
            unlock()

    def close(self) -> None:
        """No more photographs come."""
        with self._lock:
            self._closing = True
            ended = not self._held
        if ended:
            self._finish()

    def _finish(self) -> None:
        unlock, self._unlock = self._unlock, None
        if unlock is not None:
            unlock()


def _page_locked(ring: _Ring, lock: Callable[[Bytes], Callable[[], None]]) -> bool:
    """Lock a ring; whether it could be, which is said."""
    try:
        ring.lock(lock)
    except ExecutionError as error:
        note(f"photographs are uploaded from memory that isn't page-locked: {error.problem}")
        return False
    return True


class _Held(Photograph[T]):
    """A photograph in a ring, up to a position."""

    def __init__(self, name: str, prepared: T, ring: _Ring, end: int) -> None:
        self.name = name
        self.prepared = prepared
        self._ring = ring
        self.end = end
        self.is_done = False

    def release(self) -> None:
        self._ring.release(self)


def _shared(count: int) -> int:
    """A file descriptor of so many bytes of memory that has no name."""
    try:
        file = os.memfd_create("trtbatch-ring")
    except (AttributeError, OSError):  # not Linux, or one that has none
        with tempfile.TemporaryFile() as made:
            file = os.dup(made.fileno())
    try:
        os.truncate(file, count)
    except BaseException:
        os.close(file)
        raise
    return file


@dataclass(eq=False)
class _Task(Generic[T]):
    """Files that follow each other.

    Args:
        first, end: their numbers.
        items: what became of them so far, in order.
        given: of the items, how many were taken.
        alone: whether they are done one at a time, each by a process that does nothing else.
        suspect: number of the file at which a process ended last.
    """

    first: int
    end: int
    items: list[Union[Photograph[T], Skipped, Future[Photograph[T] | Skipped]]] = field(default_factory=list)
    given: int = 0
    alone: bool = False
    suspect: int = -1

    @property
    def next(self) -> int:
        """Number of the first file that nothing became of yet."""
        return self.first + len(self.items)

    @property
    def is_done(self) -> bool:
        return self.next == self.end


class _Worker(Generic[T]):
    """A process, its ring, and the tasks that it has.

    Raises:
        OSError: it can't be started.
    """

    def __init__(self, order: Order, text: str, number: int) -> None:
        self.ring = _Ring(order.ring)
        self.tasks: deque[tuple[_Task[T], int]] = deque()
        """Each with the number behind the last file of it that was asked for."""
        self.has_begun = False
        self.received = 0
        """Items."""
        self._answer = b""
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        command = [sys.executable, "-m", "trtbatch.photographs.decoder_worker", text, str(self.ring.file)]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a process inherits
        try:
            self.process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                pass_fds=[self.ring.file],
                env=_environment(),
            )
        except BaseException:
            self._words.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(self.ring.file)
        assert self.process.stdin is not None and self.process.stdout is not None, "they are pipes"
        self._tasks_pipe, self.answers_pipe = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.thread = self.process.pid, f"trtbatch-decode-{number}"

    def send(self, task: _Task[T], paths: Sequence[bytes]) -> None:
        """Let it do files of a task, those that come next; one that has ended shows in :meth:`answers`."""
        self.tasks.append((task, task.next + len(paths)))
        names = b"\0".join(paths)
        message = TASK.pack(len(names)) + names
        try:
            while message:
                message = message[os.write(self._tasks_pipe, message) :]
        except BrokenPipeError:
            return

    def answers(self) -> list[tuple[bytes, bytes]] | None:
        """Items and words of the answers that have come; None when it has ended."""
        found = os.read(self.answers_pipe, 1 << 16)
        if not found:
            return None
        self.has_begun = True
        data = self._answer + found
        answers, begin = [], 0
        while begin + ANSWER.size <= len(data):
            count, words = ANSWER.unpack_from(data, begin)
            items = begin + ANSWER.size
            end = items + count * ITEM.size
            if end + words > len(data):
                break
            answers.append((data[items:end], data[end : end + words]))
            begin = end + words
        self._answer = data[begin:]
        return answers

    def end(self) -> str:
        """End the process, if it hasn't ended; how it ended, in words. The ring lives on."""
        self.process.kill()
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None, "a pipe"
            pipe.close()
        self._words.seek(0)
        lines = self._words.read().decode("utf-8", "replace").strip().splitlines()
        self._words.close()
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"{how}: {lines[-1].strip()}" if lines else how


def _environment() -> dict[str, str]:
    """This process's, with its modules in reach; numpy's threads, which nothing here uses, would be one for each core
    in each process."""
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return os.environ | threads | {"PYTHONPATH": environment.module_path(), "PYTHONSAFEPATH": "1"}


def _ahead(job: _Job[T]) -> Generator[Photograph[T] | Skipped, None, None]:
    crew = _Crew(job)
    try:
        crew.start()
        while (task := crew.head()) is not None:
            if task.is_done:
                crew.look()  # others may be through with theirs
            while not task.is_done and task.given == len(task.items):
                crew.wait()
            while task.given < len(task.items):
                item = task.items[task.given]
                task.given += 1
                if isinstance(item, Future):
                    item = item.result()
                yield item
    finally:
        crew.close()


class _Crew(Generic[T]):
    """The processes, and the tasks on their way; used in one thread."""

    def __init__(self, job: _Job[T]) -> None:
        self._job = job
        self._team: Team | None = None
        self._count = max(1, min(job.workers, len(job.files)))
        self._chunk = max(1, min(CHUNK, len(job.files) // (2 * self._count)))
        self._ahead = AHEAD * self._count
        self._begin = FIRST * self._count
        """Number of the first file of a whole task."""
        self._next = 0
        self._tasks: deque[_Task[T]] = deque()
        """In order; the first is waited for."""
        self._again: deque[_Task[T]] = deque()
        """Those whose process has ended."""
        self._workers: dict[int, _Worker[T]] = {}
        """By the pipe that its answers come from."""
        self._poll = select.poll()
        self._lock = job.lock
        self._locker: threading.Thread | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._is_patient = True
        self._traced = job.trace is not NO_TRACE

    def start(self) -> None:
        """Take the processes; each gets tasks when it says that it has started."""
        self._team = self._job.start()
        if not self._team.can_be_locked:  # which was said
            self._lock = None
        started = [self._add() for _ in range(self._count)]
        rings = [worker.ring for worker in started if worker is not None and not worker.ring.is_locked]
        if self._lock is not None and rings:  # which takes some hundredths of a second each, and they have begun
            self._locker = threading.Thread(target=self._lock_all, args=(rings,), name="trtbatch-page-lock")
            self._locker.start()

    def _lock_all(self, rings: Sequence[_Ring]) -> None:
        for ring in rings:
            self._page_lock(ring)

    def _add(self) -> _Worker[T] | None:
        assert self._team is not None, "started"
        worker: _Worker[T] | None = self._team.take()
        if worker is not None:
            self._workers[worker.answers_pipe] = worker
            self._poll.register(worker.answers_pipe, select.POLLIN)
        return worker

    def _page_lock(self, ring: _Ring) -> None:
        lock = self._lock
        if lock is not None and not _page_locked(ring, lock):
            self._lock = None

    def head(self) -> _Task[T] | None:
        """The task whose turn it is; None at the end."""
        tasks = self._tasks
        while tasks and tasks[0].is_done and tasks[0].given == len(tasks[0].items):
            tasks.popleft()
        self._hand_out()
        while not tasks and self._next < len(self._job.files):
            self.wait()  # until a process has started, or none is left
        if not tasks:
            return None
        self._job.budget.waits_for(tasks[0].first)
        return tasks[0]

    def look(self) -> None:
        """Take the answers that are there, and hand out tasks."""
        if self._receive(0):
            self._hand_out()

    def wait(self) -> None:
        """Wait for answers, and hand out tasks; where none come soon, what is waited for isn't to wait for memory."""
        if self._receive(_PATIENCE if self._is_patient else 50 * _PATIENCE):
            self._is_patient = True
            self._hand_out()
            return
        if not self._tasks:
            return
        self._is_patient = False  # said once: it is still so the next time
        first = self._tasks[0]
        for worker in self._workers.values():
            if first in self._again or any(task is first for task, _ in worker.tasks):
                worker.ring.press(worker.received + 1)

    def _receive(self, milliseconds: int) -> bool:
        found = self._poll.poll(milliseconds)
        for pipe, _ in found:
            worker = self._workers[pipe]
            answers = worker.answers()
            if answers is None:
                self._replace(worker)
                continue
            for items, words in answers:
                self._take(worker, items, words)
        return bool(found)

    def _take(self, worker: _Worker[T], items: bytes, words: bytes) -> None:
        """Items of the task that a process is at: each costs this thread little, and all threads its lock."""
        if not items:
            return
        task, last = worker.tasks[0]
        number, names, view, ring = task.next, self._job.names, self._job.view, worker.ring
        data, holds = ring.data, []
        for kind, side, height, width, pitch, offset, at, end, *times in ITEM.iter_unpack(items):
            name = names[number]
            number += 1
            if kind == LAID:
                held = _Held(name, view(data, at, side, height, width, pitch, offset), ring, end)
                holds.append(held)
                task.items.append(held)
            elif kind == SKIPPED:
                task.items.append(Skipped(name, words[:side].decode("utf-8", "surrogatepass")))
                words = words[side:]
            else:
                self._do_here(task)
            if self._traced:
                self._record(worker, name, *times)
        ring.hold(holds)
        worker.received += len(items) // ITEM.size
        if number == last:
            worker.tasks.popleft()
            if not task.is_done:
                self._again.appendleft(task)

    def _record(self, worker: _Worker[T], name: str, begun: int, read: int, opened: int, ended: int) -> None:
        self._job.trace.record("read", begun, read, {"file": name}, worker.thread)
        if opened < ended:
            self._job.trace.record("decode", opened, ended, {"file": name}, worker.thread)

    def _do_here(self, task: _Task[T]) -> None:
        """Let a thread of this process read the next file of a task."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._job.workers, thread_name_prefix="trtbatch-read")
        number = task.next
        task.items.append(
            self._pool.submit(self._job.read, task.first, self._job.files[number], self._job.names[number])
        )

    def _hand_out(self) -> None:
        for depth in range(TASKS):
            for worker in self._workers.values():
                # One that starts later than the others would keep them waiting for its first photographs.
                if worker.has_begun and len(worker.tasks) == depth and not (depth and worker.tasks[0][0].alone):
                    task = self._pending(is_idle=depth == 0)
                    if task is not None:
                        end = task.next + 1 if task.alone else task.end
                        worker.send(task, self._job.paths[task.next : end])
        if not self._workers:
            while (task := self._pending(is_idle=True)) is not None:
                while not task.is_done:
                    self._do_here(task)

    def _pending(self, is_idle: bool) -> _Task[T] | None:
        """The next task for a process; None where there is none for it now."""
        if self._again and (is_idle or not self._again[0].alone):
            return self._again.popleft()
        if self._next >= len(self._job.files) or len(self._tasks) >= self._ahead:
            return None
        task: _Task[T] = _Task(self._next, self._next + self._size(len(self._job.files) - self._next))
        self._next = task.end
        self._tasks.append(task)
        return task

    def _size(self, left: int) -> int:
        """Files of the next task: fewer at first, and at the end, where all processes are to be through at once."""
        chunk = self._chunk if self._next >= self._begin else min(FIRST, self._chunk)
        return max(1, min(chunk, left // (LAST * self._count)))

    def _replace(self, worker: _Worker[T]) -> None:
        """One has ended: another takes its place, unless it had not even begun."""
        self._poll.unregister(worker.answers_pipe)
        del self._workers[worker.answers_pipe]
        how = worker.end()
        worker.ring.close()
        tasks = [task for task, _ in worker.tasks]
        if worker.has_begun and tasks:
            self._suspect(tasks[0], how)
        elif not worker.has_begun:
            warn(f"a process that decodes photographs ended {how}; the run goes on without it")
        self._again.extendleft(task for task in reversed(tasks) if not task.is_done)
        if worker.has_begun and (self._again or self._next < len(self._job.files)):
            added = self._add()
            self._hand_out()
            if added is not None:
                self._page_lock(added.ring)
        else:
            self._hand_out()

    def _suspect(self, task: _Task[T], how: str) -> None:
        name = self._job.names[task.next]
        if task.alone and task.suspect == task.next:
            task.items.append(Skipped(name, f"decoding it ends the process that does it {how}"))
        else:
            task.alone, task.suspect = True, task.next
            warn(f"a process that decodes photographs ended {how}; {name} and what follows is tried again by another")

    def close(self) -> None:
        """End the processes, and release what nobody took."""
        with ExitStack() as steps:
            for worker in self._workers.values():
                steps.callback(worker.ring.close)
                steps.callback(worker.end)
                worker.process.kill()  # all of them, and only then wait for each
            if self._team is not None:
                steps.callback(self._team.close)
            if self._locker is not None:
                self._lock = None  # rings that aren't locked yet needn't be
                steps.callback(self._locker.join)
            steps.callback(self._release)

    def _release(self) -> None:
        self._job.budget.stop()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)  # each thread ends its photograph, and no more
        for task in self._tasks:
            release_all(task.items[task.given :])


def _with_pillows(order: Order) -> Order:
    """With what this process has set in Pillow."""
    from PIL import Image, ImageFile

    return replace(order, max_pixels=Image.MAX_IMAGE_PIXELS, truncated=ImageFile.LOAD_TRUNCATED_IMAGES)
