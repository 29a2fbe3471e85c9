"""An engine as a function: arrays, tensors or images in, arrays out, at any batch size.

::

    with trtbatch.load("engines/resnet18_dynamic.engine") as engine:
        scores = engine(images)                       # (N, 3, 224, 224) → (N, 1000), whatever N is
        best = engine.predict(["cat.jpg", "dog.jpg"])  # the best classes of each
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import LifoQueue
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends import open_engine, resolve_engine
from trtbatch.backends.base import Engine
from trtbatch.core.readers import image_input
from trtbatch.core.sidecar import Sidecar
from trtbatch.errors import InputError, UsageError
from trtbatch.images.host import ImageLike
from trtbatch.runtime.runner import Runner
from trtbatch.runtime.sinks import Prediction, refuse_topk, top_predictions
from trtbatch.util.log import note

__all__ = ["LoadedEngine", "load"]

Array = NDArray[Any]

MOST_SESSIONS = 64
"""Largest number of sessions; more are taken for a typing error."""


def load(
    path: str | Path | None = None, *, sessions: int = 1, device: int = 0, cuda_graphs: bool = True
) -> LoadedEngine:
    """Open an engine as a function; see :func:`trtbatch.load`.

    Raises:
        ArtifactError, MissingPackageError, UsageError: as :func:`trtbatch.backends.open_engine`.
    """
    if not 1 <= sessions <= MOST_SESSIONS:
        raise UsageError(f"sessions={sessions} is not a number of sessions", f"give 1 to {MOST_SESSIONS}")
    artifact = resolve_engine(None if path is None else Path(path))
    engine = open_engine(artifact, device)
    try:
        return LoadedEngine(engine, artifact.path.name, sessions, cuda_graphs)
    except BaseException:
        engine.close()
        raise


class LoadedEngine:
    """An open engine; call it from any thread, and :meth:`close` it or use it as a context manager.

    With one session, calls wait for one another. With several, as many calls run side by side. What a call returns is
    the caller's and outlives the engine.

    Args:
        engine: closed with this object.
        name: name of the artifact, for errors.
        sessions: number of calls that run at the same time; each has GPU memory of its own.
    """

    def __init__(self, engine: Engine, name: str, sessions: int = 1, cuda_graphs: bool = True) -> None:
        self.sidecar: Sidecar = engine.sidecar
        self._engine: Engine | None = engine
        self._name = name
        self._closing = threading.Lock()
        self._free: LifoQueue[Runner] = LifoQueue()  # the last used has its graphs and memory at hand
        self._runners: list[Runner] = []
        try:
            for _ in range(sessions):
                self._runners.append(Runner(engine, name, cuda_graphs))
        except BaseException:
            self._close_runners()
            raise
        for runner in reversed(self._runners):
            self._free.put(runner)
        bytes_each = sum(self.sidecar.build.details.get(f"{kind}_bytes", 0) for kind in ("activation", "binding"))
        if sessions > 1 and bytes_each:
            note(f"{name}: {sessions} sessions, each with up to {bytes_each / 2**20:,.0f} MiB on the GPU")

    def __repr__(self) -> str:
        sidecar = self.sidecar
        device = sidecar.build.device.get("gpu") or sidecar.build.device.get("cpu") or sidecar.engine.backend
        profiles = ", ".join(map(str, sidecar.engine.profiles))
        state = "" if len(self._runners) == 1 else f", {len(self._runners)} sessions"
        state += "" if self._engine is not None else ", closed"
        told = f"{sidecar.model.name!r}, {sidecar.precision.name}, profiles {profiles}, on {device}{state}"
        return f"LoadedEngine({told})"

    @contextmanager
    def _runner(self) -> Iterator[Runner]:
        """Wait for a session that is free, and use it in this thread for the block."""
        engine = self._opened()
        runner = self._free.get()
        try:
            if self._engine is None:  # closed while this call waited
                self._opened()
            with engine.entered():  # once a call, so that the session's own steps needn't
                yield runner
        finally:
            self._free.put(runner)

    def _opened(self) -> Engine:
        if self._engine is None:
            raise UsageError(f"{self._name} is closed", "load it again")
        return self._engine

    def __call__(self, inputs: Any = None, /, **named: Any) -> Any:
        """Run a batch of any size: ``engine(images)``, ``engine({"left": a, "right": b})`` or ``engine(left=a, …)``.

        Inputs are arrays, or whatever has ``__dlpack__``: a tensor in the host's memory is read where it lies
        (ONNX Runtime is given its address; for TensorRT it is copied once, to page-locked memory). A tensor on the
        GPU stays there, and so do the outputs.

        Returns:
            The output where there is one, else a dict by name. Tensors of torch and CuPy give tensors of theirs.

        Raises:
            InputError: another shape or type (integers for floats too), files in place of arrays, disagreeing batch
                sizes, a tensor on another device than the engine.
            UsageError: it is closed.
            ExecutionError: the engine failed.
        """
        outputs = self.run(self._named(inputs, named))
        return next(iter(outputs.values())) if len(self.sidecar.outputs) == 1 else outputs

    def _named(self, inputs: Any, named: Mapping[str, Any]) -> Mapping[str, Any]:
        if inputs is None:
            return named
        names = [spec.name for spec in self.sidecar.inputs]
        if named:
            raise InputError("inputs are given both by position and by name", "give all of them by name")
        if isinstance(inputs, Mapping):
            return inputs
        if len(names) != 1:
            raise InputError(
                f"{self._name} has the inputs {', '.join(names)}, and one array is given",
                "give a dict, or each by keyword",
            )
        return {names[0]: inputs}

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a batch as a call does, by names alone: every input in, every output out.

        Raises:
            InputError, UsageError, ExecutionError: as a call.
        """
        with self._runner() as runner:
            outputs = runner.run(inputs)
        kinds = {type(value).__module__.partition(".")[0] for value in inputs.values()}
        return {name: _as_given(output, kinds) for name, output in outputs.items()}

    def predict(self, images: Sequence[ImageLike], topk: int = 5, reader: str = "auto") -> list[list[Prediction]]:
        """Return the best classes of images, best first.

        Args:
            images: paths, Pillow images, encoded files, or pixels ``(H, W, 3)`` uint8, of any sizes.
            topk: classes given for each; all of them where the model has fewer.
            reader: ``host`` (Pillow), ``dali``, or ``auto``: DALI where it is installed and the engine is TensorRT's.

        Raises:
            InputError: an image that can't be used, by its number, and its path where it has one.
            UsageError: the model takes no images, its first output isn't class scores, or `topk` is below 1.
            MissingPackageError: DALI was asked for, and isn't installed.
        """
        refuse_topk(topk)
        self._opened()
        image_input(self.sidecar)
        first = self.sidecar.outputs[0]
        if first.batch_axis != 0 or len(first.shape) != 2 or not first.dtype.startswith("float"):
            raise UsageError(f"output {first} of {self._name} isn't class scores", "call the engine itself")
        if isinstance(images, (str, bytes, Path)):
            raise UsageError("predict takes a list of images, and was given one", "put it into a list: [image]")
        if not len(images):
            return []
        outputs, unusable = self.run_images(images, reader)
        for index, reason in unusable.items():
            image = images[index]
            which = f"image {index} ({os.fspath(image)})" if isinstance(image, (str, Path)) else f"image {index}"
            raise InputError(f"{which}: {reason}", "mend it, or leave it out")
        return top_predictions(outputs[first.name], topk, self.sidecar.classes)

    def run_images(self, images: Sequence[ImageLike], reader: str = "auto") -> tuple[dict[str, Array], dict[int, str]]:
        """Run images of any sizes, each prepared as the model's preprocessing says.

        Returns:
            The outputs of the images that could be used, in order, and the reason for each other, by its index.

        Raises:
            UsageError: the model takes no images, or there is no such reader.
            MissingPackageError: DALI was asked for, and isn't installed.
            ExecutionError: the engine failed.
        """
        with self._runner() as runner:
            return runner.run_images(images, reader)

    def close(self) -> None:
        """Wait for the calls that run, then free the sessions and the engine; a second call does nothing."""
        with self._closing:
            engine, self._engine = self._engine, None
        if engine is None:
            return
        for _ in self._runners:
            self._free.get()
        with ExitStack() as steps:
            steps.callback(engine.close)
            steps.callback(self._close_runners)
        for runner in self._runners:
            self._free.put(runner)  # calls that waited learn that it is closed

    def _close_runners(self) -> None:
        with ExitStack() as steps:
            for runner in self._runners:
                steps.callback(runner.close)

    def __enter__(self) -> LoadedEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_given(output: Any, kinds: set[str]) -> Any:
    """Return an output as a tensor of the library that the inputs are of, without a copy, on its device."""
    if "torch" in kinds:
        torch = sys.modules["torch"]
        return torch.as_tensor(output) if isinstance(output, np.ndarray) else torch.from_dlpack(output)
    if "cupy" in kinds and not isinstance(output, np.ndarray):
        return sys.modules["cupy"].from_dlpack(output)
    return output
