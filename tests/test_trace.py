"""Traces: what Chrome reads, and nothing where nothing is asked for."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from trtbatch.util.trace import NO_TRACE, open_trace


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


def test_spans_of_threads_nest_and_carry_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with open_trace(path, "a test") as trace:

        def work() -> None:
            with trace.span("outer", batch=3) as outer:
                for _ in range(3):
                    with trace.span("inner", file="bild/größe\udcff.png"):
                        pass
                outer.add(samples=2)

        threads = [threading.Thread(target=work, name=f"worker-{index}") for index in range(4)]
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join()
        assert not path.exists()
    events = spans(path)
    refuse_crossings(events)
    assert [event["args"] for event in events if event["name"] == "outer"] == [{"batch": 3, "samples": 2}] * 5
    assert sum(event["name"] == "inner" for event in events) == 15
    names = thread_names(path)
    assert {names[event["tid"]] for event in events} == {"MainThread", *(f"worker-{index}" for index in range(4))}


def test_a_failed_block_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(KeyError), open_trace(tmp_path / "t.json") as trace, trace.span("x"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_without_a_file_nothing_is_recorded(tmp_path: Path) -> None:
    with open_trace(None) as trace:
        assert trace is NO_TRACE
        with trace.span("x", batch=1) as span:
            span.add(samples=2)
        assert trace.span("x") is trace.span("y"), "one object serves all"
