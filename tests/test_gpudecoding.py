"""Photographs decoded in groups by nvImageCodec, here on the host: the pixels, order and words of threads."""

from __future__ import annotations

import ctypes
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tests.test_decoders import Prepared, Reader, contents, folder_of_all, in_threads, listed
from tests.test_trace import spans
from trtbatch import optional
from trtbatch.artifacts import TensorSpec
from trtbatch.errors import ExecutionError, MissingPackageError
from trtbatch.photographs import codec, gpudecoding
from trtbatch.photographs.codec import DecoderStart, JpegDecoder, Plane
from trtbatch.photographs.decoding import read_bytes
from trtbatch.photographs.gpudecoding import decoded_ahead
from trtbatch.photographs.images import Skipped
from trtbatch.photographs.operands import band, operands
from trtbatch.photographs.pixels import Photograph
from trtbatch.sources import ImageSource
from trtbatch.trace import open_trace

pytest.importorskip("nvidia.nvimgcodec", reason="needs nvImageCodec (extra gpu-decode)")

__all__ = ["folder_of_all"]


class Planes(Reader):
    """The same reader, for photographs that lie in memory of the decoder's."""

    def __init__(self) -> None:
        super().__init__()
        self.there = 0
        """Photographs that it was given as planes."""

    def prepare_plane(self, plane: Plane, packed: NDArray[np.uint8]) -> Prepared:
        self.there += 1
        lines = [ctypes.string_at(plane.address + row * plane.pitch, 3 * plane.width) for row in range(plane.height)]
        return Prepared(np.frombuffer(b"".join(lines), np.uint8).reshape(plane.shape), packed)


def of_them_planes(files: Sequence[Path]) -> list[str]:
    """Names of the colour photographs that are whole, and not so long that Pillow resizes them."""
    found = []
    for file in files:
        if file.suffix == ".jpg" and file.stem not in ("cmyk", "grey", "truncated", "header", "huge"):
            with suppress(OSError), Image.open(file) as image:
                width, height = ImageOps.exif_transpose(image).size
                if band(Planes.recipe, height, width, Planes.max_size) is not None:
                    found.append(file.name)
    assert len(found) > 20
    return found


@pytest.fixture
def reader() -> Iterator[Planes]:
    """One whose memory has come back in the end, and all threads have ended."""
    made = Planes()
    yield made
    assert made.memory.in_use() == 0
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("trtbatch-")]


@pytest.mark.parametrize("group", [1, 7, 64])
def test_it_gives_what_threads_give(
    folder_of_all: Path, reader: Planes, monkeypatch: pytest.MonkeyPatch, group: int, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpudecoding, "GROUP", group)
    files, names = listed(folder_of_all)
    found = contents(decoded_ahead(files * 3, names * 3, reader, JpegDecoder(None), 2))
    assert found == in_threads(files, names) * 3
    assert reader.there == 3 * len(of_them_planes(files))
    assert "pynvimgcodec" not in capfd.readouterr().err


def test_large_ones_are_left_to_the_host_and_groups_are_bounded(
    folder_of_all: Path, reader: Planes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "LARGEST", 50_000)
    monkeypatch.setattr(gpudecoding, "GROUP_BYTES", 60_000)
    files, names = listed(folder_of_all)
    decoder = JpegDecoder(None)
    groups: list[list[int]] = []

    class Watched:
        coded = decoder.coded
        close = decoder.close

        def __call__(self, given: Any) -> Any:
            groups.append([file.bytes for file in given])
            return decoder(given)

    watched: Any = Watched()
    assert contents(decoded_ahead(files, names, reader, watched, 2)) == in_threads(files, names)
    sizes = [size for group in groups for size in group]
    assert len(sizes) > 20 and max(sizes) <= 50_000
    assert all(sum(group[:-1]) < 60_000 for group in groups) and len(groups) > 5


def test_what_can_not_be_decoded_goes_to_the_host_and_it_is_said(
    folder_of_all: Path, reader: Planes, caplog: pytest.LogCaptureFixture
) -> None:
    class Blind(JpegDecoder):
        def _images(self, streams: list[Any]) -> list[Any]:
            return [None for _ in streams]

    files, names = listed(folder_of_all)
    with caplog.at_level("INFO"):
        assert contents(decoded_ahead(files, names, reader, Blind(None), 2)) == in_threads(files, names)
    assert reader.there == 0 and caplog.text.count("has decoded none of") == 1


