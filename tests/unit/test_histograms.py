# SPDX-License-Identifier: Apache-2.0
"""What a batch of histogram series says on the wire, and when it says it."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    MetricsData,
)

from kernob.export.encode import RequestEncoder
from kernob.export.file import to_json
from kernob.model import MetricKind, MetricSpec
from kernob.state.buckets import BUCKETS, LOWER_S, SCALE, UPPER_S, bucket_of
from kernob.state.histograms import HistogramBlock
from kernob.state.points import HistogramPoints, MetricBatch
from kernob.state.series import SeriesStore
from tests.unit.series_points import BYTES, SECOND_NS, START_NS, slots

CONNECT = MetricSpec(
    "kernob.tcp.connect.duration", "s", MetricKind.HISTOGRAM, "SYN to established", ("service",)
)
NOW_NS = START_NS + 10 * SECOND_NS
MS_NS = 1_000_000


def observed(*durations_ns: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sum and counts per bucket of one series, as the kernel's map has them."""
    counts = np.zeros((1, BUCKETS), np.uint32)
    for duration_ns in durations_ns:
        counts[0, bucket_of(duration_ns)] += 1
    return np.array([sum(durations_ns)], np.uint64), counts


def points_of(batch: MetricBatch, max_points: int = 5000) -> list[ExponentialHistogramDataPoint]:
    """Decode the histogram points of a batch, taken in pieces of `max_points`."""
    decoded: list[ExponentialHistogramDataPoint] = []
    for metric in batch.metrics:
        first = 0
        while isinstance(metric, HistogramPoints) and first < len(metric):
            framed, first = metric.take(first, max_points, 1 << 20)
            decoded.extend(ExponentialHistogram.FromString(framed).data_points)
    return decoded


def counts_of(point: ExponentialHistogramDataPoint) -> dict[int, int]:
    """OTLP bucket index -> count, of the buckets that are not empty."""
    filled = enumerate(point.positive.bucket_counts, point.positive.offset)
    return {index: count for index, count in filled if count}


def one_series(*durations_ns: int) -> tuple[SeriesStore, HistogramBlock, int]:
    store = SeriesStore()
    block = store.histogram(CONNECT)
    slot = block.admit((("service", "shop"),), START_NS)
    if durations_ns:
        block.add(slots(slot), *observed(*durations_ns))
    return store, block, slot


@given(st.integers(0, 2**37))
def test_a_bucket_holds_its_durations(duration_ns: int) -> None:
    """Every duration lies within its bucket's bounds, to one part in a million and 2**-30 s."""
    bucket = bucket_of(duration_ns)
    seconds, slack = duration_ns / 1e9, 2.0**-30
    assert LOWER_S[bucket] * (1 - 1e-6) <= seconds + slack
    assert seconds <= UPPER_S[bucket] * (1 + 1e-6) + slack


def test_bounds_are_otlps() -> None:
    """Bucket i is OTLP's bucket i - 81 of scale 2: (base**(i-81), base**(i-80)] seconds."""
    base = 2 ** (2**-SCALE)
    for bucket in (1, 41, 80, 81, 111):
        assert math.isclose(LOWER_S[bucket], base ** (bucket - 81))
        assert math.isclose(UPPER_S[bucket], base ** (bucket - 80))


def test_a_new_series_starts_empty_then_steps_then_has_its_value() -> None:
    """Empty at the start; one in each new bucket a millisecond later; the value now."""
    store, _, _ = one_series(*[1_000_000] * 20, *[3_000_000] * 5, 300)
    start, step, value = points_of(store.batch(NOW_NS))
    assert (start.time_unix_nano, start.count, start.sum, counts_of(start)) == (START_NS, 0, 0.0, {})
    assert start.HasField("sum")
    assert (step.time_unix_nano, step.count, step.zero_count) == (START_NS + MS_NS, 3, 1)
    assert set(counts_of(step).values()) == {1}
    assert 0 <= step.sum <= value.sum
    assert (value.time_unix_nano, value.count, value.zero_count) == (NOW_NS, 26, 1)
    assert sorted(counts_of(value).values()) == [5, 20]
    assert value.sum == pytest.approx(0.0350003)
    for point in (start, step, value):
        assert (point.scale, point.start_time_unix_nano, point.zero_threshold) == (2, START_NS, 2.0**-20)
        assert [(kv.key, kv.value.string_value) for kv in point.attributes] == [("service", "shop")]
    assert counts_of(value)[bucket_of(1_000_000) - 81] == 20


