"""The command line: parse, call, print, exit code. Nothing else knows Typer."""

from __future__ import annotations

from trtbatch.cli.app import app, main

__all__ = ["app", "main"]
