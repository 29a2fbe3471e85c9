"""How fast photographs are decoded, and prepared for a model, by the libraries at hand, in threads and in processes.

    python scripts/decode_table.py [--photos 240] [--size 500x375] [--workers N] [--rounds 7] [--json FILE]

JPEG files of photograph-like content are made first (quality 90, 4:2:0) and read from memory. *decode* is bytes to RGB
pixels; *sample* is that and the model's resize and crop, by Pillow. Ways: Pillow; Pillow's ``draft``, which lets
libjpeg-turbo scale by a power of two while it decodes, and changes pixels; simplejpeg and OpenCV, where they are
installed. nvImageCodec, where it and a GPU are there, takes batches of 64, and leaves the pixels on the GPU. Each way
has its turn in every round. Python's interpreter lock is free while a library decodes.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from trtbatch import environment, optional
from trtbatch.preprocessing import Preprocessing

RECIPE = Preprocessing(256, (224, 224))
Pixels = NDArray[np.uint8]
QUALITY = 90


def photograph(seed: int, width: int, height: int) -> Pixels:
    """Smooth colours, edges and grain; ``(height, width, 3)``."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels[height // 3 : height // 2, width // 4 : width // 2] //= 2
    pixels += generator.normal(0, 6, pixels.shape).astype(np.int16)
    made: Pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    return made


def photographs(count: int, width: int, height: int) -> list[bytes]:
    """JPEG files, seeded."""
    made = []
    for index in range(count):
        stream = io.BytesIO()
        Image.fromarray(photograph(index, width, height)).save(stream, "JPEG", quality=QUALITY)
        made.append(stream.getvalue())
    return made


def by_pillow(data: bytes) -> Pixels:
    return np.asarray(RECIPE.rgb(Image.open(io.BytesIO(data))))


def by_pillow_draft(data: bytes) -> Pixels:
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (RECIPE.resize, RECIPE.resize))
    return np.asarray(RECIPE.rgb(image))


def by_simplejpeg(data: bytes) -> Pixels:
    pixels: Pixels = importlib.import_module("simplejpeg").decode_jpeg(data)
    return pixels


def by_opencv(data: bytes) -> Pixels:
    cv2: Any = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    pixels: Pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return pixels


DECODERS: dict[str, tuple[str, Callable[[bytes], Pixels]]] = {
    "Pillow": ("PIL", by_pillow),
    "Pillow, draft": ("PIL", by_pillow_draft),
    "simplejpeg": ("simplejpeg", by_simplejpeg),
    "OpenCV": ("cv2", by_opencv),
}


def work(name: str, with_sample: bool, data: bytes) -> int:
    """Decode one, and prepare it where asked; bytes made."""
    if not with_sample:
        return int(DECODERS[name][1](data).nbytes)
    image = Image.open(io.BytesIO(data)) if name == "Pillow" else Image.fromarray(DECODERS[name][1](data))
    return int(RECIPE.pixels(image).nbytes)


class Task:
    """One way to work on a photograph, as a pool takes it."""

    def __init__(self, name: str, with_sample: bool) -> None:
        self.name = name
        self.with_sample = with_sample

    def __call__(self, data: bytes) -> int:
        return work(self.name, self.with_sample, data)


LIBRARIES = ("pillow", "simplejpeg", "opencv-python-headless", "nvidia-nvimgcodec-cu12")

BATCH = 64
"""Files that nvImageCodec is given at once."""


class OnGpu:
    """nvImageCodec's decoder; pixels stay on the GPU."""

    def __init__(self) -> None:
        codec: Any = importlib.import_module("nvidia.nvimgcodec")
        self._decoder = codec.Decoder(device_id=0)
        # Interpolated chroma, as libjpeg-turbo has it, where a decoder can do that.
        self._smooth = codec.Decoder(device_id=0, options=":fancy_upsampling=1")
        self._rgb = codec.DecodeParams(apply_exif_orientation=True, sample_format=codec.SampleFormat.I_RGB)

    def __call__(self, files: Sequence[bytes]) -> list[Any]:
        """Images on the GPU.

        Raises:
            ValueError: one can't be decoded.
        """
        images = self._decoder.decode(list(files), params=self._rgb)
        if any(image is None for image in images):
            raise ValueError("nvImageCodec can't decode one of the files")
        return list(images)

    def largest_difference(self, data: bytes) -> tuple[int, int]:
        """Of a pixel from Pillow's, of 255: as it decodes by itself, and with smooth chroma."""
        wanted = by_pillow(data).astype(int)
        found = (decoder.decode(data, params=self._rgb) for decoder in (self._decoder, self._smooth))
        plain, smooth = (int(np.abs(np.asarray(image.cpu()).astype(int) - wanted).max()) for image in found)
        return plain, smooth


