"""A preprocessor against Pillow on generated photographs: the pixels, the model's best class, and the time.

    python scripts/preprocessor_table.py [PREPROCESSOR] [--engine ENGINE] [--count 2000] [--largest 4096] [--seed 0]
                                         [--seconds S] [--output FILE.json]

PREPROCESSOR is a ``.pre.onnx`` file; it runs in ONNX Runtime on the CPU. ``--engine`` compares the model's best class
on its samples with that on Pillow's. ``--seconds`` stops sooner; what was done by then is reported as so much. The exit
code is 1 where a pixel is more than 1 of 255 off, or fewer than 99.9 % of the best classes agree.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trtbatch import environment
from trtbatch.artifacts import TensorSpec, load
from trtbatch.backends import open_engine
from trtbatch.photographs.preprocessor import OnnxPreprocessor, pixels_of
from trtbatch.photographs.resample import rows_first
from trtbatch.records import encode

Array = NDArray[Any]
Pixels = NDArray[np.uint8]

LONGEST = 16
"""Long side by short side at the most: of a longer one Pillow makes millions of pixels, of which the crop takes few."""

TIMED = ((224, 224), (375, 500), (500, 375), (1080, 1920), (3024, 4032))
"""Heights and widths."""

AGREEMENT = 0.999


def sizes(generator: np.random.Generator, count: int, largest: int) -> Iterator[tuple[int, int]]:
    """Heights and widths: 1×1 and the largest square, then even in the logarithm, as many high as wide."""
    yield from ((1, 1), (largest, largest))[:count]
    for _ in range(count - 2):
        long = int(np.exp(generator.uniform(0, np.log(largest))))
        short = max(1, round(long / np.exp(generator.uniform(0, np.log(LONGEST)))))
        yield (long, short) if generator.random() < 0.5 else (short, long)


def photograph(generator: np.random.Generator, height: int, width: int) -> Pixels:
    """Slow waves of colour, hard edges, and noise of a strength that is drawn too; ``(height, width, 3)``."""
    down, across = np.linspace(0, 1, height, dtype=np.float32)[:, None], np.linspace(0, 1, width, dtype=np.float32)
    planes = []
    for _ in range(3):
        a, b, phase = generator.uniform(-9, 9, 3).astype(np.float32)
        planes.append(127 + 110 * np.sin(a * down + b * across + phase))
    image = np.stack(np.broadcast_arrays(*planes), axis=-1)
    for _ in range(int(generator.integers(0, 6))):
        top, left = int(generator.integers(0, height)), int(generator.integers(0, width))
        image[top : top + height // 3 + 1, left : left + width // 4 + 1] = generator.integers(0, 256, 3)
    noise = generator.integers(-64, 65, image.shape, np.int8)
    image += noise * np.float32(generator.uniform(0, 2))
    pixels: Pixels = np.clip(image, 0, 255).astype(np.uint8)
    return pixels


def table(
    preprocess: OnnxPreprocessor,
    classify: Callable[[Array], Array] | None,
    count: int,
    largest: int,
    seed: int,
    timed: Sequence[tuple[int, int]] = TIMED,
    seconds: float = float("inf"),
) -> dict[str, Any]:
    """What the comparison found, in numbers; what Pillow resized either way is counted too, and says nothing.

    Args:
        classify: class scores of one sample of the model's input.
        seconds: after which no further photograph is begun.
    """
    generator = np.random.default_rng(seed)
    spec, recipe = preprocess.record.output, preprocess.record.recipe
    done = pixels = exact = agreed = beside = 0
    worst, worst_size, end = 0, (0, 0), time.monotonic() + seconds
    sample = _room(spec)
    for height, width in sizes(generator, count, largest):
        if time.monotonic() > end:
            break
        image = photograph(generator, height, width)
        preprocess(image, sample)
        wanted = recipe(Image.fromarray(image)).astype(spec.dtype)[None]
        # Whole steps: what the normalisation rounds is none.
        steps = np.rint(np.abs(pixels_of(preprocess.record, sample) - pixels_of(preprocess.record, wanted)))
        if steps.max() > worst:
            worst, worst_size = int(steps.max()), (height, width)
        beside += rows_first(recipe, height, width)
        done, pixels, exact = done + 1, pixels + steps.size, exact + int((steps == 0).sum())
        agreed += classify is not None and bool(classify(sample).argmax() == classify(wanted).argmax())
    return {
        "photographs": done,
        "of_them_resized_by_pillow": beside,
        "values": pixels,
        "max_difference": worst,
        "max_difference_at": worst_size,
        "exact_share": exact / pixels,
        "top1_agreement": None if classify is None else agreed / done,
        "times": [time_one(preprocess, photograph(generator, *size)) for size in timed],
    }


def time_one(preprocess: OnnxPreprocessor, image: Pixels) -> dict[str, Any]:
    """Median ms of the preprocessor and of Pillow (with numpy's normalisation) on one photograph, in turns."""
    recipe, sample, picture = preprocess.record.recipe, _room(preprocess.record.output), Image.fromarray(image)
    preprocess(image, sample)  # the matrices of a size are made once
    ours, pillow = [], []
    for _ in range(9):
        ours.append(_ms(lambda: preprocess(image, sample)))
        pillow.append(_ms(lambda: recipe(picture)))
    one, two = float(np.median(ours)), float(np.median(pillow))
    found = {"onnxruntime_ms": round(one, 3), "pillow_ms": round(two, 3), "ratio": round(one / two, 3)}
    return {"height": image.shape[0], "width": image.shape[1], **found}


def _ms(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def _room(spec: TensorSpec) -> Array:
    return np.empty([int(size) for size in spec.shape], spec.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preprocessor", nargs="?", type=Path)
    parser.add_argument("--engine", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--largest", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    path = options.preprocessor or max(Path("engines").glob("*.pre.onnx"), key=lambda each: each.stat().st_mtime)
    with ExitStack() as stack:
        preprocess = stack.enter_context(OnnxPreprocessor(path))
        classify = None
        if options.engine is not None:
            engine = stack.enter_context(open_engine(load(options.engine, "engine")))
            session = stack.enter_context(engine.session())
            name = engine.sidecar.inputs[0].name

            def classify(sample: Array) -> Array:
                session.bind({name: sample})
                session.run()
                return next(iter(session.fetch().values()))

        found = table(preprocess, classify, options.count, options.largest, options.seed, seconds=options.seconds)
        result = {
            "script": "scripts/preprocessor_table.py",
            "seed": options.seed,
            "largest": options.largest,
            "engine": None if options.engine is None else options.engine.name,
            "preprocessor": encode(preprocess.record),
            "environment": environment.describe(),
            **found,
        }
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")
    right = found["max_difference"] <= 1 and (found["top1_agreement"] is None or found["top1_agreement"] >= AGREEMENT)
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
