"""Define the fields that every timing result begins with: the engine, the settings, the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtbatch.core import store
from trtbatch.core.batches import Profile
from trtbatch.core.sidecar import Artifact, ModelRecord
from trtbatch.util import environment

__all__ = ["EngineUnderTest", "Run"]


@dataclass(frozen=True)
class EngineUnderTest:
    """Engine under test.

    Args:
        precision: the realized precision.
        tools: versions that built the engine.
    """

    engine: str
    backend: str
    precision: str
    model: ModelRecord
    profiles: tuple[Profile, ...]
    tools: dict[str, str]

    @staticmethod
    def fields_of(artifact: Artifact) -> dict[str, Any]:
        """Return the fields as keyword arguments, for subclasses with more of them."""
        sidecar = artifact.sidecar
        return {
            "engine": artifact.path.name,
            "backend": sidecar.engine.backend or "",
            "precision": sidecar.precision.realized or "",
            "model": sidecar.model,
            "profiles": sidecar.engine.profiles,
            "tools": sidecar.build.tools,
        }


@dataclass(frozen=True)
class Run(EngineUnderTest):
    """Engine under test, how it was timed, and on what.

    Args:
        timed: description of what one sample covers, by mode or number of streams.
        settings: settings of the request.
        device: device that the engine was built for.
        environment: the machine and the versions that timed the engine.
    """

    timed: dict[str, str]
    settings: dict[str, Any]
    device: dict[str, str]
    environment: dict[str, Any]
    created: str

    @staticmethod
    def of(artifact: Artifact, timed: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields as keyword arguments, as of now, for results with more of them."""
        return {
            **EngineUnderTest.fields_of(artifact),
            "timed": dict(timed),
            "settings": dict(settings),
            "device": artifact.sidecar.build.device,
            "environment": environment.describe(),
            "created": store.now(),
        }
