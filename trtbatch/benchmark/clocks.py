"""Watch the GPU's clocks between timed runs, through NVML; nothing is ever set."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

from trtbatch.util import environment

__all__ = ["CLOCK_LIMIT", "REASONS", "ClockState", "ClockWatch", "fault"]

REASONS = {
    0x04: "software power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Bits of NVML's clock event reasons that make a GPU slower than it could be (``nvml.h``, ``nvmlClocksEventReason…``).
The other reasons (idle, a clock set by a user, sync boost) are no fault of a run."""

CLOCK_LIMIT = 0.05
"""Largest relative change of the SM clock over a chunk of samples that still counts as constant."""


@dataclass(frozen=True)
class ClockState:
    """State of a GPU: its SM clock in MHz, and NVML's reasons, as bits, for not running faster."""

    sm_mhz: int
    reasons: int


def fault(before: ClockState | None, after: ClockState | None) -> str | None:
    """Return why samples between two clock states are bad; None if they aren't, or if nothing is known."""
    if before is None or after is None:
        return None
    held = [name for bit, name in REASONS.items() if after.reasons & bit]
    if held:
        return ", ".join(held)
    if before.sm_mhz > 0 and abs(after.sm_mhz / before.sm_mhz - 1) > CLOCK_LIMIT:
        return "changed clock"
    return None


class ClockWatch:
    """Watch of one GPU's clocks. NVML stays open, since opening it takes longer than a query.

    Args:
        device: number of the GPU; None watches nothing, and neither does a machine without NVML.
    """

    def __init__(self, device: int | None = None) -> None:
        self._nvml: Any = None if device is None else environment.open_nvml()
        self._handle: Any = None
        if self._nvml is not None:
            try:
                self._handle = environment.nvml_handle(self._nvml, int(device or 0))
            except self._nvml.NVMLError:
                self.close()

    def look(self) -> ClockState | None:
        """Return the clocks now; None if NVML gives no answer."""
        nvml = self._nvml
        if nvml is None:
            return None
        try:
            clock = nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM)
            return ClockState(int(clock), int(nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle)))
        except (nvml.NVMLError, AttributeError):  # this GPU or NVML release lacks the query, so never ask again
            self.close()
            return None

    def close(self) -> None:
        """Close NVML."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    def __enter__(self) -> ClockWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
