"""What every result of timing begins with: which engine was timed, how, and on what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtbatch.core import store
from trtbatch.core.batches import Profile
from trtbatch.core.sidecar import Artifact, ModelRecord
from trtbatch.util import environment

__all__ = ["Contender", "Run"]


@dataclass(frozen=True)
class Contender:
    """An engine that was timed.

    Args:
        precision: as realised.
        tools: with which it was built.
    """

    engine: str
    backend: str
    precision: str
    model: ModelRecord
    profiles: tuple[Profile, ...]
    tools: dict[str, str]

    @staticmethod
    def fields_of(artifact: Artifact) -> dict[str, Any]:
        """The fields, for what has more of them."""
        sidecar = artifact.sidecar
        return {
            "engine": artifact.path.name,
            "backend": sidecar.backend or "",
            "precision": sidecar.precision_realised or "",
            "model": sidecar.model,
            "profiles": sidecar.profiles,
            "tools": sidecar.tools,
        }


@dataclass(frozen=True)
class Run(Contender):
    """One engine, how it was timed, and on what.

    Args:
        timed: what one sample is, in words, by mode or number of streams.
        settings: as requested.
        device: for which the engine was built.
        environment: the machine and the versions that timed it.
    """

    timed: dict[str, str]
    settings: dict[str, Any]
    device: dict[str, str]
    environment: dict[str, Any]
    created: str

    @staticmethod
    def of(artifact: Artifact, timed: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The fields, now, for a result that has more of them."""
        return {
            **Contender.fields_of(artifact),
            "timed": dict(timed),
            "settings": dict(settings),
            "device": artifact.sidecar.device,
            "environment": environment.describe(),
            "created": store.now(),
        }
