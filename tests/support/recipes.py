"""A classifier of images with its preprocessing on record."""

from __future__ import annotations

from pathlib import Path

import onnx

from tests.support import models
from trtbatch.core import store
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.sidecar import BuildRecord, ModelRecord, Sidecar
from trtbatch.core.tensors import TensorSpec


def write_classifier(folder: Path, recipe: Preprocessing, name: str) -> Path:
    """Write ``NAME.onnx``, a classifier of what the recipe makes, with its sidecar."""
    room = folder / "made"
    room.mkdir()
    height, width = recipe.crop
    made = models.classifier(room / f"{name}.onnx", size=height)
    if width != height:
        model = onnx.load(str(made))
        model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = width
        onnx.save(model, str(made))
    sidecar = Sidecar(
        kind="onnx",
        artifact=store.record_file(made),
        inputs=(TensorSpec("input", "float32", ("batch_size", 3, height, width)),),
        outputs=(TensorSpec("output", "float32", ("batch_size", 5)),),
        model=ModelRecord(name, "of the test"),
        preprocessing=recipe,
        build=BuildRecord(created=store.now()),
    )
    store.publish(made, folder / f"{name}.onnx", sidecar)
    room.rmdir()
    return folder / f"{name}.onnx"
