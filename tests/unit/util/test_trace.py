"""Traces: what Chrome reads, and nothing where nothing is asked for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.support.traces import refuse_crossings, spans, thread_names
from trtbatch.util.trace import NO_TRACE, open_trace


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
