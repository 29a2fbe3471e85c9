"""JPEG files decoded by nvImageCodec, NVIDIA's library: on a GPU, where the pixels stay, or on the host.

Only what it decodes as libjpeg-turbo does is given to it: colour photographs of 8 bits that end as a JPEG file ends. It
interpolates chroma here as libjpeg-turbo does; pixels may still differ by a few of 255, since a GPU's inverse cosine
transform isn't the same.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from trtbatch import optional
from trtbatch.errors import ExecutionError

__all__ = ["Coded", "DecoderStart", "DecodingDevice", "JpegDecoder", "Plane", "plain_jpeg", "segments"]

LARGEST = 128 << 20
"""Bytes of the pixels of a photograph that is decoded with others; larger ones are left to the host."""

FIRST = 64
"""Photographs that a decoder is tried on, at once, as it is asked for later."""

_BEGIN, _END = b"\xff\xd8\xff", b"\xff\xd9"
_SEGMENT = 4
"""Bytes of a segment's mark and length."""
_ALONE = frozenset([0x00, 0x01, *range(0xD0, 0xDA), 0xFF])
"""Second bytes of marks that no length follows, and of what is no mark."""
_TAIL = 256
"""Bytes, at most, between the end of the image and the end of the file: cameras pad, and write notes there."""


class Plane(NamedTuple):
    """Pixels ``(height, width, 3)`` uint8 in memory that isn't Python's.

    Args:
        address: of the first one.
        pitch: bytes from a row to the next.
        owner: holds the memory.
    """

    address: int
    pitch: int
    height: int
    width: int
    owner: Any

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, 3

    def part(self, top: int, bottom: int, left: int, right: int) -> Plane:
        """The rows from `top` to before `bottom`, and the columns from `left` to before `right`."""
        address = self.address + top * self.pitch + 3 * left
        return Plane(address, self.pitch, bottom - top, right - left, self.owner)


class Coded(NamedTuple):
    """A file that can be decoded, and its rows and columns, not turned."""

    stream: Any
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def bytes(self) -> int:
        """Of its pixels."""
        return 3 * self.height * self.width


class DecodingDevice(Protocol):
    """A GPU, as far as decoding needs it: :class:`trtbatch.backends.tensorrt.buffers.Device`."""

    index: int

    def stream(self) -> Any: ...
    def enter_thread(self) -> None: ...
    def leave_thread(self) -> None: ...


class DecoderStart:
    """Has a decoder ready when it is wanted: the first photographs take it a second, in which engines are loaded.

    Args:
        index: of the GPU; None for the host.
    """

    def __init__(self, index: int | None) -> None:
        self._index = index
        self._made: Any = None
        self._thread = threading.Thread(target=self._start, name="trtbatch-gpu-start")
        self._thread.start()

    def _start(self) -> None:
        try:
            library = _library()
            made, coded = _decoder(library, self._index), plain_jpeg()
            images = made.decode([library.CodeStream(coded) for _ in range(FIRST)], params=_params(library))
            if images[-1] is not None:
                images[-1].cpu()  # which waits
        except Exception:  # whatever it is, who decodes meets it again, and tells it
            return
        self._made = made

    def take(self) -> Any:
        """nvImageCodec's decoder, once; None where there is none."""
        self._thread.join()
        made, self._made = self._made, None
        return made

    def close(self) -> None:
        """Wait, and give up what nobody took."""
        self.take()


