"""Source → batches → engine → sink: overlapped, in order, at the true batch sizes, nothing lost, memory bounded."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends import engine_origin, open_engine, resolve_engine
from trtbatch.backends.base import Engine
from trtbatch.core import store
from trtbatch.core.batches import MAX_BATCH, refuse_outside
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.profiles import split_batch
from trtbatch.core.readers import choose_reader, refuse_reader
from trtbatch.core.sidecar import Artifact, Sidecar
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import InputError, ProfileError, UsageError
from trtbatch.images.dali import DaliReader
from trtbatch.images.preprocessor import OnnxPreprocessor, open_preprocessor
from trtbatch.runtime.feeds import DaliFeed, PreprocessorFeed, RowWriting
from trtbatch.runtime.pipeline import Busy, MakeFeed, Pipeline
from trtbatch.runtime.sinks import BestClasses, Prediction, Sink, best_classes, open_sink, refuse_topk
from trtbatch.runtime.sources import ImageSource, Skipped, Source, open_source
from trtbatch.util import files
from trtbatch.util.log import note, warn
from trtbatch.util.notebook import html_table
from trtbatch.util.trace import NO_TRACE, Recorder, open_trace

if TYPE_CHECKING:
    from trtbatch.backends.tensorrt.preprocess import TensorRTPreprocessor

__all__ = ["InferPlan", "InferRequest", "InferResult", "infer", "plan_infer", "predict"]

Array = NDArray[Any]

SHOWN = 10
"""Samples whose predictions are kept for the terminal."""

SATURATED = 0.5
"""Share of the time that the busiest stage works above which it is reported to bound the run."""


@dataclass(frozen=True)
class InferRequest:
    """What to predict, and with which engine.

    Args:
        engine: None takes the newest in ``engines/`` that runs here.
        input: folder or glob of images, ``.npy``, ``.npz``, or ``random``.
        batch: one larger than every profile is run in pieces; None is the engine's best.
        count: at most so many samples.
        output: ``.npz``, ``.csv`` or ``.jsonl``.
        topk: classes given for each sample; all of them where the model has fewer.
        strict: the first unusable input ends the run.
        device: number of the GPU.
        cuda_graphs: whether batches may run as CUDA graphs.
        reader: of images. ``host`` is Pillow in threads; ``dali`` is NVIDIA DALI, on the GPU of a TensorRT engine;
            ``auto`` takes DALI where it is installed and the engine is TensorRT's.
        preprocessor: ``.pre.onnx`` or ``.pre.engine`` file that resizes and normalises images in Pillow's place.
        trace: ``.json``, for what each thread did when, in Chrome's trace-event format.
        progress: told the number of inputs done, and of all.
    """

    engine: Path | None
    input: str
    batch: int | None = None
    count: int | None = None
    seed: int = 42
    output: Path | None = None
    topk: int = 5
    strict: bool = False
    device: int = 0
    cuda_graphs: bool = True
    trace: Path | None = None
    reader: str = "auto"
    preprocessor: Path | None = None
    progress: Callable[[int, int], None] = lambda done, total: None


@dataclass
class InferResult:
    """What was done: samples, unusable inputs, executed batch sizes, the first predictions.

    Args:
        seconds: wall time from the first read to the last row handed to the sink, the engine being loaded.
        executed: how often each batch size ran, as executed (padding included).
        unscored: samples whose class scores hold NaN, of those whose classes were sought.
        busy: share of `seconds` in which ``reading``, ``computing`` and ``writing`` worked rather than waited for
            each other.
        reader: that read the images: ``host``, ``dali``, or ``preprocessor``; None of other inputs.
        batch: the batch size that was chosen; the largest, where one is run in pieces.
        origins: where ``engine``, ``batch`` and ``reader`` came from, in words.
    """

    engine: str
    backend: str
    weights: str
    reader: str | None = None
    samples: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    executed: Counter[int] = field(default_factory=Counter)
    shown: list[tuple[str, list[Prediction]]] = field(default_factory=list)
    output: Path | None = None
    trace: Path | None = None
    seconds: float = 0.0
    unscored: int = 0
    busy: dict[str, float] = field(default_factory=dict)
    batch: int = 0
    origins: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        rate = self.samples / self.seconds if self.seconds else 0.0
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"InferResult({self.engine!r}, {self.samples} samples{skipped}, {rate:,.0f} samples/s)"

    def _repr_html_(self) -> str:
        rows = [[name, ", ".join(f"{each.name} {each.score:.1%}" for each in best)] for name, best in self.shown]
        return html_table(repr(self), ["input", "predictions"], rows)

    @property
    def bound(self) -> str:
        """In words, what to make faster: ``bound by computing (busy 97 %; reading 21 %, writing 2 %)``."""
        if not self.busy:
            return "bound by nothing: there were no samples"
        (first, most), *rest = sorted(self.busy.items(), key=lambda pair: -pair[1])
        others = ", ".join(f"{name} {100 * share:.0f} %" for name, share in rest)
        if most < SATURATED:
            return f"bound by no stage alone ({first} {100 * most:.0f} %, {others})"
        return f"bound by {first} (busy {100 * most:.0f} %; {others})"


def infer(request: InferRequest) -> InferResult:
    """Run everything in `request.input` through an engine.

    Raises:
        ProfileError: a batch that no profile holds, and that isn't larger than all of them.
        UsageError, InputError: an input that doesn't fit; with `strict`, the first unusable image.
        ExecutionError: the engine failed.
    """
    outputs = ((request.output, "", "`output`"), (request.trace, ".json", "`trace`"))
    files.refuse_outputs(*outputs, inputs=[Path(request.input)])
    with open_trace(request.trace, "trtbatch infer") as trace:
        plan = plan_infer(request, trace)
        if plan.reader is not None:
            now = time.perf_counter_ns()
            trace.record("reader", now, now, {"reader": plan.reader})
        return _run(plan, trace)


@dataclass(frozen=True)
class InferPlan:
    """Decisions of a run, made before it starts.

    Args:
        sizes: batch sizes to run, in turn.
        reader: reader of the images; None of other inputs.
        preprocessor: preprocessor engine that fills the input; None where the source or DALI does.
        origins: where the engine, the batch size and the reader came from, in words.
    """

    request: InferRequest
    artifact: Artifact
    source: Source
    sizes: tuple[int, ...]
    reader: str | None
    preprocessor: Artifact | None
    origins: dict[str, str]


def plan_infer(request: InferRequest, trace: Recorder = NO_TRACE) -> InferPlan:
    """Decide which engine, source, reader and batch sizes a request means; nothing is opened on a device.

    Raises:
        ProfileError: a batch that no profile holds, and that isn't larger than all of them.
        UsageError, InputError: an input that doesn't fit, or arguments that contradict each other.
        ArtifactError: no engine or preprocessor, or a damaged one.
    """
    refuse_topk(request.topk)
    artifact = resolve_engine(request.engine, () if request.batch is None else [request.batch])
    sidecar = artifact.sidecar
    sizes = _sizes(request.batch, sidecar, artifact.path.name)
    source = open_source(request.input, sidecar, request.count, request.seed, trace=trace)
    own = _preprocessor(request, source, artifact)
    reader = _reader(request, source, own, sidecar)
    if isinstance(own, OnnxPreprocessor) and isinstance(source, ImageSource):
        source = replace(source, preprocessor=own)
    origins = {
        "engine": engine_origin(request.engine),
        "batch": "given" if request.batch is not None else sidecar.engine.best_batch_from,
    }
    if reader is not None:
        origins["reader"] = "given" if request.reader != "auto" or own is not None else "auto"
    engine = own if isinstance(own, Artifact) else None
    return InferPlan(request, artifact, source, tuple(sizes), reader, engine, origins)


def _run(plan: InferPlan, trace: Recorder) -> InferResult:
    """Open what a plan names, and run it."""
    request, artifact, source = plan.request, plan.artifact, plan.source
    sidecar = artifact.sidecar
    for spec in sidecar.outputs:
        if spec.batch_axis is None:
            warn(f"output {spec.name!r} has no batch axis: it is not one row per sample, and is left out")
    result = InferResult(
        artifact.path.name,
        sidecar.engine.backend or "",
        sidecar.model.weights,
        plan.reader,
        output=request.output,
        trace=request.trace,
        batch=max(plan.sizes),
        origins=plan.origins,
    )
    with (
        open_sink(request.output, sidecar) as sink,
        open_engine(artifact, request.device) as engine,
        ExitStack() as opened,
    ):
        feed = None
        if isinstance(source, ImageSource) and plan.preprocessor is not None:
            preprocessor = opened.enter_context(open_preprocessor(plan.preprocessor, request.device))
            feed = _preprocessor_feed(source, preprocessor, trace)
        elif isinstance(source, ImageSource) and plan.reader == "dali":
            feed = _dali_feed(source, engine, plan.sizes, request.device, trace)
        predict(engine, source, sink, plan.sizes, request, result, trace, feed)
    return result


def _reader(
    request: InferRequest, source: Source, preprocessor: Artifact | OnnxPreprocessor | None, sidecar: Sidecar
) -> str | None:
    """Choose what reads the images.

    Raises:
        UsageError: no such reader; or DALI was asked for, and the input holds no images, or isn't one that DALI fills.
        MissingPackageError: DALI was asked for, and isn't installed.
    """
    refuse_reader(request.reader)
    if not isinstance(source, ImageSource):
        if request.reader == "dali":
            raise UsageError("`reader='dali'` is for images, and the input holds none", "leave it out")
        return None
    if preprocessor is not None:
        if request.reader == "dali":
            raise UsageError("`preprocessor` and `reader='dali'` both prepare the images", "leave one of them out")
        return "preprocessor"
    return choose_reader(request.reader, sidecar)


def _dali_feed(source: ImageSource, engine: Engine, sizes: Sequence[int], device: int, trace: Recorder) -> MakeFeed:
    """Let DALI fill the input: on the GPU of a TensorRT engine, else by its CPU operators."""
    on_gpu = isinstance(engine, RowWriting)

    def reader() -> DaliReader:
        gpu = device if on_gpu else None
        return DaliReader(source.preprocessing, source.spec, max(sizes), gpu, trace)

    writer = engine.row_writer() if isinstance(engine, RowWriting) else None
    return lambda skip, check: DaliFeed(source, reader, sizes, skip, check, writer)


def _preprocessor_feed(source: ImageSource, preprocessor: TensorRTPreprocessor, trace: Recorder) -> MakeFeed:
    return lambda skip, check: PreprocessorFeed(source, preprocessor, skip, check, trace)


def _preprocessor(request: InferRequest, source: Source, artifact: Artifact) -> Artifact | OnnxPreprocessor | None:
    """Return the preprocessor that fills the input: its engine, or one for the CPU, which the source calls.

    Raises:
        UsageError: one was named, and the input holds no images, or it is for another model's input or backend.
        ArtifactError: no preprocessor, or a damaged one.
    """
    path, sidecar = request.preprocessor, artifact.sidecar
    if path is None:
        return None
    if not isinstance(source, ImageSource):
        raise UsageError("`preprocessor` is for images, and the input holds none", "leave it out")
    if path.name.endswith(".engine"):
        if sidecar.engine.backend != "tensorrt":
            raise UsageError(f"{path} runs on a GPU, and {artifact.path} doesn't", "name the .pre.onnx file")
        own = store.load(path, "preprocessor")
        if not _fills(own.sidecar.outputs[0], own.sidecar.preprocessing, sidecar):
            raise _made_for_another(path, own.sidecar.model.name, artifact.path)
        note(f"preprocessor: {path}")
        return own
    preprocessor = OnnxPreprocessor(path, threads=1)  # the readers call it side by side
    record = preprocessor.record
    if not _fills(record.output, record.recipe, sidecar):
        raise _made_for_another(path, record.source.file, artifact.path)
    note(f"preprocessor: {path}, in ONNX Runtime")
    return preprocessor


def _fills(output: TensorSpec, recipe: Preprocessing | None, sidecar: Sidecar) -> bool:
    """Whether a preprocessor's output is a row of the only input of a model with this recipe."""
    spec = sidecar.inputs[0]
    same = output.dtype == spec.dtype and output.shape[1:] == spec.shape[1:]
    return same and len(sidecar.inputs) == 1 and spec.batch_axis == 0 and recipe == sidecar.preprocessing


