"""The preprocessing's arithmetic as the first nodes of the graph, so that bytes travel instead of floats.

An image of 224×224 is 150 KB as uint8 and 602 KB as float32. The prefix makes floats of the bytes, transposes them
where images lie as NHWC, and gives ``(x − 255·mean) · 1/(255·std)`` per channel, by a batch normalisation. In float32
it differs from :meth:`trtbatch.core.preprocessing.Preprocessing.normalise` by rounding alone. In a graph whose products
are in half precision :func:`halve_prefix` writes it again in that: half the bytes to move. Bytes are exact in half
precision, so that nothing is rounded but the constants and the result.

**Floats come out of a table**, of 256 entries that are 0 to 255. That is a cast, written so that TensorRT makes one
kernel of the whole prefix: it hands lookups, and what follows them, to the compiler inside it (Myelin), while of a
cast, a transpose, a subtraction and a product it makes a kernel each, and each reads and writes all images
(``benchmarks/prefix_table.py`` compares the ways). ONNX Runtime takes longer for a lookup than for a cast, on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trtbatch.core import store
from trtbatch.core.hints import call
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.rows import as_rows, random_inputs, wrong_rows
from trtbatch.core.sidecar import Artifact, Sidecar, SourceRecord
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import ExportError, UsageError
from trtbatch.onnx_graph.read import load_onnx
from trtbatch.onnx_graph.run import OnnxReference
from trtbatch.util import files, optional
from trtbatch.util.log import note

__all__ = [
    "PREFIX",
    "SUFFIXES",
    "Layout",
    "fuse",
    "fuse_graph",
    "halve_prefix",
    "prove_fused",
    "refuse_unfusable",
    "unfused_inputs",
]

Array = NDArray[Any]
Layout = Literal["NHWC", "NCHW"]

SUFFIXES: dict[Layout, str] = {"NHWC": ".uint8", "NCHW": ".uint8.nchw"}
"""What the names of fused files end in, so that one layout doesn't replace the other."""

PREFIX = "/trtbatch/preprocess"
"""How the names of the prefix's nodes and tensors begin."""

LIMIT = 1e-4
"""Largest L2-relative error of a row of the fused file against the unfused one: float32's, by rows.tolerance."""

_BATCHES = (1, 2, 3, 7)


def fuse(source: Artifact, layout: Layout, folder: Path) -> Artifact:
    """Return the artifact with a uint8 input, in `folder`: made now, or found from before.

    Raises:
        UsageError: the model can't take images so, or something else has the name.
        ExportError: the fused file's rows differ.
    """
    sidecar = source.sidecar
    refuse_unfusable(sidecar, source.path.name)
    target = folder / f"{source.path.name.removesuffix('.onnx')}{SUFFIXES[layout]}.onnx"
    found = _found(target, source, layout)
    if found is not None:
        note(f"using {found.path}, fused before")
        return found
    with files.scratch(target) as room:
        made, fused, companions = write_fused(source.path, sidecar, layout, room / target.name)
        path = os.path.relpath(source.path.resolve(), target.resolve().parent)
        fused = replace(fused, source=SourceRecord.of(sidecar.artifact, path))
        return store.publish(made, target, fused, companions)


def write_fused(path: Path, sidecar: Sidecar, layout: Layout, made: Path) -> tuple[Path, Sidecar, tuple[Path, ...]]:
    """Write the model of `path` with its preprocessing fused; the file, its sidecar, and files next to it.

    Raises:
        ExportError: the fused file's rows differ.
    """
    onnx = optional.require("onnx", "write ONNX files")
    assert sidecar.preprocessing is not None
    model = load_onnx(path, weights=True)
    recipe = replace(sidecar.preprocessing, fused=layout)
    spec = fuse_graph(model, sidecar.inputs[0], recipe)
    large = bool(sidecar.companions)
    beside = made.with_name(f"{made.name}.data")
    onnx.save(model, str(made), save_as_external_data=large, location=beside.name)
    companions = (beside,) if large else ()
    prove_fused(path, made, replace(sidecar, preprocessing=recipe), spec)
    fused = replace(
        sidecar,
        artifact=store.record_file(made),
        companions=tuple(store.record_file(each) for each in companions),
        inputs=(spec,),
        preprocessing=recipe,
        build=replace(sidecar.build, created=store.now()),
    )
    return made, fused, companions


