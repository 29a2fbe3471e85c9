"""``engines/``: artifacts, the JSON sidecar beside each, names, hashes, the newest that fits, atomic writes.

An artifact ``x.onnx`` or ``x.engine`` has the sidecar ``x.onnx.json`` or ``x.engine.json``. Stages meet
only through the two: a later stage reads the sidecar before it opens the artifact.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from trtbatch.core.batches import Profile, pick_profile
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.profiles import Measured, look_up
from trtbatch.errors import ArtifactError, TrtbatchError, UsageError
from trtbatch.util.files import atomic_file, sidecar_path
from trtbatch.util.log import warn
from trtbatch.util.serialization import RecordError, decode, encode

__all__ = [
    "BATCH_AXIS",
    "ENGINES",
    "Accuracy",
    "Artifact",
    "Conversion",
    "FileRecord",
    "Interval",
    "ModelRecord",
    "Planned",
    "Sidecar",
    "TensorSpec",
    "Tuned",
    "build_line",
    "built_from",
    "check_file",
    "listed",
    "load",
    "newest",
    "now",
    "occupant",
    "precision_words",
    "publish",
    "record_file",
    "refuse_other_file",
    "rewrite",
    "still_made_from",
]

ENGINES = Path("engines")
"""Where artifacts go and are looked for, relative to the working directory."""

BATCH_AXIS = "batch_size"
"""Name of the dynamic batch axis in ONNX files and sidecars."""

FORMAT_VERSION = 1

Kind = Literal["onnx", "engine", "preprocessor"]

_NAMES: dict[Kind, str] = {"onnx": "ONNX file", "engine": "engine", "preprocessor": "preprocessor's engine"}
_ARTICLES: dict[Kind, str] = {"onnx": "an ONNX file", "engine": "an engine", "preprocessor": "a preprocessor"}


_FLOATS = ("float64", "float32", "float16", "bfloat16")
_INTEGERS = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")
_DTYPES = frozenset({*_FLOATS, *_INTEGERS, "bool"})


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Args:
        name: of the binding.
        dtype: numpy's name for it, ``float32``.
        shape: ``("batch_size", 3, 224, 224)``; an axis is a name while its size is open.
        batch_axis: which axis is the batch; None where none is.
        value_range: smallest and largest value that made sense for an integer input when it was exported.
        counted_by: the output that says how many entries of this one, along its second axis, are valid.
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
    def fixed_batch(self) -> int | None:
        """The batch size where it is fixed; None where it is open or there is no batch axis."""
        size = None if self.batch_axis is None else self.shape[self.batch_axis]
        return size if isinstance(size, int) else None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape is one of these tensors, at any batch size; open axes take any size."""
        return len(shape) == len(self.shape) and all(
            axis == self.batch_axis or not isinstance(wanted, int) or size == wanted
            for axis, (size, wanted) in enumerate(zip(shape, self.shape))
        )

    def at(self, batch: int) -> tuple[int | str, ...]:
        """The shape with the batch axis set to `batch`; other open axes keep their names."""
        return self._with_batch(batch)

    def at_name(self, name: str) -> tuple[int | str, ...]:
        """The shape with the batch axis open, under this name."""
        return self._with_batch(name)

    def _with_batch(self, size: int | str) -> tuple[int | str, ...]:
        return tuple(size if axis == self.batch_axis else length for axis, length in enumerate(self.shape))

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.shape))}) {self.dtype}"


