# SPDX-License-Identifier: Apache-2.0
"""Scores of dependencies: five dimensions and their composite. docs/scores.md says what they mean.

In: weighted counts of a window and histograms of durations (`state.score_windows`), rules. Out: arrays in
0..1, 1 is healthy, NaN where there is no score. Called by `features.scores`. Pure: no clock, no file.

Ratios. A dead dimension is 0, a sound one 1:

>>> ratio(bad=np.array([0, 1, 4, 0.0]), total=np.array([5, 4, 4, 0.0])).tolist()
[1.0, 0.75, 0.0, nan]

Latency. 1 up to 1.5 times the baseline, or less than 5 ms above it; 0 from 10 times on; between the two
linear in the logarithm: sqrt(1.5 * 10) = 3.87 times is the middle.

>>> rules = ScoreRules()
>>> latency(np.array([0.15, 0.3873, 1.0, 0.0049]), np.array([0.1, 0.1, 0.1, 0.0001]), rules).round(2).tolist()
[1.0, 0.5, 0.0, 1.0]

Packet health. 1 up to 0.1 % of segments sent again, 0 from 5 % on, linear in the logarithm between:
sqrt(0.001 * 0.05) = 0.707 % is the middle.

>>> packet_health(np.array([1, 70.71, 500.0]), np.array([10_000, 10_000, 10_000.0]), rules).round(2).tolist()
[1.0, 0.5, 0.0]

The composite is the weighted geometric mean of the dimensions that have a score, each at least 0.01, so
that a dead one cannot be averaged away. Reliability 0 and all else 1 is 0.01^0.35; packet health 0.5 and
all else 1 is 0.5^0.10; with reliability 0.9 and stability 1 only it is 0.9^(0.35 / 0.55):

>>> nan = math.nan
>>> rows = np.array([[0, 1, 1, 1, 1], [1, 1, 1, 0.5, 1], [0.9, nan, 1, nan, nan], [nan] * 5])
>>> composite(rows, rules).round(3).tolist()
[0.2, 0.933, 0.935, nan]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernob.model import Dimension, Drop, ScoreRules
from kernob.state.buckets import BUCKETS, LOWER_S, UPPER_S
from kernob.state.score_windows import Column, Sums

Floats = NDArray[np.float64]

QUANTILE = 0.95
"""What a latency is compared by."""


def ratio(bad: Floats, total: Floats) -> Floats:
    """1 - bad / total, in 0..1; NaN where nothing was counted."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share: Floats = bad / total
    return np.clip(1 - share, 0.0, 1.0)


def _falling(value: Floats, good: Floats | float, bad: Floats | float) -> Floats:
    """1 up to `good`, 0 from `bad` on, linear in the logarithm between."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.log(value / good) / np.log(bad / np.asarray(good))
    steps = np.where(value <= good, 0.0, steps)
    found: Floats = np.clip(1 - steps, 0.0, 1.0)
    return found


def latency(recent_s: Floats, baseline_s: Floats, rules: ScoreRules) -> Floats:
    """How much longer than usual things take; NaN where either is. Both are quantiles, in seconds."""
    score = _falling(recent_s, rules.latency_good * baseline_s, rules.latency_bad * baseline_s)
    return np.where(recent_s - baseline_s < rules.latency_slack_s, 1.0, score)


def packet_health(retransmits: Floats, segments: Floats, rules: ScoreRules) -> Floats:
    """How few of the data segments had to be sent again; NaN where none was sent."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rate: Floats = retransmits / segments
    return _falling(rate, rules.loss_good, rules.loss_bad)


def composite(scores: Floats, rules: ScoreRules) -> Floats:
    """The weighted geometric mean of rows of five (by Dimension); NaN where no weighted one has a score."""
    weights = np.array(rules.weights)
    logs = np.log(np.maximum(scores, rules.floor))
    present = ~np.isnan(scores)
    total = present @ weights
    summed = np.where(present, logs, 0.0) @ weights
    with np.errstate(divide="ignore", invalid="ignore"):
        mean: Floats = np.exp(summed / total)
    return np.where(total > 0, np.minimum(mean, 1.0), math.nan)


_GROUP: Final = 16
_GROUPS: Final = BUCKETS // _GROUP
_BY_GROUP: Final = np.kron(np.eye(_GROUPS), np.ones((_GROUP, 1))).astype(np.float32)


