"""The command line: parse, call, print, exit code. Nothing else knows Typer."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Entry point of the command ``trtbatch``."""
    try:
        from trtbatch.cli.app import main as run
    except KeyboardInterrupt:  # Ctrl-C while the imports run, before anything has begun
        sys.exit(130)
    run()
