"""What every backend offers: small protocols, and the checks on inputs that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from trtbatch.core.batches import Profile
from trtbatch.core.sidecar import Sidecar
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import InputError

__all__ = [
    "OPSETS",
    "BuildPlan",
    "Builder",
    "BuilderOptions",
    "Built",
    "Description",
    "Engine",
    "Event",
    "Mode",
    "Progress",
    "Range",
    "Session",
    "Slot",
    "array_fix",
    "batch_of",
    "conform",
    "layout_fix",
    "option_flag",
    "refuse_integers",
]

Array = NDArray[Any]

Progress = Callable[[str, float | None], None]
"""Is told what is being done, in words, and how far it is (0 to 1) where that is known."""


class Event(Protocol):
    """A mark on a stream, as ``pycuda.driver.Event`` has it."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def milliseconds_since(self, earlier: Event) -> float: ...


@dataclass(frozen=True)
class Mode:
    """One way to run what is bound, for ``bench`` to time.

    Args:
        name: as given to ``--mode``.
        timed: what one figure covers, in words.
        launch: runs once; synchronous unless `new_event` is given. Raises ExecutionError.
        new_event: makes events on the stream of `launch`, for asynchronous modes.
    """

    name: str
    timed: str
    launch: Callable[[], None]
    new_event: Callable[[], Event] | None = None


class Slot(Protocol):
    """Room for one batch in flight: host memory for its inputs and outputs, and what runs it.

    Several slots of one session are in flight at once; all are used in the session's thread, but for writing into
    the inputs' memory. They are freed with the session.
    """

    def prepare(self, batch: int) -> dict[str, Array]:
        """The inputs' memory at this batch size, to be written into, by name.

        It is page-locked where there is a GPU. A smaller batch, prepared later, has the first bytes of the same
        memory; a larger one may have other memory.

        Raises:
            ProfileError: no profile holds the batch.
            ExecutionError: out of memory.
        """

    def warm(self, batch: int) -> None:
        """Make what the first batch of this size takes, before it comes; its inputs may be overwritten on the GPU.

        Raises:
            ProfileError: no profile holds the batch.
            ExecutionError: out of memory, or the run failed.
        """

    def submit(self) -> None:
        """Start running the batch last prepared: upload, compute, download. :meth:`wait` before its next use.

        Raises:
            ExecutionError: it can't be run.
        """

    def wait(self) -> dict[str, Array]:
        """Wait for the end; the outputs' memory, by name, valid until the slot's next use.

        Raises:
            ExecutionError: the run failed.
        """

    def run(self) -> dict[str, Array]:
        """Submit and wait in one, in the least time for a single batch."""

    def parts(self) -> dict[str, float]:
        """Run once, and tell what copies and compute take apart: ms of ``h2d``, ``gpu``, ``d2h``; empty on the CPU."""


class RowWriter(Protocol):
    """Writes rows of a batch on the GPU, ordered on a CUDA stream."""

    @property
    def stream(self) -> int:
        """Handle of the stream."""

    def upload(self, address: int, row: Array) -> None:
        """Copy a row from the host to an address of the GPU."""


