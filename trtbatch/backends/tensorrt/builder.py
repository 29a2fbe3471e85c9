"""Build a TensorRT engine from an ONNX file in a worker process.

A build takes minutes, can't be interrupted before TensorRT 10, and ends its process on some models (8.6.0 does on a
Range over the batch). With a worker, Ctrl-C kills the build, a crash becomes an error, and the GPU memory of the build
is free again before the engine first runs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from trtbatch.backends.base import OPSETS, BuilderOptions, BuildPlan, Built, Progress, option_flag
from trtbatch.backends.tensorrt import buffers, compat, numbers, wheel
from trtbatch.backends.tensorrt.worker import WorkerRequest
from trtbatch.errors import BuildError, PrecisionError, UsageError
from trtbatch.util import environment, optional
from trtbatch.util.log import warn
from trtbatch.util.serialization import decode, encode

__all__ = ["TensorRTBuilder", "cache_name", "refuse_precision"]


CAPABILITIES = {"int8": (6, 1), "bf16": (8, 0), "fp8": (8, 9)}
"""Lowest compute capability whose tensor cores take a type (TensorRT's support matrix).

TF32 runs as float32 where there is none, and float16 on every GPU that TensorRT supports.
"""


def refuse_precision(trt: ModuleType, precision: str | None, facts: dict[str, str]) -> None:
    """Raise where this TensorRT or this GPU can't compute in a precision.

    Raises:
        PrecisionError: the message says what the precision needs, and what is here.
    """
    if precision is None:
        return
    newest = compat.max_opset(trt.__version__)
    opset = OPSETS.get(precision, 0)
    if not compat.has_type(trt, precision) or (newest is not None and opset > newest):
        why = f" (it reads ONNX up to opset {newest}; {precision} takes {opset})" if newest and opset > newest else ""
        raise PrecisionError(
            f"TensorRT {trt.__version__} has no {precision}{why}",
            f"pass `precision='fp16'`, or install a newer one: {wheel(facts['driver_cuda'])}",
        )
    needed = CAPABILITIES.get(precision, (0, 0))
    if numbers(facts["compute_capability"]) < needed:
        raise PrecisionError(
            f"{precision} needs compute capability {needed[0]}.{needed[1]}; this is a {facts['gpu']} "
            f"({facts['compute_capability']})",
            "pass `precision='fp16'`, or build on a newer GPU",
        )


class TensorRTBuilder:
    """Builder of engines with an explicit batch and the plan's profiles on the batch axis of every open input."""

    name: Literal["tensorrt"] = "tensorrt"
    suffix = ".engine"

    @property
    def typed_alone(self) -> bool:
        """Return whether networks can be strongly typed; see :class:`trtbatch.backends.base.Builder`."""
        return compat.strongly_typed(optional.require("tensorrt", "build engines"))

    def refuse(self, precision: str | None, options: BuilderOptions, device: int) -> None:
        """Raise for unsupported requests; see :class:`trtbatch.backends.base.Builder`."""
        trt = optional.require("tensorrt", "build engines")
        buffers.refuse_device(device)
        facts = buffers.device_facts(device)
        refuse_precision(trt, precision, facts)
        for name in options.asked:
            if compat.missing_option(trt, name):
                raise UsageError(
                    f"{option_flag(name)}: TensorRT {trt.__version__} has no such option",
                    f"leave it out, or install a newer one: {wheel(facts['driver_cuda'])}",
                )

    def build(self, plan: BuildPlan, folder: Path, progress: Progress) -> Built:
        """Write the engine; see :class:`trtbatch.backends.base.Builder`."""
        buffers.refuse_device(plan.device)
        if plan.timing_cache is None and plan.cache_folder is not None:
            plan = replace(plan, timing_cache=plan.cache_folder / cache_name(plan.device))
        has_cache = plan.timing_cache is not None and plan.timing_cache.exists()
        try:
            return _run_worker(WorkerRequest(plan, folder), progress)
        except BuildError as error:
            if not has_cache:
                raise
            # TensorRT 8.6.0 can fail in Myelin with a timing cache of its own that it reads without complaint.
            warn(f"{plan.timing_cache}: the build fails with this timing cache, trying without ({error.problem})")
            return _run_worker(WorkerRequest(plan, folder, read_cache=False), progress)


def cache_name(device: int) -> str:
    """Return the name of the timing cache for this GPU and this TensorRT, because timings of others don't apply."""
    trt, facts = optional.require("tensorrt", "build engines"), buffers.device_facts(device)
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", facts["gpu"]).strip("-")
    return f"{gpu}-sm{facts['compute_capability'].replace('.', '')}-tensorrt{trt.__version__}.timing"


def _run_worker(request: WorkerRequest, progress: Progress) -> Built:
    """Start the worker, pass on its messages, and return what it built.

    Raises:
        BuildError: the worker failed or died.
    """
    file = request.folder / "request.json"
    file.write_text(json.dumps(encode(request)), encoding="utf-8")
    variables = os.environ | {"PYTHONPATH": environment.module_path()}
    command = [sys.executable, "-m", "trtbatch.backends.tensorrt.worker", str(file)]
    pipe = subprocess.PIPE
    log = request.folder / "worker.log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, text=True, env=variables) as worker,
    ):
        try:
            last = _listen(worker, progress)
        except BaseException:
            worker.kill()
            raise
    if "built" in last:
        return decode(Built, last["built"], "the worker's answer")
    if "failed" in last:
        raise BuildError(last["failed"], last["fix"])
    raise _died(worker.returncode, log)


def _listen(worker: subprocess.Popen[str], progress: Progress) -> dict[str, Any]:
    """Pass on progress and warnings until the worker closes its output, and return its last message."""
    last: dict[str, Any] = {}
    assert worker.stdout is not None
    for line in worker.stdout:
        last = json.loads(line)
        if "progress" in last:
            progress(last["progress"], last["share"])
        elif "warning" in last:
            warn(last["warning"])
    return last


def _died(code: int, log: Path) -> BuildError:
    how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    said = f": {lines[-1].strip()}" if lines else ""
    return BuildError(
        f"TensorRT's builder ended the build process {how}{said}",
        "this is a fault of TensorRT on this model: try another version, or `opt_level=2`",
    )
