"""How Triton is to make batches of requests: which sizes, how long it waits for them, how many at once."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from trtbatch.core.profiles import powers_of_two
from trtbatch.core.sidecar import Sidecar, Tuned
from trtbatch.errors import UsageError

__all__ = ["DELAY", "Batching", "batching", "one_size", "parse_delay", "preferred_sizes"]

GAIN = 0.98
"""A batch size is preferred where a sample takes at most this share of its time at the one before."""

DELAY = 2000
"""Microseconds that a request may wait for others, where nothing says otherwise."""

_LONGEST = 60_000_000
"""Microseconds; a longer delay is taken for a typing error."""


@dataclass(frozen=True)
class Batching:
    """How Triton makes batches of requests, and how many at once.

    Args:
        sizes: preferred batch sizes, ascending.
        instances: copies that run at the same time.
        delay: microseconds that a request may wait.
        tuned: which of these ``tune`` has found, in words.
    """

    sizes: tuple[int, ...]
    instances: int
    delay: int
    tuned: tuple[str, ...] = ()


def batching(sidecar: Sidecar, instances: int | None = None, delay: int | None = None) -> Batching:
    """How requests are batched: as asked for, else as ``tune`` has found it best, else by the build's measurements.

    The tuned batch is the largest preferred one, beyond which Triton goes only when requests have waited for longer
    than they may. What a latency budget leaves beside the tuned latency is halved: one half for the server and the
    network, the other to wait in, but not for longer than a batch takes, in which the next one gathers anyway.
    """
    tuned, fixed, found = sidecar.tuned_choice, one_size(sidecar), []
    sizes = [] if fixed is not None else preferred_sizes(sidecar)
    if tuned is not None and fixed is None:
        sizes = [*(size for size in sizes if size < tuned.batch), tuned.batch]
        found.append(f"batch {tuned.batch} as the largest preferred one")
    if tuned is not None and instances is None:
        instances = tuned.streams
        found.append("1 instance" if instances == 1 else f"{instances} instances")
    waiting = None if tuned is None or fixed is not None else _waiting(tuned)
    if waiting is not None and delay is None:
        delay = waiting
        found.append(f"a queue delay of {delay / 1e3:g} ms")
    return Batching(tuple(sizes), instances or 1, DELAY if delay is None else delay, tuple(found))


def _waiting(tuned: Tuned) -> int | None:
    """Microseconds that a request may wait, by the latency that was tuned for; None where none was."""
    if tuned.batch == 1:
        return 0  # nothing is gained by waiting for others
    if tuned.budget_ms is None:
        return None
    latency = tuned.latency_ms
    taken = latency.high if math.isfinite(latency.high) else latency.value
    waiting = min((tuned.budget_ms - taken) / 2, latency.value)
    return min(round(waiting * 1e3), _LONGEST) if waiting > 0 else 0


def preferred_sizes(sidecar: Sidecar) -> list[int]:
    """The batch sizes above 1 that are worth waiting for, ascending.

    Of the measured ones those on the lower envelope of the time per sample: a sample takes at least 2 % less than at
    the size kept before, so that no mix of those is as fast either. Without measurements: the powers of two, and the
    profiles' opts.
    """
    largest = max(profile.max for profile in sidecar.profiles)
    if not sidecar.times:
        sizes = {*powers_of_two(1, largest), *(profile.opt for profile in sidecar.profiles)}
        return sorted(size for size in sizes if 1 < size <= largest)
    kept: list[int] = []
    least = math.inf
    for size in sorted(sidecar.times):
        per_sample = sidecar.times[size] / size
        if per_sample <= GAIN * least:
            kept.append(size)
            least = per_sample
    return [size for size in kept if size > 1]


def one_size(sidecar: Sidecar) -> int | None:
    """The one batch size of an engine that has a single one."""
    sizes = {spec.fixed_batch for spec in (*sidecar.inputs, *sidecar.outputs)}
    return sizes.pop() if len(sizes) == 1 else None


_UNITS: Sequence[tuple[str, float]] = (("us", 1), ("µs", 1), ("ms", 1e3), ("s", 1e6))


def parse_delay(text: str) -> int:
    """``2ms``, ``500us`` or ``0.01s`` in microseconds.

    Raises:
        UsageError: anything else, or over a minute.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?(us|µs|ms|s)", text.strip().lower())
    delay = round(float(match[1]) * dict(_UNITS)[match[2]]) if match else -1
    if not 0 <= delay <= _LONGEST:
        raise UsageError(f"--max-queue-delay {text!r} is not a delay", "write it like 2ms, 500us or 0.01s: up to 60s")
    return delay
