"""Define the small protocols that every backend implements, and the checks on inputs that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from trtbatch.core.batches import Profile
from trtbatch.core.sidecar import Sidecar
from trtbatch.core.tensors import TensorSpec, numpy_dtype
from trtbatch.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

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
"""Callback that receives the current step in words, and its progress (0 to 1) where known."""


class Event(Protocol):
    """Event on a stream, like ``pycuda.driver.Event``."""

    def record(self) -> None:
        """Record the event after the work that is on the stream now."""
        ...

    def synchronize(self) -> None:
        """Wait for the event."""
        ...

    def milliseconds_since(self, earlier: Self) -> float:
        """Return the time between two events, ms."""
        ...


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
    """One batch in flight: host memory for its inputs and outputs, and the means to run it.

    Several slots of one session can be in flight at once. All are used in the session's thread, except that any thread
    may write into the inputs' memory. The session frees its slots.
    """

    def prepare(self, batch: int) -> dict[str, Array]:
        """Return the inputs' memory at this batch size by name, for the caller to fill.

        The memory is page-locked where there is a GPU. A smaller batch, prepared later, uses the first bytes of the
        same memory; a larger one may get other memory.

        Raises:
            ProfileError: no profile holds the batch.
            ExecutionError: out of memory.
        """

    def warm(self, batch: int) -> None:
        """Do in advance what the first batch of this size needs; its inputs on the GPU may be overwritten.

        Raises:
            ProfileError: no profile holds the batch.
            ExecutionError: out of memory, or the run failed.
        """

    def submit(self) -> None:
        """Start the batch prepared last: upload, compute, download; call :meth:`wait` before the slot's next use.

        Raises:
            ExecutionError: the batch can't be run.
        """

    def wait(self) -> dict[str, Array]:
        """Wait for the end, and return the outputs' memory by name, valid until the slot's next use.

        Raises:
            ExecutionError: the run failed.
        """

    def run(self) -> dict[str, Array]:
        """Submit a single batch and wait for it, in the least time."""

    def parts(self) -> dict[str, float]:
        """Run once, and return the times of copies and compute: ms of ``h2d``, ``gpu``, ``d2h``; empty on the CPU."""


class RowWriter(Protocol):
    """Writer of a batch's rows on the GPU, ordered on a CUDA stream."""

    @property
    def stream(self) -> int:
        """Return the handle of the stream."""

    def upload(self, address: int, row: Array) -> None:
        """Copy a row from the host to an address of the GPU."""


