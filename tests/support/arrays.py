"""Read the arrays that commands write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["read_npz"]


def read_npz(path: Path | str) -> dict[str, NDArray[Any]]:
    """Return the arrays of an ``.npz`` file by name, and close it."""
    with np.load(path) as archive:
        return dict(archive)
