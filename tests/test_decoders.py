"""Photographs decoded by processes: what threads give, byte for byte, whatever happens to the processes."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.conftest import child_environment
from tests.test_pixels import Memory
from tests.test_trace import refuse_crossings, spans, thread_names
from trtbatch.artifacts import TensorSpec
from trtbatch.errors import ArtifactError, ExecutionError
from trtbatch.photographs import decoders
from trtbatch.photographs.decoder_worker import HEADER
from trtbatch.photographs.decoders import are_wanted, packed_ahead
from trtbatch.photographs.images import Skipped
from trtbatch.photographs.operands import GROUP, Packing, operands, square
from trtbatch.photographs.pixels import Photograph, read_ahead
from trtbatch.preprocessing import Preprocessing
from trtbatch.sources import ImageSource, Sample
from trtbatch.trace import NO_TRACE, Recorder, open_trace

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")

RECIPE = Preprocessing(40, (32, 32))
Cli = Callable[..., Any]


class Prepared(NamedTuple):
    image: NDArray[np.uint8]
    packed: NDArray[np.uint8]


class Reader:
    """What a preprocessor on a GPU is to those who read for it."""

    recipe = RECIPE
    max_size = 300

    def __init__(self) -> None:
        self.memory = Memory()
        self.arena = self.memory.arena
        self._packing = Packing(self)
        self.beside = self._packing.bytes
        self.here = 0
        """Photographs that this process prepared."""
        self.locked: list[int] = []
        """Bytes of the memory that is locked now."""

    def prepare(self, pixels: NDArray[np.uint8], beside: NDArray[np.uint8]) -> Prepared:
        self.here += 1
        given = operands(self.recipe, pixels, self.max_size)
        self._packing.fill(beside, given.rows, given.columns)
        return Prepared(given.image, beside[: self.beside])

    def laid(
        self, memory: NDArray[np.uint8], at: int, side: int, height: int, width: int, pitch: int, offset: int
    ) -> Prepared:
        block = memory[at : at + self.beside]
        assert block.ctypes.data % 256 == 0 and self.beside % 256 == 0
        assert square(height, width, self.max_size) == side and pitch >= 3 * width
        image = np.ndarray((height, width, 3), np.uint8, memory, at + self.beside + offset, (pitch, 3, 1))
        return Prepared(image, block)

    def lock(self, memory: NDArray[np.uint8]) -> Callable[[], None]:
        assert memory.ctypes.data % HEADER == 0
        self.locked.append(memory.size)
        return lambda: self.locked.remove(memory.size)


def children() -> set[int]:
    """Processes that this one has started, those that nobody has waited for included."""
    while True:
        try:
            found = [(task / "children").read_text() for task in Path("/proc/self/task").iterdir()]
        except (FileNotFoundError, ProcessLookupError):  # a thread ended meanwhile; another has its children now
            continue
        return set(map(int, " ".join(found).split()))


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


@pytest.fixture(scope="module")
def folder_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind: photographs, and what is none."""
    folder = tmp_path_factory.mktemp("all")
    generator = np.random.default_rng(0)

    def photograph(name: str, mode: str = "RGB", size: tuple[int, int] = (90, 60), **options: Any) -> Path:
        pixels = generator.integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size).convert(mode).save(folder / name, **options)
        return folder / name

    for number in range(20):
        photograph(f"plain{number:02}.jpg", size=(50 + 7 * number, 120 - 3 * number))
    photograph("grey.jpg", "L")
    photograph("palette.png", "P")
    photograph("cmyk.jpg", "CMYK")
    photograph("alpha.png", "RGBA")
    photograph("large.jpg", size=(290, 280))
    photograph("progressive.jpg", progressive=True)
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photograph(f"turned{orientation}.jpg", exif=exif)
    wide = generator.integers(0, 1 << 16, (60, 90)).astype(np.uint16)
    Image.fromarray(wide).save(folder / "wide.png")
    Image.fromarray(wide.astype(np.int32)).save(folder / "wider.tif")
    whole = photograph("whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "header.jpg").write_bytes(whole[:100])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no photograph")
    (folder / "noise.png").write_bytes(b"\x89PNG\r\n\x1a\n" + generator.bytes(500))
    at = whole.index(b"\xff\xc0")  # the frame's header: 2 bytes mark, 2 length, 1 bits, 2 rows, 2 columns
    (folder / "huge.jpg").write_bytes(whole[: at + 5] + (60_000).to_bytes(2, "big") * 2 + whole[at + 9 :])
    (folder / "folder.jpg").mkdir()
    (folder / os.fsdecode(b"gr\xf6\xdfe.jpg")).write_bytes(whole)
    return folder


