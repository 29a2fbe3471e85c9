"""What the sinks write is what ``csv``, ``json`` and ``sorted`` make of the same scores, byte for byte."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trtbatch.runtime.sinks import PASSES, best_classes, open_sink, top_predictions
from trtbatch.util.text import written

Scores = NDArray[Any]

CLASSES = tuple(
    f"class {i}{end}" for i, end in enumerate(["", ", or another", ' "so called"', "\nline", "\rline", "é\ud800"] * 5)
)
FILES = ["a.jpg", "b,c.jpg", 'd"e.jpg', "f\ng.jpg", "h\udcff.jpg", "ü/ i.jpg", ""]
SIDECAR: Any = SimpleNamespace(outputs=())


def plain(row: Scores, k: int, classes: tuple[str, ...] | None) -> list[tuple[str, int, float]]:
    """The best classes of a row of scores: name, index, score."""
    values = row if row.dtype == np.float64 else row.astype(np.float32)
    best = sorted(range(len(row)), key=lambda i: (np.isnan(values[i]), -values[i], i))[:k]
    scores = values[best].astype(np.float64)
    if not (values.min() >= 0 and abs(values.sum(dtype=np.float64) - 1) < 1e-3):
        scores = np.exp(scores - values.max()) / np.exp(values - values.max()).sum(dtype=np.float64)
    return [(classes[i] if classes else str(i), i, score) for i, score in zip(best, scores.tolist())]


def plain_csv(files: list[str], rows: list[list[tuple[str, int, float]]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    ranks = range(1, len(rows[0]) + 1)
    writer.writerow(["file", *(f"{what}_{rank}" for rank in ranks for what in ("class", "index", "score"))])
    for file, row in zip(files, rows):
        writer.writerow([written(file), *(v for name, i, score in row for v in (name, i, f"{score:.6g}"))])
    return text.getvalue().encode("utf-8", "backslashreplace")


def plain_json(files: list[str], rows: list[list[tuple[str, int, float]]], **rest: list[Any]) -> bytes:
    lines = []
    for place, (file, row) in enumerate(zip(files, rows)):
        top = [{"class": n, "index": i, "score": s if np.isfinite(s) else str(s)} for n, i, s in row]
        line: dict[str, Any] = {"file": written(file), "top": top}
        if rest:
            line["outputs"] = {name: values[place] for name, values in rest.items()}
        lines.append(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
    return "".join(lines).encode("utf-8", "backslashreplace")


def logits(classes: int = len(CLASSES)) -> Scores:
    return np.random.default_rng(0).normal(0, 4, (len(FILES), classes)).astype(np.float32)


def probabilities() -> Scores:
    powers: Scores = np.exp(logits())
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def mixed() -> Scores:
    return np.where(np.arange(len(FILES))[:, None] % 2, logits(), probabilities())


def ties() -> Scores:
    scores = np.random.default_rng(1).integers(-2, 2, logits().shape).astype(np.float32)
    scores[1] = 0
    scores[2] *= np.float32(-0.0)
    return scores


def odd() -> Scores:
    scores = ties()
    scores[0, 3] = np.nan
    scores[1] = np.nan
    scores[2, 2:] = np.nan
    scores[3, ::2] = np.inf
    scores[4] = -np.inf
    scores[5, 4:] = -np.inf
    return scores


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("k", [1, 5, PASSES, PASSES + 1, len(CLASSES), 99])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("made", [logits, probabilities, mixed, ties, odd])
def test_files_are_those_of_a_plain_implementation(tmp_path: Path, made: Any, dtype: Any, k: int) -> None:
    scores = made().astype(dtype)
    before = scores.copy()
    for classes in (CLASSES, None):
        rows = [plain(row, k, classes) for row in scores]
        for name, expected in (("x.csv", plain_csv(FILES, rows)), ("x.jsonl", plain_json(FILES, rows))):
            with open_sink(tmp_path / name, SIDECAR) as sink:
                for part in (slice(3), slice(3, None)):
                    sink.write(FILES[part], {"output": scores[part]}, best_classes(scores[part], k, classes))
            assert (tmp_path / name).read_bytes() == expected
        found = [[(p.name, p.index, p.score) for p in row] for row in top_predictions(scores, k, classes)]
        assert str(found) == str(rows), "as texts: NaN equals nothing"
    np.testing.assert_array_equal(scores, before)


def test_classes_have_their_names_where_there_is_one_for_each_score(tmp_path: Path) -> None:
    batches = [logits(), logits(len(CLASSES) + 1), logits()]
    rows = [plain(row, 2, CLASSES if len(row) == len(CLASSES) else None) for batch in batches for row in batch]
    for name, expected in (("x.csv", plain_csv(FILES * 3, rows)), ("x.jsonl", plain_json(FILES * 3, rows))):
        with open_sink(tmp_path / name, SIDECAR) as sink:
            for batch in batches:
                sink.write(FILES, {"output": batch}, best_classes(batch, 2, CLASSES))
        assert (tmp_path / name).read_bytes() == expected


def test_further_outputs_follow_the_best_classes_in_json(tmp_path: Path) -> None:
    scores = logits()
    rest = {"depth": np.arange(2.0 * len(FILES)).reshape(-1, 2), 'a "count"': np.arange(len(FILES))}
    with open_sink(tmp_path / "x.jsonl", SIDECAR) as sink:
        sink.write(FILES, {"output": scores, **rest}, best_classes(scores, 3, CLASSES))
    rows = [plain(row, 3, CLASSES) for row in scores]
    expected = plain_json(FILES, rows, **{name: values.tolist() for name, values in rest.items()})
    assert (tmp_path / "x.jsonl").read_bytes() == expected


def test_values_are_written_where_there_are_no_classes(tmp_path: Path) -> None:
    values = np.arange(2.0 * len(FILES)).reshape(-1, 2)
    for name in ("x.csv", "x.jsonl"):
        with open_sink(tmp_path / name, SIDECAR) as sink:
            sink.write(FILES, {"a,b": values}, None)
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["file", "a,b[0]", "a,b[1]"], *([written(f), *v] for f, v in zip(FILES, values))])
    assert (tmp_path / "x.csv").read_bytes() == text.getvalue().encode()
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert lines == [{"file": written(f), "outputs": {"a,b": v}} for f, v in zip(FILES, values.tolist())]


def test_scores_may_lie_in_memory_in_any_order() -> None:
    for k in (5, PASSES + 1):
        found, expected = best_classes(np.asfortranarray(logits()), k, None), best_classes(logits(), k, None)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)


def test_a_part_of_the_best_classes_can_be_had() -> None:
    best = best_classes(logits(), 4, CLASSES)
    assert best.predictions(2) == best.predictions()[:2] == top_predictions(logits()[:2], 4, CLASSES)
    assert best.predictions(0) == []
