"""Write an engine as a model folder of NVIDIA Triton, with a ``config.pbtxt`` derived from the sidecar.

::

    DIR/NAME/config.pbtxt     what is served, and how it is batched
             labels.txt       where the classes are known
             VERSION/model.plan (TensorRT) or model.onnx (ONNX Runtime)

Field names and their meanings are those of Triton's ``model_config.proto``. Triton batches along the first axis, from
batch 1 on, so the engine must hold these batches. An engine that was built for a single batch size is served at exactly
that size, with ``max_batch_size: 0`` and shapes that include the batch.

For an ONNX Runtime engine, Triton serves the ONNX file that the engine was built from. The engine is the graph as this
machine's release optimised it; it may hold internal operators that the releases in Triton's images refuse. Triton's
release optimises the ONNX file again.

With `from_images`, two more models are written, which take encoded images (:mod:`trtbatch.deployment.tritonimages`).
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtbatch.backends import resolve_engine
from trtbatch.builder.planning import prepared
from trtbatch.core import store
from trtbatch.core.profiles import gaps
from trtbatch.core.sidecar import Artifact, Sidecar
from trtbatch.core.store import check_file
from trtbatch.core.tensors import TensorSpec
from trtbatch.deployment.tritonbatching import Batching, batching, one_size
from trtbatch.deployment.tritonimages import PIPELINE, image_models, image_names, refuse_unprepared
from trtbatch.errors import ArtifactError, UsageError, from_os_error
from trtbatch.onnx_graph.read import external_files, load_onnx
from trtbatch.util import optional
from trtbatch.util.files import ASIDE, name_written, scratch, sidecar_path
from trtbatch.util.log import note, warn
from trtbatch.verification.references import find_built

__all__ = ["Deployed", "TritonRequest", "deploy", "model_config"]

LABELS = "labels.txt"

_TYPES = {
    "bool": "TYPE_BOOL",
    "float64": "TYPE_FP64",
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    **{f"{sign}int{bits}": f"TYPE_{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}

_FILES = {"tensorrt": "model.plan", "onnxruntime": "model.onnx"}
"""File names under which Triton's backends look for their models."""


@dataclass(frozen=True)
class TritonRequest:
    """Request to deploy an engine to Triton.

    Args:
        engine: engine file; None takes the newest in ``engines/`` that runs here.
        repository: folder that Triton serves (its ``--model-repository``).
        name: name of the model; None takes the sidecar's.
        instances: copies that run at the same time, on each GPU (TensorRT) or on the CPU; None takes the tuned number
            of streams, else 1.
        max_queue_delay: microseconds that a request may wait for others to share a batch with; None derives it from
            the tuned latency budget, else takes :data:`trtbatch.deployment.tritonbatching.DELAY`.
        version: number of the model's version, the only one that is served from now on.
        force: whether to replace an existing version, even with other inputs, outputs or batch sizes.
        from_images: whether to write an ensemble that takes encoded images too.
    """

    engine: Path | None
    repository: Path
    name: str | None = None
    instances: int | None = None
    max_queue_delay: int | None = None
    version: int = 1
    force: bool = False
    from_images: bool = False


@dataclass(frozen=True)
class Deployed:
    """Written model: its folder and name, the text of its configuration, and its batching.

    Args:
        preprocessing: folder of DALI's model, where there is one.
        ensemble: folder of the model that takes encoded images, where there is one.
    """

    folder: Path
    name: str
    version: int
    config: str
    batching: Batching
    preprocessing: Path | None = None
    ensemble: Path | None = None

    def __repr__(self) -> str:
        more = "" if self.ensemble is None else f", from images: {str(self.ensemble)!r}"
        return f"Deployed({str(self.folder)!r}, version {self.version}{more})"


@dataclass(frozen=True)
class _Model:
    """Model to write.

    Args:
        target: folder of the model.
        config: Triton's ``ModelConfig``.
        fill: writes the files of a version into the version's folder; temporary files go two folders above it.
    """

    target: Path
    config: Any
    fill: Callable[[Path], object]


