# SPDX-License-Identifier: Apache-2.0
"""What a batch of cumulative series says on the wire, and when it says it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint, Sum

from kernob.model import AttributeValue, MetricKind, MetricSpec
from kernob.state.blocks import SeriesBlock
from kernob.state.points import encode_attribute
from kernob.state.series import SeriesStore
from tests.unit.series_points import ACTIVE, BYTES, FILL, SECOND_NS, START_NS, points_of, slots, values


def test_the_first_batch_sends_zero_at_the_start_and_then_the_value() -> None:
    """A new counter sends 0 stamped with its start, then its value stamped with the batch's time."""
    store = SeriesStore()
    block = store.block(BYTES)
    slot = block.admit((("process.pid", 4242), ("direction", "transmit")), START_NS)
    block.set(slots(slot), values(1_000_000))
    zero, value = points_of(store.batch(START_NS + SECOND_NS), BYTES.name)
    assert (zero.start_time_unix_nano, zero.time_unix_nano, zero.as_int) == (START_NS, START_NS, 0)
    assert value.start_time_unix_nano == START_NS
    assert (value.time_unix_nano, value.as_int) == (START_NS + SECOND_NS, 1_000_000)
    assert zero.HasField("as_int")
    assert [(kv.key, kv.value.WhichOneof("value")) for kv in value.attributes] == [
        ("process.pid", "int_value"),
        ("direction", "string_value"),
    ]
    assert value.attributes[0].value.int_value == 4242
    assert zero.attributes == value.attributes


@pytest.mark.parametrize("late_ns", [-5 * SECOND_NS, 0, 999_999])
def test_the_value_is_stamped_a_millisecond_after_the_zero(late_ns: int) -> None:
    """A batch made before or within a millisecond of the start stamps the value start + 1 ms."""
    store = SeriesStore()
    block = store.block(BYTES)
    block.admit((("process.pid", 1),), START_NS)
    zero, value = points_of(store.batch(START_NS + late_ns), BYTES.name)
    assert (zero.time_unix_nano, value.time_unix_nano) == (START_NS, START_NS + 1_000_000)


def test_zero_is_repeated_until_acknowledged() -> None:
    """A first batch that was lost makes the next one bring the 0 point again; else not."""
    store = SeriesStore()
    block = store.block(BYTES)
    slot = block.admit((("process.pid", 1),), START_NS)
    block.set(slots(slot), values(10))
    store.batch(START_NS + SECOND_NS)
    block.set(slots(slot), values(30))
    second = store.batch(START_NS + 2 * SECOND_NS)
    assert [point.as_int for point in points_of(second, BYTES.name)] == [0, 30]
    store.acknowledge(second)
    block.set(slots(slot), values(70))
    assert [p.as_int for p in points_of(store.batch(START_NS + 3 * SECOND_NS), BYTES.name)] == [70]


def test_only_what_changed_is_sent() -> None:
    """Of three acknowledged series only the one whose value changed is in the next batch."""
    store = SeriesStore()
    block = store.block(BYTES)
    three = slots(*(block.admit((("process.pid", pid),), START_NS) for pid in (1, 2, 3)))
    block.set(three, values(5, 6, 7))
    store.acknowledge(store.batch(START_NS + SECOND_NS))
    block.set(three, values(5, 60, 7))
    batch = store.batch(START_NS + 2 * SECOND_NS)
    assert [(p.attributes[0].value.int_value, p.as_int) for p in points_of(batch, BYTES.name)] == [(2, 60)]


def test_nothing_changed_is_an_empty_batch() -> None:
    """When nothing changed the batch has no metric at all."""
    store = SeriesStore()
    store.block(BYTES).admit((("process.pid", 1),), START_NS)
    store.acknowledge(store.batch(START_NS + SECOND_NS))
    empty = store.batch(START_NS + 2 * SECOND_NS)
    assert (len(empty), empty.metrics) == (0, ())


def test_a_value_that_changed_after_the_batch_is_sent_again() -> None:
    """Acknowledging a batch does not cover a value set after it was made."""
    store = SeriesStore()
    block = store.block(BYTES)
    slot = block.admit((("process.pid", 1),), START_NS)
    block.set(slots(slot), values(10))
    batch = store.batch(START_NS + SECOND_NS)
    block.set(slots(slot), values(11))
    store.acknowledge(batch)
    assert [p.as_int for p in points_of(store.batch(START_NS + 2 * SECOND_NS), BYTES.name)] == [11]


def test_unchanged_series_are_sent_again_after_the_interval() -> None:
    """An unchanged series is silent until 60 s after its last acknowledged batch, then due once."""
    store = SeriesStore(resend_interval_s=60)
    block = store.block(BYTES)
    slot = block.admit((("process.pid", 1),), START_NS)
    block.set(slots(slot), values(9))
    first_ns = START_NS + SECOND_NS
    store.acknowledge(store.batch(first_ns))
    assert len(store.batch(first_ns + 60 * SECOND_NS - 1)) == 0
    due = store.batch(first_ns + 60 * SECOND_NS)
    assert [p.as_int for p in points_of(due, BYTES.name)] == [9]
    store.acknowledge(due)
    assert len(store.batch(first_ns + 61 * SECOND_NS)) == 0


