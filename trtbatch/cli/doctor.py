"""Define the command ``trtbatch doctor``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from trtbatch.cli.console import Debug, out

__all__ = ["command"]

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


def command(
    json_: Annotated[bool, typer.Option("--json", help="The checks and all gathered facts, as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Look over this machine: driver, libraries in search order, packages, tools; one line each, with the fix.

    The exit code is 1 where there is a problem.
    """
    from rich.markup import escape

    from trtbatch.diagnostics.doctor import diagnose
    from trtbatch.diagnostics.system_info import gather
    from trtbatch.util.serialization import encode

    facts = gather()
    checks = diagnose(facts)
    if json_:
        print(json.dumps({"checks": encode(checks), "facts": encode(facts)}, indent=1))
    else:
        console = out()
        for check in checks:
            colour = _COLOURS[check.level]
            label = "OK" if check.level == "ok" else check.level
            console.print(f"[{colour}]{label:8}[/] {escape(check.what)}: {escape(check.found)}")
            if check.fix:
                console.print(f"         [bold]fix:[/] {escape(check.fix)}")
    if any(check.level == "problem" for check in checks):
        raise typer.Exit(1)