def test_only_the_span_that_is_not_empty_is_sent() -> None:
    """From the first to the last bucket with observations, empty ones between them included."""
    store, _, _ = one_series(1_000_000, 2_000_000)
    (_, value) = points_of(store.batch(NOW_NS))
    assert value.positive.offset == bucket_of(1_000_000) - 81
    assert list(value.positive.bucket_counts) == [1, 0, 0, 0, 1]


def test_a_bucket_that_is_new_later_steps_from_what_was_acknowledged() -> None:
    """The step says the acknowledged counts plus one, just after they were sent; known buckets need none."""
    store, block, slot = one_series(*[1_000_000] * 20)
    store.acknowledge(store.batch(NOW_NS))
    block.add(slots(slot), *observed(*[1_000_000] * 30))
    batch = store.batch(NOW_NS + SECOND_NS)
    assert [point.count for point in points_of(batch)] == [50]
    store.acknowledge(batch)
    block.add(slots(slot), *observed(*[1_000_000] * 7, *[9_000_000] * 40))
    step, value = points_of(store.batch(NOW_NS + 11 * SECOND_NS))
    assert (step.time_unix_nano, value.time_unix_nano) == (
        NOW_NS + SECOND_NS + MS_NS,
        NOW_NS + 11 * SECOND_NS,
    )
    assert sorted(counts_of(step).values()) == [1, 50]
    assert sorted(counts_of(value).values()) == [40, 57]


def test_the_unacknowledged_is_said_again() -> None:
    """After a lost batch the next one brings start, step and value again, all observations in it."""
    store, block, slot = one_series(*[1_000_000] * 20)
    store.batch(NOW_NS)
    block.add(slots(slot), *observed(*[5_000_000] * 20))
    batch = store.batch(NOW_NS + SECOND_NS)
    assert [point.count for point in points_of(batch)] == [0, 2, 40]
    store.acknowledge(batch)
    assert len(store.batch(NOW_NS + 2 * SECOND_NS)) == 0


def test_a_batch_is_not_changed_by_what_comes_after_it() -> None:
    """Observations after a batch are not in it, and it does not acknowledge them."""
    store, block, slot = one_series(1_000_000)
    batch = store.batch(NOW_NS)
    block.add(slots(slot), *observed(1_000_000))
    assert [point.count for point in points_of(batch)] == [0, 1]
    store.acknowledge(batch)
    assert [point.count for point in points_of(store.batch(NOW_NS + SECOND_NS))] == [2]


def test_unchanged_histograms_are_sent_again_and_ended_ones_end() -> None:
    """Due once a minute with their value; after the end the last value is sent until acknowledged."""
    store, block, slot = one_series(1_000_000)
    store.acknowledge(store.batch(NOW_NS))
    again = store.batch(NOW_NS + 60 * SECOND_NS)
    assert [point.count for point in points_of(again)] == [1]
    store.acknowledge(again)
    block.add(slots(slot), *observed(1_000_000))
    block.end(slots(slot))
    for tick in (1, 2):
        last = store.batch(NOW_NS + (60 + tick) * SECOND_NS)
        assert [point.count for point in points_of(last)] == [2]
    store.acknowledge(last)
    assert (len(block), len(store.batch(NOW_NS + 1000 * SECOND_NS))) == (0, 0)


def test_a_slot_used_again_starts_from_nothing() -> None:
    """A series in a forgotten one's slot has none of its counts, neither sent nor known."""
    store, block, slot = one_series(1_000_000)
    block.end(slots(slot))
    store.acknowledge(store.batch(NOW_NS))
    assert block.admit((("service", "db"),), NOW_NS) == slot
    block.add(slots(slot), *observed(*[1_000_000] * 3))
    points = points_of(store.batch(NOW_NS + SECOND_NS))
    assert [point.count for point in points] == [0, 1, 3]
    assert points[0].attributes[0].value.string_value == "db"


