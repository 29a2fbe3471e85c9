"""Run an engine in a Ray Data pipeline, with one :class:`Predictor` in each actor.

::

    import ray, trtbatch

    ds = ray.data.read_images("s3://bucket/photos/", include_paths=True)
    ds = ds.map_batches(
        trtbatch.ray.Predictor, fn_constructor_kwargs={"engine": "x.engine"}, batch_size=32, concurrency=2, num_gpus=1
    )
    ds.drop_columns(["image"]).write_parquet("s3://bucket/classes/")

This module needs no Ray: the class takes dicts of arrays from any caller. ``trtbatch.deployment.scale`` is the whole
pipeline, from files to files.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import layout_fix, refuse_integers
from trtbatch.core.readers import image_input
from trtbatch.core.sidecar import Sidecar
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import InputError, UsageError
from trtbatch.images.host import open_image, typed
from trtbatch.runtime.loaded import load
from trtbatch.runtime.sinks import Prediction, refuse_topk, top_predictions
from trtbatch.util.text import shortened

__all__ = ["IMAGE_COLUMNS", "PIXELS", "READY", "Predictor", "is_scores", "prepare"]

Array = NDArray[Any]

PIXELS = "pixels"
"""Column of images that are already resized and cropped, ``(H, W, 3)`` uint8 each; see :func:`prepare`."""

IMAGE_COLUMNS = ("image", "bytes")
"""Columns of images of any size, named as by ``ray.data.read_images`` and ``read_binary_files``."""

READY = "data"
"""Column of rows for a model with one input, named as by ``ray.data.read_numpy``."""


class Predictor:
    """Add predictions to batches of rows.

    A batch's rows come from the first of these columns that it has:

    * columns named like the model's inputs, or ``data`` for a model with one input: each row as the model takes it;
    * ``pixels``: images resized and cropped by the model's preprocessing, ``(H, W, 3)`` uint8;
    * ``image``: pixels ``(H, W, 3)`` or ``(H, W)`` uint8, of any sizes (an array of objects where the sizes differ);
    * ``bytes``: encoded files.

    If the first output is class scores, the result has the columns ``class``, ``index`` and ``score``, and with `topk`
    above 1 also the lists ``classes``, ``indices`` and ``scores``. Every other output with one row per sample becomes a
    column of its name. The column ``error`` is empty, or says why a row's image can't be used. The row's prediction is
    then ``""``, -1 and NaN, and its outputs are NaN or 0. A row that arrives with an error keeps the error.

    Args:
        engine: path on the actor's machine.
        topk: number of classes for each row; all of them where the model has fewer.
        device: number of the GPU, among those that Ray gives the actor.
        drop: columns to leave out of the result.
        reader: reader of ``image`` and ``bytes``: ``host``, ``dali`` or ``auto``, as in :meth:`LoadedEngine.predict`.

    Raises:
        ArtifactError, MissingPackageError: as for :func:`trtbatch.load`.
        UsageError: the model's inputs or outputs can't be columns, or `topk` is below 1.
    """

    def __init__(
        self,
        engine: str | Path,
        topk: int = 1,
        device: int = 0,
        cuda_graphs: bool = True,
        drop: Sequence[str] = (),
        reader: str = "auto",
    ) -> None:
        refuse_topk(topk)
        self._topk = topk
        self._reader = reader
        self._drop = frozenset(drop)
        self._engine = load(engine, device=device, cuda_graphs=cuda_graphs)
        self._close = weakref.finalize(self, self._engine.close)
        self.sidecar: Sidecar = self._engine.sidecar
        _refuse_columns(self.sidecar)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with predictions.

        Raises:
            InputError: no column holds the model's inputs, or a column has another shape, or integers for floats.
            ExecutionError: the engine failed.
        """
        count = len(next(iter(batch.values()))) if batch else 0
        errors = np.array([_text(each) for each in batch.get("error", [""] * count)], dtype=object)
        outputs = self._outputs(batch, errors)
        usable = np.flatnonzero(errors == "")
        kept = {name: column for name, column in batch.items() if name not in self._drop}
        return kept | self._columns(outputs, usable, count) | {"error": errors}

    def close(self) -> None:
        """Free the engine; a second call does nothing."""
        self._close()

    def _outputs(self, batch: Mapping[str, Any], errors: Array) -> Mapping[str, Array]:
        """Return the outputs of the rows without an error, and write the reasons of unusable rows into `errors`."""
        usable = np.flatnonzero(errors == "")
        if not len(usable):  # without usable rows, columns may have neither shape nor type
            return {}
        ready = _ready(batch, self.sidecar)
        if ready is not None:
            axes = {spec.name: spec.batch_axis or 0 for spec in self.sidecar.inputs}
            inputs = {name: np.moveaxis(rows[usable], 0, axes[name]) for name, rows in ready.items()}
            return self._engine.run(inputs)
        spec, preprocessing = image_input(self.sidecar)
        if PIXELS in batch:
            samples = [preprocessing.from_pixels(np.asarray(batch[PIXELS][row])) for row in usable]
            rows = typed(np.stack(samples, axis=spec.batch_axis or 0), spec)
            return self._engine.run({spec.name: rows})
        images = [_encoded(each) for each in _image_column(batch, self.sidecar)[usable]]
        outputs, unusable = self._engine.run_images(images, self._reader)
        for index, reason in unusable.items():
            errors[usable[index]] = reason
        return outputs

    def _columns(self, outputs: Mapping[str, Array], usable: NDArray[np.intp], count: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for place, spec in enumerate(self.sidecar.outputs):
            if spec.batch_axis is None:
                continue
            if place == 0 and is_scores(spec):
                found |= self._classes(outputs.get(spec.name), usable, count)
                continue
            sizes = [int(size) for axis, size in enumerate(spec.shape) if axis != spec.batch_axis]
            column = np.full([count, *sizes], np.nan if spec.dtype.startswith("float") else 0, spec.dtype)
            if spec.name in outputs:
                column[usable] = np.moveaxis(outputs[spec.name], spec.batch_axis, 0)
            found[spec.name] = column
        return found

    def _classes(self, scores: Array | None, usable: NDArray[np.intp], count: int) -> dict[str, Any]:
        top: list[list[Prediction]] = [[] for _ in range(count)]
        if scores is not None:
            for row, predictions in zip(usable, top_predictions(scores, self._topk, self.sidecar.classes)):
                top[row] = predictions
        found: dict[str, Any] = {
            "class": np.array([row[0].name if row else "" for row in top], dtype=object),
            "index": np.array([row[0].index if row else -1 for row in top], dtype=np.int64),
            "score": np.array([row[0].score if row else np.nan for row in top], dtype=np.float64),
        }
        if self._topk > 1:
            found["classes"] = _objects([[each.name for each in row] for row in top])
            found["indices"] = _objects([[each.index for each in row] for row in top])
            found["scores"] = _objects([[each.score for each in row] for row in top])
        return found


def prepare(batch: Mapping[str, Any], sidecar: Sidecar, errors: Array) -> Array:
    """Return the images of a batch resized and cropped for a model: objects of ``(H, W, 3)`` uint8, or None.

    Rows that have an entry in `errors` are skipped. Rows that can't be used get one.

    Raises:
        InputError: the batch has no column of images.
        UsageError: the model takes no images.
    """
    _, preprocessing = image_input(sidecar)
    images = _image_column(batch, sidecar)
    pixels = np.empty(len(errors), dtype=object)
    for row in np.flatnonzero(errors == ""):
        try:
            pixels[row] = preprocessing.pixels(open_image(_encoded(images[row])))
        except InputError as error:
            errors[row] = error.problem
        except Exception as error:  # an image that opens may still fail to resize
            errors[row] = shortened(str(error)) or type(error).__name__
    return pixels


def _image_column(batch: Mapping[str, Any], sidecar: Sidecar) -> Array:
    """Return the column of images.

    Raises:
        InputError: the batch has no such column.
    """
    column = next((name for name in IMAGE_COLUMNS if name in batch), None)
    if column is None:
        wanted = ", ".join((*(spec.name for spec in sidecar.inputs), PIXELS, *IMAGE_COLUMNS))
        raise InputError(f"the batch has the columns {', '.join(batch)}", f"give one of: {wanted}")
    return np.asarray(batch[column])


def _encoded(image: Any) -> Any:
    """Return an encoded file as bytes, and anything else unchanged."""
    return bytes(image) if isinstance(image, (bytearray, memoryview)) else image


def is_scores(spec: TensorSpec) -> bool:
    """Return whether an output is class scores: ``(N, C)`` floats with C ≥ 2."""
    return spec.batch_axis == 0 and len(spec.shape) == 2 and spec.shape[1] != 1 and spec.dtype.startswith("float")


def _ready(batch: Mapping[str, Any], sidecar: Sidecar) -> dict[str, Array] | None:
    """Return the columns that the model takes without preprocessing, rows first; None where the batch has none.

    A column that is named like an input and holds images of another shape needs preprocessing.
    """
    specs = sidecar.inputs
    names = {spec.name: spec.name for spec in specs}
    if len(specs) == 1 and specs[0].name not in batch and READY in batch:
        names[specs[0].name] = READY
    if not all(name in batch for name in names.values()):
        return None
    found: dict[str, Array] = {}
    for spec in specs:
        rows = _dense(batch[names[spec.name]])
        sizes = tuple(size for axis, size in enumerate(spec.shape) if axis != spec.batch_axis)
        if rows is None or rows.shape[1:] != sizes:
            if names[spec.name] in IMAGE_COLUMNS and sidecar.preprocessing is not None:
                return None
            shape = "differing shapes" if rows is None else f"shape {rows.shape[1:]}"
            fix = None if rows is None else layout_fix(rows.shape, spec)
            raise InputError(f"rows of column {names[spec.name]!r} have {shape}, wanted {sizes}", fix or "reshape them")
        refuse_integers(str(rows.dtype), spec, f"column {names[spec.name]!r}")
        found[spec.name] = rows
    return found


def _dense(column: Any) -> Array | None:
    """Return a column as one array; None where its rows differ in shape or aren't numbers."""
    array = np.asarray(column)
    if array.dtype == object:
        rows = [np.asarray(row) for row in array]
        if len({row.shape for row in rows}) > 1 or any(row.dtype.kind not in "biuf" for row in rows):
            return None
        array = np.stack(rows) if rows else array
    return array if array.dtype.kind in "biuf" else None


def _refuse_columns(sidecar: Sidecar) -> None:
    """Refuse a model whose inputs or outputs can't be columns of rows.

    Raises:
        UsageError: an input has no batch axis, or an output's shape depends on the data.
    """
    for spec in sidecar.inputs:
        if spec.batch_axis is None:
            raise UsageError(f"input {spec.name!r} has no batch axis: rows can't hold it", "make it a constant")
    for spec in sidecar.outputs:
        sizes = [size for axis, size in enumerate(spec.shape) if axis != spec.batch_axis]
        if spec.batch_axis is not None and any(isinstance(size, str) for size in sizes):
            raise UsageError(f"the shape of output {spec.name!r} depends on the data", "pad it in the model")


def _text(value: Any) -> str:
    """Return the error that a row arrived with; "" for None, NaN and whatever else isn't text."""
    return value if isinstance(value, str) else ""


def _objects(rows: Sequence[Any]) -> Array:
    """Return an array of lists; numpy would make a table of their items."""
    column = np.empty(len(rows), dtype=object)
    column[:] = rows
    return column
