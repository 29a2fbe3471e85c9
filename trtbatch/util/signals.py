"""Handle signals that arrive while C code calls back into Python, where an exception would be lost.

TensorRT's bindings print an exception of a logger or an allocator and continue; an extension module that is being
imported drops it. Such callbacks are marked, and a signal that arrives in one is sent again a moment later.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from types import CodeType, FrameType
from typing import TypeVar

__all__ = ["called_back", "in_callback", "send_again"]

Called = TypeVar("Called", bound=Callable[..., object])

AGAIN = 0.05
"""Seconds until a signal is sent again; callbacks take less."""

_MARKED: set[CodeType] = {
    # From Python 3.13 on, a look-up of an attribute that a module lacks reads a property of the module's spec. C code
    # that does this while its module starts, as ONNX Runtime's does, drops any exception.
    ExtensionFileLoader.create_module.__code__,
    ExtensionFileLoader.exec_module.__code__,
}


def called_back(function: Called) -> Called:
    """Mark a function that C code calls, where C code drops the function's exceptions."""
    _MARKED.add(function.__code__)
    return function


def in_callback(frame: FrameType | None) -> bool:
    """Return whether a marked function runs in `frame` or in one of its callers."""
    while frame is not None:
        if frame.f_code in _MARKED:
            return True
        frame = frame.f_back
    return False


def send_again(number: int) -> None:
    """Send the signal again after :data:`AGAIN` seconds."""
    timer = threading.Timer(AGAIN, signal.raise_signal, (number,))
    timer.daemon = True
    timer.start()
