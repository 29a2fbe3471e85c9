"""Photographs in groups, as the GPU is given them: every copy and launch is done here, on memory that stands for its.

What the engine does ONNX Runtime does, on the file that the engine is built from, whenever it is launched and at the
addresses and shapes that its context has then. So a wrong address, size, order or release shows in the samples.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from PIL import Image

from scripts.preprocessor_table import photograph, sizes
from tests.test_preprocessor import sidecar
from trtbatch.backends.tensorrt import preprocess
from trtbatch.backends.tensorrt.preprocess import Laid, Prepared, TensorRTPreprocessor
from trtbatch.errors import ExecutionError
from trtbatch.photographs.arena import aligned
from trtbatch.photographs.codec import Plane
from trtbatch.photographs.decoder_worker import Order, _PackedMaker
from trtbatch.photographs.operands import GROUP, GROUP_SIDE, Packing, band, operands, profile_of, square
from trtbatch.photographs.preprocessor import build_graph, describe, feeds
from trtbatch.photographs.record import OUTPUT, PreprocessorRecord
from trtbatch.preprocessing import Preprocessing

EVEN = Preprocessing(resize=40, crop=(32, 32))
"""A sample is 12,288 bytes: rows follow each other as samples do in a lane."""

ODD = Preprocessing(resize=40, crop=(29, 31))
"""A sample is 10,788 bytes: it doesn't."""

CUBIC = Preprocessing(resize=40, crop=(32, 32), interpolation="bicubic")
"""Its taps come from the host."""

MOST = 700


@dataclass
class Memory:
    """Bytes with addresses; what is put on a stream while a graph is captured is kept, and done when it is launched."""

    bytes: NDArray[np.uint8] = field(default_factory=lambda: np.full(96 << 20, 0xFF, np.uint8))  # NaN wherever read
    end: int = 256
    captured: list[Callable[[], None]] | None = None
    launches: int = 0

    def do(self, work: Callable[[], None]) -> None:
        if self.captured is None:
            work()
        else:
            self.captured.append(work)

    def at(self, address: int, count: int) -> NDArray[np.uint8]:
        assert address > 0 and address + count <= self.end
        return self.bytes[address : address + count]


