# SPDX-License-Identifier: Apache-2.0
"""What a batch of cumulative series says on the wire, when it says it, and when it stops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opentelemetry.proto.metrics.v1.metrics_pb2 import DataPointFlags, NumberDataPoint, Sum

from kernob.model import AttributeValue, MetricKind, MetricSpec
from kernob.state.points import MetricBatch, encode_attribute
from kernob.state.series import SeriesBlock, SeriesStore

BYTES = MetricSpec("process.network.io", "By", MetricKind.COUNTER, "bytes", ("process.pid", "direction"))
FILL = MetricSpec("kernob.fill", "1", MetricKind.GAUGE, "a ratio", ("map",), integer=False)
ACTIVE = MetricSpec("kernob.active", "{connection}", MetricKind.UPDOWN, "connections", ("service",))

START_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
GONE = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK


def slots(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)


def values(*numbers: float) -> NDArray[np.generic]:
    return np.array(numbers)


def points_of(batch: MetricBatch, name: str, max_points: int = 5000) -> list[NumberDataPoint]:
    """Decode one metric's points of a batch, taken in pieces of `max_points`."""
    decoded: list[NumberDataPoint] = []
    for metric in batch.metrics:
        first = 0
        while metric.spec.name == name and first < len(metric):
            framed, first = metric.take(first, max_points, 1 << 20)
            decoded.extend(Sum.FromString(framed).data_points)
    return decoded


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


def test_an_ended_series_is_sent_until_acknowledged_then_forgotten() -> None:
    """A dead process's final value is repeated until a batch with it is acknowledged; then forgotten."""
    store = SeriesStore()
    block = store.block(BYTES)
    slot = block.admit((("process.pid", 1),), START_NS)
    block.set(slots(slot), values(10))
    store.acknowledge(store.batch(START_NS + SECOND_NS))
    block.set(slots(slot), values(20))
    block.end(slots(slot))
    for tick in (2, 3):
        batch = store.batch(START_NS + tick * SECOND_NS)
        assert [p.as_int for p in points_of(batch, BYTES.name)] == [20]
        assert len(block) == 1
    store.acknowledge(batch)
    assert len(block) == 0
    assert len(store.batch(START_NS + 4 * SECOND_NS, everything=True)) == 0


def test_an_ended_series_whose_value_is_known_is_forgotten_at_once() -> None:
    """Nothing more is sent of a counter whose final value was acknowledged before it ended."""
    store = SeriesStore()
    block = store.block(BYTES)
    slot = block.admit((("process.pid", 1),), START_NS)
    store.acknowledge(store.batch(START_NS + SECOND_NS))
    block.end(slots(slot))
    assert len(block) == 0
    assert len(store.batch(START_NS + 2 * SECOND_NS)) == 0


def test_a_slot_is_not_reused_while_a_batch_may_name_it() -> None:
    """A batch under way goes on saying what it was made of, though its series is forgotten meanwhile."""
    store = SeriesStore()
    block = store.block(BYTES)
    slot = block.admit((("process.pid", 1),), START_NS)
    block.set(slots(slot), values(10))
    block.end(slots(slot))
    first = store.batch(START_NS + SECOND_NS)
    under_way = store.batch(START_NS + 2 * SECOND_NS)
    store.acknowledge(first)
    others = [block.admit((("process.pid", pid),), START_NS) for pid in range(100, 300)]
    assert slot not in others
    assert [p.attributes[0].value.int_value for p in points_of(under_way, BYTES.name)] == [1, 1]
    store.acknowledge(under_way)
    assert block.admit((("process.pid", 2),), START_NS) == slot


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


def test_a_gauge_has_neither_start_nor_zero_and_ends_without_a_value() -> None:
    """A gauge sends its value; when it ends it sends one point flagged as having none."""
    store = SeriesStore()
    block = store.block(FILL)
    slot = block.admit((("map", "flows"),), START_NS)
    block.set(slots(slot), values(0.25))
    batch = store.batch(START_NS + SECOND_NS)
    (point,) = points_of(batch, FILL.name)
    assert (point.start_time_unix_nano, point.as_double, point.flags) == (0, 0.25, 0)
    store.acknowledge(batch)
    block.end(slots(slot))
    batch = store.batch(START_NS + 2 * SECOND_NS)
    (last,) = points_of(batch, FILL.name)
    assert (last.flags, last.WhichOneof("value"), last.time_unix_nano) == (
        GONE,
        None,
        START_NS + 2 * SECOND_NS,
    )
    assert last.attributes == point.attributes
    store.acknowledge(batch)
    assert len(block) == 0


def test_a_gauge_that_ended_after_the_batch_still_says_so() -> None:
    """Acknowledging a gauge's value does not count as having said that it ended."""
    store = SeriesStore()
    block = store.block(FILL)
    slot = block.admit((("map", "flows"),), START_NS)
    batch = store.batch(START_NS + SECOND_NS)
    block.end(slots(slot))
    store.acknowledge(batch)
    assert [p.flags for p in points_of(store.batch(START_NS + 2 * SECOND_NS), FILL.name)] == [GONE]


