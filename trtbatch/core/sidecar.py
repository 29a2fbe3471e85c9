"""Define the JSON sidecar of an artifact, and read it.

An artifact ``x.onnx`` or ``x.engine`` has the sidecar ``x.onnx.json`` or ``x.engine.json``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trtbatch.core.batches import Profile, pick_profile
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.profiles import Measured, look_up
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import ArtifactError, TrtbatchError
from trtbatch.util.notebook import html_table
from trtbatch.util.serialization import RecordError, decode

__all__ = [
    "Accuracy",
    "Artifact",
    "BuildRecord",
    "Conversion",
    "EngineRecord",
    "FileRecord",
    "Interval",
    "Kind",
    "ModelRecord",
    "Planned",
    "PrecisionRecord",
    "Sidecar",
    "SourceRecord",
    "Tuned",
    "read_sidecar",
]

FORMAT_VERSION = 1


Kind = Literal["onnx", "engine", "preprocessor"]


@dataclass(frozen=True)
class FileRecord:
    """A file at the time when something was made from it: name, SHA-256 and size in bytes."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class ModelRecord:
    """Origin of a model's weights.

    Args:
        origin: the exported MODEL: a torchvision name, ``package.module:factory`` or a ``.pt2`` file.
        weights_option: the ``--weights`` that gives the same weights again.
        input_shape: the given ``--input-shape``.
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
    """Conversion of an ONNX file to another precision.

    Args:
        precision: of the matrix products.
        rest: precision of the other nodes, where the matrix products are quantized.
        io: type of the inputs and outputs; None where they kept their types.
        keep_fp32: names of nodes and operators that were to stay float32.
        calibration: description of the calibration samples, which give the ranges.
        calibration_sha256: hash of the samples' values.
        random: whether the calibration samples were random.
        method: how the ranges were chosen; None where nothing was quantized.
        kept: the nodes that `keep_fp32` matched.
        stayed: matrix products that compute in another precision nevertheless.
        tools: versions of the tools that converted the file.
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
        """Return the settings that decide the conversion's result."""
        samples = (self.calibration, self.calibration_sha256, self.random)
        return (self.precision, self.rest, self.io, self.keep_fp32, samples, self.method)


