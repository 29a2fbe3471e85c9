"""Build one engine in a separate process, which :mod:`trtbatch.backends.tensorrt.builder` starts.

    python -m trtbatch.backends.tensorrt.worker REQUEST.json

The request holds the plan and the folder to write into. Standard output carries JSON objects, one per line:
``progress``, ``warning``, and at the end ``built`` or ``failed``. The process ends when its standard input closes,
because its parent is gone then.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from trtbatch.backends.base import BuildPlan, Built, Progress
from trtbatch.backends.tensorrt import buffers, compat
from trtbatch.backends.tensorrt.protocols import (
    NetworkBuilder,
    NetworkDefinition,
    Serialized,
    TimingCache,
)
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import BuildError, TrtbatchError, from_os_error
from trtbatch.onnx_graph.read import load_onnx
from trtbatch.util import optional
from trtbatch.util.files import atomic_file
from trtbatch.util.log import LOGGER, warn
from trtbatch.util.serialization import decode, encode

__all__ = ["WorkerRequest", "main"]


@dataclass(frozen=True)
class WorkerRequest:
    """Task of the worker.

    Args:
        read_cache: whether the plan's timing cache is read; it is written either way.
    """

    plan: BuildPlan
    folder: Path
    read_cache: bool = True


def main(request_file: str) -> int:
    """Build, report to the parent on standard output, and return the exit code."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keeps what TensorRT or a plugin prints out of the messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(**message: Any) -> None:
        print(json.dumps(message), file=channel, flush=True)

    LOGGER.addHandler(_Forward(tell))
    try:
        request = decode(WorkerRequest, json.loads(Path(request_file).read_text(encoding="utf-8")), "request")
        built = _build(request, lambda words, share: tell(progress=words, share=share))
    except TrtbatchError as error:
        tell(failed=error.problem, fix=error.fix)
        return 1
    except OSError as error:
        error.filename = error.filename or str(request_file)
        mapped = from_os_error(error, "`output`")
        tell(failed=mapped.problem, fix=mapped.fix)
        return 1
    except Exception as error:
        tell(failed=f"{type(error).__name__}: {error}", fix=_advice(str(error)))
        return 1
    tell(built=encode(built))
    return 0


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock would abort the interpreter at exit
    os._exit(1)


class _Forward(logging.Handler):
    """Handler that sends warnings to the parent, which shows them."""

    def __init__(self, tell: Any) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(warning=record.getMessage())


def _build(request: WorkerRequest, progress: Progress) -> Built:
    trt = optional.require("tensorrt", "build engines")
    plan = request.plan
    with buffers.Device(plan.device).entered():
        attempt = _Attempt(trt, plan, progress)
        serialized = attempt.run(_read_cache(plan.timing_cache) if request.read_cache else b"")
        if serialized is None:
            raise BuildError(f"TensorRT builds no engine: {attempt.complaint()}", _advice(attempt.complaint()))
        file = request.folder / plan.name
        with file.open("wb") as stream:
            stream.write(memoryview(serialized))
        if plan.timing_cache is not None:
            _write_cache(plan.timing_cache, attempt.timing_cache())
        facts = buffers.device_facts(plan.device)
        return Built(file, (), attempt.inputs, attempt.outputs, attempt.precision, _tools(trt), facts)


def _tools(trt: ModuleType) -> dict[str, str]:
    tools = {"tensorrt": str(trt.__version__)}
    return tools | {name: found for name in ("pycuda", "onnx") if (found := optional.version(name))}


def _read_cache(path: Path | None) -> bytes:
    if path is None or not path.exists():
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        warn(f"{path}: timing cache ignored ({error.strerror})")
        return b""


def _write_cache(path: Path, data: bytes) -> None:
    try:
        with atomic_file(path) as made:
            made.write_bytes(data)
    except OSError as error:
        warn(f"{path}: timing cache not written ({error.strerror})")


def _advice(complaint: str) -> str:
    if "libnvinfer_lean" in complaint:
        return "put TensorRT's lean runtime next to it (pip install tensorrt-lean), or leave out `version_compatible`"
    if "mergeScales" in complaint:  # 8.6.0, on images as NCHW before a quantized layer
        return "take uint8 images as NHWC (`layout='NHWC'`), or floats (without `fuse_preprocess`)"
    if "memory" in complaint.lower():
        return "give it less to do: a smaller `max`, a smaller `workspace`, or `opt_level=2`"
    return "check the ONNX file: `trtbatch.build(backend='onnxruntime')` runs the same model on the CPU"


