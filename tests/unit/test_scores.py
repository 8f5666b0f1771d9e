# SPDX-License-Identifier: Apache-2.0
"""derive.scores and state.score_windows: what scores promise, whatever happened."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernob.config import load_settings
from kernob.config_scores import score_rules
from kernob.derive import scores as derive
from kernob.errors import ConfigError
from kernob.model import Dimension, ScoreRules
from kernob.state.buckets import BUCKETS, LOWER_S, UPPER_S
from kernob.state.score_windows import Column, ScoreWindows, Timed

RULES = ScoreRules()
ROW = np.array([0])
ONE = np.array([1])
PAIRS = {
    Dimension.RELIABILITY: (Column.ATTEMPTS, Column.FAILED),
    Dimension.STABILITY: (Column.FINISHED, Column.DROPPED),
    Dimension.RESPONSIVENESS: (Column.WAITED, Column.SILENT),
}
NONE = np.array([math.nan])


def windows(rules: ScoreRules = RULES) -> ScoreWindows:
    """Empty ones, at 0 s."""
    made = ScoreWindows(rules)
    made.make_room(4, 100)
    made.advance(0)
    return made


def add(made: ScoreWindows, dimension: Dimension, good: int, bad: int, at_s: float, row: int = 0) -> None:
    """Counts outcomes."""
    whole, failures = PAIRS[dimension]
    made.count(np.array([row]), whole, np.array([good + bad]), at_s)
    made.count(np.array([row]), failures, np.array([bad]), at_s)


def scored(made: ScoreWindows, row: int = 0, latency: float = math.nan) -> np.ndarray:
    """Five dimensions and the composite, of one row."""
    sums = made.sums(4)
    each = derive.scores(sums, made.rules, np.full(4, latency))
    return np.append(each[row], derive.composite(each, made.rules)[row])


def test_the_worked_examples_hold() -> None:
    """Those of docs/scores.md stand in the module itself."""
    result = doctest.testmod(derive)
    assert (result.failed, result.attempted > 8) == (0, True)


outcomes = st.lists(
    st.tuples(st.sampled_from(sorted(PAIRS)), st.integers(0, 50), st.integers(0, 50), st.floats(0, 590)),
    max_size=40,
)


@given(outcomes, st.floats(0, 0.2), st.integers(0, 10_000))
def test_every_score_lies_between_0_and_1_or_is_absent(
    happened: list[tuple[Dimension, int, int, float]], loss: float, segments: int
) -> None:
    """Whatever is counted, whenever."""
    made = windows()
    for dimension, good, bad, at_s in sorted(happened, key=lambda each: each[3]):
        made.advance(at_s)
        add(made, dimension, good, bad, at_s)
    made.count(ROW, Column.SEGMENTS, np.array([segments]), 590)
    made.count(ROW, Column.RETRANSMITS, np.array([int(segments * loss)]), 590)
    found = scored(made)
    assert all(math.isnan(value) or 0 <= value <= 1 for value in found)


@given(
    st.sampled_from(sorted(PAIRS)), st.integers(5, 100), st.integers(0, 100), st.integers(1, 50),
    st.integers(0, 59),
)  # fmt: skip
def test_another_failure_never_raises_a_score(
    dimension: Dimension, good: int, bad: int, more: int, age: int
) -> None:
    """A success becoming a failure, or one more failure, whenever in the window."""
    first, second = windows(), windows()
    for made, failures in ((first, 0), (second, more)):
        for bucket in range(60):
            made.advance(bucket * 10)
            if bucket % 7 == 0:
                add(made, dimension, good, bad, bucket * 10)
            if bucket == age:
                add(made, dimension, 0, failures, bucket * 10)
    assert scored(second)[dimension] <= scored(first)[dimension] + 1e-6


@given(st.sampled_from(sorted(PAIRS)), st.integers(0, 57), st.integers(1, 30), st.integers(30, 90))
def test_recent_failures_weigh_more(dimension: Dimension, older: int, bad: int, good: int) -> None:
    """The same failures, later, give a lower score."""
    found = []
    for failed_in in (older, older + 1):
        made = windows()
        for bucket in range(60):
            made.advance(bucket * 10)
            add(made, dimension, good, bad if bucket == failed_in else 0, bucket * 10)
        found.append(scored(made)[dimension])
    assert found[1] < found[0] < 1


@given(outcomes)
def test_after_a_window_and_a_bucket_of_health_the_score_is_1(
    happened: list[tuple[Dimension, int, int, float]],
) -> None:
    """Nothing is left of what failed; exactly 1, not nearly."""
    made = windows()
    for dimension, good, bad, at_s in sorted(happened, key=lambda each: each[3]):
        made.advance(at_s)
        add(made, dimension, good, bad, at_s)
    made.advance(590)
    for bucket in range(60, 121):
        made.advance(bucket * 10)
        for dimension in PAIRS:
            add(made, dimension, 1, 0, bucket * 10)
    assert [scored(made)[dimension] for dimension in PAIRS] == [1.0, 1.0, 1.0]
    assert scored(made)[-1] == 1.0


@given(st.sampled_from(sorted(PAIRS)), st.integers(0, 4), st.integers(0, 4))
def test_below_the_minimum_of_samples_there_is_no_score(dimension: Dimension, good: int, bad: int) -> None:
    """Neither 0 nor 1; with the fifth there is one."""
    made = windows()
    add(made, dimension, good, bad, 0)
    assert math.isnan(scored(made)[dimension]) == (good + bad < 5)
    assert math.isnan(scored(made)[-1]) == (good + bad < 5)


def test_packet_health_needs_500_segments() -> None:
    """At 499 there is no score."""
    made = windows()
    made.count(ROW, Column.SEGMENTS, np.array([499]), 0)
    made.count(ROW, Column.RETRANSMITS, np.array([25]), 0)
    assert math.isnan(scored(made)[Dimension.PACKET_HEALTH])
    made.count(ROW, Column.SEGMENTS, ONE, 0)
    assert scored(made)[Dimension.PACKET_HEALTH] == pytest.approx(0.0, abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5), st.integers(0, 4))
def test_a_dead_dimension_caps_the_composite(each: list[float], dead: int) -> None:
    """At 0.01 to the power of its weight, however well all else is."""
    each[dead] = 0.0
    found = derive.composite(np.array([each]), RULES)[0]
    assert found <= 0.01 ** RULES.weights[dead] + 1e-9


@given(st.permutations([(d, good, bad) for d in PAIRS for good, bad in ((3, 1), (0, 2), (9, 0))]))
def test_the_order_within_a_bucket_is_irrelevant(order: list[tuple[Dimension, int, int]]) -> None:
    """Ten seconds know no before and after."""
    made, straight = windows(), windows()
    for index, (dimension, good, bad) in enumerate(order):
        add(made, dimension, good, bad, index)
    for dimension, good, bad in sorted(order):
        add(straight, dimension, good, bad, 3)
    assert scored(made)[:3].tolist() == pytest.approx(scored(straight)[:3].tolist(), nan_ok=True)


@given(st.integers(0, 200), st.integers(0, 400))
def test_what_is_reported_late_counts_where_it_happened(at_bucket: int, later: int) -> None:
    """Buckets go by when something happened; what is older than the window counts nowhere."""
    late, prompt = windows(), windows()
    prompt.advance(at_bucket * 10)
    add(prompt, Dimension.RELIABILITY, 5, 5, at_bucket * 10)
    prompt.advance((at_bucket + later) * 10)
    late.advance((at_bucket + later) * 10)
    add(late, Dimension.RELIABILITY, 5, 5, at_bucket * 10)
    assert late.sums(4).raw.tolist() == prompt.sums(4).raw.tolist()
    assert np.allclose(late.sums(4).weighted, prompt.sums(4).weighted)
    assert late.sums(4).raw[0, Column.FAILED] == (5 if later < 60 else 0)


def lengths(seconds: float, count: int) -> np.ndarray:
    """A histogram of `count` durations of the same length."""
    row = np.zeros((1, BUCKETS), np.uint32)
    row[0, int(np.searchsorted(UPPER_S, seconds))] = count
    return row


def test_durations_leave_no_trace() -> None:
    """Neither in counts nor in weights, once they are out of the window; the slow histogram keeps them."""
    made = windows()
    for bucket in range(80):
        made.advance(bucket * 10)
        made.time(ROW, np.array([Timed.CONNECT]), lengths(0.01 * (bucket + 1), 3), bucket * 10)
    made.advance(139 * 10)
    assert made.sums(4).timed[0].tolist() == [0, 0]
    assert not made.recent(slice(0, 4)).any()
    assert made.usual(slice(0, 4))[0, Timed.CONNECT].sum() == pytest.approx(240, rel=0.02)


@given(st.integers(0, BUCKETS - 2), st.integers(1, 10_000))
def test_a_quantile_lies_within_its_bucket(bucket: int, count: int) -> None:
    """Of one length only, every quantile is about that length."""
    row = np.zeros((1, BUCKETS), np.float32)
    row[0, bucket] = count
    assert LOWER_S[bucket] <= derive.quantile(row)[0] <= UPPER_S[bucket]


def test_latency_is_the_worse_of_both_and_needs_samples_and_a_baseline() -> None:
    """20 samples, and something to compare with."""
    recent, usual = np.array([[0.1, 0.5]]), np.array([[0.1, 0.1]])
    both = derive.latency_scores(recent, np.array([[20, 20]]), usual, RULES)
    assert both[0] == pytest.approx(1 - math.log(5 / 1.5) / math.log(10 / 1.5))
    assert derive.latency_scores(recent, np.array([[20, 19]]), usual, RULES)[0] == 1
    assert math.isnan(derive.latency_scores(recent, np.array([[19, 19]]), usual, RULES)[0])
    unknown = np.array([[math.nan, math.nan]])
    assert math.isnan(derive.latency_scores(recent, np.array([[20, 20]]), unknown, RULES)[0])


def test_a_row_that_is_used_again_begins_empty() -> None:
    """Counts, durations and reasons of another are gone, also from what leaves the window later."""
    made = windows()
    for row in (0, 1):
        add(made, Dimension.RELIABILITY, 5, 5, 0, row)
        made.time(np.array([row]), np.array([Timed.RESPONSE]), lengths(0.1, 30), 0)
        made.blame(row, "refused", 5, 0)
    made.forget(np.array([0]))
    assert (made.sums(4).raw[0].any(), made.reasons(0)) == (False, {})
    made.advance(700)
    assert made.sums(4).timed.tolist() == [[0, 0]] * 4
    assert (made.reasons(0), made.reasons(1)) == ({}, {})


def test_clear_says_when_the_last_failure_leaves() -> None:
    """And nothing where there is none."""
    made = windows()
    add(made, Dimension.RELIABILITY, 0, 5, 0)
    made.advance(100)
    assert made.clear_in_s(0, Column.FAILED) == 500
    assert made.clear_in_s(1, Column.FAILED) is None
    made.advance(590)
    assert made.clear_in_s(0, Column.FAILED) == 10
    made.advance(600)
    assert made.clear_in_s(0, Column.FAILED) is None


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"KERNOB_SCORE_HALF_LIFE": "601"}, "KERNOB_SCORE_HALF_LIFE is '601'"),
        ({"KERNOB_SCORE_BUCKET": "300"}, "KERNOB_SCORE_BUCKET is '300'"),
        ({"KERNOB_SCORE_WINDOW": "25"}, "KERNOB_SCORE_WINDOW is '25'"),
        (
            {"KERNOB_SCORE_WEIGHTS": "reliability=0,latency=0,stability=0,packet_health=0,responsiveness=0"},
            "must be weights that are not all 0",
        ),
        ({"KERNOB_SCORE_WEIGHTS": "latency=-1"}, "KERNOB_SCORE_WEIGHTS is"),
        ({"KERNOB_SCORE_WEIGHTS": "speed=1"}, "names being reliability, latency"),
        ({"KERNOB_SCORE_MIN_SAMPLES": "latency=0"}, "KERNOB_SCORE_MIN_SAMPLES is"),
        ({"KERNOB_SCORE_THRESHOLDS": "loss_good=0.1"}, "0 < loss_good < loss_bad <= 1"),
        ({"KERNOB_SCORE_OBJECTIVES": "db"}, "KERNOB_SCORE_OBJECTIVES is 'db'"),
    ],
)
def test_rules_that_make_no_sense_are_refused_in_one_line(environ: dict[str, str], said: str) -> None:
    """Before anything attaches; the line names the setting."""
    with pytest.raises(ConfigError) as caught:
        load_settings(environ)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_become_rules() -> None:
    """What is not named keeps its default."""
    rules = score_rules(
        load_settings(
            {
                "KERNOB_SCORE_WEIGHTS": "latency=0",
                "KERNOB_SCORE_MIN_SAMPLES": "packet_health=50",
                "KERNOB_SCORE_THRESHOLDS": "latency_slack_ms=2",
                "KERNOB_SCORE_OBJECTIVES": "db=20",
            }
        )
    )
    assert rules.weights == (0.35, 0.0, 0.20, 0.10, 0.20)
    assert rules.min_samples == (5, 20, 5, 50, 5)
    assert (rules.latency_slack_s, rules.objectives) == (0.002, (("db", 0.02),))