def test_an_updowncounter_has_a_start_but_no_zero_point() -> None:
    """A sum that may fall starts with its value, and ends like a gauge, with its start."""
    store = SeriesStore()
    block = store.block(ACTIVE)
    slot = block.admit((("service", "db"),), START_NS)
    block.set(slots(slot), values(-3))
    batch = store.batch(START_NS + SECOND_NS)
    (point,) = points_of(batch, ACTIVE.name)
    assert (point.start_time_unix_nano, point.as_int) == (START_NS, -3)
    store.acknowledge(batch)
    block.end(slots(slot))
    (last,) = points_of(store.batch(START_NS + 2 * SECOND_NS), ACTIVE.name)
    assert (last.start_time_unix_nano, last.flags) == (START_NS, GONE)


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


def test_the_table_of_attributes_does_not_grow_with_churn() -> None:
    """After 20,000 short-lived processes the table holds what living series need, and they are intact."""
    store = SeriesStore()
    block = store.block(BYTES)
    lasting = block.admit((("process.pid", 7), ("direction", "receive")), START_NS)
    for tick in range(20):
        born = [block.admit((("process.pid", 1000 * tick + n),), START_NS) for n in range(1000)]
        block.set(slots(*born), np.full(1000, 5))
        block.end(slots(*born))
        store.acknowledge(store.batch(START_NS + (tick + 1) * SECOND_NS))
    assert len(block) == 1
    assert len(block._table) <= 2100
    assert len(block._flags) <= 4096
    block.set(slots(lasting), values(3))
    (point,) = points_of(store.batch(START_NS + 21 * SECOND_NS), BYTES.name)
    assert [(kv.key, kv.value.int_value or kv.value.string_value) for kv in point.attributes] == [
        ("process.pid", 7),
        ("direction", "receive"),
    ]


@given(key=st.text(max_size=40), value=st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text()))
def test_an_encoded_attribute_is_a_point_with_it(key: str, value: AttributeValue) -> None:
    """Any attribute decodes to itself."""
    (decoded,) = NumberDataPoint.FromString(encode_attribute(key, value)).attributes
    assert decoded.key == key
    assert getattr(decoded.value, str(decoded.value.WhichOneof("value"))) == value


class Backend:
    """Remembers of each series what a receiver would: the first point and the last one."""

    def __init__(self) -> None:
        self.first: dict[int, NumberDataPoint] = {}
        self.last: dict[int, int] = {}

    def receive(self, batch: MetricBatch) -> None:
        for point in points_of(batch, BYTES.name, max_points=3):
            pid = point.attributes[0].value.int_value
            self.first.setdefault(pid, point)
            if point.time_unix_nano > point.start_time_unix_nano:
                self.last[pid] = point.as_int


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "add", "end", "send", "send", "lose", "late"]), st.integers(0, 2**16)
    ),
    max_size=120,
)


@settings(max_examples=200, deadline=None)
@given(operations=OPERATIONS)
def test_no_total_is_lost_whatever_the_network_does(operations: list[tuple[str, int]]) -> None:
    """After batches that arrived, were lost, or arrived with their answer lost, one good batch settles all.

    Whatever the order of births, values, ends and failures: every series ever admitted stands at the
    backend with its final value, its first point was a 0 at its start, and none got another's.
    """
    store, backend = SeriesStore(), Backend()
    block = store.block(BYTES)
    slot_of: dict[int, int] = {}
    totals: dict[int, int] = {}
    now_ns = START_NS
    for pid, (operation, number) in enumerate(operations):
        now_ns += SECOND_NS
        chosen = sorted(slot_of)[number % len(slot_of)] if slot_of else None
        if operation == "admit":
            slot_of[pid] = block.admit((("process.pid", pid),), now_ns)
            totals[pid] = 0
        elif operation == "add" and chosen is not None:
            totals[chosen] += number
            block.set(slots(slot_of[chosen]), values(totals[chosen]))
        elif operation == "end" and chosen is not None:
            block.end(slots(slot_of.pop(chosen)))
        elif operation in ("send", "late"):
            batch = store.batch(now_ns)
            backend.receive(batch)
            if operation == "send":
                store.acknowledge(batch)
        elif operation == "lose":
            store.batch(now_ns)
    final = store.batch(now_ns + SECOND_NS)
    backend.receive(final)
    store.acknowledge(final)
    assert backend.last == totals
    assert all((first.as_int, first.time_unix_nano) == (0, first.start_time_unix_nano)
               for first in backend.first.values())  # fmt: skip
    assert len(block) == len(slot_of)


def test_histograms_have_no_place_here() -> None:
    """A metric whose points are not numbers is refused when its block is made."""
    with pytest.raises(ValueError, match="has no number points"):
        SeriesBlock(MetricSpec("x", "s", MetricKind.HISTOGRAM, ""))
