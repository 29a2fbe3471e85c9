"""A record as a JSON file: atomically, lists of numbers on one line."""

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
    """Write a dataclass tree.

    Raises:
        OSError: the file can't be written.
    """
    text = json.dumps(encode(record), indent=1, ensure_ascii=False)
    with atomic_file(path) as made:
        made.write_text(_NUMBERS.sub(_one_line, text) + "\n", encoding="utf-8")


def _one_line(numbers: re.Match[str]) -> str:
    """A list of numbers on one line, instead of thousands."""
    return re.sub(r"\s+", "", numbers[0])