def deploy(request: TritonRequest) -> Deployed:
    """Write a model folder, or the three of an ensemble, complete or not at all.

    Raises:
        UsageError: the name isn't a folder name, the version exists already, or the folder is of another model.
        ArtifactError: Triton can't serve the engine, a file is damaged, or the ONNX file that an ONNX Runtime engine
            was built from is missing or changed.
        MissingPackageError: Triton's protobuf definitions or DALI aren't installed, or DALI finds no GPU.
        TrtbatchError: the repository can't be written.
    """
    artifact = resolve_engine(request.engine)
    sidecar = artifact.sidecar
    name = _name(request, sidecar)
    refuse_unservable(artifact)
    if request.from_images:
        refuse_unprepared(artifact)
    for each in (name, *image_names(name)) if request.from_images else (name,):
        _refuse_existing(request.repository / each, request)
    config = model_config(sidecar, name, request)
    check_file(artifact)
    models = _models(artifact, config, request)
    for model in models:
        _refuse_other_model(model.target, model.config, artifact, request)
    _tell_needs(sidecar)
    unserved = [(model.target, _others(model.target, request.version)) for model in models]
    try:
        _write(models, sidecar.classes or (), request.version)
    except OSError as error:
        raise from_os_error(error, "`repository`") from error
    for target, versions in unserved:
        _tell_unserved(target, versions)
    if not request.from_images:
        _tell_left_behind(request.repository, config)
    plan = batching(sidecar, request.instances, request.max_queue_delay)
    target, *others = (model.target for model in models)
    return Deployed(target, name, request.version, _text(config), plan, *others)


def _models(artifact: Artifact, config: Any, request: TritonRequest) -> list[_Model]:
    """Return the engine's model with its `config`, and the models in front of it with `from_images`."""
    models = [_Model(request.repository / config.name, config, _engine_writer(artifact))]
    if request.from_images:
        images = image_models(artifact, config, request.version)
        before, ensemble = (request.repository / each.name for each in (images.preprocessing, images.ensemble))
        models += [
            _Model(before, images.preprocessing, lambda inner: (inner / PIPELINE).write_bytes(images.pipeline)),
            _Model(ensemble, images.ensemble, lambda inner: None),  # Triton needs the version's folder, even empty
        ]
        note(images.release)
    return models


def _engine_writer(artifact: Artifact) -> Callable[[Path], object]:
    """Return a function that writes the served file of an engine into the folder of a version.

    Raises:
        ArtifactError: the ONNX file that an ONNX Runtime engine was built from is missing or changed.
    """
    sidecar = artifact.sidecar
    file = _FILES[sidecar.engine.backend or ""]
    if sidecar.engine.backend == "tensorrt":
        return lambda inner: shutil.copyfile(artifact.path, inner / file)
    onnx = _onnx_of(artifact)
    return lambda inner: _fill_onnx(onnx, sidecar, inner / file, inner.parents[1])


def _onnx_of(artifact: Artifact) -> Path:
    """Return the ONNX file that an engine was built from, after a check of the file and its external weights.

    Raises:
        ArtifactError: a file is missing or changed.
    """
    path = find_built(artifact)
    if sidecar_path(path).is_file():
        check_file(store.load(path, "onnx"))
    for name in external_files(load_onnx(path)):
        if not (path.parent / name).is_file():
            raise ArtifactError(f"{path.parent / name} is missing; {path.name} needs it", "put it back")
    return path


def _name(request: TritonRequest, sidecar: Sidecar) -> str:
    name = request.name
    if name is None:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", sidecar.model.name).strip("._-") or "model"
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
        raise UsageError(f"`name={name!r}` is no name of a model", "use letters, digits, '_', '-' and '.'")
    return name


def _refuse_existing(target: Path, request: TritonRequest) -> None:
    version = target / str(request.version)
    if not target.exists():
        return
    if not (target / "config.pbtxt").is_file():
        raise UsageError(f"{target} is there, and isn't a model of Triton's", "name another: `name=NAME`")
    if version.exists() and not request.force:
        raise UsageError(f"{version} is there already", "pass `force` to replace it, or another `version`")


