"""Changes of an artifact's sidecar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trtbatch.util.files import sidecar_path

__all__ = ["change_sidecar"]


def change_sidecar(artifact: Path, **changes: Any) -> None:
    """Change fields; of `engine`, `build`, `source` and `precision`, the fields that are given."""
    beside = sidecar_path(artifact)
    data = json.loads(beside.read_text(encoding="utf-8"))
    for name, value in changes.items():
        parts = name in ("engine", "build", "source", "precision")
        data[name] = data.get(name, {}) | value if parts else value
    beside.write_text(json.dumps(data), encoding="utf-8")
