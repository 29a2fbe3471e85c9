"""Images decoded and prepared by NVIDIA DALI, a batch at a time: on the GPU, or by its CPU operators.

The pipeline is defined once, in :func:`pipeline`: :class:`DaliReader` feeds it, and Triton's DALI backend loads what
:func:`serialize` makes of it. It computes torchvision's sizes and crop. Its pixels differ slightly from Pillow's: JPEG
decoders and filters round differently.

Pipeline mode raises for a whole batch where one image can't be decoded, and the pipeline is dead afterwards. (DALI's
dynamic mode names the image, at less than half the speed.) So only JPEG files that are whole and plain go in
(:func:`jpeg_size`). All others go through the host reader, which says what is wrong with them, and so does a batch
that fails all the same.
"""

from __future__ import annotations

import ctypes
import io
import itertools
import os
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import RowWriter
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.errors import InputError
from trtbatch.images.host import ImageLike, Loaded, Skipped, read_ahead, sample
from trtbatch.util import optional
from trtbatch.util.log import note
from trtbatch.util.trace import NO_TRACE, Recorder

if TYPE_CHECKING:
    from trtbatch.core.tensors import TensorSpec

__all__ = ["INPUT", "THREADS", "DaliReader", "ImageBatch", "Jpeg", "geometry", "jpeg_size", "pipeline", "serialize"]

Array = NDArray[Any]

INPUT = "encoded"
"""Name of the pipeline's input: encoded images, a list of uint8 arrays."""

THREADS = 2
"""CPU threads of the pipeline: the GPU's JPEG decoder leaves them little to do."""

FILE_READERS = 2
"""Threads that read the files which DALI doesn't."""

HEAD = 1024
EDGES = HEAD + 2
"""Bytes of a file that are looked at first, its last two included. The frame header of most JPEG files lies in them."""

HARDWARE_LOAD = 1.0
"""Share of the images that the GPU's JPEG decoder takes, where it has one."""

DEPTH = 4
"""Batches that DALI works on at the same time."""

USUAL = (512, 512)
"""Width and height of the images that memory is made ready for."""

MAX_PIXELS = 1 << 25
"""Pixels of the largest image that DALI decodes: a batch of them has to fit into the GPU's memory."""

_FILTERS = {"nearest": "NN", "bilinear": "TRIANGULAR", "bicubic": "CUBIC", "lanczos": "LANCZOS3"}


class DaliTensor(Protocol):
    """One of DALI's tensors, on the host or on the GPU."""

    def __array__(self, dtype: np.dtype[Any] | None = None) -> Array:
        """Return its values, of a tensor on the host."""

    def as_cpu(self) -> DaliTensor:
        """Return a copy on the host, of a tensor on the GPU."""

    def copy_to_external(self, pointer: ctypes.c_void_p, *, cuda_stream: ctypes.c_void_p, non_blocking: bool) -> None:
        """Copy its values to an address, ordered on a stream."""


class TensorList(Protocol):
    """DALI's list of the tensors of a batch."""

    def __len__(self) -> int:
        """Return the number of tensors."""

    def __getitem__(self, index: int) -> DaliTensor:
        """Return the tensor of a sample."""

    def as_tensor(self) -> DaliTensor:
        """Return the tensors as one, where all have the same shape."""

    def copy_to_external(self, pointer: ctypes.c_void_p, *, cuda_stream: ctypes.c_void_p, non_blocking: bool) -> None:
        """Copy all values to an address, ordered on a stream."""


class DaliPipeline(Protocol):
    """What is used of ``nvidia.dali.Pipeline``."""

    def build(self) -> None:
        """Make the operators."""

    def reset(self) -> None:
        """Begin anew after the source's end."""

    def schedule_run(self) -> None:
        """Ask the source for a batch, and start on it."""

    def share_outputs(self) -> tuple[TensorList, ...]:
        """Wait for the oldest batch, and return its outputs."""

    def release_outputs(self) -> None:
        """Give the outputs back."""

    def run(self) -> tuple[TensorList, ...]:
        """Run a batch to its end, and return its outputs."""

    def serialize(self) -> bytes:
        """Return the definition."""

    def _shutdown(self) -> None: ...


Encoded: TypeAlias = "NDArray[np.uint8] | DaliTensor"
"""The bytes of an image file."""

