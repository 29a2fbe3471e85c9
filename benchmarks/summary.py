"""Write results in the form that is committed: what was run, on what, and the figures that the documentation shows.

Raw samples and rounds are left out; to check a figure, measure it again. A file has at most 5 KB, which
``tests/test_readme.py`` checks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtbatch.backends import tensorrt
from trtbatch.util import environment

__all__ = ["machine", "text", "write"]


def machine() -> dict[str, Any]:
    """Return the GPU that runs engines here, the driver, the commit and the versions."""
    device: dict[str, str] = {}
    if tensorrt.obstacle() is None:
        from trtbatch.backends.tensorrt.buffers import device_facts

        device = device_facts()
    return {"device": device, "environment": environment.describe()}


def text(data: Mapping[str, Any]) -> str:
    """Return a result as JSON: a line for each entry, and for each item of a list that holds more than numbers."""
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {_value(value)}" for key, value in data.items()) + "\n}\n"


def write(path: Path, data: Mapping[str, Any]) -> None:
    """Write a result to a file."""
    path.write_text(text(data), encoding="utf-8")


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)) and any(isinstance(each, (dict, list, str)) for each in value):
        return "[\n" + ",\n".join(f"  {json.dumps(each, ensure_ascii=False)}" for each in value) + "\n ]"
    return json.dumps(value, ensure_ascii=False)