class Session(Protocol):
    """Inputs and outputs of an engine, bound to memory. Two threads must not use it at once."""

    @property
    def in_flight(self) -> int:
        """Return how many slots keep the device busy; 1 where ``submit`` runs to the end."""

    @property
    def flush(self) -> Callable[[], None] | None:
        """Return a function that evicts the GPU's L2 cache before the next launch of a mode; None on the CPU."""

    def slot(self, spins: bool = True) -> Slot:
        """Return a new slot.

        Args:
            spins: whether waiting for the slot's results keeps a core busy, which returns sooner.
        """

    def use_profile(self, profile: int | None) -> None:
        """Run later bindings and batches on this optimization profile; None: on each batch's fastest.

        Raises:
            UsageError: there is no such profile.
        """

    def bind(self, inputs: Mapping[str, Array]) -> None:
        """Check the inputs, allocate memory for shapes that don't fit yet, and copy the inputs in."""

    def run(self) -> None:
        """Run what is bound once, and wait for the end."""

    def fetch(self) -> dict[str, Array]:
        """Return copies of the last run's outputs, by name."""

    def bound(self) -> dict[str, Array]:
        """Return the bound inputs, by name."""

    def poison(self, pattern: int) -> None:
        """Fill the output buffers with a byte, so that unwritten elements show."""

    def modes(self) -> dict[str, Mode]:
        """Return the ways to run what is bound now, the default first."""

    def close(self) -> None:
        """Free the session's memory."""
        ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Engine(Protocol):
    """A loaded engine, which opens sessions. Close its sessions before the engine."""

    sidecar: Sidecar

    def session(self, cuda_graphs: bool = True) -> Session:
        """Return a new session; `cuda_graphs`: whether its slots may run as CUDA graphs, where the backend has them."""

    def entered(self) -> AbstractContextManager[object]:
        """Return the context in which a thread may use the engine's sessions, other than the one that made them."""

    def describe(self) -> Description:
        """Return what the engine itself reports of its tensors, profiles and layers."""

    def close(self) -> None:
        """Free the engine."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class BuilderOptions:
    """Optional properties of a TensorRT engine.

    Args:
        version_compatible: the engine also runs on later TensorRT releases.
        hardware_compatible: the engine runs on every GPU from compute capability 8.0 on.
        aux_streams: number of streams for layers besides the main stream; None leaves the choice to TensorRT.
        sparsity: 2:4 sparse weights may run on sparse kernels.
        refit: the weights can be replaced.
        strip_weights: the engine holds no weights; opening it takes them from the ONNX file.
        weight_streaming: weights that don't fit on the GPU stay on the host and are streamed.
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
        """Return the options that differ from the default, by name."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in pairs if value is not None and value is not False}


OPSETS = {"fp16": 13, "int8": 13, "fp8": 19, "bf16": 22}
"""Lowest ONNX opset whose operators take a type (ONNX operator specification; for bf16 ModelOpt requires 22)."""


def option_flag(name: str) -> str:
    """Return the command line's spelling of an option."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Range:
    """Shapes that an input may have: the smallest, the one that kernels are chosen for, and the largest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class BuildPlan:
    """Everything that a builder needs to make one engine.

    Args:
        onnx: the model; axes that are to be fixed are fixed in it.
        name: file name of the engine.
        inputs, outputs: specs of the model; every axis of an input except the batch has a size.
        profiles: of the batch axis where it is open; a single N:N:N where it is fixed.
        external_weights: whether the model's weights are in a file next to it (models over 2 GB).
        workspace: bytes for the builder's tactics; None leaves TensorRT's own limit.
        opt_level: TensorRT's builder optimization level, 0 to 5; None leaves its default.
        timing_cache: file that is read where usable, and written after the build; None for a file in `cache_folder`,
            named after GPU and TensorRT version.
        cache_folder: folder of the default timing cache; None for no timing cache, unless `timing_cache` names one.
        own_kernels: whether the tactics of cuDNN and cuBLAS are left out.
        timing_iterations: runs that the time of a tactic is averaged over; None leaves TensorRT's own number (1).
        device: index of the GPU.
        tf32: whether float32 products may be computed in TF32.
        kinds: the reduced types in the graph (``fp16``, ``bf16``, ``int8``, ``fp8``).
        allowed: reduced types that layers may use although the graph doesn't request them.
        node_types: output type of each node in a graph of several float types, ``fp32`` or ``fp16``, by node name.
        options: optional properties of the engine.
        ranges: for a model without a batch whose inputs have other open axes: per profile, the shapes of every open
            input.
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
    """Result of a build: the engine file, the files next to it, and what is known of the engine."""

    file: Path
    companions: tuple[Path, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str
    tools: dict[str, str]
    device: dict[str, str]


@dataclass(frozen=True)
class Description:
    """What an opened engine reports about itself.

    Args:
        facts: ``input NAME``, ``output NAME`` (shape with ``?`` for open axes, dtype), ``profiles``, others.
        layers: (name, kind, precision, tactic) of each layer, in order; empty text where unknown.
    """

    facts: dict[str, str]
    layers: tuple[tuple[str, str, str, str], ...] = ()


class Builder(Protocol):
    """Builder of engine files from ONNX files."""

    @property
    def name(self) -> Literal["tensorrt", "onnxruntime"]:
        """Return the backend's name."""
        ...

    @property
    def suffix(self) -> str:
        """Return the suffix of the engine's file name."""
        ...

    @property
    def typed_alone(self) -> bool:
        """Return whether the types in the ONNX file alone decide, without flags of the builder."""

    def refuse(self, precision: str | None, options: BuilderOptions, device: int) -> None:
        """Raise where this backend, its release or this GPU can't do what is requested.

        Raises:
            PrecisionError: the message names the precision and what it needs.
            UsageError: the message names the option.
        """

    def build(self, plan: BuildPlan, folder: Path, progress: Progress) -> Built:
        """Write the engine into `folder`, and report each step to `progress`.

        Raises:
            BuildError: the model can't be built.
        """


def batch_of(inputs: Mapping[str, Array], specs: Sequence[TensorSpec]) -> int:
    """Return the batch size of the inputs.

    Raises:
        InputError: an input is missing, unknown or of another shape, or the batch axes disagree.
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
    """Return the fix for images in the other layout or for a sample without a batch axis; None where it is neither."""
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

    The cast would keep every value, but the rows would be meaningless, as with pixels of 0 to 255 for a model of
    normalised pixels.

    Args:
        dtype: numpy's name of the array's dtype.
        spec: the input.
        where: origin of the array, for the error.

    Raises:
        InputError: the message names both types.
    """
    fix = _integers_fix(dtype, spec)
    if fix is not None:
        raise InputError(f"{where and f'{where}: '}{spec.name} is {dtype} and the engine takes {spec.dtype}", fix)


def _integers_fix(dtype: str, spec: TensorSpec) -> str | None:
    if not dtype.startswith(("int", "uint")) or "float" not in spec.dtype:
        return None
    if dtype == "uint8":
        return (
            f"normalise it to {spec.dtype} as the model was trained; or give images (engine.predict, infer "
            "`input='FOLDER/'`, a Predictor's column 'image'); or build with `fuse_preprocess` for an engine of uint8"
        )
    return f"cast it yourself if that is meant: array.astype({spec.dtype!r})"


def array_fix(dtype: str, shape: tuple[int, ...], spec: TensorSpec) -> str:
    """Return the fix for a saved array of another shape, and for its dtype where that is wrong too."""
    other = f"save it as {spec.dtype}" if spec.fits(shape) else "save an array of this shape"
    steps = (layout_fix(shape, spec) or other, _integers_fix(dtype, spec))
    return "; and ".join(step for step in steps if step is not None)


def conform(array: Array, spec: TensorSpec, where: str = "") -> Array:
    """Return the array C-contiguous and in the input's dtype; the same array where it is so already.

    Args:
        array: of the shape that the input takes.
        spec: the input.
        where: origin of the array, for the error.

    Raises:
        InputError: the cast would change a value (float64 noise to float32, 2**40 to int32).
    """
    dtype = numpy_dtype(spec.dtype)
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    with np.errstate(all="ignore"):
        cast = np.ascontiguousarray(array, dtype=dtype)
        back = cast.astype(array.dtype)
    if not np.can_cast(array.dtype, dtype, "safe"):
        equal = np.array_equal(back, array, equal_nan=array.dtype.kind not in "iub" and spec.is_float)
        if not equal or not np.array_equal(cast < 0, array < 0):  # 2**63 survives uint64 → int64 → uint64
            raise InputError(
                f"{where and f'{where}: '}{spec.name} is {array.dtype} and the engine takes {dtype}: the cast would "
                "change values",
                f"cast it yourself if that is meant: array.astype({str(dtype)!r})",
            )
    return cast