Fed: TypeAlias = "tuple[TensorList | list[Encoded], Array, Array, Array]"
"""A batch as DALI is given it: encoded images, and their sizes and shares (:func:`geometry`)."""


def _dali() -> Iterator[ModuleType]:
    return (optional.require(f"nvidia.dali{part}", "read images with DALI") for part in ("", ".fn", ".types"))


def pipeline(
    preprocessing: Preprocessing,
    spec: TensorSpec,
    batch: int,
    device: int | None = None,
    source: Callable[[], Fed] | None = None,
    threads: int = THREADS,
) -> DaliPipeline:
    """Define the DALI pipeline that turns encoded images into samples of a model's input.

    The arithmetic of sizes is torchvision's: the shorter side becomes `resize`, the longer ``int(resize·long/short)``,
    and the crop begins at half of what is cut off, rounded to even.

    Args:
        preprocessing: size, crop and normalization of the samples.
        spec: spec of the model's input.
        batch: the most images in a batch.
        device: number of the GPU; None runs DALI's CPU operators.
        source: gives each next batch, and raises StopIteration at the end: its encoded images, and of each the size
            and the shares of :func:`geometry`. None leaves an input of encoded images alone, named :data:`INPUT`.
        threads: number of DALI's threads.

    Raises:
        MissingPackageError: DALI isn't installed.
    """
    dali, fn, types = _dali()
    on_gpu = device is not None
    kind = types.FLOAT16 if spec.dtype == "float16" else types.UINT8 if preprocessing.fused else types.FLOAT
    unit = 1.0 if preprocessing.fused else 255.0
    mean, std = ((0.0,) * 3, (1.0,) * 3) if preprocessing.fused else (preprocessing.mean, preprocessing.std)
    made: DaliPipeline
    with dali.Pipeline(batch, threads, device, prefetch_queue_depth=DEPTH) as made:
        if source is None:
            encoded = fn.external_source(name=INPUT, device="cpu", dtype=types.UINT8, ndim=1)
            size, top, left = _geometry(fn, types, preprocessing, encoded)
        else:
            kinds = [types.UINT8, *[types.FLOAT] * 3]
            encoded, size, top, left = fn.external_source(
                source=source, num_outputs=4, batch=True, no_copy=True, device="cpu", dtype=kinds, ndim=[1, 1, 0, 0]
            )
        images = fn.decoders.image(
            encoded, device="mixed" if on_gpu else "cpu", output_type=types.RGB, hw_decoder_load=HARDWARE_LOAD
        )
        resized = fn.resize(
            images,
            size=size,
            interp_type=getattr(types, f"INTERP_{_FILTERS[preprocessing.interpolation]}"),
            antialias=True,
            subpixel_scale=False,
        )
        samples = fn.crop_mirror_normalize(
            resized,
            crop=preprocessing.crop,
            crop_pos_y=top,
            crop_pos_x=left,
            rounding="round",
            out_of_bounds_policy="pad",
            fill_values=[-value / deviation for value, deviation in zip(mean, std)],
            dtype=kind,
            output_layout="HWC" if preprocessing.fused == "NHWC" else "CHW",
            mean=[unit * value for value in mean],
            std=[unit * value for value in std],
        )
        dali.Pipeline.current().set_outputs(samples)
    return made


def _geometry(fn: ModuleType, types: ModuleType, preprocessing: Preprocessing, encoded: Any) -> tuple[Any, Any, Any]:
    """Return the numbers of :func:`geometry`, by operators of DALI's.

    They take longer than the GPU's work on a batch: :class:`DaliReader` gives the same numbers, which it has from the
    headers (:func:`geometry`).
    """
    sides = fn.peek_image_shape(encoded)[0:2]  # upright, as the decoder turns them
    size = preprocessing.resize * sides // fn.reductions.min(sides)
    beyond = size - types.Constant(np.array(preprocessing.crop, np.int64))
    half = beyond // 2
    start = half + (beyond > 0) * (beyond & half & 1)
    share = fn.cast(start, dtype=types.FLOAT) / (beyond + (beyond == 0))
    return fn.cast(size, dtype=types.FLOAT), share[0], share[1]


