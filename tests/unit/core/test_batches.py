from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtbatch.core.batches import MAX_BATCH, Profile, parse_batches, pick_profile, refuse_outside
from trtbatch.errors import BatchListError, ProfileError


@pytest.mark.parametrize(
    ("text", "batches"),
    [
        ("1", [1]),
        ("1,2,4,...,32", [1, 2, 4, 8, 16, 32]),
        ("1,2,3,...,8", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("8,16,...,64", [8, 16, 24, 32, 40, 48, 56, 64]),
        ("1,2,...,5", [1, 2, 3, 4, 5]),
        ("1-4", [1, 2, 3, 4]),
        ("7-7", [7]),
        ("1,2,4,6,8,12,16,24,32", [1, 2, 4, 6, 8, 12, 16, 24, 32]),
        ("1-4,8,16,...,32,100", [1, 2, 3, 4, 8, 16, 24, 32, 100]),
        ("1,2,4,...,16,20,24,...,32", [1, 2, 4, 8, 16, 20, 24, 28, 32]),
        ("1,3,4,5,...,8", [1, 3, 4, 5, 6, 7, 8]),
        ("1,3,9,…,81", [1, 3, 9, 27, 81]),
        ("32,16,8,...,1", [32, 16, 8, 4, 2, 1]),
        ("8,6,...,2", [8, 6, 4, 2]),
        ("4,6,9,...,9", [4, 6, 9]),
        (" 1 , 2,4, ... ,8 ", [1, 2, 4, 8]),
        ("4,1,4,2,1", [4, 1, 2]),
        ("1,2,4,...,4", [1, 2, 4]),
        (str(MAX_BATCH), [MAX_BATCH]),
    ],
)
def test_a_list_is_read(text: str, batches: list[int]) -> None:
    assert parse_batches(text) == batches


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", "empty part"),
        ("1,,2", "empty part"),
        ("1,", "empty part"),
        ("0", "0 is not between"),
        ("-1", "'-1' is not a batch size"),
        ("1,-2", "'-2' is not a batch size"),
        ("1.5", "'1.5'"),
        ("two", "'two'"),
        ("1;2", "'1;2'"),
        ("1 2", "'1 2'"),
        ("²", "'²'"),
        ("٣", "'٣'"),
        ("1e3", "'1e3'"),
        ("1..4", "'1..4'"),
        ("4-1", "4-1"),
        ("1-", "'1-'"),
        ("0-4", "0 is not between"),
        ("1,2,4,...", "nothing follows"),
        ("...,4", "follow nothing"),
        ("1,...,8", "follow 1"),
        ("1-4,...,8", "follow nothing"),
        ("1,2,4,...,30", "does not hit 30 (it goes 16, 32)"),
        ("8,16,...,60", "does not hit 60 (it goes 56, 64)"),
        ("1,2,4,...,2", "does not hit 2"),
        ("1,2,5,...,9", "1,2,5,... is neither"),
        ("2,2,...,2", "neither"),
        ("4,6,9,...,20", "(it goes 9, 13.5)"),
        ("1,2,4,...,x", "'x'"),
        ("1,2,4,...,...,8", "'...' is not a batch size"),
        (f"{MAX_BATCH + 1}", "not between"),
        ("9" * 5000, "not between"),
        ("1-1000000", "longer than"),
        ("1,2,...,1000000", "does not hit"),
    ],
)
def test_an_unclear_list_is_refused_with_the_part_that_is(text: str, shown: str) -> None:
    with pytest.raises(BatchListError) as caught:
        parse_batches(text)
    assert shown in caught.value.problem
    assert caught.value.fix
    assert caught.value.exit_code == 2


@given(st.lists(st.integers(1, MAX_BATCH), min_size=1, max_size=50))
def test_plain_lists_are_themselves(batches: list[int]) -> None:
    assert parse_batches(",".join(map(str, batches))) == list(dict.fromkeys(batches))


@given(start=st.integers(1, 500), step=st.integers(1, 60), count=st.integers(2, 40))
def test_a_step_from_two_terms(start: int, step: int, count: int) -> None:
    wanted = [start + step * i for i in range(count)]
    assert parse_batches(f"{wanted[0]},{wanted[1]},...,{wanted[-1]}") == wanted


@given(start=st.integers(1, 9), ratio=st.integers(2, 5), count=st.integers(3, 7))
def test_a_ratio_from_three_terms(start: int, ratio: int, count: int) -> None:
    wanted = [start * ratio**i for i in range(count)]
    assert parse_batches(f"{','.join(map(str, wanted[:3]))},...,{wanted[-1]}") == wanted


@given(st.text(alphabet="0123456789,.-… x", max_size=30))
def test_any_text_is_a_list_or_a_clear_error(text: str) -> None:
    try:
        batches = parse_batches(text)
    except BatchListError as error:
        refused = error
    else:
        assert batches
        assert all(1 <= batch <= MAX_BATCH for batch in batches)
        return
    assert refused.problem
    assert refused.fix


