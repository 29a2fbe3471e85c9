"""Where samples come from: image folders, globs, ``.npy``, ``.npz``, random. One at a time, in order."""

from __future__ import annotations

import glob
import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from trtbatch.artifacts import Sidecar, TensorSpec
from trtbatch.backends.base import array_fix, conform, refuse_integers
from trtbatch.errors import InputError, UsageError, reading_fix, unreadable
from trtbatch.names import shortened
from trtbatch.notes import note, warn
from trtbatch.photographs import decoders
from trtbatch.photographs.codec import DecoderStart
from trtbatch.photographs.decoding import read_sample
from trtbatch.photographs.images import Skipped, plain
from trtbatch.photographs.pixels import Photograph
from trtbatch.preprocessing import Preprocessing
from trtbatch.rows import random_inputs
from trtbatch.trace import NO_TRACE, Recorder

__all__ = [
    "ArraySource",
    "Block",
    "BlockSource",
    "ImageSource",
    "RandomSource",
    "Sample",
    "Skipped",
    "Source",
    "open_source",
    "read_samples",
]

Array = NDArray[Any]

RANDOM_COUNT = 64
"""Samples of ``--input random`` where ``--count`` says nothing."""


def _keep() -> None:
    """There is nothing to give back."""


@dataclass(frozen=True)
class Sample:
    """One sample: its name, and one row for each input that has a batch axis."""

    name: str
    rows: dict[str, Array]
    release: Callable[[], None] = field(default=_keep, compare=False, repr=False)
    """Gives the rows' memory back, where it is lent (:meth:`ImageSource.lent`); to be called once."""


@dataclass(frozen=True)
class Block:
    """Samples that follow each other: their names, and for each input with a batch axis their rows, that axis first."""

    names: list[str]
    rows: dict[str, Array]


class Source(Protocol):
    """Samples in order. `total` counts them, unusable ones included; `constants` are inputs without a batch axis."""

    constants: dict[str, Array]

    @property
    def total(self) -> int: ...

    def __iter__(self) -> Iterator[Sample | Skipped]: ...


@runtime_checkable
class BlockSource(Protocol):
    """A source whose samples lie together, so that many are copied in one go; all of them can be used."""

    name: str

    def block(self, first: int, count: int) -> Block:
        """Up to `count` samples from number `first` on, shared with the source; none beyond the end."""


def open_source(
    text: str,
    sidecar: Sidecar,
    count: int | None = None,
    seed: int = 42,
    option: str = "--input",
    trace: Recorder = NO_TRACE,
) -> Source:
    """The source that ``--input`` names.

    Args:
        text: folder or glob of images, ``.npy`` or ``.npz`` file, or ``random``.
        count: at most so many samples.
        seed: of random samples.
        option: that named it, for errors.
        trace: takes a span ``read`` for each image or random sample; arrays are mapped, not read.

    Raises:
        UsageError: nothing is there, or a source that doesn't fit the model's inputs.
        InputError: a folder without images, or an array of another shape.
    """
    if all(spec.batch_axis is None for spec in sidecar.inputs):
        raise InputError(f"no input of {sidecar.model.name} has a batch axis: it takes no samples", "build it again")
    if text == "random":
        return RandomSource(sidecar.inputs, RANDOM_COUNT if count is None else count, seed, trace)
    path = Path(text)
    try:
        if path.suffix.lower() in (".npy", ".npz") and path.is_file():
            return ArraySource(path, sidecar.inputs, count)
        source = _images(text, sidecar, count, option)
    except PermissionError as error:  # of a folder on the way
        raise unreadable(text) from error
    source.trace = trace
    return source