def listed(folder: Path) -> tuple[list[Path], list[str]]:
    files = [*sorted(folder.iterdir()), folder / "missing.jpg"]
    return files, [file.name for file in files]


def contents(items: Iterator[Photograph[Prepared] | Skipped]) -> list[tuple[str, Any]]:
    """Names, and bytes or words; each photograph is released once it is compared."""
    found: list[tuple[str, Any]] = []
    for item in items:
        if isinstance(item, Skipped):
            found.append((item.name, item.reason))
        else:
            image, packed = item.prepared
            found.append((item.name, (image.shape, image.tobytes(), packed.tobytes())))
            item.release()
    return found


def in_threads(files: Sequence[Path], names: Sequence[str]) -> list[tuple[str, Any]]:
    reader = Reader()
    return contents(read_ahead(files, names, reader.prepare, reader.beside, reader.arena, 2))


def in_processes(
    files: Sequence[Path], names: Sequence[str], reader: Reader, workers: int = 2, ring: int = 1 << 20, **options: Any
) -> list[tuple[str, Any]]:
    return contents(packed_ahead(files, names, reader, workers, ring=ring, **options))


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_give_what_threads_give(folder_of_all: Path, workers: int) -> None:
    files, names = listed(folder_of_all)
    reader = Reader()
    found = in_processes(files * 2, names * 2, reader, workers, ring=8 << 20)
    wanted = in_threads(files, names)
    assert found == wanted * 2
    skipped = {name for name, content in wanted if isinstance(content, str)}
    assert skipped == {
        *("truncated.jpg", "header.jpg", "empty.jpg", "text.jpg", "noise.png", "huge.jpg", "folder.jpg", "missing.jpg"),
        "wider.tif",
    }
    assert reader.here == 0 and reader.locked == [] and reader.memory.in_use() == 0


