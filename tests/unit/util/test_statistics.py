from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trtbatch.util.statistics import MIN_ROUNDS, bound_by, compare_rounds, median_interval, median_noise, summarize


def test_figures_of_known_samples() -> None:
    summary = summarize(np.arange(1.0, 102.0), (50, 90, 99.5))
    assert summary.iterations == 101
    assert summary.median == 51
    assert summary.mean == 51
    assert (summary.minimum, summary.maximum) == (1, 101)
    assert summary.percentiles == {"p50": 51, "p90": 91, "p99.5": 100.5}
    assert summary.cv == pytest.approx(np.arange(1, 102).std() / 51)


def test_steady_samples_are_stable_and_noisy_ones_are_not() -> None:
    generator = np.random.default_rng(0)
    assert summarize(1 + 0.001 * generator.standard_normal(500)).stable
    noisy = summarize(1 + 0.5 * np.abs(generator.standard_normal(20)))
    assert not noisy.stable
    assert noisy.noise > 0.01


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


def test_the_verdict_says_what_was_not_reached() -> None:
    generator = np.random.default_rng(0)
    assert summarize(np.ones(20)).verdict == "stable"
    assert summarize(np.ones(5)).verdict == "too few runs"
    assert summarize(np.concatenate([np.full(500, 1.0), np.full(500, 1.1)])).verdict == "drift +10.0 %"
    noisy = summarize(1 + 0.1 * generator.random(400))
    assert noisy.verdict == "stable" or noisy.verdict.startswith("noise ")
    assert summarize(1 + 0.1 * generator.random(400), max_noise=1e-4).verdict.startswith("noise ")


@pytest.mark.parametrize(
    ("noise", "runs", "words"),
    [
        (0.0104, 1000, "noise 1.1 %"),
        (0.0104, 99, "noise 2 %"),
        (0.023, 100, "noise 2.3 %"),
        (0.02, 100, "noise 2.0 %"),
        (0.123, 20, "noise 13 %"),
        (0.03, 20, "noise 3 %"),
        (float("inf"), 5, "noise unknown"),
    ],
)
def test_noise_is_rounded_up_to_what_is_known_of_it(noise: float, runs: int, words: str) -> None:
    summary = replace(summarize(np.ones(runs)), noise=noise, stable=False)
    assert summary.noise_words == words
    assert summary.verdict == (words if runs > 5 else "too few runs")


def test_the_largest_noise_that_is_stable_is_a_choice() -> None:
    samples = 1 + 0.1 * np.random.default_rng(3).random(60)
    noise = summarize(samples).noise
    assert summarize(samples, max_noise=noise * 1.01).noise == noise
    assert not summarize(samples, max_noise=noise * 0.99).stable


@pytest.mark.parametrize(
    ("memory", "wanted"), [(0.61, "memory-bound"), (0.60, "compute-bound"), (None, "compute-bound")]
)
def test_the_gpus_memory_bounds_what_nothing_else_does(memory: float | None, wanted: str) -> None:
    assert bound_by(1.0, 0.1, None, memory) == wanted
    assert bound_by(1.0, None, {"h2d": 0.5, "gpu": 1.0, "d2h": 0.1}, memory) == wanted
    assert bound_by(1.0, 0.9, None, memory) == "enqueue-bound"
    assert bound_by(1.0, None, {"h2d": 1.5, "gpu": 1.0, "d2h": 0.1}, memory) == "copy-bound"


