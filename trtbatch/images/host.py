"""Images on the host: opened and prepared by Pillow, in a pool of threads, with exactly torchvision's pixels."""

from __future__ import annotations

import io
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Union

import numpy as np
from numpy.typing import NDArray

from trtbatch.core.preprocessing import Preprocessing
from trtbatch.errors import InputError
from trtbatch.util.text import shortened
from trtbatch.util.trace import NO_TRACE, Recorder

if TYPE_CHECKING:  # the ONNX tools aren't needed to open an image
    from trtbatch.core.tensors import TensorSpec

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "ImageLike",
    "Loaded",
    "Skipped",
    "content",
    "cropped",
    "open_image",
    "plain",
    "read_ahead",
    "read_bytes",
    "sample",
    "typed",
]

Array = NDArray[Any]
T = TypeVar("T")

ImageLike = Union[str, "os.PathLike[str]", bytes, Array, Any]
"""A path, an encoded file, pixels ``(H, W, 3)`` or ``(H, W)`` uint8, or a Pillow image."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Raster formats that are opened, by Pillow's names, whatever a file's suffix. Others are refused: Pillow hands EPS
files to Ghostscript, a program that runs what they say."""

MAX_BYTES = 1 << 30
"""Size of the largest image file that is read."""

CHUNK = 4
"""Images in a task of the pool at the most: they share what a task costs, and lie in memory together."""

MOST_WORKERS = 8
"""Threads at the most: more of them only wait for Python's lock, which Pillow holds for a part of its work."""

_FIX = "mend it, or leave it out"


@dataclass(frozen=True)
class Skipped:
    """An input that can't be used, and why; the rest goes on."""

    name: str
    reason: str


@dataclass(slots=True)
class Loaded(Generic[T]):
    """An image that could be used: its name, and what was made of it."""

    name: str
    value: T


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a regular file of at most :data:`MAX_BYTES`.

    Pipes, sockets and devices are refused without being opened: they may never end.

    Raises:
        InputError: it can't be read, or isn't such a file.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise InputError("a pipe, a socket or a device, not a file", _FIX)
        if found.st_size > MAX_BYTES:
            raise InputError(f"its {found.st_size} bytes are over the limit of {MAX_BYTES}", _FIX)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # the path may name a pipe by now
        with open(descriptor, "rb") as stream:
            return stream.read(found.st_size)  # all of it: os.read may return less
    except OSError as error:
        raise InputError(error.strerror or str(error), _FIX) from error


def content(source: ImageLike) -> ImageLike:
    """Return the bytes of a path's file; anything else as it is.

    Raises:
        InputError: as :func:`read_bytes`.
    """
    return read_bytes(source) if isinstance(source, (str, os.PathLike)) else source


def open_image(source: ImageLike) -> Any:
    """Return the Pillow image of a path, of encoded bytes, of pixels, or of itself.

    Raises:
        InputError: it can't be read, has no known white, or is over Pillow's limit of pixels.
    """
    try:
        image = _opened(content(source))
        reason = _unusable(image)
        if reason is not None:
            raise InputError(reason, _FIX)
        image.load()
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their format makes them
        raise InputError(plain(error), _FIX) from error
    return image


def _opened(source: Any) -> Any:
    from PIL import Image

    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        grey, colour = source.ndim == 2, source.ndim == 3 and source.shape[2] == 3
        if source.dtype != np.uint8 or not (grey or colour) or 0 in source.shape:
            raise InputError(
                f"an array {source.dtype} {source.shape} is no image", "give pixels (H, W, 3) or (H, W) uint8"
            )
        return Image.fromarray(np.ascontiguousarray(source))
    return Image.open(io.BytesIO(source), formats=FORMATS)


def _unusable(image: Any) -> str | None:
    """Why a Pillow image, opened and not yet decoded, can't be used; None where it can."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS  # Pillow itself only warns up to twice its limit
    if limit is not None and image.width * image.height > limit:
        return f"{image.width}×{image.height} is over the limit of {limit} pixels"
    if image.mode in ("I", "F"):
        return f"its pixels ({image.mode}, 32 bits) have no known white: save it in 8 bits"
    return None


def plain(error: Exception) -> str:
    """Return what Pillow or numpy raised on a file, on one line, in words for its owner."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image of a format that is read"
    text = str(getattr(error, "strerror", None) or error).strip()
    if "pickle" in text:  # numpy's advice is the opposite of ours
        return "not an array file, or one of Python objects"
    return shortened(text) or type(error).__name__


def cropped(source: ImageLike, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the pixels ``(H, W, 3)`` of an image, resized and cropped.

    Raises:
        InputError: as :func:`open_image`.
    """
    image = open_image(source)
    try:
        return preprocessing.pixels(image)
    except Exception as error:  # an image that opens may still not be one to resize
        raise InputError(plain(error), _FIX) from error


def sample(source: ImageLike, spec: TensorSpec, preprocessing: Preprocessing) -> Array:
    """Return the sample of an image, without a batch axis, of the input's type.

    Raises:
        InputError: as :func:`open_image`.
    """
    return typed(preprocessing.from_pixels(cropped(source, preprocessing)), spec)


def typed(samples: Array, spec: TensorSpec) -> Array:
    """Return float samples in the input's float type, and others as they are."""
    is_float = samples.dtype.kind == "f" and spec.dtype.startswith("float")
    return samples.astype(spec.dtype, copy=False) if is_float else samples


def read_ahead(
    sources: Sequence[ImageLike],
    names: Sequence[str],
    make: Callable[[ImageLike], T],
    workers: int | None = None,
    ahead: int = 2,
    chunk: int = CHUNK,
    trace: Recorder = NO_TRACE,
) -> Generator[Loaded[T] | Skipped, None, None]:
    """Yield what a pool of threads makes of images, in order, a bounded distance ahead of the consumer.

    Closing the generator ends the threads: each finishes its task.

    Args:
        sources: the images.
        names: names of the images, for errors.
        make: called with an image's content (:func:`content`) in a thread of the pool; its InputError skips the image.
        workers: threads; None is one a core, :data:`MOST_WORKERS` at most.
        ahead: tasks for each thread that may be done or under way before the consumer asks for them.
        chunk: images in a task at the most; fewer where not every thread had one.
        trace: takes a span ``read`` for each image.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = workers or min(MOST_WORKERS, cores)
    chunk = max(1, min(chunk, len(sources) // workers))

    def task(first: int) -> list[Loaded[T] | Skipped]:
        last = first + chunk
        return [one(source, name) for source, name in zip(sources[first:last], names[first:last])]

    def one(source: ImageLike, name: str) -> Loaded[T] | Skipped:
        try:
            with trace.span("read", file=name):
                return Loaded(name, make(content(source)))
        except InputError as error:
            return Skipped(name, error.problem)

    tasks = iter(range(0, len(sources), chunk))
    waiting: deque[Future[list[Loaded[T] | Skipped]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="trtbatch-read")
    try:
        for first in islice(tasks, workers * ahead):
            waiting.append(pool.submit(task, first))
        while waiting:
            done = waiting.popleft().result()
            for first in islice(tasks, 1):
                waiting.append(pool.submit(task, first))
            yield from done
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