def _refuse_other_model(target: Path, config: Any, artifact: Artifact, request: TritonRequest) -> None:
    """Refuse a model that the clients of the existing model couldn't use.

    Raises:
        UsageError: the existing configuration has other inputs, outputs or batch sizes, or can't be read.
    """
    file = target / "config.pbtxt"
    if request.force or not file.is_file():
        return
    fix = "pass `name` for a model next to it, or `force` to replace its configuration"
    there = _read(file, type(config))
    if there is None:
        raise UsageError(f"{file} isn't a configuration that Triton reads", fix)
    what = _differing(there, config)
    if what:
        raise UsageError(f"{target} has {what} than {artifact.path.name}, and clients of its own", fix)


def _others(target: Path, version: int) -> list[str]:
    """Return the existing versions of a model other than `version`, ascending."""
    there = target.iterdir() if target.is_dir() else ()
    numbers = sorted(int(each.name) for each in there if each.name.isdigit() and each.is_dir())
    return [str(number) for number in numbers if number != version]


def _tell_unserved(target: Path, versions: Sequence[str]) -> None:
    if versions:
        several = len(versions) > 1
        stay = "stay where they are, and are" if several else "stays where it is, and is"
        note(f"version{'s' if several else ''} {', '.join(versions)} of {target} {stay} served no longer")


def _tell_left_behind(repository: Path, config: Any) -> None:
    """Warn of an ensemble in the repository that was written for an earlier engine of this name."""
    _, name = image_names(config.name)
    file = repository / name / "config.pbtxt"
    there = _read(file, type(config)) if file.is_file() else None
    for step in () if there is None else there.ensemble_scheduling.step:
        if step.model_name == config.name:
            written = f"was written for version {step.model_version} of {config.name}, and stays as it is"
            warn(f"{file.parent} {written}: pass `from_images` to write it again")


def _read(file: Path, kind: type[Any]) -> Any | None:
    """Return the configuration in a file; None where the file isn't one."""
    text_format: Any = importlib.import_module("google.protobuf.text_format")
    try:
        return text_format.Parse(file.read_text(encoding="utf-8"), kind())
    except (text_format.ParseError, UnicodeDecodeError):
        return None


def _differing(there: Any, config: Any) -> str:
    """Return in words what differs for clients between two configurations; empty where nothing does."""
    for name, words in (("input", "other inputs"), ("output", "other outputs")):
        one, two = (
            [(each.name, each.data_type, list(each.dims)) for each in getattr(each_config, name)]
            for each_config in (there, config)
        )
        if one != two:
            return words
    if (there.max_batch_size == 0) != (config.max_batch_size == 0):
        return "another way to batch"
    return f"a larger batch ({there.max_batch_size})" if there.max_batch_size > config.max_batch_size else ""


def _write(models: Sequence[_Model], classes: Sequence[str], version: int) -> None:
    """Write the folders of all models, then move them into place; a failure undoes all moves."""
    with ExitStack() as scratches, ExitStack() as undo:
        made = [scratches.enter_context(_made(model, classes, version)) for model in models]
        for folder, model in zip(made, models):
            _place_model(folder, model.target, version, undo)
        undo.pop_all()


@contextmanager
def _made(model: _Model, classes: Sequence[str], version: int) -> Iterator[Path]:
    """Yield the complete folder of a model, made in a private folder."""
    target = model.target
    with scratch(target / "config.pbtxt" if target.is_dir() else target) as folder:
        try:
            _fill(folder / target.name, model, classes, version)
            yield folder / target.name
        except OSError as error:
            name_written(error, folder, target)
            raise