def _found(target: Path, source: Artifact, layout: Layout) -> Artifact | None:
    """Return the file of an earlier run, where source and layout are the same.

    Raises:
        UsageError: the name is taken by something that wasn't made so.
    """
    artifact = store.occupant(target, _is_fused, "its preprocessing was fused")
    if artifact is None:
        return None
    if artifact.sidecar.source is None:
        raise UsageError(f"{target} is in the way: it was exported so", f"build that: {call('build', target)}")
    recipe = artifact.sidecar.preprocessing
    same = recipe is not None and recipe.fused == layout and store.still_made_from(artifact, source)
    return artifact if same and is_looked_up(artifact.path) else None


def is_looked_up(path: Path) -> bool:
    """Whether a fused file's prefix is written as this release writes it."""
    return any(node.name == f"{PREFIX}/Gather" for node in load_onnx(path).graph.node)


def _is_fused(sidecar: Sidecar) -> bool:
    return sidecar.preprocessing is not None and sidecar.preprocessing.fused is not None


def refuse_unfusable(sidecar: Sidecar, name: str) -> None:
    """Raise where a model's preprocessing can't become part of it.

    Raises:
        UsageError: it has none, has it already, or isn't a model of one float image.
    """
    recipe, inputs = sidecar.preprocessing, sidecar.inputs
    if recipe is None:
        raise UsageError(
            f"{name} has no preprocessing recorded: there is nothing to fuse",
            "export a torchvision model, or a ModelSpec that has preprocessing",
        )
    if recipe.fused is not None:
        raise UsageError(f"{name} takes uint8 already ({recipe.fused})", "leave out `fuse_preprocess`")
    spec = inputs[0]
    wanted = (
        len(inputs) == 1 and spec.dtype == "float32" and spec.batch_axis == 0 and spec.shape[1:] == (3, *recipe.crop)
    )
    if not wanted:
        raise UsageError(
            f"{name} takes {', '.join(map(str, inputs))}, not one float32 image (N, 3, H, W)",
            "fuse the float32 file, before `precision` changes its input",
        )


def fuse_graph(model: Any, spec: TensorSpec, recipe: Preprocessing) -> TensorSpec:
    """Put the prefix in front of a model's only input, in place; returns the new input's spec.

    Args:
        model: the model; it is changed in place.
        spec: the input as it is, ``(N, 3, H, W)`` float32.
        recipe: with ``fused`` set to the layout in which uint8 images come.
    """
    onnx = optional.require("onnx", "write ONNX files")
    graph = model.graph
    info = next(each for each in graph.input if each.name == spec.name)
    inner = f"{PREFIX}/output"
    _rename(graph, spec.name, inner)
    nodes, constants = _prefix(spec.name, inner, recipe, np.dtype(np.float32))
    for node in reversed(nodes):
        graph.node.insert(0, node)
    graph.initializer.extend(constants)
    dims = info.type.tensor_type.shape.dim
    info.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    if recipe.fused == "NHWC":
        kept = [onnx.TensorShapeProto.Dimension() for _ in dims]
        for new, old in zip(kept, (dims[0], dims[2], dims[3], dims[1])):
            new.CopyFrom(old)
        del dims[:]
        dims.extend(kept)
    del graph.value_info[:]
    return replace(spec, dtype="uint8", shape=_in_layout(spec.shape, recipe.fused), value_range=(0, 255))