@dataclass(frozen=True)
class FileRecord:
    """A file as it was when something was made from it: name, SHA-256 and size in bytes."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class ModelRecord:
    """Where the numbers of the model come from.

    Args:
        origin: the MODEL that was exported: a torchvision name, ``package.module:factory`` or a ``.pt2`` file.
        weights_option: the ``--weights`` that makes the same numbers again.
        input_shape: the ``--input-shape`` that was given.
    """

    name: str
    weights: str
    exporter: str | None = None
    opset: int | None = None
    seed: int | None = None
    origin: str | None = None
    weights_option: str | None = None
    input_shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Conversion:
    """How an ONNX file was made to compute in another precision.

    Args:
        precision: of its matrix products.
        rest: what the other nodes compute in, where the products are quantized.
        io: of its inputs and outputs; None where they kept their types.
        keep_fp32: names of nodes and operators that were to stay float32.
        calibration: the samples that ranges were taken from, in words, and the SHA-256 of their values.
        random: whether those were random.
        method: by which the ranges were chosen; None where nothing was quantized.
        kept: the nodes that `keep_fp32` names.
        stayed: matrix products that compute in something else all the same.
        tools: what converted it.
    """

    precision: str
    rest: str
    io: str | None
    keep_fp32: tuple[str, ...]
    calibration: str
    calibration_sha256: str
    method: str | None
    random: bool = False
    kept: tuple[str, ...] = ()
    stayed: tuple[str, ...] = ()
    tools: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> tuple[Any, ...]:
        """What decides the result."""
        samples = (self.calibration, self.calibration_sha256, self.random)
        return (self.precision, self.rest, self.io, self.keep_fp32, samples, self.method)


@dataclass(frozen=True)
class Accuracy:
    """How near an engine comes to the ONNX file that it was built from, as seen when it was built.

    Args:
        reference: what it was compared with.
        samples: how many, and what they were.
        l2_rel: largest ‖row − reference‖₂ / ‖reference‖₂ of any sample and output; ``inf`` where a row isn't finite.
        l2_rel_median: the median over samples of the worst output.
        top1: share of the samples with the same best class; None where no output is class scores.
    """

    reference: str
    samples: str
    l2_rel: float
    l2_rel_median: float
    top1: float | None

    def __str__(self) -> str:
        agreement = "" if self.top1 is None else f", top-1 agreement {self.top1:.1%}"
        return f"off by {self.l2_rel:.1e} at most (L2, relative){agreement} ({self.samples}) against {self.reference}"


@dataclass(frozen=True)
class Interval:
    """A figure, and the ends of its 95 % confidence interval; infinite where there are too few samples for one."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Tuned:
    """The batch size that ``tune`` has found for an engine.

    Args:
        asked: what was searched for, in words.
        streams: batches in flight at once.
        profile: index of the profile that ran it.
        percentile: of the latency, over 0 and below 100.
        latency_ms: that percentile, ms from a batch's submission to its end, host to host, with `streams` in flight.
        samples_per_s: of the same load.
        device: that it was found on.
        created: when, UTC.
        budget_ms: that the percentile had to stay under; None where the search was for throughput alone.
    """

    asked: str
    batch: int
    streams: int
    profile: int
    percentile: float
    latency_ms: Interval
    samples_per_s: Interval
    device: dict[str, str] = field(default_factory=dict)
    created: str = ""
    budget_ms: float | None = None

    def __str__(self) -> str:
        streams = "1 stream" if self.streams == 1 else f"{self.streams} streams"
        return (
            f"batch {self.batch} with {streams}: {self.samples_per_s.value:,.0f} samples/s, p{self.percentile:g} "
            f"{self.latency_ms.value:.4g} ms (asked: {self.asked})"
        )


@dataclass(frozen=True)
class Planned:
    """The profiles that ``plan`` has found for a traffic.

    Args:
        traffic: the file of batch sizes and counts.
        requests: how many it holds.
        ms_per_request: expected time of one, in the mean.
        command: that builds an engine with these profiles.
        created: when, UTC.
    """

    traffic: FileRecord
    requests: int
    profiles: tuple[Profile, ...]
    ms_per_request: float
    command: str
    created: str = ""

    def __str__(self) -> str:
        profiles = ", ".join(map(str, self.profiles))
        return f"{profiles} for {self.traffic.file}: {self.ms_per_request:.4g} ms per request"


