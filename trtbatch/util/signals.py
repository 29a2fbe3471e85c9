"""Signals that come while C code calls back into Python: an exception raised there goes no further.

TensorRT's bindings print what a logger or an allocator raises, and go on; an extension module that is being imported
drops it. So what they call is marked, and a signal that comes in it comes again a moment later.
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
"""Seconds; callbacks take less."""

_MARKED: set[CodeType] = {
    # From Python 3.13 on, asking a module for an attribute that it lacks reads a property of its spec. C code that asks
    # while its module starts, as ONNX Runtime's does, drops whatever is raised there.
    ExtensionFileLoader.create_module.__code__,
    ExtensionFileLoader.exec_module.__code__,
}


def called_back(function: Called) -> Called:
    """Mark a function that C code calls and whose exceptions it doesn't pass on."""
    _MARKED.add(function.__code__)
    return function


def in_callback(frame: FrameType | None) -> bool:
    """Whether a marked function is running in `frame` or has led to it."""
    while frame is not None:
        if frame.f_code in _MARKED:
            return True
        frame = frame.f_back
    return False


def send_again(number: int) -> None:
    """Let the signal come once more, a moment later."""
    timer = threading.Timer(AGAIN, signal.raise_signal, (number,))
    timer.daemon = True
    timer.start()
