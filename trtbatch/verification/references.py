"""Provide the references of a comparison: ONNX Runtime on the ONNX file, torch on the model, or saved outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends.base import conform
from trtbatch.core.hints import build_line, refuse_other_file
from trtbatch.core.sidecar import Artifact, FileRecord, SourceRecord
from trtbatch.core.store import ENGINES, record_file
from trtbatch.core.tensors import npz_keys
from trtbatch.errors import ArtifactError, InputError, UsageError, reading_fix, unreadable
from trtbatch.exporter.models import load_model
from trtbatch.onnx_graph.fusing import unfused_inputs
from trtbatch.onnx_graph.read import load_onnx, read_specs
from trtbatch.onnx_graph.run import OnnxReference
from trtbatch.util import optional
from trtbatch.util.log import warn
from trtbatch.util.text import shortened

__all__ = ["OnnxFileReference", "Reference", "SavedReference", "find_built", "find_onnx", "open_reference"]

Array = NDArray[Any]


class Reference(Protocol):
    """Source of trusted outputs. The inputs are the first rows of one pool of samples."""

    @property
    def label(self) -> str:
        """Return the description of the reference."""
        ...

    def __call__(self, inputs: Mapping[str, Array], batch: int) -> dict[str, Array]:
        """Return the outputs of a batch, by name."""
        ...


def open_reference(against: str, artifact: Artifact, trust_code: bool = False) -> Reference:
    """Open the reference that ``--against`` names.

    Args:
        against: ``onnxruntime``, ``torch``, an ``.onnx`` or an ``.npz`` file.
        artifact: the engine to compare.
        trust_code: whether a ``.pt2`` program may run the code that it holds.

    Raises:
        UsageError: the name is none of these.
        ArtifactError: the file is a sidecar or a preprocessor; or the engine's ONNX file is missing or has changed.
    """
    if against == "onnxruntime":
        return OnnxFileReference(find_onnx(artifact))
    if against == "torch":
        return _Torch(artifact, trust_code)
    path = Path(against)
    try:
        if path.suffix == ".npz":
            return SavedReference(path, artifact)
        refuse_other_file(path, "onnx")
        if path.suffix == ".onnx" and path.is_file():
            return OnnxFileReference(path)
    except PermissionError as error:
        raise unreadable(against) from error
    raise UsageError(f"`against={against!r}`: no such reference", "pass onnxruntime, torch, an .onnx or an .npz file")


def find_onnx(artifact: Artifact) -> Path:
    """Return the float32 ONNX file that an engine was built from, after checking its hash.

    Raises:
        ArtifactError: the file is missing or has changed.
    """
    source = artifact.sidecar.source
    if source is None:
        raise ArtifactError(f"{artifact.path} doesn't say what it was built from", "pass `against='FILE.onnx'`")
    return _find(artifact, source, source, ", or pass `against='FILE.onnx'`")


def find_built(artifact: Artifact) -> Path:
    """Return the ONNX file that the backend was given (a converted one, if any), after checking its hash.

    Raises:
        ArtifactError: the file is missing or has changed.
    """
    source = artifact.sidecar.source
    if source is None:
        raise ArtifactError(f"{artifact.path} doesn't say what it was built from", "build it again: `trtbatch.build()`")
    return _find(artifact, source, source.built, "")


def _find(artifact: Artifact, source: SourceRecord, record: FileRecord, otherwise: str) -> Path:
    """Return the file of a record in an engine's sidecar.

    Args:
        artifact: the engine.
        source: what its sidecar says of the files that it was made from.
        record: name, size and hash of the file.
        otherwise: another way out, as the end of the error's advice.

    Raises:
        ArtifactError: the file is missing or has changed.
    """
    folder, name = artifact.path.parent, record.file
    there = (folder / (source.path or name)).parent / name
    found = [place for place in dict.fromkeys((there, folder / name, ENGINES / name)) if place.is_file()]
    for place in found:
        if place.stat().st_size == record.bytes and record_file(place).sha256 == record.sha256:
            return place
    if found:
        problem = f"{found[0]} is not the file that {artifact.path.name} was built from (SHA-256 differs)"
        raise ArtifactError(problem, f"build the engine again: {build_line(artifact)}{otherwise}")
    raise ArtifactError(
        f"{name}, from which {artifact.path.name} was built, isn't in {folder}/",
        f"put it there, or make it anew and build again{otherwise}",
    )


class OnnxFileReference:
    """Reference by ONNX Runtime on the CPU, in the precision of the file."""

    def __init__(self, path: Path) -> None:
        self.label = f"ONNX Runtime {optional.version('onnxruntime') or ''} on {path}"
        self._inputs, _ = read_specs(load_onnx(path), path.name)
        self._run = OnnxReference(path)
        self._path = path

    @property
    def is_dynamic(self) -> bool:
        """Return whether the file takes any number of samples."""
        return all(spec.batch_axis is not None and spec.fixed_batch is None for spec in self._inputs)

    def __call__(self, inputs: Mapping[str, Array], batch: int) -> dict[str, Array]:
        """Return the outputs of a batch; see :class:`Reference`."""
        fixed = next((spec.fixed_batch for spec in self._inputs if spec.fixed_batch not in (None, batch)), None)
        if fixed is not None:
            raise UsageError(
                f"the reference {self._path} has a fixed batch of {fixed}, and can't be given {batch}",
                f"pass `batches=[{fixed}]`, or a reference with an open batch",
            )
        missing = [spec.name for spec in self._inputs if spec.name not in inputs]
        if missing:
            raise InputError(f"the reference has an input {missing[0]!r}, the engine hasn't", "pass its own ONNX file")
        for spec in self._inputs:
            shape = inputs[spec.name].shape
            if not spec.fits(shape):
                raise InputError(
                    f"the reference takes {spec}, the engine's samples are {shape}", "pass the engine's own ONNX file"
                )
        return self._run({spec.name: conform(inputs[spec.name], spec) for spec in self._inputs})


class _Torch:
    """Reference by the exported torch model, which is loaded again."""

    def __init__(self, artifact: Artifact, trust_code: bool) -> None:
        record = artifact.sidecar.model
        if record.origin is None:
            raise ArtifactError(
                f"{artifact.path} doesn't say which torch model it is", "pass `against='onnxruntime'`, or a file"
            )
        weights, seed = record.weights_option or "auto", record.seed or 0
        self._model = load_model(record.origin, weights, seed, record.input_shape, trust_code)
        if self._model.weights != record.weights:
            problem = f"the weights now are {self._model.weights!r}, those exported were {record.weights!r}"
            raise ArtifactError(problem, "put the weights back, or export again")
        self._outputs = [spec.name for spec in artifact.sidecar.outputs]
        self._inputs = artifact.sidecar.inputs
        self._preprocessing = artifact.sidecar.preprocessing
        self.label = f"torch {optional.version('torch')} on {record.origin} ({record.weights})"

    def __call__(self, inputs: Mapping[str, Array], batch: int) -> dict[str, Array]:
        """Return the outputs of a batch; see :class:`Reference`."""
        torch = optional.require("torch", "run the model")
        examples = self._model.example(2)
        inputs = unfused_inputs(inputs, self._preprocessing)
        tensors = {
            name: torch.from_numpy(np.array(inputs[spec.name])).to(example.dtype)
            for (name, example), spec in zip(examples.items(), self._inputs)
        }
        found = self._model.call(tensors, f"batch {batch}")
        return dict(zip(self._outputs, found.values()))


class SavedReference:
    """Reference by outputs that ``infer --output FILE.npz`` saved: row i belongs to sample i."""

    def __init__(self, path: Path, artifact: Artifact) -> None:
        sidecar = artifact.sidecar
        arrays = _arrays(path)
        keys = npz_keys([spec.name for spec in sidecar.inputs]) | npz_keys(
            [spec.name for spec in sidecar.outputs if spec.batch_axis is not None]
        )
        self._rows = {spec.name: arrays[keys[spec.name]] for spec in sidecar.outputs if keys.get(spec.name) in arrays}
        if not self._rows:
            names = ", ".join(spec.name for spec in sidecar.outputs)
            raise InputError(f"{path} holds none of the outputs {names}; it has {', '.join(arrays)}", "name them so")
        self._specs = {spec.name: spec for spec in sidecar.outputs}
        self.inputs = {spec.name: arrays[keys[spec.name]] for spec in sidecar.inputs if keys[spec.name] in arrays}
        missing = [spec.name for spec in sidecar.inputs if self.inputs and spec.name not in self.inputs]
        if missing:
            raise InputError(f"{path} holds some inputs and not {missing[0]!r}", "save every input, or none")
        lengths = {name: _length(name, rows, 0, path) for name, rows in self._rows.items()}
        for spec in sidecar.inputs:
            if spec.name in self.inputs and spec.batch_axis is not None:
                lengths[spec.name] = _length(spec.name, self.inputs[spec.name], spec.batch_axis, path)
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise InputError(f"{path}: the numbers of samples differ: {counts}", "save as many rows of each")
        self.count = next(iter(lengths.values()))
        self._names = [str(name) for name in arrays["file"]] if "file" in arrays else []
        self.label = f"saved outputs {path} ({self.count} samples)"
        for spec in sidecar.outputs:
            if spec.name not in self._rows:
                warn(f"{path} holds no {spec.name!r}: that output is not compared")

    def require_rows(self, batch: int) -> None:
        """Raise if a batch needs more rows than there are.

        Raises:
            UsageError: names both numbers.
        """
        if batch > self.count:
            raise UsageError(f"{self.label} are fewer than batch {batch}", f"pass `batches` up to {self.count}")

    def require_samples(self, names: Sequence[str], batch: int) -> None:
        """Raise if the samples of a batch aren't those of the saved rows, by name.

        Raises:
            InputError: names the first sample that differs, or the number of samples.
        """
        for index, (own, other) in enumerate(zip(self._names, names)):
            if own != other:
                raise InputError(
                    f"row {index} of the {self.label} is of {own}, sample {index} is {other}",
                    "pass the `input` (and `seed`) that they were made from",
                )
        if len(names) < batch:
            raise InputError(f"{self.label}, and {len(names)} samples in `input`", "pass the `input` of all of them")

    def __call__(self, inputs: Mapping[str, Array], batch: int) -> dict[str, Array]:
        """Return the outputs of a batch; see :class:`Reference`."""
        self.require_rows(batch)
        return {
            name: np.moveaxis(rows[:batch], 0, self._specs[name].batch_axis or 0) for name, rows in self._rows.items()
        }


def _length(name: str, array: Array, axis: int, path: Path) -> int:
    if array.ndim <= axis or not array.shape[axis]:
        raise InputError(f"{path}: {name} has shape {array.shape}, and no rows", "save at least one row of each")
    return int(array.shape[axis])


def _arrays(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise UsageError(
            f"`against={str(path)!r}`: no such file", "pass a file that infer wrote to `output='FILE.npz'`"
        )
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive}
    except Exception as error:  # numpy and zipfile raise many kinds for damaged files
        reason = shortened(str(getattr(error, "strerror", None) or error)) or type(error).__name__
        fix = reading_fix(error, "save it with infer, or numpy.savez")
        raise InputError(f"{path} can't be read: {reason}", fix) from error
