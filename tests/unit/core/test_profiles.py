"""Which profiles are made, which one runs a batch, how a larger batch is split."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtbatch.core import profiles as profiles_module
from trtbatch.core.batches import MAX_BATCH, Profile, pick_profile
from trtbatch.core.profiles import (
    Measured,
    auto_profiles,
    gaps,
    look_up,
    plan_auto,
    powers_of_two,
    split_batch,
    widest,
)
from trtbatch.errors import ProfileError


def shown(profiles: tuple[Profile, ...]) -> list[str]:
    return [str(profile) for profile in profiles]


def test_powers_of_two_hold_both_ends() -> None:
    assert powers_of_two(1, 32) == [1, 2, 4, 8, 16, 32]
    assert powers_of_two(3, 24) == [3, 4, 8, 16, 24]
    assert powers_of_two(5, 5) == [5]


def test_auto_makes_a_profile_for_each_size_tuned_for_it() -> None:
    assert shown(auto_profiles([8, 1, 32, 1], 1)) == ["1:1:1", "1:8:8", "1:32:32"]
    assert shown(plan_auto(None, None, None)) == ["1:1:1", "1:2:2", "1:4:4", "1:8:8", "1:16:16", "1:32:32"]
    assert shown(plan_auto(2, 6, None)) == ["2:2:2", "2:4:4", "2:6:6"]
    assert shown(plan_auto(None, None, [1, 24])) == ["1:1:1", "1:24:24"]
    assert shown(plan_auto(None, 64, [1, 24])) == ["1:1:1", "1:24:24", "1:64:64"]


def test_too_many_sizes_lose_those_that_the_next_one_serves_best() -> None:
    assert shown(auto_profiles([1, 2, 4, 28, 32], 1, most=4)) == ["1:1:1", "1:2:2", "1:4:4", "1:32:32"]
    assert shown(auto_profiles([1, 2, 4, 8, 16, 32], 1, most=1)) == ["1:32:32"]


@given(st.sets(st.integers(1, 300), min_size=1), st.integers(1, 8))
def test_every_size_of_interest_has_a_profile(sizes: set[int], most: int) -> None:
    profiles = auto_profiles(sorted(sizes), 1, most)
    assert len(profiles) == min(most, len(sizes))
    assert all(pick_profile(profiles, size) is not None for size in sizes)
    assert gaps(profiles) == []


@pytest.mark.parametrize(
    ("smallest", "largest", "batches", "named"),
    [(4, None, [2, 8], "`batches=[2]`"), (None, 8, [16], "`batches=[16]`"), (9, 3, None, "`max=3`")],
)
def test_sizes_outside_of_min_and_max_are_named(
    smallest: int | None, largest: int | None, batches: list[int] | None, named: str
) -> None:
    with pytest.raises(ProfileError, match=re.escape(named)):
        plan_auto(smallest, largest, batches)


def test_gaps_between_profiles() -> None:
    assert gaps([Profile(8, 8, 16), Profile(1, 1, 4), Profile(20, 20, 20)]) == [(5, 7), (17, 19)]
    assert gaps([Profile(1, 2, 9), Profile(3, 3, 4)]) == []


def test_the_widest_profile() -> None:
    assert widest([Profile(1, 1, 1), Profile(1, 16, 32), Profile(8, 16, 32)]) == 1


def test_a_measured_batch_runs_on_its_winner_and_tells_the_loss_of_the_next() -> None:
    row = Measured.of(4, {2: 0.30, 0: 0.25, 1: 0.20})
    assert (row.profile, row.ms) == (1, 0.20)
    assert row.loss == pytest.approx(0.25)
    assert row.times == {"0": 0.25, "1": 0.20, "2": 0.30}
    assert Measured.of(4, {0: 0.25}).loss is None


def test_between_measured_sizes_the_neighbour_that_covers_decides() -> None:
    profiles = [Profile(1, 4, 4), Profile(1, 8, 8), Profile(1, 32, 32)]
    table = [Measured(4, 0, 0.2), Measured(8, 2, 0.3), Measured(16, 2, 0.4)]  # at 8 the widest has won
    assert [look_up(profiles, table, batch) for batch in (4, 3, 6, 8, 12, 32, 33)] == [0, 0, 2, 2, 2, 2, None]
    smaller_covers = [Profile(1, 8, 12), Profile(16, 16, 16), Profile(1, 32, 32)]
    table = [Measured(8, 0, 0.2), Measured(16, 1, 0.3)]
    assert look_up(smaller_covers, table, 10) == 0  # the winner at 16 doesn't hold it
    assert look_up(profiles, [], 7) == 1  # without a table: the nearest opt


def test_a_table_of_other_profiles_can_not_lead_outside() -> None:
    assert look_up([Profile(1, 4, 4)], [Measured(4, 7, 0.2)], 4) == 0


def brute_force(batch: int, allowed: list[int], times: dict[int, float]) -> float:
    """The least time by trying every way, for small numbers."""
    best = {0: 0.0}
    for count in range(1, batch + 1):
        best[count] = min(best[count - size] + times[size] for size in allowed if size <= count)
    return best[batch]


def test_a_batch_that_fits_is_not_split() -> None:
    assert split_batch(32, [Profile(1, 16, 32)], {}) == [32]


def test_without_times_few_large_pieces_win() -> None:
    assert split_batch(100, [Profile(1, 16, 32)], {}) == [32, 32, 32, 4]


@given(st.integers(9, 60), st.lists(st.floats(0.1, 5.0), min_size=8, max_size=8))
def test_the_pieces_take_least_time(batch: int, costs: list[float]) -> None:
    times = dict(zip(range(1, 9), costs))
    pieces = split_batch(batch, [Profile(1, 4, 8)], times)
    assert sum(pieces) == batch
    assert max(pieces) <= 8
    assert pieces == sorted(pieces, reverse=True)
    spent = sum(times[size] for size in pieces)
    assert spent == pytest.approx(brute_force(batch, list(range(1, 9)), times))


def test_a_rest_that_needs_padding_costs_what_its_padding_costs() -> None:
    assert split_batch(10, [Profile(4, 4, 4)], {4: 1.0}) == [4, 4, 2]
    pieces = split_batch(9, [Profile(4, 4, 8)], {4: 1.0, 8: 1.5})
    assert sum(pieces) == 9
    assert pieces in ([8, 1], [5, 4])


@pytest.mark.parametrize(
    "profiles",
    [
        [Profile(1, 16, 32)],
        [Profile(1, 700, 1024)],
        [Profile(1, 8000, 8192)],
        [Profile(1, 1, 100_000)],
        [Profile(4, 4, 4), Profile(900_000, 900_000, 999_999)],
    ],
)
def test_a_huge_batch_is_split_quickly(profiles: list[Profile], monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    least = profiles_module.fastest_pieces

    def counted(batch: int, cost: Any) -> list[int]:
        searched.append(batch)
        return least(batch, cost)

    monkeypatch.setattr(profiles_module, "fastest_pieces", counted)
    pieces = split_batch(MAX_BATCH, profiles, {1: 1.0, 32: 8.0})
    assert sum(pieces) == MAX_BATCH
    assert pieces == sorted(pieces, reverse=True)
    assert max(pieces) <= profiles[-1].max
    assert sum(searched) <= profiles_module.SEARCHED


@given(st.integers(9, 600), st.lists(st.floats(0.1, 5.0), min_size=8, max_size=8))
def test_a_batch_of_many_pieces_still_takes_least_time(batch: int, costs: list[float]) -> None:
    times = dict(zip(range(1, 9), costs))
    spent = sum(times[size] for size in split_batch(batch, [Profile(1, 4, 8)], times))
    assert spent == pytest.approx(brute_force(batch, list(range(1, 9)), times))


def test_every_profile_list_is_covered_without_a_gap() -> None:
    for sizes in itertools.combinations(range(1, 12), 3):
        profiles = auto_profiles(sizes, 1)
        assert {look_up(profiles, [], batch) for batch in range(1, sizes[-1] + 1)} <= {0, 1, 2}
