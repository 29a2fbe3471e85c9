"""Parse the command line, call the library, print and exit; only this package imports Typer."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command ``trtbatch``."""
    try:
        from trtbatch.cli.app import main as run
    except KeyboardInterrupt:  # Ctrl-C during the imports, before any work
        sys.exit(130)
    run()