def test_misuse_is_refused() -> None:
    """Another kind or unit, one name for two metrics, a slot that is not in use: ValueError."""
    store = SeriesStore()
    block = store.histogram(CONNECT)
    with pytest.raises(ValueError, match="is no histogram of seconds"):
        HistogramBlock(BYTES)
    with pytest.raises(ValueError, match="is no histogram of seconds"):
        HistogramBlock(MetricSpec("x", "ms", MetricKind.HISTOGRAM, ""))
    with pytest.raises(ValueError, match="specified twice"):
        store.histogram(MetricSpec(CONNECT.name, "s", MetricKind.HISTOGRAM, "other"))
    block.admit((("service", "db"),), START_NS)
    with pytest.raises(ValueError, match="not admitted or is forgotten"):
        block.add(slots(1), *observed(1))


def test_requests_and_the_file_have_histograms() -> None:
    """The metric is a cumulative exponential histogram; its JSON is what protobuf's own encoder says."""
    store, _, _ = one_series(*[1_000_000] * 20)
    (request,) = RequestEncoder((("service.name", "kernob"),)).requests(store.batch(NOW_NS))
    message = MetricsData.FromString(request.body)
    (metric,) = message.resource_metrics[0].scope_metrics[0].metrics
    assert (metric.name, metric.unit, metric.WhichOneof("data")) == (
        CONNECT.name,
        "s",
        "exponential_histogram",
    )
    histogram = metric.exponential_histogram
    assert histogram.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    assert (len(histogram.data_points), request.points) == (3, 3)
    expected = json_format.MessageToDict(message, use_integers_for_enums=True)
    assert json.loads(to_json(request.body)) == expected


@settings(deadline=None)
@given(
    ticks=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10**10)), max_size=30), min_size=1, max_size=6
    ),
    heard=st.lists(st.booleans(), min_size=6, max_size=6),
    max_points=st.integers(1, 7),
)
def test_nothing_is_lost_or_taken_back(
    ticks: list[list[tuple[int, int]]], heard: list[bool], max_points: int
) -> None:
    """Whatever is observed and whichever batches are heard, a backend's counts end at the truth.

    In the order of their stamps they never fall, and no bucket first appears with more than one.
    """
    store = SeriesStore()
    block = store.histogram(CONNECT)
    numbers = [block.admit((("service", name),), START_NS) for name in "abcd"]
    truth: dict[str, dict[int, int]] = {name: {} for name in "abcd"}
    received: dict[str, list[ExponentialHistogramDataPoint]] = {name: [] for name in "abcd"}
    for tick, observations in enumerate(ticks, 1):
        for series, duration_ns in observations:
            block.add(slots(numbers[series]), *observed(duration_ns))
            index = bucket_of(duration_ns)
            truth["abcd"[series]][index] = truth["abcd"[series]].get(index, 0) + 1
        batch = store.batch(START_NS + tick * SECOND_NS)
        if heard[tick - 1] or tick == len(ticks):
            for point in points_of(batch, max_points):
                received[point.attributes[0].value.string_value].append(point)
            store.acknowledge(batch)
    for name, points in received.items():
        points.sort(key=lambda point: point.time_unix_nano)
        before: dict[int, int] = {}
        sum_before, stamp = 0.0, 0
        for point in points:
            counts = {index + 81: count for index, count in counts_of(point).items()}
            if point.zero_count:
                counts[0] = point.zero_count
            assert point.count == sum(counts.values())
            assert all(counts.get(index, 0) >= count for index, count in before.items())
            assert all(count == 1 for index, count in counts.items() if index not in before)
            assert point.time_unix_nano > stamp
            assert point.sum >= sum_before
            before, sum_before, stamp = counts, point.sum, point.time_unix_nano
        assert before == truth[name]