@pytest.mark.parametrize(
    ("gpu", "enqueue", "parts", "wanted"),
    [
        (1.0, 0.81, None, "enqueue-bound"),
        (1.0, 0.80, None, "compute-bound"),
        (1.0, None, {"h2d": 1.0, "gpu": 1.0, "d2h": 0.1}, "copy-bound"),
        (1.0, None, {"h2d": 0.1, "gpu": 1.0, "d2h": 1.2}, "copy-bound"),
        (1.0, None, {"h2d": 0.9, "gpu": 1.0, "d2h": 0.9}, "compute-bound"),
        (1.0, 2.0, {"h2d": 3.0, "gpu": 1.0, "d2h": 0.9}, "enqueue-bound"),
        (0.0, None, {}, "compute-bound"),
    ],
)
def test_what_bounds_a_line(gpu: float, enqueue: float | None, parts: dict[str, float] | None, wanted: str) -> None:
    assert bound_by(gpu, enqueue, parts) == wanted


def test_the_interval_of_a_median_lies_between_the_ranks_of_the_tables() -> None:
    """Ranks r of the distribution-free 95 % interval (Conover, table of the binomial): n = 6: 1, 12: 3, 20: 6."""
    for count, rank in ((6, 1), (9, 2), (12, 3), (20, 6), (30, 10)):
        assert median_interval(np.arange(1.0, count + 1)) == (rank, count + 1 - rank)
    assert median_interval(np.ones(5)) == (float("-inf"), float("inf"))


def test_who_is_faster() -> None:
    base = [1.0, 1.02, 0.98, 1.05, 1.0, 1.01, 0.99, 1.1]
    noise = [1.001, 0.999, 1.0, 1.002, 0.998, 1.0, 1.001, 0.999]

    def times(factor: float, spread: float = 1.0) -> list[float]:
        return [one * factor * (1 + (two - 1) * spread) for one, two in zip(base, noise)]

    assert compare_rounds(times(1.0), base).verdict == "SAME"
    assert compare_rounds(times(0.995), base).verdict == "SAME", "a difference too small to matter"
    faster = compare_rounds(times(0.9), base)
    assert faster.verdict == "FASTER"
    assert faster.low <= faster.ratio <= faster.high < 1
    assert faster.ratio == pytest.approx(0.9, rel=0.002)
    assert faster.rounds == 8
    assert compare_rounds(times(1.1), base).verdict == "SLOWER"
    assert compare_rounds(times(1.0, spread=50), base).verdict == "UNCLEAR"


def test_too_few_rounds_are_unclear_however_far_apart() -> None:
    assert compare_rounds([1.0] * (MIN_ROUNDS - 1), [2.0] * (MIN_ROUNDS - 1)).verdict == "UNCLEAR"
    assert compare_rounds([1.0] * MIN_ROUNDS, [2.0] * MIN_ROUNDS).verdict == "FASTER"
    assert compare_rounds([], []).verdict == "UNCLEAR"
    with pytest.raises(ValueError, match="1 rounds of one, 2 of the other"):
        compare_rounds([1.0], [1.0, 2.0])


@pytest.mark.parametrize("rounds", [6, 12, 20])
def test_of_two_alike_one_is_rarely_called_faster_whatever_both_drift_by(rounds: int) -> None:
    """Noise that is skewed, as timings are, and a drift of both by half: at most one in twenty is a false alarm."""
    generator = np.random.default_rng(rounds)
    trials, wrong, covered = 2000, 0, 0
    drift = np.linspace(1.0, 1.5, rounds)
    for _ in range(trials):
        ours, theirs = (drift * (1 + generator.exponential(0.02, rounds)) for _ in range(2))
        relative = compare_rounds(ours.tolist(), theirs.tolist())
        wrong += relative.verdict in ("FASTER", "SLOWER")
        covered += relative.low <= 1 <= relative.high
    assert covered / trials >= 0.94, "95 % less what 2000 trials scatter by"
    assert wrong / trials <= 0.06


def test_a_real_difference_is_found() -> None:
    generator = np.random.default_rng(5)
    found = [
        compare_rounds(
            (0.95 * (1 + generator.exponential(0.02, 20))).tolist(), (1 + generator.exponential(0.02, 20)).tolist()
        ).verdict
        for _ in range(200)
    ]
    assert found.count("FASTER") >= 190
    assert "SLOWER" not in found
