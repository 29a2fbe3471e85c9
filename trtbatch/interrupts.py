"""Signals that come while C code calls back into Python: an exception raised there goes no further.

TensorRT's bindings print what a logger or an allocator raises, and go on. So what they call is marked, and a signal
that comes in it comes again a moment later.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import TypeVar

__all__ = ["called_back", "in_callback", "send_again"]

Called = TypeVar("Called", bound=Callable[..., object])

AGAIN = 0.05
"""Seconds; callbacks take less."""

_MARKED: set[CodeType] = set()


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
