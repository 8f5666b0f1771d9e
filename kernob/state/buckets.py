# SPDX-License-Identifier: Apache-2.0
"""The buckets of every histogram: four an octave, the same in the kernel's maps and in OTLP.

In: a duration. Out: its bucket. The kernel side counts (struct duration_val of bpf/types.h), so that
`bucket_of` is for tests and for explaining. Bucket i holds what is above 2**((i-1)/4 - 20) seconds, up
to and including 2**(i/4 - 20): the bounds of OTLP's exponential histograms of scale 2. Bucket 0 holds
all from 0 to 2**-20 s (0.95 us), the last one all above its lower bound (181 s).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

SCALE: Final = 2
"""OTLP: bounds are powers of 2**(2**-SCALE)."""

BUCKETS: Final = 112
"""Buckets of a histogram; DURATION_BUCKETS of bpf/types.h."""

FIRST_INDEX: Final = -80
"""OTLP's index of bucket 1; bucket 0 is OTLP's zero bucket."""

LOWEST_S: Final = 2.0**-20
"""Upper bound of bucket 0, in seconds; OTLP's zero_threshold."""

UPPER_S: Final[NDArray[np.float64]] = 2.0 ** (np.arange(BUCKETS) / 4 - 20)
"""Upper bound of each bucket, in seconds (the last one has none, really)."""

LOWER_S: Final[NDArray[np.float64]] = np.concatenate((np.zeros(1), UPPER_S[:-1]))
"""Lower bound of each bucket, in seconds."""

_TO_UNITS: Final = 1_125_900  # 2**50 / 10**9: nanoseconds times this, shifted by 20, are units of 2**-30 s
_QUARTERS: Final = (5_107_605_667, 6_074_000_999, 7_223_245_205)  # 2**32 times 2**(1/4), 2**(1/2), 2**(3/4)


def bucket_of(duration_ns: int) -> int:
    """Return the bucket of a duration, by whole numbers alone: bounds hold to 1 part in 10 million.

    >>> bucket_of(0), bucket_of(1_000_000), bucket_of(999_999_000), bucket_of(10**13)
    (0, 41, 80, 111)
    """
    units = duration_ns * _TO_UNITS >> 20
    if units <= 1 << 10:
        return 0
    octave = (units - 1).bit_length() - 1 if units & (units - 1) == 0 else units.bit_length() - 1
    fraction = (units << 32) >> octave
    quarter = 1 + sum(fraction > bound for bound in _QUARTERS)
    return min(BUCKETS - 1, 4 * (octave - 10) + quarter)