class Session(Protocol):
    """Inputs and outputs of an engine, bound to memory. Not for use by two threads at once."""

    @property
    def in_flight(self) -> int:
        """How many slots it takes to keep the device busy; 1 where ``submit`` runs to the end."""

    @property
    def flush(self) -> Callable[[], None] | None:
        """Evicts the GPU's L2 cache, ordered before the next launch of a mode; None on the CPU."""

    def slot(self, spins: bool = True) -> Slot:
        """Another slot.

        Args:
            spins: whether waiting for its results keeps a core busy, to go on at once.
        """

    def use_profile(self, profile: int | None) -> None:
        """Run what is bound or prepared from now on on this optimization profile; None: on each batch's fastest.

        Raises:
            UsageError: there is no such profile.
        """

    def bind(self, inputs: Mapping[str, Array]) -> None:
        """Check the inputs, allocate for their shapes what doesn't fit yet, and copy them in."""

    def run(self) -> None:
        """Run once on what is bound, and wait for the end."""

    def fetch(self) -> dict[str, Array]:
        """Copies of the outputs of the last run, by name."""

    def bound(self) -> dict[str, Array]:
        """The inputs as bound, by name."""

    def poison(self, pattern: int) -> None:
        """Fill the output buffers with a byte, so that what isn't written shows."""

    def modes(self) -> dict[str, Mode]:
        """The ways to run what is bound now, the default first."""

    def close(self) -> None: ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Engine(Protocol):
    """A loaded engine: opens sessions. Close sessions first, then the engine."""

    sidecar: Sidecar

    def session(self, cuda_graphs: bool = True) -> Session:
        """A session; `cuda_graphs`: whether its slots may run as CUDA graphs, where there are any."""

    def entered(self) -> AbstractContextManager[object]:
        """Return the context in which a thread may use the engine's sessions, other than the one that made them."""

    def describe(self) -> Description:
        """What the engine itself says of its tensors, profiles and layers."""

    def close(self) -> None: ...

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class BuilderOptions:
    """What a TensorRT engine can be beside fast on this machine.

    Args:
        version_compatible: it runs on later TensorRT releases too.
        hardware_compatible: it runs on every GPU from compute capability 8.0 on.
        aux_streams: streams that layers may run on beside the main one; None leaves TensorRT's choice.
        sparsity: 2:4 sparse weights are used as such.
        refit: its weights can be exchanged.
        strip_weights: it holds no weights; they are taken from the ONNX file when it is opened.
        weight_streaming: weights that don't fit stay on the host and are streamed.
    """

    version_compatible: bool = False
    hardware_compatible: bool = False
    aux_streams: int | None = None
    sparsity: bool = False
    refit: bool = False
    strip_weights: bool = False
    weight_streaming: bool = False

    @property
    def asked(self) -> dict[str, Any]:
        """Those that differ from the default, by name."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in pairs if value is not None and value is not False}


OPSETS = {"fp16": 13, "int8": 13, "fp8": 19, "bf16": 22}
"""The least ONNX opset whose operators take a type (ONNX operator specification; ModelOpt asks for 22 for bf16)."""


def option_flag(name: str) -> str:
    """The command line's spelling of an option."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Range:
    """The shapes that an input may have: the least, the one that kernels are chosen for, and the largest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class BuildPlan:
    """What a builder is to make.

    Args:
        onnx: the model; an axis that is to be fixed is fixed in it.
        name: file name of the engine.
        inputs, outputs: its specs; of the inputs every axis but the batch is known.
        profiles: of the batch axis, where it is open; one N:N:N where it is fixed.
        external_weights: whether the model's weights lie in a file beside it (models over 2 GB).
        workspace: bytes for the builder's tactics; None leaves TensorRT's own limit.
        opt_level: TensorRT's builder optimization level, 0 to 5; None leaves its default.
        timing_cache: read where usable, and written after the build; None is one in `cache_folder`, named after GPU
            and TensorRT version.
        cache_folder: None is no timing cache at all.
        own_kernels: whether the tactics of cuDNN and cuBLAS are left out.
        timing_iterations: runs that the time of a tactic is averaged over; None leaves TensorRT's own number (1).
        device: number of the GPU.
        tf32: whether float32 products may be computed in TF32.
        kinds: the reduced types that the graph holds (``fp16``, ``bf16``, ``int8``, ``fp8``).
        allowed: reduced types that layers may use though the graph doesn't say so.
        node_types: what each node of a graph of several float types gives, ``fp32`` or ``fp16``, by name.
        options: what else the engine is to be.
        ranges: of a model without a batch, whose inputs have other open axes: of each profile, the shapes of every
            open input.
    """

    onnx: Path
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    external_weights: bool = False
    workspace: int | None = None
    opt_level: int | None = None
    timing_cache: Path | None = None
    cache_folder: Path | None = None
    own_kernels: bool = False
    timing_iterations: int | None = None
    device: int = 0
    tf32: bool = True
    kinds: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    node_types: dict[str, str] = field(default_factory=dict)
    options: BuilderOptions = field(default_factory=BuilderOptions)
    ranges: tuple[dict[str, Range], ...] = ()


@dataclass(frozen=True)
class Built:
    """What a builder made: the file, files beside it, and what is known of it."""

    file: Path
    companions: tuple[Path, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str
    tools: dict[str, str]
    device: dict[str, str]


@dataclass(frozen=True)
class Description:
    """What an opened engine says of itself.

    Args:
        facts: ``input NAME``, ``output NAME`` (shape with ``?`` for open axes, dtype), ``profiles``, others.
        layers: (name, kind, precision, tactic) of each, in order; empty words where it isn't told.
    """

    facts: dict[str, str]
    layers: tuple[tuple[str, str, str, str], ...] = ()


class Builder(Protocol):
    """ONNX → engine file."""

    @property
    def name(self) -> Literal["tensorrt", "onnxruntime"]: ...

    @property
    def suffix(self) -> str: ...

    @property
    def typed_alone(self) -> bool:
        """Whether the types in the ONNX file decide alone, without flags of the builder."""

    def refuse(self, precision: str | None, options: BuilderOptions, device: int) -> None:
        """Raise where this backend, this release of it or this GPU can't do what is asked.

        Raises:
            PrecisionError: naming the precision, and what it needs.
            UsageError: naming the option.
        """

    def build(self, plan: BuildPlan, folder: Path, progress: Progress) -> Built:
        """Write the engine into `folder`, telling `progress` what is being done.

        Raises:
            BuildError: the model can't be built.
        """


def batch_of(inputs: Mapping[str, Array], specs: Sequence[TensorSpec]) -> int:
    """The batch size of the inputs.

    Raises:
        InputError: a missing or unknown input, another number of axes, or batch axes that disagree.
    """
    names = [spec.name for spec in specs]
    if set(inputs) != set(names):
        given, needed = (", ".join(sorted(each)) or "none" for each in (inputs, names))
        raise InputError(f"inputs {given} given, {needed} wanted", "give each input by its name")
    sizes: dict[str, int] = {}
    for spec in specs:
        shape = inputs[spec.name].shape
        if not spec.fits(shape):
            fix = layout_fix(shape, spec) or _axis_fix(shape, spec)
            raise InputError(f"{spec.name} has shape {shape}, wanted {spec.shape}", fix)
        if spec.batch_axis is not None:
            sizes[spec.name] = shape[spec.batch_axis]
    if len(set(sizes.values())) > 1:
        raise InputError(f"the inputs disagree on the batch size: {sizes}", "give each the same number of samples")
    return next(iter(sizes.values()), 1)


def layout_fix(shape: tuple[int, ...], spec: TensorSpec) -> str | None:
    """What to do with images in the other layout, or with a sample without a batch axis; None where it is neither."""
    if spec.batch_axis != 0:
        return None
    if spec.fits((1, *shape)):
        return "add the batch axis: array[None]"
    for axes, names in (((0, 3, 1, 2), "NHWC and the engine's NCHW"), ((0, 2, 3, 1), "NCHW and the engine's NHWC")):
        if len(shape) == 4 and spec.fits(tuple(shape[axis] for axis in axes)):
            return f"its layout is {names}: transpose it, array.transpose{axes}"
    return None


def _axis_fix(shape: tuple[int, ...], spec: TensorSpec) -> str:
    if len(shape) != len(spec.shape):
        return "reshape it"
    axes = (axis for axis in range(len(shape)) if axis != spec.batch_axis and isinstance(spec.shape[axis], int))
    return next(f"make axis {axis} {spec.shape[axis]}" for axis in axes if shape[axis] != spec.shape[axis])


def refuse_integers(dtype: str, spec: TensorSpec, where: str = "") -> None:
    """Raise where an array of integers is given to an input of floats.

    The cast would keep every value, and the rows would be nonsense: pixels of 0 to 255 for a model of normalised ones.

    Args:
        dtype: of the array, as numpy names it.
        where: the array is from, for the error.

    Raises:
        InputError: naming both types.
    """
    fix = _integers_fix(dtype, spec)
    if fix is not None:
        raise InputError(f"{where and f'{where}: '}{spec.name} is {dtype} and the engine takes {spec.dtype}", fix)


def _integers_fix(dtype: str, spec: TensorSpec) -> str | None:
    if not dtype.startswith(("int", "uint")) or "float" not in spec.dtype:
        return None
    if dtype == "uint8":
        return (
            f"normalise it to {spec.dtype} as the model was trained; or give photographs (engine.predict, infer "
            "`input='FOLDER/'`, a Predictor's column 'image'); or build with `fuse_preprocess` for an engine of uint8"
        )
    return f"cast it yourself if that is meant: array.astype({spec.dtype!r})"


def array_fix(dtype: str, shape: tuple[int, ...], spec: TensorSpec) -> str:
    """What to do with a saved array of another shape; and of another type, where it has one."""
    other = f"save it as {spec.dtype}" if spec.fits(shape) else "save an array of this shape"
    steps = (layout_fix(shape, spec) or other, _integers_fix(dtype, spec))
    return "; and ".join(step for step in steps if step is not None)


def conform(array: Array, spec: TensorSpec, where: str = "") -> Array:
    """The array C-contiguous and of the input's dtype; shared where it is so already.

    Args:
        where: the array is from, for the error.

    Raises:
        InputError: the cast would change a value (float64 noise to float32, 2**40 to int32).
    """
    dtype = np.dtype(spec.dtype)
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    with np.errstate(all="ignore"):
        cast = np.ascontiguousarray(array, dtype=dtype)
        back = cast.astype(array.dtype)
    if not np.can_cast(array.dtype, dtype, "safe"):
        equal = np.array_equal(back, array, equal_nan=array.dtype.kind == "f" and dtype.kind == "f")
        if not equal or not np.array_equal(cast < 0, array < 0):  # 2**63 survives uint64 → int64 → uint64
            raise InputError(
                f"{where and f'{where}: '}{spec.name} is {array.dtype} and the engine takes {dtype}: the cast would "
                "change values",
                f"cast it yourself if that is meant: array.astype({str(dtype)!r})",
            )
    return cast
