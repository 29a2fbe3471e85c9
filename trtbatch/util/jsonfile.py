"""Write a record as a JSON file, atomically, with each list of numbers on one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from trtbatch.util.files import atomic_file
from trtbatch.util.serialization import encode

__all__ = ["write_record"]

_NUMBERS = re.compile(r"\[[-+0-9.eE,\s]+\]")


def write_record(record: Any, path: Path) -> None:
    """Write a dataclass tree as JSON.

    Raises:
        OSError: the file can't be written.
    """
    text = json.dumps(encode(record), indent=1, ensure_ascii=False)
    with atomic_file(path) as made:
        made.write_text(_NUMBERS.sub(_one_line, text) + "\n", encoding="utf-8")


def _one_line(numbers: re.Match[str]) -> str:
    """Return a list of numbers on one line instead of one line per number."""
    return re.sub(r"\s+", "", numbers[0])
