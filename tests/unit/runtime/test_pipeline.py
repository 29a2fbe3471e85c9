"""The pipeline on an engine written by hand, whose slots tell when they are used; then on ONNX Runtime.

Where a test says that two things happen at the same time, each waits for the other to have begun: done one after
the other they would never end, and the wait's time-out is the failure.
"""

from __future__ import annotations

import itertools
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime import InferenceSession

from tests.support import models
from tests.support.sidecars import change_sidecar
from tests.support.traces import refuse_crossings, spans, thread_names
from trtbatch.backends import open_engine
from trtbatch.core.batches import Profile
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.store import load
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import ExecutionError, InputError
from trtbatch.images.host import CHUNK, Skipped, read_ahead
from trtbatch.runtime.infer import InferRequest, InferResult, predict
from trtbatch.runtime.pipeline import SPARE, Batch, Pipeline, executed_size, foreseen
from trtbatch.runtime.sinks import open_sink
from trtbatch.runtime.sources import ArraySource, Sample, Source
from trtbatch.util.serialization import encode
from trtbatch.util.trace import open_trace

Cli = Callable[..., Any]

PATIENCE = 20.0
"""Seconds after which what should have happened is taken not to happen."""

WIDTH = 3
INPUT = TensorSpec("input", "float32", ("batch_size", WIDTH))
PROFILES = (Profile(1, 4, 8),)


def await_(event: threading.Event) -> None:
    assert event.wait(PATIENCE), "nothing happens at the same time"


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - before
    assert not left, left


class HandSlot:
    """Doubles its input when it is waited for, so that a slot filled too early gives wrong rows."""

    def __init__(self, session: HandSession) -> None:
        self._session = session
        self._memory = np.zeros(8 * WIDTH, np.float32)
        self._now = np.zeros((0, WIDTH), np.float32)
        self._number = -1
        self._place = session.slots - 1

    def prepare(self, batch: int) -> dict[str, Any]:
        self._session.check_thread()
        self._now = self._memory[: batch * WIDTH].reshape(batch, WIDTH)
        return {"input": self._now}

    def warm(self, batch: int) -> None:
        self._session.check_thread()
        self._session.warmed.append((self._place, batch))

    def submit(self) -> None:
        self._number = self._session.tell("submit")

    def wait(self) -> dict[str, Any]:
        assert self._session.tell("wait") == self._number, "the oldest is waited for first"
        return {"output": self._now * 2}

    def run(self) -> dict[str, Any]:
        raise NotImplementedError

    def parts(self) -> dict[str, float]:
        return {}


class HandSession:
    """Its own engine too. `on` is called with ``open``, ``slot``, ``submit``, ``wait`` or ``close``, and a number."""

    flush = None

    def __init__(self, in_flight: int = 1, on: Callable[[str, int], None] = lambda what, number: None) -> None:
        self.in_flight = in_flight
        self.log: list[tuple[str, int]] = []
        self.slots = 0
        self.most_in_flight = 0
        self.asked: list[bool] = []
        self.warmed: list[tuple[int, int]] = []
        """Number of the slot, and size."""
        self._on = on
        self._thread: int | None = None

    def tell(self, what: str) -> int:
        self.check_thread()
        number = sum(each == what for each, _ in self.log)
        self.log.append((what, number))
        flying = sum(w == "submit" for w, _ in self.log) - sum(w == "wait" for w, _ in self.log)
        self.most_in_flight = max(self.most_in_flight, flying)
        self._on(what, number)
        return number

    def check_thread(self) -> None:
        assert self._thread == threading.get_ident(), "a session belongs to one thread"

    def session(self, cuda_graphs: bool = True) -> Any:
        self.asked.append(cuda_graphs)
        return self

    def slot(self, spins: bool = True) -> HandSlot:
        self.slots += 1
        self.tell("slot")
        return HandSlot(self)

    def __enter__(self) -> HandSession:
        self._thread = threading.get_ident()
        self.tell("open")
        return self

    def __exit__(self, *error: object) -> None:
        self.tell("close")


class HandSource:
    """Samples 0, 1, …; `on` is called with each number before it is given, and may say why it can't be used."""

    def __init__(self, total: int, on: Callable[[int], str | None] = lambda number: None) -> None:
        self.total = total
        self.constants: dict[str, Any] = {}
        self.closed = False
        self._on = on

    def __iter__(self) -> Iterator[Sample | Skipped]:
        try:
            for number in range(self.total):
                reason = self._on(number)
                if reason is not None:
                    yield Skipped(str(number), reason)
                else:
                    yield Sample(str(number), {"input": np.full(WIDTH, number, np.float32)})
        finally:
            self.closed = True