@dataclass(frozen=True)
class Sidecar:
    """What is known of an artifact without opening it.

    Args:
        source, source_path: what it was made from, and where that lies as seen from its folder.
        conversion: of an ONNX file that was made from another, in another precision.
        converted: of an engine: the ONNX file in another precision that stands between the source and it.
        options: of :class:`trtbatch.backends.base.BuilderOptions`, those that were asked for.
        kind: a preprocessor is the engine of one: it has no batch, and no profiles of it.
        table: which profile is the fastest at each measured batch size, and its time.
        layer_precisions: share of an engine's layers that compute in each precision, as it says itself.
        tuned, planned: what searches on the finished engine have found; the artifact is the same with them or without.
    """

    kind: Kind
    artifact: FileRecord
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    model: ModelRecord
    companions: tuple[FileRecord, ...] = ()
    source: FileRecord | None = None
    source_path: str | None = None
    backend: Literal["tensorrt", "onnxruntime"] | None = None
    profiles: tuple[Profile, ...] = ()
    table: tuple[Measured, ...] = ()
    precision_asked: str | None = None
    precision_realised: str | None = None
    conversion: Conversion | None = None
    converted: FileRecord | None = None
    layer_precisions: dict[str, float] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    accuracy: Accuracy | None = None
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None
    build: dict[str, Any] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    device: dict[str, str] = field(default_factory=dict)
    created: str = ""
    tuned: Tuned | None = None
    planned: Planned | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if not self.inputs or not self.outputs:
            raise ValueError("no inputs, or no outputs")
        if self.kind == "engine" and (not self.profiles or self.backend is None):
            raise ValueError("an engine without profiles, or without a backend")
        for row in self.table:
            for index in (row.profile, *map(int, row.times)):
                if not 0 <= index < len(self.profiles) or row.batch not in self.profiles[index]:
                    raise ValueError(f"batch {row.batch} timed on profile {index}, which doesn't hold it")

    @property
    def precision(self) -> str:
        """The precision that an engine computes in, for its tolerance."""
        return self.precision_realised or "fp32"

    @property
    def corners(self) -> list[int]:
        """Min, opt and max of every profile, ascending."""
        return sorted({batch for profile in self.profiles for batch in profile.corners})

    @property
    def times(self) -> dict[int, float]:
        """Measured time of one run by batch size, ms."""
        return {row.batch: row.ms for row in self.table}

    @property
    def tuned_choice(self) -> Tuned | None:
        """What was tuned, where a profile holds its batch."""
        held = self.tuned is not None and pick_profile(self.profiles, self.tuned.batch) is not None
        return self.tuned if held else None

    @property
    def best_batch(self) -> int:
        """The tuned batch; else the smallest measured one whose time per sample is within 2 % of the least; else the
        largest opt."""
        if self.tuned_choice is not None:
            return self.tuned_choice.batch
        if not self.table:
            return max(profile.opt for profile in self.profiles)
        least = min(row.ms / row.batch for row in self.table)
        return min(row.batch for row in self.table if row.ms / row.batch <= 1.02 * least)

    def profile_for(self, batch: int) -> int | None:
        """Index of the profile that runs `batch`: the one measured to be the fastest; None where none holds it."""
        return look_up(self.profiles, self.table, batch)

    @property
    def is_dynamic(self) -> bool:
        """Whether at least one input's batch axis is open."""
        return any(spec.batch_axis is not None and spec.fixed_batch is None for spec in self.inputs)


@dataclass(frozen=True)
class Artifact:
    """An artifact's path and what its sidecar says."""

    path: Path
    sidecar: Sidecar


def now() -> str:
    """The time, UTC, to the microsecond: artifacts of one second still have an order."""
    return datetime.now(timezone.utc).isoformat()


