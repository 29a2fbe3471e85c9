"""ONNX models ``(N, 6)`` → ``(N, 6)`` whose shapes are right at every batch size, and whose rows are wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.support import models

__all__ = ["MODELS"]

Model = Callable[[Path], Path]


def right(path: Path) -> Path:
    """The input as it is, which the others are compared with."""
    nodes = [
        helper.make_node("Neg", ["input"], ["negated"], name="/neg"),
        helper.make_node("Neg", ["negated"], ["output"], name="/again"),
    ]
    return _save(path, nodes)


def reversed_rows(path: Path) -> Path:
    """The rows of the batch in the opposite order."""
    slice_ = helper.make_node("Slice", ["input", "last", "end", "axis", "back"], ["output"], name="/slice")
    return _save(path, [slice_], last=[-1], end=[np.iinfo(np.int64).min], axis=[0], back=[-1])


def repeated(path: Path) -> Path:
    """Row 0 in every row."""
    nodes = [
        helper.make_node("Slice", ["input", "first", "second", "axis"], ["row"], name="/slice"),
        helper.make_node("Shape", ["input"], ["shape"], name="/shape"),
        helper.make_node("Expand", ["row", "shape"], ["output"], name="/expand"),
    ]
    return _save(path, nodes, first=[0], second=[1], axis=[0])


def nan(path: Path) -> Path:
    """NaN in every row but row 0."""
    nodes = [
        helper.make_node("Shape", ["input"], ["shape"], name="/shape", end=1),
        helper.make_node("Squeeze", ["shape"], ["count"], name="/count"),
        helper.make_node("Range", ["zero", "count", "one"], ["index"], name="/range"),
        helper.make_node("Equal", ["index", "zero"], ["equal"], name="/equal"),
        helper.make_node("Cast", ["equal"], ["flag"], name="/cast", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["flag", "columns"], ["is_first"], name="/is_first"),
        helper.make_node("Mul", ["input", "is_first"], ["kept"], name="/mul"),
        helper.make_node("Div", ["kept", "is_first"], ["output"], name="/div"),
    ]
    return _save(path, nodes, zero=0, one=1, columns=[1])


def divided_by_batch(path: Path) -> Path:
    """Every row divided by the batch size: right at batch 1."""
    nodes = [
        helper.make_node("Shape", ["input"], ["count"], name="/shape", end=1),
        helper.make_node("Cast", ["count"], ["divisor"], name="/cast", to=TensorProto.FLOAT),
        helper.make_node("Div", ["input", "divisor"], ["output"], name="/div"),
    ]
    return _save(path, nodes)


def noisy(path: Path) -> Path:
    """Another random number in every run."""
    nodes = [
        helper.make_node("RandomUniformLike", ["input"], ["noise"], name="/noise"),
        helper.make_node("Add", ["input", "noise"], ["output"], name="/add"),
    ]
    return _save(path, nodes)


def _save(path: Path, nodes: Sequence[Any], **constants: Any) -> Path:
    arrays = {name: np.array(value, np.int64) for name, value in constants.items()}
    return models.save(path, nodes, {"input": ["batch_size", 6]}, {"output": ["batch_size", 6]}, arrays)


MODELS: dict[str, Model] = {
    "right": right,
    "zeros after row 0": models.first_row_only,
    "rows reversed": reversed_rows,
    "row 0 repeated": repeated,
    "NaN after row 0": nan,
    "divided by the batch size": divided_by_batch,
    "mean of the batch taken off": models.leaking,
    "other rows in every run": noisy,
}
"""By what is wrong."""