def _fill(made: Path, model: _Model, classes: Sequence[str], version: int) -> None:
    inner = made / str(version)
    inner.mkdir(parents=True)
    model.fill(inner)
    (made / "config.pbtxt").write_text(_text(model.config), encoding="utf-8")
    if any(output.label_filename for output in model.config.output):
        lines = [" ".join(name.split()) for name in classes]
        (made / LABELS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    mask = os.umask(0)
    os.umask(mask)
    for path in (made, inner):  # a private folder is for its owner only, and Triton may run as another user
        path.chmod(0o777 & ~mask)


def _fill_onnx(path: Path, sidecar: Sidecar, target: Path, scratch_folder: Path) -> None:
    """Copy an ONNX file with the engine's axes, and its external weights."""
    path, _ = prepared(path, sidecar.inputs, sidecar.outputs, scratch_folder)
    shutil.copyfile(path, target)
    for name in external_files(load_onnx(path)):  # the file refers to them by these names
        (target.parent / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / name, target.parent / name)


def _place_model(made: Path, target: Path, version: int, undo: ExitStack) -> None:
    """Move a complete folder into place, and register on `undo` how to move it back."""
    if target.is_dir():
        _replace(made, target, version, undo)
    else:
        made.rename(target)
        undo.callback(target.rename, made)


def _replace(made: Path, target: Path, version: int, undo: ExitStack) -> None:
    """Add a version to an existing model; the configuration that names it comes last."""
    place, aside, before = target / str(version), made.parent / ASIDE, made.parent / ".before"
    if place.exists():
        place.rename(aside)  # deleted with the private folder
        undo.callback(aside.rename, place)
    (made / str(version)).rename(place)
    undo.callback(place.rename, made / str(version))
    before.mkdir()
    for name in (LABELS, "config.pbtxt"):
        if not (made / name).is_file():
            continue
        if (target / name).is_file():
            shutil.copy2(target / name, before / name)
            undo.callback(os.replace, before / name, target / name)
        else:
            undo.callback((target / name).unlink, missing_ok=True)
        os.replace(made / name, target / name)


def _tell_needs(sidecar: Sidecar) -> None:
    tool = sidecar.build.tools.get(sidecar.engine.backend or "")
    if sidecar.engine.backend == "tensorrt":
        if sidecar.build.options.get("version_compatible"):
            note("start Triton with --backend-config=tensorrt,version-compatible=true")
        else:
            note(f"Triton must come with TensorRT {tool or 'of the same version'}: an engine runs on no other")
    if one_size(sidecar) is not None:
        note(f"the engine holds batch {one_size(sidecar)} alone: Triton serves whole batches of it, and makes none")


# What Triton can't serve.


def refuse_unservable(artifact: Artifact) -> None:
    """Refuse an engine that Triton can't serve as it is.

    Raises:
        ArtifactError: the message gives the reason.
    """
    name, sidecar = artifact.path.name, artifact.sidecar

    def refuse(reason: str, fix: str) -> None:
        raise ArtifactError(f"Triton can't serve {name}: {reason}", fix)

    if sidecar.build.options.get("strip_weights"):
        refuse("it holds no weights", "build it without `strip_weights`")
    for side, specs in (("input", sidecar.inputs), ("output", sidecar.outputs)):
        for spec in specs:
            if any(isinstance(size, str) for axis, size in enumerate(spec.shape) if axis != spec.batch_axis):
                refuse(f"the shape of {side} {spec.name!r} depends on the data", "leave that output out of the model")
            if spec.batch_axis is None:
                refuse(f"{side} {spec.name!r} has no batch axis", f"make {spec.name!r} one row per sample")
            if spec.batch_axis != 0:
                refuse(f"the batch is axis {spec.batch_axis} of {side} {spec.name!r}, not 0", "export it batch first")
    if one_size(sidecar) is not None:
        return
    fixed = [spec.name for spec in (*sidecar.inputs, *sidecar.outputs) if spec.fixed_batch is not None]
    if fixed:
        refuse(f"the batch of {fixed[0]!r} is fixed, and that of others is open", "export it with `dynamic`")
    least = min(profile.min for profile in sidecar.engine.profiles)
    missing = [(1, least - 1), *gaps(sidecar.engine.profiles)] if least > 1 else gaps(sidecar.engine.profiles)
    if missing:
        ranges = ", ".join(f"{low}" if low == high else f"{low}–{high}" for low, high in missing)
        refuse(f"no profile holds batch {ranges}, which it may send", "build it with `min=1`, and without gaps")


# The configuration.


def model_config(sidecar: Sidecar, name: str, request: TritonRequest) -> Any:
    """Return Triton's ``ModelConfig`` for an engine, a protobuf message.

    Raises:
        MissingPackageError: Triton's protobuf definitions aren't installed.
    """
    messages = optional.require("tritonclient.grpc.model_config_pb2", "write Triton's configuration")
    config = messages.ModelConfig(name=name, backend=sidecar.engine.backend)
    plan = batching(sidecar, request.instances, request.max_queue_delay)
    config.max_batch_size = max(profile.max for profile in sidecar.engine.profiles) if one_size(sidecar) is None else 0
    config.version_policy.specific.versions.append(request.version)
    for spec in sidecar.inputs:
        _describe(config.input.add(), spec, sidecar)
    for spec in sidecar.outputs:
        described = config.output.add()
        _describe(described, spec, sidecar)
        if spec is _labelled(sidecar):
            described.label_filename = LABELS
    if config.max_batch_size:
        config.dynamic_batching.preferred_batch_size.extend(plan.sizes)
        config.dynamic_batching.max_queue_delay_microseconds = plan.delay
    _place(config.instance_group.add(), sidecar, plan.instances, messages)
    if sidecar.engine.backend == "tensorrt":
        _capture(config.optimization.cuda, sidecar, plan.sizes)
    for size in plan.sizes or [1]:
        _warm_up(config.model_warmup.add(), sidecar, size)
    return config


def _dims(spec: TensorSpec, sidecar: Sidecar) -> list[int]:
    """Return a tensor's shape as Triton takes it: without the batch axis where Triton makes the batches."""
    return [int(size) for size in (spec.shape if one_size(sidecar) is not None else spec.shape[1:])]


def _describe(message: Any, spec: TensorSpec, sidecar: Sidecar) -> None:
    message.name = spec.name
    message.data_type = _type(message, spec)
    dims = _dims(spec, sidecar)
    message.dims.extend(dims or [1])
    if not dims:  # Triton has no shape without axes: give it one of size 1, which the empty reshape removes
        message.reshape.SetInParent()


def _type(message: Any, spec: TensorSpec) -> int:
    return int(message.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name[_TYPES[spec.dtype]].number)


def _labelled(sidecar: Sidecar) -> TensorSpec | None:
    """Return the output that holds the scores of the known classes; None where there is none."""
    scores = (spec for spec in sidecar.outputs if len(spec.shape) == 2 and spec.dtype.startswith(("float", "bfloat")))
    return next((spec for spec in scores if sidecar.classes and spec.shape[1] == len(sidecar.classes)), None)


def _place(group: Any, sidecar: Sidecar, instances: int, messages: Any) -> None:
    on_gpu = sidecar.engine.backend == "tensorrt"
    group.count = instances
    group.kind = messages.ModelInstanceGroup.KIND_GPU if on_gpu else messages.ModelInstanceGroup.KIND_CPU
    if on_gpu:
        group.profile.extend(str(index) for index in range(len(sidecar.engine.profiles)))


def _capture(cuda: Any, sidecar: Sidecar, preferred: Sequence[int]) -> None:
    """Request CUDA graphs at batch 1, at the measured batch sizes and at the preferred ones."""
    cuda.graphs = True
    fixed = one_size(sidecar)
    sizes = sorted({1, *sidecar.engine.times, *preferred}) if fixed is None else [0]
    for size in sizes:
        spec = cuda.graph_spec.add(batch_size=size)
        for each in sidecar.inputs:
            spec.input[each.name].dim.extend(_dims(each, sidecar))


def _warm_up(message: Any, sidecar: Sidecar, size: int) -> None:
    """Fill in a warm-up request of batch `size`: random floats, and zeros for integers, which may be indices."""
    message.name = f"batch {size}"
    message.batch_size = size
    for spec in sidecar.inputs:
        data = message.inputs[spec.name]
        data.data_type = _type(data, spec)
        data.dims.extend(_dims(spec, sidecar) or [1])
        if spec.dtype.startswith("float"):
            data.random_data = True
        else:
            data.zero_data = True


def _text(config: Any) -> str:
    """Return the message in protobuf's text format, which Triton reads."""
    text_format = importlib.import_module("google.protobuf.text_format")  # installed, because the messages need it
    return str(text_format.MessageToString(config, as_utf8=True))
