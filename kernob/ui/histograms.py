# SPDX-License-Identifier: Apache-2.0
"""What screens make of histograms: quantiles, bars, and durations in a few characters. Pure functions.

A histogram is a mapping from bucket to count; `bounds_s` are the buckets' upper bounds in seconds, rising,
the last bucket having none really (the agent's answer says them). Called by `ui.syscalls`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Buckets = Mapping[int, int]

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_LEVELS = " ▁▂▃▄▅▆▇█"
OCTAVE = 4
"""Buckets in which a duration doubles."""


def span(seconds: float) -> str:
    """Return a duration in at most 6 characters.

    >>> span(0), span(0.00000123), span(0.0456), span(1), span(59.96), span(75), span(7200), span(200_000)
    ('0', '1.23us', '45.6ms', '1.00s', '60.0s', '1m 15s', '2h 0m', '2d 7h')
    """
    if seconds <= 0:
        return "0"
    if seconds >= 59.995:
        if seconds < 60:
            return "60.0s"
        return _long(int(seconds))
    for size, unit in _UNITS:
        if seconds >= size * 0.9995 or unit == "ns":
            value = seconds / size
            decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{decimals}f}{unit}"
    raise AssertionError("the last unit takes all")


def _long(seconds: int) -> str:
    for size, unit, below, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{seconds // size}{unit} {seconds % size // below}{smaller}"
    return f"{seconds}s"


def quantile(buckets: Buckets, share: float, bounds_s: Sequence[float]) -> float:
    """Return the duration (s) below which this share (0..1) lies: the middle of its bucket; 0 without any.

    At most 9 % off, but for the first bucket (all below 1 us) and the last (all above its lower bound).
    """
    total = sum(buckets.values())
    seen = 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if total and seen >= share * total:
            upper_s = bounds_s[bucket]
            return math.sqrt(bounds_s[bucket - 1] * upper_s) if bucket else upper_s / 2
    return 0.0


def longest(buckets: Buckets, bounds_s: Sequence[float]) -> float:
    """Return the upper bound (s) of the highest bucket that is not empty; 0 without any."""
    filled = [bucket for bucket, count in buckets.items() if count]
    return bounds_s[max(filled)] if filled else 0.0


def sparkline(buckets: Buckets, cells: int, last: int) -> str:
    """Return counts as bars in exactly `cells` cells, over all buckets up to `last`; one is always seen.

    Heights are logarithmic, so that one slow call beside a million fast ones shows.
    """
    sums = [0] * cells
    for bucket, count in buckets.items():
        sums[min(cells - 1, bucket * cells // (last + 1))] += count
    most = math.log1p(max(sums, default=0))
    return "".join(_LEVELS[max(1, round(8 * math.log1p(each) / most))] if each else " " for each in sums)


def octaves(buckets: Buckets, bounds_s: Sequence[float]) -> list[tuple[float, float, int]]:
    """Return (above s, up to s, count) by powers of two, from the first to the last that is not empty."""
    sums: dict[int, int] = {}
    for bucket, count in buckets.items():
        if count:
            sums[-(-bucket // OCTAVE)] = sums.get(-(-bucket // OCTAVE), 0) + count
    rows = []
    for octave in range(min(sums, default=0), max(sums, default=-1) + 1):
        upper = min(octave * OCTAVE, len(bounds_s) - 1)
        lower_s = bounds_s[octave * OCTAVE - OCTAVE] if octave else 0.0
        rows.append((lower_s, bounds_s[upper], sums.get(octave, 0)))
    return rows
