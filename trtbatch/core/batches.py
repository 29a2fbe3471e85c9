"""Parse lists of batch sizes, and describe optimization profiles.

The grammar of a batch list::

    list   =  item { "," item }
    item   =  NUMBER  |  NUMBER "-" NUMBER  |  "..." "," NUMBER

    1,2,4           the numbers themselves
    1-4             1 2 3 4
        1,2,4,...,32    three terms before the dots give a ratio (1 2 4 8 16 32) …
        1,2,3,...,8     … or a step (1 2 3 4 5 6 7 8)
        8,16,...,64     two terms before the dots give a step (8 16 24 … 64)

A progression must hit its end exactly. Forms mix freely: ``1-4,8,16,...,64,100``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from trtbatch.errors import BatchListError, ProfileError, UsageError

__all__ = ["MAX_BATCH", "Profile", "parse_batches", "pick_profile", "refuse_no_profile", "refuse_outside"]

MAX_BATCH = 1_000_000
"""Larger batch sizes count as typing errors."""

MAX_LENGTH = 10_000
"""Longer lists count as typing errors."""

_MOST_NAMED = 5
"""Ranges of refused sizes that a message shows."""

_NUMBER = re.compile(r"[0-9]+", re.ASCII)
_RANGE = re.compile(r"([0-9]+)-([0-9]+)", re.ASCII)
_DOTS = frozenset({"...", "…"})
_HELP = "write batch sizes like 1,2,4,...,32 or 8,16,...,64 or 1-4"
_SIZES = f"give sizes from 1 to {MAX_BATCH}"
_SHORTER = f"write a list of 1 to {MAX_LENGTH} sizes"


def parse_batches(text: str) -> list[int]:
    """Return the batch sizes of a list in the order written, each once.

    Raises:
        BatchListError: a part of `text` can't be read; the message shows it.
    """
    terms = [term.strip() for term in text.split(",")]
    found: list[int] = []
    run: list[int] = []  # plain numbers since the last range or progression, which dots may continue
    position = 0
    while position < len(terms):
        term = terms[position]
        if term in _DOTS:
            if position + 1 >= len(terms):
                raise BatchListError(f"batch list {text!r}: nothing follows {term!r}", _HELP)
            new = _continue(run, _number(terms[position + 1], text), text)
            run = []
            position += 2
        elif match := _RANGE.fullmatch(term):
            new = _range(_number(match[1], text), _number(match[2], text), text)
            run = []
            position += 1
        else:
            new = [_number(term, text)]
            run += new
            position += 1
        found += new
        if len(found) > MAX_LENGTH:
            raise BatchListError(f"batch list {text!r} is longer than {MAX_LENGTH} sizes", _SHORTER)
    return list(dict.fromkeys(found))


def _number(term: str, text: str) -> int:
    if not term:
        raise BatchListError(f"batch list {text!r} has an empty part", _HELP)
    if not _NUMBER.fullmatch(term):
        raise BatchListError(f"batch list {text!r}: {term!r} is not a batch size", _meant(term))
    value = int(term) if len(term) <= 12 else MAX_BATCH + 1
    if not 1 <= value <= MAX_BATCH:
        raise BatchListError(f"batch list {text!r}: {term} is not between 1 and {MAX_BATCH}", _SIZES)
    return value


def _meant(term: str) -> str:
    """Return the fix for a part that is no batch size: the size that was meant, where that is clear."""
    if re.fullmatch(r"[0-9]+ ?(?:\.{2,}|…|:|–|to) ?[0-9]+", term, re.ASCII):
        first, last = re.findall("[0-9]+", term)
        return f"write {first}-{last} for all sizes from {first} to {last}, or {first},...,{last} with terms between"
    numbers = re.findall("[0-9]+", term)
    scaled = re.search("[0-9][kKmM]", term)  # 4k may be 4000 or 4096
    if len(numbers) == 1 and not scaled and len(numbers[0]) <= 7 and 1 <= int(numbers[0]) <= MAX_BATCH:
        return f"write {int(numbers[0])}"
    return _HELP


def _range(first: int, last: int, text: str) -> list[int]:
    if first > last:
        raise BatchListError(f"batch list {text!r}: the range {first}-{last} is empty", f"write {last}-{first}")
    if last - first >= MAX_LENGTH:
        raise BatchListError(f"batch list {text!r}: {first}-{last} is longer than {MAX_LENGTH} sizes", _SHORTER)
    return list(range(first, last + 1))


def _continue(run: Sequence[int], end: int, text: str) -> list[int]:
    """Return the terms that the dots stand for, including `end`."""
    shown = ",".join(map(str, run[-3:]))
    if len(run) < 2:
        raise BatchListError(
            f"batch list {text!r}: the dots follow {shown or 'nothing'}; they need two terms (a step) or three", _HELP
        )
    step: Fraction | None = None
    ratio: Fraction | None = None
    if len(run) == 2:
        step = Fraction(run[1] - run[0])
    else:
        a, b, c = run[-3:]
        step = Fraction(c - b) if c - b == b - a else None
        ratio = Fraction(c, b) if step is None and b * b == a * c else None
    if (step is None and ratio is None) or step == 0:
        raise BatchListError(f"batch list {text!r}: {shown},... is neither a constant step nor a constant ratio", _HELP)
    values: list[int] = []
    value = Fraction(run[-1])
    while value != end:
        grows = step > 0 if step is not None else ratio is not None and ratio > 1
        value = value + step if step is not None else value * (ratio or 1)
        beyond = value > end if grows else value < end
        if beyond or value.denominator != 1 or len(values) > MAX_LENGTH:
            reached = values[-1] if values else run[-1]
            raise BatchListError(
                f"batch list {text!r}: {shown},... does not hit {end} (it goes {reached}, {_shown(value)})", _HELP
            )
        values.append(int(value))
    return values


def _shown(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):g}"


@dataclass(frozen=True, order=True)
class Profile:
    """Optimization profile of the batch axis: the allowed sizes, and the size that TensorRT tunes for.

    Raises:
        ProfileError: unless 1 ≤ min ≤ opt ≤ max.
    """

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max <= MAX_BATCH:
            raise ProfileError(
                f"profile {self} is impossible: min {self.min}, opt {self.opt}, max {self.max}",
                f"choose 1 ≤ min ≤ opt ≤ max ≤ {MAX_BATCH}",
            )

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    def __contains__(self, batch: int) -> bool:
        return self.min <= batch <= self.max

    @property
    def corners(self) -> tuple[int, ...]:
        """Return min, opt and max, each once."""
        return tuple(dict.fromkeys((self.min, self.opt, self.max)))

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Return the profile that ``MIN:OPT:MAX`` describes.

        Raises:
            ProfileError: the text has another form.
        """
        parts = text.split(":")
        if len(parts) != 3 or not all(_NUMBER.fullmatch(part) and len(part) <= 12 for part in parts):
            raise ProfileError(f"{text!r} is not a profile", "write MIN:OPT:MAX, for example 1:16:32")
        return cls(*(int(part) for part in parts))

    @classmethod
    def complete(cls, min_: int | None, opt: int | None, max_: int | None) -> Profile:
        """Return a profile with the values given; the others are those of 1:16:32, widened where necessary."""
        low = 1 if min_ is None else min_
        high = max_ if max_ is not None else max(32, low, opt or 0)
        return cls(low, min(max(16, low), high) if opt is None else opt, high)