def gpu_decoder() -> OnGpu | None:
    """None where nvImageCodec or a GPU isn't there."""
    try:
        decoder = OnGpu()
        decoder([photographs(1, 64, 48)[0]])
    except Exception:  # whatever its libraries raise where they aren't whole
        return None
    return decoder


def gpu_rate(decoder: OnGpu, files: Sequence[bytes]) -> float:
    begun = time.perf_counter()
    for first in range(0, len(files), BATCH):
        decoder(files[first : first + BATCH])[-1].cpu()  # which waits
    return len(files) / (time.perf_counter() - begun)


def rate(pool: Executor, task: Task, files: Sequence[bytes]) -> float:
    begun = time.perf_counter()
    for _ in pool.map(task, files, chunksize=8):
        pass
    return len(files) / (time.perf_counter() - begun)


def measure(files: Sequence[bytes], workers: int, rounds: int, on_gpu: OnGpu | None = None) -> list[dict[str, Any]]:
    names = [name for name, (package, _) in DECODERS.items() if optional.is_installed(package)]
    tasks = [Task(name, with_sample) for with_sample in (False, True) for name in names]
    with ThreadPoolExecutor(workers) as threads, ProcessPoolExecutor(workers) as processes:
        pools: dict[str, Executor] = {"threads": threads, "processes": processes}
        found: dict[tuple[str, bool, str], list[float]] = {}
        for turn in range(rounds + 1):
            for task in tasks[:: 1 if turn % 2 == 0 else -1]:
                for kind, pool in pools.items():
                    speed = rate(pool, task, files)
                    if turn:  # the first round warms up
                        found.setdefault((task.name, task.with_sample, kind), []).append(speed)
            speed = 0.0 if on_gpu is None else gpu_rate(on_gpu, files)
            if turn and on_gpu is not None:
                found.setdefault(("nvImageCodec", False, "GPU"), []).append(speed)
    return [
        {
            "way": name,
            "what": "sample" if with_sample else "decode",
            "pool": kind,
            "images_per_s": float(np.median(speeds)),
            "over_pillow_threads": float(
                np.median(np.asarray(speeds) / np.asarray(found["Pillow", with_sample, "threads"]))
            ),
            "rounds": speeds,
        }
        for (name, with_sample, kind), speeds in found.items()
    ]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each way: images a second, and over those of Pillow in threads."""
    lines = ["| way | what | pool | images/s | / Pillow in threads |", "|---|---|---|---:|---:|"]
    for row in rows:
        cells = (
            row["way"],
            row["what"],
            row["pool"],
            f"{row['images_per_s']:,.0f}",
            f"{row['over_pillow_threads']:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=240)
    parser.add_argument("--size", default="500x375")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    width, height = (int(part) for part in given.size.split("x"))
    files = photographs(given.photos, width, height)
    on_gpu = gpu_decoder()
    rows = measure(files, given.workers, given.rounds, on_gpu)
    print(markdown(rows))
    if given.json is not None:
        result = {
            "script": "scripts/decode_table.py",
            "size": given.size,
            "photos": given.photos,
            "mean_bytes": float(np.mean([len(data) for data in files])),
            "workers": given.workers,
            "libraries": {name: optional.version(name) for name in LIBRARIES},
            "nvimagecodec_differs_by": None if on_gpu is None else on_gpu.largest_difference(files[0]),
            "libjpeg_turbo": features.version("libjpeg_turbo"),
            "environment": environment.describe(),
            "rows": rows,
        }
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
