"""Prepare an engine for timing: open it, check its rows, and make a loop for each of its modes.

Before it is timed, each mode runs once in exactly that way, and must give the rows of the run that was checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from trtbatch.backends import open_engine
from trtbatch.backends.base import Mode, Session, Slot
from trtbatch.benchmark.loops import Loop, latency_loop, mode_loop, throughput_loop
from trtbatch.benchmark.request import LATENCY, SLOT_MODES, THROUGHPUT, BenchRequest, PlannedEngine
from trtbatch.errors import UsageError
from trtbatch.verification.checks import RowChecker, fill_slot, require_same_rows, require_slots

__all__ = ["Harness", "open_harness"]

Array = NDArray[Any]


@dataclass(frozen=True)
class _Checked:
    """Batch of checked samples, and the outputs of a plain run of it."""

    batch: int
    inputs: dict[str, Array]
    outputs: dict[str, Array]


@contextmanager
def open_harness(planned: PlannedEngine, request: BenchRequest) -> Iterator[Harness]:
    """Open the engine and the sessions that the request needs.

    Raises:
        UsageError: the engine lacks a mode, or there is no cache to flush.
    """
    with ExitStack() as stack:
        engine = stack.enter_context(open_engine(planned.artifact, request.device))
        stack.enter_context(engine.entered())  # once, so that launches needn't do it
        sessions = [stack.enter_context(engine.session(request.cuda_graphs)) for _ in range(request.streams)]
        harness = Harness(planned, sessions, request)
        harness.refuse_request()
        yield harness


class Harness:
    """Test harness of one engine: its sessions, and the samples that its rows were checked with.

    Args:
        planned: the engine, and its profile at each batch size.
        sessions: sessions of the engine; all of them run throughput, and the first one runs everything else.
        request: settings of the timing.
    """

    def __init__(self, planned: PlannedEngine, sessions: Sequence[Session], request: BenchRequest) -> None:
        self.artifact = planned.artifact
        self.profiles = planned.profiles
        self.sidecar = planned.artifact.sidecar
        self._sessions = sessions
        self._request = request
        self._slots: list[Slot] = []
        self._checked: _Checked | None = None
        self._proven: set[tuple[int, str, int | None]] = set()
        self._use(request.profile)
        profile = None if request.profile is None else self.sidecar.engine.profiles[request.profile]
        self._checker = RowChecker(
            sessions[0],
            self.sidecar.inputs,
            self.sidecar.outputs,
            precision=self.sidecar.precision.name,
            smallest=self.sidecar.engine.corners[0] if profile is None else profile.min,
            largest=max(request.batches),
            seed=request.seed,
        )

    def refuse_request(self) -> None:
        """Raise if the engine can't be timed as requested.

        Raises:
            UsageError: names the unknown mode and the known ones, or the option.
        """
        session, wanted = self._sessions[0], self._request.modes
        session.bind(self._checker.inputs(self._request.batches[0]))  # the modes depend on the shapes
        names = (*session.modes(), *SLOT_MODES)
        unknown = [name for name in wanted or () if name not in names]
        if unknown:
            raise UsageError(
                f"this engine has no mode {unknown[0]!r}; it has {', '.join(names)}", f"pass `modes={list(names)}`"
            )
        if self._request.flush_l2 and session.flush is None:
            raise UsageError("`flush_l2` flushes the cache of a GPU, and this runs on the CPU", "leave out `flush_l2`")

    def require_rows(self) -> None:
        """Check the rows at every batch size.

        Raises:
            RowsError: names the first finding.
        """
        name, path = self.artifact.path.name, self.artifact.path
        for batch in self._request.batches:
            self._request.progress(f"{name}, batch {batch}: checking rows", None)
            self._checker.require(batch, name, f"its numbers would mean nothing; see trtbatch verify {path}")

    def modes(self, batch: int) -> Sequence[str]:
        """Return the requested modes, or the engine's default at this batch size."""
        if self._request.modes is not None:
            return self._request.modes
        self._plain_run(batch)
        return [next(iter(self._sessions[0].modes()))]

    def shapes(self, batch: int) -> dict[str, list[int]]:
        """Return the executed shape of every input and output."""
        checked = self._plain_run(batch)
        return {name: list(array.shape) for name, array in (checked.inputs | checked.outputs).items()}

    def loop(self, batch: int, mode: str, profile: int | None = None) -> Loop:
        """Return the loop of a mode, ready to run; it is valid until the next call.

        `profile` is the one to run on; None is that of the request.

        Raises:
            RowsError: the mode gives other rows than the run that was checked.
            UsageError: there is no such mode at this batch size.
        """
        checked = self._plain_run(batch)
        self._use(self._request.profile if profile is None else profile)
        key = (batch, mode, profile)
        fresh = key not in self._proven
        made = (self._of_slots if mode in SLOT_MODES else self._of_session)(mode, checked, fresh)
        self._proven.add(key)
        return made

    def _use(self, profile: int | None) -> None:
        for session in self._sessions:
            session.use_profile(profile)

    def _plain_run(self, batch: int) -> _Checked:
        """Return inputs and outputs of a batch; those of the last batch are kept."""
        if self._checked is None or self._checked.batch != batch:
            session = self._sessions[0]
            self._use(self._request.profile)
            inputs = self._checker.inputs(batch)
            session.bind(inputs)
            session.run()
            self._checked = _Checked(batch, inputs, session.fetch())
        return self._checked

    def _of_session(self, name: str, checked: _Checked, fresh: bool) -> Loop:
        session = self._sessions[0]
        session.bind(checked.inputs)  # slots of the session may have run since
        modes = session.modes()
        if name not in modes:
            raise UsageError(f"this engine has no mode {name!r}; it has {', '.join(modes)}", "leave it out of `modes`")
        mode = modes[name]
        if fresh:
            session.poison(0xFF)
            mode.launch()
            require_same_rows(f"{self.artifact.path.name}: {name}", session.fetch(), checked.outputs, self.sidecar)
        return mode_loop(mode, self._flush(session, mode))

    def _flush(self, session: Session, mode: Mode) -> Callable[[], None] | None:
        """Return what evicts the cache before a launch; for a synchronous mode it also waits until that is done."""
        flush = session.flush
        if not self._request.flush_l2 or flush is None:
            return None
        if mode.new_event is not None:
            return flush
        event = next(each.new_event for each in session.modes().values() if each.new_event is not None)()

        def flush_and_wait() -> None:
            flush()
            event.record()
            event.synchronize()

        return flush_and_wait

    def _of_slots(self, name: str, checked: _Checked, fresh: bool) -> Loop:
        lanes = self._lanes(name)
        if fresh:
            what, overlapping = f"{self.artifact.path.name}: {name}", name == THROUGHPUT
            require_slots(what, lanes, checked.batch, checked.inputs, checked.outputs, self.sidecar, overlapping)
        for lane in lanes:
            fill_slot(lane, checked.batch, checked.inputs)
        return latency_loop(lanes[0]) if name == LATENCY else throughput_loop(lanes)

    def _lanes(self, name: str) -> Sequence[Slot]:
        """Return the slots that a mode keeps busy, made once. Neighbors belong to different sessions."""
        if not self._slots:
            self._slots.append(self._sessions[0].slot())
        if name == THROUGHPUT and len(self._slots) == 1:
            turns = [session for _ in range(self._sessions[0].in_flight) for session in self._sessions]
            self._slots += [session.slot() for session in turns[1:]]
        return self._slots[:1] if name == LATENCY else self._slots
