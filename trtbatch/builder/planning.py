"""Plan a build: the axes of the model, the profiles, and the ONNX file with these axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from trtbatch.core.batches import Profile
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import ProfileError, UsageError
from trtbatch.onnx_graph.read import load_onnx
from trtbatch.util import optional

__all__ = ["plan_axes", "prepared"]

Specs = tuple[TensorSpec, ...]


def plan_axes(
    name: str,
    inputs: Specs,
    outputs: Specs,
    profiles: tuple[Profile, ...],
    static: int | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[Specs, Specs, tuple[Profile, ...]]:
    """Return the specs and profiles to build, with shapes filled in and the batch fixed if requested.

    Args:
        name: name of the ONNX file, for errors.
        inputs: specs of the inputs, as the file has them.
        outputs: specs of the outputs, as the file has them.
        profiles: requested profiles; empty is 1:16:32 for an open batch axis.
        static: the one requested batch size, if any.
        shapes: sizes of open axes other than the batch, by input.

    Raises:
        UsageError, ProfileError: the model and the request don't fit.
    """
    inputs = tuple(_filled(spec, shapes, name) for spec in inputs)
    unknown = set(shapes) - {spec.name for spec in inputs}
    if unknown:
        names = ", ".join(spec.name for spec in inputs)
        raise UsageError(f"`shapes` names {sorted(unknown)[0]!r}; the inputs are {names}", "name one of the inputs")
    fixed = {spec.name: spec.fixed_batch for spec in inputs if spec.fixed_batch is not None}
    is_open = any(spec.batch_axis is not None and spec.fixed_batch is None for spec in inputs)
    if is_open and fixed:
        closed, size = next(iter(fixed.items()))
        other = next(spec.name for spec in inputs if spec.batch_axis is not None and spec.fixed_batch is None)
        raise ProfileError(
            f"{name}: input {closed!r} has a fixed batch of {size}, input {other!r} an open one",
            "export both with the same batch axis",
        )
    if is_open and static is None:
        return inputs, outputs, profiles or (Profile.complete(None, None, None),)
    if is_open and static is not None:
        size = static
        inputs = tuple(replace(spec, shape=spec.at(size)) for spec in inputs)
        outputs = tuple(replace(spec, shape=spec.at(size)) for spec in outputs)
        return inputs, outputs, (Profile(size, size, size),)
    return inputs, outputs, (_fixed_profile(name, fixed, profiles, static),)


def _fixed_profile(
    name: str, fixed: Mapping[str, int | None], profiles: tuple[Profile, ...], static: int | None
) -> Profile:
    """Return the profile of a model whose file has a fixed batch."""
    if len(set(fixed.values())) > 1:
        (first, a), (second, b) = list(fixed.items())[:2]
        raise ProfileError(f"{name}: inputs {first!r} and {second!r} have batches {a} and {b}", "export with one batch")
    size = next(iter(fixed.values()), None)
    if size is None:
        raise UsageError(f"{name}: no input has a batch axis", "export a model whose inputs have one")
    if profiles:
        raise ProfileError(
            f"{name} has a fixed batch of {size}; profile {profiles[0]} needs an open one",
            "export it with `dynamic`, or leave out `min`, `opt`, `max` and `profiles`",
        )
    if static not in (None, size):
        raise ProfileError(
            f"{name} has a fixed batch of {size}, not {static}", f"pass `static={size}`, or export with `dynamic`"
        )
    return Profile(size, size, size)


def _filled(spec: TensorSpec, shapes: Mapping[str, tuple[int, ...]], where: str) -> TensorSpec:
    """Return the spec with its open axes, except the batch, set from ``--shape``."""
    given = shapes.get(spec.name)
    others = [axis for axis in range(len(spec.shape)) if axis != spec.batch_axis]
    if given is not None:
        wanted = tuple(spec.shape[axis] for axis in others)
        clash = len(given) != len(others) or any(
            isinstance(own, int) and own != size for own, size in zip(wanted, given)
        )
        if clash:
            raise UsageError(
                f"`shapes={ {spec.name: tuple(given)} }` doesn't fit {spec}",
                "give every axis but the batch, and the fixed ones as they are",
            )
        sizes = dict(zip(others, given))
        spec = replace(spec, shape=tuple(sizes.get(axis, size) for axis, size in enumerate(spec.shape)))
    unset = [str(spec.shape[axis]) for axis in others if not isinstance(spec.shape[axis], int)]
    if unset:
        example = tuple(size if isinstance(size := spec.shape[axis], int) else 224 for axis in others)
        raise UsageError(
            f"{where}: axes {', '.join(unset)} of input {spec.name!r} are open",
            f"pass `shapes={ {spec.name: example} }`",
        )
    return spec


def prepared(path: Path, inputs: Specs, outputs: Specs, folder: Path) -> tuple[Path, bool]:
    """Write the ONNX file with its planned axes; return its path and whether it has external weights.

    If the file has these axes already, its own path is returned.
    """
    onnx = optional.require("onnx", "prepare the ONNX file")
    model = load_onnx(path)
    external = any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
    planned = {spec.name: spec for spec in inputs}
    infos = [(info, planned[info.name]) for info in model.graph.input if info.name in planned]
    changes = [
        (dim, size)
        for info, spec in infos
        for dim, size in zip(info.type.tensor_type.shape.dim, spec.shape)
        if isinstance(size, int) and dim.dim_value != size
    ]
    if not changes:
        return path, external
    for dim, size in changes:
        dim.dim_value = size
    by_name = {spec.name: spec for spec in outputs}
    for info in model.graph.output:
        spec = by_name[info.name]
        for dim, length in zip(info.type.tensor_type.shape.dim, spec.shape):
            if isinstance(length, int):
                dim.dim_value = length
    del model.graph.value_info[:]  # these shapes were inferred with open axes
    file = folder / "prepared.onnx"
    if external:
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.save(model, str(file), save_as_external_data=True, location="prepared.onnx.data")
    else:
        onnx.save(model, str(file))
    return file, external
