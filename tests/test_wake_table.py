"""How long a thread waits for a core: the script runs, and its table says what it found."""

from __future__ import annotations

import json
from pathlib import Path

from scripts import wake_table

ROOT = Path(__file__).resolve().parent.parent


def test_it_measures_each_in_turns() -> None:
    rows = wake_table.measure([0, 5], 1, 20, 2)
    assert [row["nice"] for row in rows] == [0, 5]
    assert all(0 < row["p50_us"] <= row["p90_us"] <= row["p99_us"] for row in rows)


def test_its_figures_are_those_that_were_kept() -> None:
    kept = json.loads((ROOT / "docs" / "cpu" / "wake.json").read_text())
    assert wake_table.markdown(kept["rows"]) in (ROOT / "docs" / "performance.md").read_text()
    assert kept["processes"] == kept["environment"]["cores"] == 2
    by_nice = {row["nice"]: row for row in kept["rows"]}
    assert by_nice[5]["p99_us"] < by_nice[0]["p99_us"] / 10
