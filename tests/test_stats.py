from __future__ import annotations

import numpy as np
import pytest

from trtbatch.stats import median_noise, summarize


def test_figures_of_known_samples() -> None:
    summary = summarize(np.arange(1.0, 102.0), (50, 90, 99.5))
    assert summary.iterations == 101
    assert summary.median == 51 and summary.mean == 51
    assert (summary.minimum, summary.maximum) == (1, 101)
    assert summary.percentiles == {"p50": 51, "p90": 91, "p99.5": 100.5}
    assert summary.cv == pytest.approx(np.arange(1, 102).std() / 51)


def test_steady_samples_are_stable_and_noisy_ones_are_not() -> None:
    generator = np.random.default_rng(0)
    assert summarize(1 + 0.001 * generator.standard_normal(500)).stable
    noisy = summarize(1 + 0.5 * np.abs(generator.standard_normal(20)))
    assert not noisy.stable and noisy.noise > 0.01


def test_a_drift_is_not_stable_however_small_its_noise() -> None:
    summary = summarize(np.concatenate([np.full(500, 1.0), np.full(500, 1.1)]))
    assert summary.drift == pytest.approx(0.1)
    assert not summary.stable


def test_too_few_samples_are_never_stable() -> None:
    assert median_noise(np.ones(5)) == float("inf")
    assert not summarize(np.ones(5)).stable
    assert summarize(np.ones(6)).stable


def test_the_interval_of_the_median_covers_it_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    true_median, covered = np.log(2.0), 0
    for _ in range(400):
        samples = generator.exponential(1.0, 101)
        reach = median_noise(samples) * float(np.median(samples))
        covered += abs(float(np.median(samples)) - true_median) <= reach * 1.25
    assert 0.90 <= covered / 400 <= 1.0
    wide, narrow = (np.median([median_noise(generator.exponential(1.0, n)) for _ in range(50)]) for n in (100, 1600))
    assert 3.0 <= wide / narrow <= 5.0  # sixteen times the samples, a quarter of the width


def test_one_sample_and_none() -> None:
    assert summarize(np.array([2.0])).median == 2
    with pytest.raises(ValueError, match="no samples"):
        summarize(np.array([]))
