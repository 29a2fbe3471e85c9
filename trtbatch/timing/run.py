"""What every result of timing begins with: which engine was timed, how, and on what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtbatch import artifacts, environment
from trtbatch.artifacts import Artifact, ModelRecord
from trtbatch.batches import Profile

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """An engine that was timed.

    Args:
        precision: as realised.
        timed: what one sample is, in words, by mode or number of streams.
        settings: as requested.
        tools, device: with which and for which the engine was built.
        environment: the machine and the versions that timed it.
    """

    engine: str
    backend: str
    precision: str
    model: ModelRecord
    profiles: tuple[Profile, ...]
    timed: dict[str, str]
    settings: dict[str, Any]
    tools: dict[str, str]
    device: dict[str, str]
    environment: dict[str, Any]
    created: str

    @staticmethod
    def of(artifact: Artifact, timed: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The fields, now, for a result that has more of them."""
        sidecar = artifact.sidecar
        run = Run(
            engine=artifact.path.name,
            backend=sidecar.backend or "",
            precision=sidecar.precision_realised or "",
            model=sidecar.model,
            profiles=sidecar.profiles,
            timed=dict(timed),
            settings=dict(settings),
            tools=sidecar.tools,
            device=sidecar.device,
            environment=environment.describe(),
            created=artifacts.now(),
        )
        return vars(run)
