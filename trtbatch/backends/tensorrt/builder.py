"""ONNX → TensorRT engine: parse, optimization profiles, build. The build can be interrupted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from trtbatch import optional
from trtbatch.artifacts import TensorSpec, atomic_file
from trtbatch.backends.base import BuildPlan, Built
from trtbatch.backends.tensorrt import buffers, compat
from trtbatch.errors import BuildError
from trtbatch.inspection import load_onnx
from trtbatch.notes import warn

__all__ = ["TensorRTBuilder"]

T = TypeVar("T")


class TensorRTBuilder:
    """Explicit batch, one optimization profile for each of the plan's, on the batch axis of every open input."""

    name: Literal["tensorrt"] = "tensorrt"
    suffix = ".engine"

    def build(self, plan: BuildPlan, folder: Path) -> Built:
        trt = optional.require("tensorrt", "build engines")
        device = buffers.Device()
        try:
            cache = _read_cache(plan.timing_cache)
            attempt = _Attempt(trt, plan)
            serialized = attempt.run(cache)
            if serialized is None and cache:
                warn(f"{plan.timing_cache}: unusable timing cache, built again without it ({attempt.complaint()})")
                attempt = _Attempt(trt, plan)
                serialized = attempt.run(b"")
            if serialized is None:
                raise BuildError(f"TensorRT builds no engine: {attempt.complaint()}", _advice(attempt.complaint()))
            file = folder / plan.name
            with file.open("wb") as stream:
                stream.write(memoryview(serialized))
            if plan.timing_cache is not None:
                _write_cache(plan.timing_cache, attempt.timing_cache())
            return Built(
                file, (), attempt.inputs, attempt.outputs, attempt.precision, _tools(trt), buffers.device_facts()
            )
        finally:
            device.close()


def _tools(trt: Any) -> dict[str, str]:
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
    if "memory" in complaint.lower():
        return "give it less to do: a smaller --max, --workspace 2GiB, or --opt-level 2"
    return "check the ONNX file: trtbatch build --backend onnxruntime runs the same model on the CPU"


class _Attempt:
    """One run of the builder, with its own logger, network and configuration."""

    def __init__(self, trt: Any, plan: BuildPlan) -> None:
        self._trt = trt
        self._plan = plan
        self._errors: list[str] = []
        self._tactics = 0
        self._monitored = False
        self._cancelled = threading.Event()
        self._logger = compat.make_logger(trt, self._log)
        self._config: Any = None
        self.inputs = plan.inputs
        self.outputs = plan.outputs
        self.precision = "fp32"

    def run(self, cache: bytes) -> Any | None:
        """The serialised engine, or None where TensorRT gives none (see :meth:`complaint`)."""
        builder = self._trt.Builder(self._logger)
        network = compat.create_network(self._trt, builder)
        self._parse(network)
        self._config = builder.create_builder_config()
        self._configure(builder, network, cache)
        serialized = self._interruptibly(lambda: builder.build_serialized_network(network, self._config))
        if serialized is not None:
            self._read_back(network)
        return serialized

    def _log(self, severity: str, message: str) -> None:
        if severity in ("INTERNAL_ERROR", "ERROR"):
            self._errors.append(" ".join(message.split()))
        elif severity == "VERBOSE" and not self._monitored and "Timing Runner" in message:
            self._tactics += 1  # before the progress monitor of TensorRT 10 this is the only sign of life
            self._plan.progress(f"timing tactics ({self._tactics} layers tried)", None)

    def complaint(self) -> str:
        return self._errors[-1] if self._errors else "it gave no reason"

    def _parse(self, network: Any) -> None:
        self._plan.progress("parsing the ONNX file", None)
        parser = self._trt.OnnxParser(network, self._logger)
        # The absolute path, because external weights are looked up beside it.
        if not parser.parse_from_file(str(self._plan.onnx.resolve())):
            nodes = [(node.name, node.op_type) for node in load_onnx(self._plan.onnx).graph.node]
            errors = [compat.parser_error(parser.get_error(index), nodes) for index in range(parser.num_errors)]
            raise BuildError(
                f"TensorRT's parser refuses {self._plan.onnx.name}: {'; '.join(errors[:3]) or self.complaint()}",
                f"export with operators and an opset that TensorRT {self._trt.__version__} reads (--opset 17)",
            )

    def _configure(self, builder: Any, network: Any, cache: bytes) -> None:
        plan, config, trt = self._plan, self._config, self._trt
        if plan.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan.workspace)
        if plan.opt_level is not None:
            config.builder_optimization_level = plan.opt_level
        self.precision = "tf32" if config.get_flag(trt.BuilderFlag.TF32) else "fp32"
        monitor = compat.make_progress_monitor(trt, plan.progress, self._cancelled.is_set)
        if monitor is not None:
            config.progress_monitor = monitor
            self._monitored = True
        self._set_cache(cache)
        is_open = any(spec.batch_axis is not None and spec.fixed_batch is None for spec in plan.inputs)
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
        made = self._config.create_timing_cache(cache)
        if made is None or not self._config.set_timing_cache(made, ignore_mismatch=False):
            warn(f"{self._plan.timing_cache}: unusable timing cache ignored ({self.complaint()})")
            self._config.set_timing_cache(self._config.create_timing_cache(b""), ignore_mismatch=False)

    def timing_cache(self) -> bytes:
        return bytes(memoryview(self._config.get_timing_cache().serialize()))

    def _read_back(self, network: Any) -> None:
        """The dtypes that TensorRT made of the model's (8.6 turns int64 into int32)."""
        outputs = [network.get_output(index) for index in range(network.num_outputs)]
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        dtypes = {tensor.name: compat.dtype_name(tensor.dtype) for tensor in (*inputs, *outputs)}
        self.inputs = tuple(_with_dtype(spec, dtypes) for spec in self._plan.inputs)
        self.outputs = tuple(_with_dtype(spec, dtypes) for spec in self._plan.outputs)

    def _interruptibly(self, work: Callable[[], T]) -> T | None:
        """Run `work` in a thread, so that Ctrl-C reaches the main thread while TensorRT is busy.

        TensorRT 10 and later are told to stop and waited for. 8.6 can't be stopped: the thread is left
        behind as a daemon, and the command line ends the process.
        """
        result: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                result.append(work())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=run, name="tensorrt-build", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.1)
        except BaseException:
            self._cancelled.set()
            if self._monitored:
                thread.join(60)
            raise
        if failure:
            raise BuildError(f"TensorRT failed: {failure[0]}", _advice(str(failure[0]))) from failure[0]
        return result[0]


def _with_dtype(spec: TensorSpec, dtypes: dict[str, str]) -> TensorSpec:
    return replace(spec, dtype=dtypes.get(spec.name, spec.dtype))
