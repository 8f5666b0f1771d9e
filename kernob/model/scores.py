# SPDX-License-Identifier: Apache-2.0
"""What a dependency's score is made of: dimensions, and the rules they are formed by. docs/scores.md."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass


class Dimension(enum.IntEnum):
    """What is scored, each in 0..1; the name in lower case is kernob.score.dimension."""

    RELIABILITY = 0
    LATENCY = 1
    STABILITY = 2
    PACKET_HEALTH = 3
    RESPONSIVENESS = 4


DIMENSIONS: tuple[str, ...] = tuple(dimension.name.lower() for dimension in Dimension)
COMPOSITE = "composite"


@dataclass(frozen=True, slots=True)
class Dependency:
    """A destination that a service uses: what one window of scores is kept for."""

    service: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class ScoreRules:
    """How scores are formed. Tuples of five go by Dimension.

    A window is a ring of `buckets` of `bucket_s` seconds; a bucket's weight is 2^(-age / half_life_s).
    `latency_good` and `latency_bad` are multiples of the baseline, `loss_good` and `loss_bad` shares of
    segments; between the two a score falls linearly in the logarithm. Less than `latency_slack_s` above the
    baseline is never slow. A baseline counts from `baseline_min` samples on. `objectives` are baselines in
    seconds by address; `long_poll` are addresses whose silence is by design.

    Raises ValueError, one line, for rules that make no sense.
    """

    bucket_s: float = 10.0
    buckets: int = 60
    half_life_s: float = 120.0
    weights: tuple[float, ...] = (0.35, 0.15, 0.20, 0.10, 0.20)
    min_samples: tuple[int, ...] = (5, 20, 5, 500, 5)
    latency_good: float = 1.5
    latency_bad: float = 10.0
    latency_slack_s: float = 0.005
    loss_good: float = 0.001
    loss_bad: float = 0.05
    floor: float = 0.01
    baseline_half_life_s: float = 86_400.0
    baseline_min: int = 100
    objectives: tuple[tuple[str, float], ...] = ()
    long_poll: tuple[str, ...] = ()

    @property
    def window_s(self) -> float:
        """Length of the window."""
        return self.bucket_s * self.buckets

    def __post_init__(self) -> None:
        for sound, problem in (
            (len(self.weights) == len(self.min_samples) == len(Dimension), "a weight for each dimension"),
            (all(math.isfinite(w) and w >= 0 for w in self.weights), "weights of at least 0"),
            (any(w > 0 for w in self.weights), "a weight above 0"),
            (all(count >= 1 for count in self.min_samples), "at least 1 sample"),
            (self.bucket_s > 0 and self.buckets >= 3, "a window of at least 3 buckets"),
            (0 < self.half_life_s <= self.window_s, "a half-life within the window"),
            (1 <= self.latency_good < self.latency_bad, "1 <= latency_good < latency_bad"),
            (self.latency_slack_s >= 0, "a slack of at least 0"),
            (0 < self.loss_good < self.loss_bad <= 1, "0 < loss_good < loss_bad <= 1"),
            (0 < self.floor < 1, "a floor between 0 and 1"),
            (self.baseline_half_life_s > 0 and self.baseline_min >= 1, "a baseline that can be"),
            (all(seconds > 0 for _host, seconds in self.objectives), "objectives above 0"),
        ):
            if not sound:
                raise ValueError(f"scores need {problem}")