def quantile(histograms: NDArray[np.float32], at: float = QUANTILE) -> Floats:
    """The quantile of each histogram (rows of BUCKETS, `state.buckets`), in seconds; NaN for an empty one.

    Interpolated within its bucket, as if its observations were spread evenly. Looks for the group of buckets
    first, then within it, because that reads each count only once.

    >>> rows = np.zeros((1, len(UPPER_S)), np.float32)
    >>> rows[0, 80] = 100  # from 0.84 to 1 s
    >>> quantile(rows).round(3).tolist(), quantile(rows, 0.5).round(3).tolist()
    ([0.992], [0.92])
    """
    rows = np.arange(len(histograms))
    groups = np.cumsum((histograms @ _BY_GROUP).astype(np.float64), axis=1)
    total = groups[:, -1]
    wanted = total * at
    group = np.minimum((groups < wanted[:, None]).sum(axis=1), _GROUPS - 1)
    inside = histograms.reshape(len(rows), _GROUPS, _GROUP)[rows, group].astype(np.float64)
    before = np.where(group > 0, groups[rows, group - 1], 0.0)
    reached = before[:, None] + np.cumsum(inside, axis=1)
    place = np.minimum((reached < wanted[:, None]).sum(axis=1), _GROUP - 1)
    within = inside[rows, place]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip((wanted - reached[rows, place] + within) / within, 0.0, 1.0)
    bucket = group * _GROUP + place
    found = LOWER_S[bucket] + share * (UPPER_S[bucket] - LOWER_S[bucket])
    return np.where(total > 0, found, math.nan)


def scores(sums: Sums, rules: ScoreRules, latencies: Floats) -> Floats:
    """Rows of five by Dimension; NaN where there are too few samples. `latencies` as of `latency_scores`."""
    weighted, enough = sums.weighted, samples(sums) >= np.array(rules.min_samples)
    found = np.empty((len(weighted), len(Dimension)))
    for dimension, total, bad in (
        (Dimension.RELIABILITY, Column.ATTEMPTS, Column.FAILED),
        (Dimension.STABILITY, Column.FINISHED, Column.DROPPED),
        (Dimension.RESPONSIVENESS, Column.WAITED, Column.SILENT),
    ):
        found[:, dimension] = ratio(weighted[:, bad], weighted[:, total])
    found[:, Dimension.PACKET_HEALTH] = packet_health(
        weighted[:, Column.RETRANSMITS], weighted[:, Column.SEGMENTS], rules
    )
    found[:, Dimension.LATENCY] = latencies
    return np.where(enough | (np.arange(len(Dimension)) == Dimension.LATENCY), found, math.nan)


def latency_scores(recent_s: Floats, counts: NDArray[np.int64], usual_s: Floats, rules: ScoreRules) -> Floats:
    """The worse of connect and response, per row. All have two columns: connect, response.

    `recent_s` are quantiles of the window, `counts` its raw samples, `usual_s` baselines or objectives,
    NaN where none counts yet.
    """
    each = latency(recent_s, usual_s, rules)
    each[(counts < rules.min_samples[Dimension.LATENCY]) | np.isnan(recent_s) | np.isnan(usual_s)] = math.nan
    return np.fmin(each[:, 0], each[:, 1])


def worst(scores: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Per dimension the lowest of several scores by dimension.

    >>> worst([{"latency": 0.5}, {}, {"latency": 0.2, "stability": 1.0}])
    {'latency': 0.2, 'stability': 1.0}
    """
    found: dict[str, float] = {}
    for each in scores:
        for dimension, score in each.items():
            found[dimension] = min(score, found.get(dimension, score))
    return found


_STABILITY_REASONS: Final = frozenset(drop.name.lower() for drop in Drop)


def dimension_of(reason: str) -> Dimension:
    """The dimension that a failure of this kind brings down."""
    if reason in _STABILITY_REASONS:
        return Dimension.STABILITY
    return Dimension.RESPONSIVENESS if reason == "silent" else Dimension.RELIABILITY


def samples(sums: Sums) -> NDArray[np.int64]:
    """How many observations each dimension rests on: rows of five by Dimension."""
    found = np.empty((len(sums.raw), len(Dimension)), np.int64)
    found[:, Dimension.RELIABILITY] = sums.raw[:, Column.ATTEMPTS]
    found[:, Dimension.LATENCY] = sums.timed.max(axis=1, initial=0)
    found[:, Dimension.STABILITY] = sums.raw[:, Column.FINISHED]
    found[:, Dimension.PACKET_HEALTH] = sums.raw[:, Column.SEGMENTS]
    found[:, Dimension.RESPONSIVENESS] = sums.raw[:, Column.WAITED]
    return found