@pytest.mark.parametrize("taken", [0, 1, 20, 100])
def test_leaving_early_releases_all(folder_of_all: Path, reader: Planes, taken: int) -> None:
    files, names = listed(folder_of_all)
    items = decoded_ahead(files * 5, names * 5, reader, JpegDecoder(None), 2)
    for _ in range(taken):
        item = next(items)
        if isinstance(item, Photograph):
            item.release()
    items.close()


def test_a_failure_of_the_decoder_ends_the_run_in_its_words(folder_of_all: Path, reader: Planes) -> None:
    class Failing(JpegDecoder):
        def _images(self, streams: list[Any]) -> list[Any]:
            raise RuntimeError("Unhandled CUDA error: out of memory\nat some file:12")

    files, names = listed(folder_of_all)
    with pytest.raises(ExecutionError, match=r"^nvImageCodec failed: Unhandled CUDA error: out of memory; leave"):
        list(decoded_ahead(files, names, reader, Failing(None), 2))


def test_a_failure_of_the_preprocessor_releases_all(folder_of_all: Path, reader: Planes) -> None:
    class Broken(Planes):
        def prepare_plane(self, plane: Plane, packed: NDArray[np.uint8]) -> Prepared:
            if self.there == 15:
                raise ValueError("broken")
            return super().prepare_plane(plane, packed)

    broken = Broken()
    files, names = listed(folder_of_all)
    with pytest.raises(ValueError, match="broken"):
        for item in decoded_ahead(files, names, broken, JpegDecoder(None), 2):
            if isinstance(item, Photograph):
                item.release()
    assert broken.memory.in_use() == 0


def test_reading_and_decoding_are_traced(folder_of_all: Path, reader: Planes, tmp_path: Path) -> None:
    files, names = listed(folder_of_all)
    with open_trace(tmp_path / "t.json", "test") as trace:
        contents(decoded_ahead(files, names, reader, JpegDecoder(None), 2, trace))
    found = list(spans(tmp_path / "t.json"))
    assert {event["args"]["file"] for event in found if event["name"] == "read"} == set(names)
    groups = [event["args"]["files"] for event in found if event["name"] == "decode" and "files" in event["args"]]
    assert sum(groups) >= len(of_them_planes(files))


def jpeg(change: Callable[[bytes], bytes] = lambda data: data, mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((40, 30), 50).convert(mode).save(stream, "JPEG", **options)
    return change(stream.getvalue())


@pytest.mark.parametrize(
    ("data", "is_taken"),
    [
        (jpeg(), True),
        (jpeg(lambda data: data + bytes(200)), True),
        (jpeg(subsampling=0, progressive=True), True),
        (jpeg(lambda data: data + bytes(300)), False),
        (jpeg(lambda data: data[:-2]), False),
        (jpeg(lambda data: data[:30]), False),
        (jpeg(mode="L"), False),
        (jpeg(mode="CMYK"), False),
        (jpeg(keep_rgb=True), False),
        (b"\xff\xd8\xff\xd9", False),
        (b"", False),
        (b"hello", False),
    ],
)
def test_only_what_it_decodes_as_pillow_does_is_given_to_it(data: bytes, is_taken: bool) -> None:
    coded = JpegDecoder(None).coded(data)
    assert (coded is not None) == is_taken
    if coded is not None:
        assert coded.bytes == 3 * 40 * 30


def test_the_sides_of_a_plane_are_those_of_its_pixels() -> None:
    recipe = Planes.recipe
    for height, width in ((40, 90), (90, 60), (33, 33)):
        found = band(recipe, height, width, 300)
        assert found is not None
        given = operands(recipe, np.zeros((height, width, 3), np.uint8), 300)
        assert (given.rows.first, given.rows.end) == (found[0].first, found[0].end)
        assert given.image.shape[:2] == (found[0].end - found[0].first, found[1].end - found[1].first)
    assert band(recipe, 4000, 4000, 300) is None


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optional._EXTRAS, "nvidia.no_such_codec", "gpu-decode")
    with pytest.raises(MissingPackageError, match=r"nvidia.no_such_codec is needed to .*trtbatch\[gpu-decode\]"):
        optional.require("nvidia.no_such_codec", "decode photographs on the GPU")


