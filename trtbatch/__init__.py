"""PyTorch vision models on TensorRT at any batch size: exported, built, proven for every row, timed, run.

Each stage is a function. It reads and writes files in ``engines/``, and returns what it did::

    trtbatch.export("resnet18")                    # torch → engines/resnet18_dynamic.onnx
    trtbatch.build(min=1, opt=16, max=32)          # → engines/resnet18_dynamic.engine
    trtbatch.bench(batches="1,2,4,...,32")         # → times, once the rows are right
    trtbatch.infer(input="IMAGES/", output="predictions.csv")

An engine as a function of arrays, tensors or images, at any batch size::

    with trtbatch.load("engines/resnet18_dynamic.engine") as engine:
        scores = engine(images)

Paths may be strings. Without an engine or an ONNX file, a function takes the newest one in ``engines/`` that fits.
Every function raises :class:`TrtbatchError` with the problem and a fix. Importing the package imports none of torch,
onnx, onnxruntime, tensorrt and pycuda.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, overload

from trtbatch.util.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from trtbatch.benchmark.bench import BenchResult
    from trtbatch.benchmark.paired import PairedResult, ProfilesResult
    from trtbatch.core.batches import Profile
    from trtbatch.core.preprocessing import Preprocessing
    from trtbatch.core.sidecar import Artifact
    from trtbatch.deployment.triton import Deployed
    from trtbatch.diagnostics.inspection import EngineReport, OnnxReport
    from trtbatch.diagnostics.preprocessor_report import PreprocessorReport
    from trtbatch.errors import TrtbatchError
    from trtbatch.exporter.models import ModelSpec
    from trtbatch.reporting.combined import Report
    from trtbatch.reporting.regression import Comparison
    from trtbatch.runtime.infer import InferResult
    from trtbatch.runtime.loaded import LoadedEngine
    from trtbatch.tuner.max_batch import MaxBatchResult
    from trtbatch.tuner.plan import PlanResult
    from trtbatch.tuner.tune import TuneResult
    from trtbatch.verification.verify import VerifyResult

__all__ = [
    "LoadedEngine",
    "ModelSpec",
    "Preprocessing",
    "TrtbatchError",
    "__version__",
    "bench",
    "build",
    "compare",
    "deploy_triton",
    "export",
    "infer",
    "inspect",
    "load",
    "plan",
    "report",
    "tune",
    "verify",
]

# From release 1.29 on, ONNX Runtime writes a device id into the user's cache folder and looks up a foreign host as soon
# as it is loaded. Child processes inherit the variable. A value that is set already stays: "0" switches telemetry on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

PathLike: TypeAlias = "str | Path"
Batches: TypeAlias = "int | str | Sequence[int]"
"""Batch sizes: ``[1, 2, 4]``, one number, or text as for the command line, ``"1,2,4,...,32"``."""

Progress: TypeAlias = Callable[[str, "float | None"], None]
"""Called with each step and its share done, 0 to 1; None where that isn't known."""

_CLASSES = {
    "LoadedEngine": "runtime.loaded",
    "ModelSpec": "exporter.models",
    "Preprocessing": "core.preprocessing",
    "TrtbatchError": "errors",
}