def _rename(graph: Any, old: str, new: str) -> None:
    """Let whatever reads `old` read `new`, in the bodies of If and Loop too."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
                _rename(inner, old, new)
    for info in graph.output:
        if info.name == old:  # a body that gives the input back
            info.name = new


def _in_layout(shape: tuple[int | str, ...], layout: str | None) -> tuple[int | str, ...]:
    return (shape[0], *shape[2:], shape[1]) if layout == "NHWC" else shape


def _prefix(image: str, output: str, recipe: Preprocessing, dtype: np.dtype[Any]) -> tuple[list[Any], list[Any]]:
    """Return the nodes from the uint8 `image` to `output` (N, 3, H, W), and their constants."""
    onnx = optional.require("onnx", "write ONNX files")
    helper = onnx.helper
    mean, std = (np.asarray(values, np.float64) for values in (recipe.mean, recipe.std))
    given = {
        "table": np.arange(256),
        "scale": 1 / (255 * std),
        "shift": np.zeros(3),
        "mean": 255 * mean,
        "variance": np.ones(3),
    }
    constants = [onnx.numpy_helper.from_array(each.astype(dtype), f"{PREFIX}/{name}") for name, each in given.items()]
    table, *parameters = (each.name for each in constants)
    nodes: list[Any] = []

    def add(operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{PREFIX}/{operator}"
        nodes.append(helper.make_node(operator, inputs, [name.lower()], name, **attributes))
        return name.lower()

    value = add("Gather", table, add("Cast", image, to=onnx.TensorProto.INT32), axis=0)
    if recipe.fused == "NHWC":
        value = add("Transpose", value, perm=(0, 3, 1, 2))
    add("BatchNormalization", value, *parameters, epsilon=0.0)
    nodes[-1].output[0] = output
    return nodes, constants


def halve_prefix(model: Any, recipe: Preprocessing) -> bool:
    """Write the prefix again in half precision, in place, where all that reads it casts it to that; whether it was."""
    onnx = optional.require("onnx", "write ONNX files")
    graph = model.graph
    inner = f"{PREFIX}/output"
    readers = [node for node in graph.node if inner in node.input]
    casts = [node for node in readers if _casts_to(onnx, node, onnx.TensorProto.FLOAT16)]
    image = next((node.input[0] for node in graph.node if node.name == f"{PREFIX}/Cast"), None)
    if image is None or not casts or len(casts) != len(readers):
        return False
    halves = {node.output[0] for node in casts}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in halves:
                node.input[index] = inner
    old = [node for node in graph.node if node.name.startswith(f"{PREFIX}/") or node.output[0] in halves]
    for node in old:
        graph.node.remove(node)
    for tensor in [each for each in graph.initializer if each.name.startswith(f"{PREFIX}/")]:
        graph.initializer.remove(tensor)
    nodes, constants = _prefix(image, inner, recipe, np.dtype(np.float16))
    for node in reversed(nodes):
        graph.node.insert(0, node)
    graph.initializer.extend(constants)
    del graph.value_info[:]
    return True


def _casts_to(onnx: Any, node: Any, kind: int) -> bool:
    return node.op_type == "Cast" and any(each.name == "to" and each.i == kind for each in node.attribute)


def unfused_inputs(inputs: Mapping[str, Array], recipe: Preprocessing | None) -> dict[str, Array]:
    """Return the inputs that the model took before its preprocessing was fused: floats, from bytes."""
    if recipe is None or recipe.fused is None:
        return dict(inputs)
    return {name: recipe.normalise_batch(array) for name, array in inputs.items()}


def prove_fused(before: Path, after: Path, sidecar: Sidecar, new: TensorSpec) -> None:
    """Run both files on random bytes; every row of every output must agree.

    Args:
        before: the file without the prefix.
        after: the file with it.
        sidecar: of the file before, with the recipe that was fused.
        new: the input of the file after.

    Raises:
        ExportError: with the row and its error.
    """
    one, two = OnnxReference(before), OnnxReference(after)
    fixed = sidecar.inputs[0].fixed_batch
    for batch in _BATCHES if fixed is None else (fixed,):
        drawn = random_inputs([new], batch, seed=batch)
        wanted, found = one(unfused_inputs(drawn, sidecar.preprocessing)), two(drawn)
        for spec in sidecar.outputs:
            rows, reference = as_rows(found[spec.name], spec), as_rows(wanted[spec.name], spec)
            wrong, errors = wrong_rows(rows, reference, LIMIT) if rows.shape == reference.shape else ([0], [np.inf])
            if len(wrong):
                raise ExportError(
                    f"with its preprocessing fused, row {int(wrong[0])} of {spec.name} at batch {batch} is off by "
                    f"{float(max(errors)):.1e} (limit {LIMIT:g})",
                    "build without `fuse_preprocess`, or export without `input_dtype`",
                )
