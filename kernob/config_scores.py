# SPDX-License-Identifier: Apache-2.0
"""What settings say of scores, as the rules they are formed by. Called by `config` and `features.scores`."""

from __future__ import annotations

import dataclasses

from kernob.config_settings import Settings
from kernob.model import DIMENSIONS, ScoreRules

MAX_BUCKETS = 360
_TOGETHER = ("KERNOB_SCORE_WINDOW", "KERNOB_SCORE_BUCKET", "KERNOB_SCORE_HALF_LIFE")


class ScoreSettingError(ValueError):
    """Settings that are each sound, but not together. `variables`: one of these is to be changed."""

    def __init__(self, variables: tuple[str, ...], expected: str) -> None:
        super().__init__(expected)
        self.variables = variables
        self.expected = expected


def score_rules(settings: Settings) -> ScoreRules:
    """The rules; raises ScoreSettingError for settings that do not fit together.

    >>> score_rules(Settings(score_window_s=60, score_half_life_s=30)).buckets
    6
    """
    usual = ScoreRules()
    bucket_s, window_s = settings.score_bucket_s, settings.score_window_s
    buckets = round(window_s / bucket_s)
    if not 3 <= buckets <= MAX_BUCKETS or abs(window_s - buckets * bucket_s) > 1e-9 * window_s:
        raise ScoreSettingError(
            _TOGETHER, f"a window of 3 to {MAX_BUCKETS} whole buckets (now {window_s:g} s of {bucket_s:g} s)"
        )
    if settings.score_half_life_s > window_s:
        raise ScoreSettingError(_TOGETHER[::-1], f"a half-life of at most the window ({window_s:g} s)")
    weights = dict(settings.score_weights)
    fewest = dict(settings.score_min_samples)
    weighted = tuple(weights.get(name, usual.weights[i]) for i, name in enumerate(DIMENSIONS))
    if not any(weighted):
        raise ScoreSettingError(("KERNOB_SCORE_WEIGHTS",), "weights that are not all 0")
    limits = dict(settings.score_thresholds)
    try:
        return dataclasses.replace(
            usual,
            bucket_s=bucket_s,
            buckets=buckets,
            half_life_s=settings.score_half_life_s,
            weights=weighted,
            min_samples=tuple(int(fewest.get(n, usual.min_samples[i])) for i, n in enumerate(DIMENSIONS)),
            latency_good=limits.get("latency_good", usual.latency_good),
            latency_bad=limits.get("latency_bad", usual.latency_bad),
            latency_slack_s=limits.get("latency_slack_ms", usual.latency_slack_s * 1e3) / 1e3,
            loss_good=limits.get("loss_good", usual.loss_good),
            loss_bad=limits.get("loss_bad", usual.loss_bad),
            objectives=settings.score_objectives,
            long_poll=settings.long_poll,
        )
    except ValueError as error:
        raise ScoreSettingError(
            ("KERNOB_SCORE_THRESHOLDS",), "1 <= latency_good < latency_bad, 0 < loss_good < loss_bad <= 1"
        ) from error
