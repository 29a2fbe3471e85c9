"""Where a model's weights come from: torchvision's cache or download, a file, or a seed."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trtbatch.errors import ModelError, UsageError
from trtbatch.util import optional
from trtbatch.util.log import warn

__all__ = ["CONNECT_TIMEOUT", "blank", "first_line", "fitted", "load_into", "pretrained", "seeded", "state_dict"]

CONNECT_TIMEOUT = 10.0
"""Seconds that a download of weights may take to answer."""


def pretrained(model: str, default: Any, weights: str, seed: int) -> tuple[Any, str]:
    """Return a torchvision model with its pretrained weights, and the label of what it got.

    Where they are neither cached nor to be downloaded, ``auto`` goes on with seeded random ones and warns.

    Raises:
        ModelError: `weights` is ``pretrained`` and they can't be had.
    """
    from torchvision import models

    try:
        with _connect_timeout(CONNECT_TIMEOUT):
            return models.get_model(model, weights=default), f"pretrained ({default})"
    except Exception as error:  # no network, a broken download, a full disk: whatever stops it, the reason is shown
        torch = optional.require("torch", "export a model")
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        file = default.url.rpartition("/")[2]
        if weights == "pretrained":
            raise ModelError(
                f"pretrained weights of {model} can't be had: {first_line(error)}",
                f"put {file} into {cache}{os.sep} (from {default.url}), or pass `weights='random'`",
            ) from error
        warn(
            f"RANDOM WEIGHTS: {model}'s pretrained weights are not cached and can't be downloaded "
            f"({first_line(error)}); predictions mean nothing, timings do. "
            f"For real ones put {file} into {cache}{os.sep}"
        )
        return seeded(model, seed), f"random (seed {seed})"


def seeded(model: str, seed: int) -> Any:
    """Return a torchvision model with random weights, the same for the same seed.

    Weights that torchvision starts at zero (the heads of its vision transformers) are drawn from N(0, 0.02²), as
    these models start all others: outputs that don't depend on the input would make every check pass.
    """
    torch = optional.require("torch", "export a model")
    torch.manual_seed(seed)
    module = blank(model)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1 and not parameter.any():
                parameter.normal_(0.0, 0.02)
    return module


_AS_TRAINED = {"transform_input": True, "init_weights": False}
"""Inception and GoogLeNet were trained on other means and deviations, which their pretrained builders undo; weights
from a file need that as well. Their own initialisation only slows the start, and warns."""


def blank(model: str, **options: Any) -> Any:
    """Return a torchvision model without weights, otherwise built as for its pretrained ones."""
    from torchvision import models

    own = _AS_TRAINED if model in ("inception_v3", "googlenet") else {}
    return models.get_model(model, weights=None, **own, **options)


@contextmanager
def _connect_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def fitted(model: str, module: Any, file: str) -> tuple[Any, bool]:
    """Return the torchvision model with the state dict of `file`, and whether its head was resized to other classes.

    Raises:
        ModelError: the file holds no state dict, or another model's.
    """
    state = state_dict(file)
    own = module.state_dict()
    differing = [(key, value) for key, value in state.items() if key in own and own[key].shape != value.shape]
    sizes = {(own[key].shape[:1], value.shape[:1]) for key, value in differing}
    resized = len(sizes) == 1  # only the head's weight and bias differ, by their number of classes
    if resized:
        module = blank(model, num_classes=differing[0][1].shape[0])
    load_into(module, state, file, model)
    return module, resized


def state_dict(file: str) -> dict[str, Any]:
    """Tensors of a state dict, read with ``weights_only=True``; usual wrappings and prefixes are removed.

    Raises:
        UsageError: no such file.
        ModelError: the file holds no state dict.
    """
    torch = optional.require("torch", "read weights")
    path = Path(file)
    if not path.is_file():
        raise UsageError(
            f"`weights={str(file)!r}`: no such file", "pass auto, pretrained, random, or the file of a state dict"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"{file} is not a file of tensors that torch reads safely ({type(error).__name__})",
            "save it with torch.save(model.state_dict(), FILE)",
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{file} holds no state dict", "save it with torch.save(model.state_dict(), FILE)")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def load_into(module: Any, state: dict[str, Any], file: str, model: str) -> None:
    """Load a state dict, every key of it.

    Raises:
        ModelError: it is another model's.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            f"the weights of {file} are not {model}'s: {' '.join(lines[1:3])[:300]}", "pass the file of this model"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without terminal codes."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
