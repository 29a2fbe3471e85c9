"""Predict the rows of files on a Ray cluster, and write the results as files.

::

    rows of the input ──▶ read (tasks) ──▶ predict (one actor a GPU, or K on the CPU) ──▶ write (tasks) ──▶ DIR

This process lists the rows in order and cuts them into blocks; Ray decides where everything else runs. Each block of
results becomes one file, which appears complete. Its name depends only on its rows, so a task that Ray repeats writes
the same file again. A row in a file is therefore done: the next run into the same DIR takes only the other rows,
whatever ended the run before.

pyarrow reads and writes the files on any of its file systems: this machine, ``s3://``, ``gs://``, ``hdfs://``. Code,
engine and local files must have the same path on every node.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trtbatch.backends import resolve_engine
from trtbatch.core.batches import refuse_outside
from trtbatch.core.readers import choose_reader
from trtbatch.core.sidecar import Artifact, Sidecar
from trtbatch.deployment.predictor import IMAGE_COLUMNS, PIXELS, READY, Predictor
from trtbatch.deployment.rayresults import audit, claim, done_rows, refuse_file_name, refuse_taken, write_rows
from trtbatch.deployment.rayrows import read_rows
from trtbatch.deployment.store import Kind, Store, list_rows, named, open_store
from trtbatch.errors import ExecutionError, UsageError
from trtbatch.runtime.sinks import refuse_topk
from trtbatch.util import optional
from trtbatch.util.foreign import foreign_output
from trtbatch.util.log import note
from trtbatch.util.text import shortened

__all__ = ["RayRequest", "RayResult", "infer_with_ray"]

BLOCK_ROWS = 512
"""Rows of a full block, rounded up to whole batches, and so of an output file.

A crash loses at most this much of each actor's work.
"""

CONNECT_S = 30.0
"""Seconds in which a cluster must answer; a running cluster takes two or three."""

KNOCK_S = 10.0
"""Seconds of these for the TCP connection."""


@dataclass(frozen=True)
class RayRequest:
    """Request to predict rows of files on a Ray cluster.

    Args:
        engine: engine file; None takes the newest in ``engines/``.
        input: folder or file of images, ``.npy`` or ``.parquet``: a path, or a URI that pyarrow knows.
        output: folder for the results: a path, or a URI that pyarrow knows.
        address: ``local`` starts Ray on this machine for this run, ``auto`` takes the cluster that runs here, anything
            else is a cluster's address.
        batch: batch size; None takes the engine's best.
        concurrency: number of actors; None is one per GPU, or one per node where the engine runs on the CPU.
        format: format of the files in `output`.
        topk: number of classes for each row; all of them where the model has fewer.
        count: most rows to predict; None is all.
        reader: image reader: ``host``, ``dali``, or ``auto``: DALI where it is installed and the engine is TensorRT's.
        progress: called with the number of rows done and of all rows; its standard output is hidden.
    """

    engine: Path | None
    input: str
    output: str
    address: str = "local"
    batch: int | None = None
    concurrency: int | None = None
    format: Literal["parquet", "jsonl"] = "parquet"
    topk: int = 5
    count: int | None = None
    cuda_graphs: bool = True
    reader: str = "auto"
    progress: Callable[[int, int], None] = lambda done, total: None


@dataclass
class RayResult:
    """Result of a run: the output folder and numbers of rows.

    Args:
        rows: rows that this run predicted, unusable ones included.
        before: rows that earlier runs had predicted.
        failed: rows with an error, from this run and earlier ones.
    """

    output: str
    rows: int = 0
    failed: int = 0
    before: int = 0


def infer_with_ray(request: RayRequest, predictor: type[Any] = Predictor) -> RayResult:
    """Predict every row of `request.input` that has no result in `request.output` yet.

    Args:
        request: what to predict, and where.
        predictor: class that runs in the actors.

    Raises:
        MissingPackageError: Ray isn't installed.
        UsageError: the input doesn't exist, the output folder is another job's, or no cluster is at the address.
        InputError: the rows don't fit the engine.
        ExecutionError: the job failed; its finished files stay, and the next run continues from them.
    """
    _refuse_random(request.input)
    optional.require("ray.data", "predict on a cluster")
    refuse_topk(request.topk)
    artifact = resolve_engine(request.engine)
    sidecar = artifact.sidecar
    batch = sidecar.engine.best_batch if request.batch is None else request.batch
    if batch <= max(profile.max for profile in sidecar.engine.profiles):
        refuse_outside(sidecar.engine.profiles, [batch], artifact.path.name)
    source, target = open_store(request.input, "`input`"), open_store(request.output, "`output`")
    refuse_file_name(target, request.output)
    kind, rows = list_rows(source, sidecar, request.count)
    made_with: dict[str, Any] = {"engine": sidecar.artifact.sha256, "model": sidecar.model.name}
    made_with |= {"format": request.format, "topk": request.topk}
    refuse_taken(target, request.output, made_with)
    done = done_rows(target).names
    waiting = [(path, row) for path, row in rows if named(source, path, row) not in done]
    result = RayResult(request.output, before=len(rows) - len(waiting))
    if result.before:
        note(f"{result.before} of {len(rows)} rows are in {request.output} already")
    if waiting:
        with connected(request.address), _translated():
            claim(target, request.output, made_with)
            _run(request, artifact, source, target, kind, waiting, batch, predictor, result)
    wanted, there = [named(source, path, row) for path, row in rows], done_rows(target)
    audit(wanted, there.names, request.output)
    result.failed = len(there.failed.intersection(wanted))
    return result


def _refuse_random(text: str) -> None:
    """Refuse random samples, unless a file or folder has that name.

    Raises:
        UsageError: `text` asks for random samples.
    """
    if text == "random" and not os.path.exists(text):
        fix = "leave out `address`, or name a folder or file of images, .npy or .parquet"
        raise UsageError("`input='random'` makes its samples on one machine, without `address`", fix)


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Start Ray or connect to it for the block, unless that is done already."""
    ray = optional.require("ray", "predict on a cluster")
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ended = threading.Event()
    try:
        with foreign_output(2):  # what Ray's C++ starts here keeps this standard error
            _connect(ray, address, ended)
        try:
            if threading.current_thread() is threading.main_thread():
                # Ray's C++ code has replaced Python's handler with one that prints a stack.
                signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
            yield
        finally:
            ray.shutdown()
    finally:
        ended.set()