def _made_for_another(path: Path, other: str, engine: Path) -> UsageError:
    return UsageError(
        f"{path} was made for {other}, whose input or preprocessing differs from that of {engine.name}",
        f"run: trtbatch export-preprocessor {engine}",
    )


def _sizes(batch: int | None, sidecar: Sidecar, name: str) -> list[int]:
    """Return the batch sizes to run, in turn: the one that was asked for, or what it is split into.

    Raises:
        ProfileError: no profile holds it, and it isn't larger than all of them.
    """
    if batch is None:
        return [sidecar.engine.best_batch]
    if batch <= max(profile.max for profile in sidecar.engine.profiles):
        refuse_outside(sidecar.engine.profiles, [batch], name)
        return [batch]
    if batch > MAX_BATCH:
        raise ProfileError(f"`batch={batch}` is over {MAX_BATCH}", f"pass one from 1 to {MAX_BATCH}")
    pieces = split_batch(batch, sidecar.engine.profiles, sidecar.engine.times)
    note(f"batch {batch} is larger than every profile of {name}: it runs as {_listed(pieces)}")
    return pieces


def _listed(pieces: Sequence[int]) -> str:
    """``32, 32, 32, 4``, or ``32 (31 times), 8`` where that would be long."""
    if len(pieces) <= 8:
        return ", ".join(map(str, pieces))
    return ", ".join(f"{size} ({times} times)" if times > 1 else f"{size}" for size, times in Counter(pieces).items())