_MODULES = frozenset({"ray"})
"""Reached as attributes too, so that a pipeline needs ``import trtbatch`` alone: ``trtbatch.ray.Predictor``."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"trtbatch.{name}")
    home = _CLASSES.get(name)
    if home is None:
        raise AttributeError(f"module 'trtbatch' has no attribute {name!r}")
    return getattr(importlib.import_module(f"trtbatch.{home}"), name)


def export(
    model: PathLike,
    *,
    dynamic: bool = True,
    batch: int | None = None,
    input_shape: Sequence[int] | None = None,
    opset: int | None = None,
    exporter: Literal["torchscript", "dynamo"] | None = None,
    weights: PathLike = "auto",
    seed: int = 0,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    input_dtype: Literal["float32", "uint8"] = "float32",
    layout: Literal["NHWC", "NCHW"] | None = None,
    output: PathLike | None = None,
    trust_code: bool = False,
) -> Artifact:
    """Export a torch model to ONNX, and prove that its batch axis is what it says.

    ONNX Runtime runs the file at batches 1, 2, 3 and 7, and every row must agree with torch; else there is no file.

    Args:
        model: a torchvision name, ``package.module:factory``, or a ``.pt2`` file.
        dynamic: whether the batch axis takes any size.
        batch: batch size of an export that isn't dynamic; None is 1.
        input_shape: shape of one sample, without the batch axis; None takes the model's own.
        opset: ONNX opset; None is 17 for torchscript, which TensorRT 8.6 reads, and 18 for dynamo.
        exporter: which of torch's exporters; None is torchscript while torch has it.
        weights: ``auto``, ``pretrained``, ``random``, or a file.
        seed: seed of random weights and example inputs.
        input_names: names of the inputs, in order; empty takes the model's own.
        output_names: names of the outputs, in order; empty takes the model's own.
        input_dtype: ``uint8`` makes scale, mean and deviation the model's first nodes.
        layout: layout of uint8 images; None is ``NHWC``.
        output: path of the file; None is ``engines/NAME_dynamic.onnx`` or ``engines/NAME.onnx``.
        trust_code: whether to run the code that a ``.pt2`` file holds.

    Raises:
        UsageError: the model is unknown, or the arguments contradict each other.
        ModelError: the model can't be made or run.
        ExportError: the exporter failed, or rows of the file are wrong.

    Example:
        >>> trtbatch.export("mymodels:net", input_shape=(3, 8, 8))
        Artifact('engines/net_dynamic.onnx', input (batch_size, 3, 8, 8) float32, weights: as mymodels:net makes them
        (seed 0))
    """
    from trtbatch.exporter.export import ExportRequest
    from trtbatch.exporter.export import export as run

    _require(seed=(seed, *_SEEDS), batch=(batch, 1, None))
    return run(
        ExportRequest(
            model=str(model),
            dynamic=dynamic,
            batch=batch,
            input_shape=None if input_shape is None else tuple(input_shape),
            opset=opset,
            exporter=exporter,
            weights=str(weights),
            seed=seed,
            input_names=tuple(input_names),
            output_names=tuple(output_names),
            input_dtype=input_dtype,
            layout=layout,
            output=_path(output),
            trust_code=trust_code,
        )
    )


def build(
    onnx: PathLike | None = None,
    *,
    min: int | None = None,
    opt: int | None = None,
    max: int | None = None,
    static: int | None = None,
    profiles: Literal["auto"] | Sequence[Profile | str] = (),
    max_profiles: int | None = None,
    batches: Batches = (),
    backend: Literal["auto", "tensorrt", "onnxruntime"] = "auto",
    precision: str | None = None,
    io_precision: Literal["fp16"] | None = None,
    keep_fp32: Sequence[str] = (),
    calibration: PathLike | None = None,
    calibration_method: Literal["entropy", "max"] | None = None,
    tolerance: float | None = None,
    fuse_preprocess: Literal["NHWC", "NCHW"] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    verify: bool = True,
    tries: int = 1,
    workspace: int | None = None,
    opt_level: int | None = None,
    timing_cache: PathLike | None = None,
    keep_timings: bool = True,
    own_kernels: bool = False,
    timing_iterations: int | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    aux_streams: int | None = None,
    sparsity: bool = False,
    refit: bool = False,
    strip_weights: bool = False,
    weight_streaming: bool = False,
    output: PathLike | None = None,
    device: int = 0,
    progress: Progress | None = None,
) -> Artifact:
    """Build an engine from an ONNX file, and check its rows at min, opt and max of every profile.

    The engine appears complete or not at all.

    Args:
        onnx: ONNX file; None takes the newest in ``engines/`` that fits.
        min: smallest batch size of the one profile; None is 1.
        opt: batch size that the profile is tuned for; None is 16, or what lies between `min` and `max`.
        max: largest batch size of the profile; None is 32.
        static: the one batch size to build for.
        profiles: several profiles, ``"1:16:32"`` each, or ``"auto"``: one for each batch size of `batches`.
        max_profiles: largest number of profiles that ``"auto"`` makes.
        batches: batch sizes of interest: each needs a profile, and is timed on all that hold it.
        backend: ``tensorrt``, ``onnxruntime``, or ``auto``: TensorRT where it runs.
        precision: a precision, or ``best``: the fastest within `tolerance`; None leaves the file as it is.
        io_precision: type of the inputs and outputs; None keeps theirs.
        keep_fp32: names of nodes or operators that stay in float32.
        calibration: samples that set the ranges of int8 and fp8: folder, glob, ``.npy``, ``.npz``, or a number.
        calibration_method: how ranges are chosen; None is entropy.
        tolerance: largest L2-relative error of a row against the ONNX file; None is that of the precision.
        fuse_preprocess: layout of the uint8 images that the engine takes; None leaves its input as it is.
        shapes: sizes of axes other than the batch, by input.
        verify: whether to check the rows; the engine runs at min, opt and max either way.
        tries: number of builds, of which the fastest engine is kept.
        workspace: bytes that TensorRT's tactics may use; None is its own limit.
        opt_level: TensorRT's builder optimization level, 0 to 5.
        timing_cache: file of tactics' times; None is one in the engine's folder.
        keep_timings: whether to use a timing cache at all.
        own_kernels: whether to leave out the tactics of cuDNN and cuBLAS.
        timing_iterations: runs over which the time of a tactic is averaged.
        version_compatible: whether later releases of TensorRT can run the engine.
        hardware_compatible: whether other GPUs can run the engine.
        aux_streams: number of TensorRT's auxiliary streams.
        sparsity: whether to use 2:4 sparse weights as such.
        refit: whether weights can be exchanged.
        strip_weights: whether to leave the weights out; opening the engine takes the ONNX file's.
        weight_streaming: whether weights that don't fit on the GPU are streamed.
        output: path of the engine; None is ``engines/NAME.engine`` or ``engines/NAME.ort.onnx``.
        device: number of the GPU.
        progress: called with each step.

    Raises:
        UsageError, ArtifactError: arguments contradict each other, or there is no such file.
        ProfileError: the profiles don't hold a batch size of interest.
        BuildError: the backend refuses the model.
        RowsError: rows of the engine are wrong.

    Example:
        >>> trtbatch.build("model.onnx", min=1, opt=4, max=8, backend="onnxruntime")
        Artifact('engines/model.ort.onnx', onnxruntime fp32, profiles 1:4:8, weights: of model.onnx)
    """
    from trtbatch.backends.base import BuilderOptions
    from trtbatch.builder.build import build as run
    from trtbatch.builder.request import BuildRequest, choose_profiles

    _require(
        tries=(tries, 1, None),
        workspace=(workspace, 1, None),
        opt_level=(opt_level, 0, 5),
        timing_iterations=(timing_iterations, 1, None),
        aux_streams=(aux_streams, 0, None),
        max_profiles=(max_profiles, 1, None),
        device=(device, 0, None),
    )
    sizes = _batches(batches)
    return run(
        BuildRequest(
            onnx=_path(onnx),
            profiles=choose_profiles(min, opt, max, static, profiles, sizes, max_profiles),
            batches=sizes,
            static=static,
            backend=backend,
            workspace=workspace,
            opt_level=opt_level,
            timing_cache=_path(timing_cache),
            keep_timings=keep_timings,
            own_kernels=own_kernels,
            timing_iterations=timing_iterations,
            tries=tries,
            shapes={name: tuple(sizes) for name, sizes in (shapes or {}).items()},
            output=_path(output),
            verify=verify,
            precision=precision,
            io_precision=io_precision,
            fuse_preprocess=fuse_preprocess,
            keep_fp32=tuple(dict.fromkeys(keep_fp32)),
            calibration=None if calibration is None else str(calibration),
            calibration_method=calibration_method,
            tolerance=tolerance,
            options=BuilderOptions(
                version_compatible=version_compatible,
                hardware_compatible=hardware_compatible,
                aux_streams=aux_streams,
                sparsity=sparsity,
                refit=refit,
                strip_weights=strip_weights,
                weight_streaming=weight_streaming,
            ),
            device=device,
            progress=progress or _silent,
        )
    )


def infer(
    engine: PathLike | None = None,
    *,
    input: PathLike,
    batch: int | None = None,
    count: int | None = None,
    seed: int = 42,
    output: PathLike | None = None,
    topk: int = 5,
    strict: bool = False,
    reader: str = "auto",
    preprocessor: PathLike | None = None,
    cuda_graphs: bool = True,
    trace: PathLike | None = None,
    device: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> InferResult:
    """Predict a folder of images, or a file of samples, in order and with bounded memory.

    Args:
        engine: engine; None takes the newest in ``engines/`` that runs here.
        input: folder or glob of images, ``.npy``, ``.npz``, or ``random``.
        batch: batch size; one larger than every profile is run in pieces; None is the engine's best.
        count: largest number of samples.
        seed: seed of random samples.
        output: ``.npz``, ``.csv`` or ``.jsonl`` file of the results.
        topk: number of classes given for each sample.
        strict: whether the first unusable input ends the run; else it is skipped, and named.
        reader: reader of images: ``host`` is Pillow, ``dali`` NVIDIA DALI on the GPU of a TensorRT engine; or ``auto``.
        preprocessor: ``.pre.onnx`` or ``.pre.engine`` file that resizes and normalises images.
        cuda_graphs: whether batches may run as CUDA graphs.
        trace: ``.json`` file of what each thread did when, in Chrome's trace-event format.
        device: number of the GPU.
        progress: called with the number of inputs done, and of all.

    Raises:
        UsageError, ArtifactError: arguments contradict each other, or there is no such file.
        InputError: an input can't be used, where `strict`.
        ProfileError: no profile runs the batch size.

    Example:
        >>> result = trtbatch.infer("engines/model.ort.onnx", input="random", count=10, batch=4)
        >>> result.samples, dict(result.executed)
        (10, {4: 2, 2: 1})
    """
    from trtbatch.runtime.infer import InferRequest
    from trtbatch.runtime.infer import infer as run

    _require(batch=(batch, 1, None), count=(count, 1, None), seed=(seed, *_SEEDS), device=(device, 0, None))
    return run(
        InferRequest(
            engine=_path(engine),
            input=str(input),
            batch=batch,
            count=count,
            seed=seed,
            output=_path(output),
            topk=topk,
            strict=strict,
            device=device,
            cuda_graphs=cuda_graphs,
            reader=reader,
            preprocessor=_path(preprocessor),
            trace=_path(trace),
            progress=progress or (lambda done, total: None),
        )
    )


class _Timing(TypedDict, total=False):
    """Keyword arguments of :func:`bench` that its comparisons take too."""

    batches: Batches
    modes: Sequence[str] | None
    iterations: int | None
    min_time: float
    time_out: float | None
    max_noise: float
    warmup: float
    percentiles: Sequence[float]
    streams: int
    cuda_graphs: bool
    flush_l2: bool
    device: int
    progress: Progress | None


@overload
def bench(engine: PathLike | None = None, *, against: PathLike, **options: Unpack[_Timing]) -> PairedResult: ...
@overload
def bench(
    engine: PathLike | None = None, *, compare_profiles: Literal[True], **options: Unpack[_Timing]
) -> ProfilesResult: ...
@overload
def bench(engine: PathLike | None = None, *, profile: int | None = None, **options: Unpack[_Timing]) -> BenchResult: ...
@overload
def bench(
    engine: PathLike | None = None,
    *,
    profile: int | None,
    against: PathLike | None,
    compare_profiles: bool,
    **options: Unpack[_Timing],
) -> BenchResult | PairedResult | ProfilesResult: ...
def bench(
    engine: PathLike | None = None,
    *,
    batches: Batches = (1,),
    modes: Sequence[str] | None = None,
    iterations: int | None = None,
    min_time: float = 1.0,
    time_out: float | None = None,
    max_noise: float = 0.01,
    warmup: float = 200.0,
    percentiles: Sequence[float] = (90, 99),
    streams: int = 1,
    cuda_graphs: bool = True,
    flush_l2: bool = False,
    profile: int | None = None,
    against: PathLike | None = None,
    compare_profiles: bool = False,
    device: int = 0,
    progress: Progress | None = None,
) -> BenchResult | PairedResult | ProfilesResult:
    """Time an engine at each batch size, after its rows were checked there.

    With `against` or `compare_profiles` it compares instead, in turns, and returns the comparison.

    Args:
        engine: engine; None takes the newest in ``engines/`` that runs here.
        batches: batch sizes, in the order of measurement.
        modes: ``execute_v2``, ``run``, ``async``, ``graph``, ``latency`` or ``throughput``; None is the first of them.
        iterations: exact number of samples per result; None goes by time.
        min_time: seconds of timed runs per result, at least.
        time_out: seconds after which timing stops, stable or not; None is three times `min_time`.
        max_noise: largest half width of the median's 95 % interval, relative to the median, that counts as stable.
        warmup: milliseconds of runs before each result.
        percentiles: percentiles to report next to the median, 0 to 100.
        streams: sessions that run at the same time, for throughput.
        cuda_graphs: whether slots may run as CUDA graphs.
        flush_l2: whether to evict the GPU's L2 cache before each launch.
        profile: optimization profile; None is the fastest for each batch size.
        against: another engine, B, to compare with.
        compare_profiles: whether to compare the profiles that hold each batch size.
        device: number of the GPU.
        progress: called with each step.

    Raises:
        ProfileError: a batch size is outside every profile; nothing has run.
        UsageError: a mode or profile is unknown, or an argument doesn't fit the modes.
        RowsError: rows are wrong; there are no figures.

    Example:
        >>> result = trtbatch.bench("engines/model.ort.onnx", batches="1,2,...,4", iterations=5)
        >>> [line.batch for line in result.batches]
        [1, 2, 3, 4]
    """
    from trtbatch.benchmark import paired
    from trtbatch.benchmark.bench import bench as run
    from trtbatch.benchmark.request import BenchRequest

    _require(
        iterations=(iterations, 1, None),
        min_time=(min_time, 0, None),
        time_out=(time_out, 0, None),
        max_noise=(max_noise, 0, 1),
        warmup=(warmup, 0, None),
        device=(device, 0, None),
    )
    for each in percentiles:
        _require(percentiles=(each, 0, 100))
    request = BenchRequest(
        engine=_path(engine),
        batches=_batches(batches),
        modes=modes,
        iterations=iterations,
        min_time=min_time,
        warmup=warmup,
        percentiles=percentiles,
        device=device,
        progress=progress or _silent,
        max_noise=max_noise,
        time_out=time_out,
        streams=streams,
        cuda_graphs=cuda_graphs,
        flush_l2=flush_l2,
        profile=profile,
        against=_path(against),
        compare_profiles=compare_profiles,
    )
    if compare_profiles:
        return paired.compare_profiles(request)
    return run(request) if against is None else paired.compare_engines(request)


def verify(
    engine: PathLike | None = None,
    *,
    against: PathLike | None = None,
    batches: Batches = (),
    input: PathLike | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 42,
    trust_code: bool = False,
    device: int = 0,
    progress: Progress | None = None,
) -> VerifyResult:
    """Check every sample of an engine, against a reference and against itself; wrong rows are a result.

    Args:
        engine: engine; None takes the newest in ``engines/`` that runs here.
        against: ``onnxruntime``, ``torch``, an ``.onnx`` or ``.npz`` file, or ``none``; None is ONNX Runtime where the
            ONNX file is at hand.
        batches: batch sizes; none is min, opt and max of every profile.
        input: samples, as for :func:`infer`; None draws random ones.
        rtol: numpy's relative limit per element, instead of the tolerance of dtype and precision.
        atol: numpy's absolute limit per element.
        seed: seed of random samples, the same as :func:`infer`'s.
        trust_code: whether the ``.pt2`` program of the torch reference may run the code that it holds.
        device: number of the GPU.
        progress: called with each step.

    Raises:
        ProfileError: a batch size is outside every profile.
        UsageError, InputError, ArtifactError: the reference or the samples aren't there.

    Example:
        >>> trtbatch.verify("engines/model.ort.onnx", batches=[1, 8])
        VerifyResult('model.ort.onnx', right at batch 1, 8)
    """
    from trtbatch.verification.verify import VerifyRequest
    from trtbatch.verification.verify import verify as run

    _require(seed=(seed, *_SEEDS), device=(device, 0, None))
    return run(
        VerifyRequest(
            engine=_path(engine),
            against=None if against is None else str(against),
            batches=_batches(batches) or None,
            input=None if input is None else str(input),
            rtol=rtol,
            atol=atol,
            seed=seed,
            device=device,
            trust_code=trust_code,
            progress=progress or _silent,
        )
    )


class _Search(TypedDict, total=False):
    """Keyword arguments of :func:`tune` besides `max_batch_search`."""

    latency_ms: float | None
    percentile: float
    streams: Sequence[int]
    batches: Batches
    min_time: float
    cuda_graphs: bool
    save: bool
    device: int
    progress: Progress | None


@overload
def tune(
    engine: PathLike | None = None, *, max_batch_search: Literal[True], **options: Unpack[_Search]
) -> MaxBatchResult: ...
@overload
def tune(
    engine: PathLike | None = None, *, max_batch_search: Literal[False] = False, **options: Unpack[_Search]
) -> TuneResult: ...
@overload
def tune(
    engine: PathLike | None = None, *, max_batch_search: bool, **options: Unpack[_Search]
) -> TuneResult | MaxBatchResult: ...
def tune(
    engine: PathLike | None = None,
    *,
    latency_ms: float | None = None,
    percentile: float = 99.0,
    streams: Sequence[int] = (1,),
    batches: Batches = (),
    min_time: float = 1.0,
    cuda_graphs: bool = True,
    save: bool = True,
    device: int = 0,
    max_batch_search: bool = False,
    progress: Progress | None = None,
) -> TuneResult | MaxBatchResult:
    """Find the batch size with the largest throughput, within a latency budget if there is one.

    With `max_batch_search` it finds the largest batch that fits in memory instead.

    Args:
        engine: engine; None takes the newest in ``engines/`` that runs here.
        latency_ms: latency budget; None searches for throughput alone.
        percentile: percentile of the latency that must be under the budget.
        streams: numbers of batches in flight to try.
        batches: batch sizes to try, and no others; none takes the measured ones, and refines them.
        min_time: seconds of load for each choice, at least.
        cuda_graphs: whether batches may run as CUDA graphs.
        save: whether to write the choice to the engine's sidecar, where :func:`infer` takes it from.
        device: number of the GPU.
        max_batch_search: whether to find the largest batch that fits in memory; only `engine`, `cuda_graphs`, `device`
            and `progress` go with it.
        progress: called with each step.

    Raises:
        UsageError: an argument is out of range, or arguments contradict each other.
        TrtbatchError: no batch size is within the budget; the nearest is named.

    Example:
        >>> result = trtbatch.tune("engines/model.ort.onnx", batches=[1, 8], min_time=0.05)
        >>> result.chosen.batch in (1, 8)
        True
    """
    from trtbatch.tuner.tune import TuneRequest
    from trtbatch.tuner.tune import tune as run

    _require(min_time=(min_time, 0, None), device=(device, 0, None))
    return run(
        TuneRequest(
            engine=_path(engine),
            latency_ms=latency_ms,
            percentile=percentile,
            streams=streams,
            batches=_batches(batches) or None,
            min_time=min_time,
            save=save,
            device=device,
            cuda_graphs=cuda_graphs,
            max_batch_search=max_batch_search,
            progress=progress or _silent,
        )
    )


def plan(
    engine: PathLike | None = None,
    *,
    traffic: PathLike,
    max_profiles: int = 8,
    from_table: bool = False,
    save: bool = True,
    device: int = 0,
    progress: Progress | None = None,
) -> PlanResult:
    """Choose the optimization profiles that serve a traffic in the least time.

    Args:
        engine: engine whose times are used; None takes the newest in ``engines/`` that runs here.
        traffic: CSV file of batch sizes and how often they come, with the header ``batch,count``.
        max_profiles: largest number of profiles.
        from_table: whether to use the times in the sidecar alone and run nothing.
        save: whether to write the plan to the engine's sidecar.
        device: number of the GPU.
        progress: called with each step.

    Raises:
        UsageError, InputError: an argument is out of range, or the file can't be read.

    Example:
        >>> result = trtbatch.plan("engines/model.ort.onnx", traffic="traffic.csv", max_profiles=2)
        >>> result.requests
        110
    """
    from trtbatch.tuner.plan import PlanRequest
    from trtbatch.tuner.plan import plan as run

    _require(max_profiles=(max_profiles, 1, None), device=(device, 0, None))
    return run(PlanRequest(Path(traffic), _path(engine), max_profiles, from_table, save, device, progress or _silent))


def compare(a: PathLike | BenchResult, b: PathLike | BenchResult, *, fail_if_slower: float | None = None) -> Comparison:
    """Compare two results of :func:`bench`: is B faster, slower or the same as A, batch size by batch size?

    Args:
        a: result, or a file that ``trtbatch bench --json`` wrote.
        b: result to judge.
        fail_if_slower: largest share of A's time that B may be slower by; None judges nothing.

    Raises:
        ArtifactError: a file is no result.
        UsageError: the results have no batch size in common.

    Example:
        >>> comparison = trtbatch.compare(result, result)
        >>> [line.ratio for line in comparison.lines]
        [1.0, 1.0, 1.0, 1.0]
    """
    from trtbatch.reporting.regression import compare_results

    _require(fail_if_slower=(fail_if_slower, 0, None))
    (name_a, result_a), (name_b, result_b) = _result(a), _result(b)
    return compare_results(result_a, result_b, (name_a, name_b), fail_if_slower)


def report(
    results: Sequence[PathLike | BenchResult],
    *,
    html: PathLike | None = None,
    png: PathLike | None = None,
    svg: PathLike | None = None,
    markdown: PathLike | None = None,
    article: bool | None = None,
) -> Report:
    """Lay results of :func:`bench` over each other: a table, charts, a page.

    Args:
        results: results, or files that ``trtbatch bench --json`` wrote.
        html: page that opens offline, with charts and tables.
        png: file of the charts.
        svg: file of the charts, scalable.
        markdown: file of the table.
        article: whether to add the article's V100 line; None adds it next to resnet18.

    Raises:
        ArtifactError: a file is no result.
        MissingPackageError: matplotlib is needed for PNG and SVG.

    Example:
        >>> trtbatch.report([result], markdown="table.md").written
        (PosixPath('table.md'),)
    """
    from trtbatch.errors import UsageError
    from trtbatch.reporting.combined import write_report

    if not results:
        raise UsageError("there are no results to report", "give at least one")
    read = [_result(each) for each in results]
    return write_report(read, _path(html), _path(png), _path(svg), _path(markdown), article)


def inspect(path: PathLike) -> OnnxReport | EngineReport | PreprocessorReport:
    """Report what is in an ONNX file, an engine or a preprocessor, and where its sidecar differs.

    Args:
        path: the file.

    Raises:
        ArtifactError: the file is none of these, or can't be read.

    Example:
        >>> trtbatch.inspect("model.onnx").dynamic
        True
    """
    from trtbatch.core.hints import refuse_other_file
    from trtbatch.core.store import is_engine
    from trtbatch.diagnostics.inspection import inspect_engine, inspect_onnx
    from trtbatch.diagnostics.preprocessor_report import inspect_preprocessor, is_preprocessor_file

    file = Path(path)
    refuse_other_file(file, None)
    if is_preprocessor_file(file):
        return inspect_preprocessor(file)
    return inspect_engine(file) if is_engine(file) else inspect_onnx(file)


def deploy_triton(
    engine: PathLike | None = None,
    *,
    repository: PathLike,
    name: str | None = None,
    instances: int | None = None,
    max_queue_delay_us: int | None = None,
    version: int = 1,
    force: bool = False,
    from_images: bool = False,
) -> Deployed:
    """Write a model folder for NVIDIA Triton from an engine and what was measured of it.

    Args:
        engine: engine; None takes the newest in ``engines/`` that runs here.
        repository: Triton's model repository; it is made where it isn't there.
        name: the model's name; None is the sidecar's.
        instances: copies that run at the same time; None takes the tuned number of streams, else 1.
        max_queue_delay_us: microseconds that a request may wait for others to share a batch with; None derives it from
            the tuned latency.
        version: version that is served from now on.
        force: whether to replace a version that is there.
        from_images: whether to write an ensemble too, which takes encoded images.

    Raises:
        UsageError, ArtifactError: Triton can't serve the engine, or the version is there.
        MissingPackageError: tritonclient isn't installed.

    Example:
        >>> trtbatch.deploy_triton("engines/model.ort.onnx", repository="models", name="net")
        Deployed('models/net', version 1)
    """
    from trtbatch.deployment.triton import TritonRequest, deploy

    _require(
        instances=(instances, 1, 1024),
        version=(version, 1, 2**31 - 1),
        max_queue_delay_us=(max_queue_delay_us, 0, 60_000_000),
    )
    return deploy(
        TritonRequest(
            engine=_path(engine),
            repository=Path(repository),
            name=name,
            instances=instances,
            max_queue_delay=max_queue_delay_us,
            version=version,
            force=force,
            from_images=from_images,
        )
    )


def load(path: PathLike | None = None, *, sessions: int = 1, device: int = 0, cuda_graphs: bool = True) -> LoadedEngine:
    """Open an engine as a function of arrays, tensors or images, for one thread or many.

    Arrays give arrays, tensors of torch and CuPy tensors of theirs, on the device of the inputs.

    Args:
        path: engine; None takes the newest in ``engines/`` that runs here.
        sessions: number of calls that run at the same time; further ones wait. Each session has memory of its own for
            activations and bindings on the GPU: as much as ``trtbatch build`` reported for one.
        device: number of the GPU.
        cuda_graphs: whether batches may run as CUDA graphs.

    Raises:
        ArtifactError, MissingPackageError, UsageError: the engine can't be opened here.

    Example:
        >>> with trtbatch.load("engines/model.ort.onnx") as engine:
        ...     engine(images).shape
        (20, 5)
    """
    from trtbatch.runtime.loaded import load as run

    return run(_path(path), sessions=sessions, device=device, cuda_graphs=cuda_graphs)


def _silent(step: str, share: float | None) -> None:
    """Report no progress."""


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)


def _batches(batches: Batches) -> tuple[int, ...]:
    """Return batch sizes as numbers.

    Raises:
        BatchListError: text that is no list of batch sizes.
        UsageError: what is no batch size.
    """
    from trtbatch.core.batches import MAX_BATCH, parse_batches
    from trtbatch.errors import UsageError

    sizes = parse_batches(batches) if isinstance(batches, str) else [batches] if isinstance(batches, int) else batches
    for size in sizes:
        if not 1 <= size <= MAX_BATCH:
            raise UsageError(f"`batches=[{size}]` is not a batch size", f"give 1 to {MAX_BATCH}")
    return tuple(sizes)


def _require(**ranges: tuple[float | None, float, float | None]) -> None:
    """Raise for a value outside its range; None is none.

    Args:
        ranges: value, smallest and largest, by argument; None for no largest.

    Raises:
        UsageError: naming the argument.
    """
    from trtbatch.errors import UsageError

    for name, (value, low, high) in ranges.items():
        if value is not None and not (low <= value < float("inf") and (high is None or value <= high)):
            fix = f"give {low} or more" if high is None else f"give {low} to {high}"
            raise UsageError(f"`{name}={value}` is out of range", fix)


_SEEDS = (0, 2**32 - 1)


def _result(given: PathLike | BenchResult) -> tuple[str, BenchResult]:
    from trtbatch.benchmark.bench import BenchResult
    from trtbatch.reporting.results import read_result

    return (given.engine, given) if isinstance(given, BenchResult) else (str(given), read_result(Path(given)))