def _connect(ray: Any, address: str, ended: threading.Event) -> None:
    """Start Ray or connect to it, in another thread.

    Ray may wait in C++ for minutes, where the main thread couldn't handle signals. In the main thread Ray would also
    replace this process's signal handlers.

    Args:
        ray: the module ``ray``.
        address: ``local``, ``auto`` or the address of a cluster.
        ended: keeps the thread alive until set: Linux ends Ray's processes with the thread that started them.

    Raises:
        UsageError: nothing answers at the address, or something other than Ray does.
    """
    options = {"include_dashboard": False} if address == "local" else {}
    done: Future[None] = Future()

    def work() -> None:
        try:
            _knock(os.environ.get("RAY_ADDRESS") or address if address == "auto" else address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)
            ended.wait()

    threading.Thread(target=work, name="trtbatch-ray", daemon=True).start()
    end = time.monotonic() + (math.inf if address == "local" else CONNECT_S)
    while not done.done() and time.monotonic() < end:
        wait([done], 0.1)  # short, because a signal delivered to another thread doesn't end the wait
    try:
        done.result(0)
    except Exception as error:
        told = shortened(str(error)) if done.done() else f"it gave no answer in {CONNECT_S:g} s"
        fix = "check host and port, start one (ray start --head), or pass `address='local'`"
        raise UsageError(f"no Ray cluster at {address}: {told}", fix) from error