def predict(
    engine: Engine,
    source: Source,
    sink: Sink,
    sizes: Sequence[int],
    request: InferRequest,
    result: InferResult,
    trace: Recorder = NO_TRACE,
    feed: MakeFeed | None = None,
) -> None:
    """Run a source through an open engine into a sink, at these batch sizes in turn, and note it in `result`.

    Raises:
        InputError: as :func:`infer`.
        ExecutionError: the engine failed.
    """

    def skip(item: Skipped) -> None:
        if request.strict:
            raise InputError(f"{item.name}: {item.reason}", "mend or remove it, or leave out `strict`")
        warn(f"skipped {item.name}: {item.reason}")
        result.skipped.append(item)

    sidecar = engine.sidecar
    pipeline = Pipeline(
        engine,
        sidecar.inputs,
        sidecar.engine.profiles,
        source,
        sizes,
        skip,
        cuda_graphs=request.cuda_graphs,
        trace=trace,
        feed=feed,
    )
    with pipeline as batches:
        for batch in batches:
            with pipeline.busy.writing, trace.span("sink", batch=batch.number, samples=len(batch.names)):
                _take(batch.names, _rows(batch.outputs, sidecar, len(batch.names)), sidecar, sink, request, result)
            result.executed[batch.executed] += 1
            request.progress(result.samples + len(result.skipped), source.total)
        ended = time.perf_counter()
    result.seconds = ended - pipeline.begun
    result.busy = _shares(pipeline.busy, result.seconds)
    if result.unscored:
        warn(
            f"the scores of {result.unscored} of {result.samples} samples are NaN: look at the inputs, and at the model"
        )