def test_a_clock_set_back_sends_rather_than_falls_silent() -> None:
    """A series last sent in what is now the future is due at once."""
    store = SeriesStore()
    store.block(BYTES).admit((("process.pid", 1),), START_NS)
    store.acknowledge(store.batch(START_NS + 3600 * SECOND_NS))
    assert len(store.batch(START_NS + SECOND_NS)) == 1


def test_everything_sends_all_series_in_use() -> None:
    """`everything` sends unchanged series too."""
    store = SeriesStore()
    block = store.block(BYTES)
    for pid in range(100):
        block.admit((("process.pid", pid),), START_NS)
    store.acknowledge(store.batch(START_NS + SECOND_NS))
    assert len(store.batch(START_NS + 2 * SECOND_NS, everything=True)) == 100


def test_an_older_acknowledgement_is_ignored() -> None:
    """Acknowledging a batch after a newer one was acknowledged changes nothing."""
    store = SeriesStore()
    block = store.block(BYTES)
    slot = block.admit((("process.pid", 1),), START_NS)
    older, newer = (store.batch(START_NS + n * SECOND_NS) for n in (1, 2))
    store.acknowledge(newer)
    block.set(slots(slot), values(3))
    store.acknowledge(older)
    assert [p.as_int for p in points_of(store.batch(START_NS + 3 * SECOND_NS), BYTES.name)] == [3]


def test_nan_is_a_value_like_any_other() -> None:
    """A float that stays NaN is not taken for changed at each tick."""
    store = SeriesStore()
    block = store.block(FILL)
    slot = block.admit((("map", "flows"),), START_NS)
    block.set(slots(slot), values(float("nan")))
    store.acknowledge(store.batch(START_NS + SECOND_NS))
    block.set(slots(slot), values(float("nan")))
    assert len(store.batch(START_NS + 2 * SECOND_NS)) == 0


@pytest.mark.parametrize("number", [0, 1, 2**63 - 1, -(2**63)])
def test_whole_numbers_travel_exactly(number: int) -> None:
    """Whole numbers of 64 bits arrive as they are."""
    store = SeriesStore()
    block = store.block(ACTIVE)
    slot = block.admit((("service", "db"),), START_NS)
    block.set(slots(slot), np.array([number], dtype=np.int64))
    assert [p.as_int for p in points_of(store.batch(START_NS + SECOND_NS), ACTIVE.name)] == [number]


def test_an_attribute_may_be_absent_and_types_stay_apart() -> None:
    """True, 1, 1.0 and "1" are four different attribute values; a missing attribute is not sent."""
    store = SeriesStore()
    block = store.block(BYTES)
    given_values: list[AttributeValue] = [True, 1, 1.0, "1"]
    for value in given_values:
        block.admit((("direction", value),), START_NS)
    sent = points_of(store.batch(START_NS + SECOND_NS), BYTES.name)[4:]
    kinds = [p.attributes[0].value.WhichOneof("value") for p in sent]
    assert sorted(str(kind) for kind in kinds) == ["bool_value", "double_value", "int_value", "string_value"]
    assert {len(p.attributes) for p in sent} == {1}


def test_misuse_is_refused() -> None:
    """An unlisted attribute, a value for a slot not in use, one name for two metrics: ValueError."""
    store = SeriesStore()
    block = store.block(BYTES)
    with pytest.raises(ValueError, match="process\\.network\\.io: attribute color is not in"):
        block.admit((("color", "red"),), START_NS)
    slot = block.admit((("process.pid", 1),), START_NS)
    with pytest.raises(ValueError, match="not admitted or is forgotten"):
        block.set(slots(slot + 1), values(1))
    with pytest.raises(ValueError, match="specified twice"):
        store.block(MetricSpec(BYTES.name, "1", MetricKind.COUNTER, "other"))


def test_pieces_keep_to_both_limits() -> None:
    """Taking keeps to the limits of points and of bytes, and always makes progress."""
    store = SeriesStore()
    block = store.block(BYTES)
    for pid in range(50):
        block.admit((("process.pid", pid), ("direction", "x" * (pid * 20))), START_NS)
    (metric,) = store.batch(START_NS + SECOND_NS).metrics
    for max_points, max_bytes in ((7, 1 << 20), (100, 900), (100, 1)):
        first, seen = 0, 0
        while first < len(metric):
            framed, following = metric.take(first, max_points, max_bytes)
            assert 0 < following - first <= max_points
            assert len(framed) <= max_bytes or following == first + 1
            seen += len(Sum.FromString(framed).data_points)
            first = following
        assert seen == 100


@given(key=st.text(max_size=40), value=st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text()))
def test_an_encoded_attribute_is_a_point_with_it(key: str, value: AttributeValue) -> None:
    """Any attribute decodes to itself."""
    (decoded,) = NumberDataPoint.FromString(encode_attribute(key, value)).attributes
    assert decoded.key == key
    assert getattr(decoded.value, str(decoded.value.WhichOneof("value"))) == value


def test_histograms_have_no_place_here() -> None:
    """A metric whose points are not numbers is refused when its block is made."""
    with pytest.raises(ValueError, match="has no number points"):
        SeriesBlock(MetricSpec("x", "s", MetricKind.HISTOGRAM, ""))
