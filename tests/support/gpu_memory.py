"""GPU memory that this process holds."""

from __future__ import annotations

import os
from typing import Any

from trtbatch.util import environment

__all__ = ["held_memory"]


def held_memory() -> int:
    """Return the bytes of GPU 0 that this process holds; those of all processes where the driver doesn't list them."""

    def ask(nvml: Any) -> int:
        handle = environment.nvml_handle(nvml, 0)
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        own = [each.usedGpuMemory for each in running if each.pid == os.getpid()]
        return int(own[0] if own and own[0] is not None else nvml.nvmlDeviceGetMemoryInfo(handle).used)

    found = environment.ask_nvml(ask)
    assert found is not None, "NVML doesn't tell how much memory is in use"
    return found
