"""Which of the two readers prepares images for a model: Pillow on the host, or DALI."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbatch import optional
from trtbatch.errors import UsageError
from trtbatch.images.host import image_input

if TYPE_CHECKING:
    from trtbatch.artifacts import Sidecar

__all__ = ["READERS", "choose_reader"]

READERS = ("auto", "host", "dali")


def choose_reader(wanted: str, sidecar: Sidecar) -> str:
    """Return ``host`` or ``dali`` for a model of one image input.

    Args:
        wanted: ``auto``, ``host`` or ``dali``.

    Raises:
        UsageError: DALI was asked for, and doesn't fill such an input; or no such reader.
        MissingPackageError: DALI was asked for, and isn't installed.
    """
    if wanted not in READERS:
        raise UsageError(f"--reader {wanted} is no reader", f"pass {', '.join(READERS[:-1])} or {READERS[-1]}")
    spec, _ = image_input(sidecar)
    fits = spec.batch_axis == 0 and spec.dtype in ("float32", "float16", "uint8")
    if wanted == "dali":
        if not fits:
            raise UsageError(f"DALI doesn't fill the input {spec} of {sidecar.model.name}", "pass --reader host")
        optional.require("nvidia.dali", "read images with DALI")
    if wanted == "auto":
        found = fits and sidecar.backend == "tensorrt" and optional.is_installed("nvidia.dali")
        return "dali" if found else "host"
    return wanted
