"""Derive how Triton batches requests: the preferred sizes, the queue delay and the number of instances."""

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
"""Largest time per sample of a preferred batch size, as a share of that at the preferred size before."""

DELAY = 2000
"""Default microseconds that a request may wait for others."""

_LONGEST = 60_000_000
"""Most microseconds of delay; a longer delay is taken for a typing error."""


@dataclass(frozen=True)
class Batching:
    """Triton's batching of requests.

    Args:
        sizes: preferred batch sizes, ascending.
        instances: copies that run at the same time.
        delay: microseconds that a request may wait.
        tuned: the values that come from ``tune``, in words.
    """

    sizes: tuple[int, ...]
    instances: int
    delay: int
    tuned: tuple[str, ...] = ()


def batching(sidecar: Sidecar, instances: int | None = None, delay: int | None = None) -> Batching:
    """Return how Triton batches requests: as requested, else as tuned, else by the build's measurements.

    The tuned batch is the largest preferred size. Triton goes beyond it only when requests have waited longer than
    allowed. The queue delay is half of what the latency budget leaves above the tuned latency; the other half is for
    the server and the network. The delay is at most the time of one batch: the next batch gathers during that time
    anyway.
    """
    tuned, fixed, found = sidecar.engine.tuned_choice, one_size(sidecar), []
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
    """Return the microseconds that a request may wait under the tuned latency budget; None without a budget."""
    if tuned.batch == 1:
        return 0  # waiting for others gains nothing
    if tuned.budget_ms is None:
        return None
    latency = tuned.latency_ms
    taken = latency.high if math.isfinite(latency.high) else latency.value
    waiting = min((tuned.budget_ms - taken) / 2, latency.value)
    return min(round(waiting * 1e3), _LONGEST) if waiting > 0 else 0


def preferred_sizes(sidecar: Sidecar) -> list[int]:
    """Return the batch sizes above 1 that are worth waiting for, ascending.

    These are the measured sizes on the lower envelope of the time per sample. At each of them a sample takes at least
    2 % less time than at the size kept before, so no mix of smaller sizes is as fast. Without measurements they are the
    powers of two and the profiles' opts.
    """
    largest = max(profile.max for profile in sidecar.engine.profiles)
    if not sidecar.engine.times:
        sizes = {*powers_of_two(1, largest), *(profile.opt for profile in sidecar.engine.profiles)}
        return sorted(size for size in sizes if 1 < size <= largest)
    kept: list[int] = []
    least = math.inf
    for size in sorted(sidecar.engine.times):
        per_sample = sidecar.engine.times[size] / size
        if per_sample <= GAIN * least:
            kept.append(size)
            least = per_sample
    return [size for size in kept if size > 1]


def one_size(sidecar: Sidecar) -> int | None:
    """Return the batch size of an engine that holds only one; else None."""
    sizes = {spec.fixed_batch for spec in (*sidecar.inputs, *sidecar.outputs)}
    return sizes.pop() if len(sizes) == 1 else None


_UNITS: Sequence[tuple[str, float]] = (("us", 1), ("µs", 1), ("ms", 1e3), ("s", 1e6))


def parse_delay(text: str) -> int:
    """Parse a delay, ``2ms``, ``500us`` or ``0.01s``, into microseconds.

    Raises:
        UsageError: the text isn't a delay, or the delay is over a minute.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?(us|µs|ms|s)", text.strip().lower())
    delay = round(float(match[1]) * dict(_UNITS)[match[2]]) if match else -1
    if not 0 <= delay <= _LONGEST:
        raise UsageError(
            f"`max_queue_delay_us={text!r}` is not a delay", "write it like 2ms, 500us or 0.01s: up to 60s"
        )
    return delay
