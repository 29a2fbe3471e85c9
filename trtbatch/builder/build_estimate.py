"""Estimate the build time and plan size of an engine with several profiles from those of earlier builds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trtbatch.core import store
from trtbatch.core.batches import Profile
from trtbatch.core.sidecar import Artifact, Sidecar

__all__ = ["estimate_build"]

_SHARE = {"fp16": 0.5, "bf16": 0.5, "int8": 0.25, "fp8": 0.25}
"""Share of the bytes of the float32 weights that a precision keeps."""


def estimate_build(source: Artifact, precision: str | None, profiles: Sequence[Profile], folder: Path) -> str:
    """Return the expected build time and plan size in words.

    The estimate is based on the newest TensorRT engine in `folder` that was built from the same file. Each profile is
    tuned separately, so the time is that of one profile there times the number of profiles. The size is that of the
    weights plus, for each profile, what a profile's kernels took there. Without such an engine the text gives only the
    ratio to the time of one profile and a lower bound of the size.
    """
    many, name = len(profiles), "profile" if len(profiles) == 1 else "profiles"
    weights = source.sidecar.artifact.bytes * _SHARE.get(precision or "", 1.0)
    known = _earlier(source, precision, folder)
    if known is None:
        return (
            f"{many} {name}, each tuned by itself: about {many} times the build time of one; "
            f"at least {weights / 2**20:.0f} MiB"
        )
    sidecar = known.sidecar
    share = _SHARE.get(sidecar.precision.name, 1.0)
    seconds = float(sidecar.build.details["build_seconds"]) / len(sidecar.engine.profiles) * many
    kernels = max(0.0, sidecar.artifact.bytes - share * source.sidecar.artifact.bytes) / len(sidecar.engine.profiles)
    return (
        f"{many} {name}: about {seconds:.0f} s and {(weights + kernels * many) / 2**20:.0f} MiB, going by "
        f"{known.path.name} ({len(sidecar.engine.profiles)} in {sidecar.build.details['build_seconds']:.0f} s)"
    )


def _earlier(source: Artifact, precision: str | None, folder: Path) -> Artifact | None:
    """Return the newest engine of the same file, of the same precision if there is one."""
    own = source.sidecar.artifact.sha256
    engines = store.listed("engine", folder, tell=lambda words: None)
    found = [artifact for artifact in engines if _is_of(artifact.sidecar, own)]
    same = [each for each in found if each.sidecar.precision.asked == (precision or "default")]
    return max(same or found, key=lambda each: each.sidecar.build.created, default=None)


def _is_of(sidecar: Sidecar, sha256: str) -> bool:
    same = sidecar.source is not None and sidecar.source.sha256 == sha256
    return sidecar.engine.backend == "tensorrt" and same and "build_seconds" in sidecar.build.details
