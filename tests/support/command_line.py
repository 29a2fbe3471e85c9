"""The command line in a folder, in this process: all that the black-box tests know of the package."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from trtbatch.cli.app import app

__all__ = ["CommandLine", "commands"]


@dataclass(frozen=True)
class CommandLine:
    """``trtbatch`` in `folder`."""

    folder: Path

    def run(self, *args: object) -> tuple[int, str]:
        """Run ``trtbatch ARGS``; return the exit code and standard output."""
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            result = CliRunner().invoke(app, [str(arg) for arg in args])
        finally:
            os.chdir(before)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout

    def succeed(self, *args: object) -> str:
        """Run ``trtbatch ARGS``, which must end with exit code 0; return standard output."""
        code, stdout = self.run(*args)
        assert code == 0, f"trtbatch {' '.join(map(str, args))} ended with {code}:\n{stdout}"
        return stdout

    def read(self, name: str) -> Any:
        """Return the JSON file `name`."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


def commands() -> dict[str, Any]:
    """Return the parser of each command, ``deploy triton`` among them, by its name."""
    found: dict[str, Any] = {}
    group: Any = typer.main.get_command(app)
    for name in group.commands:
        command = group.commands[name]
        inner = getattr(command, "commands", None)
        found.update({name: command} if inner is None else {f"{name} {each}": inner[each] for each in inner})
    return found