@dataclass(frozen=True)
class Accuracy:
    """Deviation of an engine from the ONNX file that it was built from, measured at the build.

    Args:
        reference: what the engine was compared with.
        samples: number and origin of the samples.
        l2_rel: largest ‖row − reference‖₂ / ‖reference‖₂ of any sample and output; ``inf`` where a row isn't finite.
        l2_rel_median: median over the samples of the worst output's error.
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
    """A figure and its 95 % confidence interval, which is infinite with too few samples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Tuned:
    """Batch size that ``tune`` found for an engine.

    Args:
        asked: the goal of the search, in words.
        streams: batches in flight at once.
        profile: index of the profile that ran the batch.
        percentile: of the latency, above 0 and below 100.
        latency_ms: that percentile, ms from a batch's submission to its end, host to host, with `streams` in flight.
        samples_per_s: throughput of the same load.
        device: the device of the search.
        created: time of the search, UTC.
        budget_ms: limit of the percentile; None where the search was for throughput alone.
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
    """Profiles that ``plan`` found for a distribution of requests.

    Args:
        traffic: the file of batch sizes and counts.
        requests: number of requests in that file.
        ms_per_request: expected mean time of a request.
        build: the arguments of :func:`trtbatch.build` that build an engine with these profiles.
        created: time of the plan, UTC.
    """

    traffic: FileRecord
    requests: int
    profiles: tuple[Profile, ...]
    ms_per_request: float
    build: dict[str, Any]
    created: str = ""

    def __str__(self) -> str:
        profiles = ", ".join(map(str, self.profiles))
        return f"{profiles} for {self.traffic.file}: {self.ms_per_request:.4g} ms per request"


@dataclass(frozen=True)
class SourceRecord(FileRecord):
    """The file that an artifact was made from.

    Args:
        path: its path relative to the artifact's folder.
        converted: of an engine: the ONNX file in another precision that was built, where that is not the file itself.
    """

    path: str | None = None
    converted: FileRecord | None = None

    @classmethod
    def of(cls, record: FileRecord, path: str | None = None, converted: FileRecord | None = None) -> SourceRecord:
        """Return the record of a file with its place."""
        return cls(record.file, record.sha256, record.bytes, path, converted)

    @property
    def built(self) -> FileRecord:
        """Return the file that the backend was given."""
        return self.converted or self


@dataclass(frozen=True)
class EngineRecord:
    """What runs an engine, at which batch sizes, and which of them are best. Empty for an ONNX file.

    Args:
        profiles: none in the engine of a preprocessor, which has no batch.
        table: the fastest profile at each measured batch size, and its time.
        tuned, planned: results of searches on the finished engine; they don't change it.
    """

    backend: Literal["tensorrt", "onnxruntime"] | None = None
    profiles: tuple[Profile, ...] = ()
    table: tuple[Measured, ...] = ()
    tuned: Tuned | None = None
    planned: Planned | None = None

    def __post_init__(self) -> None:
        for row in self.table:
            for index in (row.profile, *map(int, row.times)):
                if not 0 <= index < len(self.profiles) or row.batch not in self.profiles[index]:
                    raise ValueError(f"batch {row.batch} timed on profile {index}, which doesn't hold it")

    @property
    def corners(self) -> list[int]:
        """Return min, opt and max of every profile, ascending."""
        return sorted({batch for profile in self.profiles for batch in profile.corners})

    @property
    def times(self) -> dict[int, float]:
        """Return the measured time of one run by batch size, ms."""
        return {row.batch: row.ms for row in self.table}

    @property
    def tuned_choice(self) -> Tuned | None:
        """Return the result of ``tune`` where a profile holds its batch, else None."""
        held = self.tuned is not None and pick_profile(self.profiles, self.tuned.batch) is not None
        return self.tuned if held else None

    @property
    def best_batch(self) -> int:
        """Return the batch size to use by default.

        That is the tuned batch; else the smallest measured one within 2 % of the least time per sample; else the
        largest opt.
        """
        if self.tuned_choice is not None:
            return self.tuned_choice.batch
        if not self.table:
            return max(profile.opt for profile in self.profiles)
        least = min(row.ms / row.batch for row in self.table)
        return min(row.batch for row in self.table if row.ms / row.batch <= 1.02 * least)

    @property
    def best_batch_from(self) -> str:
        """Return where :attr:`best_batch` comes from, in words."""
        if self.tuned_choice is not None:
            return f"tuned on {self.tuned_choice.created[:10]}"
        return "the least time per sample in the build's table" if self.table else "the largest opt of the profiles"

    def profile_for(self, batch: int) -> int | None:
        """Return the index of the profile measured to be fastest for `batch`, or None where no profile holds it."""
        return look_up(self.profiles, self.table, batch)


@dataclass(frozen=True)
class PrecisionRecord:
    """Precision of an engine.

    Args:
        layers: share of the layers that compute in each precision, as the engine reports.
        accuracy: deviation from the ONNX file, where the build measured it.
    """

    asked: str | None = None
    realized: str | None = None
    layers: dict[str, float] = field(default_factory=dict)
    accuracy: Accuracy | None = None

    @property
    def name(self) -> str:
        """Return the precision that the engine computes in, for its tolerance."""
        return self.realized or "fp32"


@dataclass(frozen=True)
class BuildRecord:
    """When, where and how an artifact was made.

    Args:
        tools: versions of the packages that made it.
        device: the GPU or CPU that it was made for.
        created: time, UTC.
        options: the options of :class:`trtbatch.backends.base.BuilderOptions` that were requested.
        details: durations and choices of the build.
    """

    tools: dict[str, str] = field(default_factory=dict)
    device: dict[str, str] = field(default_factory=dict)
    created: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sidecar:
    """Description of an artifact that is known without opening it.

    Args:
        kind: ``preprocessor`` is the engine of a preprocessor.
        conversion: how the ONNX file, or the one that an engine was built from, got another precision.
    """

    kind: Kind
    artifact: FileRecord
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    model: ModelRecord
    companions: tuple[FileRecord, ...] = ()
    source: SourceRecord | None = None
    conversion: Conversion | None = None
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None
    build: BuildRecord = BuildRecord()
    engine: EngineRecord = EngineRecord()
    precision: PrecisionRecord = PrecisionRecord()
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if not self.inputs or not self.outputs:
            raise ValueError("no inputs, or no outputs")
        if self.kind == "engine" and (not self.engine.profiles or self.engine.backend is None):
            raise ValueError("an engine without profiles, or without a backend")

    @property
    def is_dynamic(self) -> bool:
        """Return whether at least one input's batch axis is open."""
        return any(spec.batch_axis is not None and spec.fixed_batch is None for spec in self.inputs)


@dataclass(frozen=True)
class Artifact:
    """An artifact's path and sidecar."""

    path: Path
    sidecar: Sidecar

    def __repr__(self) -> str:
        return f"Artifact({str(self.path)!r}, {', '.join(self._facts().values())})"

    def _repr_html_(self) -> str:
        return html_table(str(self.path), ["", ""], self._facts().items())

    def _facts(self) -> dict[str, str]:
        """Return what distinguishes this artifact from others, by name."""
        sidecar = self.sidecar
        facts = {}
        if sidecar.engine.backend is not None:
            facts["backend"] = f"{sidecar.engine.backend} {sidecar.precision.realized or ''}".rstrip()
        if sidecar.engine.profiles:
            facts["profiles"] = f"profiles {', '.join(map(str, sidecar.engine.profiles))}"
        else:
            facts["inputs"] = f"{', '.join(map(str, sidecar.inputs))}"
        return {**facts, "weights": f"weights: {sidecar.model.weights}"}


def read_sidecar(path: Path, make: str) -> Sidecar:
    """Read a sidecar.

    Args:
        path: the path of the sidecar.
        make: the command that makes the artifact again, for the error.

    Raises:
        ArtifactError: the sidecar is damaged, or has a newer format.
    """
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
    """Raise where an engine's input has an open axis other than the batch, because the build gives each a size.

    Raises:
        RecordError: the message names the axis.
    """
    for spec in sidecar.inputs if sidecar.kind == "engine" else ():
        for axis, size in enumerate(spec.shape):
            if axis != spec.batch_axis and not isinstance(size, int):
                raise RecordError(f"axis {axis} of input {spec.name!r} has no size ({size!r})")