def _knock(address: str) -> None:
    """Check that something listens at ``HOST:PORT``; Ray would wait longer and report less.

    Raises:
        ConnectionError: no TCP connection; the message gives host, port and the system's reason.
    """
    match = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:([0-9]{1,5})", address)
    if match is None:
        return
    host, port = match[1], int(match[2])
    try:
        socket.create_connection((host, port), KNOCK_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConnectionError(f"no TCP connection to port {port} of {host} ({reason})") from error


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Translate Ray's errors in the block, and hide Ray's progress bars and log.

    Raises:
        ExecutionError: the job failed; the message says what failed in a task.
    """
    ray = optional.require("ray", "predict on a cluster")
    data = optional.require("ray.data", "predict on a cluster")
    context = data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except ray.exceptions.RayError as error:
        problem, fix = failure_reason(error)
        raise ExecutionError(f"the Ray job failed: {problem}", fix) from error
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)


def failure_reason(error: Exception) -> tuple[str, str]:
    """Return problem and fix from the last exception in a task's traceback; Ray adds its own advice after it.

    An error of this package arrives as text only: ``module.Class: problem; fix``.
    """
    raised = re.findall(r"^(?!ray\.)\S*(?:Error|Exception)\b.*$", str(error), re.MULTILINE)
    last = raised[-1] if raised else f"{type(error).__name__}: {error}".splitlines()[0]
    own = re.match(r"trtbatch\.errors\.\w+: (.*?); (.*)", last)
    problem, fix = own.groups() if own else (last, "mend that, and run it again")
    return shortened(problem, 300), f"{fix}; what is done stays"


def _run(
    request: RayRequest,
    artifact: Artifact,
    source: Store,
    target: Store,
    kind: Kind,
    rows: Sequence[tuple[str, int]],
    batch: int,
    predictor: type[Any],
    result: RayResult,
) -> None:
    data = optional.require("ray.data", "predict on a cluster")
    pyarrow = optional.require("pyarrow", "predict on a cluster")
    actors, needs = _actors(artifact.sidecar, request.concurrency)
    # Blocks of whole batches, and enough of them for every actor.
    size = batch * max(1, math.ceil(min(BLOCK_ROWS, len(rows) / actors) / batch))
    # Paths travel as bytes: Arrow's text is UTF-8, and a file name need not be.
    blocks = [
        pyarrow.table(
            {"file": [path.encode("utf-8", "surrogateescape") for path, _ in part], "row": [row for _, row in part]}
        )
        for part in (rows[start : start + size] for start in range(0, len(rows), size))
    ]
    actors = min(actors, len(blocks))  # more would have nothing to do
    takes_images = kind == "images" or artifact.sidecar.preprocessing is not None
    # DALI decodes in the actors, on the engine's GPU; Pillow decodes in all reading tasks.
    encoded = takes_images and choose_reader(request.reader, artifact.sidecar) == "dali"
    reading = {"source": source, "kind": kind, "sidecar": artifact.sidecar, "encoded": encoded}
    settings = {
        "engine": str(artifact.path.absolute()),
        "topk": request.topk,
        "cuda_graphs": request.cuda_graphs,
        "reader": request.reader,
        "drop": ("file", "row", PIXELS, READY, *IMAGE_COLUMNS, *(spec.name for spec in artifact.sidecar.inputs)),
    }
    dataset = (
        data.from_arrow(blocks)
        .map_batches(read_rows, fn_kwargs=reading, batch_size=None)
        .map_batches(
            predictor,
            fn_constructor_kwargs=settings,
            batch_size=batch,
            compute=data.ActorPoolStrategy(size=actors),
            **needs,
        )
        .map_batches(write_rows, fn_kwargs={"target": target, "format": request.format}, batch_size=None)
    )
    for written in dataset.iter_batches(batch_size=None, prefetch_batches=0):
        result.rows += int(written["rows"].sum())
        request.progress(result.rows, len(rows))


def _actors(sidecar: Sidecar, wanted: int | None) -> tuple[int, dict[str, Any]]:
    """Return the number of actors, and the resources that Ray reserves for each.

    No actor reserves a CPU: actors on all CPUs would leave none to the reading and writing tasks, forever.

    Raises:
        UsageError: the engine is TensorRT's, and the cluster has no GPU.
    """
    ray = optional.require("ray", "predict on a cluster")
    if sidecar.engine.backend == "tensorrt":
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if gpus == 0:
            raise UsageError("the engine is TensorRT's, and the cluster has no GPU", "build for ONNX Runtime")
        return wanted or gpus, {"num_gpus": 1, "num_cpus": 0}
    nodes = sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
    return wanted or max(1, nodes), {"num_cpus": 0}
