"""Describe the inputs and outputs of ONNX files and engines: names, dtypes, shapes and the batch axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtbatch.util import optional

if TYPE_CHECKING:
    import numpy as np

__all__ = ["BATCH_AXIS", "TensorSpec", "npz_keys", "numpy_dtype"]

BATCH_AXIS = "batch_size"
"""Name of the dynamic batch axis in ONNX files and sidecars."""

_FLOATS = ("float64", "float32", "float16", "bfloat16")

_INTEGERS = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")

_DTYPES = frozenset({*_FLOATS, *_INTEGERS, "bool"})


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy type of a dtype's name; ``bfloat16`` is that of ml_dtypes, which onnx brings.

    Raises:
        MissingPackageError: ml_dtypes isn't installed.
    """
    import numpy as np

    if name == "bfloat16":
        dtype: np.dtype[Any] = np.dtype(optional.require("ml_dtypes", "hold values of type bfloat16").bfloat16)
        return dtype
    return np.dtype(name)


@dataclass(frozen=True)
class TensorSpec:
    """Description of one input or output.

    Args:
        name: of the binding.
        dtype: numpy's name for it, such as ``float32``.
        shape: such as ``("batch_size", 3, 224, 224)``; an open axis has a name instead of a size.
        batch_axis: index of the batch axis; None where there is none.
        value_range: smallest and largest value of an integer input in the export's example.
        counted_by: the output that holds the number of valid entries of this one along its second axis.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    batch_axis: int | None = 0
    value_range: tuple[int, int] | None = None
    counted_by: str | None = None

    def __post_init__(self) -> None:
        if self.batch_axis is not None and not 0 <= self.batch_axis < len(self.shape):
            raise ValueError(f"{self.name}: no axis {self.batch_axis} in {self.shape}")
        if self.dtype not in _DTYPES:
            raise ValueError(f"{self.name}: {self.dtype!r} is not a type of tensors")
        if any(isinstance(size, int) and size < 0 for size in self.shape):
            raise ValueError(f"{self.name}: {self.shape} has a negative size")

    @property
    def is_float(self) -> bool:
        """Return whether the values are floats."""
        return self.dtype in _FLOATS

    @property
    def fixed_batch(self) -> int | None:
        """Return the batch size where it is fixed; None where it is open or there is no batch axis."""
        size = None if self.batch_axis is None else self.shape[self.batch_axis]
        return size if isinstance(size, int) else None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of this shape fits, at any batch size; open axes take any size."""
        return len(shape) == len(self.shape) and all(
            axis == self.batch_axis or not isinstance(wanted, int) or size == wanted
            for axis, (size, wanted) in enumerate(zip(shape, self.shape))
        )

    def at(self, batch: int) -> tuple[int | str, ...]:
        """Return the shape with the batch axis set to `batch`; other open axes keep their names."""
        return self._with_batch(batch)

    def at_name(self, name: str) -> tuple[int | str, ...]:
        """Return the shape with the batch axis open, under `name`."""
        return self._with_batch(name)

    def _with_batch(self, size: int | str) -> tuple[int | str, ...]:
        return tuple(size if axis == self.batch_axis else length for axis, length in enumerate(self.shape))

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.shape))}) {self.dtype}"


def npz_keys(names: Sequence[str]) -> dict[str, str]:
    """Return the key of each name in a ``.npz``: no two are alike, none holds a slash, and none is ``file``.

    ``file`` is the key of the samples' names. A name without a slash keeps its own key where that is free.
    """
    keys: dict[str, str] = {}
    taken = {"file"}
    for name in sorted(names, key=lambda name: "/" in name):
        key = stem = name.replace("/", "_")
        number = 2
        while key in taken:
            key, number = f"{stem}_{number}", number + 1
        taken.add(key)
        keys[name] = key
    return keys
