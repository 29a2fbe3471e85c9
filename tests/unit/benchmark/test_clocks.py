from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trtbatch.benchmark.clocks import REASONS, ClockState, ClockWatch, fault
from trtbatch.util import environment

FULL = ClockState(1980, 0)


@pytest.mark.parametrize("harmless", [0x1, 0x2, 0x10, 0x100])
def test_idle_and_clocks_that_somebody_set_are_no_fault(harmless: int) -> None:
    assert fault(FULL, ClockState(1980, harmless)) is None


@pytest.mark.parametrize(("bit", "name"), REASONS.items())
def test_what_slows_a_gpu_is_named(bit: int, name: str) -> None:
    assert fault(FULL, ClockState(1980, bit | 0x1)) == name
    assert fault(ClockState(1980, bit), FULL) is None, "it is over"


def test_several_reasons_are_all_named() -> None:
    assert fault(FULL, ClockState(1200, 0x8 | 0x40)) == "hardware slowdown, hardware thermal slowdown"


def test_a_clock_that_moves_by_more_than_a_twentieth_is_a_fault() -> None:
    assert fault(ClockState(2000, 0), ClockState(1901, 0)) is None
    assert fault(ClockState(2000, 0), ClockState(1890, 0)) == "changed clock"
    assert fault(ClockState(2000, 0), ClockState(2110, 0)) == "changed clock"


def test_nothing_known_is_no_fault() -> None:
    assert fault(None, FULL) is None
    assert fault(FULL, None) is None
    assert fault(ClockState(0, 0), FULL) is None


class FakeNvml:
    """One GPU; it stops answering after so many questions."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM = 1

    def __init__(self, answers: int, device: int = 0) -> None:
        self.answers = answers
        self.device = device
        self.open = 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        if index != self.device:
            raise self.NVMLError
        return SimpleNamespace(index=index)

    def nvmlDeviceGetClockInfo(self, handle: Any, clock: int) -> int:  # noqa: N802
        self.answers -= 1
        if self.answers < 0:
            raise self.NVMLError
        return 1500

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:  # noqa: N802
        return 4

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1


def test_nvml_is_opened_once_and_closed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(2)
    monkeypatch.setattr(environment, "open_nvml", lambda: nvml)
    with ClockWatch(0) as watch:
        assert watch.look() == watch.look() == ClockState(1500, 4)
        assert watch.look() is None, "it doesn't answer any more"
        assert watch.look() is None, "it doesn't answer any more"
    assert nvml.open == 0


def test_no_gpu_no_nvml_and_an_unknown_gpu_are_watched_as_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ClockWatch().look() is None
    nvml = FakeNvml(9)
    monkeypatch.setattr(environment, "open_nvml", lambda: nvml)
    assert ClockWatch(3).look() is None
    assert nvml.open == 0
    monkeypatch.setattr(environment, "open_nvml", lambda: None)
    with ClockWatch(0) as watch:
        assert watch.look() is None


@pytest.mark.parametrize(
    ("device", "visible", "named"),
    [(0, None, 0), (1, "", 1), (0, "3,1", 3), (1, "3, 1", 1), (0, "GPU-8f1c", "GPU-8f1c"), (2, "0,1", 2)],
)
def test_the_gpu_that_cuda_means_is_the_one_that_is_watched(device: int, visible: str | None, named: int | str) -> None:
    assert environment.visible_device(device, visible) == named