def test_a_profile_is_read_and_shown() -> None:
    profile = Profile.parse("1:16:32")
    assert (profile.min, profile.opt, profile.max) == (1, 16, 32)
    assert str(profile) == "1:16:32"
    assert 1 in profile
    assert 32 in profile
    assert 0 not in profile
    assert 33 not in profile
    assert profile.corners == (1, 16, 32)
    assert Profile(4, 4, 4).corners == (4,)


@pytest.mark.parametrize("text", ["", "1", "1:2", "1:2:3:4", "a:b:c", "1:-2:3", "1:2:3.5", ":::", "1:16:²"])
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(ProfileError, match="MIN:OPT:MAX"):
        Profile.parse(text)


@pytest.mark.parametrize("corners", [(0, 1, 2), (2, 1, 3), (1, 4, 3), (-1, 1, 1), (1, 1, MAX_BATCH + 1)])
def test_an_impossible_profile_is_refused(corners: tuple[int, int, int]) -> None:
    with pytest.raises(ProfileError, match=f"min {corners[0]}, opt {corners[1]}, max {corners[2]}"):
        Profile(*corners)


@pytest.mark.parametrize(
    ("given_", "profile"),
    [
        ((None, None, None), (1, 16, 32)),
        ((None, None, 8), (1, 8, 8)),
        ((None, None, 64), (1, 16, 64)),
        ((48, None, None), (48, 48, 48)),
        ((None, 64, None), (1, 64, 64)),
        ((4, None, 8), (4, 8, 8)),
        ((1, 16, 32), (1, 16, 32)),
    ],
)
def test_a_profile_is_completed(given_: tuple[int | None, ...], profile: tuple[int, int, int]) -> None:
    assert Profile.complete(*given_) == Profile(*profile)


def test_the_profile_with_the_nearest_opt_serves_a_batch() -> None:
    profiles = [Profile(1, 1, 4), Profile(1, 16, 32), Profile(4, 8, 8)]
    assert [pick_profile(profiles, batch) for batch in (1, 4, 5, 8, 9, 32, 33)] == [0, 0, 2, 2, 1, 1, None]
    assert pick_profile([Profile(1, 4, 64), Profile(1, 4, 8)], 4) == 1


@pytest.mark.parametrize(
    ("profiles", "batches", "fix"),
    [
        ([Profile(1, 16, 32)], [40], "rebuild with `max=40`, or pass `batches=[32]`"),
        ([Profile(4, 16, 32)], [2], "rebuild with `min=2`, or pass `batches=[4]`"),
        ([Profile(4, 4, 4)], [2], "rebuild with `static=2`, or from a dynamic ONNX"),
        ([Profile(1, 2, 4), Profile(8, 8, 16)], [6], "a profile that holds 6, or pass `batches=[4]`"),
    ],
)
def test_a_batch_outside_every_profile_is_told_both_ways_out(
    profiles: list[Profile], batches: list[int], fix: str
) -> None:
    with pytest.raises(ProfileError) as caught:
        refuse_outside(profiles, batches, "x.engine")
    assert f"batch {batches[0]} is outside every profile of x.engine" in caught.value.problem
    assert fix in caught.value.fix


def test_a_list_with_sizes_outside_is_told_which_to_leave_out_in_short() -> None:
    def told(*batches: int) -> ProfileError:
        with pytest.raises(ProfileError) as caught:
            refuse_outside([Profile(1, 16, 32)], batches, "x.engine")
        return caught.value

    error = told(*range(1, 1001))
    assert error.problem.startswith("batches 33-1000 are outside")
    assert error.fix == "rebuild with `max=1000`, or leave out 33-1000"
    error = told(1, *range(40, 60, 2))
    assert error.problem.startswith("batches 40, 42, 44, 46, 48 and 5 more are outside")
    assert error.fix == "rebuild with `max=58`, or leave out 40, 42, 44, 46, 48 and 5 more"
    assert told(40, 48).fix == "rebuild with `max=48`, or pass `batches=[32]`"


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("1,2,s64", "write 64"),
        ("1,2,64x", "write 64"),
        ("-4", "write 4"),
        ("1..8", "write 1-8 for all sizes from 1 to 8, or 1,...,8 with terms between"),
        ("1:8", "write 1-8 for all sizes from 1 to 8, or 1,...,8 with terms between"),
        ("4k", "write batch sizes like 1,2,4,...,32 or 8,16,...,64 or 1-4"),
        ("one", "write batch sizes like 1,2,4,...,32 or 8,16,...,64 or 1-4"),
    ],
)
def test_a_mistyped_size_is_told_as_it_was_meant(text: str, fix: str) -> None:
    with pytest.raises(BatchListError) as caught:
        parse_batches(text)
    assert caught.value.fix == fix


def test_batches_inside_are_not_refused() -> None:
    refuse_outside([Profile(1, 16, 32)], [1, 2, 32], "x.engine")
    with pytest.raises(ProfileError, match="batches 33, 64 are outside"):
        refuse_outside([Profile(1, 16, 32)], [1, 33, 64], "x.engine")
