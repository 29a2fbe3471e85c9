"""Hide what other libraries print on the terminal of a command."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator

from trtbatch.util.foreign import hide_output

__all__ = ["hidden", "quiet_ray"]

_LEVEL = "RAY_BACKEND_LOG_LEVEL"


@contextlib.contextmanager
def hidden(descriptor: int) -> Iterator[None]:
    """Let a file descriptor lead nowhere for the block, and Python's stream on it too.

    Libraries print there from C++, past Python's streams.
    """
    redirect = contextlib.redirect_stdout if descriptor == 1 else contextlib.redirect_stderr
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ValueError):  # of a caller that has closed it
            (sys.stdout if descriptor == 1 else sys.stderr).flush()
            kept = os.dup(descriptor)
            stack.callback(os.close, kept)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, nowhere)
            os.dup2(nowhere, descriptor)
            stack.callback(os.dup2, kept, descriptor)
        stack.enter_context(redirect(_Nowhere()))
        yield


@contextlib.contextmanager
def quiet_ray() -> Iterator[None]:
    """Hide what Ray prints by Python's means, and let its C++ print nothing.

    Ray warns of its own future and of how to write pipelines for it. It prints what happened to tasks that it ran again
    on standard output, among the results. Where the variable is set, somebody wants to see what C++ prints.
    """
    if _LEVEL in os.environ:
        hide_output(lambda descriptor: contextlib.nullcontext())
    os.environ.setdefault(_LEVEL, "fatal")
    with warnings.catch_warnings(), contextlib.redirect_stdout(_Nowhere()):
        warnings.filterwarnings("ignore", module=r"ray(\.|$)")
        yield


class _Nowhere(io.TextIOBase):
    """Take text and drop it. It is never closed: threads of Ray may outlive the block."""

    def write(self, text: str) -> int:
        return len(text)