class _Attempt:
    """One run of the builder, with its own logger, network and configuration."""

    def __init__(self, trt: ModuleType, plan: BuildPlan, progress: Progress) -> None:
        self._trt = trt
        self._plan = plan
        self._progress = progress
        self._errors: list[str] = []
        self._tactics = 0
        self._monitored = False
        self._typed = False
        self._logger = compat.make_logger(trt, self._log)
        self._builder: NetworkBuilder = trt.Builder(self._logger)
        self._config = self._builder.create_builder_config()
        self.inputs = plan.inputs
        self.outputs = plan.outputs
        self.precision = "fp32"

    def run(self, cache: bytes) -> Serialized | None:
        """Return the serialised engine, or None where TensorRT gives none (see :meth:`complaint`)."""
        wants_types = bool(self._plan.kinds) or self._plan.options.weight_streaming  # streaming needs a typed network
        self._typed = wants_types and compat.strongly_typed(self._trt)
        network = compat.create_network(self._trt, self._builder, self._typed)
        self._parse(network)
        self._configure(network, cache)
        serialized = self._builder.build_serialized_network(network, self._config)
        if serialized is not None:
            self._read_back(network)
        return serialized

    def _log(self, severity: str, message: str) -> None:
        if severity in ("INTERNAL_ERROR", "ERROR"):
            self._errors.append(" ".join(message.split()))
        elif severity == "VERBOSE" and not self._monitored and "Timing Runner" in message:
            self._tactics += 1  # the only sign of life before the progress monitor of TensorRT 10
            self._progress(f"timing tactics ({self._tactics} layers tried)", None)

    def complaint(self) -> str:
        return self._errors[-1] if self._errors else "it gave no reason"

    def _parse(self, network: NetworkDefinition) -> None:
        self._progress("parsing the ONNX file", None)
        parser = self._trt.OnnxParser(network, self._logger)
        # The absolute path, because external weights are looked up next to the file.
        if not parser.parse_from_file(str(self._plan.onnx.resolve())):
            nodes = [(node.name, node.op_type) for node in load_onnx(self._plan.onnx).graph.node]
            errors = [compat.parser_error(parser.get_error(index), nodes) for index in range(parser.num_errors)]
            raise BuildError(
                f"TensorRT's parser refuses {self._plan.onnx.name}: {'; '.join(errors[:3]) or self.complaint()}",
                f"export with operators and an opset that TensorRT {self._trt.__version__} reads (`opset=17`)",
            )

    def _configure(self, network: NetworkDefinition, cache: bytes) -> None:
        plan, builder, config, trt = self._plan, self._builder, self._config, self._trt
        if plan.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan.workspace)
        if plan.opt_level is not None:
            config.builder_optimization_level = plan.opt_level
        compat.allow_types(trt, config, plan.tf32, () if self._typed else (*plan.kinds, *plan.allowed))
        if not self._typed:
            compat.honour_types(trt, config, network, plan.node_types)
        compat.set_options(trt, config, plan.options.asked)
        self.precision = "tf32" if plan.tf32 else "fp32"
        if plan.timing_iterations is not None:
            config.avg_timing_iterations = plan.timing_iterations
        if plan.own_kernels:
            compat.leave_out_libraries(trt, config)
        compat.keep_details(trt, config)
        compat.share_profiles(trt, config)
        self._monitored = compat.watch_progress(trt, config, self._progress)
        self._set_cache(cache)
        is_open = any(spec.batch_axis is not None and spec.fixed_batch is None for spec in plan.inputs)
        for ranges in plan.ranges:
            shapes = builder.create_optimization_profile()
            for name, given in ranges.items():
                shapes.set_shape(name, given.min, given.opt, given.max)
            if config.add_optimization_profile(shapes) < 0:
                raise BuildError(f"TensorRT refuses the shapes {ranges}: {self.complaint()}", "check the shapes")
        if plan.ranges:
            return
        for profile in plan.profiles:
            shapes = builder.create_optimization_profile()
            for spec in plan.inputs:
                if spec.batch_axis is not None and spec.fixed_batch is None:
                    shapes.set_shape(spec.name, spec.at(profile.min), spec.at(profile.opt), spec.at(profile.max))
            if is_open and config.add_optimization_profile(shapes) < 0:
                raise BuildError(f"TensorRT refuses the profile {profile}: {self.complaint()}", "check the shapes")

    def _set_cache(self, cache: bytes) -> None:
        if self._plan.timing_cache is None:
            return
        empty = self._config.create_timing_cache(b"")
        made = self._config.create_timing_cache(cache) if cache else empty
        # 8.6 accepts any bytes without an error, and makes an empty cache of those that it can't read.
        nothing = _serialized(empty)
        read = made is not None and (not cache or _serialized(made) != nothing or cache == nothing)
        if not read or not self._config.set_timing_cache(made, ignore_mismatch=False):
            warn(f"{self._plan.timing_cache}: unusable timing cache ignored")
            self._config.set_timing_cache(empty, ignore_mismatch=False)

    def timing_cache(self) -> bytes:
        """Return the timing cache as it is after the build."""
        return _serialized(self._config.get_timing_cache())

    def _read_back(self, network: NetworkDefinition) -> None:
        """Take over the dtypes that TensorRT gave the model's tensors (8.6 turns int64 into int32)."""
        outputs = [network.get_output(index) for index in range(network.num_outputs)]
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        dtypes = {tensor.name: compat.dtype_name(tensor.dtype) for tensor in (*inputs, *outputs)}
        self.inputs = tuple(_with_dtype(spec, dtypes) for spec in self._plan.inputs)
        self.outputs = tuple(_with_dtype(spec, dtypes) for spec in self._plan.outputs)


def _with_dtype(spec: TensorSpec, dtypes: dict[str, str]) -> TensorSpec:
    return replace(spec, dtype=dtypes.get(spec.name, spec.dtype))


def _serialized(cache: TimingCache) -> bytes:
    return bytes(memoryview(cache.serialize()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
