"""The script that compares several actors with one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from scripts.scale_table import markdown, measure, steady_rate, write_samples
from trtbatch.artifacts import load


def test_the_rate_is_that_from_the_first_results_of_every_actor_to_the_last() -> None:
    assert steady_rate([(10.0, 100), (10.5, 200), (12.0, 500)], 1) == 200
    # Two actors, a block of 100 each second: the first two come together.
    pairs = [(10.0, 100), (10.0, 200), (11.0, 300), (11.0, 400), (12.0, 500), (12.0, 600)]
    assert steady_rate(pairs, 2) == 200
    for marks, actors in (([(10.0, 100)], 1), ([(10.0, 100), (11.0, 200)], 2)):
        with pytest.raises(ValueError, match="give more --samples"):
            steady_rate(marks, actors)


def test_samples_are_those_of_the_engine(engine: Path, tmp_path: Path) -> None:
    write_samples(tmp_path / "samples", load(engine, "engine").sidecar, 1500)
    shapes = [np.load(path).shape for path in sorted((tmp_path / "samples").iterdir())]
    assert shapes == [(1024, 3, 8, 8), (476, 3, 8, 8)]


def test_one_and_two_actors_predict_everything(engine: Path, folder: Path) -> None:
    pytest.importorskip("ray")
    given = argparse.Namespace(engine=engine.resolve(), actors=2, samples=3000, batch=8, rounds=1)
    data = json.loads(json.dumps(measure(given)))
    runs = [run for several in data["rounds"].values() for run in several]
    assert [run["actors"] for run in runs] == [1, 2] and all(run["rows"] == 3000 for run in runs)
    assert data["several_over_one"] == pytest.approx(runs[1]["rows_per_s"] / runs[0]["rows_per_s"])
    assert "| 2 |" in markdown(data) and not list(folder.glob("samples-*"))