class JpegDecoder:
    """Decodes several files at once; used by one thread at a time.

    Args:
        device: that decodes, and has the pixels then; None for the host.
        start: of a decoder of this device, where one was started.

    Raises:
        MissingPackageError: nvImageCodec isn't installed.
        ExecutionError: it doesn't start.
    """

    def __init__(self, device: DecodingDevice | None, start: DecoderStart | None = None) -> None:
        self._library = _library()
        self._device = device
        self._stream: Any = None
        self._params = _params(self._library)
        self._decoder: Any = None if start is None else start.take()
        if self._decoder is None:
            try:
                self._decoder = _decoder(self._library, None if device is None else device.index)
            except RuntimeError as error:
                raise _failed(error) from error

    def coded(self, data: bytes) -> Coded | None:
        """A file's bytes to be decoded; None where that is left to others. For any thread."""
        if not data.startswith(_BEGIN) or _END not in data[-_TAIL:] or not _is_ycc(data):
            return None
        try:
            stream = self._library.CodeStream(data)
            is_plain = stream.codec_name == "jpeg" and stream.num_channels == 3 and stream.precision in (0, 8)
            height, width = int(stream.height), int(stream.width)
        except RuntimeError:  # what is wrong, decoding it elsewhere will say
            return None
        if not is_plain or not 0 < 3 * height * width <= LARGEST:
            return None
        return Coded(stream, height, width)

    def __call__(self, files: Sequence[Coded]) -> list[Plane | None]:
        """Their pixels, turned as their EXIF orientation says; None where that failed. They are there on return.

        Raises:
            ExecutionError: out of memory, or the GPU failed.
        """
        if not files:
            return []
        try:
            images = self._images([file.stream for file in files])
        except RuntimeError as error:
            raise _failed(error) from error
        return [None if image is None else self._plane(image) for image in images]

    def _images(self, streams: list[Any]) -> list[Any]:
        if self._device is None:
            return list(self._decoder.decode(streams, params=self._params))
        self._device.enter_thread()
        try:
            self._stream = self._stream or self._device.stream()
            images = list(self._decoder.decode(streams, params=self._params, cuda_stream=self._stream.handle))
            self._stream.synchronize()
        finally:
            self._device.leave_thread()
        return images

    def _plane(self, image: Any) -> Plane | None:
        height, width, channels = image.shape
        if channels != 3:
            return None
        described = image.__array_interface__ if self._device is None else image.__cuda_array_interface__
        return Plane(int(described["data"][0]), int(image.strides[0]), int(height), int(width), image)

    def close(self) -> None:
        """Give up the stream, in a thread that has the GPU's context."""
        self._stream = None


def _library() -> Any:
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # whatever can't be decoded is told by us
    return optional.require("nvidia.nvimgcodec", "decode photographs on the GPU")


def _params(library: Any) -> Any:
    return library.DecodeParams(apply_exif_orientation=True, sample_format=library.SampleFormat.I_RGB)


def _decoder(library: Any, index: int | None) -> Any:
    options: dict[str, Any] = {"options": ":fancy_upsampling=1"}
    if index is None:
        options["device_id"] = library.NVIMGCODEC_DEVICE_CPU_ONLY
        options["backends"] = [library.Backend(library.CPU_ONLY)]
    else:
        options["device_id"] = index
    return library.Decoder(**options)


def plain_jpeg() -> bytes:
    """A file to warm up with."""
    from PIL import Image

    stream = io.BytesIO()
    Image.linear_gradient("L").resize((500, 375)).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The segments of a JPEG file up to its first scan's: the mark's second byte, where it begins, and the end.

    They end early where what comes is no segment. Source: ITU-T T.81, B.1.1.3 and B.2.1.
    """
    at = 2
    while at + _SEGMENT <= len(data) and data[at] == 0xFF and data[at + 1] not in _ALONE:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at + 1], at, end
        at = end


def _is_ycc(data: bytes) -> bool:
    """Whether three components are luma and chroma, as nearly always, and not red, green and blue.

    Markers and the frame header are those of ITU-T T.81, B.1 and B.2.2; Adobe's APP14 tells its transform at byte 11.
    """
    for mark, at, _ in segments(data):
        if at + 18 > len(data):
            break
        if mark == 0xEE and data[at + 4 : at + 9] == b"Adobe" and data[at + 15] == 0:
            return False
        if 0xC0 <= mark <= 0xCF and mark not in (0xC4, 0xC8, 0xCC):
            return data[at + 9] == 3 and bytes(data[at + 10 : at + 17 : 3]) != b"RGB"
    return False


def _failed(error: RuntimeError) -> ExecutionError:
    said = str(error).strip().splitlines() or [type(error).__name__]
    return ExecutionError(f"nvImageCodec failed: {said[0]}", "leave --gpu-decode out: the host decodes then")
