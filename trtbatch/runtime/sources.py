"""Where samples come from: image folders, globs, ``.npy``, ``.npz``, random. One at a time, in order."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import array_fix, conform, refuse_integers
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.readers import image_input
from trtbatch.core.rows import random_inputs
from trtbatch.core.sidecar import Sidecar
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import InputError, UsageError, reading_fix, unreadable
from trtbatch.images.host import CHUNK, FORMATS, ImageLike, Loaded, Skipped, open_image, plain, read_ahead, sample
from trtbatch.util.log import note, warn
from trtbatch.util.text import shortened
from trtbatch.util.trace import NO_TRACE, Recorder

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
T = TypeVar("T")

RANDOM_COUNT = 64
"""Samples of ``--input random`` without ``--count``."""


@dataclass(frozen=True)
class Sample:
    """One sample: its name, and one row for each input that has a batch axis."""

    name: str
    rows: dict[str, Array]


@dataclass(frozen=True)
class Block:
    """Samples that follow each other: their names, and for each input with a batch axis their rows, that axis first."""

    names: list[str]
    rows: dict[str, Array]


class Source(Protocol):
    """Samples in order. `total` counts them, unusable ones included; `constants` are inputs without a batch axis."""

    constants: dict[str, Array]

    @property
    def total(self) -> int:
        """Return the number of samples."""

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
    option: str = "`input`",
    trace: Recorder = NO_TRACE,
) -> Source:
    """Open the source of samples that is asked for.

    Args:
        text: folder or glob of images, ``.npy`` or ``.npz`` file, or ``random``.
        sidecar: sidecar of the engine, for the inputs.
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
    text: str, sidecar: Sidecar, count: int, seed: int = 42, option: str = "`input`"
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
        found = sorted(_image_files(path), key=lambda pair: pair[0].relative_to(path).as_posix())
        if not found and not os.access(path, os.R_OK | os.X_OK):
            raise unreadable(text)
        if not found:
            raise InputError(f"{text} holds no images", "put .jpg, .png, .webp … files there, or name another")
        files, are_regular = [file for file, _ in found], all(regular for _, regular in found)
        names = [file.relative_to(path).as_posix() for file in files]
    else:
        # A file of this very name comes first: brackets are common in file names, and globs too.
        files = [path] if path.exists() else _matches(text) or _matches(f"{glob.escape(str(path.parent))}/{path.name}")
        if not files:
            raise UsageError(
                f"{option} {text}: no such file, folder or match", "name a folder or glob of images, .npy, .npz"
            )
        names, are_regular = [str(file) for file in files], all(file.is_file() for file in files)
    spec, preprocessing = image_input(sidecar)
    return ImageSource(files[:count], names[:count], spec, preprocessing, are_regular=are_regular)


def _matches(pattern: str) -> list[Path]:
    """Return what a pattern names, but for folders: what isn't a regular file is named when it is read."""
    return sorted(Path(found) for found in glob.glob(pattern, recursive=True) if not os.path.isdir(found))


def _image_files(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Files under `folder` whose suffix is that of a format that is read, hidden ones aside; and which are regular."""
    from PIL import Image

    Image.init()
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    folders = [folder]
    while folders:
        with suppress(PermissionError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif os.path.splitext(entry.name)[1].lower() in readable and not entry.is_dir():
                    yield Path(entry.path), entry.is_file()  # known from the folder's entry, without opening the file


@dataclass
class ImageSource:
    """Image files, read a bounded distance ahead of the consumer by a pool of threads.

    Args:
        preprocessor: makes the sample of an image ``(H, W, 3)`` uint8 in Pillow's place, in the threads that read.
        are_regular: whether all are regular files: no pipes, sockets or devices.
    """

    files: Sequence[Path]
    names: Sequence[str]
    spec: TensorSpec
    preprocessing: Preprocessing
    workers: int | None = None
    constants: dict[str, Array] = field(default_factory=dict)
    trace: Recorder = NO_TRACE
    preprocessor: Callable[[NDArray[np.uint8]], Array] | None = None
    are_regular: bool = True

    @property
    def total(self) -> int:
        """Return the number of files."""
        return len(self.files)

    def __iter__(self) -> Generator[Sample | Skipped, None, None]:
        with closing(self.loaded(self._sample)) as images:
            for image in images:
                yield image if isinstance(image, Skipped) else Sample(image.name, {self.spec.name: image.value})

    def loaded(self, make: Callable[[ImageLike], T], chunk: int = CHUNK) -> Generator[Loaded[T] | Skipped, None, None]:
        """Yield what `make` makes of each file's content in a pool of threads, in order; `chunk` files in a task."""
        return read_ahead(self.files, self.names, make, self.workers, chunk=chunk, trace=self.trace)

    def pixels(self, content: ImageLike) -> NDArray[np.uint8]:
        """Return the upright pixels ``(H, W, 3)`` of a file's content, as :meth:`loaded` takes it."""
        return np.asarray(self.preprocessing.rgb(open_image(content)))

    def _sample(self, content: ImageLike) -> Array:
        if self.preprocessor is not None:
            return self.preprocessor(self.pixels(content))
        return sample(content, self.spec, self.preprocessing)


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
        """Return samples that lie together; fewer than `count` at the end."""
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
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
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