def read_samples(
    text: str, sidecar: Sidecar, count: int, seed: int = 42, option: str = "--input"
) -> tuple[dict[str, Array], list[str]]:
    """Up to `count` usable samples of a source, stacked by input as the engine takes them, and their names.

    Raises:
        UsageError, InputError: as :func:`open_source`; or no sample can be used, or a cast would change values.
    """
    source = open_source(text, sidecar, None if text != "random" else count, seed, option)
    samples: list[Sample] = []
    for item in source:
        if isinstance(item, Sample):
            samples.append(item)
        else:
            warn(f"skipped {item.name}: {item.reason}")
        if len(samples) == count:
            break
    if not samples:
        raise InputError(f"{option} {text} holds no usable sample", "name another")
    stacked = dict(source.constants)
    for spec in sidecar.inputs:
        if spec.batch_axis is not None:
            rows = np.stack([sample.rows[spec.name] for sample in samples], axis=spec.batch_axis)
            stacked[spec.name] = conform(rows, spec, text)
    return stacked, [sample.name for sample in samples]


def _images(text: str, sidecar: Sidecar, count: int | None, option: str) -> ImageSource:
    if not text:
        raise UsageError(f"{option} is empty", "name a folder or glob of images, .npy, .npz, or random")
    path = Path(text)
    if path.is_dir():
        files = sorted(_image_files(path), key=lambda file: file.relative_to(path).as_posix())
        if not files and not os.access(path, os.R_OK | os.X_OK):
            raise unreadable(text)
        if not files:
            raise InputError(
                f"{text} holds no images", f"put {', '.join(_SOME_SUFFIXES)} … files there, or name another"
            )
        names = [file.relative_to(path).as_posix() for file in files]
    else:
        # A file of this very name comes first: brackets are common in file names, and globs too.
        files = [path] if path.is_file() else _matches(text) or _matches(f"{glob.escape(str(path.parent))}/{path.name}")
        if not files:
            raise UsageError(
                f"{option} {text}: no such file, folder or match", "name a folder or glob of images, .npy, .npz"
            )
        names = [str(file) for file in files]
    if sidecar.preprocessing is not None and len(sidecar.inputs) != 1:
        names_ = ", ".join(spec.name for spec in sidecar.inputs)
        raise UsageError(
            f"{sidecar.model.name} has {len(sidecar.inputs)} inputs ({names_}); images can feed a model with one",
            f"give arrays: {option} FILE.npz with each by name",
        )
    if sidecar.preprocessing is None:
        raise UsageError(
            f"{sidecar.model.name} has no preprocessing recorded for images",
            f"give arrays ({option} FILE.npy or FILE.npz), or export with a ModelSpec that has preprocessing",
        )
    return ImageSource(files[:count], names[:count], sidecar.inputs[0], sidecar.preprocessing)


def _matches(pattern: str) -> list[Path]:
    return sorted(Path(found) for found in glob.glob(pattern, recursive=True) if os.path.isfile(found))


_SOME_SUFFIXES = (".jpg", ".png", ".webp")


def _image_files(folder: Path) -> Iterator[Path]:
    """Files under `folder` whose suffix Pillow knows as an image; hidden ones aside."""
    from PIL import Image

    Image.init()
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in readable:
                yield Path(parent, name)


PixelsToSample = Callable[[NDArray[np.uint8], Array], None]
"""Writes the sample of a photograph ``(H, W, 3)`` uint8 into an array."""