def test_it_is_refused_where_nothing_takes_photographs_on_a_gpu(
    cli: Callable[..., Any], photo_engine: Path, folder_of_all: Path, tmp_path: Path
) -> None:
    result = cli("infer", "--input", folder_of_all, "--gpu-decode")
    assert result.exit_code == 2 and "for a preprocessor's engine: none runs here" in result.output
    result = cli("infer", "--input", "random", "--count", 2, "--gpu-decode")
    assert result.exit_code == 2 and "--gpu-decode is for photographs" in result.output


def test_skipped_ones_have_their_reasons(folder_of_all: Path, reader: Planes) -> None:
    files, names = listed(folder_of_all)
    items = list(decoded_ahead(files, names, reader, JpegDecoder(None), 2))
    reasons = {item.name: item.reason for item in items if isinstance(item, Skipped)}
    for item in items:
        if isinstance(item, Photograph):
            item.release()
    assert set(reasons) >= {"truncated.jpg", "empty.jpg", "text.jpg", "huge.jpg", "missing.jpg"}


def test_few_threads_read_a_bounded_way_ahead(
    folder_of_all: Path, reader: Planes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpudecoding, "GROUP", 10)
    monkeypatch.setattr(gpudecoding, "READ", 30)
    read: list[str] = []
    threads: set[str] = set()

    def watched(path: Path) -> bytes:
        read.append(path.name)
        threads.add(threading.current_thread().name)
        return read_bytes(path)

    monkeypatch.setattr(gpudecoding, "read_bytes", watched)
    files, names = listed(folder_of_all)
    files, names = files * 8, names * 8
    items = decoded_ahead(files, names, reader, JpegDecoder(None), 16)
    for taken, item in enumerate(items):
        if isinstance(item, Photograph):
            item.release()
        # A group that is taken, those that are decoded, and what is read for the next.
        assert len(read) <= taken + 10 + gpudecoding.GROUPS * 10 + 30
    assert sorted(read) == sorted(names)
    assert threads == {f"trtbatch-read_{number}" for number in range(len(threads))} and len(threads) <= 4


def test_photographs_of_a_size_are_packed_once(folder_of_all: Path, reader: Planes) -> None:
    files = [folder_of_all / "plain03.jpg", folder_of_all / "plain04.jpg"] * 20
    seen: dict[str, set[int]] = {}
    items = list(decoded_ahead(files, [file.name for file in files], reader, JpegDecoder(None), 2))
    for item in items:
        assert isinstance(item, Photograph)
        seen.setdefault(item.name, set()).add(id(item.prepared.packed))
    assert {name: len(packed) for name, packed in seen.items()} == {"plain03.jpg": 1, "plain04.jpg": 1}
    assert reader.memory.in_use() == 2 * reader.memory.made[0]
    for item in items:
        assert isinstance(item, Photograph)
        item.release()


def test_a_decoder_that_was_started_is_used_once(folder_of_all: Path, reader: Planes) -> None:
    files, names = listed(folder_of_all)
    start = DecoderStart(None)
    first, second = JpegDecoder(None, start), JpegDecoder(None, start)
    assert first._decoder is not second._decoder
    assert contents(decoded_ahead(files, names, reader, first, 2)) == in_threads(files, names)
    start.close()


def test_what_goes_wrong_at_the_start_is_told_by_who_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(library: Any, index: int | None) -> Any:
        raise RuntimeError("no such device\nat some file:12")

    monkeypatch.setattr(codec, "_decoder", broken)
    start = DecoderStart(7)
    with pytest.raises(ExecutionError, match=r"^nvImageCodec failed: no such device; leave"):
        JpegDecoder(None, start)
    start.close()


def test_a_source_starts_its_decoder_and_stops_it(folder_of_all: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    made = codec._decoder

    def on_the_host(library: Any, index: int | None) -> Any:
        asked.append(index)
        return made(library, None)

    monkeypatch.setattr(codec, "_decoder", on_the_host)
    files, names = listed(folder_of_all)
    spec = TensorSpec("input", "float32", ("batch", 3, 32, 32))
    source = ImageSource(files, names, spec, Planes.recipe, gpu_decode=True)
    source.start(300, 1)
    assert source.decoder is not None and source.team is None
    source.stop()
    assert asked == [1] and source.decoder.take() is None
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("trtbatch-")]