def nothing_skipped(item: Skipped) -> None:
    raise AssertionError(item)


def pipeline(session: HandSession, source: Any, sizes: Sequence[int] = (4,), **options: Any) -> Pipeline:
    skip = options.pop("skip", nothing_skipped)
    return Pipeline(session, [INPUT], options.pop("profiles", PROFILES), source, sizes, skip, **options)


def rows(batch: Batch) -> list[int]:
    """The numbers of the samples, by what came out; names must agree."""
    found = batch.outputs["output"][: len(batch.names)]
    assert found.shape == (len(batch.names), WIDTH)
    assert (found == found[:, :1]).all()
    assert [str(int(value)) for value in found[:, 0] / 2] == batch.names
    return [int(value) for value in found[:, 0] / 2]


def run(session: HandSession, source: Any, sizes: Sequence[int] = (4,), **options: Any) -> list[list[int]]:
    with pipeline(session, source, sizes, **options) as batches:
        return [rows(batch) for batch in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


class Shuffled:
    """A source that reads in threads, in times of their own: later samples are ready before earlier ones."""

    def __init__(self, total: int, workers: int) -> None:
        self.total = total
        self.workers = workers
        self.opened: list[int] = []
        self.constants: dict[str, np.ndarray[Any, Any]] = {}

    def __iter__(self) -> Iterator[Sample | Skipped]:
        numbers = range(self.total)
        for item in read_ahead(numbers, [str(number) for number in numbers], self._read, self.workers):
            assert not isinstance(item, Skipped)
            yield Sample(item.name, {"input": item.value})

    def _read(self, number: Any) -> np.ndarray[Any, Any]:
        self.opened.append(number)
        time.sleep(random.Random(str(number)).uniform(0, 0.004))
        return np.full(WIDTH, number, np.float32)


@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.parametrize("sizes", [[1], [4], [8], [8, 3, 3]])
def test_everything_comes_in_order_however_long_each_read_takes(in_flight: int, sizes: list[int]) -> None:
    source = Shuffled(61, workers=4)
    session = HandSession(in_flight)
    found = run(session, source, sizes)
    assert flat(found) == list(range(61))
    assert [len(batch) for batch in found[:-1]] == list(itertools.islice(itertools.cycle(sizes), len(found) - 1))
    assert session.slots == in_flight + SPARE
    assert session.most_in_flight <= in_flight
    assert session.log[-1][0] == "close"


@pytest.mark.parametrize("total", [0, 1, 4, 8, 9])
def test_any_number_of_samples_ends(total: int) -> None:
    session = HandSession()
    assert flat(run(session, HandSource(total))) == list(range(total))
    assert session.slots == max(1, min(3, -(-total // 4))), "no more slots than batches"


@pytest.mark.parametrize("sizes", [[4], [1], [8, 3, 3], [2, 5]])
@pytest.mark.parametrize("total", [0, 1, 2, 7, 8, 40, 41, 43, 60])
@pytest.mark.parametrize("first", [1, 3])
def test_the_first_batches_and_the_last_are_foreseen(total: int, sizes: list[int], first: int) -> None:
    samples: list[int] = []
    for size in itertools.cycle(sizes):
        if sum(samples) == total:
            break
        samples.append(min(size, total - sum(samples)))
    numbers = [*range(min(first, len(samples))), *range(max(first, len(samples) - 1), len(samples))]
    assert foreseen(total, sizes, first) == [(number, samples[number]) for number in numbers]


def test_what_the_foreseen_batches_take_is_made_before_anything_is_read() -> None:
    session = HandSession(in_flight=2)
    reading: list[list[tuple[int, int]]] = []

    def on(number: int) -> None:
        reading.append(list(session.warmed))

    found = run(session, HandSource(34, on), sizes=[8], profiles=(Profile(1, 4, 8),))
    assert flat(found) == list(range(34))
    assert len(found) == 5
    assert reading[0] == reading[-1] == [(0, 8), (1, 8), (2, 8), (3, 8), (0, 2)], "the fifth batch is the first room's"


def test_a_feed_that_can_not_begin_is_closed() -> None:
    calls: list[str] = []

    class Broken:
        def open(self) -> None:
            calls.append("open")
            raise ExecutionError("out of memory", "free some")

        def close(self) -> None:
            calls.append("close")

    with (
        pytest.raises(ExecutionError, match="out of memory"),
        pipeline(HandSession(), HandSource(8), feed=lambda skip, check: Broken()) as batches,
    ):
        list(batches)
    assert calls == ["open", "close"]


def test_short_batches_are_padded_with_their_last_row() -> None:
    profiles = (Profile(2, 2, 2), Profile(4, 4, 4))
    assert [executed_size(count, profiles) for count in (1, 2, 3, 4)] == [2, 2, 4, 4]
    with pipeline(HandSession(), HandSource(7), profiles=profiles) as batches:
        for batch in batches:
            assert batch.executed == 4
            last = batch.outputs["output"]
    assert last[:, 0].tolist() == [8, 10, 12, 12]


def test_unusable_inputs_are_told_in_order_and_their_places_taken() -> None:
    told: list[str] = []
    source = HandSource(12, lambda number: "odd" if number % 2 else None)
    found = run(HandSession(), source, (4,), skip=lambda item: told.append(item.name))
    assert found == [[0, 2, 4, 6], [8, 10]]
    assert told == ["1", "3", "5", "7", "9", "11"]


def test_whether_graphs_are_wanted_reaches_the_session() -> None:
    session = HandSession()
    run(session, HandSource(1), cuda_graphs=False)
    run(session, HandSource(1))
    assert session.asked == [False, True]


# Overlap.


def test_computing_a_batch_runs_beside_reading_a_later_one() -> None:
    reading, computing = threading.Event(), threading.Event()

    def read(number: int) -> None:
        if number == 5:  # the second of batch 1
            reading.set()
            await_(computing)

    def used(what: str, number: int) -> None:
        if (what, number) == ("submit", 0):
            computing.set()
            await_(reading)

    assert flat(run(HandSession(1, used), HandSource(12, read))) == list(range(12))


def test_computing_a_batch_runs_beside_writing_an_earlier_one() -> None:
    writing, computing = threading.Event(), threading.Event()

    def used(what: str, number: int) -> None:
        if (what, number) == ("submit", 1):
            computing.set()
            await_(writing)

    with pipeline(HandSession(1, used), HandSource(12)) as batches:
        for batch in batches:
            if batch.number == 0:
                writing.set()
                await_(computing)
            rows(batch)


def test_all_three_run_at_once() -> None:
    barrier = threading.Barrier(3)

    def read(number: int) -> None:
        if number == 8:
            barrier.wait(PATIENCE)

    def used(what: str, number: int) -> None:
        if (what, number) == ("submit", 1):
            barrier.wait(PATIENCE)

    with pipeline(HandSession(1, used), HandSource(16, read)) as batches:
        for batch in batches:
            if batch.number == 0:
                barrier.wait(PATIENCE)


def test_as_many_batches_are_in_flight_as_the_session_says() -> None:
    """Batches 1 and 2 are filled while 0 is being submitted: then all three are submitted before any is waited for."""
    filled = threading.Event()

    def read(number: int) -> None:
        if number == 12:
            filled.set()

    def used(what: str, number: int) -> None:
        if (what, number) == ("submit", 0):
            await_(filled)

    session = HandSession(3, used)
    run(session, HandSource(24, read))
    used_first = [entry for entry in session.log if entry[0] in ("submit", "wait")][:4]
    assert used_first == [("submit", 0), ("submit", 1), ("submit", 2), ("wait", 0)]
    assert session.most_in_flight == 3


def test_a_slow_reader_holds_no_result_back() -> None:
    """The reader goes on only when the first result is out, though three batches could be in flight."""
    out = threading.Event()

    def read(number: int) -> None:
        if number == 4:
            await_(out)

    with pipeline(HandSession(3), HandSource(8, read)) as batches:
        for batch in batches:
            rows(batch)
            out.set()


def test_a_trace_shows_the_overlap(tmp_path: Path) -> None:
    reading, computing = threading.Event(), threading.Event()

    def read(number: int) -> None:
        if number == 5:
            reading.set()
            await_(computing)

    def used(what: str, number: int) -> None:
        if (what, number) == ("submit", 0):
            computing.set()
            await_(reading)

    path = tmp_path / "t.json"
    with open_trace(path) as trace:
        run(HandSession(1, used), HandSource(12, read), trace=trace)
    events = spans(path)
    refuse_crossings(events)
    times = {
        (event["name"], event["args"].get("batch")): (event["ts"], event["ts"] + event["dur"], event["tid"])
        for event in events
    }
    compute, fill = times["compute", 0], times["fill", 1]
    assert compute[0] < fill[1], "they overlap in time"
    assert fill[0] < compute[1], "they overlap in time"
    names = thread_names(path)
    assert (names[compute[2]], names[fill[2]]) == ("trtbatch-run", "trtbatch-fill")
    samples = [event["args"]["samples"] for event in events if event["name"] == "wait"]
    assert samples == [4, 4, 4]


def test_a_trace_of_several_in_flight_says_submit(tmp_path: Path) -> None:
    with open_trace(tmp_path / "t.json") as trace:
        run(HandSession(2), HandSource(12), trace=trace)
    found = [event["name"] for event in spans(tmp_path / "t.json")]
    assert found.count("submit") == found.count("wait") == 3
    assert "compute" not in found


# Bounded memory.


@pytest.mark.parametrize("in_flight", [1, 3])
def test_a_blocked_sink_stops_the_reader(in_flight: int) -> None:
    bound = 4 * (in_flight + SPARE)
    read: list[int] = []
    reached = threading.Event()

    def count(number: int) -> None:
        read.append(number)
        if len(read) == bound:
            reached.set()

    with pipeline(HandSession(in_flight), HandSource(200, count)) as batches:
        for index, batch in enumerate(batches):
            if index == 0:
                await_(reached)  # it fills every slot, this batch's own included …
            assert len(read) <= 4 * index + bound, "… and no more"
            rows(batch)
    assert len(read) == 200


def test_a_blocked_engine_stops_the_reader() -> None:
    read: list[int] = []
    reached = threading.Event()

    def count(number: int) -> None:
        read.append(number)
        if len(read) == 12:
            reached.set()

    def used(what: str, number: int) -> None:
        if what == "submit":
            if number == 0:
                await_(reached)
            assert len(read) <= 4 * number + 12

    assert len(run(HandSession(1, used), HandSource(100, count))) == 25


def test_images_too_are_read_a_bounded_distance_ahead() -> None:
    source = Shuffled(200, workers=2)
    with pipeline(HandSession(), source) as batches:
        for index, batch in enumerate(batches):
            assert len(source.opened) <= 4 * (index + 1 + SPARE) + CHUNK * (2 * source.workers + 1)
            rows(batch)


# Errors and interrupts.


class BrokenError(Exception):
    """A stage's own error."""


@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.parametrize("where", ["open", "slot", "submit", "wait", "close"])
def test_an_error_of_the_session_ends_everything(where: str, in_flight: int) -> None:
    error = BrokenError(where)

    def used(what: str, number: int) -> None:
        if what == where and number in (0, 2):
            raise error

    source = HandSource(10**9) if where != "close" else HandSource(10)
    with pytest.raises(BrokenError) as caught:
        run(HandSession(in_flight, used), source)
    assert caught.value is error


def test_an_error_of_the_source_ends_everything_and_closes_it() -> None:
    def read(number: int) -> None:
        if number == 30:
            raise BrokenError

    source, session = HandSource(1000, read), HandSession()
    with pytest.raises(BrokenError):
        run(session, source)
    assert source.closed
    assert session.log[-1][0] == "close"


def test_a_source_that_cannot_be_begun_ends_everything() -> None:
    class Unreadable(HandSource):
        def __iter__(self) -> Iterator[Sample | Skipped]:
            raise BrokenError

    with pytest.raises(BrokenError):
        run(HandSession(), Unreadable(9))


def test_an_error_about_a_skipped_input_ends_everything() -> None:
    def skip(item: Skipped) -> None:
        raise InputError(item.name, "mend it")

    with pytest.raises(InputError, match="9"):
        run(HandSession(), HandSource(10**9, lambda number: "bad" if number == 9 else None), skip=skip)


@pytest.mark.parametrize("kind", [BrokenError, KeyboardInterrupt])
def test_an_error_of_the_sink_ends_everything(kind: type[BaseException]) -> None:
    source, session = HandSource(10**9), HandSession(3)
    with pytest.raises(kind), pipeline(session, source) as batches:  # noqa: PT012
        for batch in batches:
            if batch.number == 5:
                raise kind
    assert source.closed
    assert session.log[-1][0] == "close"


def test_an_interrupt_while_results_are_awaited_ends_everything() -> None:
    """As Ctrl-C comes: a signal, in the main thread, which waits for the runner."""
    received, stopped = threading.Event(), threading.Event()

    def used(what: str, number: int) -> None:
        if (what, number) == ("submit", 2):
            await_(received)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            await_(stopped)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    session = HandSession(1, used)
    try:
        with pytest.raises(KeyboardInterrupt), pipeline(session, HandSource(10**9)) as batches:  # noqa: PT012
            try:
                for batch in batches:
                    rows(batch)
                    received.set()
            finally:
                stopped.set()
    finally:
        signal.signal(signal.SIGINT, before)
    assert session.log[-1][0] == "close"


def test_no_slot_is_freed_while_it_is_written_or_read() -> None:
    """The session, and the slots' memory with it, stays until the sink and the filler are through."""
    received, failed = threading.Event(), threading.Event()
    ended: list[str] = []

    def used(what: str, number: int) -> None:
        if (what, number) == ("submit", 1):
            await_(received)
            failed.set()
            raise BrokenError
        if what == "close":
            ended.append("session")

    def read(number: int) -> None:
        if number == 9:
            await_(failed)
            time.sleep(0.02)
            ended.append("filler")

    with pytest.raises(BrokenError), pipeline(HandSession(1, used), HandSource(100, read)) as batches:  # noqa: PT012
        for batch in batches:
            received.set()
            await_(failed)
            time.sleep(0.05)
            rows(batch)
            ended.append("sink")
    assert sorted(ended[:2]) == ["filler", "sink"]
    assert ended[2:] == ["session"]


@pytest.mark.parametrize(
    ("row", "told"),
    [(np.ones(4, np.float32), "shape"), (np.ones((), np.float32), "shape"), (np.full(WIDTH, 0.1), "would change")],
)
def test_a_row_that_does_not_fit_is_refused(row: Any, told: str) -> None:
    class Odd(HandSource):
        def __iter__(self) -> Iterator[Sample | Skipped]:
            yield Sample("odd", {"input": row})

    with pytest.raises(InputError, match=told):
        run(HandSession(), Odd(1))


# On ONNX Runtime.


class RowsOnly:
    """A source of arrays without its way to give many samples at once."""

    def __init__(self, source: ArraySource) -> None:
        self.total = source.total
        self.constants = source.constants
        self._source = source

    def __iter__(self) -> Iterator[Sample | Skipped]:
        return iter(self._source)


def built(cli: Cli, path: Path, *options: object) -> Path:
    result = cli("build", path, "--backend", "onnxruntime", *(options or ("--max", 4)))
    assert result.exit_code == 0, result.output
    return Path("engines") / f"{path.stem}.ort.onnx"


def predicted(engine: Path, arrays: dict[str, Any], sizes: Sequence[int], blocks: bool) -> dict[str, Any]:
    """What `predict` writes into a .npz."""
    artifact = load(engine, "engine")
    named: Any = arrays
    np.savez("given.npz", **named)
    given: Source = ArraySource(Path("given.npz"), artifact.sidecar.inputs, None)
    request, result = InferRequest(engine, "given.npz"), InferResult("", "", "")
    with open_sink(Path("made.npz"), artifact.sidecar) as sink, open_engine(artifact) as opened:
        source = given if blocks else RowsOnly(given)  # type: ignore[arg-type]
        predict(opened, source, sink, sizes, request, result)
    with np.load("made.npz") as made:
        return dict(made)


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("sizes", [[4], [4, 4, 3], [1]])
def test_a_batch_axis_that_is_not_the_first(cli: Cli, folder: Path, blocks: bool, sizes: list[int]) -> None:
    engine = built(cli, models.batch_last(folder / "m.onnx"))
    array = np.arange(4 * 13, dtype=np.float32).reshape(4, 13)
    assert np.array_equal(predicted(engine, {"input": array}, sizes, blocks)["output"], -array.T)


@pytest.mark.parametrize("blocks", [True, False])
def test_a_batch_axis_that_is_not_the_first_is_padded(cli: Cli, folder: Path, blocks: bool) -> None:
    engine = built(cli, models.batch_last(folder / "m.onnx"), "--profile", "3:3:3", "--profile", "8:8:8")
    array = np.arange(4 * 10, dtype=np.float32).reshape(4, 10)
    assert np.array_equal(predicted(engine, {"input": array}, [8], blocks)["output"], -array.T)


@pytest.mark.parametrize("blocks", [True, False])
def test_two_inputs(cli: Cli, folder: Path, blocks: bool) -> None:
    engine = built(cli, models.two_inputs(folder / "m.onnx"))
    left, right = np.random.default_rng(0).standard_normal((2, 11, 4)).astype(np.float32)
    found = predicted(engine, {"left": left, "right": right.astype(np.float64)}, [4], blocks)
    assert np.array_equal(found["output"], left - right)


@pytest.mark.parametrize("blocks", [True, False])
def test_an_input_without_a_batch_axis_is_the_same_for_every_batch(cli: Cli, folder: Path, blocks: bool) -> None:
    engine = built(cli, models.two_inputs(folder / "m.onnx", "batch_size", 1))
    left, right = np.arange(52, dtype=np.float32).reshape(13, 4), np.array([[1, 2, 3, 4]], np.float32)
    assert np.array_equal(predicted(engine, {"left": left, "right": right}, [4], blocks)["output"], left - right)
    with pytest.raises(InputError, match="right is float64"):
        predicted(engine, {"left": left, "right": right.astype(np.float64) + 0.1}, [4], blocks)


def test_outputs_whose_size_the_data_decides(cli: Cli, folder: Path) -> None:
    engine = built(cli, models.nonzero_twice(folder / "m.onnx"))
    artifact = load(engine, "engine")
    array = np.random.default_rng(0).standard_normal((11, 4)).astype(np.float32) * 3
    np.save("x.npy", array)
    source = ArraySource(Path("x.npy"), artifact.sidecar.inputs, None)
    with open_engine(artifact) as opened:
        lines = Pipeline(
            opened, artifact.sidecar.inputs, artifact.sidecar.engine.profiles, source, [4], nothing_skipped
        )
        with lines as batches:
            for batch in batches:
                part = array[4 * batch.number : 4 * batch.number + 4]
                expected = [np.argwhere(part > limit) for limit in (0, 2)]
                lists = [value for value in batch.outputs.values() if value.dtype == np.int64]
                shapes = sorted(sorted(value.shape) for value in lists)
                assert shapes == sorted(sorted(each.shape) for each in expected)
    assert cli("infer", engine, "--input", "x.npy", "--output", "y.npz").exit_code == 0


def test_an_engine_that_fails_is_told_as_it_failed(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = built(cli, models.negated(folder / "m.onnx"))
    artifact = load(engine, "engine")
    np.save("x.npy", np.zeros((8, 4), np.float32))
    source = ArraySource(Path("x.npy"), artifact.sidecar.inputs, None)
    request, result = InferRequest(engine, "x.npy", output=Path("y.npz")), InferResult("", "", "")
    run, runs = InferenceSession.run_with_iobinding, itertools.count()

    def fail(session: Any, binding: Any, options: Any = None) -> None:
        if next(runs) == 1:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no more")
        run(session, binding, options)

    monkeypatch.setattr(InferenceSession, "run_with_iobinding", fail)
    with (
        open_engine(artifact) as opened,
        pytest.raises(ExecutionError, match="ONNX Runtime failed"),
        open_sink(Path("y.npz"), artifact.sidecar) as sink,
    ):
        predict(opened, source, sink, [2], request, result)
    assert not Path("y.npz").exists()
    assert not list(folder.glob(".trtbatch*"))


def test_the_trace_of_a_run_on_images(cli: Cli, engine: Path, folder: Path, photos: Path) -> None:
    change_sidecar(engine, preprocessing=encode(Preprocessing(10, (8, 8))))
    result = cli("infer", "--input", photos, "--output", "p.csv", "--trace", "t.json")
    assert result.exit_code == 0, result.output
    events = spans(folder / "t.json")
    refuse_crossings(events)
    names = thread_names(folder / "t.json")
    by_name = {name: [event for event in events if event["name"] == name] for name in {e["name"] for e in events}}
    assert [event["args"] for event in by_name["reader"]] == [{"reader": "host"}]
    assert len(by_name["read"]) == 10
    assert all(names[event["tid"]].startswith("trtbatch-read") for event in by_name["read"])
    for name in ("compute", "wait", "sink"):
        assert [event["args"] for event in by_name[name]] == [
            {"batch": number, "samples": count} for number, count in enumerate((4, 4, 2))
        ]
    assert {names[event["tid"]] for event in by_name["sink"]} == {"MainThread"}