@dataclass
class ImageSource:
    """Photographs, read and preprocessed a bounded distance ahead of the consumer, by threads or processes."""

    files: Sequence[Path]
    names: Sequence[str]
    spec: TensorSpec
    preprocessing: Preprocessing
    workers: int = field(default_factory=lambda: min(32, os.cpu_count() or 1))
    constants: dict[str, Array] = field(default_factory=dict)
    trace: Recorder = NO_TRACE
    preprocessor: PixelsToSample | None = None
    """Resizes and normalises in Pillow's place."""
    processes: bool | None = None
    """Whether processes do it rather than threads; None goes by the number of cores and photographs."""
    team: decoders.Team | None = None
    """Processes that were started already."""
    gpu_decode: bool = False
    """Whether the GPU of a preprocessor decodes."""
    decoder: DecoderStart | None = None
    """One that was started on it already."""

    @property
    def total(self) -> int:
        return len(self.files)

    def start(self, max_size: int | None = None, device: int = 0) -> None:
        """Start the GPU's decoder, or the processes that read, where there are to be any; they begin when the first
        item is asked for.

        Args:
            max_size: of the preprocessor on a GPU that takes the photographs; None where there is none.
            device: index of that GPU.
        """
        if self.gpu_decode:
            self.decoder = DecoderStart(device)
        elif self._is_lent:
            workers = min(self.workers, len(self.files))
            if max_size is not None:
                self.team = decoders.packed_team(self.preprocessing, max_size, workers)
            else:
                self.team = decoders.sample_team(self.preprocessing, self.spec.dtype, workers)

    def stop(self) -> None:
        """End what was started and has not begun."""
        if self.decoder is not None:
            self.decoder.close()
        if self.team is not None:
            self.team.close()

    def __iter__(self) -> Iterator[Sample | Skipped]:
        is_lent = self._is_lent
        with closing(self.lent()) as items:
            for item in items:
                if isinstance(item, Sample) and is_lent:
                    owned = Sample(item.name, {name: row.copy() for name, row in item.rows.items()})
                    item.release()
                    yield owned
                else:
                    yield item

    def lent(self) -> Generator[Sample | Skipped, None, None]:
        """The same; rows may lie in memory that is used again once they are released."""
        return self._by_processes() if self._is_lent else self._by_threads()

    @property
    def _is_lent(self) -> bool:
        return self.preprocessor is None and decoders.are_wanted(len(self.files), self.processes)

    def _by_processes(self) -> Generator[Sample | Skipped, None, None]:
        def read(file: Path, name: str) -> Photograph[Array] | Skipped:
            item = self._traced(file, name)
            return Photograph(name, item.rows[self.spec.name], item.release) if isinstance(item, Sample) else item

        made = decoders.samples_ahead(
            self.files, self.names, self.preprocessing, self.spec.dtype, read, self.workers, self.trace, team=self.team
        )
        with closing(made) as items:
            for item in items:
                if isinstance(item, Photograph):
                    yield Sample(item.name, {self.spec.name: item.prepared}, item.release)
                else:
                    yield item

    def _by_threads(self) -> Generator[Sample | Skipped, None, None]:
        from PIL import Image

        # Pillow only warns between its limit and twice that; here the limit holds as it is, see read_sample.
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        ahead = 4 * self.workers
        waiting: deque[Future[Sample | Skipped]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="trtbatch-read")
        try:
            for file, name in zip(self.files, self.names):
                waiting.append(pool.submit(self._traced, file, name))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # each thread ends its image, and no more

    def _traced(self, file: Path, name: str) -> Sample | Skipped:
        with self.trace.span("read", file=name):
            return self._read(file, name)

    def _preprocessed(self, image: Any) -> Array:
        assert self.preprocessor is not None
        sample = np.empty([int(size) for size in self.spec.shape[1:]], self.spec.dtype)
        self.preprocessor(np.asarray(self.preprocessing.rgb(image)), sample)
        return sample

    def _read(self, file: Path, name: str) -> Sample | Skipped:
        try:
            made = read_sample(file, self.preprocessing if self.preprocessor is None else self._preprocessed)
        except InputError as error:
            return Skipped(name, error.problem)
        kind = self.spec.dtype if self.spec.dtype.startswith("float") and made.dtype.kind == "f" else made.dtype
        return Sample(name, {self.spec.name: made.astype(kind, copy=False)})


