"""The script that compares several actors with one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scale_table
from benchmarks.scale_table import in_a_process, markdown, measure, steady_rate, write_samples
from trtbatch.core.store import load


def test_the_rate_is_that_from_the_first_results_of_every_actor_to_the_last() -> None:
    assert steady_rate([(10.0, 100), (10.5, 200), (12.0, 500)], 1) == 200
    # Two actors, a block of 100 each second: the first two come together.
    pairs = [(10.0, 100), (10.0, 200), (11.0, 300), (11.0, 400), (12.0, 500), (12.0, 600)]
    assert steady_rate(pairs, 2) == 200
    for marks, actors in (([(10.0, 100)], 1), ([(10.0, 100), (11.0, 200)], 2)):
        with pytest.raises(ValueError, match="give more --samples"):
            steady_rate(marks, actors)


def samples_of(engine: Path, folder: Path, count: int) -> Path:
    write_samples(folder, load(engine, "engine").sidecar, count)
    return folder


def test_samples_are_those_of_the_engine(engine: Path, tmp_path: Path) -> None:
    write_samples(tmp_path / "samples", load(engine, "engine").sidecar, 1500)
    shapes = [np.load(path).shape for path in sorted((tmp_path / "samples").iterdir())]
    assert shapes == [(1024, 3, 8, 8), (476, 3, 8, 8)]


@pytest.mark.ray
def test_one_and_two_actors_predict_everything(engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two as the script runs them; what one does is the same, and taken from there."""
    two = in_a_process(engine.resolve(), samples_of(engine, folder / "samples", 3000), 2, 8)
    assert (two["actors"], two["rows"], two["failed"]) == (2, 3000, 0)
    assert two["rows_per_s"] > 0
    one = two | {"actors": 1, "rows_per_s": two["rows_per_s"] / 4}
    monkeypatch.setattr(scale_table, "in_a_process", lambda engine, folder, actors, batch: one if actors == 1 else two)
    given = argparse.Namespace(engine=engine.resolve(), actors=2, samples=1500, batch=8, rounds=1)
    data = json.loads(json.dumps(measure(given)))
    runs = [run for several in data["rounds"].values() for run in several]
    assert [run["actors"] for run in runs] == [1, 2]
    assert data["several_over_one"] == 4
    assert data["several_over_one"] == pytest.approx(runs[1]["rows_per_s"] / runs[0]["rows_per_s"])
    assert "| 2 |" in markdown(data)
    assert not list(folder.glob("samples-*"))