def pick_profile(profiles: Sequence[Profile], batch: int) -> int | None:
    """Return the index of the profile with the nearest opt among those that hold `batch`, or None if none does.

    Ties go to the profile with the smaller maximum, then to the earlier one.
    """
    fitting = [index for index, profile in enumerate(profiles) if batch in profile]
    return min(fitting, key=lambda index: (abs(profiles[index].opt - batch), profiles[index].max), default=None)


def refuse_outside(profiles: Sequence[Profile], batches: Sequence[int], artifact: str) -> None:
    """Raise unless every batch fits a profile.

    Raises:
        ProfileError: the message names the batches and the profiles; the fix names a new build and another batch.
    """
    outside = [batch for batch in batches if pick_profile(profiles, batch) is None]
    if not outside:
        return
    ranges = ", ".join(map(str, profiles))
    what = f"batch {outside[0]} is" if len(outside) == 1 else f"batches {_listed(outside)} are"
    if all(profile.min == profile.max for profile in profiles):
        rebuild = f"rebuild with `static={outside[0]}`, or from a dynamic ONNX with `min`, `opt` and `max`"
    elif max(outside) > max(profile.max for profile in profiles):
        rebuild = f"rebuild with `max={max(outside)}`"
    elif min(outside) < min(profile.min for profile in profiles):
        rebuild = f"rebuild with `min={min(outside)}`"
    else:
        rebuild = f"rebuild with a profile that holds {outside[0]}"
    others = len(outside) < len(batches)
    without = f"leave out {_listed(outside)}" if others else f"pass `batches=[{nearest_inside(profiles, outside[0])}]`"
    raise ProfileError(f"{what} outside every profile of {artifact} ({ranges})", f"{rebuild}, or {without}")


def _listed(batches: Sequence[int]) -> str:
    """Return sizes as ranges, ``33-40, 64``, cut after :data:`_MOST_NAMED` with the number of sizes left out."""
    pieces: list[list[int]] = []
    for batch in sorted(set(batches)):
        if pieces and batch == pieces[-1][-1] + 1:
            pieces[-1].append(batch)
        else:
            pieces.append([batch])
    shown = [str(each[0]) if len(each) == 1 else f"{each[0]}-{each[-1]}" for each in pieces[:_MOST_NAMED]]
    rest = sum(len(each) for each in pieces[_MOST_NAMED:])
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def refuse_no_profile(profiles: Sequence[Profile], profile: int | None, artifact: str) -> None:
    """Raise where an engine has no profile of this index.

    Raises:
        UsageError: the fix lists the engine's profiles.
    """
    if profile is not None and not 0 <= profile < len(profiles):
        there = ", ".join(f"{index} ({each})" for index, each in enumerate(profiles))
        raise UsageError(f"{artifact} has no profile {profile}", f"pass one of: {there}")


def nearest_inside(profiles: Sequence[Profile], batch: int) -> int:
    """Return the allowed batch size nearest to `batch`."""
    candidates = [min(max(batch, profile.min), profile.max) for profile in profiles]
    return min(candidates, key=lambda size: abs(size - batch))