class ArraySource:
    """Rows of a ``.npy`` file (mapped, not loaded) or of the arrays of a ``.npz`` file, by input name."""

    def __init__(self, path: Path, inputs: Sequence[TensorSpec], count: int | None) -> None:
        arrays = _load_arrays(path, inputs)
        for spec in inputs:
            _refuse_shape(arrays[spec.name], spec, path)
        self._specs = [spec for spec in inputs if spec.batch_axis is not None]
        self.constants = {spec.name: arrays[spec.name] for spec in inputs if spec.batch_axis is None}
        self._arrays = arrays
        lengths = {spec.name: arrays[spec.name].shape[spec.batch_axis or 0] for spec in self._specs}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise InputError(f"{path}: the inputs have different numbers of samples: {counts}", "make them equal")
        length = next(iter(lengths.values()))
        self.total = length if count is None else min(length, count)
        self.name = path.name

    def __iter__(self) -> Iterator[Sample | Skipped]:
        for index in range(self.total):
            rows = {spec.name: self._arrays[spec.name].take(index, axis=spec.batch_axis) for spec in self._specs}
            yield Sample(f"{self.name}[{index}]", rows)

    def block(self, first: int, count: int) -> Block:
        end = min(first + count, self.total)
        rows = {
            spec.name: np.moveaxis(self._arrays[spec.name], spec.batch_axis or 0, 0)[first:end] for spec in self._specs
        }
        return Block([f"{self.name}[{index}]" for index in range(first, end)], rows)


_NUMBERS = "save numbers, all samples of one shape: numpy.save(FILE, numpy.stack(samples).astype('float32'))"


def _load_arrays(path: Path, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    names = [spec.name for spec in inputs]
    try:
        if path.suffix.lower() == ".npy":
            if len(inputs) != 1:
                raise UsageError(
                    f"the model has {len(inputs)} inputs ({', '.join(names)})", "give a .npz with each by name"
                )
            return {names[0]: np.load(path, mmap_mode="r", allow_pickle=False)}
        with np.load(path, allow_pickle=False) as archive:
            keys = list(archive.keys())
            if len(inputs) == 1 and len(keys) == 1:
                return {names[0]: archive[keys[0]]}
            missing = [name for name in names if name not in keys]
            if missing:
                raise InputError(
                    f"{path} has no array {missing[0]!r}; it has {', '.join(keys)}", "name each input's array"
                )
            others = [key for key in keys if key not in names]
            if others:
                note(f"{path.name}: no input of the model, and left out: {shortened(', '.join(others))}")
            return {name: archive[name] for name in names}
    except (OSError, ValueError, EOFError, KeyError) as error:
        if str(error).startswith("Object arrays") or "Python objects" in str(error):
            raise InputError(f"{path} can't be read: it holds Python objects, not numbers", _NUMBERS) from error
        fix = reading_fix(error, "save it with numpy.save or numpy.savez")
        raise InputError(f"{path} can't be read: {plain(error)}", fix) from error
    except Exception as error:
        if isinstance(error, (InputError, UsageError)):
            raise
        raise InputError(f"{path} is damaged: {plain(error)}", "save it with numpy.save or numpy.savez") from error


def _refuse_shape(array: Array, spec: TensorSpec, path: Path) -> None:
    if not spec.fits(array.shape) or array.dtype.kind not in "biuf":
        sizes = ["N" if axis == spec.batch_axis else str(size) for axis, size in enumerate(spec.shape)]
        raise InputError(
            f"{path}: {spec.name} is {array.dtype} {array.shape}; the engine takes {spec.dtype} ({', '.join(sizes)})",
            array_fix(str(array.dtype), array.shape, spec),
        )
    refuse_integers(str(array.dtype), spec, str(path))


class RandomSource:
    """Seeded random samples: each from its own seed, so that sample 7 is the same whatever the count."""

    def __init__(self, inputs: Sequence[TensorSpec], count: int, seed: int, trace: Recorder = NO_TRACE) -> None:
        self.total = count
        self._seed = seed
        self._trace = trace
        self._specs = [spec for spec in inputs if spec.batch_axis is not None]
        self.constants = random_inputs([spec for spec in inputs if spec.batch_axis is None], 1, seed)

    def __iter__(self) -> Iterator[Sample | Skipped]:
        for index in range(self.total):
            name = f"random[{index}]"
            with self._trace.span("read", file=name):
                drawn = random_inputs(self._specs, 1, self._seed + index)
                rows = {spec.name: drawn[spec.name].take(0, axis=spec.batch_axis) for spec in self._specs}
            yield Sample(name, rows)