def record_file(path: Path) -> FileRecord:
    """Name, hash and size of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return FileRecord(path.name, digest.hexdigest(), path.stat().st_size)


def load(path: Path, kind: Kind) -> Artifact:
    """Read the sidecar of an artifact.

    Raises:
        ArtifactError: no artifact, no sidecar, a damaged sidecar, or a sidecar of another kind.
    """
    make = "trtbatch build" if kind != "onnx" else "trtbatch export MODEL --dynamic"
    refuse_other_file(path, kind)
    if not path.is_file():
        there = _of_other_backend(path)
        fix = f"run: {make}" if there is None else f"name the one that is there: {there}"
        raise ArtifactError(f"{path} doesn't exist" if not path.exists() else f"{path} is not a file", fix)
    beside = sidecar_path(path)
    if not beside.is_file():
        raise ArtifactError(f"{path} has no sidecar {beside.name}", f"make it again, sidecar and all: {make}")
    sidecar = _read_sidecar(beside, make)
    if sidecar.kind != kind:
        problem = f"{path} is {_ARTICLES[sidecar.kind]}, not {_ARTICLES[kind]}"
        raise ArtifactError(problem, _instead(path, sidecar, kind))
    return Artifact(path, sidecar)


def _of_other_backend(path: Path) -> Path | None:
    """The engine of that name that the other backend has built: ``x.ort.onnx`` for ``x.engine``, or the reverse."""
    suffixes = (".engine", ".ort.onnx")
    for own, other in (suffixes, suffixes[::-1]):
        there = path.with_name(path.name.removesuffix(own) + other)
        if path.name.endswith(own) and there.is_file():
            return there
    return None


def _instead(path: Path, sidecar: Sidecar, kind: Kind) -> str:
    """What to name where `kind` is wanted and a file of another kind is given."""
    if kind == "preprocessor":
        return f"make one for it: trtbatch export-preprocessor {path}"
    if kind == "engine" and sidecar.kind == "preprocessor":
        return _for_images(path)
    if kind == "engine":
        return f"make an engine of it: trtbatch build {path}"
    if sidecar.source_path is None:
        return "name the ONNX file that it was made from"
    return f"name the ONNX file that it was made from: {path.parent / sidecar.source_path}"


def _for_images(path: Path) -> str:
    return f"name the model's engine; infer makes its samples with this: trtbatch infer ENGINE --preprocessor {path}"


def refuse_other_file(path: Path, kind: Kind | None) -> None:
    """Raise where a path is a folder, or its name says that it is something else than an artifact of this kind.

    Args:
        kind: None where any kind will do.

    Raises:
        ArtifactError: a sidecar, another JSON file, a preprocessor, a photograph, a table, …; the file that was meant
            is named, or what to name.
    """
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder, not {_wanted(kind)}", _one_of_folder(path, kind))
    if path.suffix.lower() in _OTHERS and path.is_file():
        what, fix = _OTHERS[path.suffix.lower()]
        raise ArtifactError(f"{path} is {what}, not {_wanted(kind)}", fix.format(path) or f"name {_wanted(kind)}")
    if path.suffix == ".json" and path.is_file():
        _refuse_json(path, kind)
    if path.name.endswith(".pre.onnx") and kind in ("engine", "onnx") and not sidecar_path(path).is_file():
        fix = _for_images(path) if kind == "engine" else "name the model's own ONNX file"
        raise ArtifactError(f"{path} is a preprocessor, not {_ARTICLES[kind]}", fix)


_PHOTOGRAPH, _TABLE, _ARRAYS = ("a photograph", ""), ("a table", ""), ("a file of arrays", "")
_WEIGHTS = ("a file of torch weights", "export the model with them: trtbatch export MODEL --dynamic --weights {}")

_OTHERS = {
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"), _PHOTOGRAPH),
    **dict.fromkeys((".csv", ".tsv", ".jsonl", ".parquet"), _TABLE),
    **dict.fromkeys((".npy", ".npz"), _ARRAYS),
    **dict.fromkeys((".pt", ".pth", ".safetensors"), _WEIGHTS),
    ".pt2": ("a program of torch", "export it first: trtbatch export {} --dynamic"),
    ".py": ("Python code", "export its model first: trtbatch export MODULE:FACTORY --dynamic"),
}
"""Files that are named by mistake, by suffix: what they are, and what to do (``""``: name the right file)."""

_SUFFIXES: dict[Kind | None, tuple[str, ...]] = {
    None: (".onnx", ".engine", ".plan"),
    "onnx": (".onnx",),
    "engine": (".engine", ".plan", ".ort.onnx"),
    "preprocessor": (".pre.engine", ".pre.onnx"),
}

_MOST_NAMED = 4


def _wanted(kind: Kind | None) -> str:
    return "an ONNX file or an engine" if kind is None else _ARTICLES[kind]


def _one_of_folder(folder: Path, kind: Kind | None) -> str:
    """What to name in place of a folder: the files of the kind that lie in it."""
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(_SUFFIXES[kind]) and path.is_file())
    if kind == "onnx":
        names = [name for name in names if not name.endswith((".ort.onnx", ".pre.onnx"))]
    if not names:
        return f"name {_wanted(kind)}; there is none in it"
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"name a file in it: {', '.join(str(folder / name) for name in names[:_MOST_NAMED])}{more}"


def _refuse_json(path: Path, kind: Kind | None) -> None:
    """Raise for a JSON file, with the artifact beside which it lies."""
    wanted = _wanted(kind)
    own = path.with_name(path.name.removesuffix(".json"))
    if not own.is_file():
        raise ArtifactError(f"{path} is a JSON file, not {wanted}", f"name {wanted}")
    fix = f"name the file beside it: {own}"
    if kind is not None:
        try:
            load(own, kind)
        except ArtifactError as error:
            fix = error.fix
    raise ArtifactError(f"{path} is the sidecar of {own.name}, not {wanted}", fix)


def _read_sidecar(path: Path, make: str) -> Sidecar:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.get("format_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ArtifactError(
                f"{path} has format {version}; this trtbatch reads {FORMAT_VERSION}",
                "update trtbatch: pip install -U trtbatch",
            )
        sidecar = decode(Sidecar, data)
        _refuse_open_axes(sidecar, path)
        return sidecar
    except (ValueError, RecursionError, TrtbatchError) as error:
        if isinstance(error, ArtifactError):
            raise
        reason = str(error) if isinstance(error, RecordError) else f"not a sidecar ({error})"
        raise ArtifactError(f"{path} is damaged: {reason}", f"make it again: {make}") from error


def _refuse_open_axes(sidecar: Sidecar, path: Path) -> None:
    """Raise where an engine's input has an open axis that isn't the batch: the build gives each a size.

    Raises:
        RecordError: naming it.
    """
    for spec in sidecar.inputs if sidecar.kind == "engine" else ():
        for axis, size in enumerate(spec.shape):
            if axis != spec.batch_axis and not isinstance(size, int):
                raise RecordError(f"axis {axis} of input {spec.name!r} has no size ({size!r})")


def check_file(artifact: Artifact) -> None:
    """Compare the artifact and its companions with what the sidecar recorded: size first, then SHA-256.

    Raises:
        ArtifactError: a file is truncated, changed or missing.
    """
    make = "trtbatch export MODEL --dynamic" if artifact.sidecar.kind == "onnx" else build_line(artifact)
    for record in (artifact.sidecar.artifact, *artifact.sidecar.companions):
        path = artifact.path if record is artifact.sidecar.artifact else artifact.path.with_name(record.file)
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; {artifact.path.name} needs it", f"put it back, or run: {make}")
        size = path.stat().st_size
        if size != record.bytes:
            state = "truncated" if size < record.bytes else "changed"
            raise ArtifactError(f"{path} is {state}: {size} bytes, {record.bytes} when it was made", f"run: {make}")
        if record_file(path).sha256 != record.sha256:
            raise ArtifactError(f"{path} is not the file that its sidecar describes (SHA-256 differs)", f"run: {make}")


def built_from(artifact: Artifact) -> list[str]:
    """The path of the file that an artifact was made from, as seen from here; empty where it isn't known."""
    source = artifact.sidecar.source_path
    return [] if source is None else [os.path.normpath(artifact.path.parent / source)]


