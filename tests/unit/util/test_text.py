"""File names that are no text, as they are written."""

from __future__ import annotations

import os

import pytest

from trtbatch.util.text import shortened, written


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"gr\xfcn.jpg", r"gr\xfcn.jpg"),
        (b"\x80\xff", r"\x80\xff"),
        ("grün 写真.jpg".encode(), "grün 写真.jpg"),
        (rb"a\xff.jpg", r"a\xff.jpg"),
    ],
)
def test_only_bytes_that_are_no_text_are_written_as_numbers(name: bytes, shown: str) -> None:
    assert written(os.fsdecode(name)) == shown


def test_half_a_character_is_written_too() -> None:
    assert written("a\ud800b") == r"a\ud800b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one  two\nthree", "one two three"),
        ("one two three four", "one two …"),
        ("one two three, four", "one two …"),
        ("one, two: threefour", "one, two …"),
        ("onetwothreefourfive", "onetwothreef…"),
    ],
)
def test_a_long_message_ends_at_a_word(text: str, shown: str) -> None:
    assert shortened(text, 13) == shown