def test_tasks_are_small_at_first_and_at_the_end(folder_of_all: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And go to processes that have started."""
    files, names = listed(folder_of_all)
    sent: list[int] = []
    send = decoders._Worker.send

    def noted(worker: decoders._Worker[Any], task: Any, paths: Sequence[bytes]) -> None:
        assert worker.has_begun
        sent.append(len(paths))
        send(worker, task, paths)

    monkeypatch.setattr(decoders._Worker, "send", noted)
    found = in_processes(files * 6, names * 6, Reader(), ring=8 << 20)
    assert len(found) == sum(sent) == 6 * len(files) > 200
    assert sent[: decoders.TASKS] == [decoders.FIRST] * decoders.TASKS and max(sent) == decoders.CHUNK
    end = len(sent) - sent[::-1].index(decoders.CHUNK)
    assert sent[end:] == sorted(sent[end:], reverse=True) and sent[-1] == 1


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_starts_late_keeps_nobody_waiting(folder_of_all: Path, stopped: int) -> None:
    files, names = listed(folder_of_all)
    reader = Reader()
    team = decoders.packed_team(RECIPE, Reader.max_size, 2, 8 << 20)
    os.kill(team._idle[stopped].process.pid, signal.SIGSTOP)
    found = contents(packed_ahead(files * 2, names * 2, reader, 2, team=team))
    assert found == in_threads(files, names) * 2 and reader.here == 0


@pytest.mark.parametrize("fused", [None, "NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_samples_too(folder_of_all: Path, dtype: str, fused: Any) -> None:
    files, names = listed(folder_of_all)
    recipe = Preprocessing(40, (32, 30), fused=fused)
    spec = TensorSpec("input", dtype if fused is None else "uint8", ("n", *recipe.crop, 3))
    by_kind = []
    for processes in (False, True):
        source = ImageSource(files, names, spec, recipe, workers=2, processes=processes)
        found: list[Any] = []
        for item in list(source):  # kept: they own their memory
            row = item.rows["input"] if isinstance(item, Sample) else None
            found.append((item.name, item.reason if row is None else (row.dtype, row.shape, row.tobytes())))  # type: ignore[union-attr]
        by_kind.append(found)
    assert by_kind[0] == by_kind[1]


def test_a_sample_larger_than_a_ring_has_a_larger_ring(folder_of_all: Path) -> None:
    files, names = listed(folder_of_all)
    recipe = Preprocessing(2000, (2000, 1900))
    spec = TensorSpec("input", "float32", ("n", 3, *recipe.crop))
    source = ImageSource(files[:3], names[:3], spec, recipe, workers=1, processes=True)
    assert [item.name for item in source] == names[:3]


@pytest.mark.parametrize("ring", [1 << 17, 3 << 17])
def test_a_tiny_ring_is_gone_round_and_what_is_too_large_is_read_here(folder_of_all: Path, ring: int) -> None:
    files, names = listed(folder_of_all)
    reader = Reader()
    packing = Packing(reader)
    found = in_processes(files * 3, names * 3, reader, ring=ring)
    wanted = in_threads(files, names)
    assert found == wanted * 3
    shapes = [content[0] for _, content in wanted if not isinstance(content, str)]
    sizes = [packing.bytes + 3 * rows * columns for rows, columns, _ in shapes]
    too_large = sum(size > ring // 8 for size in sizes)
    assert 0 < too_large < len(sizes), "both ways are tried"
    assert reader.here >= 3 * too_large
    assert reader.memory.in_use() == 0 and reader.locked == []


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("size", [(640, 480), (1024, 576)])
def test_who_holds_two_groups_has_them_all_from_the_processes(
    tmp_path: Path, size: tuple[int, int], workers: int
) -> None:
    """As a preprocessor does: a group that waits for its last, and one that goes up."""

    class Large(Reader):
        recipe = Preprocessing(256, (224, 224))
        max_size = 4096

    Image.effect_noise(size, 40).convert("RGB").save(tmp_path / "a.jpg", quality=50)
    reader, held = Large(), deque[Photograph[Any]]()
    for item in packed_ahead([tmp_path / "a.jpg"] * 200, [str(n) for n in range(200)], reader, workers):
        assert isinstance(item, Photograph)
        held.append(item)
        if len(held) == 2 * GROUP:
            for _ in range(GROUP):
                held.popleft().release()
    for each in held:
        each.release()
    assert reader.here == 0 and reader.locked == []


def test_a_large_file_is_left_undecoded(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (800, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1 << 20

    class Larger(Reader):
        max_size = 1000

    reader = Larger()
    (item,) = packed_ahead([tmp_path / "a.png"], ["a"], reader, 1)
    assert isinstance(item, Photograph) and reader.here == 0, "a ring of the usual size holds it"
    (item,) = packed_ahead([tmp_path / "a.png"], ["a"], reader, 1, ring=1 << 20)
    assert isinstance(item, Photograph) and reader.here == 1
    assert item.prepared.image.shape[1] > 500
    item.release()


def test_who_releases_nothing_waits_for_nothing(folder_of_all: Path) -> None:
    """What finds no room in a ring, because all is held, is read here."""
    files, names = listed(folder_of_all)
    reader = Reader()
    items = list(packed_ahead(files, names, reader, 2, ring=1 << 18))
    assert [item.name for item in items] == names
    held = [item for item in items if isinstance(item, Photograph)]
    assert reader.locked, "the rings live as long as what lies in them"
    random.Random(1).shuffle(held)
    again = [(each.name, each.prepared.image.tobytes()) for each in held]
    wanted = {name: content[1] for name, content in in_threads(files, names) if not isinstance(content, str)}
    assert all(wanted[name] == found for name, found in again)
    for each in held:
        each.release()
    assert reader.locked == [] and reader.memory.in_use() == 0


def test_releasing_in_any_order(folder_of_all: Path) -> None:
    files, names = listed(folder_of_all)
    generator, held, count = random.Random(2), [], 0
    reader = Reader()
    for item in packed_ahead(files * 4, names * 4, reader, 2, ring=1 << 20):
        count += 1
        if isinstance(item, Photograph):
            held.append((item, item.prepared.image.tobytes()))
        if len(held) > 3:
            given, content = held.pop(generator.randrange(len(held)))
            assert given.prepared.image.tobytes() == content, "nothing is written over what is held"
            given.release()
    for given, _ in held:
        given.release()
    assert count == 4 * len(names) and reader.locked == []


@pytest.mark.parametrize("taken", [0, 1, 25])
def test_leaving_early_ends_the_processes(folder_of_all: Path, taken: int) -> None:
    files, names = listed(folder_of_all)
    reader = Reader()
    items = packed_ahead(files * 50, names * 50, reader, 3, ring=1 << 18)
    for item in itertools.islice(items, taken):
        if isinstance(item, Photograph):
            item.release()
    assert len(children()) >= (3 if taken else 0)
    items.close()
    assert not children() and reader.locked == [] and reader.memory.in_use() == 0


@pytest.mark.parametrize("taken", [0, 2])
def test_a_team_started_before_is_used_and_ends_with_or_without_work(folder_of_all: Path, taken: int) -> None:
    files, names = listed(folder_of_all)
    reader = Reader()
    team = decoders.packed_team(reader.recipe, reader.max_size, 2)
    early = children()
    assert len(early) == 2
    items = packed_ahead(files, names, reader, 2, team=team)
    for item in itertools.islice(items, taken):
        assert children() == early, "no others are started"
        if isinstance(item, Photograph):
            item.release()
    items.close()
    team.close()
    assert not children() and reader.locked == [] and reader.memory.in_use() == 0


def test_an_engine_that_does_not_load_leaves_no_process(
    cli: Cli,
    photo_engine: Path,
    folder_of_all: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoders, "LEAST_CORES", 1)
    monkeypatch.setattr(decoders, "LEAST_FILES", 1)
    started: list[int] = []

    def damaged(*args: Any) -> None:
        started.extend(children())
        raise ArtifactError("it is damaged", "build it again")

    monkeypatch.setattr("trtbatch.infer.open_engine", damaged)
    result = cli("infer", "--input", folder_of_all)
    assert result.exit_code == 1 and "it is damaged" in result.output
    assert started and not children()


def test_photographs_come_while_rings_are_locked(folder_of_all: Path) -> None:
    class Slow(Reader):
        def __init__(self) -> None:
            super().__init__()
            self.may = threading.Event()

        def lock(self, memory: NDArray[np.uint8]) -> Callable[[], None]:
            assert self.may.wait(60)
            return super().lock(memory)

    reader = Slow()
    files, names = listed(folder_of_all)
    items = packed_ahead(files * 3, names * 3, reader, 2, ring=8 << 20)
    found = [next(items) for _ in range(len(files))]
    assert reader.locked == []
    reader.may.set()
    for item in (*found, *items):
        if isinstance(item, Photograph):
            item.release()
    assert reader.locked == [] and reader.memory.in_use() == 0


def test_a_slow_consumer_is_not_run_away_from(folder_of_all: Path, tmp_path: Path) -> None:
    """Rings bound memory; tasks bound what is read ahead, as the trace tells when each file was read."""
    files, names = [folder_of_all / "plain00.jpg"] * 400, [str(number) for number in range(400)]
    begun: list[float] = []
    with open_trace(tmp_path / "t.json") as trace:
        for number, item in enumerate(packed_ahead(files, names, Reader(), 2, trace, ring=1 << 20)):
            assert isinstance(item, Photograph)
            if number % 40 == 0:
                time.sleep(0.1)
            begun.append(time.perf_counter_ns() / 1000)
            item.release()
    read = {event["args"]["file"]: event["ts"] for event in spans(tmp_path / "t.json") if event["name"] == "read"}
    ahead = decoders.AHEAD * 2 * decoders.CHUNK
    assert all(read[str(number)] > begun[number - ahead - decoders.CHUNK] for number in range(ahead + 40, 400))


def test_the_trace_names_each_process(folder_of_all: Path, tmp_path: Path) -> None:
    files, names = listed(folder_of_all)
    team = decoders.packed_team(RECIPE, Reader.max_size, 2, 8 << 20)
    while not all(worker.has_begun for worker in team._idle):  # each has files to read then
        for worker in team._idle:
            worker.answers()
    with open_trace(tmp_path / "t.json") as trace:
        in_processes(files, names, Reader(), trace=trace, team=team)
    events = spans(tmp_path / "t.json")
    refuse_crossings(events)
    labels = thread_names(tmp_path / "t.json")
    read = [event for event in events if event["name"] == "read"]
    assert sorted(event["args"]["file"] for event in read) == sorted(os.fsdecode(os.fsencode(name)) for name in names)
    assert {labels[event["tid"]] for event in events} == {"trtbatch-decode-0", "trtbatch-decode-1"}
    opened = {event["args"]["file"] for event in events if event["name"] == "decode"}
    assert set(names) - opened == {"folder.jpg", "missing.jpg"}


@pytest.mark.parametrize("when", ["at once", "midway"])
def test_a_killed_process_loses_nothing(folder_of_all: Path, caplog: pytest.LogCaptureFixture, when: str) -> None:
    files, names = listed(folder_of_all)
    reader = Reader()
    items = packed_ahead(files * 6, names * 6, reader, 2, ring=1 << 20)
    found: list[tuple[str, Any]] = []
    for number, item in enumerate(items):
        if number == (0 if when == "at once" else 100):
            for pid in children():
                os.kill(pid, signal.SIGKILL)
        found += contents(iter([item]))
    assert found == in_threads(files, names) * 6
    assert "ended by signal SIGKILL" in caplog.text and reader.locked == []


def test_processes_that_do_not_start_are_done_without(
    folder_of_all: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, names = listed(folder_of_all)
    monkeypatch.setattr(
        decoders, "_environment", lambda: {"PYTHONPATH": "/nowhere", "PYTHONSAFEPATH": "1", "PYTHONHOME": "/"}
    )
    reader = Reader()
    assert in_processes(files * 2, names * 2, reader) == in_threads(files, names) * 2
    assert "the run goes on without it" in caplog.text and reader.here > 0


def test_no_process_can_be_started(
    folder_of_all: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, names = listed(folder_of_all)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert in_processes(files, names, Reader()) == in_threads(files, names)
    assert "can't be started: No such file or directory" in caplog.text


DEADLY = """
import os, signal
from trtbatch.photographs import decoder_worker
inner = decoder_worker.read_bytes
def deadly(path):
    if path.name == "plain07.jpg":
        os.kill(os.getpid(), signal.SIGKILL)
    if path.name == "plain11.jpg" and not os.path.exists({mark!r}):
        open({mark!r}, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if path.name == "plain13.jpg":
        raise MemoryError("too much")
    return inner(path)
decoder_worker.read_bytes = deadly
import sys
sys.exit(decoder_worker.main(sys.argv[1], sys.argv[2]))
"""


def test_a_file_that_ends_processes_is_left_out_and_no_other(
    folder_of_all: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One kills each process that reads it, one the first, one makes each run out of memory."""
    files, names = listed(folder_of_all)
    script = DEADLY.format(mark=str(tmp_path / "mark"))
    popen = subprocess.Popen

    def started(command: list[str], **options: Any) -> Any:
        return popen([command[0], "-c", script, *command[3:]], **options)

    monkeypatch.setattr(subprocess, "Popen", started)
    found = dict(in_processes(files, names, Reader(), workers=2, ring=8 << 20))
    monkeypatch.undo()
    wanted = dict(in_threads(files, names))
    assert [name for name in names if found[name] != wanted[name]] == ["plain07.jpg", "plain13.jpg"]
    assert found["plain07.jpg"] == "decoding it ends the process that does it by signal SIGKILL"
    assert found["plain13.jpg"] == "decoding it ends the process that does it with exit code 1: MemoryError: too much"
    assert "is tried again by another" in caplog.text


def test_memory_that_can_not_be_locked_is_used_all_the_same(folder_of_all: Path) -> None:
    class Refusing(Reader):
        def lock(self, memory: NDArray[np.uint8]) -> Callable[[], None]:
            raise ExecutionError("no more", "free memory")

    files, names = listed(folder_of_all)
    assert in_processes(files, names, Refusing()) == in_threads(files, names)


def test_memory_with_a_file_behind_it(folder_of_all: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    files, names = listed(folder_of_all)
    assert in_processes(files, names, Reader()) == in_threads(files, names)


RUN = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
from pathlib import Path
from tests.test_decoders import Reader
from trtbatch.photographs.decoders import packed_ahead

if __name__ != "__main__":
    raise SystemExit("imported again")
files = [Path(sys.argv[1])] * 100000
for number, item in enumerate(packed_ahead(files, list(map(str, files)), Reader(), 3)):
    item.release()
    if number == 50:
        print("begun", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("early", [True, False])
def test_a_signal_ends_all_processes_without_a_word(
    folder_of_all: Path, tmp_path: Path, number: signal.Signals, early: bool
) -> None:
    """SIGINT goes to the whole group, as Ctrl-C does; the others to the parent alone."""
    (tmp_path / "run.py").write_text(RUN)
    process = subprocess.Popen(
        [sys.executable, "run.py", str(folder_of_all / "plain00.jpg")],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
        start_new_session=True,
    )
    assert process.stdout is not None
    if early:
        deadline = time.monotonic() + 30
        while len(in_session(process.pid)) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
    else:
        assert process.stdout.readline() == "begun\n"
    assert len(in_session(process.pid)) == 4
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    try:
        _, words = process.communicate(timeout=30)
    finally:
        process.kill()
    deadline = time.monotonic() + 30
    while in_session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert in_session(process.pid) == []
    assert words.count("Traceback") == (1 if number == signal.SIGINT else 0), words


def in_session(session: int) -> list[int]:
    """Processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def test_a_worker_imports_no_more_than_it_needs() -> None:
    names = "{name.partition('.')[0] for name in sys.modules}"
    code = f"import sys, trtbatch.photographs.decoder_worker; print(*sorted({names}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=child_environment())
    assert not {"onnx", "onnxruntime", "torch", "typer", "rich", "multiprocessing"} & set(done.stdout.split())


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: decoders.LEAST_CORES)
    assert are_wanted(decoders.LEAST_FILES) and not are_wanted(decoders.LEAST_FILES - 1)
    assert are_wanted(1, asked=True) and not are_wanted(decoders.LEAST_FILES, asked=False)
    monkeypatch.setattr(os, "cpu_count", lambda: decoders.LEAST_CORES - 1)
    assert not are_wanted(decoders.LEAST_FILES)

    def foreign(*args: Any) -> Any:
        raise SyntaxError

    monkeypatch.setitem(Image.OPEN, "OTHER", (foreign, None))
    assert not are_wanted(1, asked=True), "another process doesn't know that format"


def test_what_this_process_tells_pillow_holds_there(folder_of_all: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageFile

    files, names = listed(folder_of_all)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9000)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    wanted = in_threads(files, names)
    assert in_processes(files, names, Reader(), ring=8 << 20) == wanted
    assert "exceeds limit of 18000 pixels" in dict(wanted)["large.jpg"]
    assert not isinstance(dict(wanted)["truncated.jpg"], str)


def test_infer_writes_the_same_either_way(
    cli: Cli,
    photo_engine: Path,
    folder_of_all: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Any] = []
    samples_ahead = decoders.samples_ahead

    def counted(*args: Any, **options: Any) -> Any:
        started.append(options["team"])
        return samples_ahead(*args, **options)

    monkeypatch.setattr(decoders, "samples_ahead", counted)
    for name, cores in (("threads", 1 << 20), ("processes", 1)):
        monkeypatch.setattr(decoders, "LEAST_CORES", cores)
        monkeypatch.setattr(decoders, "LEAST_FILES", 1)
        result = cli("infer", "--input", folder_of_all, "--output", f"{name}.csv", "--trace", f"{name}.json")
        assert result.exit_code == 1 and "7 of 40 inputs were skipped" in result.output
        assert len(started) == (name == "processes") and None not in started
    assert (folder / "threads.csv").read_bytes() == (folder / "processes.csv").read_bytes()
    labels = {name.rpartition("-")[0] for name in thread_names(folder / "processes.json").values()}
    assert "trtbatch-decode" in labels and json.loads((folder / "threads.json").read_text())


def test_a_recorder_is_asked_for_nothing_where_there_is_no_trace(folder_of_all: Path) -> None:
    recorder: Recorder = NO_TRACE
    recorder.record("x", 0, 1, {}, (1, "x"))