def build_line(artifact: Artifact) -> str:
    """The command that builds this engine again, in its place, as far as its sidecar tells.

    Calibration samples are not on record as they were given, nor are settings of the builder that decide how long it
    searches.
    """
    sidecar = artifact.sidecar
    words = ["trtbatch", "build", *(built_from(artifact) or ["ONNX_FILE"])]
    if sidecar.kind == "engine" and sidecar.is_dynamic:
        words += [word for profile in sidecar.profiles for word in ("--profile", str(profile))]
    elif sidecar.kind == "engine":
        words += ["--static", str(sidecar.profiles[0].max)]
    words += precision_words(sidecar)
    for name, value in sidecar.options.items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    if sidecar.backend == "onnxruntime":
        words += ["--backend", "onnxruntime"]
    return shlex.join([*words, "--output", str(artifact.path)])


def precision_words(sidecar: Sidecar) -> list[str]:
    """The options of ``build`` that give an engine the precision that this one has."""
    conversion, asked = sidecar.conversion, sidecar.precision_asked
    if asked in (None, "default"):
        asked = None if conversion is None else conversion.precision
    words = [] if asked is None else ["--precision", asked]
    if conversion is not None:
        words += [] if conversion.io is None else ["--io-precision", conversion.io]
        words += [word for name in conversion.keep_fp32 for word in ("--keep-fp32", name)]
        words += ["--calibration", "SAMPLES"] if conversion.method is not None and not conversion.random else []
    return words