class Block:
    def __init__(self, memory: Memory, count: int) -> None:
        self.memory, self.bytes, self.address = memory, count, memory.end
        memory.end += -(-count // 256) * 256

    def fill(self, byte: int, stream: Any) -> None:
        self.memory.at(self.address, self.bytes)[...] = byte

    def free(self) -> None:
        return


class Stream:
    handle = 1
    pycuda = None

    def synchronize(self) -> None:
        return

    def event(self, timed: bool = True, blocking: bool = False) -> Stream:
        return self

    record = close = synchronize

    def has_come(self) -> bool:
        return True


class PlaneCopy:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def up(self, pixels: NDArray[np.uint8], address: int, pitch: int, stream: Any) -> None:
        for row, line in enumerate(pixels):
            self._memory.at(address + row * pitch, line.size)[...] = line.ravel()

    def across(self, plane: Plane, address: int, pitch: int, stream: Any) -> None:
        count = 3 * plane.width
        for row in range(plane.height):
            there = self._memory.at(plane.address + row * plane.pitch, count)
            self._memory.at(address + row * pitch, count)[...] = there


class PlaneCopies:
    """Several planes at once: on the GPU, or at addresses of this process."""

    def __init__(self, memory: Memory, most: int) -> None:
        self._memory, self._most = memory, most
        self.calls = 0

    def __call__(
        self, planes: Sequence[tuple[int, int, int, int]], address: int, step: int, pitch: int, stream: int
    ) -> None:
        assert 0 < len(planes) <= self._most and stream == Stream.handle
        self.calls += 1
        for start, from_pitch, height, width in planes:
            count = 3 * width
            assert pitch >= count <= from_pitch and height * pitch <= step
            for row in range(height):
                there = start + row * from_pitch
                line = (
                    bytes(self._memory.at(there, count)) if there < self._memory.end else ctypes.string_at(there, count)
                )
                self._memory.at(address + row * pitch, count)[...] = np.frombuffer(line, np.uint8)
            address += step


class Device:
    def __init__(self, together: bool) -> None:
        self.memory_ = Memory()
        self.uploads = 0
        self.copied: list[PlaneCopies] = []
        self._together = together

    def stream(self) -> Stream:
        return Stream()

    def memory(self, count: int) -> Block:
        return Block(self.memory_, count)

    def plane_copy(self) -> PlaneCopy:
        return PlaneCopy(self.memory_)

    def plane_copies(self, most: int) -> PlaneCopies | None:
        if not self._together:
            return None
        self.copied.append(PlaneCopies(self.memory_, most))
        return self.copied[-1]

    def free_memory(self) -> int:
        return 1 << 30

    def enter_thread(self) -> None:
        return

    leave_thread = enter_thread

    def page_locked(self, count: int) -> NDArray[np.uint8]:
        return np.empty(count, np.uint8)

    def free_page_locked(self, block: NDArray[np.uint8]) -> None:
        return

    def upload(self, address: int, array: NDArray[Any], stream: Any) -> None:
        self.uploads += 1
        self.memory_.at(address, array.nbytes)[...] = array.view(np.uint8).ravel()

    def copy(self, target: int, source: int, count: int, stream: Any) -> None:
        self.memory_.do(lambda: self._copy(target, source, count))

    def _copy(self, target: int, source: int, count: int) -> None:
        self.memory_.at(target, count)[...] = self.memory_.at(source, count)

    def copies(self, pairs: Sequence[tuple[NDArray[Any], int]]) -> Any:
        device = self

        class Copies:
            def up(self, stream: Any) -> None:
                for array, address in pairs:
                    device.upload(address, array, stream)

            def down(self, stream: Any) -> None:
                for array, address in pairs:
                    array[...] = device.memory_.at(address, array.nbytes).view(array.dtype).reshape(array.shape)

        return Copies()


class Context:
    def __init__(self, engine: Engine, profile: int) -> None:
        self.engine = engine
        self.profile = profile
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.is_new = True

    def execute_async_v3(self, handle: int) -> bool:
        memory, shapes, addresses = self.engine.device.memory_, dict(self.shapes), dict(self.addresses)
        assert memory.captured is None or not self.is_new, "what is captured has been enqueued once before"
        self.is_new = False
        memory.do(lambda: self.engine.run(shapes, addresses))
        return True


TYPES = {f"tensor({name})": np.dtype(kind) for name, kind in (("uint8", "u1"), ("int32", "i4"), ("float", "f4"))}


class Engine:
    """Runs the ONNX file on the bytes at a context's addresses."""

    activation_bytes = 256
    path = Path("simulated.pre.engine")

    def __init__(self, record: PreprocessorRecord, together: bool) -> None:
        self.device = Device(together)
        self.record = record
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(build_graph(record), options, providers=["CPUExecutionProvider"])
        self.runs = 0

    def context(self, profile: int, stream: Any, activations: Any) -> Context:
        return Context(self, profile)

    def set_shapes(self, context: Context, shapes: Mapping[str, tuple[int, ...]]) -> None:
        count, side = shapes["image"][:2]
        assert context.profile == profile_of(side) and count <= (GROUP if side <= GROUP_SIDE else 1)
        context.shapes.update(shapes)

    def set_addresses(self, context: Context, addresses: Mapping[str, int]) -> None:
        assert all(address % 256 == 0 for address in addresses.values())
        context.addresses.update(addresses)

    def run(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        self.runs += 1
        given = {}
        for spec in self.session.get_inputs():
            dtype = TYPES[spec.type]
            count = int(np.prod(shapes[spec.name])) * dtype.itemsize
            there = self.device.memory_.at(addresses[spec.name], count)
            given[spec.name] = there.view(dtype).reshape(shapes[spec.name])
        (sample,) = self.session.run([OUTPUT], given)
        self.device.memory_.at(addresses[OUTPUT], sample.nbytes)[...] = sample.view(np.uint8).ravel()

    def complaint(self) -> str:
        return ""

    def close(self) -> None:
        return


class Graph:
    """A capture on the simulated memory."""

    memory: Memory

    def __init__(self, stream: Any, enqueue: Callable[[], None]) -> None:
        self._work: list[Callable[[], None]] = []
        self.memory.captured = self._work
        try:
            enqueue()
        finally:
            self.memory.captured = None

    def launch(self) -> None:
        self.memory.launches += 1
        for work in self._work:
            work()

    def close(self) -> None:
        self._work = []


Made = tuple[TensorRTPreprocessor, Engine]


@pytest.fixture(params=[False, True], ids=["singly", "together"])
def together(request: pytest.FixtureRequest) -> bool:
    """Whether the driver copies planes in batches."""
    return bool(request.param)


@pytest.fixture
def opened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, together: bool) -> Iterator[Made]:
    """A preprocessor of the recipe that the test is given; even rows without one."""
    record = describe(sidecar(getattr(request, "param", EVEN)), MOST)
    engine = Engine(record, together)
    monkeypatch.setattr(preprocess, "CudaGraph", Graph)
    monkeypatch.setattr(Graph, "memory", engine.device.memory_, raising=False)
    made = TensorRTPreprocessor(engine, record)  # type: ignore[arg-type]
    made.open()
    yield made, engine
    made.close()
    if together and engine.runs > 4:  # more than were made ready
        assert sum(each.calls for each in engine.device.copied) > 0


def wanted(record: PreprocessorRecord, engine: Engine, pixels: NDArray[np.uint8]) -> NDArray[Any]:
    """The sample of one photograph in its own size."""
    given = feeds(record, operands(record.recipe, pixels, record.max_size))
    return np.asarray(engine.session.run([OUTPUT], given)[0])


class Rows:
    """Rows of a batch in the simulated memory."""

    def __init__(self, engine: Engine, count: int) -> None:
        spec = engine.record.output
        self.shape, self.dtype = tuple(map(int, spec.shape)), np.dtype(spec.dtype)
        self.bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self.memory, self.block = engine.device.memory_, engine.device.memory(count * self.bytes)

    def address(self, index: int) -> int:
        return self.block.address + index * self.bytes

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self.memory.at(self.address(index), self.bytes).view(self.dtype).reshape(self.shape)


def shots(count: int, most: int = 400, seed: int = 0) -> list[NDArray[np.uint8]]:
    generator = np.random.default_rng(seed)
    return [photograph(generator, *size) for size in list(sizes(generator, count + 2, most))[2:]]


@pytest.mark.parametrize("opened", [EVEN, ODD, CUBIC], indirect=True)
@pytest.mark.parametrize("most", [300, 1200])
def test_each_row_is_that_of_its_photograph(opened: Made, most: int) -> None:
    """Batches of 21: groups, what is left of one at the end, and, of the larger ones, some that go alone."""
    made, engine = opened
    events, released = made.events(), []
    for turn in range(4):
        rows, given = Rows(engine, 21), shots(21, most, turn)
        for index, pixels in enumerate(given):
            prepared = made.prepare(pixels, np.empty(made.beside, np.uint8))
            made(prepared, rows.address(index), lambda index=index: released.append(index))  # type: ignore[misc]
        made.done(events)
        for index, pixels in enumerate(given):
            assert np.array_equal(rows[index], wanted(made.record, engine, pixels)), (turn, index, pixels.shape)
    made.settle()
    assert sorted(released) == sorted(4 * list(range(21)))
    assert engine.device.memory_.launches > 0


def test_a_group_is_one_launch(opened: Made) -> None:
    made, engine = opened
    rows = Rows(engine, 8 * GROUP)
    for index, pixels in enumerate(8 * shots(GROUP, 60)):
        made(made.prepare(pixels, np.empty(made.beside, np.uint8)), rows.address(index))
    made.settle()
    assert engine.device.memory_.launches == 6, "each of two lanes enqueues its first group, and launches the others"
    assert engine.runs == 8


def test_what_is_made_ready_before_is_there(opened: Made) -> None:
    made, engine = opened
    made.warm()
    runs, launches = engine.runs, engine.device.memory_.launches
    assert (runs, launches) == (4, 2), "one square for each of two lanes: enqueued, then launched as a graph"
    given, rows = shots(2 * GROUP, 60), Rows(engine, 2 * GROUP)
    for index, pixels in enumerate(given):
        made(made.prepare(pixels, np.empty(made.beside, np.uint8)), rows.address(index))
    made.settle()
    assert (engine.runs, engine.device.memory_.launches) == (runs + 2, launches + 2)
    assert all(np.array_equal(rows[i], wanted(made.record, engine, pixels)) for i, pixels in enumerate(given))


def test_reopened_it_begins_anew(opened: Made) -> None:
    made, engine = opened
    for pixels in shots(3, 300):
        made(made.prepare(pixels, np.empty(made.beside, np.uint8)), Rows(engine, 1).address(0))
    made.done(made.events())
    made.close()
    made.open()
    assert (made._next, made._side) == (0, 0)


def test_what_is_large_goes_alone(opened: Made) -> None:
    made, engine = opened
    pixels = np.random.default_rng(0).integers(0, 256, (GROUP_SIDE + 200, GROUP_SIDE + 200, 3), np.uint8)
    prepared = made.prepare(pixels, np.empty(made.beside, np.uint8))
    assert square(prepared.image.shape[0], prepared.image.shape[1], MOST) == MOST > GROUP_SIDE
    rows = Rows(engine, 3)
    for index in range(3):
        before = engine.runs
        made(prepared, rows.address(index))
        assert engine.runs == before + 1
    made.settle()
    assert np.array_equal(rows[2], wanted(made.record, engine, pixels))


def test_rows_that_lie_apart(opened: Made) -> None:
    made, engine = opened
    rows, given = Rows(engine, 3 * GROUP), shots(GROUP, 90)
    for index, pixels in enumerate(given):
        made(made.prepare(pixels, np.empty(made.beside, np.uint8)), rows.address(3 * (GROUP - 1 - index)))
    made.settle()
    for index, pixels in enumerate(given):
        assert np.array_equal(rows[3 * (GROUP - 1 - index)], wanted(made.record, engine, pixels))


def test_planes_come_from_the_gpu(opened: Made) -> None:
    made, engine = opened
    pixels = shots(1, 90)[0]
    height, width = pixels.shape[:2]
    found = band(EVEN, height, width, MOST)
    assert found is not None
    packed = np.empty(made.beside, np.uint8)
    Packing(made.record).fill(packed, *found)
    block = engine.device.memory(pixels.size)
    engine.device.memory_.at(block.address, pixels.size)[...] = pixels.ravel()
    plane = Plane(block.address, 3 * width, height, width, None)
    part = plane.part(found[0].first, found[0].end, found[1].first, found[1].end)
    rows = Rows(engine, 6 * GROUP)
    for index in range(6 * GROUP):
        made(made.prepare_plane(part, packed), rows.address(index))
    made.settle()
    assert all(np.array_equal(rows[index], wanted(made.record, engine, pixels)) for index in range(6 * GROUP))


def laid(made: TensorRTPreprocessor, shots: Sequence[NDArray[np.uint8]], tmp_path: Path, whole: bool) -> list[Laid]:
    """Photographs in one memory, as a process lays them: whole, or the part that is needed."""
    memory, end, found = np.full(64 << 20, 0xFF, np.uint8), 0, list[Laid]()

    def place(count: int) -> tuple[int, NDArray[np.uint8]]:
        nonlocal end
        at, end = begin, begin + aligned(count)
        return at, memory[at : at + count]

    for index, pixels in enumerate(shots):
        file = tmp_path / f"{index}.png"
        Image.fromarray(pixels).save(file)
        begin, most = end, made.beside + pixels.size - (not whole)
        maker = _PackedMaker(Order("packed", made.recipe, memory.size, memory.size, most, made.max_size))
        (read,) = maker.read([file])
        at, where = maker.lay(read, place)
        assert (where.pitch > 3 * where.width) <= whole
        found.append(made.laid(memory, at, *where))
    return found


@pytest.mark.parametrize("opened", [EVEN, ODD, CUBIC], indirect=True)
@pytest.mark.parametrize("whole", [False, True])
def test_what_processes_have_laid(opened: Made, tmp_path: Path, whole: bool) -> None:
    """Among photographs that threads have prepared, of all sizes."""
    made, engine = opened
    events, released = made.events(), list[int]()
    for turn in range(3):
        given, rows = shots(37, (60, 1200, 300)[turn], turn), Rows(engine, 37)
        for index, (pixels, each) in enumerate(zip(given, laid(made, given, tmp_path, whole))):
            own = made.prepare(pixels, np.empty(made.beside, np.uint8))
            release = lambda index=index: released.append(index)  # noqa: E731
            made(own if index % 5 == turn else each, rows.address(index), release)
        made.done(events)
        for index, pixels in enumerate(given):
            assert np.array_equal(rows[index], wanted(made.record, engine, pixels)), (turn, index, pixels.shape)
    made.settle()
    assert sorted(released) == sorted(3 * list(range(37)))


@pytest.mark.parametrize("opened", [EVEN, CUBIC], indirect=True)
def test_what_is_small_of_a_group_goes_up_at_once(opened: Made) -> None:
    made, engine = opened
    rows, before = Rows(engine, GROUP), engine.device.uploads
    for index, pixels in enumerate(shots(GROUP, 60)):
        made(made.prepare(pixels, np.empty(made.beside, np.uint8)), rows.address(index))
    made.settle()
    arrays = Packing(made.record).arrays
    assert engine.device.uploads - before == (1 if "sides" in arrays else 1 + GROUP)


def test_one_sample_by_itself(opened: Made) -> None:
    made, engine = opened
    for pixels in shots(5, 200):
        assert np.array_equal(made.sample(pixels), wanted(made.record, engine, pixels))


def test_without_graphs_the_same(opened: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(stream: Any, enqueue: Callable[[], None]) -> Graph:
        raise ExecutionError("this engine can't run as a CUDA graph", "use --no-cuda-graph")

    monkeypatch.setattr(preprocess, "CudaGraph", refuse)
    made, engine = opened
    given, rows = shots(3 * GROUP, 120), Rows(engine, 3 * GROUP)
    for index, pixels in enumerate(given):
        made(made.prepare(pixels, np.empty(made.beside, np.uint8)), rows.address(index))
    made.settle()
    assert all(np.array_equal(rows[i], wanted(made.record, engine, pixels)) for i, pixels in enumerate(given))


@pytest.mark.parametrize("together", [True], indirect=True)
def test_a_driver_that_refuses_to_copy_in_batches_copies_singly(opened: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    made, engine = opened
    asked: list[int] = []

    def refuse(copies: PlaneCopies, planes: Sequence[tuple[int, int, int, int]], *numbers: int) -> None:
        asked.append(len(planes))
        raise ExecutionError("not supported", "copy singly")

    monkeypatch.setattr(PlaneCopies, "__call__", refuse)
    given, rows = shots(4 * GROUP, 120), Rows(engine, 4 * GROUP)
    for index, pixels in enumerate(given):
        made(made.prepare(pixels, np.empty(made.beside, np.uint8)), rows.address(index))
    made.settle()
    assert all(np.array_equal(rows[i], wanted(made.record, engine, pixels)) for i, pixels in enumerate(given))
    assert asked == [GROUP] * len(engine.device.copied), "each lane asks once"
    engine.runs = 0


def test_leaving_gives_the_memory_of_a_begun_group_back(opened: Made) -> None:
    made, _ = opened
    released: list[int] = []
    for index, pixels in enumerate(shots(GROUP + 3, 90)):
        prepared: Prepared = made.prepare(pixels, np.empty(made.beside, np.uint8))
        made(prepared, Rows(opened[1], 1).address(0), lambda index=index: released.append(index))  # type: ignore[misc]
    made.close()
    assert sorted(released) == list(range(GROUP + 3))
    made.open()  # which the fixture closes again
