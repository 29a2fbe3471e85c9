"""Read the traces that commands write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def spans(path: Path) -> list[dict[str, Any]]:
    """The complete events of a trace, which must be well-formed."""
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    complete = [event for event in events if event["ph"] == "X"]
    assert {event["ph"] for event in events} <= {"X", "M"}
    for event in complete:
        assert set(event) == {"ph", "name", "pid", "tid", "ts", "dur", "args"}
        assert event["ts"] >= 0
        assert event["dur"] >= 0
    return complete


def thread_names(path: Path) -> dict[int, str]:
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    named = [event for event in events if event["name"] == "thread_name"]
    names = {event["tid"]: event["args"]["name"] for event in named}
    assert len(names) == len(named), "each thread is named once"
    return names


def refuse_crossings(events: list[dict[str, Any]]) -> None:
    """On a thread, of two spans one holds the other or they don't touch."""
    for tid in {event["tid"] for event in events}:
        own = sorted((e for e in events if e["tid"] == tid), key=lambda e: (e["ts"], -e["dur"]))
        open_: list[float] = []
        for event in own:
            begun, ended = event["ts"], event["ts"] + event["dur"]
            while open_ and open_[-1] <= begun + 1e-3:  # µs, to the ns
                open_.pop()
            assert not open_ or ended <= open_[-1] + 1e-3, event
            open_.append(ended)