def geometry(preprocessing: Preprocessing, height: int, width: int) -> tuple[int, int, float, float]:
    """Return the rows and columns of a resized image, and which share of what is cut off lies above and on the left."""
    columns, rows = preprocessing.resized(width, height)
    beyond = rows - preprocessing.crop[0], columns - preprocessing.crop[1]
    starts = (round(more / 2) if more > 0 else -(-more // 2) for more in beyond)
    above, left = (start / more if more else 0.0 for start, more in zip(starts, beyond))
    return rows, columns, above, left


def serialize(preprocessing: Preprocessing, spec: TensorSpec, batch: int, device: int | None = 0) -> bytes:
    """Return the pipeline as Triton's DALI backend, and :meth:`nvidia.dali.Pipeline.deserialize`, load it."""
    return bytes(pipeline(preprocessing, spec, batch, device).serialize())


_START, _END = b"\xff\xd8\xff", b"\xff\xd9"
_SEGMENT = struct.Struct(">BBH").unpack_from
"""Mark, kind and length of a segment (ITU-T T.81, B.1.1.4)."""
_FRAME = struct.Struct(">BHHB").unpack_from
"""Bits, height, width and channels of a frame (B.2.2)."""
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
"""Baseline, extended and progressive frames with Huffman's coding (table B.1)."""
_STRANGE = frozenset((0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xD9, 0xDA))
"""Lossless, hierarchical and arithmetic-coded frames, and an end or a scan before any frame."""
_EXIF, _ADOBE, _XMP_ORIENTATION = b"Exif\0\0", b"Adobe", b"tiff:Orientation"


def jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Return height and width, upright, of a whole JPEG file that every decoder makes the same pixels of, else None.

    It has grey or YCbCr pixels of 8 bits, at most :data:`MAX_PIXELS`, an orientation that only EXIF states, and its end
    marker. The segments up to the frame header are looked at, and nothing is decoded.
    """
    if data[:3] != _START:
        return None
    at, orientation = 2, 0
    try:
        while True:
            mark, kind, length = _SEGMENT(data, at)
            if mark != 0xFF or kind in _STRANGE:
                return None
            if kind == 0xFF:  # padding
                at += 1
                continue
            if kind in _FRAMES:
                bits, height, width, channels = _FRAME(data, at + 4)
                _SEGMENT(data, at + 2 + length)  # all of the header is there
                is_plain = bits == 8 and channels in (1, 3) and 0 < height * width <= MAX_PIXELS
                has_end = data[-2:] == _END or bytes(data[at + length :]).rfind(_END) >= 0
                if not is_plain or bytes(data[at + 10 : at + 17 : 3]) == b"RGB" or not has_end:
                    return None
                return (width, height) if orientation > 4 else (height, width)
            if kind in (0xE1, 0xEE):
                segment = bytes(data[at + 4 : at + 2 + length])
                if segment.startswith(_EXIF):
                    if orientation or not 1 <= (orientation := _orientation(segment)) <= 8:
                        return None
                elif _XMP_ORIENTATION in segment or (segment.startswith(_ADOBE) and segment[11:12] != b"\1"):
                    return None  # an orientation that DALI doesn't read, or other colours
            at += 2 + length
    except struct.error:  # it ends within a segment
        return None


def _orientation(segment: bytes) -> int:
    """Return the orientation that an EXIF segment states, 1 where it states none; 0 where it can't be read."""
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(segment)
        value = exif.get(0x0112, 1)
    except Exception:  # Pillow's, of a damaged segment
        return 0
    return value if isinstance(value, int) else 0


class Jpeg(NamedTuple):
    """A file that :func:`jpeg_size` knows the height and width of.

    Args:
        data: an array of its bytes, or a list of DALI's.
        place: in DALI's list.
    """

    data: NDArray[np.uint8] | TensorList
    height: int
    width: int
    place: int | None = None

    @property
    def bytes(self) -> Encoded:
        """Return an array of its bytes, or DALI's tensor of them."""
        if isinstance(self.data, np.ndarray):
            return self.data
        assert self.place is not None, "a list holds several files"
        return self.data[self.place]


class ImageBlock(NamedTuple):
    """Plain JPEG files that were read together, a batch of them as a rule."""

    names: list[str]
    jpegs: list[Jpeg]


Item = Loaded[Any] | Skipped | ImageBlock
"""What :meth:`DaliReader.load` gives, or a sample under way; what was skipped; or plain JPEG files."""


@dataclass
class ImageBatch:
    """Images on their way through DALI; what couldn't be used is in `skipped`.

    Args:
        names: of the rows, in order.
        rows: of each, its index in DALI's output, or its sample from the host reader, which may be under way.
        encoded: what went into DALI.
        samples: DALI's output, once it is there.
        last: whether the source has ended.
        failed: whether DALI failed, so that the host reader has read all of it.
    """

    names: list[str] = field(default_factory=list)
    rows: list[int | Array | Future[Array]] = field(default_factory=list)
    encoded: list[Jpeg] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    samples: TensorList | None = None
    last: bool = False
    failed: bool = False
    fed: Fed = ([], np.empty(0), np.empty(0), np.empty(0))
    """What DALI was given, which reads it where it lies."""

    @property
    def _is_dense(self) -> bool:
        """Whether the rows are DALI's output as it is."""
        return 0 < len(self.encoded) == len(self.rows)

    @property
    def _made(self) -> TensorList:
        assert self.samples is not None, "DALI's output is there"
        return self.samples

    def feed(self, geometry: Callable[[int, int], tuple[int, int, float, float]]) -> None:
        """Lay out what DALI is given: a whole list of DALI's own as it is, which costs nothing for each image."""
        jpegs = self.encoded or [_noise(1, 1)]  # DALI takes no empty batch
        first, last = jpegs[0], jpegs[-1]
        is_whole = first.place == 0 and first.data is last.data and last.place == len(jpegs) - 1 == len(last.data) - 1
        each = (geometry(jpeg.height, jpeg.width) for jpeg in jpegs)
        numbers = np.fromiter(itertools.chain.from_iterable(each), np.float32).reshape(-1, 4)
        whole = first.data if is_whole and not isinstance(first.data, np.ndarray) else None
        encoded = [jpeg.bytes for jpeg in jpegs] if whole is None else whole
        self.fed = encoded, numbers[:, :2].copy(), numbers[:, 2].copy(), numbers[:, 3].copy()

    def write(self, rows: Array) -> None:
        """Write the samples, which DALI's CPU operators have made, into the first rows of an array on the host."""
        if self._is_dense:
            rows[: len(self.rows)] = np.asarray(self._made.as_tensor())
            return
        for row, made in zip(rows, self.rows):
            row[...] = np.asarray(self._made[made]) if isinstance(made, int) else made

    def write_on_gpu(self, address: int, row_bytes: int, writer: RowWriter) -> None:
        """Write the samples to rows that lie on the GPU from an address on, ordered on the writer's stream."""
        stream = ctypes.c_void_p(writer.stream)
        if self._is_dense:
            self._made.copy_to_external(ctypes.c_void_p(address), cuda_stream=stream, non_blocking=True)
            return
        for index, made in enumerate(self.rows):
            target = address + index * row_bytes
            if isinstance(made, int):
                self._made[made].copy_to_external(ctypes.c_void_p(target), cuda_stream=stream, non_blocking=True)
            else:
                assert isinstance(made, np.ndarray), "waited for"
                writer.upload(target, made)


class DaliReader:
    """Prepares images for a model's input, some batches ahead of their use; for one thread.

    Args:
        batch: the most images in a batch.
        device: number of the GPU; None runs DALI's CPU operators.
        trace: takes a span ``dali`` for each batch that is waited for.

    Raises:
        MissingPackageError: DALI isn't installed.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        spec: TensorSpec,
        batch: int,
        device: int | None = None,
        trace: Recorder = NO_TRACE,
    ) -> None:
        self._preprocessing = preprocessing
        self._spec = spec
        self._batch = batch
        self._device = device
        self._trace = trace
        self._running: DaliPipeline | None = None
        self._gathered: Iterator[ImageBatch] = iter(())
        self._next: ImageBatch | None = None
        self._waiting: deque[ImageBatch] = deque()
        """Given to DALI, and not taken from it yet."""
        self._files = _Files((), batch)
        self._pool = ThreadPoolExecutor(thread_name_prefix="trtbatch-read")
        self._geometry = lru_cache(maxsize=None)(partial(geometry, preprocessing))
        self._make()

    def _make(self) -> None:
        if self._running is not None:
            self._running._shutdown()  # noqa: SLF001
        self._running = pipeline(self._preprocessing, self._spec, self._batch, self._device, self._next_batch)
        self._running.build()

    @property
    def _pipeline(self) -> DaliPipeline:
        assert self._running is not None, "used after it was closed"
        return self._running

    def warm(self) -> None:
        """On a GPU, run batches of noise: decoders and all their memory are there before the first image is read."""
        if self._device is None:
            return
        images = (Loaded("", _noise(*USUAL)) for _ in range(self._batch * DEPTH))
        for _ in self.batches(images, itertools.repeat(self._batch)):
            pass

    def load(self, source: ImageLike) -> Jpeg | Array:
        """Return a plain JPEG file as it is, and the sample of any other image; for any thread.

        Raises:
            InputError: the image can't be used.
        """
        if isinstance(source, bytes) and (size := jpeg_size(source)) is not None:
            return Jpeg(np.frombuffer(source, np.uint8), *size)
        return sample(source, self._spec, self._preprocessing)

    def read_files(
        self, files: Sequence[Path], names: Sequence[str], are_regular: bool = True
    ) -> Generator[Item, None, None]:
        """Yield files as :meth:`batches` takes them. DALI's reader of them is ready on return.

        Args:
            files: the files, in order.
            names: names that the batches report, one for each file.
            are_regular: whether each is a regular file. A pipe would hold DALI's threads for ever.
        """
        self._files.close()
        self._files = _Files(files if are_regular else (), self._batch)
        return self._loaded(files, names)

    def _loaded(self, files: Sequence[Path], names: Sequence[str]) -> Generator[Item, None, None]:
        count = 0
        for encoded, edges in self._files:
            block, sizes = names[count : count + len(edges)], [jpeg_size(each) for each in edges]
            count += len(edges)
            if None not in sizes:
                yield ImageBlock(list(block), [Jpeg(encoded, *size, place) for place, size in enumerate(sizes) if size])
                continue
            for place, name in enumerate(block):
                # Without a size, its header is longer, or something follows its end.
                data = b"" if sizes[place] else np.asarray(encoded[place]).tobytes()
                size = sizes[place] or jpeg_size(data)
                yield Loaded(name, self._on_host(data) if size is None else Jpeg(encoded, *size, place))
        self._files.close()
        yield from read_ahead(files[count:], names[count:], self.load, FILE_READERS, trace=self._trace)

    def _on_host(self, encoded: bytes) -> Future[Array]:
        return self._pool.submit(sample, encoded, self._spec, self._preprocessing)

    def batches(self, images: Iterable[Item], sizes: Iterable[int]) -> Iterator[ImageBatch]:
        """Yield the batches of images that :meth:`load` has loaded; each is valid until the next is asked for.

        Args:
            images: images, and those that were skipped.
            sizes: the most images of each batch, in turn. A batch is shorter where DALI could not decode an image.
        """
        if self._waiting:  # of an earlier call that was not iterated to its end
            self._waiting.clear()
            self._make()
        self._gathered = self._gather(iter(images), sizes)
        self._next = None
        self._pipeline.reset()
        self._pipeline.schedule_run()
        while self._waiting:
            batch = self._waiting.popleft()
            self._finish(batch)
            yield batch
            if not batch.failed:
                batch.samples = None
                self._schedule()

    def close(self) -> None:
        """End DALI's threads and free its memory; again does nothing."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._files.close()
        if self._running is not None:
            self._running._shutdown()  # noqa: SLF001
            self._running = None

    def _gather(self, images: Iterator[Item], sizes: Iterable[int]) -> Iterator[ImageBatch]:
        of_block: Iterator[Item] = iter(())
        for size in sizes:
            batch = ImageBatch()
            while len(batch.names) < size and (image := next(of_block, None) or next(images, None)) is not None:
                if isinstance(image, Skipped):
                    batch.skipped.append(image)
                    continue
                if isinstance(image, ImageBlock):
                    if batch.names or len(image.names) != size:
                        of_block = map(Loaded, image.names, image.jpegs)
                    else:
                        batch.names, batch.rows, batch.encoded = image.names, list(range(size)), image.jpegs
                    continue
                batch.names.append(image.name)
                if isinstance(image.value, Jpeg):
                    batch.rows.append(len(batch.encoded))
                    batch.encoded.append(image.value)
                else:
                    batch.rows.append(image.value)
            batch.last = len(batch.names) < size
            batch.feed(self._geometry)
            yield batch
            if batch.last:
                return

    def _next_batch(self) -> Fed:
        """Return the next batch to DALI, which calls this; it first asks for all batches that it works on at once."""
        batch, self._next = self._next or next(self._gathered), None
        self._waiting.append(batch)
        return batch.fed

    def _schedule(self) -> None:
        """Let DALI ask for a further batch."""
        self._next = next(self._gathered, None)  # here, because what it raises isn't DALI's
        try:
            self._pipeline.schedule_run()
        except Exception:  # a batch has failed
            self._recover()

    def _finish(self, batch: ImageBatch) -> None:
        """Take a batch from DALI, and wait for the images that the host reader reads."""
        if not batch.failed:
            try:
                with self._trace.span("dali", samples=len(batch.encoded)):
                    (batch.samples,) = self._pipeline.share_outputs()
                    self._pipeline.release_outputs()
            except Exception:  # whatever DALI and its decoders raise
                self._waiting.appendleft(batch)
                self._recover()
                self._waiting.popleft()
        if len(batch.encoded) < len(batch.rows):
            self._settle(batch)

    def _recover(self) -> None:
        """Read all batches that are in the failed pipeline on the host, and make another pipeline."""
        note("DALI failed on an image: the host reader reads the batches that were under way")
        for batch in self._waiting:
            for index, made in enumerate(batch.rows):
                if isinstance(made, int):
                    batch.rows[index] = self._on_host(np.asarray(batch.encoded[made].bytes).tobytes())
            batch.encoded, batch.failed = [], True
        self._make()
        self._pipeline.schedule_run()

    def _settle(self, batch: ImageBatch) -> None:
        """Wait for the host reader's samples, and leave out the images that it could not use."""
        usable: list[tuple[str, int | Array]] = []
        for name, made in zip(batch.names, batch.rows):
            try:
                usable.append((name, made.result() if isinstance(made, Future) else made))
            except InputError as error:
                batch.skipped.append(Skipped(name, error.problem))
        batch.names, batch.rows = [name for name, _ in usable], [made for _, made in usable]


class _Files:
    """Regular files, read by a thread of DALI's, which needs no lock of Python's: in blocks, with each file's edges.

    Args:
        block: files that are read at a time.
    """

    def __init__(self, files: Sequence[Path], block: int) -> None:
        self._files = files
        self._block = min(block, len(files)) or 1  # DALI reads files again to fill a block
        self._pipeline: DaliPipeline | None = None
        with suppress(RuntimeError, TypeError, ValueError):  # a name that is no text: Python reads it
            self._pipeline = _reading(files, self._block) if files else None

    def __iter__(self) -> Iterator[tuple[TensorList, list[bytes]]]:
        """Yield DALI's list of the files' content, and their edges, up to a block with a file that can't be read."""
        pipeline = self._pipeline
        for first in range(0, 0 if pipeline is None else len(self._files), self._block):
            try:
                assert pipeline is not None, "the range is empty"
                encoded, edges = pipeline.run()
            except RuntimeError:  # it is gone: Python says which
                return
            every = np.asarray(edges.as_tensor()).tobytes()
            last = min(self._block, len(self._files) - first) * EDGES
            yield encoded, [every[at : at + EDGES] for at in range(0, last, EDGES)]

    def close(self) -> None:
        if self._pipeline is not None:
            self._pipeline._shutdown()  # noqa: SLF001
            self._pipeline = None


def _reading(files: Sequence[Path], block: int) -> DaliPipeline:
    """Return the pipeline that reads files, and their edges, with zeros where a file has ended."""
    dali, fn, types = _dali()
    made: DaliPipeline
    with dali.Pipeline(block, 1, None, prefetch_queue_depth=2) as made:
        encoded, _ = fn.readers.file(files=[os.fspath(file) for file in files], dont_use_mmap=True)
        padded = {"axes": [0], "out_of_bounds_policy": "pad"}
        last = fn.cast(encoded.shape() - 2, dtype=types.INT32)
        dali.Pipeline.current().set_outputs(
            encoded, fn.cat(fn.slice(encoded, 0, HEAD, **padded), fn.slice(encoded, last, 2, **padded))
        )
    made.build()
    return made


@lru_cache(maxsize=2)
def _noise(width: int, height: int) -> Jpeg:
    from PIL import Image

    file = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(file, "JPEG")
    return Jpeg(np.frombuffer(file.getvalue(), np.uint8), height, width)
