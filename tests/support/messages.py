"""What a refused command prints and leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def refused(result: Any, code: int, *told: str) -> None:
    """Assert one line of problem with these words, one of fix, and the exit code."""
    assert result.exit_code == code, result.output
    lines = result.output.strip().splitlines()
    assert lines[-2].startswith("error: "), result.output
    assert lines[-1].startswith("fix: "), result.output
    for words in told:
        assert words in lines[-2] + "\n" + lines[-1], result.output
    assert "Traceback" not in result.output


def nothing_left(folder: Path) -> bool:
    return not (folder / "engines").exists() or list((folder / "engines").iterdir()) == []