def newest(
    kind: Kind,
    fits: Callable[[Sidecar], bool],
    what: str,
    folder: Path | None = None,
    prefer: Callable[[Sidecar], bool] = lambda sidecar: True,
) -> Artifact:
    """The artifact of `kind` in `folder` that was made last and that `fits`; damaged ones are passed over, and named.

    Args:
        what: the description of what would fit, for the error.
        prefer: what comes before all that is newer, where there is any.

    Raises:
        ArtifactError: there is none; the command that makes one is named.
    """
    folder = ENGINES if folder is None else folder
    found = [each for each in listed(kind, folder) if fits(each.sidecar)]
    if not found:
        raise ArtifactError(f"no {what} in {folder}/", f"run: {_MAKE[kind]}, or name the file")
    return max(found, key=lambda each: (prefer(each.sidecar), each.sidecar.created, each.path.name))


_MAKE: dict[Kind, str] = {
    "onnx": "trtbatch export resnet18 --dynamic",
    "engine": "trtbatch build",
    "preprocessor": "trtbatch build NAME.pre.onnx",
}


def listed(kind: Kind, folder: Path, tell: Callable[[str], None] = warn) -> list[Artifact]:
    """The artifacts of `kind` in `folder`, by name; damaged ones are passed over, and `tell` is told of them."""
    found: list[Artifact] = []
    for beside in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        path = beside.with_suffix("")
        if not path.is_file():
            continue
        try:
            sidecar = _read_sidecar(beside, _MAKE[kind])
        except ArtifactError as error:
            tell(f"passed over: {error.problem}")
            continue
        if sidecar.kind == kind:
            found.append(Artifact(path, sidecar))
    return found


def occupant(target: Path, is_such: Callable[[Sidecar], bool], words: str) -> Artifact | None:
    """The ONNX file that has the name of one that is to be made; None where the name is free.

    Args:
        is_such: whether it is of the kind that is to be made.
        words: what a sidecar of that kind says, for the error.

    Raises:
        UsageError: the name is taken by something else.
    """
    if not target.exists():
        return None
    try:
        artifact = load(target, "onnx")
    except ArtifactError:
        artifact = None
    if artifact is None or not is_such(artifact.sidecar):
        raise UsageError(
            f"{target} is in the way: it has no sidecar that says {words}",
            "move it, or build into another folder (--output)",
        )
    return artifact


def still_made_from(artifact: Artifact, source: Artifact) -> bool:
    """Whether a file is whole, and was made from `source` as that is now."""
    made_from = artifact.sidecar.source
    if made_from is None or made_from.sha256 != source.sidecar.artifact.sha256:
        return False
    try:
        check_file(artifact)
    except ArtifactError:
        return False
    return True


def publish(made: Path, target: Path, sidecar: Sidecar, companions: tuple[Path, ...] = ()) -> Artifact:
    """Move a finished artifact from its scratch folder to `target`, sidecar beside it, by atomic renames.

    The sidecar records the artifact's hash, so a crash between the renames is found by :func:`check_file`.
    """
    text = json.dumps(encode(sidecar), indent=2, ensure_ascii=False)
    beside = sidecar_path(made)
    beside.write_text(text + "\n", encoding="utf-8")
    mask = os.umask(0)
    os.umask(mask)
    for companion in companions:
        companion.chmod(0o666 & ~mask)  # onnx writes weights for the owner alone
        os.replace(companion, target.with_name(companion.name))
    os.replace(made, target)
    os.replace(beside, sidecar_path(target))
    return Artifact(target, sidecar)


def rewrite(artifact: Artifact, **fields: Any) -> Artifact:
    """Set fields of an artifact's sidecar, atomically; the artifact itself, and all else in the sidecar, stay.

    The sidecar is read again first: what another command has written meanwhile, and what a newer trtbatch has written
    that this one doesn't know, is kept.

    Raises:
        ArtifactError: the artifact was made anew meanwhile, or its sidecar can't be read any more.
    """
    path, sidecar = artifact.path, artifact.sidecar
    there = load(path, sidecar.kind).sidecar
    if there.artifact != sidecar.artifact:
        raise ArtifactError(f"{path} was made anew meanwhile", "run the command again")
    beside = sidecar_path(path)
    data = json.loads(beside.read_text(encoding="utf-8")) | {name: encode(value) for name, value in fields.items()}
    with atomic_file(beside) as made:
        made.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return load(path, sidecar.kind)


def is_engine(path: Path) -> bool:
    """Whether a file is an engine: its sidecar says so, else its suffix."""
    if sidecar_path(path).is_file():
        try:
            return load(path, "engine").sidecar.kind == "engine"
        except ArtifactError:
            pass
    return path.name.endswith((".engine", ".ort.onnx", ".plan", ".trt"))
