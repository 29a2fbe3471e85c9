"""The ways to write a prefix: all but the bound give what floats give."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks.prefix_table import DEVIATION, MEAN, SHOWN, WAYS, markdown, stem, summary

SIDE = 16


def sums(name: str, image: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    model = stem(name, 2, SIDE)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = session.run(None, {"image": image})[0]
    return found.astype(np.float32)


@pytest.mark.parametrize("name", WAYS)
def test_each_gives_what_the_stem_gives_of_floats(name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    floats = ((pixels - MEAN) / DEVIATION).transpose(0, 3, 1, 2).astype(np.float32)
    way = WAYS[name]
    given = {None: floats, "NHWC": pixels, "NCHW": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))}[way.layout]
    wanted = sums(f"{name.split()[0]} floats", floats)
    off = np.linalg.norm(sums(name, given) - wanted) / np.linalg.norm(wanted)
    assert np.std(wanted) > 0
    assert off > 0.5 if "bound" in name else off < 0.01


def test_what_can_not_be_built_has_no_figures() -> None:
    rows: list[dict[str, Any]] = [{"way": "a", "failed": "no"}, {"way": "b", "ms": 1.5, "more_ms": -0.25}]
    assert markdown(rows).splitlines()[2:] == ["| a | can't be built | – |", "| b | 1.5000 | -0.2500 |"]


def test_a_summary_has_the_ways_that_are_shown_and_the_fastest() -> None:
    assert set(SHOWN) <= set(WAYS)
    more = {"fp16 floats": 0.0, "fp16 last": 0.2, "fp16 bound": 0.01, "fp16 sliced": 0.1}
    rows: list[dict[str, Any]] = [
        {"way": way, "ms": 1 + ms, "over_floats": 1 + ms, "more_ms": ms} for way, ms in more.items()
    ]
    found = summary([*rows, {"way": "int8 planar", "failed": "no"}])
    assert [row["way"] for row in found["rows"]] == ["fp16 floats", "fp16 last"]
    assert found["least"] == {"fp16": {"way": "fp16 sliced", "more_ms": 0.1}}
    assert found["ways"] == 5
    assert found["failed"] == {"int8 planar": "no"}
