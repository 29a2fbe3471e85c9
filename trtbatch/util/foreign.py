"""Let a program hide what other libraries print from C++; the library itself redirects nothing.

Exporters print pages when they fail, Ray prints advice to its makers, and the reason is in the exception that they
raise. The command line hides those pages, with :func:`hide_output`. A program that uses trtbatch as a library sees
them, unless it does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

__all__ = ["foreign_output", "hide_output"]

Hiding = Callable[[int], AbstractContextManager[object]]
"""A context manager for a file descriptor: 1 is standard output, 2 standard error."""


@dataclass
class _Hidden:
    hiding: Hiding


_STATE = _Hidden(lambda descriptor: nullcontext())


def foreign_output(descriptor: int) -> AbstractContextManager[object]:
    """Return the context in which another library may print to a file descriptor."""
    return _STATE.hiding(descriptor)


def hide_output(hiding: Hiding) -> None:
    """Set what hides the output of other libraries in this process."""
    _STATE.hiding = hiding