def _shares(busy: Busy, seconds: float) -> dict[str, float]:
    stages = {"reading": busy.reading, "computing": busy.computing, "writing": busy.writing}
    return {name: min(1.0, watch.seconds / max(seconds, 1e-9)) for name, watch in stages.items()}


def _rows(outputs: dict[str, Array], sidecar: Sidecar, count: int) -> dict[str, Array]:
    """Return the outputs that are one row per sample, batch axis first, padding trimmed."""
    return {
        spec.name: _first_rows(outputs[spec.name], spec, count)
        for spec in sidecar.outputs
        if spec.batch_axis is not None
    }


def _first_rows(output: Array, spec: TensorSpec, count: int) -> Array:
    moved: Array = np.moveaxis(output, spec.batch_axis or 0, 0)
    return moved[:count]


def _take(
    names: list[str],
    outputs: dict[str, Array],
    sidecar: Sidecar,
    sink: Sink,
    request: InferRequest,
    result: InferResult,
) -> None:
    """Hand a batch to the sink, and keep the first predictions; best classes are sought only where they are used."""
    room = max(0, SHOWN - len(result.shown))
    top = _top(outputs, sidecar, request.topk, len(names) if sink.wants_top else room)
    sink.write(names, outputs, top if sink.wants_top else None)
    result.samples += len(names)
    if top is not None:
        result.unscored += int(np.isnan(top.scores[:, 0]).sum())  # a NaN among a row's values makes all its scores NaN
        result.shown += zip(names, top.predictions(room))


def _top(outputs: dict[str, Array], sidecar: Sidecar, k: int, count: int) -> BestClasses | None:
    """Return the best classes of the first samples, where the first output is scores ``(N, C)`` with C ≥ 2."""
    if not outputs or count < 1:
        return None
    first = next(iter(outputs.values()))
    if first.ndim != 2 or first.shape[1] < 2 or first.dtype.kind != "f":
        return None
    return best_classes(first[:count], k, sidecar.classes)
