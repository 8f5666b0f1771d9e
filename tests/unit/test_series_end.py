# SPDX-License-Identifier: Apache-2.0
"""When a series stops: what it says last, when its slot is another's, and that no total is lost."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint

from kernob.state.points import MetricBatch
from kernob.state.series import SeriesStore
from tests.unit.series_points import ACTIVE, BYTES, FILL, GONE, SECOND_NS, START_NS, points_of, slots, values


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


def test_zero_and_last_value_are_sent_twice_to_a_backend_that_may_forget() -> None:
    """A short-lived series says 0 and its value, both again once ten seconds have passed, and is gone."""
    store = SeriesStore(confirm_s=10.0)
    block = store.block(BYTES)
    slot = block.admit((("process.pid", 1),), START_NS)
    block.set(slots(slot), values(7))
    block.end(slots(slot))
    said: list[tuple[int, list[int]]] = []
    for tick in range(1, 30):
        batch = store.batch(START_NS + tick * SECOND_NS)
        points = points_of(batch, BYTES.name)
        if points:
            said.append((tick, [p.as_int for p in points]))
            assert points[0].time_unix_nano == points[0].start_time_unix_nano
        store.acknowledge(batch)
    assert said == [(1, [0, 7]), (11, [0, 7])]
    assert len(block) == 0


def test_a_busy_series_repeats_its_zero_once_and_its_last_value_once() -> None:
    """One that grows at every tick repeats only its 0; when it ended, its last value."""
    store = SeriesStore(confirm_s=10.0)
    block = store.block(BYTES)
    slot = block.admit((("process.pid", 1),), START_NS)
    said: dict[int, list[int]] = {}
    for tick in range(1, 50):
        if tick <= 20:
            block.set(slots(slot), values(tick))
        if tick == 20:
            block.end(slots(slot))
        batch = store.batch(START_NS + tick * SECOND_NS)
        said[tick] = [p.as_int for p in points_of(batch, BYTES.name)]
        store.acknowledge(batch)
    assert [tick for tick, points in said.items() if 0 in points] == [1, 11]
    assert [tick for tick, points in said.items() if 20 in points] == [20, 30]
    assert len(block) == 0


def test_a_batch_that_is_acknowledged_late_does_not_bring_a_forgotten_series_back() -> None:
    """A series that ended while a batch that names it was under way stays forgotten.

    Else it was sent for ever, and without attributes once the table was tidied: a request that no backend
    could read.
    """
    store = SeriesStore()
    block = store.block(BYTES)
    slot = block.admit((("process.pid", 1),), START_NS)
    store.acknowledge(store.batch(START_NS + SECOND_NS))
    under_way = store.batch(START_NS + 2 * SECOND_NS, everything=True)
    assert len(points_of(under_way, BYTES.name)) == 1
    block.end(slots(slot))
    assert len(block) == 0
    store.acknowledge(under_way)
    assert len(store.batch(START_NS + 3 * SECOND_NS, everything=True)) == 0


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
@given(operations=OPERATIONS, confirm_s=st.sampled_from([0.0, 10.0]))
def test_no_total_is_lost_whatever_the_network_does(
    operations: list[tuple[str, int]], confirm_s: float
) -> None:
    """After batches that arrived, were lost, or arrived with their answer lost, one good batch settles all.

    (Three, ten seconds apart, where zeros and ends are said twice.)
    Whatever the order of births, values, ends and failures: every series ever admitted stands at the
    backend with its final value, its first point was a 0 at its start, and none got another's.
    """
    store, backend = SeriesStore(confirm_s=confirm_s), Backend()
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
    for later_s in (1, 11, 21) if confirm_s else (1,):
        final = store.batch(now_ns + later_s * SECOND_NS)
        backend.receive(final)
        store.acknowledge(final)
    assert backend.last == totals
    assert all((first.as_int, first.time_unix_nano) == (0, first.start_time_unix_nano)
               for first in backend.first.values())  # fmt: skip
    assert len(block) == len(slot_of)


def test_a_gauge_that_comes_and_goes_during_an_outage_is_one_series() -> None:
    """Nothing is acknowledged, and it ends and comes back 100 times: one series, with its latest value."""
    store = SeriesStore()
    block = store.block(FILL)
    for tick in range(100):
        slot = block.admit((("map", "flows"),), START_NS + tick * SECOND_NS)
        other = block.admit((("map", "socks"),), START_NS + tick * SECOND_NS)
        block.set(slots(slot, other), values(tick / 100, 0.5))
        late = store.batch(START_NS + tick * SECOND_NS)
        block.end(slots(slot, other))
    assert len(block) == 2
    block.set(slots(block.admit((("map", "flows"),), START_NS + 100 * SECOND_NS)), values(0.25))
    store.acknowledge(late)
    batch = store.batch(START_NS + 100 * SECOND_NS)
    said = {p.attributes[0].value.string_value: p for p in points_of(batch, FILL.name)}
    assert (said["flows"].as_double, said["flows"].flags) == (0.25, 0)
    assert said["socks"].flags == GONE
    store.acknowledge(batch)
    assert len(block) == 1
    assert len(store.batch(START_NS + 101 * SECOND_NS)) == 0
